package topo

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/kerf-gpu/kerf/internal/node"
)

// Limits of Assign, far above any machine: ties are broken by numbers that hold
// this many.
const (
	MaxGPUs = 32
	MaxNICs = 254
)

// Pool is a NIC, and how many GPUs it can serve: its free VFs, or 1 for the
// whole NIC.
type Pool struct {
	NIC  node.NIC
	Free int
	Rail int // NoRail where it has none
}

// Seat is a GPU that wants a NIC, and the rail it belongs to.
type Seat struct {
	GPU  node.GPU
	Rail int // NoRail where it has none
}

// Pair is one GPU's NIC.
type Pair struct {
	NIC    int // index in what Assign was given; -1: none was left
	Class  node.AffinityClass
	Direct bool // so near by the NIC's Data Direct function
	OnRail bool // GPU and NIC are of one rail
}

// Assign gives each GPU a NIC, in the order of the GPUs. Of all ways to do it,
// the answer serves the most GPUs, and among those is the first by:
//
//  1. most pairs that are PXB or better, where GPUDirect RDMA works,
//  2. the best worst class,
//  3. the least sum of classes,
//  4. most pairs of one rail,
//  5. most even use of the NICs that have several to give,
//  6. the lowest address of the first GPU's NIC, then of the second's, …,
//     GPUs by address too.
//
// It is exact, and does not depend on the order of what is given.
func Assign(seats []Seat, pools []Pool) ([]Pair, error) {
	if len(seats) > MaxGPUs || len(pools) > MaxNICs {
		return nil, fmt.Errorf("assign NICs: %d GPUs and %d NICs given, at most %d and %d are possible; give fewer", len(seats), len(pools), MaxGPUs, MaxNICs)
	}
	p := newProblem(seats, pools)
	pairs := make([]Pair, len(seats))
	for row, column := range p.best() {
		pair := Pair{NIC: -1, Class: node.UnknownAffinity}
		if pool := p.columns[column].pool; pool >= 0 {
			pair = p.pairs[row][pool]
		}
		pairs[p.seats[row]] = pair
	}
	return pairs, nil
}

// problem is the seats and pools in order of address. A pool has a column for
// each GPU that it can serve; columns without a pool stand for no NIC.
type problem struct {
	seats   []int    // row → seat
	pairs   [][]Pair // by row and index of pool in the order of address
	columns []column
}

// column is the nth use of a pool, by index in the order of address; pool -1 is
// no NIC.
type column struct{ pool, nth int }

func newProblem(seats []Seat, pools []Pool) *problem {
	p := &problem{seats: make([]int, len(seats)), pairs: make([][]Pair, len(seats))}
	order := make([]int, len(pools))
	for i := range seats {
		p.seats[i] = i
	}
	for i := range pools {
		order[i] = i
	}
	slices.SortStableFunc(p.seats, func(a, b int) int {
		ga, gb := seats[a].GPU, seats[b].GPU
		return cmp.Or(ga.PCI.Compare(gb.PCI), slices.Compare(ga.UUID[:], gb.UUID[:]), cmp.Compare(ga.Index, gb.Index))
	})
	slices.SortStableFunc(order, func(a, b int) int { return pools[a].NIC.PCI.Compare(pools[b].NIC.PCI) })
	for row, s := range p.seats {
		for _, n := range order {
			class, direct := Between(seats[s].GPU, pools[n].NIC)
			onRail := seats[s].Rail != NoRail && seats[s].Rail == pools[n].Rail
			p.pairs[row] = append(p.pairs[row], Pair{NIC: n, Class: class, Direct: direct, OnRail: onRail})
		}
	}
	for i, n := range order {
		for nth := range min(pools[n].Free, len(seats)) {
			p.columns = append(p.columns, column{i, nth})
		}
	}
	for range len(seats) - len(p.columns) {
		p.columns = append(p.columns, column{pool: -1})
	}
	return p
}

// best is each row's column. A worst class cannot be minimised by a sum, so it
// is found first: the nearest class that, were all farther ones forbidden, still
// serves as many GPUs with as many of them PXB or better.
func (p *problem) best() []int {
	least := p.reached(node.UnknownAffinity)
	worst := node.PIX
	for worst < node.UnknownAffinity && p.reached(worst) != least {
		worst++
	}
	rows := p.prices(worst)
	return solve(rows)
}

// reached is what is lost with nothing farther than worst: pairs that are
// forbidden, then pairs that are not direct.
func (p *problem) reached(worst node.AffinityClass) (lost int64) {
	rows := p.prices(worst)
	for row := range rows {
		for c := range rows[row] {
			rows[row][c] = price{rows[row][c][0] >> shiftDirect}
		}
	}
	for row, c := range solve(rows) {
		lost += rows[row][c][0]
	}
	return lost
}

// The first word of a price, most important part first. Each part is wide
// enough for the sum over MaxGPUs pairs: spread adds up to 32², classes to 32·6.
const (
	shiftSpread  = 0
	shiftRail    = 12
	shiftClass   = 19
	shiftDirect  = 28
	shiftRefused = 35
)

// The words after it are the NICs of the rows, as digits, lowest address first:
// so many rows a word, the first row highest.
const (
	digitBits   = 8
	rowsPerWord = 6
)

// prices is what each row pays for each column where classes beyond worst are
// refused.
func (p *problem) prices(worst node.AffinityClass) [][]price {
	rows := make([][]price, len(p.seats))
	cells := make([]price, len(p.seats)*len(p.columns))
	for row := range rows {
		rows[row] = cells[row*len(p.columns) : (row+1)*len(p.columns)]
		for i, c := range p.columns {
			word, place := 1+row/rowsPerWord, rowsPerWord-1-row%rowsPerWord
			digit := int64(MaxNICs) // no NIC is the last choice
			if c.pool >= 0 {
				rows[row][i][0] = first(p.pairs[row][c.pool], worst) + int64(2*c.nth+1)<<shiftSpread
				digit = int64(c.pool)
			}
			rows[row][i][word] = digit << (digitBits * place)
		}
	}
	return rows
}

// first is a pair's first word, but for spread: that is 1, 3, 5, … for the uses
// of a NIC, which adds up to the square of how many there are, and squares are
// least where uses are even.
func first(pair Pair, worst node.AffinityClass) int64 {
	cost := int64(pair.Class) << shiftClass
	if pair.Class > worst {
		cost += 1 << shiftRefused
	}
	if !pair.Class.PeerDMA() {
		cost += 1 << shiftDirect
	}
	if !pair.OnRail {
		cost += 1 << shiftRail
	}
	return cost
}
