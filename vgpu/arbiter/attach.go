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

// acceptPause is how long a listener that failed rests.
const acceptPause = 50 * time.Millisecond

func (s *Server) accept(live *liveShare) {
	for {
		conn, err := live.listener.AcceptUnix()
		if errors.Is(err, net.ErrClosed) { // by Remove or shut
			return
		}
		if err != nil { // out of descriptors, say: the share must still be there when they are back
			time.Sleep(acceptPause)
			continue
		}
		go func() {
			defer func() { _ = conn.Close() }()
			welcome, leased := s.greet(live, conn)
			_ = conn.SetWriteDeadline(time.Now().Add(helloTimeout))
			_, _ = conn.Write(welcome.Bytes()) // a peer that is gone has a pidfd that says so
			if leased {
				s.lessor.serve(live.spec.ID, int(welcome.Slot), conn)
			}
		}()
	}
}

// greet answers one hello. leased says that the connection stays, for the leases of the session in the answer's slot.
func (s *Server) greet(live *liveShare, conn *net.UnixConn) (welcome *region.Welcome, leased bool) {
	buffer := make([]byte, 512)
	_ = conn.SetReadDeadline(time.Now().Add(helloTimeout))
	n, err := conn.Read(buffer)
	hello, ok := region.ParseHello(buffer[:n])
	if err != nil || !ok {
		return refuse(region.WelcomeDenied, "the message was not a hello; is this Kerf's shim?"), false
	}
	peer, err := FindPeer(conn)
	if err != nil {
		return refuse(region.WelcomeDenied, fmt.Sprintf("kerfd cannot tell who asks (%v); run it in the host's pid namespace", err)), false
	}
	comm := text(hello.Comm[:])
	switch {
	case hello.Version != region.Version:
		s.notify(Event{Kind: Refused, Share: live.spec.ID, PID: peer.PID, Comm: comm, Message: "region version differs"})
		return refuse(region.WelcomeVersion, fmt.Sprintf("the shim has region version %d, kerfd has %d; install both from one release", hello.Version, region.Version)), false
	case hello.Kind == region.HelloMeasure:
		s.measure(live)
		return &region.Welcome{}, false
	case hello.Kind == region.HelloNote:
		s.notify(Event{Kind: Noted, Share: live.spec.ID, PID: peer.PID, Comm: comm, Message: text(hello.Note[:])})
		s.reconcileSoon()
		return &region.Welcome{}, false
	case hello.Kind == region.HelloLease:
		return s.lease(live, peer.PID, hello.Usage)
	}
	return s.attach(live, peer.Process, hello.Usage, comm), false
}

// lease finds the session whose connection for leases this is to be.
func (s *Server) lease(live *liveShare, pid int, usage uint64) (welcome *region.Welcome, found bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, session := range live.slots {
		if session != nil && session.PID == pid && session.usage == usage && s.shares[live.spec.ID] == live && s.lessor != nil {
			return &region.Welcome{Slot: uint32(session.slot)}, true
		}
	}
	return refuse(region.WelcomeDenied, "no session of this process is attached, or GPU time is not leased here"), false
}

func (s *Server) attach(live *liveShare, process Process, usage uint64, comm string) *region.Welcome {
	// What the process held before it called exec is gone, and must not stand in its way now.
	s.notify(s.checkProcess(live, process.PID, usage)...)
	s.mu.Lock()
	welcome, event := s.attachLocked(live, process, usage, comm)
	s.mu.Unlock()
	s.notify(event)
	return welcome
}

func (s *Server) attachLocked(live *liveShare, process Process, usage uint64, comm string) (*region.Welcome, Event) {
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
	session := &session{Process: process, usage: usage, comm: comm, started: s.config.Now(), slot: slot}
	if err := s.begin(live, session); err != nil {
		live.vacate(slot)
		event.Message = err.Error()
		if errors.Is(err, ErrEnded) { // killed while it started: nobody is refused
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

// begin puts a session in its slot, watches its process and lists its pid for the tenant's NVML. On an error the session is there
// all the same, unwatched: only ErrEnded says that it has no process.
func (s *Server) begin(live *liveShare, session *session) error {
	live.slots[session.slot] = session
	atomic.StoreInt32(&live.policy.Page.HostPID[session.slot], int32(session.PID))
	session.stop = func() {}
	stop, err := session.Watch(func() { s.ended(live, session) })
	if err != nil {
		return err
	}
	session.stop = stop
	return nil
}

// enroll writes a session down. The generation goes last, so that an entry is whole or not there.
func (l *liveShare) enroll(s *session) {
	entry := &l.roster.Page.Entry[s.slot]
	entry.PID, entry.Start, entry.Since, entry.Usage = int32(s.PID), s.Start, s.started.UnixNano(), s.usage
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
