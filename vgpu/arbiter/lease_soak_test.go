package arbiter

import (
	"fmt"
	"math/rand/v2"
	"os"
	"reflect"
	"testing"
	"time"

	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

// TestLeaseSoak does things at random to GPUs and their tenants; after every step the machine checks what must always hold.
// KERF_SOAK=1 takes a million steps and more.
func TestLeaseSoak(t *testing.T) {
	want := 60_000
	if os.Getenv("KERF_SOAK") != "" {
		want = 1_200_000
	}
	steps := 0
	for seed := uint64(0); steps < want; seed++ {
		steps += riot(t, seed)
	}
	t.Logf("%d steps", steps)
}

// riot is one machine's life: a time of random events, a calm in which everyone must get something, and an end without rest.
func riot(t *testing.T, seed uint64) int {
	rules := DefaultLeaseRules(10*gi, 10*gi, 10*gi)
	rules.SwapTimeout = 5 * time.Second
	m := newMachine(t, seed, rules)
	m.faulty = true
	m.slow = seed%2 == 1
	pids := 0
	for range 150 {
		m.disturb(&pids)
		m.run(time.Duration(m.rng.Int64N(int64(60 * ms))))
	}
	m.calm(t, seed, &pids)
	for len(m.guests) > 0 {
		m.leave(m.guests[m.rng.IntN(len(m.guests))])
	}
	m.run(time.Minute)
	if len(m.leases.tenants) != 0 || m.timer != 0 {
		t.Fatalf("seed %d: left over: %+v", seed, m.leases)
	}
	return m.steps
}

// calm heals everyone, gives all the same class and work, and checks that nobody is left out.
func (m *machine) calm(t *testing.T, seed uint64, pids *int) {
	for _, g := range m.guests {
		g.frozen = false
		g.Class, g.Cores, g.Capped = share.Guaranteed, 10, false
		g.kernel = kernels(5 * ms)
		m.step(TenantChanged{g.LeaseTenant})
		if len(g.pids) == 0 {
			*pids++
			m.attach(g, *pids)
		}
		m.work(g, true)
	}
	m.run(30 * time.Second) // debts
	from := m.now
	m.run(30 * time.Second)
	for _, g := range m.guests {
		if g.used(from, m.now) < 300*ms {
			t.Fatalf("seed %d: %s got %s of %s: starved; state %+v", seed, g.ID, g.used(from, m.now), m.now-from, m.leases)
		}
	}
}

// disturb does one thing that may happen.
func (m *machine) disturb(pids *int) {
	r := m.rng
	if len(m.guests) == 0 || (len(m.guests) < 8 && r.IntN(8) == 0) {
		*pids++
		if g := m.join(m.anyTenant(fmt.Sprint("t", *pids)), anyKernels, *pids); g != nil {
			g.ahead, g.liar = time.Duration(r.IntN(3))*2*ms, r.IntN(8) == 0
		}
		return
	}
	g := m.guests[r.IntN(len(m.guests))]
	switch r.IntN(13) {
	case 0:
		*pids++
		m.attach(g, *pids)
	case 1:
		if len(g.pids) > 0 {
			m.kill(g, g.pids[r.IntN(len(g.pids))])
		}
	case 2:
		if r.IntN(4) == 0 {
			m.leave(g)
		}
	case 3:
		changed := m.anyTenant(g.ID)
		changed.GPUs, changed.Moves = g.GPUs, g.Moves
		m.step(TenantChanged{changed})
		if now, _ := m.leases.find(g.ID); now != nil {
			g.LeaseTenant = now.LeaseTenant
		}
	case 4:
		g.frozen = r.IntN(6) == 0
	case 5, 6, 7:
		m.work(g, true)
	case 8:
		m.work(g, false)
	case 9:
		m.hush(g)
	default:
		m.remember(g)
	}
}

// remember lets a process allocate or free.
func (m *machine) remember(g *guest) {
	if len(g.pids) == 0 {
		return
	}
	pid, gpu := g.pids[m.rng.IntN(len(g.pids))], g.GPUs[m.rng.IntN(len(g.GPUs))]
	bytes := node.Bytes(1+m.rng.IntN(3000)) * node.MiB
	if m.rng.IntN(3) > 0 {
		m.ask(g, pid, gpu, bytes)
	} else {
		m.free(g, pid, gpu, bytes, m.rng.IntN(2) == 0)
	}
}

func (m *machine) anyTenant(id string) LeaseTenant {
	r := m.rng
	tenant := LeaseTenant{ID: id, GPUs: r.Perm(3)[:1+r.IntN(5)/2%3], Cores: node.Percent(10 * r.IntN(7)), Class: share.Classes[r.IntN(3)]}
	tenant.Capped = tenant.Cores > 0 && r.IntN(3) == 0
	tenant.Moves = r.IntN(2) == 0
	if r.IntN(2) == 0 {
		tenant.MinResident = node.Bytes(r.IntN(1500)) * node.MiB
	}
	return tenant
}

// anyKernels are mostly short; one in two thousand is longer than the drain timeout.
func anyKernels(r *rand.Rand) time.Duration {
	if r.IntN(2000) == 0 {
		return 3 * time.Second
	}
	return 100*time.Microsecond + time.Duration(r.Int64N(int64(5*ms)))
}

// FuzzLeases reads events from bytes, sensible or not, with time standing still, passing or going back.
func FuzzLeases(f *testing.F) {
	f.Add([]byte{0, 0, 3, 0, 5, 0, 11, 7, 0, 1, 3, 1, 5, 1, 9, 40, 8, 0})
	f.Add([]byte{0, 7, 3, 7, 10, 7, 13, 7, 5, 7, 0, 6, 3, 6, 5, 6, 9, 255, 8, 1, 4, 7, 2, 6})
	f.Fuzz(func(t *testing.T, script []byte) {
		m := newMachine(t, 0, DefaultLeaseRules(10*gi, 10*gi))
		m.lies = true
		for i := 0; i+1 < len(script) && i < 400; i += 2 {
			e := fuzzEvent(m, script[i], script[i+1])
			if script[i]&0x80 != 0 {
				m.now += time.Duration(script[i+1]) * ms
			}
			again, _ := Step(m.leases, e, m.now)
			before := m.leases.clone()
			next, decisions := Step(m.leases, e, m.now)
			if !reflect.DeepEqual(again, next) || !reflect.DeepEqual(before, m.leases) {
				t.Fatalf("%T%+v: Step is not a function of its arguments", e, e)
			}
			m.check(e, next, decisions)
			m.leases = next
			m.follow(decisions)
		}
	})
}

// follow keeps what check needs to know; the script answers the decisions, or not.
func (m *machine) follow(decisions []Decision) {
	for _, d := range decisions {
		switch d := d.(type) {
		case SetTimer:
			m.timer = d.At
		case OpenGate:
			m.guest(d.Tenant).open = true
		case CloseGate:
			m.guest(d.Tenant).open = false
		}
	}
}

func fuzzEvent(m *machine, verb, b byte) LeaseEvent {
	id, pid, gpu, bytes := fmt.Sprint("t", b&3), int(b>>2&1), int(b>>3&1), node.Bytes(b)*100*node.MiB
	tenant := LeaseTenant{ID: id, GPUs: [][]int{{0}, {1}, {0, 1}, {1, 0}}[b>>2&3], Cores: node.Percent(b >> 4 * 5), Capped: b&0x40 != 0, Class: share.Classes[b>>4%3]}
	if m.guest(id) == nil {
		m.guests = append(m.guests, &guest{LeaseTenant: LeaseTenant{ID: id}})
	}
	lease := uint64(0)
	if t, err := m.leases.find(id); err == nil {
		lease = t.lease
	}
	return []LeaseEvent{
		TenantJoined{Tenant: tenant}, TenantChanged{tenant}, TenantLeft{id}, ProcessJoined{id, pid}, ProcessEnded{id, pid}, WorkBegan{id, pid}, WorkEnded{id, pid},
		Drained{id, pid, lease, m.now - time.Duration(b)*ms, time.Duration(b>>6) * 10 * ms, b&0x10 != 0}, TimerFired{}, MemoryIs{id, pid, gpu, 0, bytes, true, true},
		MemoryIs{id, pid, gpu, bytes, 0, false, b&0x20 != 0}, MemoryIs{id, pid, gpu, bytes / 2, bytes / 2, false, true}, RoomIs{gpu, bytes},
	}[int(verb&0x7f)%13]
}
