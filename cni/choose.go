package cni

import (
	"fmt"
	"strings"

	"github.com/kerf-gpu/kerf/cni/topo"
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

// Nearest orders NICs from the nearest to the GPUs to the farthest, and leaves out those beyond a class; "" is none. It is pure. The
// error, where none is left, lists what there is.
func Nearest(nics []node.NIC, gpus []GPU, atLeast string) (ids []string, err error) {
	places := make([]node.GPU, len(gpus))
	for i, g := range gpus {
		places[i] = node.GPU{PCI: g.PCI, Path: g.Path, NUMA: g.NUMA}
	}
	limit := node.UnknownAffinity
	if class, ok := topo.ParseClass(atLeast); ok {
		limit = class
	}
	var far []string
	for _, c := range topo.Nearest(places, nics) {
		id := nics[c.NIC].PCI.String()
		if c.AtLeast(limit) {
			ids = append(ids, id)
		}
		far = append(far, fmt.Sprintf("%s is %s", id, c.Class))
	}
	if len(ids) == 0 {
		return nil, failf(CodeConfig, nil, "topology.atLeast: %s: no NIC is that near to the GPUs (%s): %s", atLeast, uuids(gpus), strings.Join(far, ", "))
	}
	return ids, nil
}

func uuids(gpus []GPU) string {
	var words []string
	for _, g := range gpus {
		words = append(words, g.UUID)
	}
	return strings.Join(words, ", ")
}
