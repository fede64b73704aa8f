package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"k8s.io/apimachinery/pkg/api/resource"
)

// node is the one node, seen from outside: its files are below the cluster's directory.
type node struct{ dir string }

// path of a file of the node, given as the node sees it.
func (n node) path(name string) string {
	name = strings.Replace(name, "/var/run/", "/run/", 1)
	return filepath.Join(n.dir, "root", name)
}

// entry is what a test needs of a record of the ledger.
type entry struct {
	ID    string
	Grant struct {
		Devices []struct {
			UUID    string
			Memory  json.RawMessage
			Tenants int
		}
		Admin bool
	}
	Holder struct {
		Door, Key string
		Owner     struct{ UID, Namespace, Name string }
	}
}

// ledger reads every grant on record. A record that another process removes meanwhile is not there.
func (n node) ledger() (entries []entry, err error) {
	files, err := filepath.Glob(n.path("/var/lib/kerf/ledger/*.json"))
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		line, _, _ := bytes.Cut(text, []byte("\n"))
		var e entry
		if err := json.Unmarshal(line, &e); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// shares lists the directories of shares, and cdi the CDI devices, both by name.
func (n node) shares() []string { return names(n.path("/run/kerf/shares")) }
func (n node) cdi() (specs []string) {
	for _, name := range names(n.path("/run/cdi")) {
		if strings.Contains(name, "kerf") {
			specs = append(specs, name)
		}
	}
	return specs
}

func names(dir string) (names []string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// left tells what a namespace's shares have left; of all namespaces where it is empty.
func (n node) left(ns string) string {
	entries, err := n.ledger()
	if err != nil {
		return err.Error()
	}
	var left []string
	known := map[string]bool{}
	for _, e := range entries {
		known[e.ID] = true
		if ns == "" || e.Holder.Owner.Namespace == ns {
			left = append(left, fmt.Sprintf("record %s of %s/%s", e.ID, e.Holder.Owner.Namespace, e.Holder.Owner.Name))
		}
	}
	if specs := n.cdi(); len(specs) > len(entries) {
		left = append(left, fmt.Sprintf("%d CDI specs for %d records: %s", len(specs), len(entries), strings.Join(specs, " ")))
	}
	for _, share := range n.shares() {
		if !known[share] {
			left = append(left, "directory of share "+share+", which is not on record")
		}
	}
	return strings.Join(left, ", ")
}

// awaitNothingOf looks again until a namespace has left nothing, and tells what it has.
func (n node) awaitNothingOf(ns string, limit time.Duration) (left string) {
	poll(limit, func() bool { left = n.left(ns); return left == "" })
	return left
}

// awaitNothing is the same for the whole node: for scenarios that know that nobody else has a share.
func (n node) awaitNothing(limit time.Duration) string { return n.awaitNothingOf("", limit) }

// poll tries until it holds: for files, which cannot be watched from another mount namespace.
func poll(limit time.Duration, holds func() bool) bool {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for end := time.After(limit); ; {
		if holds() {
			return true
		}
		select {
		case <-tick.C:
		case <-end:
			return holds()
		}
	}
}

// twice tells which claims are prepared twice: two grants under one key, or shares that together exceed what a device plugin or
// a scheduler could give. It must be "" at every moment.
func (n node) twice() string {
	entries, err := n.ledger()
	if err != nil {
		return err.Error()
	}
	seen := map[string]string{}
	for _, e := range entries {
		if other, found := seen[e.Holder.Key]; found && e.Holder.Key != "" {
			return fmt.Sprintf("grants %s and %s are both for %s", other, e.ID, e.Holder.Key)
		}
		seen[e.Holder.Key] = e.ID
	}
	return ""
}

// process finds the cluster's process that runs a program with these arguments; 0 where there is none. Another cluster on the
// machine has its own.
func (n node) process(group string, words ...string) int {
	commands, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range commands {
		line, err := os.ReadFile(file)
		if err != nil || !containsAll(strings.ReplaceAll(string(line), "\x00", " "), words) {
			continue
		}
		dir := filepath.Dir(file)
		groups, err := os.ReadFile(filepath.Join(dir, "cgroup"))
		if err != nil || !strings.Contains(string(groups), "/"+group+"/") {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(dir)); err == nil {
			return pid
		}
	}
	return 0
}

// group is the cluster's control group.
func (n node) group() string {
	var state struct{ Slot int }
	if text, err := os.ReadFile(filepath.Join(n.dir, "cluster.json")); err == nil {
		_ = json.Unmarshal(text, &state)
	}
	return fmt.Sprintf("kerf-cluster-%d", state.Slot)
}

// kerfd is the daemon's process; 0 while there is none.
func (n node) kerfd() int { return n.process(n.group(), "kerfd", "--config") }

// kill ends kerfd as a crash would.
func (n node) kill() error {
	pid := n.kerfd()
	if pid == 0 {
		return errors.New("kerfd does not run")
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("kill kerfd (pid %d): %w", pid, err)
	}
	return nil
}

// inside runs a command in the node's mount namespace, where mounts are made.
func (n node) inside(program string, args ...string) error {
	out, err := exec.Command("nsenter", append([]string{"--mount=" + filepath.Join(n.dir, "namespace"), program}, args...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s on the node: %w: %s", program, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// mountSmall puts a small disk over a directory of the node, and unmount takes it away.
func (n node) mountSmall(dir, size string) error {
	return n.inside("mount", "-t", "tmpfs", "-o", "size="+size, "kerf-e2e", dir)
}

func (n node) unmount(dir string) error { return n.inside("umount", "-l", dir) }

// fill writes until a directory's disk is full, and empty gives the space back.
func (n node) fill(dir string) error {
	err := n.inside("/bin/sh", "-c", "dd if=/dev/zero of="+dir+"/filled bs=4k; test -s "+dir+"/filled")
	return err
}

func (n node) empty(dir string) error { return n.inside("rm", dir+"/filled") }

// immutable sets or clears the attribute by which not even root writes to a directory.
func immutable(dir string, on bool) error {
	const getFlags, setFlags, flag = 0x80086601, 0x40086602, 0x10
	file, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer file.Close()
	var flags uint32
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, file.Fd(), getFlags, uintptr(unsafe.Pointer(&flags))); errno != 0 {
		return fmt.Errorf("read the attributes of %s: %w", dir, errno)
	}
	if flags &^= flag; on {
		flags |= flag
	}
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, file.Fd(), setFlags, uintptr(unsafe.Pointer(&flags))); errno != 0 {
		return fmt.Errorf("set the attributes of %s: %w", dir, errno)
	}
	return nil
}

// memoryOf reads an amount of the ledger: a number of bytes, or a quantity in text.
func memoryOf(raw json.RawMessage) int64 {
	text := strings.Trim(string(raw), `"`)
	q, err := resource.ParseQuantity(text)
	if err != nil {
		return 1 << 62 // it must show
	}
	return q.Value()
}
