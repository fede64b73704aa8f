package topo

import "github.com/kerf-gpu/kerf/internal/node"

// Between is the class of a GPU and a NIC, and whether it is so by the NIC's
// Data Direct function. A VF has its PF's class.
func Between(gpu node.GPU, nic node.NIC) (class node.AffinityClass, direct bool) {
	class = node.Affinity(gpu.Place(), nic.Place())
	if nic.DataDirect == nil {
		return class, false
	}
	if by := node.Affinity(gpu.Place(), *nic.DataDirect); by < class {
		return by, true
	}
	return class, false
}
