package arbiter

import (
	"math"
	"slices"
	"time"

	"github.com/kerf-gpu/kerf/vgpu/share"
)

// whole is all the time of a GPU, as a rate. Rates are integers so that every machine decides the same.
const whole = 1_000_000

// longest bounds what is counted in one go: rates times longer times would not fit an int64.
const longest = time.Hour

// pass brings the books to a later moment, by what was true until then.
func (s *step) pass(now time.Duration) {
	dt := min(now-s.clock, longest)
	s.clock = now
	if dt == 0 {
		return
	}
	rates := s.rates()
	for i, rate := range rates {
		t := &s.tenants[i]
		cost := s.cost(t, dt)
		t.credit += time.Duration(int64(dt) * rate / whole)
		t.allowance += dt * time.Duration(t.Cores) / 100
		t.pay(cost)
		if t.occupies() && t.working() {
			t.used = now
		}
	}
	s.level(rates)
}

func (t *tenancy) pay(cost time.Duration) {
	t.paid += cost
	t.got += cost
	t.credit -= cost
	t.allowance -= cost
}

// believed is the part of what a lease cost that a tenant gets back, at most, where it says that the GPU had nothing to do.
// Some of that is the machine's doing: a thread takes time to wake up at its gate, and on a busy machine to submit more. But a
// tenant that leaves the GPU idle keeps it from the others all the same, and one that lies must not gain much by it.
const believed = 4

// grace is how much of a drain is not charged where the tenant could submit without bound, since nobody else was there. A program
// has some hundreds of launches queued then, by no fault of its own, and one with a small share would be off the GPU for as
// long as twenty times their length.
const grace = 500 * time.Millisecond

// giveBack settles a lease that has ended. The way of the last report is not charged, nor, within bounds, is time without work.
func (s *step) giveBack(t *tenancy) {
	if len(t.processes) == 0 {
		return
	}
	back := s.cost(t, s.clock-max(t.ended, t.since))
	if !t.unmeasured {
		back = max(back, min(t.paid-t.worked, back+(t.paid-back)/believed))
	}
	if t.loose {
		back = max(back, min(s.clock-t.since, grace))
	}
	t.pay(-back)
}

// cost is what a tenant pays for dt. The driver gives equal slices to all who have work on a GPU.
func (s *step) cost(t *tenancy, dt time.Duration) time.Duration {
	if !t.occupies() {
		return 0
	}
	most := 1
	for _, g := range t.GPUs {
		n := 0
		for i := range s.tenants {
			if s.tenants[i].occupies() && s.tenants[i].gpus.has(g) {
				n++
			}
		}
		most = max(most, n)
	}
	return dt / time.Duration(most)
}

// earns says whose books move. Who sleeps with debts goes on paying them, or sleeping would be a way around them.
func (t *tenancy) earns() bool { return t.busy() || t.occupies() || t.credit < 0 }

// rates is the part of the time that is due to each tenant now, by rank, and by cores within a rank. A gang is bound by the
// most wanted of its GPUs; what it so leaves on the others is for the rest there.
func (s *step) rates() []int64 {
	rates := make([]int64, len(s.tenants))
	room := make([]int64, len(s.rules.Memory))
	for g := range room {
		room[g] = whole
	}
	for rank := range share.Classes {
		var guaranteed, rest []int
		for i := range s.tenants {
			switch t := &s.tenants[i]; {
			case t.rank() != rank || !t.earns():
			case t.Cores == 0:
				rest = append(rest, i)
			default:
				guaranteed = append(guaranteed, i)
			}
		}
		s.floor(rates, room, rest)
		s.fill(rates, room, guaranteed)
		s.fill(rates, room, rest)
	}
	return rates
}

// floorPart is the time of a GPU that is for all tenants without cores of a class together, while others of their class are
// busy. It is within the error that shares have, so that it takes nothing from a guarantee; with none at all they would wait
// for as long as anybody else has work, and what waits for minutes is taken for hung.
const floorPart = whole * 2 / 100

func (s *step) floor(rates, room []int64, rest []int) {
	count := make([]int64, len(room))
	for _, i := range rest {
		for _, g := range s.tenants[i].GPUs {
			count[g]++
		}
	}
	for _, i := range rest {
		rates[i] = whole
		for _, g := range s.tenants[i].GPUs {
			rates[i] = min(rates[i], min(floorPart, room[g])/count[g])
		}
	}
	for _, i := range rest {
		for _, g := range s.tenants[i].GPUs {
			room[g] -= rates[i]
		}
	}
}

// ratio is room for each unit of weight.
type ratio struct{ room, weight int64 }

func (r ratio) less(than ratio) bool { return r.room*than.weight < than.room*r.weight }

// fill raises the rates of the open tenants together, by weight, until each is bound by a full GPU or its own limit.
func (s *step) fill(rates, room []int64, open []int) {
	for len(open) > 0 {
		weight := make([]int64, len(room))
		for _, i := range open {
			for _, g := range s.tenants[i].GPUs {
				weight[g] += s.tenants[i].weight()
			}
		}
		bound := func(i int) ratio { return s.tenants[i].bound(room, weight) }
		lowest := bound(open[0])
		for _, i := range open[1:] {
			if r := bound(i); r.less(lowest) {
				lowest = r
			}
		}
		before := slices.Clone(room)
		open = slices.DeleteFunc(open, func(i int) bool {
			t := &s.tenants[i]
			if lowest.less(t.bound(before, weight)) {
				return false
			}
			rate := lowest.room * t.weight() / lowest.weight
			rates[i] += rate
			for _, g := range t.GPUs {
				room[g] -= min(rate, room[g])
			}
			return true
		})
	}
}

func (t *tenancy) bound(room, weight []int64) ratio {
	lowest := ratio{whole, 1}
	if t.capped() {
		lowest = ratio{whole / 100 * int64(t.Cores), t.weight()}
	}
	for _, g := range t.GPUs {
		if r := (ratio{room[g], weight[g]}); r.less(lowest) {
			lowest = r
		}
	}
	return lowest
}

// level moves the credit of all who compete with each other up or down together, until somebody among them is even. Only
// differences count, and a tenant that joins must find itself among the others, not far below or above them: GPUs that
// stand still while memory moves or a gang assembles give everybody credit, and caps that add up to less than a GPU debt.
// Everybody moves by what is due to it of the same time: moved by the same amount, the lightest would lose most of what it has.
func (s *step) level(rates []int64) {
	seen := make([]bool, len(s.tenants))
	for i := range s.tenants {
		if t := &s.tenants[i]; !seen[i] && t.earns() {
			s.levelGroup(s.rivals(i, seen), rates)
		}
	}
	for i := range s.tenants {
		t := &s.tenants[i]
		if !t.busy() {
			t.credit = min(t.credit, 0)
		}
		t.credit = min(max(t.credit, -s.rules.MaxDebt), s.rules.MaxDebt)
		// What was saved while waiting may be used; what was saved while idle would be a burst above the cap.
		most := s.portion(t)
		if t.busy() {
			most = 2 * s.rules.Lease
		}
		t.allowance = min(max(t.allowance, -s.rules.MaxDebt), most)
		if !t.capped() {
			t.allowance = most
		}
		t.resting = t.capped() && (t.allowance <= 0 || t.resting && t.allowance < s.portion(t))
	}
}

// portion is the allowance with which a capped tenant begins: it lasts for a lease, since it earns while it spends.
func (s *step) portion(t *tenancy) time.Duration {
	return s.rules.Lease * time.Duration(100-t.Cores) / 100
}

func (s *step) levelGroup(group []int, rates []int64) {
	due := func(i int) int64 { return max(1, rates[i]) }
	low, high := int64(math.MaxInt64), int64(math.MinInt64) // of the time that gives somebody its credit
	for _, i := range group {
		t := int64(s.tenants[i].credit) * whole / due(i)
		low, high = min(low, t), max(high, t)
	}
	shift := max(0, low) + min(0, high)
	for _, i := range group {
		s.tenants[i].credit -= time.Duration(shift * due(i) / whole)
	}
}

// rivals is everyone of a tenant's rank who earns on its GPUs, or on theirs, and so on.
func (s *step) rivals(first int, seen []bool) (group []int) {
	gpus, rank := s.tenants[first].gpus, s.tenants[first].rank()
	for grown := true; grown; {
		grown = false
		for i := range s.tenants {
			t := &s.tenants[i]
			if seen[i] || !t.earns() || t.rank() != rank || !t.gpus.overlaps(gpus) {
				continue
			}
			seen[i], grown = true, true
			gpus |= t.gpus
			group = append(group, i)
		}
	}
	return group
}
