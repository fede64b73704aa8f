package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// hangAfter is the usual grace.
const hangAfter = time.Minute

// bootWithin is the time until the first job begins, which is about 8 s on two cores. Seen once in some thirty boots: an emulated timer
// of the second CPU never fires, and the kernel waits for it. Nothing has run by then, so the machine is booted again.
const (
	bootWithin = 75 * time.Second
	bootTries  = 3
)

var errHangs = errors.New("hangs")

// boot is one run of a machine.
type boot struct {
	root    root
	machine Machine
	files   []hostFile
	jobs    []job
	output  func(job int, kind byte, data []byte) // of jobs, as it comes
	console io.Writer                             // also gets what the kernel says; nil is nobody
	grace   time.Duration                         // after a job's time, which the machine itself keeps, it counts as hanging
}

// result is what came of it. ended has one entry for each job that ended.
type result struct {
	ready time.Duration // from the start of QEMU until the first job began
	ended []ended
}

// run boots the machine, runs the jobs, and ends it. Whatever keeps a job from ending is an error, with the console's end.
func (b boot) run(ctx context.Context) (result, error) {
	for try := 1; ; try++ {
		res, err := b.once(ctx)
		if !errors.Is(err, errHangs) || res.ready > 0 || try == bootTries {
			return res, err
		}
		fmt.Fprintf(os.Stderr, "lab: machine %s hung before its first command; it is booted again\n", b.machine.Name)
	}
}

func (b boot) once(caller context.Context) (result, error) {
	dir, err := os.MkdirTemp("", "kerf-lab-")
	if err != nil {
		return result{}, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	plan := b.machine.plan(dir)
	if err := b.prepare(caller, dir, plan); err != nil {
		return result{}, err
	}
	listener, err := net.Listen("unix", filepath.Join(dir, "port"))
	if err != nil {
		return result{}, err
	}
	defer func() { _ = listener.Close() }()
	ctx, stop := context.WithCancel(caller)
	defer stop()
	cmd, tail, err := b.qemu(ctx, dir, plan)
	if err != nil {
		return result{}, err
	}
	began := time.Now()
	end := make(chan qemuEnded, 1)
	go func() {
		runtime.LockOSThread() // QEMU is killed when the thread ends that started it
		end <- qemuEnded{cmd.Run()}
	}()
	res, err := b.follow(listener, began, end)
	stop()
	<-end
	if err != nil && b.interactive() && res.ready > 0 {
		return res, nil // the person ended the machine
	}
	if caller.Err() != nil {
		return res, errors.New("interrupted; the machine is ended")
	}
	if err != nil {
		return res, fmt.Errorf("machine %s: %w%s", b.machine.Name, err, tail)
	}
	return res, nil
}

// prepare writes the initial file system and the disks.
func (b boot) prepare(ctx context.Context, dir string, p plan) error {
	im, err := build(ctx, b.root, b.machine, b.files, b.jobs)
	if err != nil {
		return err
	}
	file, err := os.Create(filepath.Join(dir, "initrd"))
	if err != nil {
		return err
	}
	if err := errors.Join(im.write(file), file.Close()); err != nil {
		return fmt.Errorf("write the initial file system: %w", err)
	}
	for i, d := range p.disks {
		path := filepath.Join(dir, fmt.Sprintf("disk%d", i))
		if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, int64(d.MiB)<<20)); err != nil {
			return err
		}
	}
	return nil
}

// qemu is the command, not yet started. It ends with this process, however that ends.
func (b boot) qemu(ctx context.Context, dir string, p plan) (*exec.Cmd, *tail, error) {
	release, err := b.root.kernel()
	if err != nil {
		return nil, nil, err
	}
	console := &tail{also: b.console}
	// A periodic timer (nohz, highres off) comes again by itself after an interrupt that the emulation has lost.
	args := append(b.root.qemu(), "-accel", "tcg,thread=multi", "-cpu", "max", "-machine", "q35", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-kernel", filepath.Join(b.root.dir, "boot/vmlinuz-"+release), "-initrd", filepath.Join(dir, "initrd"),
		"-append", "console=ttyS0 quiet panic=-1 mitigations=off random.trust_cpu=on nohz=off highres=off",
		"-device", "virtio-serial-pci,bus=pcie.0,addr=0x2", "-chardev", "socket,id=port,path="+filepath.Join(dir, "port"),
		"-device", "virtserialport,chardev=port,name="+portName)
	cmd := exec.CommandContext(ctx, args[0])
	if b.interactive() {
		args = append(args, "-serial", "mon:stdio")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	} else {
		args = append(args, "-serial", "stdio", "-monitor", "none")
		cmd.Stdout, cmd.Stderr = console, console
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	}
	cmd.Args = append(args, p.args...)
	return cmd, console, nil
}

func (b boot) interactive() bool { return len(b.jobs) == 1 && b.jobs[0].Shell }

// follow reads the machine's port until the jobs have ended, within their times.
func (b boot) follow(listener net.Listener, began time.Time, end chan qemuEnded) (result, error) {
	frames := make(chan frame)
	stop := make(chan struct{})
	defer close(stop)
	go read(listener, frames, stop)
	var res result
	late := time.NewTimer(bootWithin)
	defer late.Stop()
	waitsFor := "its first command"
	for {
		select {
		case e := <-end:
			end <- e
			return res, fmt.Errorf("it ended while it had still to come to %s (QEMU: %s)", waitsFor, e)
		case <-late.C:
			return res, fmt.Errorf("it has not come to %s in time and %w", waitsFor, errHangs)
		case f := <-frames:
			if f.err != nil {
				return res, fmt.Errorf("it ended while it had still to come to %s: %w", waitsFor, f.err)
			}
			done, err := b.take(&res, f, began)
			if done || err != nil {
				return res, err
			}
			if n := len(res.ended); (f.kind == frameReady || f.kind == frameEnded) && n < len(b.jobs) {
				waitsFor = "the end of " + strings.Join(b.jobs[n].Args, " ")
				late.Reset(b.jobs[n].Timeout + b.grace)
			}
		}
	}
}

// take takes one frame; done is after the last.
func (b boot) take(res *result, f frame, began time.Time) (done bool, err error) {
	switch f.kind {
	case frameReady:
		res.ready = time.Since(began)
	case frameStdout, frameStderr:
		b.output(len(res.ended), f.kind, f.data)
	case frameEnded:
		var e ended
		if err := json.Unmarshal(f.data, &e); err != nil {
			return false, fmt.Errorf("read how a command ended: %w", err)
		}
		res.ended = append(res.ended, e)
	case frameFailed:
		return false, errors.New(string(f.data))
	case frameDone:
		if len(res.ended) != len(b.jobs) {
			return false, fmt.Errorf("%d of %d commands have ended", len(res.ended), len(b.jobs))
		}
		return true, nil
	default:
		return false, fmt.Errorf("a frame of unknown kind %q", f.kind)
	}
	return false, nil
}

type frame struct {
	kind byte
	data []byte
	err  error
}

// read passes on what comes on the port. A port that ends without frameDone is an error.
func read(listener net.Listener, frames chan<- frame, stop <-chan struct{}) {
	connection, err := listener.Accept()
	if err != nil {
		return // the listener is closed: QEMU ended before
	}
	defer func() { _ = connection.Close() }()
	for {
		var f frame
		f.kind, f.data, f.err = receive(connection)
		select {
		case frames <- f:
		case <-stop:
			return
		}
		if f.err != nil {
			return
		}
	}
}

// qemuEnded is how QEMU ended.
type qemuEnded struct{ err error }

func (e qemuEnded) String() string {
	if e.err == nil {
		return "the machine reset itself, as it does after a panic"
	}
	return e.err.Error()
}

// tail keeps the end of the console.
type tail struct {
	mu   sync.Mutex
	last []byte
	also io.Writer
}

const (
	tailBytes = 16 << 10
	tailLines = 25
)

func (t *tail) Write(data []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last = append(t.last, data...)
	t.last = t.last[max(0, len(t.last)-tailBytes):]
	if t.also != nil {
		_, _ = t.also.Write(data)
	}
	return len(data), nil
}

// String is the last lines, and before them the reason of a panic where there was one.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	text := strings.TrimSpace(string(bytes.ReplaceAll(t.last, []byte("\r"), nil)))
	if text == "" {
		return "; its console is empty"
	}
	lines := strings.Split(text, "\n")
	why := ""
	for _, line := range lines {
		if strings.Contains(line, "Kernel panic") || strings.Contains(line, "Out of memory") {
			why = ": " + line
		}
	}
	return why + "; the end of its console:\n  " + strings.Join(lines[max(0, len(lines)-tailLines):], "\n  ")
}
