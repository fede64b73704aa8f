package arbiter

import (
	"fmt"

	"github.com/kerf-gpu/kerf/internal/node"
)

// check holds whatever happens.
func (m *machine) check(e LeaseEvent, next Leases, decisions []Decision) {
	fail := func(format string, args ...any) {
		m.t.Helper()
		m.t.Fatalf("at %s, step %d, after %T%+v: %s\ndecisions %+v\nstate %+v", m.now, m.steps, e, e, fmt.Sprintf(format, args...), decisions, next)
	}
	s := step{Leases: next}
	for gpu, memory := range next.memory {
		var used node.Bytes
		var holder string
		for i := range next.tenants {
			t := &next.tenants[i]
			on := t.on(gpu)
			used += on.resident + on.in
			if t.holds() && t.gpus.has(gpu) {
				if holder != "" {
					fail("GPU %d is held by %s and %s", gpu, holder, t.ID)
				}
				holder = t.ID
			}
		}
		if used > memory && !m.lies {
			fail("GPU %d has %d bytes, %d are used", gpu, memory, used)
		}
	}
	for i := range next.tenants {
		m.checkTenant(&s, &next.tenants[i], fail)
	}
	m.checkDecisions(next, decisions, fail)
}

func (m *machine) checkTenant(s *step, t *tenancy, fail func(string, ...any)) {
	for _, p := range t.processes {
		for _, mem := range p.memory {
			if mem.resident+mem.in > mem.total && !mem.ordered || mem.out > mem.resident {
				fail("%s: memory %+v does not add up", t.ID, mem)
			}
		}
	}
	if t.phase == running && s.timer == 0 && t.capped() {
		fail("%s: nothing will end its lease", t.ID)
	}
	if !t.working() || t.phase != closed {
		return
	}
	held := false
	for i := range s.tenants {
		o := &s.tenants[i]
		held = held || o.gpus.overlaps(t.gpus) && o.holds()
		one := len(o.GPUs) == 1 && len(t.GPUs) == 1 && o.gpus == t.gpus
		if one && o.phase == running && o.rank() > t.rank() && t.complete() && !t.resting {
			fail("%s waits for %s, which is below it", t.ID, o.ID)
		}
		if one && o.phase == running && !o.working() && t.complete() && !t.resting {
			fail("%s waits for %s, which is idle", t.ID, o.ID)
		}
	}
	if !held && s.timer == 0 && !t.stuck && !t.unheard() {
		fail("%s has work, nobody holds its GPUs, and nothing is due: a lost wake-up", t.ID)
	}
}

func (m *machine) checkDecisions(next Leases, decisions []Decision, fail func(string, ...any)) {
	timer := m.timer
	for _, d := range decisions {
		switch d := d.(type) {
		case SetTimer:
			if d.At != 0 && d.At <= m.now {
				fail("the timer is set in the past")
			}
			timer = d.At
		case Evict:
			t, _ := next.find(d.Tenant)
			if on := t.on(d.GPU); on.resident-on.out < t.MinResident {
				fail("%s is left %d of its %d bytes", d.Tenant, on.resident-on.out, t.MinResident)
			}
			if t.phase != closed {
				fail("memory of %s leaves under its work", d.Tenant)
			}
		case OpenGate:
			if g := m.guest(d.Tenant); g.open {
				fail("the gate of %s opens twice", d.Tenant)
			}
		}
	}
	if timer != next.timer {
		fail("the timer is at %s and believed at %s", timer, next.timer)
	}
}
