package arbiter

import (
	"cmp"
	"slices"
	"sync/atomic"

	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/vgpu/region"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

// reconcile compares the books with /proc and with NVML.
func (s *Server) reconcile() {
	s.notify(s.checkSessions()...)
	for _, gpu := range s.gpusInUse() {
		if s.beginAsking(gpu) { // each for itself: one that hangs must not hold up the others
			go func() {
				s.reconcileGPU(gpu)
				s.endAsking(gpu)
			}()
		}
	}
}

func (s *Server) beginAsking(gpu node.UUID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	idle := !s.asking[gpu]
	s.asking[gpu] = true
	return idle
}

func (s *Server) endAsking(gpu node.UUID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.asking, gpu)
}

// memoryError keeps whether a GPU's memory is known, and has an event for each change.
func (s *Server) memoryError(gpu node.UUID, err error) []Event {
	now := ""
	if err != nil {
		now = err.Error()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.memoryErrors[gpu]
	s.memoryErrors[gpu] = now
	switch {
	case was == now:
		return nil
	case now == "":
		return []Event{{Kind: MemoryKnown, Message: gpu.String()}}
	}
	return []Event{{Kind: MemoryUnknown, Message: gpu.String() + ": " + now}}
}

// checkSessions looks for sessions that ended by exec, sums that drifted, and tenants that say their slot was changed.
func (s *Server) checkSessions() (events []Event) {
	s.mu.Lock()
	shares := s.sortedShares()
	processes := make(map[*liveShare]map[int]bool)
	for _, live := range shares {
		processes[live] = make(map[int]bool)
		for _, session := range live.slots {
			if session != nil {
				processes[live][session.PID] = true
			}
		}
	}
	s.mu.Unlock()
	for _, live := range shares {
		for pid := range processes[live] {
			events = append(events, s.checkProcess(live, pid, 0)...)
		}
		s.mu.Lock()
		if s.shares[live.spec.ID] == live {
			s.settle(live)
			if err := region.Guard(func() { s.checkSlots(live) }); err != nil {
				s.flag(live, err.Error())
			}
		}
		s.mu.Unlock()
	}
	return events
}

// measure counts a context that was just made, and learns its price: a price takes two readings that agree.
func (s *Server) measure(live *liveShare) {
	for _, d := range live.spec.Grant.Devices {
		for range 2 {
			s.reconcileGPU(d.UUID)
		}
	}
}

func (s *Server) checkSlots(live *liveShare) {
	page := live.usage.Page
	for _, session := range live.slots {
		if session == nil {
			continue
		}
		if slot := page.Slot[session.slot].Read(); slot.Tampered || slot.Mismatch > 0 {
			s.flag(live, "a process found its slot changed")
		}
	}
	for d := range live.devices() {
		used := page.Charged(d) + atomic.LoadUint64(&live.policy.Page.Device[d].Implicit)
		live.peak[d] = max(live.peak[d], used)
	}
}

func (s *Server) gpusInUse() (gpus []node.UUID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, live := range s.shares {
		for _, d := range live.spec.Grant.Devices {
			if live.count() > 0 && !slices.Contains(gpus, d.UUID) {
				gpus = append(gpus, d.UUID)
			}
		}
	}
	return gpus
}

// reconcileGPU finds the implicit bytes of every session on one GPU. NVML is asked without the lock.
func (s *Server) reconcileGPU(gpu node.UUID) {
	before := s.slotsOn(gpu)
	stamp, resident, still := s.stamp(gpu)
	used, err := s.config.Memory.ProcessMemory(gpu)
	s.notify(s.memoryError(gpu, err)...)
	if err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	after := s.slotsOnLocked(gpu)
	for key, now := range after {
		was := before[key]
		if len(was.slots) != len(now.slots) || used[key.pid] == UnknownBytes {
			continue // a session came or went meanwhile; or what was known last goes on to count
		}
		nvml := uint64(used[key.pid])
		bytes, ok := implicitBytes(nvml, was.slots, now.slots, now.device)
		if !ok {
			continue
		}
		first := now.sessions[0] // a process's implicit bytes are booked on its oldest session
		first.implicit[now.device] = sample{last: bytes, previous: first.implicit[now.device].last}
		if nvml == first.nvml[now.device] { // twice the same: not in the middle of making a context
			s.learnContext(gpu, nvml, now)
		}
		first.nvml[now.device] = nvml
	}
	for _, live := range s.shares {
		s.publishImplicit(live)
	}
	if still {
		s.setRoom(gpu, stamp, resident, used)
	}
}

func (s *Server) stamp(gpu node.UUID) (stamp uint64, resident node.Bytes, still bool) {
	if s.lessor == nil {
		return 0, 0, false
	}
	return s.lessor.stamp(gpu)
}

// setRoom finds what of an over-committed card is left for memory that can be moved: contexts, pools and programs outside of every
// share have the rest.
func (s *Server) setRoom(gpu node.UUID, stamp uint64, resident node.Bytes, used map[int]node.Bytes) {
	if !s.overcommits(gpu) {
		return
	}
	fixed := node.Bytes(0)
	for _, bytes := range used {
		if bytes != UnknownBytes {
			fixed += bytes
		}
	}
	card := s.config.Card(gpu)
	fixed -= min(fixed, resident)
	fixed += reserve(card, node.Bytes(s.contextBytes[gpu]))
	s.lessor.setRoom(gpu, stamp, card-min(card, fixed))
}

func (s *Server) overcommits(gpu node.UUID) bool {
	for _, live := range s.shares {
		if slices.ContainsFunc(live.spec.Grant.Devices, func(d share.Device) bool { return d.UUID == gpu && d.Mode == share.ModeOvercommit }) {
			return true
		}
	}
	return false
}

// onGPU is one process's sessions in one share, and what their slots held.
type onGPU struct {
	device   int
	sessions []*session
	slots    []region.Snapshot
}

type processKey struct {
	share string
	pid   int
}

func (s *Server) slotsOn(gpu node.UUID) map[processKey]onGPU {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.slotsOnLocked(gpu)
}

func (s *Server) slotsOnLocked(gpu node.UUID) map[processKey]onGPU {
	found := make(map[processKey]onGPU)
	for id, live := range s.shares {
		device := slices.IndexFunc(live.spec.Grant.Devices, func(d share.Device) bool { return d.UUID == gpu })
		if device < 0 {
			continue
		}
		for _, session := range live.slots {
			if session == nil {
				continue
			}
			key := processKey{id, session.PID}
			entry := found[key]
			entry.device = device
			entry.sessions = append(entry.sessions, session)
			_ = region.Guard(func() { entry.slots = append(entry.slots, live.usage.Page.Slot[session.slot].Read()) })
			found[key] = entry
		}
	}
	for _, entry := range found {
		sortByStart(entry.sessions)
	}
	return found
}

// learnContext takes what a process has that charged nothing, or nothing but a context, as the price of one context; the smallest
// that was seen is kept. From then on a context is charged when it is made, not found a second later.
func (s *Server) learnContext(gpu node.UUID, bytes uint64, now onGPU) {
	charged := uint64(0)
	for i := range now.slots {
		charged += now.slots[i].Charged[now.device]
	}
	known := s.contextBytes[gpu]
	if bytes == 0 || charged != 0 && charged != known || known != 0 && bytes >= known {
		return
	}
	s.contextBytes[gpu] = bytes
	for _, live := range s.shares {
		for d, device := range live.spec.Grant.Devices {
			if device.UUID == gpu {
				atomic.StoreUint64(&live.policy.Page.Device[d].ContextBytes, bytes)
			}
		}
	}
	s.limitFixed()
}

// publishImplicit writes the sum over a share's sessions where the tenants read it.
func (s *Server) publishImplicit(live *liveShare) {
	for d := range live.devices() {
		var total uint64
		for _, session := range live.slots {
			if session != nil {
				total += session.implicit[d].value()
			}
		}
		atomic.StoreUint64(&live.policy.Page.Device[d].Implicit, total)
	}
}

func sortByStart(sessions []*session) {
	slices.SortFunc(sessions, func(a, b *session) int { return cmp.Or(a.started.Compare(b.started), cmp.Compare(a.slot, b.slot)) })
}
