package topo_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kerf-gpu/kerf/cni/topo"
	"github.com/kerf-gpu/kerf/internal/node"
)

// objective is what an assignment is judged by, each part the less the better, most important first. It is told from
// Assign's own words, not from its prices.
func objective(seats []topo.Seat, pools []topo.Pool, nics []int) []int {
	served, direct, worst, sum, rails := 0, 0, 0, 0, 0
	uses := make([]int, len(pools))
	for i, n := range nics {
		if n < 0 {
			continue
		}
		class, _ := topo.Between(seats[i].GPU, pools[n].NIC)
		served++
		uses[n]++
		sum += int(class)
		worst = max(worst, int(class))
		if class <= node.PXB {
			direct++
		}
		if seats[i].Rail >= 0 && seats[i].Rail == pools[n].Rail {
			rails++
		}
	}
	spread := 0
	for _, u := range uses {
		spread += u * u
	}
	all := []int{-served, -direct, worst, sum, -rails, spread}
	order := make([]int, len(seats)) // ties: the address of the first GPU's NIC, and so on
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return seats[a].GPU.PCI.Compare(seats[b].GPU.PCI) })
	for _, i := range order {
		rank := len(pools)
		if nics[i] >= 0 {
			rank = 0
			for _, other := range pools {
				if other.NIC.PCI.Compare(pools[nics[i]].NIC.PCI) < 0 {
					rank++
				}
			}
		}
		all = append(all, rank)
	}
	return all
}

// bruteForce tries every assignment.
func bruteForce(seats []topo.Seat, pools []topo.Pool) (best []int) {
	nics, left := make([]int, len(seats)), make([]int, len(pools))
	for i, p := range pools {
		left[i] = p.Free
	}
	var try func(i int)
	try = func(i int) {
		if i == len(seats) {
			if got := objective(seats, pools, nics); best == nil || slices.Compare(got, best) < 0 {
				best = got
			}
			return
		}
		for n := -1; n < len(pools); n++ {
			if n >= 0 && left[n] <= 0 {
				continue
			}
			if n >= 0 {
				left[n]--
			}
			nics[i] = n
			try(i + 1)
			if n >= 0 {
				left[n]++
			}
		}
	}
	try(0)
	return best
}

// randomTree is up to so many GPUs and NICs on a few roots, ports and switches of random depth, some of unknown nodes.
func randomTree(r *rand.Rand, gpus, nics int) (seats []topo.Seat, pools []topo.Pool) {
	roots := 1 + r.IntN(6)
	numa := make([]int, roots)
	for i := range numa {
		numa[i] = max(-1, r.IntN(8)/3-r.IntN(6)/5)
	}
	bus := r.Perm(200)
	place := func() (node.PCIAddress, node.Place) {
		root := r.IntN(roots)
		at := node.PCIAddress{Domain: uint32(root), Bus: uint8(bus[0])}
		bus = bus[1:]
		p := node.PCIePath{Root: fmt.Sprintf("pci%04x:00", root)}
		for depth, name := 0, uint8(0); depth < r.IntN(6); depth++ { // few names a level, so that ways are shared
			name = name*2 + uint8(r.IntN(2))
			p.Chain = append(p.Chain, node.PCIAddress{Domain: uint32(root), Bus: uint8(200 + depth), Device: name & 31, Function: name >> 5})
		}
		p.Chain = append(p.Chain, at)
		return at, node.Place{Path: p, NUMA: numa[root]}
	}
	for range gpus {
		at, p := place()
		seats = append(seats, topo.Seat{GPU: node.GPU{PCI: at, Path: p.Path, NUMA: p.NUMA}, Rail: r.IntN(4) - 1})
	}
	for range nics {
		at, p := place()
		pool := topo.Pool{NIC: node.NIC{PCI: at, Path: p.Path, NUMA: p.NUMA}, Free: 1, Rail: r.IntN(4) - 1}
		if r.IntN(3) == 0 {
			pool.Free = r.IntN(4)
		}
		if r.IntN(2) == 0 {
			_, second := place()
			pool.NIC.DataDirect = &second
		}
		pools = append(pools, pool)
	}
	return seats, pools
}

func nicsOf(pairs []topo.Pair) (nics []int) {
	for _, p := range pairs {
		nics = append(nics, p.NIC)
	}
	return nics
}

func assign(t testing.TB, seats []topo.Seat, pools []topo.Pool) []topo.Pair {
	t.Helper()
	pairs, err := topo.Assign(seats, pools)
	if err != nil || len(pairs) != len(seats) {
		t.Fatalf("%d pairs for %d GPUs, %v", len(pairs), len(seats), err)
	}
	return pairs
}

// TestAssignExact: on random trees no other assignment is better, each NIC is used at most as often as it can be, and
// the order of what is given does not matter.
func TestAssignExact(t *testing.T) {
	const trees = 10000
	for seed := range uint64(trees) {
		r := rand.New(rand.NewPCG(seed, 5))
		most := 5
		if seed%20 == 0 {
			most = 6
		}
		seats, pools := randomTree(r, r.IntN(most+1), r.IntN(most+1))
		pairs := assign(t, seats, pools)
		uses := make([]int, len(pools))
		for i, p := range pairs {
			if p.NIC < 0 {
				continue
			}
			uses[p.NIC]++
			class, direct := topo.Between(seats[i].GPU, pools[p.NIC].NIC)
			if uses[p.NIC] > pools[p.NIC].Free || p.Class != class || p.Direct != direct || p.OnRail != (seats[i].Rail >= 0 && seats[i].Rail == pools[p.NIC].Rail) {
				t.Fatalf("seed %d: GPU %d has %+v", seed, i, p)
			}
		}
		want := bruteForce(seats, pools)
		if d := cmp.Diff(want, objective(seats, pools, nicsOf(pairs))); d != "" {
			t.Fatalf("seed %d: %v (-best +got):\n%s", seed, nicsOf(pairs), d)
		}
		checkPermuted(t, r, seats, pools, pairs)
	}
}

func checkPermuted(t *testing.T, r *rand.Rand, seats []topo.Seat, pools []topo.Pool, want []topo.Pair) {
	t.Helper()
	gpus, nics := r.Perm(len(seats)), r.Perm(len(pools))
	var otherSeats []topo.Seat
	var otherPools []topo.Pool
	for _, i := range gpus {
		otherSeats = append(otherSeats, seats[i])
	}
	for _, n := range nics {
		otherPools = append(otherPools, pools[n])
	}
	for at, p := range assign(t, otherSeats, otherPools) {
		if p.NIC >= 0 {
			p.NIC = nics[p.NIC]
		}
		if p != want[gpus[at]] {
			t.Fatalf("in another order GPU %d has %+v, not %+v", gpus[at], p, want[gpus[at]])
		}
	}
}

// TestAssignMachines: what people expect of machines that they know.
func TestAssignMachines(t *testing.T) {
	for _, tt := range []struct {
		file string
		free int
		want string
	}{
		{"dgx-h100", 1, "0 PIX rail, 2 PIX rail, 3 PIX rail, 4 PIX rail, 5 PIX rail, 7 PIX rail, 8 PIX rail, 9 PIX rail"},
		{"dgx-a100", 1, "0 PIX rail, 1 PIX rail, 2 PIX rail, 3 PIX rail, 4 PIX rail, 5 PIX rail, 6 PIX rail, 7 PIX rail"},
		{"hgx-4nic", 2, "0 PIX rail, 0 PIX rail, 1 PIX rail, 1 PIX rail, 2 PIX rail, 2 PIX rail, 3 PIX rail, 3 PIX rail"},
		{"hgx-4nic", 1, "0 PIX rail, none, 1 PIX rail, none, 2 PIX rail, none, 3 PIX rail, none"},
		{"gb300", 1, "0 PIX rail direct, 1 PIX direct, 2 PIX direct, 3 NODE"},
		{"azure", 1, "0 NODE rail, 1 NODE rail, 2 NODE rail, 3 NODE rail"},
		{"qemu", 4, "0 PIX rail, 0 PHB rail, 1 PIX rail"},
		{"vm-flat", 1, "0 PHB rail, 1 PHB rail"},
	} {
		n := fixture(t, tt.file)
		var pools []topo.Pool
		for i, rail := range topo.Rails(n.GPUs, n.NICs, nil) {
			pools = append(pools, topo.Pool{NIC: n.NICs[i], Free: tt.free, Rail: rail})
		}
		var got []string
		for _, p := range assign(t, topo.Seats(n.GPUs, topo.Rails(n.GPUs, n.NICs, nil)), pools) {
			text := "none"
			if p.NIC >= 0 {
				text = fmt.Sprint(p.NIC, " ", p.Class)
			}
			if p.OnRail {
				text += " rail"
			}
			if p.Direct {
				text += " direct"
			}
			got = append(got, text)
		}
		if d := cmp.Diff(tt.want, strings.Join(got, ", ")); d != "" {
			t.Errorf("%s with %d free (-want +got):\n%s", tt.file, tt.free, d)
		}
	}
}

// TestAssignWorstClass: of equal sums the one without a pair across NUMA nodes, though its addresses are higher. A NIC
// that is in two places makes such machines.
func TestAssignWorstClass(t *testing.T) {
	at := func(path string, numa int) node.Place {
		return node.Place{Path: node.ParsePCIePath(path), NUMA: numa}
	}
	gpu := func(p node.Place) topo.Seat {
		return topo.Seat{GPU: node.GPU{PCI: p.Path.Device(), Path: p.Path, NUMA: p.NUMA}, Rail: topo.NoRail}
	}
	nic := func(p node.Place, direct *node.Place) topo.Pool {
		return topo.Pool{NIC: node.NIC{PCI: p.Path.Device(), Path: p.Path, NUMA: p.NUMA, DataDirect: direct}, Free: 1, Rail: topo.NoRail}
	}
	second := at("pci0000:80/0000:80:00.0/0000:81:00.0", 1)
	seats := []topo.Seat{gpu(at("pci0000:10/0000:10:00.0/0000:11:00.0", 0)), gpu(at("pci0000:90/0000:90:00.0/0000:91:00.0", 1))}
	pools := []topo.Pool{nic(at("pci0000:10/0000:10:01.0/0000:12:00.0", 0), &second), nic(at("pci0000:20/0000:20:00.0/0000:21:00.0", 0), nil)}
	pairs := assign(t, seats, pools)
	if pairs[0].NIC != 1 || pairs[1].NIC != 0 || pairs[0].Class != node.NODE || pairs[1].Class != node.NODE {
		t.Errorf("%+v; want NODE and NODE, not PHB and SYS", pairs)
	}
}

func TestAssignTooMany(t *testing.T) {
	_, err := topo.Assign(make([]topo.Seat, topo.MaxGPUs+1), nil)
	if err == nil || !strings.Contains(err.Error(), "33 GPUs and 0 NICs given, at most 32 and 254") {
		t.Errorf("%v", err)
	}
	seats, pools := randomTree(rand.New(rand.NewPCG(1, 1)), topo.MaxGPUs, 100)
	for i := range pools {
		pools[i].Free = 1 << 20 // as many as there are GPUs count
	}
	assign(t, seats, pools)
}

func BenchmarkAssign(b *testing.B) {
	for _, size := range []int{8, 16} {
		b.Run(fmt.Sprintf("%dx%d", size, size), func(b *testing.B) {
			var seats [][]topo.Seat
			var pools [][]topo.Pool
			for seed := range uint64(64) {
				s, p := randomTree(rand.New(rand.NewPCG(seed, 7)), size, size)
				for i := range p {
					p[i].Free = 1
				}
				seats, pools = append(seats, s), append(pools, p)
			}
			for i := 0; b.Loop(); i++ {
				assign(b, seats[i%64], pools[i%64])
			}
		})
	}
}
