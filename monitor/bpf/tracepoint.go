package bpf

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// tracepoint is what tracefs says of one.
type tracepoint struct {
	name   string
	id     uint64
	fields map[string]place
}

// place is where a field is in the tracepoint's record.
type place struct{ offset, size int }

var (
	errNoTracefs    = errors.New("tracefs is not mounted")
	errNoBTF        = errors.New("no " + kernelBTF)
	errNoTracepoint = errors.New("this kernel has no such tracepoint")
)

// find is the first of some tracepoints that the kernel has.
func find(tracefs string, names []string) (t tracepoint, err error) {
	if _, err := os.Stat(filepath.Join(tracefs, "events")); errors.Is(err, fs.ErrNotExist) {
		return t, fmt.Errorf("%w at %s", errNoTracefs, tracefs)
	}
	for _, name := range names {
		file, err := os.Open(filepath.Join(tracefs, "events", name, "format"))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return t, err
		}
		defer file.Close()
		return parseFormat(name, bufio.NewScanner(file))
	}
	return t, fmt.Errorf("%w: %s", errNoTracepoint, strings.Join(names, ", "))
}

// parseFormat reads a tracepoint's format file: "ID: 609", and "field:int pid;	offset:8;	size:4;	signed:1;" a line.
func parseFormat(name string, lines *bufio.Scanner) (t tracepoint, err error) {
	t = tracepoint{name: name, fields: make(map[string]place)}
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if id, ok := strings.CutPrefix(line, "ID: "); ok {
			if t.id, err = strconv.ParseUint(id, 10, 32); err != nil {
				return t, fmt.Errorf("format of %s: ID %q", name, id)
			}
		}
		declared, ok := strings.CutPrefix(line, "field:")
		if !ok {
			continue
		}
		parts := strings.Split(declared, ";")
		if len(parts) < 3 {
			return t, fmt.Errorf("format of %s: %q is no field", name, line)
		}
		var p place
		var errs [2]error
		p.offset, errs[0] = number(parts[1], "offset:")
		p.size, errs[1] = number(parts[2], "size:")
		if err := errors.Join(errs[:]...); err != nil {
			return t, fmt.Errorf("format of %s: %q: %w", name, line, err)
		}
		words := strings.Fields(parts[0])
		if len(words) == 0 {
			return t, fmt.Errorf("format of %s: %q has no name", name, line)
		}
		field, _, _ := strings.Cut(words[len(words)-1], "[")
		t.fields[field] = p
	}
	if err := lines.Err(); err != nil {
		return t, fmt.Errorf("format of %s: %w", name, err)
	}
	if t.id == 0 {
		return t, fmt.Errorf("format of %s: no ID", name)
	}
	return t, nil
}

func number(text, prefix string) (int, error) {
	digits, ok := strings.CutPrefix(strings.TrimSpace(text), prefix)
	if !ok {
		return 0, fmt.Errorf("no %s", prefix)
	}
	n, err := strconv.ParseUint(digits, 10, 16)
	return int(n), err //nolint:gosec // G115: 16 bits
}

// locate is where a program finds what it reads; by the name of its constant.
func locate(t tracepoint, fields []field) (map[string]uint16, error) {
	at := make(map[string]uint16)
	for _, f := range fields {
		i := slices.IndexFunc(f.names, func(name string) bool { return t.fields[name].size > 0 })
		if i < 0 {
			return nil, fmt.Errorf("this kernel's %s has no field %s", t.name, strings.Join(f.names, " or "))
		}
		p := t.fields[f.names[i]]
		if p.size != f.size {
			return nil, fmt.Errorf("this kernel's %s has a field %s of %d bytes, %d are known", t.name, f.names[i], p.size, f.size)
		}
		at[f.variable] = uint16(p.offset) //nolint:gosec // G115: parsed as 16 bits
	}
	return at, nil
}

// attach runs a program at a tracepoint, on every CPU, until the descriptor is closed.
func attach(id uint64, program int) (fd int, err error) {
	attr := unix.PerfEventAttr{Type: unix.PERF_TYPE_TRACEPOINT, Config: id, Size: uint32(unsafe.Sizeof(unix.PerfEventAttr{})), Sample: 1, Wakeup: 1}
	fd, err = unix.PerfEventOpen(&attr, -1, 0, -1, unix.PERF_FLAG_FD_CLOEXEC) // the program runs on all CPUs, whichever the event is opened for
	if err != nil {
		return -1, fmt.Errorf("open the tracepoint: %w", err)
	}
	if err := errors.Join(unix.IoctlSetInt(fd, unix.PERF_EVENT_IOC_SET_BPF, program), unix.IoctlSetInt(fd, unix.PERF_EVENT_IOC_ENABLE, 0)); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("attach to the tracepoint: %w", err)
	}
	return fd, nil
}
