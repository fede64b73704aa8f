package arbiter

import (
	"fmt"
	"slices"
	"time"

	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/vgpu/region"
)

const (
	pastEvery = time.Second
	pastFor   = 10
)

// tick looks at what no event tells: who has not had work for a while. It comes once a second.
func (l *lessor) tick() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.step(TimerFired{})
	l.prepare()
	for _, t := range l.tenants {
		t.past = append(t.past, sampled{monotonic(), t.got})
		if len(t.past) > pastFor+1 {
			t.past = slices.Delete(t.past, 0, len(t.past)-pastFor-1)
		}
	}
}

// LeaseState is a tenant's lease as a person sees it.
type LeaseState struct {
	Lease string        `json:"lease"` // open, runs, waits, drains, late, rests or idle
	Got   node.Percent  `json:"got"`   // of the GPU's time, over the last ten seconds, while anybody else was there
	Owed  time.Duration `json:"owed"`  // as against the others who want the same GPUs; negative: debt
	Why   string        `json:"why"`   // in words
}

func (l *lessor) state(id string) *LeaseState {
	l.mu.Lock()
	defer l.mu.Unlock()
	own := l.tenants[id]
	t, err := l.leases.find(id)
	if own == nil || err != nil {
		return nil
	}
	now := monotonic()
	s := &LeaseState{Owed: t.credit}
	if len(own.past) > 0 {
		if first := own.past[0]; now > first.at {
			s.Got = node.Percent(min(100, (100*(t.got-first.got)+(now-first.at)/2)/(now-first.at)))
		}
	}
	s.Lease, s.Why = l.explain(t, own, now)
	return s
}

// explain says where a tenant is with its lease, in a word and in a sentence.
func (l *lessor) explain(t *tenancy, own *lessee, now time.Duration) (word, why string) {
	switch {
	case t.asking && !t.complete() || t.phase == closed && !t.complete() && t.busy() || t.leaving():
		return "swaps", l.whatIsOut(t, now)
	case t.phase == running && own.gate == region.GateOpen:
		return "open", "nobody else wants its GPU: its gate is open, and nothing is counted"
	case t.phase == running && t.working():
		return "runs", fmt.Sprintf("it has the GPU since %s", round(now-t.since))
	case t.phase == running:
		return "idle", "it has nothing to do; its gate stays open until somebody else wants the GPU"
	case t.phase == straggling || own.slow:
		return "late", fmt.Sprintf("its gate has been shut for %s, and work that it submitted before has not ended; others go on beside it, and it pays its part", round(now-t.since))
	case t.phase == draining:
		return "drains", "its lease is over, and the work that it had submitted is ending"
	case t.resting:
		return "rests", fmt.Sprintf("it has used the %s of GPU time that its cap allows; it may burst no further", t.Cores)
	case !t.busy():
		return "idle", "it has nothing to do; its gate is shut, and opens when it wants to submit and it is its turn"
	}
	return "waits", l.whoIsBefore(t, now)
}

// whatIsOut says why a tenant waits for its memory.
func (l *lessor) whatIsOut(t *tenancy, now time.Duration) string {
	var sum pages
	for _, g := range t.GPUs {
		on := t.on(g)
		sum.total, sum.resident, sum.in, sum.out = sum.total+on.total, sum.resident+on.resident, sum.in+on.in, sum.out+on.out
	}
	why := fmt.Sprintf("%s of its %s are on the card", sum.resident, sum.total)
	switch {
	case sum.out > 0:
		return why + fmt.Sprintf(", and %s are being moved out for another", sum.out)
	case sum.in > 0:
		return why + fmt.Sprintf(", and %s are being moved in", sum.in)
	}
	why += fmt.Sprintf(", and it has waited for room for %s", round(now-t.since))
	for i := range l.leases.tenants {
		if o := &l.leases.tenants[i]; o.ID != t.ID && o.gpus.overlaps(t.gpus) && o.busy() && o.stay > now {
			why += fmt.Sprintf("; share %s came in and stays for another %s, so that moving memory does not take all the time", o.ID, round(o.stay-now))
		}
	}
	return why
}

func (l *lessor) whoIsBefore(t *tenancy, now time.Duration) string {
	why := fmt.Sprintf("it has waited for %s", round(now-t.since))
	for i := range l.leases.tenants {
		o := &l.leases.tenants[i]
		if o.ID == t.ID || !o.holds() || !o.gpus.overlaps(t.gpus) {
			continue
		}
		reason := "whose turn it is"
		switch {
		case o.rank() < t.rank():
			reason = fmt.Sprintf("which goes before it (%s, against %s)", o.Class, t.Class)
		case o.phase == draining:
			reason = "whose work is ending"
		case o.credit > t.credit:
			reason = fmt.Sprintf("which is owed %s more", round(o.credit-t.credit))
		}
		why += fmt.Sprintf("; share %s has the GPU, %s", o.ID, reason)
	}
	return why
}

func round(d time.Duration) time.Duration { return d.Round(time.Millisecond) }
