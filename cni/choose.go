package cni

import (
	"fmt"
	"slices"
	"strings"

	"github.com/kerf-gpu/kerf/internal/node"
)

// PodGPUsPath is where kerfd tells, on its control socket, which GPUs a pod holds: GET with uid and pod (namespace/name), or with gpu
// (a UUID); a list of GPU.
const PodGPUsPath = "/v1/pod-gpus"

// GPU is a GPU as far as the choice of a NIC needs it.
type GPU struct {
	UUID string          `json:"uuid"`
	PCI  node.PCIAddress `json:"pci"`
	Path node.PCIePath   `json:"path"`
	NUMA int             `json:"numa"`
}

// Candidate is a NIC that may be chosen.
type Candidate struct {
	ID    string
	Place node.Place
}

// Nearest orders NICs by how far they are from the nearest of the GPUs, and leaves out those beyond a class; "" is none. It is pure.
// The error, where none is left, lists what there is.
func Nearest(nics []Candidate, gpus []GPU, atLeast string) (ids []string, err error) {
	class := make(map[string]node.AffinityClass)
	for _, n := range nics {
		class[n.ID] = node.UnknownAffinity
		for _, g := range gpus {
			class[n.ID] = min(class[n.ID], node.Affinity(n.Place, node.Place{Path: g.Path, NUMA: g.NUMA}))
		}
	}
	limit := node.UnknownAffinity
	if atLeast != "" {
		limit = Classes[atLeast]
	}
	var far []string
	for _, n := range nics {
		if class[n.ID] <= limit {
			ids = append(ids, n.ID)
		}
		far = append(far, fmt.Sprintf("%s is %s", n.ID, class[n.ID]))
	}
	if len(ids) == 0 {
		return nil, failf(CodeConfig, nil, "topology.atLeast: %s: no NIC is that near to the GPUs (%s): %s", atLeast, uuids(gpus), strings.Join(far, ", "))
	}
	slices.SortStableFunc(ids, func(a, b string) int { return int(class[a] - class[b]) })
	return ids, nil
}

func uuids(gpus []GPU) string {
	var words []string
	for _, g := range gpus {
		words = append(words, g.UUID)
	}
	return strings.Join(words, ", ")
}
