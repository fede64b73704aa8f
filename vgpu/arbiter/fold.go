package arbiter

import (
	"slices"
	"sync/atomic"

	"github.com/kerf-gpu/kerf/vgpu/region"
)

// ended is called when a session's process has died.
func (s *Server) ended(live *liveShare, session *session) {
	s.mu.Lock()
	if s.closed || live.slots[session.slot] != session || s.shares[live.spec.ID] != live {
		s.mu.Unlock()
		return
	}
	s.fold(live, session)
	event := Event{Kind: SessionEnded, Share: live.spec.ID, PID: session.PID, Comm: session.comm}
	s.mu.Unlock()
	s.notify(event)
}

// fold takes a session that has ended off the books. What a process had in hand that died in the middle of a change is not
// taken off the sum, which may or may not have it: settle finds out, and until then the sum is rather too high.
// Too low would look to its siblings as if somebody had tampered with it.
func (s *Server) fold(live *liveShare, session *session) {
	if err := region.Guard(func() {
		slot := &live.usage.Page.Slot[session.slot] // taking the address may read the page already
		last := slot.Read()
		for d := range live.devices() {
			if last.Quiet() {
				live.usage.Page.Add(d, -int64(min(last.Charged[d], 1<<62)))
			}
		}
		live.refused += last.Refused
		live.interrupted = live.interrupted || !last.Quiet()
		slot.Release()
	}); err != nil {
		s.flag(live, err.Error())
	}
	session.stop()
	live.vacate(session.slot)
	if s.lessor != nil {
		s.lessor.ended(live.spec.ID, session.slot)
	}
	s.publishImplicit(live)
	if live.interrupted {
		s.settle(live)
	}
	if live.count() == 0 {
		live.reset()
	}
}

// vacate forgets who had a slot.
func (l *liveShare) vacate(slot int) {
	l.slots[slot] = nil
	atomic.StoreInt32(&l.policy.Page.HostPID[slot], 0)
	l.strike(slot)
}

// reset makes a share without sessions as new: sums are zero by definition, and tampering has no author left.
func (l *liveShare) reset() {
	_ = region.Guard(func() {
		for d := range l.usage.Page.Sum {
			atomic.StoreUint64(&l.usage.Page.Sum[d].Charged, 0)
		}
	})
	l.interrupted = false
	if l.tampered != "" {
		l.tampered = ""
		l.clearFlag(region.FlagTampered)
	}
}

// checkProcess ends those sessions of a process that are no more although no pidfd said so: it called exec, and where the session
// had the page mapped there is nothing, or another session by now (attaching, the address of one that is about to begin).
// /proc is read without the lock, which attaches wait for.
func (s *Server) checkProcess(live *liveShare, pid int, attaching uint64) (events []Event) {
	s.mu.Lock()
	mine := live.sessionsOf(pid)
	s.mu.Unlock()
	if len(mine) == 0 {
		return nil
	}
	mapped, err := mappings(pid, live.page)
	lost := lostSessions(mine, mapped, err == nil, attaching)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, session := range lost {
		if s.shares[live.spec.ID] != live || live.slots[session.slot] != session {
			continue // it ended meanwhile
		}
		s.fold(live, session)
		events = append(events, Event{Kind: SessionEnded, Share: live.spec.ID, PID: pid, Comm: session.comm, Message: "exec"})
	}
	return events
}

// lostSessions are those of a process's sessions, the oldest first, that have no mapping of their own. Where the maps cannot be
// read, only a process that is certainly gone has lost any.
func lostSessions(mine []*session, mapped map[uint64]bool, readable bool, attaching uint64) (lost []*session) {
	taken := map[uint64]bool{attaching: attaching != 0}
	for _, session := range slices.Backward(mine) { // of two at one address the newer one is there
		switch {
		case session.Gone():
			lost = append(lost, session)
		case readable && (!mapped[session.usage] || taken[session.usage]):
			lost = append(lost, session)
		}
		taken[session.usage] = true
	}
	return lost
}

// sessionsOf are a process's sessions, the oldest first.
func (l *liveShare) sessionsOf(pid int) (mine []*session) {
	for _, session := range l.slots {
		if session != nil && session.PID == pid {
			mine = append(mine, session)
		}
	}
	sortByStart(mine)
	return mine
}

// settle sets the sums right, or finds that they were tampered with. It needs a moment in which no session changes
// anything, and tries a few times to see one; the next second is another chance.
func (s *Server) settle(live *liveShare) {
	for range 20 {
		var r reading
		if err := region.Guard(func() { r = live.read() }); err != nil {
			s.flag(live, err.Error())
			return
		}
		if !r.still() {
			continue
		}
		drift := r.drift()
		if drift == [region.MaxDevices]int64{} {
			live.interrupted = false
			return
		}
		_ = region.Guard(func() {
			for d, delta := range drift {
				live.usage.Page.Add(d, delta)
			}
		})
		if !live.interrupted {
			s.flag(live, "the sums differ from the slots")
		}
		live.interrupted = false
		return
	}
}

func (l *liveShare) read() (r reading) {
	for _, session := range l.slots {
		if session != nil {
			r.before = append(r.before, l.usage.Page.Slot[session.slot].Read())
		}
	}
	for d := range r.sums {
		r.sums[d] = l.usage.Page.Charged(d)
	}
	for _, session := range l.slots {
		if session != nil {
			r.after = append(r.after, l.usage.Page.Slot[session.slot].Read())
		}
	}
	return r
}

// flag stops all further allocation in a share, and says why once.
func (s *Server) flag(live *liveShare, why string) {
	if live.tampered != "" {
		return
	}
	live.tampered = why
	live.setFlag(region.FlagTampered)
	go s.notify(Event{Kind: Tampered, Share: live.spec.ID, Message: why}) // the lock is held here
}
