package arbiter

import (
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/vgpu/region"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

// Memory of over-committed shares. A process moves it by order, to host memory that kerfd gives it: files whose pages are made
// before they are given, so that they count against kerfd's control group and not against the tenant's limit. The
// kernel hands out zeroed pages, and a file belongs to one process for as long as that has it mapped: nobody finds
// another's bytes there.

const (
	// hostGrain is the size of a file. Page-locking one holds up the process's keeper for as long as it takes.
	hostGrain = 256 * node.MiB

	// piece is the least that moves.
	piece = 2 * node.MiB

	// most bounds what a process may say that it has, so that sums do not overflow.
	most = 1 << 50
)

// memoryClient is what the lessor knows of one session's memory beyond Step. Numbers begin anew with each connection.
type memoryClient struct {
	orders [region.MaxDevices]uint64 // numbers of the last
	queue  []region.Lease            // orders that wait for host memory, and those behind them
	giving bool                      // host memory is being made for the first of them

	given              node.Bytes // host memory that it has
	told               bool       // it has said how much
	files, dealt, trim uint64     // numbers of the last file or trim: sent, dealt with; and of the last trim
}

// connect begins a session's connection, or another of its connections.
func (t *lessee) connect(slot int) {
	m := &memoryClient{}
	if old := t.memory[slot]; old != nil {
		m.given, m.told, m.giving = old.given, old.told, old.giving
	}
	t.memory[slot] = m
}

// overcommitted says whether a share's memory may be moved.
func overcommitted(grant share.Grant) bool {
	return slices.ContainsFunc(grant.Devices, func(d share.Device) bool { return d.Mode == share.ModeOvercommit })
}

// remember takes a report of a process's memory.
func (l *lessor) remember(id string, slot int, m region.Lease) {
	l.mu.Lock()
	defer l.mu.Unlock()
	t, err := l.leases.find(id)
	own := l.tenants[id]
	if err != nil || own == nil || own.procs[slot] == nil || own.memory[slot] == nil || int(m.Device) >= len(t.GPUs) || m.Memory > most || m.Absent > most {
		return
	}
	m.Memory, m.Absent = l.believable(t, own, slot, m)
	client := own.memory[slot]
	client.hears(m, 2*node.Bytes(own.limit(m.Device)))
	place := t.GPUs[m.Device]
	l.moved[place]++
	report := MemoryIs{
		Tenant: id, Process: slot, GPU: place, Resident: node.Bytes(m.Memory), Absent: node.Bytes(m.Absent),
		Asking: m.Flags&1 != 0, Moving: m.Lease < client.orders[m.Device],
	}
	l.shortfall(t, report)
	l.step(report)
}

// hears takes what a process says of its host memory. It has no more than it was given, and what it was given counts until it says that
// it has dealt with the last file; the first word under this kerfd is of files of the one before.
func (c *memoryClient) hears(m region.Lease, most node.Bytes) {
	if m.At <= c.files {
		c.dealt = max(c.dealt, m.At)
	}
	switch {
	case !c.told:
		c.given, c.told = c.given+min(node.Bytes(m.Host), most), true
	case c.dealt == c.files && !c.giving:
		c.given = min(c.given, node.Bytes(m.Host))
	}
}

// limit is the most that a share may have of a device, in bytes.
func (t *lessee) limit(device uint32) uint64 {
	return uint64(t.live.spec.Grant.Devices[device].HardLimit())
}

// believable is a process's report within what its share may have. Whole pieces hold more than what was asked for; twice as much is
// what no program needs and a liar gains little by.
func (l *lessor) believable(t *tenancy, own *lessee, slot int, m region.Lease) (resident, absent uint64) {
	most := 2*own.limit(m.Device) + uint64(64*node.MiB)
	for i := range t.processes {
		if p := &t.processes[i]; p.id != slot {
			most -= min(most, uint64(p.memory[t.GPUs[m.Device]].total))
		}
	}
	resident = min(m.Memory, most)
	return resident, min(m.Absent, most-resident)
}

// shortfall notes an order that was carried out in part. It is tried again, and what stands in the way is mostly found by then.
func (l *lessor) shortfall(t *tenancy, e MemoryIs) {
	p := t.process(e.Process)
	if p == nil || e.Moving {
		return
	}
	m := p.memory[e.GPU] // as Step will have it
	m.report(e.Resident, e.Absent)
	if in, out := m.in, m.out; !m.settled() {
		go l.notify(Event{Kind: MoveShort, Share: t.ID, Message: fmt.Sprintf("%s were to be moved in and %s out, and are not: the card, or the host memory for it, is fuller than was known", in, out)})
	}
}

// refused tells a process that what it asked for can never be had, and why in the log.
func (l *lessor) refused(d Refuse) {
	e, ok := d.Event.(MemoryIs)
	if !ok || !e.Asking {
		return
	}
	if t := l.tenants[e.Tenant]; t != nil && t.procs[e.Process] != nil {
		t.send(e.Process, region.Lease{Kind: region.LeaseRefused, Device: uint32(l.deviceAt(e.Tenant, e.GPU))})
		go l.notify(Event{Kind: Noted, Share: e.Tenant, Message: d.Reason})
	}
}

// deviceAt is the number that a place has in a tenant's policy.
func (l *lessor) deviceAt(tenant string, place int) int {
	t, err := l.leases.find(tenant)
	if err != nil {
		return -1
	}
	return slices.Index(t.GPUs, place)
}

// order has a process move memory, after what it was ordered before. What goes out needs a place in host memory first.
func (l *lessor) order(kind uint32, tenant string, slot, place int, bytes node.Bytes) {
	own, device := l.tenants[tenant], l.deviceAt(tenant, place)
	if own == nil || own.memory[slot] == nil || device < 0 {
		return
	}
	client := own.memory[slot]
	l.moved[place]++
	client.orders[device]++
	client.queue = append(client.queue, region.Lease{Kind: kind, Device: uint32(device), Lease: client.orders[device], Memory: uint64(bytes)})
	l.pump(own, slot)
}

// pump sends the orders that can be carried out.
func (l *lessor) pump(own *lessee, slot int) {
	for client := own.memory[slot]; len(client.queue) > 0 && !client.giving && own.procs[slot] != nil; {
		next := client.queue[0]
		if next.Kind == region.LeaseOut && l.provide(own, slot, next.Device, l.lacks(own, slot)) {
			return
		}
		client.queue = client.queue[1:]
		own.send(slot, next)
	}
}

// provide begins to make host memory for a process, and says whether it did. Orders wait meanwhile.
func (l *lessor) provide(own *lessee, slot int, device uint32, lacks node.Bytes) bool {
	if lacks = l.affordable(own, slot, lacks); lacks == 0 {
		return false
	}
	own.memory[slot].giving = true
	l.making += lacks
	go l.give(own, slot, device, lacks)
	return true
}

// lacks is how much more host memory a process needs for what is out and what is ordered out, in whole files.
func (l *lessor) lacks(own *lessee, slot int) (need node.Bytes) {
	_, p, err := l.leases.findProcess(own.live.spec.ID, slot)
	if err != nil {
		return 0
	}
	for _, m := range p.memory {
		need += m.total - m.resident + m.out
	}
	return files(need - min(need, own.memory[slot].given))
}

func files(bytes node.Bytes) node.Bytes { return (bytes + hostGrain - 1) / hostGrain * hostGrain }

// affordable is as much of what a process lacks as the node's pool has. Where that is less, the others are asked for what they do not
// use; what could not be moved now is tried again a moment later.
func (l *lessor) affordable(own *lessee, slot int, lacks node.Bytes) node.Bytes {
	used := l.making
	for _, t := range l.tenants {
		for _, c := range t.memory {
			used += c.given
		}
	}
	free := l.pool - min(used, l.pool)
	if lacks <= free {
		return lacks
	}
	for _, t := range l.tenants {
		for other, c := range t.memory {
			if c != own.memory[slot] && c.given > 0 && c.dealt >= c.trim && t.procs[other] != nil {
				c.files++
				c.trim = c.files
				t.send(other, region.Lease{Kind: region.LeaseTrim, Lease: c.trim})
			}
		}
	}
	go l.notify(Event{Kind: PoolShort, Share: own.live.spec.ID, Message: fmt.Sprintf(
		"%s of host memory asked for what is swapped out, %s of the %s set aside is free; others are asked for what they do not use. Set swap.hostMemory higher, or over-commit less",
		lacks, free, l.pool)})
	return free / hostGrain * hostGrain
}

// give makes host memory for a process, a file at a time. It runs without the lock: making pages takes a tenth of a second for a GiB.
func (l *lessor) give(own *lessee, slot int, device uint32, bytes node.Bytes) {
	client := l.connection(own, slot)
	for ; bytes > 0; bytes -= hostGrain {
		fd, err := hostFile(hostGrain)
		if err != nil {
			l.notify(Event{Kind: PoolShort, Share: own.live.spec.ID, Message: fmt.Sprintf(
				"cannot make %s of host memory for what is swapped out: %v; free some, set swap.hostMemory lower, or raise the memory limit of kerfd's pod", bytes, err)})
			break
		}
		sent := l.handOver(own, slot, client, device, fd)
		_ = unix.Close(fd)
		if !sent {
			break
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.making -= bytes
	if memory := own.memory[slot]; memory != nil {
		memory.giving = false
		if next := memory.queue; !l.closed && own.procs[slot] == client && len(next) > 0 { // it goes now, and in part where less could be made
			memory.queue = next[1:]
			own.send(slot, next[0])
		}
		l.pump(own, slot)
	}
}

func (l *lessor) connection(own *lessee, slot int) *leaseClient {
	l.mu.Lock()
	defer l.mu.Unlock()
	return own.procs[slot]
}

// A process page-locks each file before it takes the next; the socket holds more than so many, and a process that takes none for so
// long gets no more.
const (
	filesAhead = 16
	fileLook   = 5 * time.Millisecond
	fileWithin = 10 * time.Second
)

// handOver sends a file once the process has dealt with most of those before.
func (l *lessor) handOver(own *lessee, slot int, client *leaseClient, device uint32, fd int) (sent bool) {
	for began := monotonic(); monotonic()-began < fileWithin; time.Sleep(fileLook) {
		l.mu.Lock()
		memory := own.memory[slot]
		gone := l.closed || client == nil || memory == nil || own.procs[slot] != client
		if !gone && memory.files-memory.dealt < filesAhead {
			memory.files++
			memory.given += hostGrain
			l.making -= hostGrain
			own.sendFile(slot, region.Lease{Kind: region.LeaseHost, Device: device, Lease: memory.files, Memory: uint64(hostGrain)}, fd)
			l.mu.Unlock()
			return true
		}
		l.mu.Unlock()
		if gone {
			return false
		}
	}
	return false
}

// hostFile is a file of memory whose pages are there.
func hostFile(bytes node.Bytes) (fd int, err error) {
	if fd, err = unix.MemfdCreate("kerf-swap", unix.MFD_CLOEXEC); err != nil {
		return -1, err
	}
	if err = unix.Fallocate(fd, 0, 0, int64(bytes)); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// prepare gives host memory ahead of need where a GPU's tenants have more than it: a tenant would wait for it otherwise. It comes once
// a second.
func (l *lessor) prepare() {
	for place, room := range l.leases.memory {
		total := node.Bytes(0)
		for i := range l.leases.tenants {
			total += l.leases.tenants[i].on(place).total
		}
		if total <= room {
			continue
		}
		for i := range l.leases.tenants {
			t := &l.leases.tenants[i]
			for j := range t.processes {
				l.prepareProcess(t, &t.processes[j], place, total-room)
			}
		}
	}
}

func (l *lessor) prepareProcess(t *tenancy, p *process, place int, excess node.Bytes) {
	own := l.tenants[t.ID]
	client, m := own.memory[p.id], p.memory[place]
	want := min(m.total, excess)
	if client == nil || own.procs[p.id] == nil || client.giving || len(client.queue) > 0 || client.given >= want || m.ordered {
		return
	}
	l.provide(own, p.id, uint32(slices.Index(t.GPUs, place)), files(want-client.given))
}

// --- how much of a card is for what can be moved ---

// stamp says whether anything of a place's memory has moved since it was last asked.
func (l *lessor) stamp(gpu node.UUID) (stamp uint64, resident node.Bytes, still bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	place, ok := l.places[gpu]
	if !ok {
		return 0, 0, false
	}
	still = true
	for i := range l.leases.tenants {
		on := l.leases.tenants[i].on(place)
		resident += on.resident
		still = still && on.in+on.out == 0
	}
	return l.moved[place], resident, still
}

// setRoom says what a card has for what can be moved, if nothing has moved since the stamp.
func (l *lessor) setRoom(gpu node.UUID, stamp uint64, room node.Bytes) {
	l.mu.Lock()
	defer l.mu.Unlock()
	room = pieces(room)
	if place, ok := l.places[gpu]; ok && l.moved[place] == stamp && l.leases.memory[place] != room {
		l.step(RoomIs{place, room})
	}
}

// pieces is whole pieces, in which memory moves: room for a part of one is room for nothing.
func pieces(bytes node.Bytes) node.Bytes { return bytes / piece * piece }

// reserve is kept free on a card: for a context that somebody is about to make, and pages between the pieces.
func reserve(card, context node.Bytes) node.Bytes { return max(context, card/64) }
