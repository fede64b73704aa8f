package arbiter

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/kerf-gpu/kerf/internal/node"
)

// LeaseEvent is something that happened. Events that speak of a tenant or a process that is gone are refused, and change
// nothing: reports and deaths cross on their way.
type LeaseEvent interface{ apply(s *step) error }

type (
	// TenantJoined says that a share is in force. Processes live already, and nothing has been heard of them yet.
	TenantJoined struct {
		Tenant    LeaseTenant
		Processes []int
	}

	// TenantChanged says that weight, limits or class are others now. It joined before.
	TenantChanged struct{ Tenant LeaseTenant }

	// TenantLeft says that the share has ended, and whatever it had.
	TenantLeft struct{ Tenant string }

	// ProcessJoined says that a process attached to the share. Its gate is the share's.
	ProcessJoined struct {
		Tenant  string
		Process int
	}

	// ProcessEnded says that it died, left or called exec. Its work and memory are gone.
	ProcessEnded struct {
		Tenant  string
		Process int
	}

	// ProcessSilent says that nothing is heard of a process that lives. What it has counts, and is not to be relied on until it says so
	// again; a drain of its tenant waits for it.
	ProcessSilent struct {
		Tenant  string
		Process int
	}

	// WorkBegan says that it waits at a closed gate, or was seen to submit through an open one.
	WorkBegan struct {
		Tenant  string
		Process int
	}

	// WorkEnded says that it has submitted nothing for a while, and all that it submitted is done.
	WorkEnded struct {
		Tenant  string
		Process int
	}

	// Drained answers StartDrain: the work of the process ended at At, which may be before its gate shut. Worked is for how
	// long it had work during the lease; 0: it cannot tell. Loose says that it could submit without bound for a part of the lease,
	// since nobody else was there.
	Drained struct {
		Tenant  string
		Process int
		Lease   uint64
		At      time.Duration
		Worked  time.Duration
		Loose   bool
	}

	// TimerFired says that the time of SetTimer has come.
	TimerFired struct{}

	// MemoryIs says where the swappable memory of a process is, in whole pieces. It answers Evict and BringIn too, perhaps in
	// parts: each part that is out makes room at once. Refuse answers what is Asking and can never be in; nothing has changed then.
	MemoryIs struct {
		Tenant   string
		Process  int
		GPU      int
		Resident node.Bytes
		Absent   node.Bytes // out, or not made yet
		Asking   bool       // a part of Absent is asked for, and somebody waits for it
		Moving   bool       // an Evict or BringIn is still being carried out; without it, what has not moved will not
	}

	// RoomIs says how much of a GPU's memory is for what can be swapped. It was what the rules said before.
	RoomIs struct {
		GPU   int
		Bytes node.Bytes
	}
)

func (e TenantJoined) apply(s *step) error {
	if _, err := s.find(e.Tenant.ID); err == nil {
		return fmt.Errorf("tenant %q: has joined before", e.Tenant.ID)
	}
	if err := s.admit(e.Tenant); err != nil {
		return err
	}
	t := tenancy{LeaseTenant: e.Tenant, gpus: setOf(e.Tenant.GPUs), since: s.clock}
	t.allowance = s.portion(&t)
	for _, id := range e.Processes {
		t.processes = append(t.processes, process{id: id, drained: true, memory: make([]pages, len(s.rules.Memory))})
	}
	at, _ := slices.BinarySearchFunc(s.tenants, t.ID, func(t tenancy, id string) int { return cmp.Compare(t.ID, id) })
	s.tenants = slices.Insert(s.tenants, at, t)
	return nil
}

func (e TenantChanged) apply(s *step) error {
	t, err := s.find(e.Tenant.ID)
	if err != nil {
		return err
	}
	if setOf(e.Tenant.GPUs) != t.gpus {
		return fmt.Errorf("tenant %q, GPUs %v: %w", t.ID, e.Tenant.GPUs, errGroup)
	}
	if err := s.admit(e.Tenant); err != nil {
		return err
	}
	t.LeaseTenant = e.Tenant
	t.resting = t.resting && t.capped()
	return nil
}

func (e TenantLeft) apply(s *step) error {
	t, err := s.find(e.Tenant)
	if err != nil {
		return err
	}
	if t.phase == running {
		s.decide(CloseGate{Tenant: t.ID})
	}
	s.tenants = slices.DeleteFunc(s.tenants, func(t tenancy) bool { return t.ID == e.Tenant })
	return nil
}

func (e ProcessJoined) apply(s *step) error {
	t, err := s.find(e.Tenant)
	if err != nil {
		return err
	}
	if t.process(e.Process) != nil {
		return fmt.Errorf("process %d of tenant %q: has joined before", e.Process, e.Tenant)
	}
	// The gate is shut during a drain, so that a new process has nothing to drain.
	t.processes = append(t.processes, process{id: e.Process, drained: true, memory: make([]pages, len(s.rules.Memory))})
	return nil
}

func (e ProcessEnded) apply(s *step) error {
	t, _, err := s.findProcess(e.Tenant, e.Process)
	if err != nil {
		return err
	}
	wasBusy := t.busy()
	t.unmeasured = true // what it did in this lease is not known
	t.processes = slices.DeleteFunc(t.processes, func(p process) bool { return p.id == e.Process })
	s.rested(t, wasBusy)
	s.endDrain(t)
	return nil
}

func (e ProcessSilent) apply(s *step) error {
	_, p, err := s.findProcess(e.Tenant, e.Process)
	if err != nil {
		return err
	}
	for i := range p.memory {
		p.memory[i].settled()
		p.memory[i].known = false
	}
	return nil
}

func (e WorkBegan) apply(s *step) error {
	t, p, err := s.findProcess(e.Tenant, e.Process)
	if err != nil {
		return err
	}
	if !t.busy() && t.phase == closed {
		t.since = s.clock
	}
	p.working = true
	return nil
}

func (e WorkEnded) apply(s *step) error {
	t, p, err := s.findProcess(e.Tenant, e.Process)
	if err != nil {
		return err
	}
	wasBusy := t.busy()
	if p.working {
		t.calm = s.clock + minStay
	}
	p.working = false
	s.rested(t, wasBusy)
	return nil
}

func (e Drained) apply(s *step) error {
	t, p, err := s.findProcess(e.Tenant, e.Process)
	if err != nil {
		return err
	}
	if e.Lease != t.lease || (t.phase != draining && t.phase != straggling) {
		return fmt.Errorf("drained report of tenant %q for lease %d: that is not being drained; it came late", e.Tenant, e.Lease)
	}
	if !p.drained {
		t.worked += max(e.Worked, 0)
		t.unmeasured = t.unmeasured || e.Worked <= 0
	}
	t.loose = t.loose || e.Loose
	p.drained = true
	t.ended = max(t.ended, min(e.At, s.clock))
	s.endDrain(t)
	return nil
}

func (TimerFired) apply(s *step) error {
	s.timer = 0
	return nil
}

func (e MemoryIs) apply(s *step) error {
	t, p, err := s.findProcess(e.Tenant, e.Process)
	if err != nil {
		return err
	}
	if !t.gpus.has(e.GPU) {
		return fmt.Errorf("GPU %d: not one of tenant %q, which has %v", e.GPU, t.ID, t.GPUs)
	}
	m := &p.memory[e.GPU]
	others := t.on(e.GPU).total - m.total
	total := e.Resident + e.Absent
	if room := s.roomFor(t.LeaseTenant, e.GPU); e.Asking && total > m.total && total > room-min(others, room) {
		return fmt.Errorf("memory %s: tenant %q has %s on GPU %d, and beside what others keep resident there is room for %s; free some, or lower their minResident",
			total-m.total, t.ID, others+m.total, e.GPU, room)
	}
	if !t.busy() && t.phase == closed {
		t.since = s.clock
	}
	m.report(e.Resident, e.Absent)
	if !e.Moving && m.ordered && !m.settled() {
		m.rest = s.clock + moveAgain
	}
	t.asking = t.asking || e.Asking
	if t.stuck && !t.moving() {
		t.stuck = false
		s.decide(Mark{Tenant: t.ID, NonYielding: false})
	}
	return nil
}

func (e RoomIs) apply(s *step) error {
	if e.GPU < 0 || e.GPU >= len(s.memory) {
		return fmt.Errorf("GPU %d: there are %d, counted from 0", e.GPU, len(s.memory))
	}
	s.memory[e.GPU] = e.Bytes
	return nil
}
