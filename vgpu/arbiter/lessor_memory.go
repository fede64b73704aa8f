package arbiter

import (
	"fmt"
	"slices"

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

// memoryClient is the memory of one process, as far as the lessor needs to know more than Step does.
type memoryClient struct {
	orders [region.MaxDevices]uint64 // numbers of the last
	host   node.Bytes                // host memory given to it, or on its way
	trim   bool                      // it was asked to give some back
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
	if err != nil || own == nil || own.procs[slot] == nil || int(m.Device) >= len(t.GPUs) || m.Memory > most || m.Absent > most {
		return
	}
	client := own.procs[slot]
	if client.memory.trim || node.Bytes(m.Host) > client.memory.host {
		client.memory.host, client.memory.trim = node.Bytes(m.Host), false
	}
	place := t.GPUs[m.Device]
	l.moved[place]++
	l.shortfall(t, slot, place, m, m.Lease < client.memory.orders[m.Device])
	l.step(MemoryIs{
		Tenant: id, Process: slot, GPU: place, Resident: node.Bytes(m.Memory), Absent: node.Bytes(m.Absent),
		Asking: m.Flags&1 != 0, Moving: m.Lease < client.memory.orders[m.Device],
	})
}

// shortfall notes an order that was carried out in part. It is tried again, and what stands in the way is mostly found by then.
func (l *lessor) shortfall(t *tenancy, slot, place int, m region.Lease, moving bool) {
	p := t.process(slot)
	if p == nil || moving {
		return
	}
	was := p.memory[place]
	was.report(node.Bytes(m.Memory), node.Bytes(m.Absent))
	if was.in+was.out > 0 {
		go l.notify(Event{Kind: MoveShort, Share: t.ID, Message: fmt.Sprintf("%s were to be moved in and %s out, and are not: the card, or the host memory for it, is fuller than was known", was.in, was.out)})
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

// order has a process move memory. What goes out needs a place in host memory first.
func (l *lessor) order(kind uint32, tenant string, slot, place int, bytes node.Bytes) {
	own, device := l.tenants[tenant], l.deviceAt(tenant, place)
	if own == nil || own.procs[slot] == nil || device < 0 {
		return
	}
	client := own.procs[slot]
	l.moved[place]++
	client.memory.orders[device]++
	message := region.Lease{Kind: kind, Device: uint32(device), Lease: client.memory.orders[device], Memory: uint64(bytes)}
	if kind == region.LeaseOut {
		if lacks := l.lacks(tenant, slot, bytes); lacks > 0 {
			if lacks = l.affordable(own, client, lacks); lacks > 0 {
				client.memory.host += lacks
				go l.give(own, slot, client, lacks, message)
				return
			}
		}
	}
	own.send(slot, message)
}

// lacks is how much more host memory a process needs to move bytes out, in whole files.
func (l *lessor) lacks(tenant string, slot int, bytes node.Bytes) node.Bytes {
	_, p, err := l.leases.findProcess(tenant, slot)
	if err != nil {
		return 0
	}
	need := bytes
	for _, m := range p.memory {
		need += m.total - m.resident
	}
	have := l.tenants[tenant].procs[slot].memory.host
	if need <= have {
		return 0
	}
	return (need - have + hostGrain - 1) / hostGrain * hostGrain
}

// affordable is as much of what a process lacks as the node's pool has. Where that is less, the others are asked for what they do not
// use; what could not be moved now is tried again a moment later.
func (l *lessor) affordable(own *lessee, client *leaseClient, lacks node.Bytes) node.Bytes {
	var used node.Bytes
	for _, t := range l.tenants {
		for _, c := range t.procs {
			used += c.memory.host
		}
	}
	free := l.pool - min(used, l.pool)
	if lacks <= free {
		return lacks
	}
	for _, t := range l.tenants {
		for slot, c := range t.procs {
			if c != client && c.memory.host > 0 && !c.memory.trim {
				c.memory.trim = true
				t.send(slot, region.Lease{Kind: region.LeaseTrim})
			}
		}
	}
	go l.notify(Event{Kind: PoolShort, Share: own.live.spec.ID, Message: fmt.Sprintf(
		"%s of host memory asked for what is swapped out, %s of the %s set aside is free; others are asked for what they do not use. Set swap.hostMemory higher, or over-commit less",
		lacks, free, l.pool)})
	return free / hostGrain * hostGrain
}

// give makes host memory for a process and sends it, and then the order that waits for it. It runs without the lock: making pages
// takes a tenth of a second for a GiB.
func (l *lessor) give(own *lessee, slot int, client *leaseClient, bytes node.Bytes, order region.Lease) {
	var files []int
	for n := node.Bytes(0); n < bytes; n += hostGrain {
		fd, err := hostFile(min(hostGrain, bytes-n))
		if err != nil {
			go l.notify(Event{Kind: PoolShort, Share: own.live.spec.ID, Message: fmt.Sprintf(
				"cannot make %s of host memory for what is swapped out: %v; free some, set swap.hostMemory lower, or raise the memory limit of kerfd's pod", bytes-n, err)})
			break
		}
		files = append(files, fd)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	client.memory.host -= bytes - min(bytes, node.Bytes(len(files))*hostGrain)
	for _, fd := range files {
		if own.procs[slot] == client && !l.closed {
			own.sendFile(slot, region.Lease{Kind: region.LeaseHost, Device: order.Device, Memory: uint64(hostGrain)}, fd)
		}
		_ = unix.Close(fd)
	}
	if order.Kind != 0 && own.procs[slot] == client && !l.closed {
		own.send(slot, order)
	}
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
	client := own.procs[p.id]
	m := p.memory[place]
	want := min(m.total, excess)
	if client == nil || client.memory.host >= want || m.in+m.out > 0 {
		return
	}
	lacks := (want - client.memory.host + hostGrain - 1) / hostGrain * hostGrain
	if lacks = l.affordable(own, client, lacks); lacks > 0 {
		client.memory.host += lacks
		go l.give(own, p.id, client, lacks, region.Lease{Device: uint32(slices.Index(t.GPUs, place))})
	}
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
