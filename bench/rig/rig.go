// Package rig starts a kerfd of its own and runs programs beside it, for benches, demos and their tests.
//
// A rig has a private run directory under the temporary directory and touches nothing outside it, so it
// stands beside a kerfd that serves the machine. On a machine with an NVIDIA GPU it uses the real one, else
// a simulated node; Simulated says which, and everything that prints a rig's numbers must say so too.
//
// "Native" is a program on the driver library itself; "sliced" is the same program under `kerf run`.
package rig

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Options of Start. The zero value uses the running binary's directory and the real GPU where there is one.
type Options struct {
	Bin      string    // directory of kerf and kerfd; "": beside the running binary
	Profile  string    // simulate this profile even where a GPU is there; "": only where none is
	ZeroCost bool      // a simulated driver whose calls cost nothing
	Leases   bool      // GPU time is leased
	Log      io.Writer // kerfd's log; nil: kept, and quoted where kerfd fails

	Overcommit int // percent of the cards' memory that is promised; 0: no more than there is. Implies Leases
}

// Slice is what a program asks of `kerf run`.
type Slice struct {
	Memory string // as --memory: 16Gi
	Cores  int
	GPU    string // index or uuid; "": any
	Class  string // "": guaranteed
}

// Rig is a running kerfd. Close stops it and removes its directory.
type Rig struct {
	Simulated bool
	Profile   string // "" on a real GPU

	bin, dir string
	options  Options
	kerfd    *exec.Cmd
	exited   chan struct{} // closed when kerfd has ended
	exit     error
	log      *logTail
}

// DefaultProfile is the simulated node of a machine without a GPU.
const DefaultProfile = "h200x8"

// startWait bounds kerfd's start: on a real card the driver's own start can take seconds.
const startWait = 30 * time.Second

// HasGPU tells whether this machine has an NVIDIA driver loaded. The node alone says little: the driver's own
// libraries make it where they are installed without a card. Opening it fails without the kernel module.
func HasGPU() bool {
	file, err := os.OpenFile("/dev/nvidiactl", os.O_RDWR, 0)
	if err != nil {
		return false
	}
	return file.Close() == nil
}

// Start starts kerfd and waits until it answers. On error nothing is left behind.
func Start(ctx context.Context, options Options) (*Rig, error) {
	bin := options.Bin
	if bin == "" {
		self, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("find kerfd: %w", err)
		}
		bin = filepath.Dir(self)
	}
	dir, err := os.MkdirTemp("", "kerf-rig-")
	if err != nil {
		return nil, fmt.Errorf("make run directory: %w", err)
	}
	r := &Rig{bin: bin, dir: dir, Profile: options.Profile, options: options, log: &logTail{copy: options.Log}}
	if r.Profile == "" && !HasGPU() {
		r.Profile = DefaultProfile
	}
	r.Simulated = r.Profile != ""
	if err := r.startKerfd(ctx); err != nil {
		_ = r.Close() // it would say the same again
		return nil, err
	}
	return r, nil
}

func (r *Rig) startKerfd(ctx context.Context) error {
	config := filepath.Join(r.dir, "kerfd.yaml")
	text := fmt.Sprintf("leases: %t\n", r.options.Leases)
	if r.options.Overcommit > 0 {
		text = fmt.Sprintf("cards: [{mode: overcommit, overcommitPercent: %d}]\n", r.options.Overcommit)
	}
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return fmt.Errorf("configure kerfd: %w", err)
	}
	args := []string{"--config", config, "--run-dir", r.dir}
	if r.Simulated {
		args = append(args, "--simulate", r.Profile)
		if r.options.ZeroCost {
			args = append(args, "--sim-zero-cost")
		}
	}
	r.kerfd = exec.Command(filepath.Join(r.bin, "kerfd"), args...)
	r.kerfd.Stdout, r.kerfd.Stderr = r.log, r.log
	// A group of its own: Ctrl-C at the terminal reaches us, and we stop kerfd after its tenants.
	// It must not outlive us either.
	r.kerfd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := r.kerfd.Start(); err != nil {
		r.kerfd = nil
		return fmt.Errorf("start kerfd: %w (build it with 'make build')", err)
	}
	exited, cmd := make(chan struct{}), r.kerfd
	r.exited = exited
	go func() { r.exit = cmd.Wait(); close(exited) }()
	return r.waitReady(ctx)
}

// errEarly is a kerfd that ends without an error before it has served anyone.
var errEarly = errors.New("exit status 0")

// waitReady polls the control socket, since a process that is starting offers nothing else to wait for.
func (r *Rig) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startWait)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if conn, err := net.Dial("unix", r.Socket()); err == nil {
			return conn.Close()
		}
		select {
		case <-r.exited:
			return fmt.Errorf("kerfd ended while starting: %w: %s", cmp.Or(r.exit, errEarly), r.log)
		case <-ctx.Done():
			return fmt.Errorf("kerfd did not answer on %s: %w: %s", r.Socket(), ctx.Err(), r.log)
		case <-tick.C:
		}
	}
}

// Socket is the path of kerfd's control socket.
func (r *Rig) Socket() string { return filepath.Join(r.dir, "kerfd.sock") }

// Root is the driver root that kerfd serves: "/", or the simulated node's directory.
func (r *Rig) Root() string {
	if r.Simulated {
		return filepath.Join(r.dir, "sim")
	}
	return "/"
}

// Tenant is the path of one of Kerf's own tenant programs.
func (r *Rig) Tenant(name string) string { return filepath.Join(r.bin, "..", "libexec", "kerf", name) }

// Kerf is the kerf command, talking to this rig's kerfd.
func (r *Rig) Kerf(ctx context.Context, args ...string) *exec.Cmd {
	args = append(args[:1:1], append([]string{"--socket", r.Socket()}, args[1:]...)...)
	cmd := exec.CommandContext(ctx, filepath.Join(r.bin, "kerf"), args...)
	// SIGTERM first, which `kerf run` passes on: killed, it would leave its tenant to die an orphan.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// Sliced is a program in a slice of a GPU.
func (r *Rig) Sliced(ctx context.Context, slice Slice, program string, args ...string) *exec.Cmd {
	run := []string{"run", "--memory", slice.Memory}
	if slice.Cores > 0 {
		run = append(run, "--cores", fmt.Sprint(slice.Cores))
	}
	if slice.GPU != "" {
		run = append(run, "--gpu", slice.GPU)
	}
	if slice.Class != "" {
		run = append(run, "--class", slice.Class)
	}
	return r.Kerf(ctx, append(append(run, "--", program), args...)...)
}

// Native is the same program on the driver library directly.
func (r *Rig) Native(ctx context.Context, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, program, args...)
	if r.Simulated {
		// The simulated node is no part of the loader's search path; a real driver is.
		cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+filepath.Join(r.Root(), "usr/lib/x86_64-linux-gnu"))
	}
	return cmd
}

// DriverVersion is what the kernel module says of itself.
func (r *Rig) DriverVersion() string {
	text, err := os.ReadFile(filepath.Join(r.Root(), "proc/driver/nvidia/version"))
	if err != nil {
		return "unknown"
	}
	return parseDriverVersion(string(text))
}

// parseDriverVersion finds the first word with two dots or more (535.261.03), or failing that with one, on the
// NVRM line, which is worded differently for the open and the closed module.
func parseDriverVersion(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	for _, word := range strings.Fields(line) {
		if strings.Trim(word, "0123456789.") == "" && strings.Contains(word, ".") {
			return word
		}
	}
	return "unknown"
}

// Pid is kerfd's.
func (r *Rig) Pid() int { return r.kerfd.Process.Pid }

// KillKerfd kills kerfd with SIGKILL. The tenants go on; Revive starts the next one.
func (r *Rig) KillKerfd() {
	_ = r.kerfd.Process.Kill()
	<-r.exited
}

// Revive starts kerfd again where the one before died, and waits until it answers.
func (r *Rig) Revive(ctx context.Context) error { return r.startKerfd(ctx) }

// Close stops kerfd, by force if it does not end within five seconds, and removes the run directory.
func (r *Rig) Close() error {
	var ended error
	if r.kerfd != nil {
		ended = r.stopKerfd()
	}
	return errors.Join(ended, os.RemoveAll(r.dir))
}

func (r *Rig) stopKerfd() error {
	if err := r.kerfd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop kerfd: %w", err)
	}
	select {
	case <-r.exited:
	case <-time.After(5 * time.Second):
		_ = r.kerfd.Process.Kill()
		<-r.exited
		return fmt.Errorf("kerfd (pid %d) did not end within 5 s of SIGTERM and was killed: %s", r.Pid(), r.log)
	}
	if r.exit != nil {
		return fmt.Errorf("kerfd: %w: %s", r.exit, r.log)
	}
	return nil
}

// logTail keeps the last lines of a log, to quote where its writer fails.
type logTail struct {
	mu   sync.Mutex
	tail []byte
	copy io.Writer
}

const logTailBytes = 2048

func (l *logTail) Write(text []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tail = append(l.tail, text...)
	if over := len(l.tail) - logTailBytes; over > 0 {
		l.tail = append(l.tail[:0], l.tail[over:]...)
	}
	if l.copy != nil {
		return l.copy.Write(text)
	}
	return len(text), nil
}

func (l *logTail) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if text := bytes.TrimSpace(l.tail); len(text) > 0 {
		return string(text)
	}
	return "(no log)"
}
