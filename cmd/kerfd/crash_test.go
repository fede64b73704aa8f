package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kerf-gpu/kerf/cmd/internal/control"
	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/internal/sim"
)

const (
	build      = "../../build"
	crashGPU   = 0
	crashShare = 2 * node.GiB
)

// daemon is a kerfd on a directory, which can be killed and started again.
type daemon struct {
	t   *testing.T
	dir string
	cmd *exec.Cmd
	log sharedLog
	// flags besides the simulated node. A zero-cost driver runs no kernel: for tests that want many calls, not right results.
	flags []string
}

// sharedLog takes what two kerfds say while one follows the other.
type sharedLog struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *sharedLog) Write(text []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(text)
}

func (l *sharedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func startDaemon(t *testing.T, flags ...string) *daemon {
	t.Helper()
	if _, err := os.Stat(filepath.Join(build, "bin/kerfd")); err != nil {
		t.Fatalf("%v; run make build first", err)
	}
	dir, err := os.MkdirTemp("", "kerfd") // t.TempDir is too long for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{t: t, dir: filepath.Join(dir, "run"), flags: flags}
	d.start()
	t.Cleanup(func() {
		d.stop()
		if left, _ := filepath.Glob(d.dir + "/*"); len(left) != 0 && !t.Failed() {
			t.Errorf("left behind after the end: %v", left)
		}
		_ = os.RemoveAll(dir)
		if t.Failed() {
			t.Logf("kerfd's log:\n%s", d.log.String())
		}
	})
	return d
}

func (d *daemon) start() {
	d.t.Helper()
	d.cmd = exec.Command(filepath.Join(build, "bin/kerfd"), append([]string{"--simulate", "h200x8", "--run-dir", d.dir}, d.flags...)...)
	d.cmd.Stderr = &d.log
	if err := d.cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	d.eventually("kerfd answers", func() bool {
		conn, err := net.Dial("unix", control.Socket(d.dir))
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	})
}

func (d *daemon) kill() {
	_ = d.cmd.Process.Kill()
	_ = d.cmd.Wait()
}

func (d *daemon) stop() {
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	if err := d.cmd.Wait(); err != nil {
		d.t.Errorf("kerfd ended with %v", err)
	}
}

// eventually waits for what other processes do in their own time.
func (d *daemon) eventually(what string, ok func() bool) {
	d.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			d.t.Fatalf("%s: not within 20 s", what)
		}
		<-time.After(10 * time.Millisecond)
	}
}

func (d *daemon) state() control.State {
	d.t.Helper()
	state, err := control.Dial(control.Socket(d.dir)).State(context.Background())
	if err != nil {
		d.t.Fatal(err)
	}
	return state
}

func (d *daemon) sliced(args ...string) *exec.Cmd {
	run := []string{"--socket", control.Socket(d.dir), "run", "--memory", crashShare.Exact(), "--gpu", fmt.Sprint(crashGPU), "--"}
	return exec.Command(filepath.Join(build, "bin/kerf"), append(run, args...)...)
}

// simUsed is what the simulated driver itself has on its books.
func (d *daemon) simUsed() node.Bytes {
	d.t.Helper()
	n, err := sim.Open(filepath.Join(d.dir, "sim"))
	if err != nil {
		d.t.Fatal(err)
	}
	defer func() { _ = n.Close() }()
	return n.Status().GPUs[crashGPU].Used
}

func compile(t *testing.T, name string) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), name)
	out, err := exec.Command("gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-I../..", "-o", program, "testdata/"+name+".c",
		"-L"+filepath.Join(build, "lib/kerf/sim"), "-l:libcuda.so.1", "-pthread").CombinedOutput()
	if err != nil {
		t.Fatalf("gcc: %v\n%s", err, out)
	}
	return program
}

// soak is the number of kills: the long form under `make soak`.
func soak(short, long int) int {
	if os.Getenv("KERF_SOAK") != "" {
		return long
	}
	return short
}

// Eight processes in four shares of one GPU allocate and free without a pause while they are killed at random. Afterwards the
// ledger, the usage pages and the driver agree that nothing is held, and nobody has waited for a dead one.
func TestCrashStorm(t *testing.T) {
	d := startDaemon(t, "--sim-zero-cost")
	storm := compile(t, "storm")
	const shares = 4
	kills := soak(400, 10000) / shares
	var wait sync.WaitGroup
	for i := range shares {
		wait.Go(func() {
			out, err := d.sliced(storm, fmt.Sprint(kills), "2", fmt.Sprint(i+1)).CombinedOutput()
			line := strings.TrimSpace(string(out))
			var killed, started, operations, waited, control int
			if n, _ := fmt.Sscanf(line, "kills %d started %d operations %d wait_us %d control_us %d", &killed, &started, &operations, &waited, &control); err != nil || n != 5 {
				t.Errorf("share %d: %v: %s", i, err, line)
				return
			}
			t.Logf("share %d (simulated): %s", i, line)
			if operations == 0 || started < kills/4 {
				t.Errorf("share %d: too few storms got under way to show anything: %s", i, line)
			}
			// What a process that calls nothing waits here too is the machine's.
			if waited > 50_000+2*control {
				t.Errorf("share %d: a survivor waited %d µs in one call, more than 50 ms, and the control only %d µs", i, waited, control)
			}
		})
	}
	wait.Wait()
	d.eventually("every share ends", func() bool { return len(d.state().Shares) == 0 })
	state := d.state()
	for _, g := range state.GPUs {
		if g.Used != 0 || g.Granted != 0 {
			t.Errorf("GPU %d: NVML sees %s in use, %s granted; want nothing", g.Index, g.Used, g.Granted)
		}
	}
	if used := d.simUsed(); used != 0 {
		t.Errorf("the simulated driver still counts %s", used)
	}
}

// holding is a tenant that holds memory until its input closes, and says so.
func (d *daemon) holding() (*exec.Cmd, func()) {
	d.t.Helper()
	cmd := d.sliced(filepath.Join(build, "libexec/kerf/train"), "--memory", "512Mi", "--seconds", "0")
	if err := cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	return cmd, func() { _ = cmd.Process.Signal(syscall.SIGTERM); _ = cmd.Wait() }
}

// kerfd is killed and started again, over and over, while tenants work, come and go: no tenant notices, no byte is lost.
func TestCrashOfTheDaemon(t *testing.T) {
	d := startDaemon(t)
	storm := compile(t, "storm")
	train, end := d.holding()
	defer end()
	held := func() node.Bytes {
		for _, s := range d.state().Shares {
			if strings.Contains(s.Holder.Command, "train") && len(s.Sessions) == 1 {
				return s.Devices[0].Used()
			}
		}
		return 0
	}
	// Its 512Mi, its context and what the driver rounds up: the books have found all of it when they agree with the driver's own.
	d.eventually("the first tenant holds its memory", func() bool { return held() > 512*node.MiB && held() == d.simUsed() })
	want := held()

	stormed := make(chan error, 1)
	go func() {
		out, err := d.sliced(storm, fmt.Sprint(soak(150, 2000)), "2", "7").CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		stormed <- err
	}()
	d.eventually("the storm has begun", func() bool { // and so has its answer; without, it was never granted anything
		shares := d.state().Shares
		return len(shares) == 2 && len(shares[0].Sessions) > 0 && len(shares[1].Sessions) > 0
	})
	for range soak(5, 50) {
		d.kill()
		d.start()
		if got := held(); got != want {
			d.eventually("the books are as before", func() bool { return held() == want })
		}
	}
	if err := <-stormed; err != nil {
		t.Errorf("a tenant died while kerfd restarted: %v", err)
	}
	d.eventually("the storm's share ends", func() bool { return len(d.state().Shares) == 1 })
	state := d.state()
	if got, sim := state.Shares[0].Devices[0].Used(), d.simUsed(); got != want || sim != want {
		t.Errorf("the books have %s, the simulated driver %s, want %s", got, sim, want)
	}
	if state.Shares[0].Tampered != "" {
		t.Errorf("flagged: %s", state.Shares[0].Tampered)
	}
	end()
	if code := train.ProcessState.ExitCode(); code != 0 {
		t.Errorf("the tenant that lived through it ended with %d", code)
	}
	d.eventually("nothing is left", func() bool { return len(d.state().Shares) == 0 })
}

// A process whose main thread has ended lives on: it attaches, and what it holds stays on the books.
func TestCrashOfTheMainThread(t *testing.T) {
	d := startDaemon(t)
	cmd := d.sliced(compile(t, "leader"))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "holding\n" {
		t.Fatalf("the thread that was left said %q (%v)", line, err)
	}
	seen := time.Now()
	for time.Since(seen) < 2500*time.Millisecond { // two reconciles
		if state := d.state(); len(state.Shares) != 1 || len(state.Shares[0].Sessions) != 1 || state.Shares[0].Devices[0].Charged < 512*node.MiB {
			t.Fatalf("after %s: %+v", time.Since(seen), state.Shares)
		}
		<-time.After(100 * time.Millisecond)
	}
	pid := d.state().Shares[0].Sessions[0].PID
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	d.eventually("nothing is left", func() bool { return len(d.state().Shares) == 0 })
}

// What a killed kerfd left of a simulated node is not served as another one while somebody has a share of it; then it makes room.
func TestCrashAndAnotherProfile(t *testing.T) {
	d := startDaemon(t)
	_, end := d.holding()
	d.eventually("the tenant is attached", func() bool { s := d.state().Shares; return len(s) == 1 && len(s[0].Sessions) == 1 })
	d.kill()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, filepath.Join(build, "bin/kerfd"), "--simulate", "l40sx4", "--run-dir", d.dir).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "simulate l40sx4: ") || !strings.Contains(string(out), "another profile") {
		t.Errorf("%v: %s", err, out)
	}
	d.start()
	if n := len(d.state().GPUs); n != 8 {
		t.Errorf("the node that was left has %d GPUs now, want its 8", n)
	}
	end()
	d.eventually("the share is off the record", func() bool {
		records, _ := filepath.Glob(filepath.Join(d.dir, "state/ledger/*.json"))
		return len(records) == 0
	})
	d.kill()
	d.flags = []string{"--simulate", "l40sx4"}
	d.start()
	if n := len(d.state().GPUs); n != 4 {
		t.Errorf("nobody has a share, and the node has %d GPUs, want the 4 of the new profile", n)
	}
}

// kerfd comes back without a driver, as in the middle of a driver's upgrade, while a tenant lives.
func TestCrashAndNoDriver(t *testing.T) {
	d := startDaemon(t)
	_, end := d.holding()
	defer end()
	d.eventually("the tenant is attached", func() bool { s := d.state().Shares; return len(s) == 1 && len(s[0].Sessions) == 1 })
	d.kill()
	hidden := filepath.Join(d.dir, "sim/usr.away")
	if err := os.Rename(filepath.Join(d.dir, "sim/usr"), hidden); err != nil {
		t.Fatal(err)
	}
	d.start()
	if state := d.state(); len(state.Shares) != 1 || len(state.GPUs) != 0 {
		t.Errorf("%+v", state)
	}
	d.kill()
	if err := os.Rename(hidden, filepath.Join(d.dir, "sim/usr")); err != nil {
		t.Fatal(err)
	}
	d.start()
	if state := d.state(); len(state.Shares) != 1 || len(state.GPUs) != 8 {
		t.Errorf("with the driver back: %+v", state)
	}
	end()
	d.eventually("nothing is left", func() bool { return len(d.state().Shares) == 0 })
}
