package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// record tells which process a daemon is. A pid alone may be another's by now; with the start time it is not.
type record struct {
	PID   int
	Start uint64 // clock ticks after the machine's start, as in /proc/PID/stat
}

// startTime of a process.
func startTime(pid int) (uint64, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The second field is the program's name in parentheses, which may hold blanks and parentheses.
	field := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(field) < 20 {
		return 0, fmt.Errorf("/proc/%d/stat: %d fields after the name, not the 20 or more that the kernel writes", pid, len(field))
	}
	return strconv.ParseUint(field[19], 10, 64)
}

// readRecord returns found false for a daemon that was never started.
func readRecord(path string) (r record, found bool, err error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return r, false, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &r)
	}
	if err != nil {
		return r, false, fmt.Errorf("read %s: %w", path, err)
	}
	return r, true, nil
}

// find returns a handle of the recorded process, or nil if that one has ended. The handle stays its own (a pidfd).
func (r record) find() (*os.Process, error) {
	p, err := os.FindProcess(r.PID)
	if err != nil {
		return nil, fmt.Errorf("find process %d: %w", r.PID, err)
	}
	if start, err := startTime(r.PID); err != nil || start != r.Start {
		_ = p.Release()
		if err == nil || errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			return nil, nil
		}
		return nil, fmt.Errorf("look at process %d: %w", r.PID, err)
	}
	return p, nil
}

// kill ends the recorded process with SIGKILL, if it is still there, and waits until it is gone.
func (r record) kill(ctx context.Context) error {
	p, err := r.find()
	if err != nil || p == nil {
		return err
	}
	defer func() { _ = p.Release() }()
	if err := p.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill process %d: %w", r.PID, err)
	}
	for late := time.Now().Add(downWithin); ; {
		if errors.Is(p.Signal(syscall.Signal(0)), os.ErrProcessDone) || zombie(r.PID) {
			return nil
		}
		if time.Now().After(late) {
			return fmt.Errorf("process %d lives %s after SIGKILL; see /proc/%d/stack, and run cluster down again", r.PID, downWithin, r.PID)
		}
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			return err
		}
	}
}

// zombie tells whether a process has ended and only waits to be collected by its parent. Its first thread may have
// ended while others still hold its sockets.
func zombie(pid int) bool {
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil || len(threads) > 1 {
		return false
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && strings.Contains(string(stat), ") Z ")
}

// ended is a daemon's end.
type ended struct {
	name string
	err  error
}

// start starts a daemon and tells its end on a channel. The process is ours only through `cluster launch`, which
// puts itself into the cluster's control group and on record before it becomes the daemon, and ends with this
// process until then: whenever that is killed, down finds all that it started.
func start(l layout, d daemon, ends chan<- ended) error {
	out, err := os.OpenFile(l.log(d.name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("start %s: %w", d.name, err)
	}
	defer out.Close()
	cmd := exec.Command("/proc/self/exe", "launch", l.dir, d.name) // no context: it outlives this process
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", d.name, err)
	}
	go func() { ends <- ended{d.name, cmd.Wait()} }()
	return nil
}

// launchVerb becomes a daemon.
func launchVerb(_ context.Context, args []string) error {
	if len(args) != 2 {
		return usageError{errors.New("launch is for cluster up and restart alone; run those")}
	}
	l := layout{args[0]}
	s, err := l.running()
	if err != nil {
		return err
	}
	for _, d := range daemons(l, s) {
		if d.name == args[1] {
			return launch(l, s, d)
		}
	}
	return usageError{fmt.Errorf("no daemon is called %q", args[1])}
}

func launch(l layout, s state, d daemon) error {
	if err := joinCgroups(s.cgroup()); err != nil {
		return err
	}
	began, err := startTime(os.Getpid())
	if err != nil {
		return fmt.Errorf("read the own start time: %w", err)
	}
	if err := writeJSON(l.proc(d.name), record{os.Getpid(), began}); err != nil {
		return err
	}
	runtime.LockOSThread() // what follows is of one thread, which becomes the daemon
	if d.node {
		// A thread enters a mount namespace only if it shares its root and working directory with no other.
		if err := syscall.Unshare(syscall.CLONE_FS); err != nil {
			return fmt.Errorf("leave the other threads' directories: %w", err)
		}
		if err := setns(l.namespace()); err != nil {
			return fmt.Errorf("enter the node's namespace: %w", err)
		}
	}
	if _, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, syscall.PR_SET_PDEATHSIG, 0, 0); errno != 0 {
		return fmt.Errorf("outlive the parent: %w", errno)
	}
	path := strings.Join([]string{s.Tools, s.Bin, "/usr/sbin", "/usr/bin", "/sbin", "/bin"}, string(filepath.ListSeparator))
	if err := syscall.Exec(d.argv[0], d.argv, []string{"PATH=" + path, "HOME=/root"}); err != nil {
		return fmt.Errorf("run %s: %w", d.argv[0], err)
	}
	return nil
}

// tied makes a command end with this process: what it makes after a kill -9 of that would be nobody's.
func tied(cmd *exec.Cmd) *exec.Cmd {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// setns moves this thread into a mount namespace.
func setns(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	if _, _, errno := syscall.RawSyscall(sysSetns, file.Fd(), syscall.CLONE_NEWNS, 0); errno != 0 {
		return errno
	}
	return nil
}
