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
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// portName is the virtio port's; guestVerb is what init calls itself with.
const (
	portName  = "kerf.lab"
	guestVerb = "guest"
)

// isInit tells a machine's init from a container's first process, which is number 1 too and must not reboot anything.
func isInit() bool {
	_, err := os.Stat(jobsFile)
	return err == nil && os.Getpid() == 1 && os.Args[0] == "/init"
}

// guestInit is the machine's process 1: it mounts what programs expect, starts the process that runs the jobs, and
// collects orphans. It does not return: process 1 that ends is a kernel panic, which the host reports.
func guestInit() {
	if err := mountAll(); err != nil {
		fmt.Println("lab init:", err)
	}
	_ = os.Setenv("PATH", guestPath)
	_ = os.Setenv("HOME", "/root")
	pid, err := syscall.ForkExec("/init", []string{"/init", guestVerb}, &syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{0, 1, 2}})
	if err != nil {
		fmt.Println("lab init:", err)
	}
	for err == nil {
		var ended int
		if ended, err = syscall.Wait4(-1, nil, 0, nil); errors.Is(err, syscall.EINTR) {
			err = nil
		}
		if ended == pid {
			break
		}
	}
	_ = syscall.Reboot(syscall.LINUX_REBOOT_CMD_RESTART) // QEMU ends with that
	for {
		time.Sleep(time.Hour)
	}
}

func mountAll() error {
	var errs []error
	for _, m := range []struct{ kind, at string }{
		{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"devpts", "/dev/pts"}, {"tmpfs", "/dev/shm"}, {"tmpfs", "/run"}, {"tmpfs", "/tmp"},
		{"cgroup2", "/sys/fs/cgroup"}, {"debugfs", "/sys/kernel/debug"}, {"tracefs", "/sys/kernel/tracing"}, {"bpf", "/sys/fs/bpf"},
	} {
		_ = os.MkdirAll(m.at, 0o755)
		err := syscall.Mount(m.kind, m.at, m.kind, 0, "")
		if err != nil && !errors.Is(err, syscall.ENODEV) { // a file system that is a module
			errs = append(errs, fmt.Errorf("mount %s: %w", m.at, err))
		}
	}
	return errors.Join(errs...)
}

// guestRun makes the machine ready and runs the jobs.
func guestRun() error {
	out, err := openPort()
	if err != nil {
		return err
	}
	p := &port{w: out}
	jobs, err := ready()
	if err != nil {
		_ = p.send(frameFailed, []byte(err.Error()))
		waitForHost()
		return err
	}
	if err := p.send(frameReady, nil); err != nil {
		return err
	}
	for _, j := range jobs {
		if err := p.sendJSON(frameEnded, j.run(p)); err != nil {
			return err
		}
	}
	err = p.send(frameDone, nil)
	waitForHost()
	return err
}

// waitForHost: what was sent may still be on its way inside QEMU, which ends with the machine. The host ends both.
func waitForHost() { time.Sleep(20 * time.Second) }

func openPort() (*os.File, error) {
	ports, err := filepath.Glob("/sys/class/virtio-ports/*")
	if err != nil {
		return nil, err
	}
	for _, dir := range ports {
		if name, err := os.ReadFile(filepath.Join(dir, "name")); err == nil && strings.TrimSpace(string(name)) == portName {
			return os.OpenFile(filepath.Join("/dev", filepath.Base(dir)), os.O_WRONLY, 0)
		}
	}
	return nil, fmt.Errorf("no virtio port %s among %d", portName, len(ports))
}

// ready loads modules and makes VFs.
func ready() ([]job, error) {
	files, err := filepath.Glob(moduleDir + "/*")
	if err != nil {
		return nil, err
	}
	for _, path := range files {
		if err := insert(path); err != nil {
			return nil, fmt.Errorf("load module %s: %w", filepath.Base(path), err)
		}
	}
	if err := syscall.Mount("configfs", "/sys/kernel/config", "configfs", 0, ""); err != nil {
		return nil, fmt.Errorf("mount configfs: %w", err)
	}
	_ = syscall.Sethostname([]byte("lab"))
	if out, err := exec.Command("/bin/busybox", "ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("bring lo up: %w: %s", err, out)
	}
	var m Described
	var jobs []job
	for name, value := range map[string]any{machineFile: &m, jobsFile: &jobs} {
		data, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		if err := json.Unmarshal(data, value); err != nil {
			return nil, fmt.Errorf("read %s: %w", name, err)
		}
	}
	for _, d := range m.Devices {
		if len(d.VFs) == 0 {
			continue
		}
		file := filepath.Join("/sys/bus/pci/devices", d.Address, "sriov_numvfs")
		if err := os.WriteFile(file, []byte(strconv.Itoa(len(d.VFs))), 0); err != nil {
			return nil, fmt.Errorf("make %d VFs of %s: %w", len(d.VFs), d.Name, err)
		}
	}
	return jobs, nil
}

// insert loads one module.
func insert(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := unix.FinitModule(int(file.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

// run runs a job to its end, or to that of its time: then its process group is killed.
func (j job) run(p *port) ended {
	ctx, cancel := context.WithTimeout(context.Background(), j.Timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, j.Args[0], j.Args[1:]...)
	cmd.Env, cmd.Dir = append(os.Environ(), j.Env...), j.Dir
	cmd.Stdout, cmd.Stderr = stream{p, frameStdout}, stream{p, frameStderr}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second // for a pipe that a process of another group keeps
	if j.Shell {
		console, err := os.OpenFile("/dev/ttyS0", os.O_RDWR, 0)
		if err != nil {
			return ended{Error: err.Error()}
		}
		defer console.Close()
		cmd.Stdin, cmd.Stdout, cmd.Stderr = console, console, console
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	}
	err := cmd.Run()
	if cmd.ProcessState == nil {
		return ended{Error: "start " + j.Args[0] + ": " + startError(err)}
	}
	status := cmd.ProcessState.Sys().(syscall.WaitStatus)
	e := ended{Code: status.ExitStatus(), Timeout: ctx.Err() != nil}
	if status.Signaled() {
		e.Code, e.Signal = 0, int(status.Signal())
	}
	return e
}

// startError says why a program did not start, for a person.
func startError(err error) string {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, exec.ErrNotFound) {
		return "the machine has no such program; give it with --file HOST:GUEST"
	}
	return err.Error()
}
