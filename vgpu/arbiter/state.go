package arbiter

import (
	"errors"
	"sync/atomic"
	"time"

	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/vgpu/region"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

// ShareState is what a share holds at one moment.
type ShareState struct {
	ID       string         `json:"id"`
	Tier     share.Tier     `json:"tier"`
	Devices  []DeviceState  `json:"devices"`
	Sessions []SessionState `json:"sessions"`
	Refused  uint64         `json:"refused"`            // allocations refused at the limit, since the share began
	Tampered string         `json:"tampered,omitempty"` // why nothing more is allocated
	Lease    *LeaseState    `json:"lease,omitempty"`    // nil where GPU time is not leased, and under tier mps
}

// DeviceState is a share's memory on one GPU. Charged and Implicit together are what counts against Limit.
type DeviceState struct {
	UUID     node.UUID    `json:"uuid"`
	Index    int          `json:"index"`
	Limit    node.Bytes   `json:"limit"`
	Charged  node.Bytes   `json:"charged"`
	Implicit node.Bytes   `json:"implicit"`
	Peak     node.Bytes   `json:"peak"`
	Cores    node.Percent `json:"cores"`
	Swap     *SwapState   `json:"swap,omitempty"` // nil where memory is not moved
}

// SwapState is where the memory of an over-committed share is that can be moved.
type SwapState struct {
	Resident node.Bytes `json:"resident"`
	Out      node.Bytes `json:"out"`  // or asked for, and not made yet
	Host     node.Bytes `json:"host"` // host memory that it has to move to, for all GPUs together
	Moved    node.Bytes `json:"moved"`
	Rate     node.Bytes `json:"rate"` // moved in the last second
}

// Used is what counts against the limit.
func (d DeviceState) Used() node.Bytes { return d.Charged + d.Implicit }

// SessionState is one attached process.
type SessionState struct {
	PID      int        `json:"pid"`
	Command  string     `json:"command"`
	Since    time.Time  `json:"since"`
	Charged  node.Bytes `json:"charged"` // over all GPUs
	Pinned   node.Bytes `json:"hostPinned"`
	Imported node.Bytes `json:"imported"`
	Launches uint64     `json:"launches"`
	Unknown  uint64     `json:"unknown"` // calls that may allocate and are not known
}

// State is all shares, the oldest first.
func (s *Server) State() []ShareState {
	s.mu.Lock()
	defer s.mu.Unlock()
	states := make([]ShareState, 0, len(s.shares))
	for _, live := range s.sortedShares() {
		state := ShareState{ID: live.spec.ID, Tier: live.spec.Grant.Tier(), Refused: live.refused, Tampered: live.tampered}
		var fixed string
		if err := region.Guard(func() { live.fillState(&state); fixed = live.whatIsFixed() }); err != nil {
			s.flag(live, err.Error())
			state.Tampered = live.tampered
		}
		if s.lessor != nil {
			state.Lease = s.lessor.state(live.spec.ID)
		}
		if state.Lease != nil {
			state.Lease.Why += fixed
		}
		states = append(states, state)
	}
	return states
}

func (l *liveShare) fillState(state *ShareState) {
	for d, grant := range l.spec.Grant.Devices {
		charged := l.usage.Page.Charged(d)
		implicit := atomic.LoadUint64(&l.policy.Page.Device[d].Implicit)
		l.peak[d] = max(l.peak[d], charged+implicit)
		state.Devices = append(state.Devices, DeviceState{
			UUID: grant.UUID, Index: grant.Index, Limit: grant.Memory, Cores: grant.Cores,
			Charged: node.Bytes(charged), Implicit: node.Bytes(implicit), Peak: node.Bytes(l.peak[d]),
		})
	}
	for d := range l.devices() {
		if l.spec.Grant.Devices[d].Mode == share.ModeOvercommit && l.leaseFlags&region.FlagLeases != 0 {
			state.Devices[d].Swap = l.swap(d)
		}
	}
	for _, session := range l.slots {
		if session == nil {
			continue
		}
		slot := l.usage.Page.Slot[session.slot].Read()
		var charged uint64
		for d := range l.devices() {
			charged += slot.Charged[d]
		}
		state.Refused += slot.Refused
		state.Sessions = append(state.Sessions, SessionState{
			PID: session.PID, Command: session.comm, Since: session.started, Charged: node.Bytes(charged), Pinned: node.Bytes(slot.HostPinned),
			Imported: node.Bytes(slot.Imported), Launches: slot.Launches, Unknown: slot.Unknown,
		})
	}
}

// swap is where a device's memory that can be moved is, as the sessions say.
func (l *liveShare) swap(device int) *SwapState {
	s := &SwapState{Rate: node.Bytes(l.rate[device])}
	for _, session := range l.slots {
		if session == nil {
			continue
		}
		if r := &l.usage.Page.Residency[session.slot]; atomic.LoadUint32(&r.Generation) == atomic.LoadUint32(&l.usage.Page.Slot[session.slot].Generation) {
			s.Resident += node.Bytes(atomic.LoadUint64(&r.Resident[device]))
			s.Out += node.Bytes(atomic.LoadUint64(&r.Swapped[device]))
			s.Moved += node.Bytes(atomic.LoadUint64(&r.Moved[device]))
			s.Host += node.Bytes(atomic.LoadUint64(&r.Host))
		}
	}
	return s
}

// rates notes how much has moved since the last second.
func (s *Server) rates() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, live := range s.shares {
		for d := range live.devices() {
			_ = region.Guard(func() {
				moved := uint64(live.swap(d).Moved)
				live.rate[d] = moved - min(moved, live.moved[d]) // a session that ended takes its count along
				live.moved[d] = moved
			})
		}
	}
}

// resume takes up the sessions that a previous kerfd wrote down: first all that live, then the sums are made to fit them. What
// the dead ones had in hand shows as drift. A session whose process cannot be asked about counts as living.
func (s *Server) resume(live *liveShare) (events []Event) {
	for slot := range live.roster.Page.Entry {
		entry := &live.roster.Page.Entry[slot]
		if entry.Generation == 0 {
			continue
		}
		session := &session{
			Process: Process{PID: int(entry.PID), Start: entry.Start}, usage: entry.Usage,
			comm: text(entry.Comm[:]), started: time.Unix(0, entry.Since), slot: slot,
		}
		live.generation = max(live.generation, entry.Generation)
		if err := s.begin(live, session); errors.Is(err, ErrEnded) {
			live.vacate(slot)
			events = append(events, Event{Kind: SessionEnded, Share: live.spec.ID, PID: session.PID, Comm: session.comm, Message: "while kerfd was away"})
		}
	}
	s.clearSlots(live)
	if live.count() == 0 {
		live.reset()
		return events
	}
	if live.mended != "" {
		s.flag(live, live.mended)
	}
	live.interrupted = true // the previous kerfd may have died in the middle of a fold
	s.settle(live)
	return events
}

// clearSlots empties every slot that has no session.
func (s *Server) clearSlots(live *liveShare) {
	if err := region.Guard(func() {
		for i := range live.usage.Page.Slot {
			if live.slots[i] == nil {
				live.usage.Page.Slot[i].Release()
			}
		}
	}); err != nil {
		s.flag(live, err.Error())
	}
}
