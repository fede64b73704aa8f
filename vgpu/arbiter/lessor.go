package arbiter

import (
	"cmp"
	"errors"
	"math/bits"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/vgpu/region"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

// crowdFor is how long a tenant that had work counts as one that may want the GPU again at any moment: its rivals' gates are
// shared and not open meanwhile, so that it never finds a GPU with a long queue.
const crowdFor = time.Second

// lessor carries out what Step decides: it has the clock, the timer, the gates and the connections of the processes.
//
// mu comes after Server.mu, and no other lock after it. Events for the log go out from a goroutine of their own.
type lessor struct {
	notify func(...Event)
	pool   node.Bytes // of host memory, for what is swapped out
	card   func(node.UUID) node.Bytes

	mu      sync.Mutex
	leases  Leases
	timer   *time.Timer
	places  map[node.UUID]int
	tenants map[string]*lessee
	making  node.Bytes           // host memory that is being made for somebody
	moved   [maxLeaseGPUs]uint64 // by place: count of reports and orders of memory
	closed  bool
}

// lessee is a tenant as the lessor knows it.
type lessee struct {
	live   *liveShare
	gate   uint32
	loose  bool                  // its gate was simply open since it last drained, so nobody watched what it submitted
	late   bool                  // it was loose before the drain that is under way
	busy   time.Duration         // when it last had work
	procs  map[int]*leaseClient  // by slot
	memory map[int]*memoryClient // by slot, until the session ends
	got    time.Duration         // in all, as Step charged it
	past   []sampled             // of got, a second apart, the oldest first
	slow   bool                  // it does not drain in time
}

type sampled struct{ at, got time.Duration }

// leaseClient is one process's connection.
type leaseClient struct {
	conn    *net.UnixConn
	watched bool
}

// A process says something of its work twice in a millisecond at most, and more of memory only if it allocates and frees in a
// loop. One that says more is slowed down.
const (
	talkWindow = 20 * time.Millisecond
	talkMost   = 100
)

// unlimited is the memory of a place where nobody's can be moved: residency is not leased there.
const unlimited = 1 << 60

func newLessor(notify func(...Event), config Config) (*lessor, error) {
	memory := make([]node.Bytes, maxLeaseGPUs)
	for i := range memory {
		memory[i] = unlimited
	}
	rules := DefaultLeaseRules(memory...)
	rules.DrainTimeout = cmp.Or(config.Drain, rules.DrainTimeout)
	leases, err := NewLeases(rules)
	if err != nil {
		return nil, err
	}
	l := &lessor{notify: notify, pool: config.Pool, card: config.Card, leases: leases, places: make(map[node.UUID]int), tenants: make(map[string]*lessee)}
	l.timer = time.AfterFunc(time.Hour, func() { l.do(TimerFired{}) })
	return l, nil
}

// monotonic is the clock that a process reads too.
func monotonic() time.Duration {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &t) // cannot fail with this clock
	return time.Duration(t.Nano())
}

// do steps with an event, and carries out what follows.
func (l *lessor) do(event LeaseEvent) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.step(event)
}

func (l *lessor) step(event LeaseEvent) {
	if l.closed {
		return
	}
	now := monotonic()
	var decisions []Decision
	l.leases, decisions = Step(l.leases, event, now)
	for _, d := range decisions {
		l.carryOut(d, now)
	}
	l.setGates(now)
}

func (l *lessor) carryOut(decision Decision, now time.Duration) {
	switch d := decision.(type) {
	case CloseGate:
		l.setGate(l.tenants[d.Tenant], region.GateShut)
	case StartDrain:
		t := l.tenants[d.Tenant]
		for slot := range t.procs {
			t.send(slot, region.Lease{Kind: region.LeaseDrain, Lease: d.Lease, Flags: flagOf(t.loose)})
		}
		t.late, t.loose = t.loose, false
	case Evict:
		l.order(region.LeaseOut, d.Tenant, d.Process, d.GPU, d.Bytes)
	case BringIn:
		l.order(region.LeaseIn, d.Tenant, d.Process, d.GPU, d.Bytes)
	case Refuse:
		l.refused(d)
	case SetTimer:
		l.timer.Stop()
		if d.At > 0 {
			l.timer.Reset(max(d.At-now, 0))
		}
	case Mark:
		l.tenants[d.Tenant].slow = d.NonYielding
	case Report:
		go l.notify(Event{Kind: LeaseOverrun, Share: d.Tenant, Message: d.Text})
	}
}

func flagOf(on bool) uint32 {
	if on {
		return 1
	}
	return 0
}

// setGates opens the gates of those who run: simply, or shared where others may want the GPU.
func (l *lessor) setGates(now time.Duration) {
	for i := range l.leases.tenants {
		if t := &l.leases.tenants[i]; t.busy() {
			l.tenants[t.ID].busy = now
		}
	}
	for i := range l.leases.tenants {
		t := &l.leases.tenants[i]
		own := l.tenants[t.ID]
		own.got = t.got
		crowded := l.crowded(t, now)
		if t.phase == running {
			own.loose = own.loose || !crowded
			l.setGate(own, region.GateOpen+region.GateShared*flagOf(crowded))
		}
		own.watch(crowded && t.phase == running)
	}
}

// crowded says whether what a tenant submits must be watched: it has a cap, or a rival has had work a moment ago, or one that
// goes before it is attached. Of who passes an open gate nobody knows when it is past, so that memory which may be moved must be
// behind one that counts.
func (l *lessor) crowded(t *tenancy, now time.Duration) bool {
	if t.capped() || overcommitted(l.tenants[t.ID].live.spec.Grant) {
		return true
	}
	for i := range l.leases.tenants {
		o := &l.leases.tenants[i]
		if o.ID == t.ID || !o.gpus.overlaps(t.gpus) || len(o.processes) == 0 {
			continue
		}
		if rival := l.tenants[o.ID]; o.rank() < t.rank() || rival.busy > 0 && now-rival.busy < crowdFor {
			return true
		}
	}
	return false
}

func (l *lessor) setGate(t *lessee, gate uint32) {
	if t.gate == gate {
		return
	}
	t.gate = gate
	wakeGate(t.live.policy.Page, gate)
}

func (t *lessee) watch(on bool) {
	for slot, client := range t.procs {
		if client.watched != on {
			client.watched = on
			t.send(slot, region.Lease{Kind: region.LeaseWatch, Flags: flagOf(on)})
		}
	}
}

// send does not wait: a process that does not read its few messages is taken for one that has hung up.
func (t *lessee) send(slot int, message region.Lease) { t.sendFile(slot, message, -1) }

func (t *lessee) sendFile(slot int, message region.Lease, file int) {
	client := t.procs[slot]
	if client == nil {
		return
	}
	var rights []byte
	if file >= 0 {
		rights = unix.UnixRights(file)
	}
	raw, err := client.conn.SyscallConn()
	if err == nil {
		var sent error
		err = raw.Control(func(fd uintptr) {
			sent = unix.Sendmsg(int(fd), message.Bytes(), rights, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		})
		err = errors.Join(err, sent)
	}
	if err != nil {
		_ = client.conn.Close() // its reader sees it, and ends the process here
	}
}

// --- shares ---

func (l *lessor) describe(spec Spec) LeaseTenant {
	t := LeaseTenant{ID: spec.ID, Capped: spec.Grant.Capped, Class: spec.Grant.Class, Cores: 100, Moves: overcommitted(spec.Grant), MinResident: pieces(spec.Grant.MinResident + piece - 1)}
	for _, d := range spec.Grant.Devices {
		uuid := d.UUID
		if d.MIG != (node.MIGUUID{}) {
			uuid = node.UUID(d.MIG) // an instance has SMs of its own
		}
		place, ok := l.places[uuid]
		if !ok {
			place = l.freePlace()
			l.places[uuid] = place
		}
		t.GPUs = append(t.GPUs, place)
		t.Cores = min(t.Cores, d.Cores)
	}
	return t
}

// join brings a share under lease, with its gate shut. A share that cannot be is left alone, and its gate stays open; one whose memory
// may be moved is nothing without leases.
func (l *lessor) join(live *liveShare) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forgetPlaces(live.spec)
	tenant := l.describe(live.spec)
	own := &lessee{live: live, gate: region.GateOpen, procs: make(map[int]*leaseClient), memory: make(map[int]*memoryClient)}
	l.tenants[live.spec.ID] = own
	l.openRoom(live.spec, tenant)
	joined := TenantJoined{Tenant: tenant}
	if tenant.Moves { // of a kerfd before: its gate stays shut until they have said where their memory is
		for _, session := range live.slots {
			if session != nil {
				joined.Processes = append(joined.Processes, session.slot)
			}
		}
	}
	err := l.knows(live.spec.ID, joined)
	if err == nil {
		return nil
	}
	delete(l.tenants, live.spec.ID)
	if overcommitted(live.spec.Grant) {
		return err
	}
	go l.notify(Event{Kind: LeaseOverrun, Share: live.spec.ID, Message: "its GPU time is not leased: " + err.Error()})
	live.openGate()
	return nil
}

// openRoom says what a card has for what can be moved, before it is known how much of it is in use otherwise.
func (l *lessor) openRoom(spec Spec, tenant LeaseTenant) {
	for i, d := range spec.Grant.Devices {
		if place := tenant.GPUs[i]; d.Mode == share.ModeOvercommit && place < len(l.leases.memory) && l.leases.memory[place] == unlimited {
			card := l.card(d.UUID)
			l.step(RoomIs{place, pieces(card - reserve(card, 0))})
		}
	}
}

// knows joins a tenant, or says why Step does not have it.
func (l *lessor) knows(id string, event TenantJoined) error {
	next, decisions := Step(l.leases, event, monotonic())
	for _, d := range decisions {
		if refused, ok := d.(Refuse); ok {
			return errors.New(refused.Reason)
		}
	}
	l.tenants[id].gate = region.GateOpen
	l.setGate(l.tenants[id], region.GateShut)
	l.leases = next
	now := monotonic()
	for _, d := range decisions {
		l.carryOut(d, now)
	}
	l.setGates(now)
	return nil
}

// forgetPlaces makes room where GPUs come and go, as instances of MIG do.
func (l *lessor) forgetPlaces(spec Spec) {
	if len(l.places)+len(spec.Grant.Devices) <= maxLeaseGPUs {
		return
	}
	var used gpuSet
	for i := range l.leases.tenants {
		used |= l.leases.tenants[i].gpus
	}
	kept := make(map[node.UUID]int)
	for uuid, place := range l.places {
		if used.has(place) {
			kept[uuid] = place
		}
	}
	l.places = kept
}

func (l *lessor) freePlace() int {
	var taken gpuSet
	for _, place := range l.places {
		taken |= 1 << place
	}
	return bits.TrailingZeros64(^uint64(taken)) // 64 where there is none, which Step refuses
}

func (l *lessor) change(spec Spec) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.tenants[spec.ID] != nil {
		l.step(TenantChanged{l.describe(spec)})
	}
}

// leave ends a share's leases; its page may be unmapped afterwards.
func (l *lessor) leave(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.tenants[id]
	if t == nil {
		return
	}
	for _, client := range t.procs {
		_ = client.conn.Close()
	}
	next, decisions := Step(l.leases, TenantLeft{id}, monotonic())
	l.leases = next
	delete(l.tenants, id)
	now := monotonic()
	for _, d := range decisions {
		if gate, ok := d.(CloseGate); !ok || gate.Tenant != id {
			l.carryOut(d, now)
		}
	}
	l.setGates(now)
}

// stop leaves the gates as they are: the processes see their connections end.
func (l *lessor) stop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.timer.Stop()
	for _, t := range l.tenants {
		for _, client := range t.procs {
			_ = client.conn.Close()
		}
	}
}

// --- processes ---

// serve reads what a process says until its connection ends.
func (l *lessor) serve(id string, slot int, conn *net.UnixConn) {
	client := &leaseClient{conn: conn}
	if !l.attach(id, slot, client) {
		return
	}
	defer l.detach(id, slot, client)
	_ = conn.SetReadDeadline(time.Time{})
	buffer := make([]byte, 64)
	from, count := monotonic(), 0
	for {
		n, err := conn.Read(buffer)
		message, ok := region.ParseLease(buffer[:n])
		if err != nil || !ok {
			return
		}
		if now := monotonic(); now-from > talkWindow {
			from, count = now, 0
		} else if count++; count > talkMost {
			time.Sleep(talkWindow) // it keeps the others' lock busy; what it says is late then, at its own cost
		}
		switch message.Kind {
		case region.LeaseBegan:
			l.do(WorkBegan{id, slot})
		case region.LeaseEnded:
			l.do(WorkEnded{id, slot})
		case region.LeaseDrained:
			l.drained(id, slot, message)
		case region.LeaseMemory:
			l.remember(id, slot, message)
		}
	}
}

func (l *lessor) drained(id string, slot int, m region.Lease) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if t := l.tenants[id]; t != nil {
		l.step(Drained{id, slot, m.Lease, time.Duration(min(m.At, 1<<62)), time.Duration(m.Flags) * time.Microsecond, t.late})
	}
}

func (l *lessor) attach(id string, slot int, client *leaseClient) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.tenants[id]
	if t == nil || l.closed {
		return false
	}
	if old := t.procs[slot]; old != nil {
		_ = old.conn.Close()
	}
	t.procs[slot] = client
	t.connect(slot)
	own, _, err := l.leases.findProcess(id, slot)
	switch {
	case err != nil:
		l.step(ProcessJoined{id, slot})
	case own.Moves:
		l.step(ProcessSilent{id, slot})
	default:
		l.step(ProcessEnded{id, slot})
		l.step(ProcessJoined{id, slot})
	}
	if own, err := l.leases.find(id); err == nil && (own.phase == draining || own.phase == straggling) {
		t.send(slot, region.Lease{Kind: region.LeaseDrain, Lease: own.lease, Flags: 1})
	}
	return true
}

// detach is the end of a connection. A process whose memory may be moved has that still, and work may run: only the end of its session
// takes it off the books.
func (l *lessor) detach(id string, slot int, client *leaseClient) {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.tenants[id]
	if t == nil || t.procs[slot] != client {
		return
	}
	delete(t.procs, slot)
	if own, err := l.leases.find(id); err == nil && own.Moves {
		l.step(ProcessSilent{id, slot})
	} else {
		l.step(ProcessEnded{id, slot})
	}
}

// ended hangs up on a session that is no more. A forked child may have the connection still.
func (l *lessor) ended(id string, slot int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.tenants[id]
	if t == nil {
		return
	}
	if client := t.procs[slot]; client != nil {
		_ = client.conn.Close()
		delete(t.procs, slot)
	}
	delete(t.memory, slot)
	if _, _, err := l.leases.findProcess(id, slot); err == nil {
		l.step(ProcessEnded{id, slot})
	}
}
