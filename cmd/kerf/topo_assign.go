package main

import (
	"fmt"

	"github.com/kerf-gpu/kerf/cni/topo"
	"github.com/kerf-gpu/kerf/internal/node"
)

// assigned is one GPU's NIC. NIC is empty where none was left.
type assigned struct {
	GPU   string             `json:"gpu"`
	NIC   string             `json:"nic,omitempty"`
	ID    string             `json:"id,omitempty"`
	Class node.AffinityClass `json:"class"`
	Why   string             `json:"why"`
}

// assignNICs is for the first count GPUs. A NIC serves as many as it has VFs, or one.
func assignNICs(n node.Node, count int) ([]assigned, error) {
	switch {
	case count < 1:
		return nil, fmt.Errorf("--assign %d: not a number of GPUs; give 1 to %d", count, len(n.GPUs))
	case count > len(n.GPUs):
		return nil, fmt.Errorf("--assign %d: this node has %d GPUs; give no more than that", count, len(n.GPUs))
	case len(n.NICs) == 0:
		return nil, fmt.Errorf("--assign %d: this node has no PCI NIC; there is nothing to assign", count)
	}
	rails := topo.Rails(n.GPUs, n.NICs, nil)
	var pools []topo.Pool
	for i, nic := range n.NICs {
		pools = append(pools, topo.Pool{NIC: nic, Free: max(1, len(nic.VFs)), Rail: rails[i]})
	}
	pairs, err := topo.Assign(topo.Seats(n.GPUs, rails)[:count], pools)
	if err != nil {
		return nil, err
	}
	var all []assigned
	for i, p := range pairs {
		a := assigned{GPU: gpuName(n.GPUs[i]), Class: p.Class, Why: "all NICs are taken by other GPUs"}
		if p.NIC >= 0 {
			a.NIC, a.ID, a.Why = fmt.Sprintf("NIC%d", p.NIC), nicName(n.NICs[p.NIC]), why(p, rails[p.NIC])
		}
		all = append(all, a)
	}
	return all, nil
}

var classReasons = map[node.AffinityClass]string{
	node.PIX:             "behind the same PCIe switch: direct DMA",
	node.PXB:             "behind PCIe switches of one root port: direct DMA",
	node.PHB:             "on the same root complex: by way of the CPU",
	node.NODE:            "on the same NUMA node: by way of the CPU",
	node.SYS:             "on another NUMA node: none nearer was left",
	node.UnknownAffinity: "the NUMA node of one of them is not known",
}

func why(p topo.Pair, rail int) string {
	text := classReasons[p.Class]
	if p.Direct {
		text += ", by its Data Direct function"
	}
	if p.OnRail {
		text += fmt.Sprintf("; the GPU's rail, %d", rail)
	}
	return text
}

// topoWarnings is what makes a node's devices slower than their places promise, each once.
func topoWarnings(n node.Node) (warnings []string) {
	seen := map[node.PCIAddress]bool{}
	slow := func(name string, p node.PCIePath, idles node.PCIAddress) {
		for _, l := range topo.Links(p) {
			if l.Slow(l.Lower == idles) && !seen[l.Lower] {
				seen[l.Lower] = true
				warnings = append(warnings, fmt.Sprintf("%s: degraded link at %s; reseat the card or look for AER errors", name, l))
			}
		}
	}
	for _, g := range n.GPUs {
		slow(gpuName(g), g.Path, g.PCI)
	}
	for i, nic := range n.NICs {
		slow(fmt.Sprintf("NIC%d", i), nic.Path, node.PCIAddress{})
	}
	for _, g := range n.GPUs {
		warnings = append(warnings, gpuWarnings(g, n.NICs)...)
	}
	for i, nic := range n.NICs {
		if nic.NUMA == node.UnknownNUMA {
			warnings = append(warnings, fmt.Sprintf("NIC%d: the kernel does not say on which NUMA node it is", i))
		}
	}
	return warnings
}

func gpuWarnings(g node.GPU, nics []node.NIC) (warnings []string) {
	name, near := gpuName(g), false
	for i, nic := range nics {
		class, direct := topo.Between(g, nic)
		near = near || class.PeerDMA()
		path := nic.Path
		if direct {
			path = nic.DataDirect.Path
		}
		if at := topo.Redirects(g.Path, path); len(at) > 0 {
			warnings = append(warnings, fmt.Sprintf("%s and NIC%d: ACS at %v sends their traffic up to the CPU; switch it off for direct DMA (the firmware, or setpci at boot)", name, i, at))
		}
	}
	switch {
	case g.NUMA == node.UnknownNUMA:
		warnings = append(warnings, name+": the kernel does not say on which NUMA node it is")
	case g.Path.Root == "":
		warnings = append(warnings, name+": not found below /sys/devices, so its place is not known")
	}
	if g.Path.Root != "" && g.Path.RootPort().IsZero() {
		warnings = append(warnings, name+": on the root complex itself, as in a VM with a flat tree; it has no kerf.dev/pcieRootPort, so no NIC can be matched with it by that")
	}
	if len(nics) > 0 && !near {
		warnings = append(warnings, name+": no NIC is PXB or better, so NCCL uses no GPUDirect RDMA with it by default")
	}
	return warnings
}
