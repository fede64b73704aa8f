package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/kerf-gpu/kerf/cmd/internal/control"
	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/vgpu/arbiter"
)

// overcommitted is a kerfd whose cards of 2 GiB promise three times what they have.
func overcommitted(t *testing.T) *daemon {
	config := filepath.Join(t.TempDir(), "kerfd.yaml")
	if err := os.WriteFile(config, []byte("cards: [{mode: overcommit, overcommitPercent: 300}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	d := startDaemon(t, "--config", config, "--simulate", "smallx2")
	t.Cleanup(func() { d.eventually("all shares end", func() bool { return len(d.state().Shares) == 0 }) })
	return d
}

// trainer is a program that holds memory, computes, and checks what it holds as it goes. It ends with 1 if a byte is wrong.
type trainer struct {
	*exec.Cmd
	out bytes.Buffer
}

// trains starts one in a share of GPU 0 that may have a quarter more than it holds.
func (d *daemon) trains(memory node.Bytes, args ...string) *trainer {
	d.t.Helper()
	run := []string{"--socket", control.Socket(d.dir), "run", "--memory", (memory * 5 / 4 / node.MiB * node.MiB).Exact(), "--gpu", "0", "--cores", "30", "--",
		filepath.Join(build, "libexec/kerf/train"), "--memory", memory.Exact(), "--touch", "64Mi", "--step", "1000", "--seconds", "0"}
	p := &trainer{Cmd: exec.Command(filepath.Join(build, "bin/kerf"), append(run, args...)...)}
	p.Stdout, p.Stderr = &p.out, &p.out
	p.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.Start(); err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() {
		if p.ProcessState == nil {
			p.killed()
		}
	})
	return p
}

func (p *trainer) killed() {
	_ = syscall.Kill(-p.Process.Pid, syscall.SIGKILL)
	_ = p.Wait()
}

// ended stops a trainer and has it check all that it holds.
func (p *trainer) ended(t *testing.T) {
	t.Helper()
	_ = p.Process.Signal(syscall.SIGTERM)
	if err := p.Wait(); err != nil {
		t.Errorf("%v: %s", err, p.out.String())
	}
	if !strings.Contains(p.out.String(), ", 0 wrong") {
		t.Errorf("no report of what was verified: %s", p.out.String())
	}
}

// swaps is where the memory of every share is, the oldest first.
func (d *daemon) swaps() (all []arbiter.SwapState) {
	for _, s := range d.state().Shares {
		if s.Devices[0].Swap != nil {
			all = append(all, *s.Devices[0].Swap)
		}
	}
	return all
}

// allMoved waits until so many tenants have each had memory moved since the call.
func (d *daemon) allMoved(what string, count int) {
	d.t.Helper()
	before := d.swaps()
	d.t.Cleanup(func() {
		if d.t.Failed() {
			for _, s := range d.state().Shares {
				d.t.Logf("%s: %+v, %+v", s.ID, s.Devices[0].Swap, s.Lease)
			}
		}
	})
	d.eventually(what, func() bool {
		now := d.swaps()
		if len(now) != count || len(before) != count {
			before = now
			return false
		}
		for i := range now {
			if now[i].Moved < before[i].Moved+64*node.MiB {
				return false
			}
		}
		return true
	})
}

// Two tenants who together need more than the card has both run, and find every byte as they left it.
func TestOvercommit(t *testing.T) {
	d := overcommitted(t)
	a, b := d.trains(1100*node.MiB), d.trains(1100*node.MiB)
	d.allMoved("both have been moved out and in", 2)
	d.allGoOn("both run", 2)
	a.ended(t)
	b.ended(t)
}

// Memory that cannot be moved is held to what the others' promises leave of the card: who takes all that it gets of it is refused, and
// told why; and the other, who was promised more than half of the card, can have all of that.
func TestOvercommitFixed(t *testing.T) {
	d := overcommitted(t)
	other := d.trains(1100 * node.MiB) // in a share of 1375 MiB
	d.allGoOn("it runs", 1)
	const most = 2048*node.MiB - 1375*node.MiB
	for _, class := range []string{"async", "vmm", "array"} {
		hog := exec.Command(filepath.Join(build, "bin/kerf"), "--socket", control.Socket(d.dir), "run", "--memory", "1400Mi", "--gpu", "0", "--",
			filepath.Join(build, "libexec/kerf/hog"), "--limit", "1400Mi", "--class", class, "--json")
		out, _ := hog.CombinedOutput() // it complains that it was refused before the slice's limit
		_, after, _ := strings.Cut(string(out), `"got":`)
		number, _, _ := strings.Cut(after, ",")
		got, err := strconv.ParseUint(number, 10, 63)
		if err != nil || node.Bytes(got) > most || node.Bytes(got) < most*3/4 || !strings.Contains(string(out), "cannot leave an over-committed GPU") {
			t.Errorf("%s: got %s of at most %s, %v: %s", class, node.Bytes(got), most, err, out)
		}
	}
	d.allGoOn("the other runs", 1)
	other.ended(t)
}

// A tenant that is idle gives way, and is whole again when it works.
func TestOvercommitIdle(t *testing.T) {
	d := overcommitted(t)
	idle := d.trains(1500 * node.MiB)
	d.allGoOn("it runs", 1)
	if err := syscall.Kill(-idle.Process.Pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	// A stopped program does not answer: the drain times out, and nothing of it can be moved. Others have what is left.
	small := d.trains(300 * node.MiB)
	d.goesOn("another runs beside it", small)
	if err := syscall.Kill(-idle.Process.Pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	large := d.trains(1500 * node.MiB)
	d.allMoved("it makes room once it goes on", 3)
	for _, p := range []*trainer{idle, small, large} {
		p.ended(t)
	}
}

// goesOn waits until one program has had GPU time since the call.
func (d *daemon) goesOn(what string, p *trainer) {
	d.t.Helper()
	own := func() (ms uint64) {
		for _, s := range d.state().Shares {
			if s.Holder.PID == p.Process.Pid {
				for _, session := range s.Sessions {
					ms += d.work()[session.PID]
				}
			}
		}
		return ms
	}
	before := own()
	d.eventually(what, func() bool { return own() >= before+20 })
}

// TestOvercommitCrash kills a tenant while memory moves, and kerfd: nobody else notices, and no byte of the others is wrong.
func TestOvercommitCrash(t *testing.T) {
	d := overcommitted(t)
	stays, other := d.trains(1100*node.MiB), d.trains(1000*node.MiB)
	d.allMoved("both are moved", 2)
	for i := range soak(3, 60) {
		switch i % 3 {
		case 0, 1:
			other.killed()
			d.eventually("the dead one's share ends", func() bool { return len(d.state().Shares) == 1 })
			d.allGoOn("who is left goes on", 1)
			other = d.trains(1000 * node.MiB)
		case 2:
			d.kill()
			d.start()
		}
		d.allMoved(fmt.Sprintf("both are moved again, after kill %d", i+1), 2)
	}
	stays.ended(t)
	other.ended(t)
	d.eventually("the card is empty", func() bool { return d.simUsed() == 0 })
}
