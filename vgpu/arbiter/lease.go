package arbiter

// Leases and residency: who may use a GPU now, and whose memory is on it. lessor.go gives it events and carries out what it
// decides.
//
// A tenant is a container, which is a share; it may have several processes and several GPUs. It holds all of its GPUs or none,
// so there is no order of locking in which two gangs could wait for each other. A lease is the time from opening its gate to
// the moment when the last of its processes has said that its work ended; what runs over is charged like the rest.
//
//	credit     the time that a tenant is owed, as against the others who want the same GPUs; negative, it is debt
//	allowance  the time that a tenant which may not burst has left
//	rank       its class: a higher rank with work goes first, always
//	floor      a fiftieth of a GPU's time, for all tenants of a class that guaranteed themselves none
//	straggler  a tenant whose drain timed out. The driver slices time between it and the next holder, so each pays its part
//	stay       how long memory that was brought in is left alone, while it is used: ten times what bringing it in took
//
// The deficit round robin is by time and not by turns: while work waits, everyone who has some earns its part of the time that
// passes, the holder pays for it, and whoever is owed most is next. Equal tenants so take turns, and a heavy one keeps its
// gate open over several leases without a drain between them. Time that nobody contends for costs nothing.
//
// Traps. Memory is counted as absent until MemoryIs says that it came in, and as present until MemoryIs says that it went.
// Only one timer exists: any event after its time does what was due. Bytes that can never leave (IPC, RDMA, multicast) are
// for the caller to add to MinResident.

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/kerf-gpu/kerf/internal/node"
)

const (
	minLease = 20 * time.Millisecond // shorter, and the drain between two leases costs more than 1 %
	maxLease = 50 * time.Millisecond // longer, and a second is too short to be fair in

	// stayFactor bounds what swapping can cost: a tenth of the time, each way.
	stayFactor = 10

	// minStay is for memory that is quickly moved: unmapping it makes the GPU wait, however little it is.
	minStay = 5 * minLease

	// moveAgain is when a process that could not move its memory is asked again: for want of host memory, or because the card was
	// fuller than was known. Both are known better a second later.
	moveAgain = 250 * time.Millisecond

	maxLeaseGPUs = 64
)

// LeaseRules are the numbers of a node. They do not change while it runs.
type LeaseRules struct {
	Memory       []node.Bytes  // what tenants may have resident on each GPU, until RoomIs; a GPU is named by its place here
	Lease        time.Duration // 20 to 50 ms
	DrainTimeout time.Duration // after it others go on beside a tenant that has not drained
	SwapTimeout  time.Duration // after it memory that was to move is taken as stuck
	MaxDebt      time.Duration // more than this is forgiven, and more credit than this is lost
}

// DefaultLeaseRules are the rules for GPUs with so much memory. With kernels of 5 ms, a lease of 20 ms keeps the worst second
// of eight tenants within 3 % of their shares; one of 25 ms does not.
func DefaultLeaseRules(memory ...node.Bytes) LeaseRules {
	return LeaseRules{Memory: memory, Lease: minLease, DrainTimeout: 2 * time.Second, SwapTimeout: 30 * time.Second, MaxDebt: time.Minute}
}

// Validate says in words what cannot work.
func (r LeaseRules) Validate() error {
	switch {
	case len(r.Memory) == 0 || len(r.Memory) > maxLeaseGPUs:
		return fmt.Errorf("%d GPUs: leases are for 1 to %d of them", len(r.Memory), maxLeaseGPUs)
	case r.Lease < minLease || r.Lease > maxLease:
		return fmt.Errorf("lease %s: outside %s to %s", r.Lease, minLease, maxLease)
	case r.DrainTimeout <= 0 || r.SwapTimeout <= 0:
		return fmt.Errorf("drain timeout %s, swap timeout %s: a tenant that hangs would stop the others; use more than 0", r.DrainTimeout, r.SwapTimeout)
	case r.MaxDebt < r.DrainTimeout:
		return fmt.Errorf("max debt %s: less than the drain timeout of %s, so that who hangs would not pay for it; use at least that", r.MaxDebt, r.DrainTimeout)
	}
	return nil
}

// Leases is the state of all leases of a node. It is a value: Step does not change what it was given.
type Leases struct {
	rules   LeaseRules
	clock   time.Duration
	timer   time.Duration // when TimerFired is due; 0: not set
	last    uint64        // number of the newest lease
	memory  []node.Bytes  // as in the rules, until RoomIs
	tenants []tenancy     // by ID
}

// NewLeases is the state without tenants.
func NewLeases(rules LeaseRules) (Leases, error) {
	if err := rules.Validate(); err != nil {
		return Leases{}, fmt.Errorf("read lease rules: %w", err)
	}
	return Leases{rules: rules, memory: slices.Clone(rules.Memory)}, nil
}

// Step says what follows from an event. Now is the time since any fixed moment, on a clock that does not jump; an event from
// the past is taken as one of the present. The decisions are to be carried out in their order.
func Step(state Leases, event LeaseEvent, now time.Duration) (Leases, []Decision) {
	s := step{Leases: state.clone()}
	s.pass(max(now, state.clock))
	if err := event.apply(&s); err != nil {
		s.decide(Refuse{Event: event, Reason: err.Error()})
	}
	s.expire()
	s.arrived()
	s.schedule()
	s.setTimer()
	return s.Leases, s.decisions
}

// step is one call of Step in progress.
type step struct {
	Leases
	decisions []Decision
}

func (s *step) decide(d Decision) { s.decisions = append(s.decisions, d) }

func (l Leases) clone() Leases {
	l.memory = slices.Clone(l.memory)
	l.tenants = slices.Clone(l.tenants)
	for i := range l.tenants {
		t := &l.tenants[i]
		t.processes = slices.Clone(t.processes)
		for j := range t.processes {
			t.processes[j].memory = slices.Clone(t.processes[j].memory)
		}
	}
	return l
}

func (l *Leases) find(id string) (*tenancy, error) {
	for i := range l.tenants {
		if l.tenants[i].ID == id {
			return &l.tenants[i], nil
		}
	}
	return nil, fmt.Errorf("tenant %q: not known; it must join first", id)
}

var errGroup = errors.New("the GPUs of a tenant do not change while it lives; let it leave and join again")
