package arbiter

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

// worst is the largest difference between the part of the used time that a guest got and its due, over all windows.
func worst(m *machine, due []float64, from, to, window time.Duration) (diff float64) {
	for at := from; at+window <= to; at += 5 * bin {
		var total time.Duration
		for _, g := range m.guests {
			total += g.used(at, at+window)
		}
		for i, g := range m.guests {
			got := float64(g.used(at, at+window)) / float64(total)
			diff = max(diff, got-due[i], due[i]-got)
		}
	}
	return diff
}

func TestShares(t *testing.T) {
	for _, tt := range []struct {
		name    string
		cores   []node.Percent
		longest time.Duration
	}{
		{"two equal", []node.Percent{50, 50}, 5 * ms},
		{"two equal, short kernels", []node.Percent{50, 50}, 100 * time.Microsecond},
		{"four equal", []node.Percent{25, 25, 25, 25}, 5 * ms},
		{"eight equal", []node.Percent{12, 12, 12, 12, 12, 12, 12, 12}, 5 * ms},
		{"a heavy and a light one", []node.Percent{90, 10}, 5 * ms},
		{"one in a hundred", []node.Percent{99, 1}, 5 * ms},
		{"unequal", []node.Percent{40, 30, 20, 10}, 5 * ms},
		{"guarantees of half the GPU", []node.Percent{30, 10, 10}, 5 * ms},
		{"eight unequal", []node.Percent{31, 19, 13, 11, 9, 7, 6, 4}, 5 * ms},
		{"best effort among themselves", []node.Percent{0, 0, 0}, 5 * ms},
	} {
		t.Run(tt.name, func(t *testing.T) { checkShares(t, tt.cores, tt.longest, 1) })
	}
}

func checkShares(t *testing.T, cores []node.Percent, longest time.Duration, seed uint64) {
	t.Helper()
	m := newMachine(t, seed, DefaultLeaseRules(80*node.GiB))
	sum := 0.0
	for i, c := range cores {
		m.work(m.join(tenantOn(fmt.Sprint("t", i), c, 0), kernels(longest), 2*i+1, 2*i+2), true)
		sum += float64(max(1, c))
	}
	var due []float64
	for _, c := range cores {
		due = append(due, float64(max(1, c))/sum)
	}
	m.run(32 * time.Second)
	from, to := 2*time.Second, 32*time.Second
	t.Logf("cores %v: share error %.4f over a second, %.4f over ten", cores, worst(m, due, from, to, time.Second), worst(m, due, from, to, 10*time.Second))
	if got := worst(m, due, from, to, time.Second); got > 0.03 {
		t.Errorf("cores %v: share error %.3f over a second, want at most 0.03", cores, got)
	}
	if got := worst(m, due, from, to, 10*time.Second); got > 0.01 {
		t.Errorf("cores %v: share error %.4f over ten seconds, want at most 0.01", cores, got)
	}
	for i, g := range m.guests {
		if limit := time.Duration(float64(60*ms) / due[i]); g.longest > limit {
			t.Errorf("cores %v: %s waited %s, want at most %s", cores, g.ID, g.longest, limit)
		}
	}
}

// A lease is prolonged for no longer than the lead lasts, or two equal tenants could take turns of two leases for good.
func TestTurnsAreShort(t *testing.T) {
	m := newMachine(t, 1, DefaultLeaseRules(80*node.GiB))
	for i := range 2 {
		m.work(m.join(tenantOn(fmt.Sprint("t", i), 50, 0), kernels(ms/10), i+1), true)
	}
	m.run(12 * time.Second)
	if got := worst(m, []float64{0.5, 0.5}, 2*time.Second, 12*time.Second, time.Second); got > 0.01 {
		t.Errorf("share error %.4f over a second, want at most 0.01", got)
	}
}

// A machine whose threads wake up late: the GPU has nothing to do for a part of every lease, more of it in some tenants' leases
// than in others', and what is queued when a lease ends differs too. Nobody's share may suffer from that.
func TestSharesOnABusyMachine(t *testing.T) {
	for name, cores := range map[string][]node.Percent{
		"four equal":       {25, 25, 25, 25},
		"eight unequal":    {25, 20, 15, 15, 10, 5, 5, 5},
		"a heavy and ones": {70, 10, 10, 10},
	} {
		m := newMachine(t, 1, DefaultLeaseRules(80*node.GiB))
		m.slow = true
		sum := node.Percent(0)
		for i, c := range cores {
			g := m.join(tenantOn(fmt.Sprint("t", i), c, 0), kernels([]time.Duration{5 * ms, ms / 5, 2 * ms}[i%3]), i+1)
			g.ahead = 4 * ms
			m.work(g, true)
			sum += c
		}
		var due []float64
		for _, c := range cores {
			due = append(due, float64(c)/float64(sum))
		}
		m.run(42 * time.Second)
		used := time.Duration(0)
		for _, g := range m.guests {
			used += g.used(2*time.Second, 42*time.Second)
		}
		second, ten := worst(m, due, 2*time.Second, 42*time.Second, time.Second), worst(m, due, 2*time.Second, 42*time.Second, 10*time.Second)
		t.Logf("%s: the GPU works for %.2f of the time; share error %.3f over a second, %.4f over ten", name, used.Seconds()/40, second, ten)
		if second > 0.05 || ten > 0.01 { // the worst second of 40, where leases are 30 ms long
			t.Errorf("%s: share error %.3f over a second, %.4f over ten seconds; want at most 0.05 and 0.01", name, second, ten)
		}
	}
}

// A tenant that says that it left the GPU idle is believed to a quarter: its share grows by a third, and no further.
func TestLyingAboutIdleTime(t *testing.T) {
	m := newMachine(t, 1, DefaultLeaseRules(80*node.GiB))
	liar := m.join(tenantOn("liar", 50, 0), kernels(ms), 1)
	liar.liar = true
	m.work(liar, true)
	m.work(m.join(tenantOn("honest", 50, 0), kernels(ms), 2), true)
	m.run(22 * time.Second)
	if got := liar.used(2*time.Second, 22*time.Second).Seconds() / 20; got > 0.58 {
		t.Errorf("got %.3f of the GPU, want at most 4/7", got)
	}
}

func TestSharesRandom(t *testing.T) {
	for seed := range uint64(6) {
		r := rand.New(rand.NewPCG(seed, 2))
		cores := make([]node.Percent, 2+r.IntN(7))
		for i := range cores {
			cores[i] = node.Percent(1 + r.IntN(100/len(cores)))
		}
		checkShares(t, cores, 5*ms, seed)
	}
}

// lone is how much of the time from the first second on a single tenant got.
func lone(m *machine, g *guest, d time.Duration) float64 {
	m.work(g, true)
	from := m.now
	m.run(d)
	return float64(g.used(from, m.now)) / float64(d)
}

func TestAloneNothingIsInTheWay(t *testing.T) {
	m := newMachine(t, 1, DefaultLeaseRules(80*node.GiB))
	g := m.join(tenantOn("a", 30, 0), kernels(5*ms), 1)
	if !g.open {
		t.Error("the gate is shut before the first launch")
	}
	if got := lone(m, g, 10*time.Second); got < 0.999 || m.timer != 0 || g.opens != 1 {
		t.Errorf("got %.4f of the time, timer %s, the gate opened %d times; want all, none and once", got, m.timer, g.opens)
	}
}

func TestCap(t *testing.T) {
	for _, cores := range []node.Percent{1, 5, 25, 50, 75, 99} {
		m := newMachine(t, uint64(cores), DefaultLeaseRules(80*node.GiB))
		tenant := tenantOn("a", cores, 0)
		tenant.Capped = true
		g := m.join(tenant, kernels(5*ms), 1)
		m.work(g, true)
		m.run(30 * time.Second)
		due := float64(cores) / 100
		for at := 2 * time.Second; at < 29*time.Second; at += 5 * bin {
			if got := g.used(at, at+time.Second).Seconds(); got > due+0.03 || got < due-0.03 {
				t.Fatalf("cores %d: %.3f of the second from %s on", cores, got, at)
			}
		}
		if got := g.used(10*time.Second, 30*time.Second).Seconds() / 20; got > due+0.01 || got < due-0.01 {
			t.Errorf("cores %d: %.4f of twenty seconds", cores, got)
		}
	}
}

func TestCapBesideOneThatBursts(t *testing.T) {
	m := newMachine(t, 1, DefaultLeaseRules(80*node.GiB))
	capped := tenantOn("a", 20, 0)
	capped.Capped = true
	m.work(m.join(capped, kernels(5*ms), 1), true)
	m.work(m.join(tenantOn("b", 20, 0), kernels(5*ms), 2), true)
	m.run(32 * time.Second)
	if got := worst(m, []float64{0.2, 0.8}, 2*time.Second, 32*time.Second, time.Second); got > 0.03 {
		t.Errorf("share error %.3f, want at most 0.03", got)
	}
}

// Several gangs and single tenants over four GPUs: nobody waits for long, and single GPUs are shared as they should be.
func TestGangs(t *testing.T) {
	m := newMachine(t, 1, DefaultLeaseRules(node.GiB, node.GiB, node.GiB, node.GiB))
	for i, gpus := range [][]int{{0, 1}, {1, 2}, {2, 3}, {3, 0}, {0, 1, 2, 3}, {0}, {1}, {2}, {3}} {
		m.work(m.join(tenantOn(fmt.Sprint("t", i), 20, gpus...), kernels(5*ms), i+1), true)
	}
	m.run(60 * time.Second)
	for _, g := range m.guests {
		if got := float64(g.used(2*time.Second, 60*time.Second)) / float64(58*time.Second); got < 0.12 || g.longest > time.Second {
			t.Errorf("%s on %v got %.3f of the time and waited %s, want a fair part and at most a second", g.ID, g.GPUs, got, g.longest)
		}
	}
}

// Tenants without cores have what the others leave, and a fiftieth of the GPU together while those leave nothing.
func TestWithoutCores(t *testing.T) {
	m := newMachine(t, 1, DefaultLeaseRules(80*node.GiB))
	half := m.join(tenantOn("half", 50, 0), kernels(5*ms), 1)
	other := m.join(tenantOn("other", 50, 0), kernels(5*ms), 2)
	var rest []*guest
	for i := range 3 {
		rest = append(rest, m.join(tenantOn(fmt.Sprint("rest", i), 0, 0), kernels(5*ms), i+3))
	}
	for _, g := range m.guests {
		m.work(g, true)
	}
	m.run(122 * time.Second)
	for _, g := range []*guest{half, other} {
		if got := g.used(2*time.Second, 122*time.Second).Seconds() / 120; got < 0.475 || got > 0.5 {
			t.Errorf("%s got %.3f of the GPU, want 0.49", g.ID, got)
		}
	}
	for _, g := range rest {
		if got := g.used(2*time.Second, 122*time.Second).Seconds() / 120; got < 0.004 || got > 0.009 || g.longest > 6*time.Second {
			t.Errorf("%s got %.4f of the GPU and waited %s, want a third of a fiftieth and some seconds at most", g.ID, got, g.longest)
		}
	}
	m.stop(half)
	m.stop(other)
	from := m.now
	m.run(30 * time.Second)
	for _, g := range rest {
		if got := g.used(from, m.now).Seconds() / 30; got < 0.3 {
			t.Errorf("%s got %.3f of the GPU while nobody else had work, want a third", g.ID, got)
		}
	}
}

// A tenant without cores goes before a lower class all the same, and behind a higher one.
func TestWithoutCoresByClass(t *testing.T) {
	m := newMachine(t, 1, DefaultLeaseRules(80*node.GiB))
	low := tenantOn("low", 50, 0)
	low.Class = share.Burstable
	m.work(m.join(low, kernels(ms), 1), true)
	m.work(m.join(tenantOn("none", 0, 0), kernels(ms), 2), true)
	m.run(10 * time.Second)
	if got := m.guest("low").used(2*time.Second, m.now); got > 0 {
		t.Errorf("the lower class got %s while the higher one had work", got)
	}
}

func TestGangAndSingles(t *testing.T) {
	m := newMachine(t, 1, DefaultLeaseRules(node.GiB, node.GiB))
	m.work(m.join(tenantOn("gang", 50, 0, 1), kernels(5*ms), 1), true)
	m.work(m.join(tenantOn("one", 50, 0), kernels(5*ms), 2), true)
	m.work(m.join(tenantOn("two", 50, 1), kernels(5*ms), 3), true)
	m.run(32 * time.Second)
	for _, g := range m.guests {
		if got := g.used(2*time.Second, 32*time.Second).Seconds() / 30; got < 0.46 || got > 0.52 {
			t.Errorf("%s got %.3f of the time, want half less what waiting for each other costs", g.ID, got)
		}
	}
}

func TestHigherClassGoesFirst(t *testing.T) {
	m := newMachine(t, 1, DefaultLeaseRules(80*node.GiB))
	var guests []*guest
	for i, class := range []share.Class{share.BestEffort, share.Burstable, share.Guaranteed} {
		tenant := tenantOn(string(class), 30, 0)
		tenant.Class = class
		guests = append(guests, m.join(tenant, kernels(ms), i+1))
	}
	low, middle, high := guests[0], guests[1], guests[2]
	m.work(low, true)
	m.run(time.Second)
	m.work(middle, true)
	m.run(time.Second)
	m.work(high, true)
	m.run(time.Second)
	for _, g := range guests[1:] {
		if g.longest > 2*ms {
			t.Errorf("%s waited %s, want at most the running kernel", g.ID, g.longest)
		}
	}
	if low.used(2*time.Second+bin, m.now) > 0 || middle.used(3*time.Second+bin, m.now) > 0 {
		t.Error("a lower class ran while a higher one had work")
	}
}

// A kernel of 3 s: others go on after the drain timeout, and get back what they missed.
func TestNeverDrains(t *testing.T) {
	m := newMachine(t, 1, DefaultLeaseRules(80*node.GiB))
	length := 3 * time.Second
	hog := m.join(tenantOn("hog", 50, 0), func(*rand.Rand) time.Duration { l := length; length = ms; return l }, 1)
	other := m.join(tenantOn("other", 50, 0), kernels(5*ms), 2)
	m.work(hog, true)
	m.work(other, true)
	m.run(2500 * ms)
	if !hog.marked || !other.open {
		t.Errorf("after the drain timeout the hog is marked: %v, the other runs: %v; want both", hog.marked, other.open)
	}
	m.run(time.Second)
	if hog.marked {
		t.Error("the hog is marked although it drained")
	}
	m.run(2 * time.Second)
	if got := other.used(4*time.Second+100*ms, 5*time.Second+100*ms); got < 990*ms {
		t.Errorf("the other got %s of the second after, want it to be paid first", got)
	}
	m.run(12 * time.Second)
	if got := worst(m, []float64{0.5, 0.5}, 8*time.Second, 18*time.Second, time.Second); got > 0.03 {
		t.Errorf("share error %.3f once the debt is paid", got)
	}
}

func TestDeathFreesTheGPUAtOnce(t *testing.T) {
	m := newMachine(t, 1, DefaultLeaseRules(80*node.GiB))
	a := m.join(tenantOn("a", 50, 0), func(*rand.Rand) time.Duration { return time.Hour }, 1)
	b := m.join(tenantOn("b", 50, 0), kernels(ms), 2)
	m.work(a, true)
	m.work(b, true)
	m.run(100 * ms)
	m.kill(a, 1)
	if !b.open {
		t.Error("the holder died, and the other waits")
	}
	m.run(100 * ms)
	m.leave(a)
	m.leave(b)
	if len(m.leases.tenants) != 0 || m.timer != 0 {
		t.Errorf("left over: %+v", m.leases)
	}
}
