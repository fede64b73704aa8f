package topo

import (
	"cmp"
	"slices"

	"github.com/kerf-gpu/kerf/internal/node"
)

// Candidate is one NIC as a pod's GPUs see it.
type Candidate struct {
	NIC    int                // index in what Nearest was given
	GPU    int                // index of the nearest GPU; -1 without GPUs
	Class  node.AffinityClass // to that GPU
	Direct bool               // so near by the NIC's Data Direct function
	Near   int                // how many of the GPUs are PXB or better
}

// AtLeast reports whether the candidate is as near as the class.
func (c Candidate) AtLeast(class node.AffinityClass) bool { return c.Class <= class }

// Nearest orders NICs from the nearest to the farthest, for a pod that holds
// these GPUs: by the most GPUs that are PXB or better, the best class, the sum
// of classes, the wider path, the lower address. Every NIC is in the answer
// once; the caller leaves out those that have nothing free. With no GPUs, all
// are UNKNOWN and the order is by path and address.
func Nearest(gpus []node.GPU, nics []node.NIC) []Candidate {
	type ranked struct {
		Candidate
		sum  int
		rate node.Bytes
	}
	all := make([]ranked, 0, len(nics))
	for n, nic := range nics {
		r := ranked{Candidate: Candidate{NIC: n, GPU: -1, Class: node.UnknownAffinity}, rate: Rate(nic.Path)}
		for g, gpu := range gpus {
			class, direct := Between(gpu, nic)
			if r.GPU < 0 || class < r.Class {
				r.GPU, r.Class, r.Direct = g, class, direct
			}
			r.sum += int(class)
			if class.PeerDMA() {
				r.Near++
			}
		}
		all = append(all, r)
	}
	slices.SortStableFunc(all, func(a, b ranked) int {
		return cmp.Or(cmp.Compare(b.Near, a.Near), cmp.Compare(a.Class, b.Class), cmp.Compare(a.sum, b.sum),
			cmp.Compare(b.rate, a.rate), nics[a.NIC].PCI.Compare(nics[b.NIC].PCI))
	})
	order := make([]Candidate, len(all))
	for i, r := range all {
		order[i] = r.Candidate
	}
	return order
}

// ParseClass reads a class that a NIC can be asked for by: PIX to SYS.
func ParseClass(text string) (node.AffinityClass, bool) {
	for class := node.PIX; class <= node.SYS; class++ {
		if class.String() == text {
			return class, true
		}
	}
	return node.UnknownAffinity, false
}
