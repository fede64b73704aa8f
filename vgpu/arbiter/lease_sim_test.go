package arbiter

import (
	"container/heap"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

const ms = time.Millisecond

// bin is the grain in which GPU time is recorded.
const bin = 10 * ms

// machine is a model of GPUs and of the processes that use them. It carries out decisions, answers them late, and keeps
// its own account of who used a GPU when.
type machine struct {
	t       testing.TB
	rng     *rand.Rand
	leases  Leases
	now     time.Duration
	timer   time.Duration
	queue   calendar
	steps   int
	idle    int  // events since time passed, but by a timer
	faulty  bool // now and then memory does not move
	refused []Refuse
	lies    bool     // processes say what they like of their memory
	slow    bool     // the host is busy: threads wake up late, and the GPU has nothing to do meanwhile
	guests  []*guest // in the order in which they joined
}

// guest is a tenant's container in the model. Its processes launch one kernel after another, in turns.
type guest struct {
	LeaseTenant
	pids    []int
	holds   map[[2]int]*holding // by process and GPU
	next    int                 // whose turn it is
	kernel  func(*rand.Rand) time.Duration
	working bool
	frozen  bool // answers nothing
	open    bool
	marked  bool
	last    int           // whose kernel ran last
	pid     int           // whose kernel runs, 0: none does
	start   time.Duration // of the kernel
	end     time.Duration
	waiting time.Duration         // since when it has had work and a shut gate
	longest time.Duration         // that it waited
	ahead   time.Duration         // what it has queued behind the running kernel when its gate shuts, at most
	tail    time.Duration         // the rest of that
	worked  map[int]time.Duration // by process, since it drained
	liar    bool                  // says that it did nothing
	opens   int
	busy    []time.Duration // by bin
}

// holding is the memory of a process on one GPU, as the process knows it, and how many moves of it are under way.
type holding struct {
	resident, absent node.Bytes
	moves            int
}

type alarm struct {
	at  time.Duration
	seq int
	do  func()
}

// calendar is what will happen, the earliest first.
type calendar struct {
	alarms []alarm
	seq    int
}

func (c *calendar) Len() int { return len(c.alarms) }
func (c *calendar) Less(i, j int) bool {
	a, b := c.alarms[i], c.alarms[j]
	return a.at < b.at || a.at == b.at && a.seq < b.seq
}
func (c *calendar) Swap(i, j int) { c.alarms[i], c.alarms[j] = c.alarms[j], c.alarms[i] }
func (c *calendar) Push(x any)    { c.alarms = append(c.alarms, x.(alarm)) }
func (c *calendar) Pop() any {
	last := c.alarms[len(c.alarms)-1]
	c.alarms = c.alarms[:len(c.alarms)-1]
	return last
}

func newMachine(t testing.TB, seed uint64, rules LeaseRules) *machine {
	t.Helper()
	leases, err := NewLeases(rules)
	if err != nil {
		t.Fatal(err)
	}
	return &machine{t: t, rng: rand.New(rand.NewPCG(seed, 1)), leases: leases, now: time.Second}
}

func (m *machine) after(d time.Duration, do func()) {
	m.queue.seq++
	heap.Push(&m.queue, alarm{m.now + max(d, 0), m.queue.seq, do})
}

// run lets time pass.
func (m *machine) run(d time.Duration) {
	for until := m.now + d; ; {
		at := until
		if len(m.queue.alarms) > 0 {
			at = min(at, m.queue.alarms[0].at)
		}
		switch {
		case m.timer > 0 && m.timer <= at:
			if m.idle++; m.idle > 10_000 {
				m.t.Fatalf("at %s: the timer fires again and again, and nothing comes of it: %+v", m.now, m.leases)
			}
			m.now, m.timer = max(m.now, m.timer), 0
			m.step(TimerFired{})
		case len(m.queue.alarms) > 0 && at == m.queue.alarms[0].at && at <= until:
			if m.idle++; at > m.now {
				m.idle = 0
			}
			if m.idle > 10_000 {
				m.t.Fatalf("at %s: much happens, and no time passes: %+v", m.now, m.leases)
			}
			m.now = at
			heap.Pop(&m.queue).(alarm).do()
		default:
			m.now = until
			return
		}
	}
}

func (m *machine) step(e LeaseEvent) []Decision {
	next, decisions := Step(m.leases, e, m.now)
	m.steps++
	m.check(e, next, decisions)
	m.leases = next
	for _, d := range decisions {
		m.carryOut(d)
	}
	return decisions
}

func (m *machine) guest(id string) *guest {
	for _, g := range m.guests {
		if g.ID == id {
			return g
		}
	}
	return nil
}

func (m *machine) join(tenant LeaseTenant, kernel func(*rand.Rand) time.Duration, pids ...int) *guest {
	g := &guest{LeaseTenant: tenant, kernel: kernel, worked: make(map[int]time.Duration)}
	m.guests = append(m.guests, g)
	m.step(TenantJoined{Tenant: tenant})
	if _, err := m.leases.find(tenant.ID); err != nil {
		m.guests = m.guests[:len(m.guests)-1]
		return nil
	}
	for _, pid := range pids {
		m.attach(g, pid)
	}
	return g
}

func (m *machine) attach(g *guest, pid int) {
	g.pids = append(g.pids, pid)
	m.step(ProcessJoined{g.ID, pid})
	m.tell(g, pid)
	if g.working {
		m.step(WorkBegan{g.ID, pid})
	}
}

// tell is a process's first words on a connection.
func (m *machine) tell(g *guest, pid int) {
	for _, gpu := range g.GPUs {
		if g.Moves {
			m.step(g.is(pid, gpu))
		}
	}
}

// hush ends a process's connection; it has another after a while. What it had begun to move it has finished before.
func (m *machine) hush(g *guest) {
	if len(g.pids) == 0 || !g.Moves {
		return
	}
	pid := g.pids[m.rng.IntN(len(g.pids))]
	for _, gpu := range g.GPUs {
		if g.has(pid, gpu).moves > 0 {
			return
		}
	}
	m.step(ProcessSilent{g.ID, pid})
	m.after(time.Duration(m.rng.Int64N(int64(100*ms))), func() {
		if slices.Contains(g.pids, pid) {
			m.tell(g, pid)
		}
	})
}

func (m *machine) kill(g *guest, pid int) {
	g.pids = slices.DeleteFunc(g.pids, func(p int) bool { return p == pid })
	if g.pid == pid {
		m.record(g, m.now)
		g.pid, g.tail = 0, 0
	}
	m.step(ProcessEnded{g.ID, pid})
	m.launch(g)
}

func (m *machine) leave(g *guest) {
	m.guests = slices.DeleteFunc(m.guests, func(o *guest) bool { return o == g })
	m.step(TenantLeft{g.ID})
	g.pids, g.pid = nil, 0
}

func (m *machine) work(g *guest, on bool) {
	if g.working == on || (!on && g.pid != 0) {
		return
	}
	g.working = on
	if !g.open {
		g.waiting = m.now
	}
	for _, pid := range g.pids {
		if on {
			m.step(WorkBegan{g.ID, pid})
		} else {
			m.step(WorkEnded{g.ID, pid})
		}
	}
	m.launch(g)
}

// stop ends a guest's work once its kernel has.
func (m *machine) stop(g *guest) {
	for g.working {
		m.work(g, false)
		m.run(ms)
	}
}

// launch starts a guest's next kernel if it can.
func (m *machine) launch(g *guest) {
	if !(g.open || g.tail > 0) || !g.working || g.pid != 0 || len(g.pids) == 0 {
		return
	}
	m.exclusive(g)
	pid := g.last // whose work was queued when the gate shut
	if g.open {
		pid = g.pids[g.next%len(g.pids)]
		g.next++
	}
	g.last = pid
	length := g.kernel(m.rng)
	g.tail -= length
	g.pid, g.start, g.end = pid, m.now, m.now+length
	m.after(length, func() {
		if g.pid == pid && g.end == m.now {
			m.record(g, m.now)
			g.pid = 0
			if late := m.stall(g); late > 0 {
				m.after(late, func() { m.launch(g) })
			} else {
				m.launch(g)
			}
		}
	})
}

// stall is for how long the GPU has nothing to do, because a thread is late to submit more: at times, and longer for some
func (m *machine) stall(g *guest) time.Duration {
	if !m.slow || !g.open || m.rng.IntN(20) > 0 {
		return 0
	}
	return time.Duration(m.rng.Int64N(int64(3*ms))) / time.Duration(1+g.pids[0]%3)
}

// exclusive checks what leases are for.
func (m *machine) exclusive(g *guest) {
	for _, o := range m.guests {
		if o != g && o.pid != 0 && !o.marked && !g.marked && setOf(o.GPUs).overlaps(setOf(g.GPUs)) {
			m.t.Fatalf("at %s: %s launches while a kernel of %s runs", m.now, g.ID, o.ID)
		}
	}
}

// record books the kernel that ran until end.
func (m *machine) record(g *guest, end time.Duration) {
	g.worked[g.pid] += end - g.start
	for at := g.start; at < end; {
		for len(g.busy) <= int(at/bin) {
			g.busy = append(g.busy, 0)
		}
		part := min(end, (at/bin+1)*bin) - at
		g.busy[at/bin] += part
		at += part
	}
}

// used is a guest's GPU time between two moments.
func (g *guest) used(from, to time.Duration) (sum time.Duration) {
	for i := from / bin; i < to/bin && int(i) < len(g.busy); i++ {
		sum += g.busy[i]
	}
	return sum
}

func (m *machine) carryOut(d Decision) {
	switch d := d.(type) {
	case SetTimer:
		m.timer = d.At
	case OpenGate:
		g := m.guest(d.Tenant)
		g.open = true
		g.opens++
		if g.working {
			g.longest = max(g.longest, m.now-g.waiting)
		}
		g.tail = 0
		m.after(m.wakeUp(), func() { m.launch(g) })
	case CloseGate:
		if g := m.guest(d.Tenant); g != nil {
			g.open, g.waiting = false, m.now
			if g.tail = 0; g.ahead > 0 && g.pid != 0 {
				g.tail = time.Duration(m.rng.Int64N(int64(g.ahead)))
			}
		}
	case StartDrain:
		m.drain(m.guest(d.Tenant), d.Lease)
	case Refuse:
		m.refused = append(m.refused, d)
	case Mark:
		m.guest(d.Tenant).marked = d.NonYielding
	case Evict:
		m.move(m.guest(d.Tenant), d.Process, d.GPU, d.Bytes, true)
	case BringIn:
		m.move(m.guest(d.Tenant), d.Process, d.GPU, d.Bytes, false)
	}
}

// wakeUp is how long a thread at the gate takes to submit.
func (m *machine) wakeUp() time.Duration {
	if !m.slow {
		return 0
	}
	return time.Duration(m.rng.Int64N(int64(3 * ms)))
}

func (m *machine) drain(g *guest, lease uint64) {
	for _, pid := range g.pids {
		m.drained(g, pid, lease)
	}
}

// drained answers when the work of a process has ended, and a while later.
func (m *machine) drained(g *guest, pid int, lease uint64) {
	if g.pid == pid {
		m.after(g.end-m.now, func() { m.drained(g, pid, lease) })
		return
	}
	way := 50*time.Microsecond + time.Duration(m.rng.Int64N(int64(100*time.Microsecond))) + m.wakeUp()/3
	e := Drained{g.ID, pid, lease, m.now, max(1, g.worked[pid]), false}
	if g.liar {
		e.Worked = 1
	}
	delete(g.worked, pid)
	m.after(way, func() { m.answer(g, pid, e) })
}

// answer reports something unless the process is gone; a frozen one reports it when it thaws.
func (m *machine) answer(g *guest, pid int, e LeaseEvent) {
	m.reply(g, pid, func() LeaseEvent { return e })
}

func (m *machine) reply(g *guest, pid int, what func() LeaseEvent) {
	switch {
	case !slices.Contains(g.pids, pid):
	case g.frozen:
		m.after(100*ms, func() { m.reply(g, pid, what) })
	default:
		m.step(what())
	}
}

// has is what a process holds.
func (g *guest) has(pid, gpu int) *holding {
	key := [2]int{pid, gpu}
	if g.holds == nil {
		g.holds = make(map[[2]int]*holding)
	}
	if g.holds[key] == nil {
		g.holds[key] = new(holding)
	}
	return g.holds[key]
}

// is is what a process says of its memory.
func (g *guest) is(pid, gpu int) MemoryIs {
	h := g.has(pid, gpu)
	return MemoryIs{g.ID, pid, gpu, h.resident, h.absent, false, h.moves > 0}
}

// ask is an allocation. One that is refused has failed.
func (m *machine) ask(g *guest, pid, gpu int, bytes node.Bytes) {
	h := g.has(pid, gpu)
	h.absent += bytes
	e := g.is(pid, gpu)
	e.Asking = true
	for _, d := range m.step(e) {
		if _, refused := d.(Refuse); refused {
			h.absent -= min(bytes, h.absent)
			m.step(g.is(pid, gpu))
		}
	}
}

func (m *machine) free(g *guest, pid, gpu int, bytes node.Bytes, absent bool) {
	from := &g.has(pid, gpu).resident
	if absent {
		from = &g.has(pid, gpu).absent
	}
	*from -= min(bytes, *from)
	m.step(g.is(pid, gpu))
}

// move is a copy at 50 GB/s, reported in two parts. One in two hundred stops half way.
func (m *machine) move(g *guest, pid, gpu int, bytes node.Bytes, out bool) {
	half, h := bytes/2, g.has(pid, gpu)
	took := time.Duration(bytes / 50)
	fails := m.faulty && m.rng.IntN(200) == 0
	shift := func(bytes node.Bytes) {
		from, to := &h.absent, &h.resident
		if out {
			from, to = to, from
		}
		bytes = min(bytes, *from)
		*from -= bytes
		*to += bytes
	}
	first := func() { // before the second, however late both are told
		shift(half)
		half, bytes = 0, bytes-half
	}
	h.moves++
	m.after(took/2, func() { m.reply(g, pid, func() LeaseEvent { first(); return g.is(pid, gpu) }) })
	m.after(took, func() {
		m.reply(g, pid, func() LeaseEvent {
			h.moves--
			first()
			if !fails {
				shift(bytes)
			}
			return g.is(pid, gpu)
		})
	})
}

// tenantOn is a guaranteed tenant with a weight on one GPU.
func tenantOn(id string, cores node.Percent, gpus ...int) LeaseTenant {
	return LeaseTenant{ID: id, GPUs: gpus, Cores: cores, Class: share.Guaranteed}
}

// kernels last between a tenth and the whole of longest.
func kernels(longest time.Duration) func(*rand.Rand) time.Duration {
	return func(r *rand.Rand) time.Duration { return longest/10 + time.Duration(r.Int64N(int64(longest*9/10))) }
}
