package link

import (
	"fmt"
	"path/filepath"
	"slices"

	"github.com/Mellanox/rdmamap"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/kerf-gpu/kerf/internal/node"
)

// Mode is how the RDMA subsystem treats namespaces: Shared or Exclusive; "" without one.
func (h Host) Mode() string {
	handle, err := netlink.NewHandle(unix.NETLINK_RDMA)
	if err != nil {
		return ""
	}
	defer handle.Close()
	mode, err := handle.RdmaSystemGetNetnsMode()
	if err != nil {
		return ""
	}
	return mode
}

// OfDevice are the RDMA devices of a PCI function that the host's namespace sees. Names may change at any bind: they are looked up
// each time, never kept.
func (h Host) OfDevice(pci node.PCIAddress) []string {
	if h.Sys != "" {
		return names(h.sys("bus/pci/devices", pci.String(), rdmamap.RdmaClassName))
	}
	return rdmamap.GetRdmaDevicesForPcidev(pci.String())
}

// CharDevices are what a program opens to use an RDMA device: uverbs, umad, issm, rdma_cm.
func (h Host) CharDevices(device string) []string {
	if h.Sys == "" {
		return rdmamap.GetRdmaCharDevices(device)
	}
	var list []string
	for _, class := range []string{"infiniband_mad", "infiniband_verbs"} {
		for _, name := range names(h.sys("class", class)) {
			if text(h.sys("class", class, name, "ibdev")) == device {
				list = append(list, filepath.Join("/dev/infiniband", name))
			}
		}
	}
	return list
}

// RDMA are the names of the RDMA devices in a namespace.
func (n *Net) RDMA() (list []string, err error) {
	handle, err := netlink.NewHandleAt(n.handle(), unix.NETLINK_RDMA)
	if err != nil {
		return nil, nil // a kernel without RDMA
	}
	defer handle.Close()
	devices, err := handle.RdmaLinkList()
	if err != nil {
		return nil, fmt.Errorf("list RDMA devices: %w", err)
	}
	for _, d := range devices {
		list = append(list, d.Attrs.Name)
	}
	slices.Sort(list)
	return list, nil
}

// MoveRDMA moves an RDMA device of this namespace to another, by its descriptor. Exclusive mode only.
func (n *Net) MoveRDMA(device string, to int) error {
	handle, err := netlink.NewHandleAt(n.handle(), unix.NETLINK_RDMA)
	if err != nil {
		return err
	}
	defer handle.Close()
	d, err := handle.RdmaLinkByName(device)
	if err != nil {
		return fmt.Errorf("find RDMA device %s: %w", device, err)
	}
	return handle.RdmaLinkSetNsFd(d, uint32(to))
}
