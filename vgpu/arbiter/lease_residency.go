package arbiter

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

// admit refuses a tenant that could never run, or beside which another could not.
func (s *step) admit(t LeaseTenant) error {
	if err := s.check(t); err != nil {
		return err
	}
	for _, g := range t.GPUs {
		if room := s.roomFor(t, g); t.MinResident > room {
			return fmt.Errorf("tenant %q, minResident %s: GPU %d has %s, of which the others leave %s; ask for less", t.ID, t.MinResident, g, s.memory[g], room)
		}
		for i := range s.tenants {
			o := &s.tenants[i]
			if o.ID == t.ID {
				continue
			}
			rest := s.roomFor(o.LeaseTenant, g) + s.minOf(t.ID, g)
			if total := o.on(g).total; total > rest-min(t.MinResident, rest) {
				return fmt.Errorf("tenant %q, minResident %s: tenant %q has %s on GPU %d and would never be in again; ask for less", t.ID, t.MinResident, o.ID, total, g)
			}
		}
	}
	return nil
}

func (s *step) check(t LeaseTenant) error {
	switch {
	case t.ID == "":
		return fmt.Errorf("tenant %q: has no name", t.ID)
	case len(t.GPUs) == 0:
		return fmt.Errorf("tenant %q: has no GPU; name at least one", t.ID)
	case !slices.Contains(share.Classes, t.Class):
		return fmt.Errorf("tenant %q, class %q: not known; use guaranteed, burstable or besteffort", t.ID, t.Class)
	case t.Cores.Validate() != nil:
		return fmt.Errorf("tenant %q: cores: %w", t.ID, t.Cores.Validate())
	case t.Capped && t.Cores == 0:
		return fmt.Errorf("tenant %q, cores 0 with burst: false: it would never run; ask for cores, or let it burst", t.ID)
	}
	for i, g := range t.GPUs {
		if g < 0 || g >= len(s.rules.Memory) {
			return fmt.Errorf("tenant %q, GPU %d: there are %d, counted from 0", t.ID, g, len(s.rules.Memory))
		}
		if slices.Contains(t.GPUs[:i], g) {
			return fmt.Errorf("tenant %q, GPU %d: named twice", t.ID, g)
		}
	}
	return nil
}

// roomFor is what the others' minResident leaves to a tenant.
func (s *step) roomFor(t LeaseTenant, gpu int) node.Bytes {
	room := s.memory[gpu]
	for i := range s.tenants {
		if o := &s.tenants[i]; o.ID != t.ID {
			keeps := s.minOf(o.ID, gpu)
			if o.stuck { // nothing of it will move
				keeps = max(keeps, o.on(gpu).resident)
			}
			room -= min(room, keeps)
		}
	}
	return room
}

// refuseAskers fails allocations for which there can be no room since a tenant does not move: whoever waits for that waits for ever.
func (s *step) refuseAskers(stuck *tenancy) {
	for i := range s.tenants {
		w := &s.tenants[i]
		if w == stuck || !w.asking || !w.gpus.overlaps(stuck.gpus) {
			continue
		}
		for _, g := range w.GPUs {
			if room := s.roomFor(w.LeaseTenant, g); w.on(g).total > room {
				s.refuseOn(w, g, fmt.Sprintf("memory %s: tenant %q does not move its own, and leaves %s of GPU %d; end it, or try again when it has ended", w.on(g).total, stuck.ID, room, g))
			}
		}
	}
}

func (s *step) refuseOn(w *tenancy, gpu int, reason string) {
	for i := range w.processes {
		if p := &w.processes[i]; p.memory[gpu].absent() > 0 {
			s.decide(Refuse{MemoryIs{Tenant: w.ID, Process: p.id, GPU: gpu, Resident: p.memory[gpu].resident, Absent: p.memory[gpu].absent(), Asking: true}, reason})
		}
	}
}

func (s *step) minOf(id string, gpu int) node.Bytes {
	if t, err := s.find(id); err == nil && t.gpus.has(gpu) {
		return t.MinResident
	}
	return 0
}

// settleMemory brings in what a tenant lacks, or goes on doing so.
func (s *step) settleMemory(w *tenancy) {
	if w.arriving && (!w.busy() || w.stuck) {
		w.arriving = false // what is on its way still arrives
	}
	if !w.busy() || w.stuck || w.complete() || w.leaving() {
		return // what is being moved out is not met by more coming in, or the two could go on for ever
	}
	if !w.arriving {
		if !s.fitsNow(w) && !s.mayArrive(w) {
			return
		}
		w.arriving, w.departed = true, s.clock
	}
	for _, g := range w.GPUs {
		s.makeRoom(w, g)
		s.bringIn(w, g)
	}
	if !w.moving() && !s.roomIsComing(w) {
		w.arriving = false // who was to make room no longer does; let somebody else try
	}
}

func (s *step) free(gpu int) node.Bytes {
	free := s.memory[gpu]
	for i := range s.tenants {
		on := s.tenants[i].on(gpu)
		free -= min(free, on.resident+on.in)
	}
	return free
}

// coming is what others are moving out. Of those who are stuck nothing is expected.
func (s *step) coming(w *tenancy, gpu int) (bytes node.Bytes) {
	for i := range s.tenants {
		if t := &s.tenants[i]; t != w && !t.stuck {
			bytes += t.on(gpu).out
		}
	}
	return bytes
}

func (s *step) roomIsComing(w *tenancy) bool {
	return slices.ContainsFunc(w.GPUs, func(g int) bool { return s.coming(w, g) > 0 })
}

func (s *step) fitsNow(w *tenancy) bool {
	return !slices.ContainsFunc(w.GPUs, func(g int) bool { on := w.on(g); return on.absent() > s.free(g) })
}

// short is what w lacks on a GPU beyond what is free or will be.
func (s *step) short(w *tenancy, gpu int) node.Bytes {
	on := w.on(gpu)
	have := s.free(gpu) + s.coming(w, gpu)
	return on.absent() - min(on.absent(), have)
}

// mayArrive is admission: one tenant at a time moves in over others, and only if they can make all the room that it needs.
// Two who moved in together by halves would each wait for the other's.
func (s *step) mayArrive(w *tenancy) bool {
	for i := range s.tenants {
		if o := &s.tenants[i]; o != w && o.arriving && o.gpus.overlaps(w.gpus) {
			return false
		}
	}
	enough, ending := true, []*tenancy(nil)
	for _, g := range w.GPUs {
		short := s.short(w, g)
		for _, v := range s.victims(w, g) {
			if v.phase != closed && short > 0 {
				enough = false
				ending = append(ending, v)
			}
			short -= min(short, s.evictable(v, g))
		}
		if short > 0 {
			return false
		}
	}
	for _, v := range ending {
		s.end(v)
	}
	return enough
}

// victims are those whose memory may leave for w: by class, then by when they were last used; before them those whose work need not stop for it.
func (s *step) victims(w *tenancy, gpu int) (victims []*tenancy) {
	for i := range s.tenants {
		if v := &s.tenants[i]; v != w && s.evictable(v, gpu) > 0 && s.mayEvict(w, v) {
			victims = append(victims, v)
		}
	}
	slices.SortStableFunc(victims, func(a, b *tenancy) int {
		return cmp.Or(
			cmp.Compare(disturbed(a), disturbed(b)),
			cmp.Compare(slices.Index(share.Classes, b.Class), slices.Index(share.Classes, a.Class)),
			cmp.Compare(a.used, b.used),
		)
	})
	return victims
}

func disturbed(v *tenancy) int {
	if v.holds() && v.working() {
		return 1
	}
	return 0
}

func (s *step) mayEvict(w, v *tenancy) bool {
	if v.stuck || v.arriving || v.phase == straggling || (v.holds() && !s.yields(v, w)) {
		return false
	}
	switch {
	case !v.busy() && v.calm <= s.clock, w.rank() < v.rank():
		return true
	case w.stay > s.clock && !v.complete() && v.rank() >= w.rank():
		return true // v can do nothing before w's stay ends, whatever it is owed; so w may have what it lacks
	}
	return v.stay <= s.clock && before(w, v)
}

// evictable is what may leave a GPU: not what is leaving already, and nothing of a process that could not move it a moment ago.
func (s *step) evictable(t *tenancy, gpu int) node.Bytes {
	var staying, fixed node.Bytes
	for i := range t.processes {
		m := &t.processes[i].memory[gpu]
		staying += m.staying()
		if m.rest > s.clock || !m.known {
			fixed += m.staying()
		}
	}
	return staying - min(staying, max(t.MinResident, fixed))
}

// makeRoom evicts just enough.
func (s *step) makeRoom(w *tenancy, gpu int) {
	short := s.short(w, gpu)
	for _, v := range s.victims(w, gpu) {
		if v.phase != closed {
			continue
		}
		bytes := min(short, s.evictable(v, gpu))
		short -= bytes
		s.evict(v, gpu, bytes)
	}
}

func (s *step) evict(v *tenancy, gpu int, bytes node.Bytes) {
	for i := range v.processes {
		p := &v.processes[i]
		m := &p.memory[gpu]
		part := min(bytes, m.staying())
		if part == 0 || m.rest > s.clock || !m.known {
			continue
		}
		bytes -= part
		m.out += part
		m.ordered = true
		m.patience = s.clock + s.rules.SwapTimeout
		s.decide(Evict{v.ID, p.id, gpu, part})
	}
}

// bringIn uses the room that is free now, and so runs beside the eviction of the rest.
func (s *step) bringIn(w *tenancy, gpu int) {
	free := s.free(gpu)
	for i := range w.processes {
		p := &w.processes[i]
		m := &p.memory[gpu]
		part := min(free, m.absent())
		if part == 0 || m.rest > s.clock {
			continue
		}
		free -= part
		m.in += part
		m.ordered = true
		m.patience = s.clock + s.rules.SwapTimeout
		s.decide(BringIn{w.ID, p.id, gpu, part})
	}
}

// arrived starts the stay of those all of whose memory is in now, and forgets what they waited for: it came, or it died.
func (s *step) arrived() {
	for i := range s.tenants {
		t := &s.tenants[i]
		if !t.asking && !t.arriving || !t.complete() {
			continue
		}
		wasBusy := t.busy()
		if t.arriving {
			t.stay = s.clock + max(stayFactor*(s.clock-t.departed), minStay)
		}
		t.asking, t.arriving = false, false
		t.calm = s.clock + minStay // who loads a model allocates again at once, and would be thrown out between two allocations
		s.rested(t, wasBusy)
	}
}

// dueMemory is when memory has moved for too long, and when the stay of those ends who are in somebody's way.
func (s *step) dueMemory(t *tenancy, due func(time.Duration)) {
	t.anyPages(func(p *pages) bool {
		if p.patience > 0 && !t.stuck {
			due(p.patience)
		}
		if p.rest > s.clock {
			due(p.rest)
		}
		return false
	})
	if t.stay <= s.clock && t.calm <= s.clock {
		return
	}
	for i := range s.tenants {
		if o := &s.tenants[i]; o != t && o.busy() && !o.complete() && o.gpus.overlaps(t.gpus) {
			for _, at := range []time.Duration{t.stay, t.calm} {
				if at > s.clock {
					due(at)
				}
			}
		}
	}
}
