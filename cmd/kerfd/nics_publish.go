package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/kerf-gpu/kerf/cni"
	"github.com/kerf-gpu/kerf/cni/topo"
	"github.com/kerf-gpu/kerf/dra-driver/nic"
	"github.com/kerf-gpu/kerf/internal/node"
)

// NICsConfig is which NICs pods get by ResourceClaim.
type NICsConfig struct {
	Enabled   bool     `yaml:"enabled"`
	PFs       []string `yaml:"pfs"`       // PCI addresses or interfaces; empty: all that do not carry the node's own network
	NRISocket string   `yaml:"nriSocket"` // the container runtime's
	StandIn   bool     `yaml:"standIn"`   // simulated nodes: make a veth pair for each NIC, so that there is something to attach
}

func (c NICsConfig) selects(n node.NIC) bool {
	return len(c.PFs) == 0 || slices.ContainsFunc(c.PFs, func(pf string) bool {
		return strings.EqualFold(pf, n.PCI.String()) || slices.Contains(n.NetDevs, pf)
	})
}

// publishable is what the node's NICs are to the scheduler: the VFs of those that have some, and the others whole. It is pure.
// Left out is what would take the node's own network away, and what no network driver has: a VF that is passed to a virtual machine.
func publishable(n node.Node, c NICsConfig, uplinks []string) (devices []nic.Device) {
	facts := topo.Of(n, nil)
	for i, pf := range n.NICs {
		base := nic.Device{PCI: pf.PCI, Path: pf.Path, NUMA: pf.NUMA, PFName: first(pf.NetDevs), LinkType: pf.LinkType, Driver: pf.Driver,
			RDMA: len(pf.RDMA) > 0, Rail: facts[i].Rail, Simulated: n.Simulated}
		if facts[i].OwnRoot != "" {
			base.Path = pf.DataDirect.Path
		}
		switch {
		case !c.selects(pf) || n.Simulated && !c.StandIn || carries(uplinks, pf.NetDevs):
			continue
		case n.Simulated: // stand-ins are for whole NICs, and have no RDMA device
			base.RDMA = false
			devices = append(devices, base)
			continue
		case len(pf.VFs) == 0 && netDriver(pf.Driver):
			devices = append(devices, base)
		}
		for _, vf := range pf.VFs {
			if !netDriver(vf.Driver) || carries(uplinks, vf.NetDevs) {
				continue
			}
			d := base
			d.PCI, d.PF, d.VF, d.Driver, d.RDMA = vf.PCI, pf.PCI, vf.Index, vf.Driver, len(vf.RDMA) > 0
			devices = append(devices, d)
		}
	}
	return devices
}

// unavailable is why no new pod should get a device, by what the engine finds it by. It is pure.
func unavailable(records []cni.Record, damaged []string) map[string]string {
	why := make(map[string]string)
	for _, r := range records {
		switch id := r.Device.ID(); {
		case r.Phase == cni.Dirty || r.Phase == cni.Stranded:
			why[id] = r.Note
		case r.Phase == cni.Attached && r.Spec.Owner.Network != claimNetwork:
			why[id] = fmt.Sprintf("network %s has it in pod %s", r.Spec.Owner.Network, cmp.Or(r.Spec.Owner.Pod, r.Spec.Owner.ContainerID))
		}
	}
	for _, id := range damaged {
		why[id] = "the record of who has it is damaged"
	}
	return why
}

func carries(uplinks, links []string) bool {
	return slices.ContainsFunc(links, func(name string) bool { return slices.Contains(uplinks, name) })
}

// netDriver tells network drivers from those that pass a device on whole.
func netDriver(name string) bool {
	return name != "" && name != "vfio-pci" && !strings.HasPrefix(name, "uio") && !strings.HasPrefix(name, "pci-")
}

func first(names []string) string {
	if len(names) == 0 {
		return ""
	}
	return names[0]
}

func (c NICsConfig) validate(dra, simulated bool) error {
	switch {
	case !c.Enabled:
		return nil
	case !dra:
		return fmt.Errorf("config: kubernetes.nics.enabled with kubernetes.dra off: NICs are given by ResourceClaims; switch dra on, or use kerf-cni")
	case c.StandIn && !simulated:
		return fmt.Errorf("config: kubernetes.nics.standIn on real hardware: stand-ins are for simulated nodes; leave it out")
	}
	return nil
}
