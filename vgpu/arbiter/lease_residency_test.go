package arbiter

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

const gi = node.GiB

// script plays events one second apart and keeps what memory was moved.
func script(t *testing.T, memory node.Bytes, events ...LeaseEvent) (l Leases, moves, refusals []Decision) {
	t.Helper()
	l, err := NewLeases(DefaultLeaseRules(memory))
	if err != nil {
		t.Fatal(err)
	}
	for i, e := range events {
		var decisions []Decision
		l, decisions = Step(l, e, time.Duration(i+1)*time.Second)
		for _, d := range decisions {
			switch d := d.(type) {
			case Evict, BringIn:
				moves = append(moves, d)
			case Refuse:
				refusals = append(refusals, d)
			}
		}
	}
	return l, moves, refusals
}

// has is the events with which a tenant of one process joins and gets memory.
func has(id string, pid int, class share.Class, minResident, bytes node.Bytes) []LeaseEvent {
	tenant := LeaseTenant{ID: id, GPUs: []int{0}, Cores: 10, Class: class, MinResident: minResident}
	return []LeaseEvent{TenantJoined{Tenant: tenant}, ProcessJoined{id, pid}, MemoryIs{id, pid, 0, 0, bytes, true, false}, MemoryIs{id, pid, 0, bytes, 0, false, false}}
}

func inTurn(parts ...[]LeaseEvent) (all []LeaseEvent) {
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

func TestResidency(t *testing.T) {
	const g, b, e = share.Guaranteed, share.Burstable, share.BestEffort
	fits := []Decision{BringIn{"a", 1, 0, 4 * gi}, BringIn{"b", 2, 0, 4 * gi}}
	newcomer := func(class share.Class, bytes node.Bytes) []LeaseEvent {
		return has("c", 3, class, 0, bytes)[:3]
	}
	for _, tt := range []struct {
		name   string
		events []LeaseEvent
		want   []Decision // after both fitted
	}{
		{"there is room", inTurn(has("a", 1, g, 0, 4*gi), has("b", 2, g, 0, 4*gi), newcomer(g, 2*gi)),
			[]Decision{BringIn{"c", 3, 0, 2 * gi}}},
		{"just enough leaves, of the one used longest ago", inTurn(has("a", 1, g, 0, 4*gi), has("b", 2, g, 0, 4*gi), newcomer(g, 3*gi)),
			[]Decision{Evict{"a", 1, 0, gi}, BringIn{"c", 3, 0, 2 * gi}}},
		{"the lowest class leaves first", inTurn(has("a", 1, g, 0, 4*gi), has("b", 2, e, 0, 4*gi), newcomer(g, 3*gi)),
			[]Decision{Evict{"b", 2, 0, gi}, BringIn{"c", 3, 0, 2 * gi}}},
		{"then the next", inTurn(has("a", 1, b, 0, 4*gi), has("b", 2, e, 0, 4*gi), newcomer(g, 7*gi)),
			[]Decision{Evict{"b", 2, 0, 4 * gi}, Evict{"a", 1, 0, gi}, BringIn{"c", 3, 0, 2 * gi}}},
		{"minResident never leaves", inTurn(has("a", 1, g, 3*gi, 4*gi), has("b", 2, g, 0, 4*gi), newcomer(g, 4*gi)),
			[]Decision{Evict{"a", 1, 0, gi}, Evict{"b", 2, 0, gi}, BringIn{"c", 3, 0, 2 * gi}}},
		{"what left makes room at once", inTurn(has("a", 1, g, 0, 4*gi), has("b", 2, g, 0, 4*gi), newcomer(g, 4*gi), []LeaseEvent{MemoryIs{"a", 1, 0, 3 * gi, gi, false, true}}),
			[]Decision{Evict{"a", 1, 0, 2 * gi}, BringIn{"c", 3, 0, 2 * gi}, BringIn{"c", 3, 0, gi}}},
		{"a death makes room at once", inTurn(has("a", 1, g, 0, 4*gi), has("b", 2, g, 0, 4*gi), newcomer(g, 4*gi), []LeaseEvent{ProcessEnded{"a", 1}}),
			[]Decision{Evict{"a", 1, 0, 2 * gi}, BringIn{"c", 3, 0, 2 * gi}, BringIn{"c", 3, 0, 2 * gi}}},
		{"what is leaving is not met by more coming in", inTurn(has("a", 1, e, 0, 4*gi), has("b", 2, g, 4*gi, 4*gi), []LeaseEvent{WorkBegan{"a", 1}}, newcomer(g, 3*gi),
			[]LeaseEvent{MemoryIs{"a", 1, 0, 4*gi - gi/2, gi / 2, false, true}, MemoryIs{"c", 3, 0, 0, 0, false, true}}),
			[]Decision{Evict{"a", 1, 0, gi}, BringIn{"c", 3, 0, 2 * gi}, BringIn{"c", 3, 0, gi / 2}}},
		{"freed bytes make room", inTurn(has("a", 1, g, 0, 4*gi), has("b", 2, g, 0, 4*gi), []LeaseEvent{MemoryIs{"a", 1, 0, 3 * gi, 0, false, false}}, newcomer(g, 3*gi)),
			[]Decision{BringIn{"c", 3, 0, 3 * gi}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			// An idle holder first drains: its answer follows every event here.
			var events []LeaseEvent
			for _, e := range tt.events {
				events = append(events, e)
				for lease := range uint64(3) {
					events = append(events, Drained{"a", 1, lease + 1, 0, 0, false})
				}
			}
			_, moves, _ := script(t, 10*gi, events...)
			if diff := cmp.Diff(append(fits[:2:2], tt.want...), moves); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestLeaseRefusals(t *testing.T) {
	tenant := func(change func(*LeaseTenant)) LeaseEvent {
		l := tenantOn("x", 10, 0)
		change(&l)
		return TenantJoined{Tenant: l}
	}
	a := has("a", 1, share.Guaranteed, 2*gi, 4*gi)
	for _, tt := range []struct {
		name  string
		event LeaseEvent
		want  string
	}{
		{"minResident above memory", tenant(func(l *LeaseTenant) { l.MinResident = 11 * gi }), `tenant "x", minResident 11Gi: GPU 0 has 10Gi, of which the others leave 8Gi; ask for less`},
		{"minResident that locks another out", tenant(func(l *LeaseTenant) { l.MinResident = 7 * gi }), `tenant "x", minResident 7Gi: tenant "a" has 4Gi on GPU 0 and would never be in again; ask for less`},
		{"a cap of nothing", tenant(func(l *LeaseTenant) { l.Cores, l.Capped = 0, true }), `tenant "x", cores 0 with burst: false: it would never run; ask for cores, or let it burst`},
		{"no GPU", tenant(func(l *LeaseTenant) { l.GPUs = nil }), `tenant "x": has no GPU; name at least one`},
		{"another node's GPU", tenant(func(l *LeaseTenant) { l.GPUs = []int{0, 7} }), `tenant "x", GPU 7: there are 1, counted from 0`},
		{"a GPU twice", tenant(func(l *LeaseTenant) { l.GPUs = []int{0, 0} }), `tenant "x", GPU 0: named twice`},
		{"cores beyond a GPU", tenant(func(l *LeaseTenant) { l.Cores = 101 }), `tenant "x": cores: percent 101: outside 0 to 100; one GPU is 100, and 0 is best effort`},
		{"unknown class", tenant(func(l *LeaseTenant) { l.Class = "gold" }), `tenant "x", class "gold": not known; use guaranteed, burstable or besteffort`},
		{"joins twice", a[0], `tenant "a": has joined before`},
		{"unknown tenant", WorkBegan{"x", 1}, `tenant "x": not known; it must join first`},
		{"unknown process", WorkBegan{"a", 2}, `process 2 of tenant "a": not known; it has ended, or must join first`},
		{"another group", TenantChanged{LeaseTenant{ID: "a", Class: share.Guaranteed}}, `tenant "a", GPUs []: the GPUs of a tenant do not change while it lives; let it leave and join again`},
		{"late report", Drained{"a", 1, 9, 0, 0, false}, `drained report of tenant "a" for lease 9: that is not being drained; it came late`},
		{"memory beyond the GPU", MemoryIs{"a", 1, 0, 4 * gi, 7 * gi, true, false},
			`memory 7Gi: tenant "a" has 4Gi on GPU 0, and beside what others keep resident there is room for 10Gi; free some, or lower their minResident`},
		{"memory elsewhere", MemoryIs{"a", 1, 3, 0, gi, true, false}, `GPU 3: not one of tenant "a", which has [0]`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before, _, _ := script(t, 10*gi, a...)
			after, _, refused := script(t, 10*gi, inTurn(a, []LeaseEvent{tt.event})...)
			want := []Decision{Refuse{tt.event, tt.want}}
			if diff := cmp.Diff(want, refused); diff != "" {
				t.Error(diff)
			}
			if len(before.tenants) != len(after.tenants) || before.tenants[0].on(0) != after.tenants[0].on(0) {
				t.Errorf("a refused event changed the state from %+v to %+v", before, after)
			}
		})
	}
}

func TestLeaseRules(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*LeaseRules)
		want   string
	}{
		{"the default", func(*LeaseRules) {}, ""},
		{"no GPU", func(r *LeaseRules) { r.Memory = nil }, "read lease rules: 0 GPUs: leases are for 1 to 64 of them"},
		{"short lease", func(r *LeaseRules) { r.Lease = ms }, "read lease rules: lease 1ms: outside 20ms to 50ms"},
		{"endless drain", func(r *LeaseRules) { r.DrainTimeout = 0 }, "read lease rules: drain timeout 0s, swap timeout 30s: a tenant that hangs would stop the others; use more than 0"},
		{"forgiving", func(r *LeaseRules) { r.MaxDebt = time.Second },
			"read lease rules: max debt 1s: less than the drain timeout of 2s, so that who hangs would not pay for it; use at least that"},
	} {
		rules := DefaultLeaseRules(gi)
		tt.change(&rules)
		got := ""
		if _, err := NewLeases(rules); err != nil {
			got = err.Error()
		}
		if got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

// Two tenants of 60 % each, both busy, and a small one: swaps cost at most a tenth each way, and nobody is left out.
func TestOvercommit(t *testing.T) {
	m := newMachine(t, 1, DefaultLeaseRules(100*gi))
	for i, bytes := range []node.Bytes{60 * gi, 60 * gi, 5 * gi} {
		g := m.join(tenantOn(fmt.Sprint("t", i), 30, 0), kernels(5*ms), i+1)
		m.ask(g, i+1, 0, bytes)
		m.work(g, true)
	}
	m.run(120 * time.Second)
	var total float64
	for _, g := range m.guests {
		got := g.used(20*time.Second, 120*time.Second).Seconds() / 100
		total += got
		if got < 0.28 {
			t.Errorf("%s got %.3f of the time, want about a third", g.ID, got)
		}
	}
	if total < 0.9 {
		t.Errorf("the GPU was used for %.3f of the time, want at least 0.9", total)
	}
}

// An idle notebook's memory leaves for one that works, and comes back when it works again.
func TestIdleMemoryLeaves(t *testing.T) {
	m := newMachine(t, 1, DefaultLeaseRules(80*gi))
	idle, busy := m.join(tenantOn("idle", 50, 0), kernels(ms), 1), m.join(tenantOn("busy", 50, 0), kernels(ms), 2)
	m.ask(idle, 1, 0, 60*gi)
	m.run(5 * time.Second)
	m.ask(busy, 2, 0, 60*gi)
	m.work(busy, true)
	m.run(2 * time.Second) // 40 GiB out and in at 50 GB/s take 0.9 s each, mostly at once
	if !busy.open {
		t.Error("the busy one waits for memory that nobody uses")
	}
	m.work(idle, true)
	m.run(40 * time.Second)
	if idle.opens < 2 || idle.used(0, m.now) < 5*time.Second {
		t.Errorf("the notebook woke up and got %s", idle.used(0, m.now))
	}
}

// Memory that does not move is given up, and others make the room.
func TestStuckSwap(t *testing.T) {
	rules := DefaultLeaseRules(10 * gi)
	rules.SwapTimeout = time.Second
	m := newMachine(t, 1, rules)
	hung := m.join(tenantOn("hung", 10, 0), kernels(ms), 1)
	m.ask(hung, 1, 0, 4*gi)
	m.run(time.Second)
	fine := m.join(tenantOn("fine", 10, 0), kernels(ms), 2)
	m.ask(fine, 2, 0, 4*gi)
	m.run(time.Second)
	late := m.join(tenantOn("late", 10, 0), kernels(ms), 3)
	hung.frozen = true
	m.ask(late, 3, 0, 5*gi)
	m.work(late, true)
	m.run(5 * time.Second)
	if !hung.marked || fine.marked || !late.open {
		t.Errorf("hung is marked: %v, fine is: %v, late runs: %v", hung.marked, fine.marked, late.open)
	}
	hung.frozen = false
	m.run(time.Second)
	if hung.marked {
		t.Error("still marked although it moved its memory")
	}
}

// opens plays events, as script does, and says for which of them the tenant's gate opened.
func opens(t *testing.T, tenant string, events ...LeaseEvent) (opened []int) {
	t.Helper()
	l, err := NewLeases(DefaultLeaseRules(10 * gi))
	if err != nil {
		t.Fatal(err)
	}
	for i, e := range events {
		var decisions []Decision
		l, decisions = Step(l, e, time.Duration(i+1)*time.Second)
		for _, d := range decisions {
			if open, ok := d.(OpenGate); ok && open.Tenant == tenant {
				opened = append(opened, i)
			}
		}
	}
	return opened
}

// A gate opens only when where its tenant's memory is is known, and none of it is about to move.
func TestGateAwaitsMemory(t *testing.T) {
	a := LeaseTenant{ID: "a", GPUs: []int{0}, Cores: 10, Class: share.Guaranteed, Moves: true}
	b := LeaseTenant{ID: "b", GPUs: []int{0}, Cores: 10, Class: share.Guaranteed, Moves: true}
	ordered := []LeaseEvent{ // a has 8 GiB and is idle; b wants 6, so 4 of a's are ordered out
		TenantJoined{Tenant: a}, ProcessJoined{"a", 1}, MemoryIs{"a", 1, 0, 0, 8 * gi, true, false}, MemoryIs{"a", 1, 0, 8 * gi, 0, false, false},
		TenantJoined{Tenant: b}, ProcessJoined{"b", 2}, MemoryIs{"b", 2, 0, 0, 6 * gi, true, false}, Drained{Tenant: "a", Process: 1, Lease: 1},
	}
	for _, row := range []struct {
		name   string
		events []LeaseEvent
		want   []int
	}{
		{"alone, and nothing heard of a process that lives", []LeaseEvent{TenantJoined{a, []int{1}}, WorkBegan{"a", 1}}, nil},
		{"until it speaks", []LeaseEvent{TenantJoined{a, []int{1}}, WorkBegan{"a", 1}, MemoryIs{"a", 1, 0, gi, 0, false, false}}, []int{2}},
		{"or what is out is in", []LeaseEvent{TenantJoined{a, []int{1}}, WorkBegan{"a", 1}, MemoryIs{"a", 1, 0, gi, gi, false, false}, MemoryIs{"a", 1, 0, 2 * gi, 0, false, false}}, []int{3}},
		{"or it dies", []LeaseEvent{TenantJoined{a, []int{1, 2}}, WorkBegan{"a", 1}, MemoryIs{"a", 1, 0, gi, 0, false, false}, ProcessEnded{"a", 2}}, []int{3}},
		{"a process falls silent", []LeaseEvent{TenantJoined{Tenant: a}, ProcessJoined{"a", 1}, MemoryIs{"a", 1, 0, gi, 0, false, false}, ProcessSilent{"a", 1}, WorkBegan{"a", 1}}, []int{0}},
		{"what was ordered out is freed, and the order is not carried out yet",
			inTurn(ordered, []LeaseEvent{MemoryIs{"a", 1, 0, 4 * gi, 0, false, true}, WorkBegan{"a", 1}}), []int{0}},
		{"until it is, whatever it moved", inTurn(ordered, []LeaseEvent{MemoryIs{"a", 1, 0, 4 * gi, 0, false, true}, WorkBegan{"a", 1}, MemoryIs{"a", 1, 0, 4 * gi, 0, false, false}}), []int{0, 10}},
	} {
		if diff := cmp.Diff(row.want, opens(t, "a", row.events...)); diff != "" {
			t.Errorf("%s: the gate opened at events (-want +got)\n%s", row.name, diff)
		}
	}
}

// An allocation that waits for the memory of a tenant which does not move it is refused, and not left to wait for ever.
func TestStuckRefuses(t *testing.T) {
	rules := DefaultLeaseRules(10 * gi)
	rules.SwapTimeout = time.Second
	m := newMachine(t, 1, rules)
	hung, waits := m.join(tenantOn("hung", 10, 0), kernels(ms), 1), m.join(tenantOn("waits", 10, 0), kernels(ms), 2)
	m.ask(hung, 1, 0, 8*gi)
	m.run(time.Second)
	hung.frozen = true
	m.ask(waits, 2, 0, 5*gi)
	m.run(5 * time.Second)
	if len(m.refused) != 1 || m.refused[0].Event.(MemoryIs).Tenant != "waits" {
		t.Errorf("refused: %+v", m.refused)
	}
}
