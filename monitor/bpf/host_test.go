package bpf

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// These tests run on the kernel of this machine, with what happens on it for real.

// victimEnv makes this test binary a program that takes all the memory that it can.
const victimEnv = "KERF_BPF_VICTIM"

func TestMain(m *testing.M) {
	if os.Getenv(victimEnv) != "" {
		_, _ = os.Stdin.Read(make([]byte, 1)) // until the parent has put it in its cgroup
		var kept [][]byte
		for range 64 {
			b := make([]byte, 8<<20)
			for i := 0; i < len(b); i += 4096 {
				b[i] = 1
			}
			kept = append(kept, b)
		}
		fmt.Println(len(kept))
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// mountTracefs mounts it for a test.
func mountTracefs(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("not root: tracefs cannot be mounted")
	}
	dir := t.TempDir()
	if err := unix.Mount("tracefs", dir, "tracefs", 0, ""); err != nil {
		t.Skipf("tracefs cannot be mounted: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// opened is a set under test, with its events.
type opened struct {
	*Set
	events chan Event
}

func open(t *testing.T, probes ...string) opened {
	t.Helper()
	s := opened{Open(Config{Tracefs: mountTracefs(t), Probes: probes}), make(chan Event, 64)}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, r := range s.Rows() {
		if slices.Contains(probes, r.Name) && !r.On {
			t.Skipf("this kernel has no probe %s: %s", r.Name, r.Reason)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Run(ctx, func(e Event) { s.events <- e }, func(err error) { t.Log(err) }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s
}

// wait waits for the event that is meant: others happen on a machine too.
func (s opened) wait(t *testing.T, meant func(Event) bool) Event {
	t.Helper()
	late := time.After(20 * time.Second)
	for {
		select {
		case e := <-s.events:
			if meant(e) {
				return e
			}
			t.Logf("not meant: %+v", e)
		case <-late:
			t.Fatalf("no event; the table: %+v", s.Rows())
		}
	}
}

func (s opened) row(name string) Row {
	for _, r := range s.Rows() {
		if r.Name == name {
			return r
		}
	}
	return Row{}
}

// memoryCgroup makes a cgroup with a limit, of whichever version is here.
func memoryCgroup(t *testing.T, limit int) (add func(pid int)) {
	t.Helper()
	for _, v := range []struct{ root, limit, swap string }{
		{"/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"},
		{"/sys/fs/cgroup", "memory.max", "memory.swap.max"},
	} {
		dir := filepath.Join(v.root, "kerf-bpf-"+strconv.Itoa(os.Getpid()))
		if err := os.Mkdir(dir, 0o700); err != nil {
			continue
		}
		t.Cleanup(func() { _ = os.Remove(dir) })
		if err := os.WriteFile(filepath.Join(dir, v.limit), []byte(strconv.Itoa(limit)), 0o600); err != nil {
			continue
		}
		swap := strconv.Itoa(limit)
		if v.swap == "memory.swap.max" {
			swap = "0"
		}
		_ = os.WriteFile(filepath.Join(dir, v.swap), []byte(swap), 0o600) // a kernel without swap has no such file
		return func(pid int) {
			if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Skip("no cgroup with a limit of memory can be made here")
	return nil
}

// mountCgroup2 mounts cgroup v2 where nothing is mounted, with limits of memory for the groups in it.
func mountCgroup2(t *testing.T) {
	t.Helper()
	const dir = "/sys/fs/cgroup"
	if _, err := os.Stat(dir + "/cgroup.controllers"); err != nil {
		if err := unix.Mount("cgroup2", dir, "cgroup2", 0, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(dir, 0) })
	}
	if err := os.WriteFile(dir+"/cgroup.subtree_control", []byte("+memory"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// victim starts a program to which something is to happen; on begin it goes on.
func victim(t *testing.T, cmd *exec.Cmd) (begin func()) {
	t.Helper()
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return func() {
		if _, err := stdin.Write([]byte("\n")); err != nil {
			t.Fatal(err)
		}
	}
}

func TestHostOOM(t *testing.T) {
	s := open(t, "oom")
	add := memoryCgroup(t, 64<<20)
	end, err := s.measure()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), victimEnv+"=1")
	begin := victim(t, cmd)
	add(cmd.Process.Pid)
	begin()
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("the victim ended by %v, not by the kernel", err)
	}
	e := s.wait(t, func(e Event) bool { return e.Kind == OOM && e.PID == cmd.Process.Pid })
	end()
	if r := s.row("oom"); r.Hits < 1 || r.Lost != 0 || r.Runs < 1 || r.PerRun <= 0 || e.At <= 0 {
		t.Errorf("event %+v, row %+v", e, r)
	} else {
		t.Logf("%+v", r)
	}
}

// TestHostCrash: a watched process that crashes is told once, one that is not watched, was forgotten or was killed never.
func TestHostCrash(t *testing.T) {
	s := open(t, "crash")
	crash(t, s, false, false)
	crash(t, s, true, true)
	killed := crasher()
	victim(t, killed)
	if err := errors.Join(s.Watch(killed.Process.Pid), killed.Process.Kill()); err != nil {
		t.Fatal(err)
	}
	_ = killed.Wait()
	pid := crash(t, s, true, false)
	e := s.wait(t, func(e Event) bool {
		if e.PID != pid {
			t.Errorf("told too: %+v", e)
		}
		return e.PID == pid
	})
	if e.Kind != Crash || e.Sig != syscall.SIGSEGV {
		t.Errorf("%+v", e)
	}
	if r := s.row("crash"); r.Hits != 1 || r.Lost != 0 {
		t.Errorf("row %+v, want one hit: the threads of a process count once", r)
	}
}

// crasher is no Go program: the Go runtime takes these signals itself.
func crasher() *exec.Cmd { return exec.Command("/bin/sh", "-c", "ulimit -c 0; read x; kill -SEGV $$") }

func crash(t *testing.T, s opened, watch, forget bool) (pid int) {
	t.Helper()
	cmd := crasher()
	begin := victim(t, cmd)
	var errs [2]error
	if watch {
		errs[0] = s.Watch(cmd.Process.Pid)
	}
	if forget {
		errs[1] = s.Forget(cmd.Process.Pid)
	}
	if err := errors.Join(errs[:]...); err != nil {
		t.Fatal(err)
	}
	begin()
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGSEGV {
		t.Fatalf("the victim ended by %v, not by a crash", err)
	}
	return cmd.Process.Pid
}

// TestHostDisk: a loop device whose file is cut short fails reads.
func TestHostDisk(t *testing.T) {
	s := open(t, "disk")
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, 4<<20); err != nil {
		t.Fatal(err)
	}
	loop, number := attachLoop(t, file)
	if err := os.Truncate(file, 4096); err != nil {
		t.Fatal(err)
	}
	disk, err := os.OpenFile(loop, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	buf, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE) // aligned, as O_DIRECT wants it
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(buf) }()
	if _, err := disk.ReadAt(buf, 2<<20); !errors.Is(err, unix.EIO) {
		t.Skipf("a loop device reads past the end of its file here: %v", err)
	}
	e := s.wait(t, func(e Event) bool { return e.Kind == Block && e.Disk == number })
	if e.Errno != unix.EIO || e.Count < 1 {
		t.Errorf("%+v", e)
	}
	// A second failure within a second is counted, and not told again.
	if _, err := disk.ReadAt(buf, 3<<20); !errors.Is(err, unix.EIO) {
		t.Fatal(err)
	}
	if r := s.row("disk"); r.Hits < 2 || r.Lost != 0 {
		t.Errorf("row %+v, want two hits", r)
	}
}

// attachLoop puts a file behind a loop device, and says which number that has.
func attachLoop(t *testing.T, file string) (path, number string) {
	t.Helper()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no loop devices: %v", err)
	}
	defer control.Close()
	backing, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer backing.Close()
	for range 8 { // another may take the free one between the two calls
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			t.Skipf("no free loop device: %v", err)
		}
		path = "/dev/loop" + strconv.Itoa(n)
		loop, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Skipf("loop device: %v", err)
		}
		if err := unix.IoctlSetInt(int(loop.Fd()), unix.LOOP_SET_FD, int(backing.Fd())); err != nil {
			_ = loop.Close()
			continue
		}
		t.Cleanup(func() {
			if err := errors.Join(unix.IoctlSetInt(int(loop.Fd()), unix.LOOP_CLR_FD, 0), loop.Close()); err != nil {
				t.Error(err)
			}
		})
		return path, "7:" + strconv.Itoa(n)
	}
	t.Skip("every free loop device was taken by somebody else")
	return "", ""
}
