package main

import (
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kerf-gpu/kerf/cmd/internal/control"
	"github.com/kerf-gpu/kerf/internal/node"
)

// These tests have the real shim, kerfd and the simulated driver, whose engine keeps the account that is held against the
// shares. The machine may be busy, so that margins are wide: the narrow ones are those of the pure core and of the bench.

// shareOf finds the share of a command.
func (d *daemon) shareOf(cmd *exec.Cmd) control.Share {
	d.t.Helper()
	var found control.Share
	d.eventually("the share is there, with its processes", func() bool {
		for _, s := range d.state().Shares {
			if s.Holder.PID == cmd.Process.Pid && len(s.Sessions) > 0 {
				found = s
				return true
			}
		}
		return false
	})
	return found
}

// parts is what part of a GPU's work was of each command's processes, over so much work in all.
func (d *daemon) parts(gpu int, work time.Duration, cmds ...*exec.Cmd) []float64 {
	d.t.Helper()
	owner := make(map[int]int)
	for i, cmd := range cmds {
		for _, session := range d.shareOf(cmd).Sessions {
			owner[session.PID] = i
		}
	}
	from := d.workOf(gpu)
	sums := make([]float64, len(cmds))
	total := 0.0
	d.eventually("the GPU works", func() bool {
		clear(sums)
		total = 0
		for pid, ms := range d.workOf(gpu) {
			if i, ok := owner[pid]; ok {
				sums[i] += float64(ms - from[pid])
				total += float64(ms - from[pid])
			}
		}
		return total >= float64(work.Milliseconds())
	})
	for i := range sums {
		sums[i] /= total
	}
	return sums
}

func (d *daemon) within(what string, got, low, high float64) {
	d.t.Helper()
	d.t.Logf("%s (simulated): %.3f", what, got)
	if got < low || got > high {
		d.t.Errorf("%s: %.3f, want %.2f to %.2f", what, got, low, high)
	}
}

const bothGPUs = "CUDA_VISIBLE_DEVICES=0 %[1]s --kernel 1000 --seconds 0 & CUDA_VISIBLE_DEVICES=1 %[1]s --kernel 1000 --seconds 0 & trap 'kill %%1 %%2' TERM; wait; wait"

// TestGangLease: one share with two GPUs, and a process on each, against a single on each of them.
func TestGangLease(t *testing.T) {
	d := leased(t)
	gang := d.share([]string{"--gpu", "0,1", "--cores", "50"}, "bash", "-c", fmt.Sprintf(bothGPUs, spin))
	singles := []*exec.Cmd{d.share([]string{"--gpu", "0", "--cores", "50"}, spin, "--seconds", "0"), d.share([]string{"--gpu", "1", "--cores", "50"}, spin, "--seconds", "0")}
	d.eventually("both processes of the gang work", func() bool {
		return len(d.shareOf(gang).Sessions) == 2 && len(d.workOf(0)) == 2 && len(d.workOf(1)) == 2
	})
	for gpu, single := range singles {
		d.within(fmt.Sprintf("the gang's part of GPU %d", gpu), d.parts(gpu, 2*time.Second, gang, single)[0], 0.35, 0.6)
	}
}

// TestOneLeaseForAll: a container with two programs, and one with three threads, are one tenant each.
func TestOneLeaseForAll(t *testing.T) {
	d := leased(t)
	pair := d.share([]string{"--gpu", "0", "--cores", "30"}, "bash", "-c", fmt.Sprintf("%[1]s --seconds 0 & %[1]s --seconds 0 & trap 'kill %%1 %%2' TERM; wait; wait", spin))
	crowd := d.share([]string{"--gpu", "0", "--cores", "30"}, compile(t, "crowd"))
	single := d.share([]string{"--gpu", "0", "--cores", "30"}, spin, "--seconds", "0")
	d.eventually("all work", func() bool { return len(d.shareOf(pair).Sessions) == 2 && len(d.work()) == 4 })
	for i, part := range d.parts(0, 4*time.Second, pair, crowd, single) {
		d.within([]string{"two processes", "three threads", "one"}[i], part, 0.24, 0.43)
	}
}

// TestCaps: a share that may not burst, alone and beside one that may.
func TestCaps(t *testing.T) {
	d := leased(t)
	capped := d.share([]string{"--gpu", "0", "--cores", "20", "--burst=false"}, spin, "--seconds", "0")
	d.allGoOn("it works", 1)
	pid := d.shareOf(capped).Sessions[0].PID
	from, began := d.work()[pid], time.Now()
	d.eventually("some work is done", func() bool { return d.work()[pid] > from+600 })
	d.within("alone, of the time", float64(d.work()[pid]-from)/float64(time.Since(began).Milliseconds()), 0.12, 0.23)

	other := d.share([]string{"--gpu", "0", "--cores", "20"}, spin, "--seconds", "0")
	d.allGoOn("two work", 2)
	d.within("beside another, of the work", d.parts(0, 3*time.Second, capped, other)[0], 0.12, 0.25)
	if out, err := d.kerf("set", d.shareOf(capped).ID, "--burst").CombinedOutput(); err != nil {
		t.Fatalf("set: %v: %s", err, out)
	}
	d.within("without the cap", d.parts(0, 2*time.Second, capped, other)[0], 0.4, 0.6)
}

// TestGraphsHaveWeight: CUDA graphs are held to their share as kernels are.
func TestGraphsHaveWeight(t *testing.T) {
	d := leased(t)
	graphs := d.share([]string{"--gpu", "0", "--cores", "25"}, spin, "--graph", "20", "--kernel", "100", "--ahead", "32", "--seconds", "0")
	kernels := d.share([]string{"--gpu", "0", "--cores", "75"}, spin, "--kernel", "100", "--ahead", "128", "--seconds", "0")
	d.allGoOn("both work", 2)
	d.within("graphs", d.parts(0, 3*time.Second, graphs, kernels)[0], 0.18, 0.32)
}

// TestNeverDrains: a kernel that runs on long after its lease. A drain timeout of 300 ms stands for one of 2 s, and a kernel of
// 3 s for one of 20.
func TestNeverDrains(t *testing.T) {
	d := leased(t, "drainTimeout: 300ms")
	hog := d.share([]string{"--gpu", "0", "--cores", "50"}, spin, "--kernel", "3000000", "--ahead", "1", "--seconds", "1")
	d.eventually("the hog works", func() bool { return len(d.work()) == 1 })
	other := d.busy(50)
	id := d.shareOf(hog).ID
	d.eventually("it is shown as late", func() bool {
		out, _ := d.kerf("top", "--once").CombinedOutput()
		return strings.Contains(lineOf(string(out), id), " late ")
	})
	out, err := d.kerf("explain", id).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "work that it submitted before has not ended; others go on beside it") {
		t.Errorf("explain: %v: %s", err, out)
	}
	d.allGoOn("the other goes on beside it", 2)
	if log := d.log.String(); !strings.Contains(log, "has not drained within 300ms") || !strings.Contains(log, id) {
		t.Errorf("the log does not tell of it:\n%s", log)
	}
	owed := d.shareOf(hog).Lease.Owed
	d.within("what it owes, in seconds", -owed.Seconds(), 0.05, 3)
	_ = other
}

func lineOf(text, word string) string {
	for line := range strings.Lines(text) {
		if strings.Contains(line, word) {
			return line
		}
	}
	return ""
}

// TestDebtIsPaid: who has kernels that never drain in time pays for them; over some of those the other has its half.
func TestDebtIsPaid(t *testing.T) {
	d := leased(t, "drainTimeout: 300ms")
	long := d.share([]string{"--gpu", "0", "--cores", "50"}, spin, "--kernel", "600000", "--ahead", "1", "--seconds", "0")
	short := d.busy(50)
	d.allGoOn("both work", 2)
	d.within("kernels of 600 ms against kernels of 1 ms", d.parts(0, 7*time.Second, long, short)[0], 0.35, 0.65)
}

// TestClassesGoFirst: a busy share closes the gates of lower classes, and one without cores has a little beside its equals.
func TestClassesGoFirst(t *testing.T) {
	d := leased(t)
	low := d.share([]string{"--gpu", "0", "--cores", "30", "--class", "besteffort"}, spin, "--kernel", "1000", "--seconds", "0")
	d.allGoOn("the low class works", 1)
	high := d.busy(30)
	d.allGoOnAfter("the high class works", high)
	d.within("the low class, while a higher one is busy", d.parts(0, time.Second, low, high)[0], 0, 0.01)
	none := d.share([]string{"--gpu", "0"}, spin, "--kernel", "1000", "--seconds", "0")
	d.allGoOnAfter("the one without cores works", none)
	d.within("without cores, beside one that has some", d.parts(0, 3*time.Second, high, none)[1], 0.005, 0.06)
	end(high)
	d.allGoOnAfter("without cores, when the other has ended", none)
	end(none)
	d.allGoOnAfter("the low class, when all above have ended", low)
}

// allGoOnAfter waits until a command's processes have had 50 ms more of the GPU.
func (d *daemon) allGoOnAfter(what string, cmd *exec.Cmd) {
	d.t.Helper()
	pid := d.shareOf(cmd).Sessions[0].PID
	from := d.work()[pid]
	d.eventually(what, func() bool { return d.work()[pid] >= from+50 })
}

// TestSetIsSeen measures how soon running programs have what kerf set says: when one leads by more than equal turns allow.
func TestSetIsSeen(t *testing.T) {
	d := leased(t)
	a, b := d.busy(10), d.busy(10)
	d.allGoOn("two take turns", 2)
	pids := []int{d.shareOf(a).Sessions[0].PID, d.shareOf(b).Sessions[0].PID}
	id := d.shareOf(a).ID
	from := d.work()
	began := time.Now()
	if out, err := d.kerf("set", id, "--cores", "90").CombinedOutput(); err != nil {
		t.Fatalf("set: %v: %s", err, out)
	}
	answered := time.Since(began)
	if now := d.shareOf(a); now.Devices[0].Cores != node.Percent(90) {
		t.Errorf("cores are %s after the change", now.Devices[0].Cores)
	}
	d.eventually("it leads", func() bool {
		now := d.work()
		return int64(now[pids[0]]-from[pids[0]])-int64(now[pids[1]]-from[pids[1]]) > 60
	})
	t.Logf("kerf set answered after %s; the share led by three leases after %s (simulated)", answered.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
}

// TestLeaseRefusals: what cannot be is refused with what was asked, what there is, and what to do.
func TestLeaseRefusals(t *testing.T) {
	d := leased(t)
	holder := d.busy(60)
	id := d.shareOf(holder).ID
	for _, row := range []struct {
		args []string
		want []string
	}{
		{[]string{"run", "--memory", "1Gi", "--gpu", "0", "--cores", "50", "--", "true"}, []string{"50% of cores", "40% of cores left"}},
		{[]string{"set", id, "--cores", "101"}, []string{"101", "0 to 100"}},
		{[]string{"set", id, "--cores", "0", "--burst=false"}, []string{"would never run"}},
		{[]string{"run", "--memory", "1Gi", "--gpu", "0", "--burst=false", "--", "true"}, []string{"cores 0 with burst: false", "ask for cores"}},
		// GPUs are named as this node's kerfd has them: a share of another node's cannot be said.
		{[]string{"run", "--memory", "1Gi", "--gpu", "0,GPU-11111111-2222-3333-4444-555555555555", "--", "true"}, []string{"GPU-11111111"}},
		{[]string{"run", "--memory", "1Gi", "--gpus", "9", "--", "true"}, []string{"9", "8"}},
	} {
		out, err := d.kerf(row.args...).CombinedOutput()
		if err == nil {
			t.Errorf("kerf %s: was done: %s", strings.Join(row.args, " "), out)
		}
		for _, want := range row.want {
			if !strings.Contains(string(out), want) {
				t.Errorf("kerf %s: %q is not in: %s", strings.Join(row.args, " "), want, out)
			}
		}
	}
	_ = syscall.Kill(-holder.Process.Pid, syscall.SIGTERM)
}
