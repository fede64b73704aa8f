package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/kerf-gpu/kerf/cmd/internal/control"
	"github.com/kerf-gpu/kerf/internal/sim"
)

// leased is a kerfd that leases GPU time, with more lines of configuration.
func leased(t *testing.T, lines ...string) *daemon {
	config := filepath.Join(t.TempDir(), "kerfd.yaml")
	if err := os.WriteFile(config, []byte(strings.Join(append(lines, "leases: true"), "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	d := startDaemon(t, "--config", config)
	t.Cleanup(func() { d.eventually("all shares end", func() bool { return len(d.state().Shares) == 0 }) })
	return d
}

// kerf is the command, talking to this kerfd.
func (d *daemon) kerf(args ...string) *exec.Cmd {
	return exec.Command(filepath.Join(build, "bin/kerf"), append([]string{"--socket", control.Socket(d.dir)}, args...)...)
}

// busy starts a program that always has work for GPU 0, and ends it with the test.
func (d *daemon) busy(cores int) *exec.Cmd {
	d.t.Helper()
	return d.share([]string{"--gpu", "0", "--cores", fmt.Sprint(cores)}, spin, "--kernel", "1000", "--seconds", "0")
}

var spin = filepath.Join(build, "libexec/kerf/spin")

// share starts a program in a slice, and ends it with the test.
func (d *daemon) share(slice []string, program ...string) *exec.Cmd {
	d.t.Helper()
	cmd := d.kerf(append(append([]string{"run", "--memory", "2Gi"}, slice...), append([]string{"--"}, program...)...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { end(cmd) })
	return cmd
}

func end(cmd *exec.Cmd) {
	if cmd.ProcessState == nil {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
		_ = cmd.Wait()
	}
}

// work is how many milliseconds the engine of GPU 0 has worked for each process.
func (d *daemon) work() map[int]uint64 { return d.workOf(0) }

func (d *daemon) workOf(gpu int) map[int]uint64 {
	node, err := sim.Open(filepath.Join(d.dir, "sim"))
	if err != nil {
		d.t.Fatal(err)
	}
	defer func() { _ = node.Close() }()
	work := make(map[int]uint64)
	for _, p := range node.Status().GPUs[gpu].Processes {
		work[p.PID] = p.BusyMS
	}
	return work
}

// allGoOn waits until so many processes are on the GPU and each has had more of it than at the call.
func (d *daemon) allGoOn(what string, count int) {
	d.t.Helper()
	before := d.work()
	d.eventually(what, func() bool {
		now := d.work()
		for pid, ms := range now {
			if ms < before[pid]+20 {
				return false
			}
		}
		return len(now) == count
	})
}

// TestLeaseHolderKilled kills programs that take turns; the others go on, whoever had the GPU.
func TestLeaseHolderKilled(t *testing.T) {
	d := leased(t)
	first := d.busy(30)
	d.busy(30)
	d.allGoOn("two take turns", 2)
	for range soak(4, 200) {
		if err := syscall.Kill(-first.Process.Pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		_ = first.Wait()
		d.allGoOn("the other goes on", 1)
		first = d.busy(30)
		d.allGoOn("two take turns again", 2)
	}
}

// TestLeasesWithoutDaemon kills kerfd in the middle of a lease: everybody goes on without it, and takes turns again under the next.
func TestLeasesWithoutDaemon(t *testing.T) {
	d := leased(t)
	for range 3 {
		d.busy(30)
	}
	d.allGoOn("three take turns", 3)
	for range soak(3, 100) {
		d.kill()
		d.allGoOn("all go on without kerfd", 3)
		d.start()
		d.allGoOn("all go on with the next", 3)
		d.eventually("one at a time has the GPU", func() bool {
			waiting := 0
			for _, s := range d.state().Shares {
				if s.Lease != nil && (s.Lease.Lease == "waits" || s.Lease.Lease == "drains") {
					waiting++
				}
			}
			return waiting == 2
		})
	}
}

// TestSetTakesEffect changes the cores of running programs.
func TestSetTakesEffect(t *testing.T) {
	d := leased(t)
	d.busy(20)
	d.busy(20)
	d.allGoOn("two take turns", 2)
	shares := d.state().Shares
	out, err := d.kerf("set", shares[0].ID, "--cores", "80").CombinedOutput()
	if err != nil {
		t.Fatalf("set: %v: %s", err, out)
	}
	pid := shares[0].Sessions[0].PID
	from := d.work()
	d.eventually("four fifths of the GPU's time", func() bool {
		now := d.work()
		var mine, all uint64
		for p, ms := range now {
			all += ms - from[p]
			if p == pid {
				mine += ms - from[p]
			}
		}
		if all < 2000 {
			return false
		}
		if part := float64(mine) / float64(all); part < 0.7 || part > 0.9 {
			t.Fatalf("had %.2f of the GPU's time, want 0.8", part)
		}
		return true
	})
	if out, err := d.kerf("set", shares[0].ID, "--cores", "81").CombinedOutput(); err == nil {
		t.Errorf("81%% beside 20%%: %s", out)
	}
}
