package source

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kerf-gpu/kerf/monitor/xid"
)

// Record is a record of the kernel log that is about a GPU or a switch.
type Record struct {
	xid.Report
	Seq uint64
	At  time.Duration // since boot
}

// KmsgSink is who hears of the kernel log. Calls come from one goroutine; one that blocks holds the reader up, and what the kernel
// overwrites meanwhile is counted.
type KmsgSink interface {
	// Record is the next one, in order.
	Record(Record)
	// Lost says that so many records were overwritten unread.
	Lost(records uint64)
	// Replayed says that all that was there has been read. It comes once a Run.
	Replayed()
	// Up says whether the log can be read; err is why not.
	Up(err error)
}

// Kmsg is a kernel log: /dev/kmsg, or a file of such records, which a simulated node has.
type Kmsg struct {
	Path string
	// facility is whose records count, for the test that writes to the real device: user space cannot be facility 0.
	facility int
}

// retryEvery is how soon a log that cannot be read is tried again.
const retryEvery = 5 * time.Second

// Run reads until the context ends, from the oldest record that the log still has. A log that is not there, may not be read or breaks
// off is said, and tried again.
func (k Kmsg) Run(ctx context.Context, to KmsgSink) error {
	r := &reader{to: to, facility: k.facility}
	for {
		err := k.read(ctx, r)
		if ctx.Err() != nil {
			return nil
		}
		to.Up(explain(k.Path, err))
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(retryEvery):
		}
	}
}

func explain(path string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("kernel log %s: not there; mount the host's /dev into kerfd's container, or set monitor.kmsg", path)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("kernel log %s: no permission; kerfd needs CAP_SYSLOG, or kernel.dmesg_restrict=0", path)
	case err == nil:
		return fmt.Errorf("kernel log %s: closed", path)
	}
	return fmt.Errorf("kernel log %s: %w", path, err)
}

// read reads one opening of the log.
func (k Kmsg) read(ctx context.Context, r *reader) error {
	// Non-blocking, so that the runtime waits for it with all its other descriptors, and a closed one wakes the reader.
	fd, err := syscall.Open(k.Path, syscall.O_RDONLY|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), k.Path)
	defer f.Close()
	stop := context.AfterFunc(ctx, func() { _ = f.Close() })
	defer stop()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	r.to.Up(nil)
	if info.Mode().IsRegular() {
		return r.follow(ctx, f)
	}
	if info.Mode().Type() == fs.ModeNamedPipe {
		return r.lines(ctx, f, nil)
	}
	return r.device(f)
}

// reader is the state over all openings of a log.
type reader struct {
	to       KmsgSink
	facility int
	parser   xid.Parser
	next     uint64 // the sequence number that is due
	begun    bool
	replayed bool
}

// maxRecord is more than the kernel ever writes as one record.
const maxRecord = 16 << 10

// device reads /dev/kmsg: each read is one record.
func (r *reader) device(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	buf := make([]byte, maxRecord)
	for {
		n, err := 0, error(nil)
		if r.replayed {
			n, err = f.Read(buf)
		} else { // what is not there yet is no replay: ask without waiting
			gone := raw.Read(func(fd uintptr) bool { n, err = syscall.Read(int(fd), buf); return true })
			err = errors.Join(err, gone)
		}
		switch {
		case errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.EINTR): // overtaken: the next record's number says by how many
		case errors.Is(err, syscall.EAGAIN):
			r.caughtUp()
		case err != nil:
			return err
		case n <= 0:
			return nil
		default:
			r.record(buf[:n])
		}
	}
}

// followEvery is how often the end of a file is looked at for more where nothing tells that there is. The real log wakes its reader.
const followEvery = 40 * time.Millisecond

// follow reads a file of records, which a simulated node has, and waits for more by inotify: to look again and again costs more than
// all else that an idle kerfd does.
func (r *reader) follow(ctx context.Context, f *os.File) error {
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil { // a user may have so many
		return r.lines(ctx, f, nil)
	}
	grown := os.NewFile(uintptr(fd), "inotify")
	defer grown.Close()
	if _, err := unix.InotifyAddWatch(fd, f.Name(), unix.IN_MODIFY); err != nil {
		return r.lines(ctx, f, nil)
	}
	stop := context.AfterFunc(ctx, func() { _ = grown.Close() })
	defer stop()
	return r.lines(ctx, f, grown)
}

// lines follows a file of records, one a line. What grown gives says that there may be more; nil: nothing does.
func (r *reader) lines(ctx context.Context, f, grown *os.File) error {
	var pending []byte
	buf := make([]byte, maxRecord)
	for {
		n, err := f.Read(buf)
		pending = append(pending, buf[:n]...)
		for {
			line, rest, found := bytes.Cut(pending, []byte("\n"))
			if !found {
				break
			}
			r.record(line)
			pending = rest
		}
		if len(pending) > maxRecord { // no record: it is not kept
			pending = nil
		}
		switch {
		case err == nil:
			continue
		case !errors.Is(err, io.EOF) && !errors.Is(err, syscall.EAGAIN):
			return err
		}
		r.caughtUp()
		if grown != nil {
			if _, err := grown.Read(make([]byte, maxRecord)); err != nil {
				return ctx.Err()
			}
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(followEvery):
		}
	}
}

func (r *reader) caughtUp() {
	if !r.replayed {
		r.replayed = true
		r.to.Replayed()
	}
}

// record takes one record: priority,sequence,microseconds,flags;text. What is none is passed over: the next number tells of the loss.
func (r *reader) record(raw []byte) {
	head, text, found := bytes.Cut(raw, []byte(";"))
	if !found {
		return
	}
	priority, rest, ok1 := field(head)
	seq, rest, ok2 := field(rest)
	micros, _, ok3 := field(rest)
	if !ok1 || !ok2 || !ok3 {
		return
	}
	switch {
	case r.begun && seq < r.next: // read before, by an earlier opening
		return
	case r.begun && seq > r.next:
		r.to.Lost(seq - r.next)
	}
	r.begun, r.next = true, seq+1
	if int(priority>>3) != r.facility {
		return
	}
	if i := bytes.IndexByte(text, '\n'); i >= 0 { // what follows is a dictionary: SUBSYSTEM=…
		text = text[:i]
	}
	if report, ok := r.parser.Parse(text); ok {
		r.to.Record(Record{report, seq, time.Duration(micros) * time.Microsecond})
	}
}

// field is the number up to the next comma.
func field(b []byte) (n uint64, rest []byte, ok bool) {
	digits, rest, _ := bytes.Cut(b, []byte(","))
	n, err := strconv.ParseUint(string(digits), 10, 63)
	return n, rest, err == nil
}
