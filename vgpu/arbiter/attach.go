package arbiter

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/kerf-gpu/kerf/vgpu/region"
)

// helloTimeout bounds how long a silent peer may hold a connection.
const helloTimeout = time.Second

// recheckAfter is when the process of a new session is looked at: if it attached before, and then called exec, only the new
// session has a mapping.
const recheckAfter = 20 * time.Millisecond

func (s *Server) accept(live *liveShare) {
	for {
		conn, err := live.listener.AcceptUnix()
		if err != nil {
			return // closed by Remove or shut
		}
		go func() {
			defer func() { _ = conn.Close() }()
			welcome := s.greet(live, conn)
			_ = conn.SetWriteDeadline(time.Now().Add(helloTimeout))
			_, _ = conn.Write(welcome.Bytes()) // a peer that is gone has a pidfd that says so
		}()
	}
}

// greet answers one hello.
func (s *Server) greet(live *liveShare, conn *net.UnixConn) *region.Welcome {
	buffer := make([]byte, 512)
	_ = conn.SetReadDeadline(time.Now().Add(helloTimeout))
	n, err := conn.Read(buffer)
	hello, ok := region.ParseHello(buffer[:n])
	if err != nil || !ok {
		return refuse(region.WelcomeDenied, "the message was not a hello; is this Kerf's shim?")
	}
	process, err := peer(conn)
	if err != nil {
		return refuse(region.WelcomeDenied, fmt.Sprintf("kerfd cannot tell who asks (%v); run it in the host's pid namespace", err))
	}
	comm := text(hello.Comm[:])
	switch {
	case hello.Version != region.Version:
		s.notify(Event{Kind: Refused, Share: live.spec.ID, PID: process.PID, Comm: comm, Message: "region version differs"})
		return refuse(region.WelcomeVersion, fmt.Sprintf("the shim has region version %d, kerfd has %d; install both from one release", hello.Version, region.Version))
	case hello.Kind == region.HelloMeasure:
		s.measure(live)
		return &region.Welcome{}
	case hello.Kind == region.HelloNote:
		s.notify(Event{Kind: Noted, Share: live.spec.ID, PID: process.PID, Comm: comm, Message: text(hello.Note[:])})
		s.reconcileSoon()
		return &region.Welcome{}
	}
	return s.attach(live, process, comm)
}

func (s *Server) attach(live *liveShare, process Process, comm string) *region.Welcome {
	s.mu.Lock()
	welcome, event := s.attachLocked(live, process, comm)
	s.mu.Unlock()
	s.notify(event)
	if welcome.Status == region.WelcomeOK {
		time.AfterFunc(recheckAfter, func() { s.notify(s.checkProcess(live, process.PID)...) })
	}
	return welcome
}

func (s *Server) attachLocked(live *liveShare, process Process, comm string) (*region.Welcome, Event) {
	event := Event{Kind: Refused, Share: live.spec.ID, PID: process.PID, Comm: comm}
	if s.shares[live.spec.ID] != live {
		event.Message = "the share has ended"
		return refuse(region.WelcomeRevoked, "the share has ended; start the program again under kerf run"), event
	}
	slot := live.freeSlot()
	if slot < 0 {
		event.Message = "no free slot"
		return refuse(region.WelcomeFull, fmt.Sprintf("%d processes are attached to the share, and that is the most", region.MaxSlots)), event
	}
	live.generation++
	session := &session{Process: process, comm: comm, started: s.config.Now(), slot: slot}
	if err := s.begin(live, session); err != nil {
		event.Message = err.Error()
		if errors.Is(err, errEnded) { // killed while it started: nobody is refused
			event.Kind = SessionEnded
		}
		return refuse(region.WelcomeDenied, err.Error()), event
	}
	// On record before the process learns of its slot: a kerfd that starts next knows every process that may charge.
	live.enroll(session)
	if err := region.Guard(func() { live.usage.Page.Slot[slot].Claim(live.generation) }); err != nil {
		s.flag(live, err.Error())
	}
	event.Kind = SessionStarted
	return &region.Welcome{Slot: uint32(slot), Generation: live.generation}, event
}

// begin watches a session's process and lists its pid for the tenant's NVML.
func (s *Server) begin(live *liveShare, session *session) error {
	stop, err := session.Watch(func() { s.ended(live, session) })
	if err != nil {
		return err
	}
	session.stop = stop
	live.slots[session.slot] = session
	atomic.StoreInt32(&live.policy.Page.HostPID[session.slot], int32(session.PID))
	return nil
}

// enroll writes a session down. The generation goes last, so that an entry is whole or not there.
func (l *liveShare) enroll(s *session) {
	entry := &l.roster.Page.Entry[s.slot]
	entry.PID, entry.Start, entry.Since = int32(s.PID), s.Start, s.started.UnixNano()
	entry.Comm = [16]byte{}
	copy(entry.Comm[:], s.comm)
	atomic.StoreUint32(&entry.Generation, l.generation)
}

func (l *liveShare) strike(slot int) { atomic.StoreUint32(&l.roster.Page.Entry[slot].Generation, 0) }

func (l *liveShare) freeSlot() int {
	for i, session := range l.slots {
		if session == nil {
			return i
		}
	}
	return -1
}

func refuse(status uint32, reason string) *region.Welcome {
	w := &region.Welcome{Status: status}
	w.SetReason(reason)
	return w
}

// text is a NUL-terminated field of a message, with what could break a line of a log replaced.
func text(field []byte) string {
	field, _, _ = bytes.Cut(field, []byte{0})
	return string(bytes.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, field))
}
