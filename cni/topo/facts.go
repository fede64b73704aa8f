package topo

import (
	"cmp"
	"slices"

	"github.com/kerf-gpu/kerf/internal/node"
)

// NoRail is the rail of what has none, or none that is known.
const NoRail = -1

// Facts is what a NIC is worth to a scheduler. On a NIC with a Data Direct
// function that is nearer to a GPU, Root and RootPort are that function's: it
// is what a GPU's are matched with.
type Facts struct {
	Root       string          // resource.kubernetes.io/pcieRoot; empty: leave it out
	RootPort   node.PCIAddress // kerf.dev/pcieRootPort; zero: leave it out
	OwnRoot    string          // the NIC's own where Root is its Data Direct function's, else empty
	NUMA       int             // node.UnknownNUMA: leave it out
	DataDirect node.PCIAddress // zero: none
	Rail       int             // NoRail: leave it out
	Rate       node.Bytes      // each way in a second, along the path; 0: not known
	Slow       []Link          // links of the path that trained below their best
	Near       []int           // by index in the node's GPUs: those PXB or better
}

// Of is the facts of every NIC, in the order of the node's. labels are rails
// that somebody said, by the NIC's address; nil where nobody did.
func Of(n node.Node, labels map[node.PCIAddress]int) []Facts {
	rails := Rails(n.GPUs, n.NICs, labels)
	facts := make([]Facts, len(n.NICs))
	for i, nic := range n.NICs {
		f := Facts{Root: nic.Path.Root, RootPort: nic.Path.RootPort(), NUMA: nic.NUMA, Rail: rails[i], Rate: Rate(nic.Path)}
		near := false
		for g, gpu := range n.GPUs {
			class, direct := Between(gpu, nic)
			if class.PeerDMA() {
				f.Near = append(f.Near, g)
				near = near || direct
			}
		}
		if nic.DataDirect != nil {
			f.DataDirect = nic.DataDirect.Path.Device()
		}
		if near {
			f.Root, f.RootPort, f.OwnRoot = nic.DataDirect.Path.Root, nic.DataDirect.Path.RootPort(), nic.Path.Root
		}
		for _, l := range Links(nic.Path) {
			if l.Slow(false) {
				f.Slow = append(f.Slow, l)
			}
		}
		facts[i] = f
	}
	return facts
}

// Rails of NICs: the one that was said, else the NIC's place among those of the
// compute fabric by address, as fabrics are cabled. Those are the NICs that
// have a GPU in their domain; where no NIC has, as in VMs, the RDMA devices of
// the kind that there is most of.
func Rails(gpus []node.GPU, nics []node.NIC, labels map[node.PCIAddress]int) []int {
	rails := make([]int, len(nics))
	var fabric []int
	for i, nic := range nics {
		rails[i] = NoRail
		if slices.ContainsFunc(gpus, func(g node.GPU) bool { class, _ := Between(g, nic); return class.PeerDMA() }) {
			fabric = append(fabric, i)
		}
	}
	if len(fabric) == 0 && len(gpus) > 0 {
		fabric = mostCommon(nics)
	}
	slices.SortStableFunc(fabric, func(a, b int) int { return nics[a].PCI.Compare(nics[b].PCI) })
	for rail, i := range fabric {
		rails[i] = rail
	}
	for i, nic := range nics {
		if rail, ok := labels[nic.PCI]; ok {
			rails[i] = rail
		}
	}
	return rails
}

func mostCommon(nics []node.NIC) []int {
	type kind struct{ vendor, device uint16 }
	of := map[kind][]int{}
	for i, nic := range nics {
		if len(nic.RDMA) > 0 {
			k := kind{nic.Vendor, nic.Device}
			of[k] = append(of[k], i)
		}
	}
	var best []int
	var bestKind kind
	for k, list := range of {
		byKind := cmp.Or(cmp.Compare(k.vendor, bestKind.vendor), cmp.Compare(k.device, bestKind.device))
		if len(list) > len(best) || len(list) == len(best) && byKind < 0 {
			best, bestKind = list, k
		}
	}
	return best
}

// Seats is a node's GPUs for Assign, each with the rail that it belongs to:
// GPUs are cabled in order of address, several to a rail where those are fewer.
func Seats(gpus []node.GPU, rails []int) []Seat {
	count := len(gpus)
	most := NoRail
	for _, rail := range rails {
		most = max(most, rail)
	}
	seats := make([]Seat, count)
	for i, gpu := range gpus {
		place := 0
		for _, other := range gpus {
			if other.PCI.Compare(gpu.PCI) < 0 {
				place++
			}
		}
		seats[i] = Seat{GPU: gpu, Rail: NoRail}
		if most >= 0 {
			seats[i].Rail = place * (most + 1) / count
		}
	}
	return seats
}
