package arbiter

import (
	"fmt"
	"slices"
	"time"

	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

// LeaseTenant is what a tenant was granted.
type LeaseTenant struct {
	ID          string
	GPUs        []int        // places in LeaseRules.Memory; several are a gang
	Cores       node.Percent // of each GPU's time; 0 is the time that others of the class leave, and a floor
	Capped      bool         // burst: false, so Cores is a limit too
	Class       share.Class
	MinResident node.Bytes // on each GPU, never evicted; all of its memory for a tenant that is not over-committed
	Moves       bool       // its memory may be moved, so that where it is must be known before it runs
}

// phase is where a tenant is with its lease.
type phase int

const (
	closed     phase = iota
	running          // its gate is open
	draining         // its gate is shut, and its GPUs are not free yet
	straggling       // it did not drain in time, and no longer keeps its GPUs from others
)

// tenancy is a tenant and what it has.
type tenancy struct {
	LeaseTenant
	gpus      gpuSet
	processes []process // in the order in which they joined
	asking    bool      // it waits for memory
	stuck     bool      // memory that was to move does not

	phase phase
	since time.Duration // when the phase began, or when it began to wait
	until time.Duration // running: the end of its lease. draining: the end of patience
	ended time.Duration // draining: the latest end of work reported
	lease uint64

	paid       time.Duration // in this lease
	worked     time.Duration // in this lease, as its processes say that have drained
	unmeasured bool          // one of them cannot tell
	loose      bool          // it could submit without bound

	got       time.Duration // in all
	credit    time.Duration
	allowance time.Duration
	resting   bool // its allowance is used up

	arriving bool
	departed time.Duration // when arriving began
	stay     time.Duration // until when its memory is left alone
	used     time.Duration // when it last had work on its GPUs
	calm     time.Duration // until when it counts as busy to those who want its room, since it was a moment ago
}

// process is one process of a tenant.
type process struct {
	id      int
	working bool
	drained bool
	memory  []pages // by GPU
}

// pages is memory on one GPU, in bytes. What is on its way in has its room already; what is on its way out still has it.
type pages struct {
	total, resident, in, out node.Bytes
	patience                 time.Duration // when moving takes too long
	rest                     time.Duration // until when nothing is to be moved: what was last asked for could not be
	ordered                  bool          // an order is under way, whatever in and out say: what it was for may have been freed
	known                    bool          // the process has said what it has
}

func (p *pages) absent() node.Bytes { return p.total - min(p.total, p.resident+p.in) }

func (p *pages) staying() node.Bytes { return p.resident - p.out }

// report takes what a process says that it has. What of it was on its way has arrived by so much. Room stays reserved for all that was
// ordered in: who frees what it was for and allocates anew gets that instead.
func (p *pages) report(resident, absent node.Bytes) {
	if resident > p.resident {
		p.in -= min(p.in, resident-p.resident)
	} else {
		p.out -= min(p.out, p.resident-resident)
	}
	p.resident, p.total, p.known = resident, resident+absent, true
	p.out = min(p.out, resident)
}

// settled ends an order, and says whether it was carried out in full.
func (p *pages) settled() (all bool) {
	all = p.in+p.out == 0 || p.total == p.resident && p.out == 0
	p.in, p.out, p.patience, p.ordered = 0, 0, 0, false
	return all
}

// on is all of a tenant's memory on a GPU.
func (t *tenancy) on(gpu int) (sum pages) {
	for i := range t.processes {
		p := &t.processes[i].memory[gpu]
		sum.total += p.total
		sum.resident += p.resident
		sum.in += p.in
		sum.out += p.out
	}
	return sum
}

// complete says that all of its memory is where it can be used, and stays there.
func (t *tenancy) complete() bool {
	return !t.anyPages(func(p *pages) bool { return p.resident != p.total || p.ordered }) && !t.unheard()
}

// unheard says that a process may have memory of which nobody knows where it is.
func (t *tenancy) unheard() bool {
	return t.Moves && slices.ContainsFunc(t.processes, func(p process) bool {
		return slices.ContainsFunc(t.GPUs, func(g int) bool { return !p.memory[g].known })
	})
}

func (t *tenancy) moving() bool { return t.anyPages(func(p *pages) bool { return p.ordered }) }

func (t *tenancy) leaving() bool { return t.anyPages(func(p *pages) bool { return p.out > 0 }) }

func (t *tenancy) anyPages(is func(*pages) bool) bool {
	return slices.ContainsFunc(t.processes, func(p process) bool {
		return slices.ContainsFunc(p.memory, func(m pages) bool { return is(&m) })
	})
}

func (t *tenancy) working() bool {
	return slices.ContainsFunc(t.processes, func(p process) bool { return p.working })
}

// busy says that it wants something that only a turn can give.
func (t *tenancy) busy() bool { return t.working() || t.asking }

// holds says that nobody else may use its GPUs.
func (t *tenancy) holds() bool { return t.phase == running || t.phase == draining }

// occupies says that its work may be on its GPUs.
func (t *tenancy) occupies() bool {
	return t.phase == draining || t.phase == straggling || (t.phase == running && t.working())
}

func (t *tenancy) capped() bool { return t.Capped && t.Cores < 100 }

func (t *tenancy) weight() int64 { return max(1, int64(t.Cores)) }

// rank orders tenants strictly, lowest first: by class. Who guaranteed itself no time has no rank of its own, but a floor.
func (t *tenancy) rank() int { return slices.Index(share.Classes, t.Class) }

func (t *tenancy) process(id int) *process {
	for i := range t.processes {
		if t.processes[i].id == id {
			return &t.processes[i]
		}
	}
	return nil
}

func (l *Leases) findProcess(tenant string, id int) (*tenancy, *process, error) {
	t, err := l.find(tenant)
	if err != nil {
		return nil, nil, err
	}
	p := t.process(id)
	if p == nil {
		return nil, nil, fmt.Errorf("process %d of tenant %q: not known; it has ended, or must join first", id, tenant)
	}
	return t, p, nil
}

// gpuSet is a set of GPUs.
type gpuSet uint64

func setOf(gpus []int) (set gpuSet) {
	for _, g := range gpus {
		set |= 1 << g
	}
	return set
}

func (s gpuSet) has(gpu int) bool          { return gpu >= 0 && gpu < maxLeaseGPUs && s&(1<<gpu) != 0 }
func (s gpuSet) overlaps(with gpuSet) bool { return s&with != 0 }
