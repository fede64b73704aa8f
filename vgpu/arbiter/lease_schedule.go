package arbiter

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// before orders those who wait: by rank, then who is owed more, then who has waited longer. Who holds a lease loses ties.
func before(a, b *tenancy) bool {
	return cmp.Or(
		cmp.Compare(a.rank(), b.rank()),
		cmp.Compare(b.credit, a.credit),
		cmp.Compare(held(a), held(b)),
		cmp.Compare(a.since, b.since),
		cmp.Compare(a.ID, b.ID),
	) < 0
}

func held(t *tenancy) int {
	if t.holds() {
		return 1
	}
	return 0
}

// schedule ends the leases that must end and grants those that can begin.
func (s *step) schedule() {
	for i := range s.tenants {
		if t := &s.tenants[i]; t.phase == running && t.capped() && (t.resting || !t.working()) {
			s.end(t) // a gate left open to an idle tenant would let its next work pass uncounted
		}
	}
	var reserved gpuSet
	for _, t := range s.queue() {
		s.settleMemory(t)
		if t.phase == closed && t.working() && t.complete() && !t.resting && !t.gpus.overlaps(reserved) && s.turn(t) {
			reserved |= t.gpus
		}
	}
	for i := range s.tenants {
		t := &s.tenants[i]
		switch {
		case t.phase == running && t.until <= s.clock && s.contended(t):
			t.until = s.clock + s.lead(t) // nobody who waits goes first
		case t.phase == closed && s.alone(t):
			s.grant(t)
		}
	}
}

// queue is everyone who wants something, in order.
func (s *step) queue() (queue []*tenancy) {
	for i := range s.tenants {
		if s.tenants[i].busy() || s.tenants[i].arriving {
			queue = append(queue, &s.tenants[i])
		}
	}
	slices.SortFunc(queue, func(a, b *tenancy) int {
		if before(a, b) {
			return -1
		}
		return 1
	})
	return queue
}

// turn grants w a lease if all of its GPUs are free, or ends the leases in its way if it is its turn. It says whether w has
// its GPUs or is to have them next, so that they are kept for it: or gangs would never find all of theirs free.
func (s *step) turn(w *tenancy) bool {
	inTheWay := s.holders(w)
	var contested gpuSet
	for _, h := range inTheWay {
		if !s.yields(h, w) {
			contested |= h.gpus & w.gpus
		}
	}
	for _, h := range inTheWay {
		// With one of its GPUs to be had, a gang that is owed more does not wait for the others' leases to end.
		if !s.yields(h, w) && (contested == w.gpus || !before(w, h)) {
			return false
		}
	}
	for _, h := range inTheWay {
		s.end(h)
	}
	if len(s.holders(w)) == 0 {
		s.grant(w)
	}
	return true
}

func (s *step) holders(w *tenancy) (holders []*tenancy) {
	for i := range s.tenants {
		if h := &s.tenants[i]; h.holds() && h.gpus.overlaps(w.gpus) {
			holders = append(holders, h)
		}
	}
	return holders
}

// yields says that a holder's lease ends for w, or is ending.
func (s *step) yields(h, w *tenancy) bool {
	return h.phase == draining || !h.working() || w.rank() < h.rank() || (h.until <= s.clock && before(w, h))
}

// alone says that nobody else has anything to do with a tenant's GPUs: its gate opens before it asks.
func (s *step) alone(t *tenancy) bool {
	for i := range s.tenants {
		if o := &s.tenants[i]; o != t && o.gpus.overlaps(t.gpus) {
			return false
		}
	}
	return !t.capped() && t.complete()
}

// contended says that somebody waits for whom a holder's lease would end.
func (s *step) contended(h *tenancy) bool {
	for i := range s.tenants {
		if s.waitsFor(&s.tenants[i], h) {
			return true
		}
	}
	return false
}

func (s *step) waitsFor(w, h *tenancy) bool {
	return w.phase == closed && w.busy() && !w.resting && w.rank() <= h.rank() && w.gpus.overlaps(h.gpus)
}

// shortestLead is the least by which a lease is prolonged: it wakes kerfd, and nothing else comes of it.
const shortestLead = 2 * time.Millisecond

// lead is about how long a holder goes on before somebody who waits is owed more, at most a lease. Prolonged by whole leases,
// two equal tenants could take turns of two leases for good.
func (s *step) lead(h *tenancy) time.Duration {
	lead := s.rules.Lease
	for i := range s.tenants {
		if w := &s.tenants[i]; s.waitsFor(w, h) && w.rank() == h.rank() {
			lead = min(lead, h.credit-w.credit)
		}
	}
	return max(lead, shortestLead)
}

func (s *step) grant(t *tenancy) {
	s.last++
	t.lease, t.phase = s.last, running
	t.since, t.until = s.clock, s.clock+s.rules.Lease
	t.paid, t.worked, t.unmeasured, t.loose = 0, 0, false, false
	s.decide(OpenGate{Tenant: t.ID, Lease: t.lease})
}

// end shuts the gate of a tenant. Its GPUs are free once all of its processes have reported.
func (s *step) end(t *tenancy) {
	if t.phase != running {
		return
	}
	t.phase, t.since, t.until, t.ended = draining, s.clock, s.clock+s.rules.DrainTimeout, t.since
	s.decide(CloseGate{Tenant: t.ID})
	if len(t.processes) > 0 {
		s.decide(StartDrain{Tenant: t.ID, Lease: t.lease})
	}
	for i := range t.processes {
		t.processes[i].drained = false
	}
	s.endDrain(t)
}

// endDrain frees the GPUs of a tenant all of whose processes have reported.
func (s *step) endDrain(t *tenancy) {
	if (t.phase != draining && t.phase != straggling) || slices.ContainsFunc(t.processes, func(p process) bool { return !p.drained }) {
		return
	}
	s.giveBack(t)
	t.stuck = t.stuck && t.moving()
	if t.phase == straggling && !t.stuck {
		s.decide(Mark{Tenant: t.ID, NonYielding: false})
	}
	t.phase, t.since = closed, s.clock
	s.rested(t, true)
}

// rested makes a tenant that has nothing left to do give back what it was owed: time is not saved up.
func (s *step) rested(t *tenancy, wasBusy bool) {
	if wasBusy && !t.busy() {
		t.credit = min(t.credit, 0)
		t.allowance = min(t.allowance, s.portion(t))
	}
}

// expire gives up on those who did not drain or swap in time.
func (s *step) expire() {
	for i := range s.tenants {
		t := &s.tenants[i]
		if t.phase == draining && t.until <= s.clock {
			t.phase = straggling
			s.decide(Mark{Tenant: t.ID, NonYielding: true})
			s.decide(Report{t.ID, fmt.Sprintf("has not drained within %s; others go on beside it, and it pays for the time until it does", s.rules.DrainTimeout)})
		}
		late := t.anyPages(func(p *pages) bool { return p.patience > 0 && p.patience <= s.clock })
		if !t.stuck && (late || s.keeps(t) && t.since+s.rules.SwapTimeout <= s.clock) {
			t.stuck = true
			s.decide(Mark{Tenant: t.ID, NonYielding: true})
			s.decide(Report{t.ID, fmt.Sprintf("has not moved its memory within %s; nothing more of it is moved until it has", s.rules.SwapTimeout)})
			s.refuseAskers(t)
		}
	}
}

// keeps says that a tenant has memory that cannot leave, since its work does not end.
func (s *step) keeps(t *tenancy) bool {
	return t.phase == straggling && t.anyPages(func(p *pages) bool { return p.resident > 0 })
}

// grain is the shortest time for which a timer is set. Rounding may leave a few nanoseconds to wait for, over and over.
const grain = 10 * time.Microsecond

// setTimer asks to be woken when something is due although nothing happens.
func (s *step) setTimer() {
	next := time.Duration(0)
	due := func(at time.Duration) {
		if next == 0 || at < next {
			next = max(at, s.clock+grain)
		}
	}
	for i := range s.tenants {
		t := &s.tenants[i]
		s.dueGate(t, due)
		s.dueMemory(t, due)
	}
	if next != s.timer {
		s.timer = next
		s.decide(SetTimer{At: next})
	}
}

func (s *step) dueGate(t *tenancy, due func(time.Duration)) {
	switch {
	case t.phase == draining:
		due(t.until)
	case !t.stuck && s.keeps(t):
		due(t.since + s.rules.SwapTimeout)
	case t.phase == running && s.contended(t):
		due(t.until)
	}
	switch {
	case t.phase == running && t.capped():
		due(s.clock + t.allowance*100/time.Duration(100-t.Cores)) // it earns while it spends
	case t.resting && t.busy():
		wait := (s.portion(t) - t.allowance) * 100 / time.Duration(t.Cores)
		due(s.clock + wait)
	}
}
