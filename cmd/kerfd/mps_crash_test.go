package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kerf-gpu/kerf/cmd/internal/control"
	"github.com/kerf-gpu/kerf/internal/sim"
)

// tenant starts a program in a share of GPU 0.
func (d *daemon) tenant(flags []string, program string, args ...string) *exec.Cmd {
	d.t.Helper()
	run := append([]string{"--socket", control.Socket(d.dir), "run", "--gpu", "0"}, flags...)
	cmd := exec.Command(filepath.Join(build, "bin/kerf"), append(append(run, "--", filepath.Join(build, "libexec/kerf", program)), args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Stderr = &d.log
	if err := cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			_ = cmd.Wait()
		}
	})
	return cmd
}

func (d *daemon) spinning(tier string, cores int) *exec.Cmd {
	return d.tenant([]string{"--memory", "2Gi", "--tier", tier, "--cores", fmt.Sprint(cores)}, "spin", "--kernel", "3000", "--seconds", "0")
}

// engineLog is what the simulated engine of GPU 0 did last, once two programs have had so many ms of it each.
func (d *daemon) engineLog(ms uint64) (runs []sim.Run, pids []int) {
	d.t.Helper()
	d.eventually("both have worked", func() bool {
		pids = pids[:0]
		for pid, had := range d.work() {
			if had > ms {
				pids = append(pids, pid)
			}
		}
		return len(pids) == 2
	})
	n, err := sim.Open(filepath.Join(d.dir, "sim"))
	if err != nil {
		d.t.Fatal(err)
	}
	defer func() { _ = n.Close() }()
	return n.Runs(0), pids
}

func (d *daemon) allEnd(cmds ...*exec.Cmd) {
	d.t.Helper()
	for _, cmd := range cmds {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	}
	d.eventually("all shares end", func() bool { return len(d.state().Shares) == 0 })
}

// Kernels of two mps shares run at once, those of two shares of time do not; what one byte too many is is the same in both.
func TestMPSTier(t *testing.T) {
	d := leased(t)
	for _, tt := range []struct {
		tier    string
		overlap bool
	}{{"time", false}, {"mps", true}} {
		a, b := d.spinning(tt.tier, 40), d.spinning(tt.tier, 60)
		runs, pids := d.engineLog(400)
		both := sim.Overlap(runs, pids[0], pids[1])
		t.Logf("tier %s (simulated): kernels of both ran at once for %s", tt.tier, both)
		if (both > 50*time.Millisecond) != tt.overlap || !tt.overlap && both != 0 {
			t.Errorf("tier %s: kernels of both ran at once for %s", tt.tier, both)
		}
		for _, s := range d.state().Shares {
			if string(s.Tier) != tt.tier || (s.Lease == nil) != (tt.tier == "mps") {
				t.Errorf("tier %s: %+v", tt.tier, s.ShareState)
			}
		}
		if tt.tier == "mps" {
			d.refusedBesideMPS()
			d.ratesAre(runs)
		}
		d.allEnd(a, b)

		hog := exec.Command(filepath.Join(build, "bin/kerf"), "--socket", control.Socket(d.dir), "run", "--memory", "2Gi", "--tier", tt.tier, "--",
			filepath.Join(build, "libexec/kerf/hog"), "--limit", "2Gi", "--class", "linear", "--settle", "0")
		if out, err := hog.CombinedOutput(); err != nil || !strings.Contains(string(out), "CUDA_ERROR_OUT_OF_MEMORY") {
			t.Errorf("tier %s: one byte over: %v: %s", tt.tier, err, out)
		}
		d.eventually("all shares end", func() bool { return len(d.state().Shares) == 0 })
	}
	if exists(filepath.Join(d.dir, "mps")) {
		t.Error("the last mps share has ended, and its daemon's directory is there")
	}
}

// ratesAre: each ran at what its cores are, though the server lets both have the larger part.
func (d *daemon) ratesAre(runs []sim.Run) {
	d.t.Helper()
	seen := make(map[string]int)
	for _, r := range runs[len(runs)/2:] { // both were there
		seen[fmt.Sprintf("%.1f", r.Rate)]++
	}
	if seen["0.4"] == 0 || seen["0.6"] == 0 || seen["0.4"]+seen["0.6"] < len(runs)/2 {
		d.t.Errorf("rates %v, want 0.4 and 0.6", seen)
	}
}

func (d *daemon) refusedBesideMPS() {
	d.t.Helper()
	kerf := func(args ...string) string {
		out, err := exec.Command(filepath.Join(build, "bin/kerf"), append([]string{"--socket", control.Socket(d.dir)}, args...)...).CombinedOutput()
		if err == nil {
			d.t.Errorf("%v: %s", args, out)
		}
		return string(out)
	}
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"run", "--memory", "1Gi", "--gpu", "0", "--", "true"}, "GPU 0 has shares of tier mps"},
		{[]string{"run", "--memory", "1Gi", "--gpus", "2", "--tier", "mps", "--", "true"}, "ask for one GPU"},
		{[]string{"run", "--memory", "1Gi", "--tier", "fast", "--", "true"}, `tier "fast": not known`},
		{[]string{"run", "--memory", "1Gi", "--tier", "mps", "--class", "besteffort", "--", "true"}, "nobody waits there"},
		{[]string{"set", d.state().Shares[0].ID, "--cores", "10"}, "gets its cores when it connects"},
	} {
		if got := kerf(tt.args...); !strings.Contains(got, tt.want) {
			d.t.Errorf("%v: %q does not say %q", tt.args, got, tt.want)
		}
	}
}

func (d *daemon) mpsPID() int {
	if state := d.state().GPUs[0].MPS; state != nil {
		return state.PID
	}
	return 0
}

// The control daemon is killed: its programs end with an error, kerfd says so and starts another, and new programs run.
func TestMPSDaemonKilled(t *testing.T) {
	d := startDaemon(t)
	for range soak(2, 50) {
		first := d.spinning("mps", 30)
		d.eventually("it works", func() bool { return len(d.work()) == 1 })
		pid := d.mpsPID()
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if err := first.Wait(); err == nil {
			t.Error("a program whose MPS server died ended well")
		}
		d.eventually("kerfd says so", func() bool {
			return strings.Contains(d.log.String(), fmt.Sprintf("(pid %d) has ended: the programs", pid))
		})
	}
	// A share that lives through it: another daemon comes, in the place that its view has.
	shell := exec.Command(filepath.Join(build, "bin/kerf"), "--socket", control.Socket(d.dir), "run", "--gpu", "0", "--memory", "2Gi", "--tier", "mps", "--", "sh", "-c",
		`read go; "$0" --memory 64Mi --seconds 0.2`, filepath.Join(build, "libexec/kerf/train"))
	in, err := shell.StdinPipe()
	if err == nil {
		err = shell.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	d.eventually("its share is in force", func() bool { return len(d.state().Shares) == 1 })
	pid := d.mpsPID()
	_ = syscall.Kill(pid, syscall.SIGKILL)
	d.eventually("another runs", func() bool { now := d.mpsPID(); return now != 0 && now != pid && d.state().GPUs[0].MPS.Trouble == "" })
	_, _ = in.Write([]byte("\n"))
	if err := shell.Wait(); err != nil {
		t.Errorf("a program that was started after it: %v", err)
	}
	d.eventually("all shares end", func() bool { return len(d.state().Shares) == 0 })
}

// kerfd is killed: programs go on under the same control daemon, which the next kerfd takes up, and ends with the last share.
func TestMPSKerfdKilled(t *testing.T) {
	d := startDaemon(t)
	a, b := d.spinning("mps", 30), d.spinning("mps", 30)
	d.allGoOn("both work", 2)
	pid := d.mpsPID()
	for range soak(3, 100) {
		d.kill()
		d.allGoOn("both go on without kerfd", 2)
		d.start()
		if got := d.mpsPID(); got != pid {
			t.Fatalf("the next kerfd has control daemon %d, want %d", got, pid)
		}
		d.allGoOn("both go on with the next", 2)
	}
	d.kill() // and the programs end meanwhile
	for _, cmd := range []*exec.Cmd{a, b} {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	}
	d.start()
	d.eventually("all shares end", func() bool { return len(d.state().Shares) == 0 })
	d.eventually("the control daemon ends", func() bool { return syscall.Kill(pid, 0) != nil && !exists(filepath.Join(d.dir, "mps")) })
}

// A daemon and its clients see one /dev/shm, and it is not the host's.
func TestMPSMemory(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("kerfd may not mount here: daemon and clients have the host's /dev/shm")
	}
	d := startDaemon(t)
	cmd := exec.Command(filepath.Join(build, "bin/kerf"), "--socket", control.Socket(d.dir), "run", "--gpu", "0", "--memory", "2Gi", "--tier", "mps", "--", "sh", "-c",
		"touch /dev/shm/kerf-test; stat -c %i /dev/shm; read go")
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	clients, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	inode := func(path string) string {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintln(info.Sys().(*syscall.Stat_t).Ino)
	}
	daemons, hosts := inode(fmt.Sprintf("/proc/%d/root/dev/shm", d.mpsPID())), inode("/dev/shm")
	if clients != daemons || clients == hosts || exists("/dev/shm/kerf-test") {
		t.Errorf("inodes of /dev/shm: client %s daemon %s host %s", clients, daemons, hosts)
	}
	_ = in.Close()
	_ = cmd.Wait() // read found the end
	d.eventually("all shares end", func() bool { return len(d.state().Shares) == 0 })
}

// A program that would run without its MPS server gets no GPU: nothing would hold it to its cores.
func TestMPSFailsClosed(t *testing.T) {
	d := startDaemon(t)
	out, err := exec.Command(filepath.Join(build, "bin/kerf"), "--socket", control.Socket(d.dir), "run", "--gpu", "0", "--memory", "2Gi", "--tier", "mps", "--", "sh", "-c",
		`rm /run/kerf/mps/control; "$0" --memory 64Mi --seconds 0.1`, filepath.Join(build, "libexec/kerf/train")).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "no MPS server answers") {
		t.Errorf("%v: %s", err, out)
	}
	d.eventually("all shares end", func() bool { return len(d.state().Shares) == 0 })
}

// What a tenant writes in its environment counts where it asks for less, and is no way to more.
func TestMPSEnvironment(t *testing.T) {
	d := startDaemon(t)
	for _, tt := range []struct {
		own  string
		most float64
	}{{"100", 20}, {"nonsense", 20}, {"10", 10}} {
		script := `CUDA_MPS_PIPE_DIRECTORY=/nowhere CUDA_MPS_ENABLE_PER_CTX_DEVICE_MULTIPROCESSOR_PARTITIONING=1 CUDA_MPS_ACTIVE_THREAD_PERCENTAGE=` + tt.own + ` "$0" --kernel 1000 --seconds 1`
		out, err := exec.Command(filepath.Join(build, "bin/kerf"), "--socket", control.Socket(d.dir), "run", "--gpu", "1", "--memory", "2Gi", "--cores", "20", "--tier", "mps", "--",
			"sh", "-c", script, filepath.Join(build, "libexec/kerf/spin")).CombinedOutput()
		var launches int
		var part float64
		_, words, _ := strings.Cut(string(out), "spin: ready [simulated GPU]\n")
		if n, _ := fmt.Sscanf(words, "spin: %d launches, %f", &launches, &part); err != nil || n != 2 || part > tt.most*1.2 || launches == 0 {
			t.Errorf("own percentage %s of 20: had %.1f%% of the GPU's time, want %.0f (%v): %s", tt.own, part, tt.most, err, out)
		}
	}
	d.eventually("all shares end", func() bool { return len(d.state().Shares) == 0 })
}
