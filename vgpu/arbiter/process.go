package arbiter

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
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

// ErrEnded says that a process is gone. Any other error about a process says nothing of its life.
var ErrEnded = errors.New("it has ended")

// FindProcess reads the start time of a live process. One whose main thread has ended lives as long as any thread does.
func FindProcess(pid int) (Process, error) {
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
		err = ErrEnded
	}
	if err != nil {
		return Process{}, fmt.Errorf("find process %d: %w", pid, err)
	}
	// The second field is the program's name in brackets, and may hold anything. Those after it, from the third: state,
	// …, number of threads (the 20th), …, start time (the 22nd).
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 20 {
		return Process{}, fmt.Errorf("find process %d: stat has %d fields", pid, len(fields))
	}
	if gone := fields[0] == "Z" || fields[0] == "X"; gone && (fields[17] == "0" || fields[17] == "1") {
		return Process{}, fmt.Errorf("find process %d: %w", pid, ErrEnded)
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return Process{}, fmt.Errorf("find process %d: start time %q", pid, fields[19])
	}
	return Process{PID: pid, Start: start}, nil
}

// Gone says whether the process has certainly ended.
func (p Process) Gone() bool {
	now, err := FindProcess(p.PID)
	return errors.Is(err, ErrEnded) || err == nil && now != p
}

// Watch waits for the process's death without a thread or a poll, and then calls dead, once, from its own goroutine. The
// returned function ends the watch. The error wraps ErrEnded for a process that is gone already.
func (p Process) Watch(dead func()) (stop func(), err error) {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		err = ErrEnded
	}
	if err == nil {
		err = unix.SetNonblock(fd, true) // PIDFD_NONBLOCK is of Linux 5.10
	}
	if err != nil {
		return nil, fmt.Errorf("watch process %d: %w", p.PID, err)
	}
	// Between reading the start time and opening the descriptor the pid may have changed hands.
	if p.Gone() {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("watch process %d: %w", p.PID, ErrEnded)
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

// errNoMaps says that nothing can be read of what a process maps.
var errNoMaps = errors.New("its maps cannot be read")

// mappings are the addresses at which a process maps the page for writing: one for each copy of the CUDA shim in it. (The NVML
// shim maps it to read.) The maps of a main thread that has ended are empty, so the first thread that has any is asked.
func mappings(pid int, page pageID) (map[uint64]bool, error) {
	tasks, err := filepath.Glob(filepath.Join("/proc", strconv.Itoa(pid), "task", "*", "maps"))
	if err != nil {
		return nil, err
	}
	for _, task := range tasks {
		f, err := os.Open(task)
		if err != nil {
			continue
		}
		lines := bufio.NewScanner(f)
		found, any := findMappings(lines, page)
		_ = f.Close()
		if any && lines.Err() == nil {
			return found, nil
		}
	}
	return nil, errNoMaps
}

// findMappings reads lines as "7f00-7f01 rw-s 00000000 00:1b 42   /path". any says that there was a line at all.
func findMappings(lines *bufio.Scanner, page pageID) (found map[uint64]bool, any bool) {
	found = make(map[uint64]bool)
	lines.Buffer(make([]byte, 16<<10), 1<<20) // a path may be long
	for lines.Scan() {
		any = true
		fields := strings.Fields(lines.Text())
		if len(fields) < 5 || fields[3] != page.device || fields[2] != "00000000" || !strings.HasPrefix(fields[1], "rw") {
			continue
		}
		from, _, _ := strings.Cut(fields[0], "-")
		at, err := strconv.ParseUint(from, 16, 64)
		inode, err2 := strconv.ParseUint(fields[4], 10, 64)
		if err == nil && err2 == nil && inode == page.inode {
			found[at] = true
		}
	}
	return found, any
}

// Peer is a process at the other end of a unix socket, and its user.
type Peer struct {
	Process
	UID, GID int
}

// FindPeer is who connected, as the kernel says; nothing in any message is asked. Where the process cannot be told, the user
// mostly can; a user who cannot is -1, so that nobody is taken for root.
func FindPeer(conn *net.UnixConn) (Peer, error) {
	nobody := Peer{UID: -1, GID: -1}
	raw, err := conn.SyscallConn()
	if err != nil {
		return nobody, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return nobody, err
	}
	if credErr != nil {
		return nobody, credErr
	}
	peer := Peer{UID: int(cred.Uid), GID: int(cred.Gid)}
	if cred.Pid <= 0 { // the peer is in a pid namespace that kerfd cannot see into
		return peer, errors.New("peer has no pid here")
	}
	peer.Process, err = FindProcess(int(cred.Pid))
	return peer, err
}
