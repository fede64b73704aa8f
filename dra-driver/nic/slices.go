package nic

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/dynamic-resource-allocation/resourceslice"

	dra "github.com/kerf-gpu/kerf/dra-driver"
	"github.com/kerf-gpu/kerf/internal/node"
)

// Device is a NIC or a VF as it is published.
type Device struct {
	PCI       node.PCIAddress
	Path      node.PCIePath // by which it is nearest to a GPU: of its Data Direct function, where it has one
	NUMA      int
	PF        node.PCIAddress // of a VF; zero: it is a physical function itself
	PFName    string          // the physical function's interface, where it is known
	VF        int             // index among its PF's
	LinkType  string          // ethernet or infiniband
	Driver    string
	RDMA      bool
	Rail      int // -1: not known
	Simulated bool
	Fault     string // why no new pod gets it; empty: nothing
}

// maxDevices: a taint can come at any time, and a slice with taints has 64 devices.
const maxDevices = 64

// TaintFault is the key of the taint on a device that no new pod should get; the value says why.
const TaintFault = DriverName + "/fault"

// Slices is what the node publishes: one pool with the node's name, one device for each NIC and VF. Nearest things first: the
// allocator takes the first that fits, so the order is by PCI address, which spreads nothing and surprises nobody.
func Slices(nodeName string, devices []Device) resourceslice.DriverResources {
	sorted := slices.SortedFunc(slices.Values(devices), func(a, b Device) int { return a.PCI.Compare(b.PCI) })
	pool := resourceslice.Pool{}
	for chunk := range slices.Chunk(sorted, maxDevices) {
		var published []resourceapi.Device
		for _, d := range chunk {
			published = append(published, resourceapi.Device{Name: d.Name(), Attributes: d.attributes(), Taints: d.taints()})
		}
		pool.Slices = append(pool.Slices, resourceslice.Slice{Devices: published})
	}
	if len(pool.Slices) == 0 {
		pool.Slices = []resourceslice.Slice{{}}
	}
	return resourceslice.DriverResources{Pools: map[string]resourceslice.Pool{nodeName: pool}}
}

// Name is a device's name: by its PCI address, which stays while the interface is renamed, moved or gone.
func (d Device) Name() string {
	kind := "nic"
	if !d.PF.IsZero() {
		kind = "vf"
	}
	return kind + "-" + strings.NewReplacer(":", "-", ".", "-").Replace(d.PCI.String())
}

// attributes: what has a value on any device has one on every device, since a selector that names a missing one ends the
// scheduling attempt. Left out is what is not known.
func (d Device) attributes() map[resourceapi.QualifiedName]resourceapi.DeviceAttribute {
	a := dra.Attributes{}
	kind := "pf"
	if !d.PF.IsZero() {
		kind = "vf"
		a.Text("pfPCIBusID", d.PF.String())
		a.Number("vf", int64(d.VF))
	}
	a.Text("type", kind)
	a.Text("pf", d.PFName)
	a.Text("linkType", cmp.Or(d.LinkType, "unknown"))
	a.Text("driver", d.Driver)
	a.Flag("rdma", d.RDMA)
	a.Flag("simulated", d.Simulated)
	if d.Rail >= 0 {
		a.Number("rail", int64(d.Rail))
	}
	a.Place(d.PCI, d.Path, d.NUMA)
	return a
}

func (d Device) taints() []resourceapi.DeviceTaint {
	if d.Fault == "" {
		return nil
	}
	return []resourceapi.DeviceTaint{{Key: TaintFault, Value: dra.TaintValue(d.Fault), Effect: resourceapi.DeviceTaintEffectNoSchedule}}
}

func find(devices []Device, name string) (Device, error) {
	i := slices.IndexFunc(devices, func(d Device) bool { return d.Name() == name })
	if i < 0 {
		return Device{}, fmt.Errorf("device %s is not on this node (any more): %d NICs and VFs are, and kerf topo shows them; "+
			"delete the pod, so that it is scheduled anew", name, len(devices))
	}
	return devices[i], nil
}
