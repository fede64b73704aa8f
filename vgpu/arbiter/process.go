package arbiter

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Process names a process for as long as the machine is up: a pid alone may come again.
type Process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks since boot
}

// errEnded says that a process is gone.
var errEnded = errors.New("it has ended")

// FindProcess reads the start time of a live process. A zombie is not one.
func FindProcess(pid int) (Process, error) {
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return Process{}, fmt.Errorf("find process: %w", err)
	}
	// The second field is the program's name in brackets, and may hold anything.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 20 || fields[0] == "Z" || fields[0] == "X" {
		return Process{}, fmt.Errorf("find process %d: %w", pid, errEnded)
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return Process{}, fmt.Errorf("find process %d: start time %q", pid, fields[19])
	}
	return Process{PID: pid, Start: start}, nil
}

// Watch waits for the process's death without a thread or a poll, and then calls dead, once, from its own goroutine. The
// returned function ends the watch. A process that is gone already is an error.
func (p Process) Watch(dead func()) (stop func(), err error) {
	fd, err := unix.PidfdOpen(p.PID, unix.PIDFD_NONBLOCK)
	if err != nil {
		if errors.Is(err, unix.ESRCH) {
			err = errEnded
		}
		return nil, fmt.Errorf("watch process %d: %w", p.PID, err)
	}
	// Between reading the start time and opening the descriptor the pid may have changed hands.
	if now, err := FindProcess(p.PID); err != nil || now != p {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("watch process %d: %w", p.PID, errEnded)
	}
	file := os.NewFile(uintptr(fd), "pidfd") // non-blocking: served by the runtime's poller
	raw, err := file.SyscallConn()
	if err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("watch process %d: %w", p.PID, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		err := raw.Read(func(fd uintptr) bool {
			poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			n, _ := unix.Poll(poll, 0)
			return n > 0
		})
		_ = file.Close()
		if err == nil && ctx.Err() == nil {
			dead()
		}
	}()
	return func() { cancel(); _ = file.Close() }, nil
}

// pageID tells one file from all others, as /proc/PID/maps writes it.
type pageID struct {
	device string
	inode  uint64
}

func identify(path string) (pageID, error) {
	info, err := os.Stat(path)
	if err != nil {
		return pageID{}, err
	}
	stat := info.Sys().(*syscall.Stat_t)
	return pageID{device: fmt.Sprintf("%02x:%02x", unix.Major(stat.Dev), unix.Minor(stat.Dev)), inode: stat.Ino}, nil
}

// mappings counts how often a process maps the page for writing: once for each copy of the CUDA shim in it. The NVML shim
// maps it to read.
func mappings(pid int, page pageID) (int, error) {
	f, err := os.Open(filepath.Join("/proc", strconv.Itoa(pid), "maps"))
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }()
	return countMappings(bufio.NewScanner(f), page)
}

// countMappings reads lines as "7f00-7f01 rw-s 00000000 00:1b 42   /path".
func countMappings(lines *bufio.Scanner, page pageID) (n int, err error) {
	lines.Buffer(make([]byte, 16<<10), 1<<20) // a path may be long
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 5 || fields[3] != page.device || fields[2] != "00000000" || !strings.HasPrefix(fields[1], "rw") {
			continue
		}
		if inode, err := strconv.ParseUint(fields[4], 10, 64); err == nil && inode == page.inode {
			n++
		}
	}
	return n, lines.Err()
}

// peer is who connected, as the kernel says; nothing in the message is asked.
func peer(conn *net.UnixConn) (Process, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return Process{}, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return Process{}, err
	}
	if credErr != nil {
		return Process{}, credErr
	}
	if cred.Pid <= 0 { // the peer is in a pid namespace that kerfd cannot see into
		return Process{}, fmt.Errorf("peer has no pid here")
	}
	return FindProcess(int(cred.Pid))
}
