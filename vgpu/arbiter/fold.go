package arbiter

import (
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

// fold takes a session that has ended off the books.
func (s *Server) fold(live *liveShare, session *session) {
	if err := region.Guard(func() {
		slot := &live.usage.Page.Slot[session.slot] // taking the address may read the page already
		last := slot.Read()
		for d := range live.devices() {
			live.usage.Page.Add(d, -int64(min(last.Charged[d], 1<<62)))
		}
		live.refused += last.Refused
		live.interrupted = live.interrupted || !last.Quiet()
		slot.Release()
	}); err != nil {
		s.flag(live, err.Error())
	}
	session.stop()
	live.slots[session.slot] = nil
	atomic.StoreInt32(&live.policy.Page.HostPID[session.slot], 0)
	live.strike(session.slot)
	s.publishImplicit(live)
	if live.interrupted {
		s.settle(live)
	}
	if live.count() == 0 {
		live.reset()
	}
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

// checkProcess ends the sessions of a process that is alive but no longer maps the page as often as it has sessions: it called
// exec. The oldest go first. A shim maps the page before it says hello, so a session is never without a mapping; and
// /proc is read without the lock, which attaches wait for.
func (s *Server) checkProcess(live *liveShare, pid int) (events []Event) {
	s.mu.Lock()
	mine := live.sessionsOf(pid)
	s.mu.Unlock()
	if len(mine) == 0 {
		return nil
	}
	n, err := mappings(pid, live.page)
	if err != nil || n >= len(mine) { // not ours to read, or dead: then the pidfd speaks
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, session := range mine[:len(mine)-n] {
		if s.shares[live.spec.ID] != live || live.slots[session.slot] != session {
			continue // it ended meanwhile
		}
		s.fold(live, session)
		events = append(events, Event{Kind: SessionEnded, Share: live.spec.ID, PID: pid, Comm: session.comm, Message: "exec"})
	}
	return events
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
