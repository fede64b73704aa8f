package nic

import (
	"context"
	"net/netip"

	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/dynamic-resource-allocation/kubeletplugin"
	"k8s.io/dynamic-resource-allocation/resourceslice"

	dra "github.com/kerf-gpu/kerf/dra-driver"
	"github.com/kerf-gpu/kerf/vgpu/ledger"
)

// NICs is what this driver needs of the node. It is safe for use by several goroutines.
type NICs interface {
	// Devices is what there is now, in pods too. It must not block.
	Devices() []Device
	// Hold takes all asks of a claim for one pod, or none: it writes down what is to be attached, does what is slow, and writes
	// the CDI specs. Convergent. A device that another claim holds is refused, whatever the scheduler said.
	Hold(ctx context.Context, owner ledger.Owner, podUID string, asks []Ask) ([]Held, error)
	// Drop takes a claim's NICs back into the host's network and forgets them; nil where it has none.
	Drop(ctx context.Context, claimUID string) error
	// Owners is which claims hold NICs.
	Owners() []ledger.Owner
}

// Held is one NIC of a claim.
type Held struct {
	CDI       string
	MAC       string // as it will be in the pod, where that is known yet
	Addresses []netip.Prefix
}

// Data is what status.devices says of a NIC beside its network data.
type Data struct {
	PCI       string `json:"pci"`
	PF        string `json:"pf,omitempty"`
	RDMA      bool   `json:"rdma"`
	Simulated bool   `json:"simulated"`
}

// New is the kind.
func New(nodeName string, nics NICs) dra.Kind { return &kind{nodeName, nics} }

type kind struct {
	nodeName string
	nics     NICs
}

func (k *kind) Resources() resourceslice.DriverResources { return Slices(k.nodeName, k.nics.Devices()) }

func (k *kind) Prepare(ctx context.Context, claim *resourceapi.ResourceClaim) (prepared []dra.Prepared, err error) {
	all, err := allocations(claim, k.nodeName, k.nics.Devices())
	if err != nil || len(all) == 0 {
		return nil, err
	}
	uid, err := pod(claim)
	if err != nil {
		return nil, err
	}
	asks := make([]Ask, len(all))
	for i, a := range all {
		asks[i] = a.Ask
	}
	held, err := k.nics.Hold(ctx, dra.Owner(claim), uid, asks)
	if err != nil {
		return nil, err
	}
	for i, a := range all {
		prepared = append(prepared, dra.Prepared{
			Device: kubeletplugin.Device{Requests: []string{a.Request}, PoolName: a.result.Pool, DeviceName: a.Name, CDIDeviceIDs: []string{held[i].CDI},
				ShareID: a.result.ShareID, Metadata: &kubeletplugin.DeviceMetadata{Attributes: metadata(a)}},
			Status: statusOf(a, held[i]),
		})
	}
	return prepared, nil
}

// metadata is what a workload reads of its NIC: which interface is which.
func metadata(a allocation) map[string]resourceapi.DeviceAttribute {
	m := make(map[string]resourceapi.DeviceAttribute)
	for name, value := range a.Device.attributes() {
		m[string(name)] = value
	}
	m["interface"] = resourceapi.DeviceAttribute{StringValue: &a.Interface}
	return m
}

func statusOf(a allocation, h Held) dra.Status {
	network := &resourceapi.NetworkDeviceData{InterfaceName: a.Interface, HardwareAddress: h.MAC}
	for _, address := range h.Addresses {
		network.IPs = append(network.IPs, address.String())
	}
	data := Data{PCI: a.Device.PCI.String(), PF: a.Device.PFName, RDMA: a.Device.RDMA, Simulated: a.Device.Simulated}
	return dra.Status{Message: "the NIC is attached when the pod's network is made", Data: data, Network: network}
}

func (k *kind) Unprepare(ctx context.Context, uid string) error { return k.nics.Drop(ctx, uid) }
func (k *kind) Owners() []ledger.Owner                          { return k.nics.Owners() }

// Health: a NIC that is not to be had is not known to be sick.
func (k *kind) Health() (all []dra.DeviceHealth) {
	for _, d := range k.nics.Devices() {
		health := kubeletplugin.HealthStatusHealthy
		if d.Fault != "" {
			health = kubeletplugin.HealthStatusUnknown
		}
		all = append(all, dra.DeviceHealth{Device: d.Name(), Health: health, Message: d.Fault})
	}
	return all
}
