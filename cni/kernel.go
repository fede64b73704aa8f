package cni

import (
	"github.com/kerf-gpu/kerf/cni/link"
	"github.com/kerf-gpu/kerf/internal/node"
)

// Kernel is the machine: Host for the real one, linktest.Kernel for one that keeps the kernel's rules in memory.
type Kernel interface {
	// Open opens a network namespace by its path; "" is the host's. link.ErrNotFound where the path leads to none.
	Open(path string) (Net, error)
	// Namespaces are paths to the namespaces of the machine, for searches when all else is lost.
	Namespaces() []string
	// Device finds a NIC by PCI address or by the name of its link in the host's namespace.
	Device(id string) (link.Device, error)
	// VFs are the PCI addresses of a PF's VFs.
	VFs(pf string) ([]string, error)
	Hardware
}

// Hardware is what is asked of a NIC beside its link.
type Hardware interface {
	// Place is where a NIC sits.
	Place(id string) (node.Place, error)
	// Rebind makes the driver probe a VF again, so that it reads what its PF has set. Link and RDMA device are made anew.
	Rebind(vf node.PCIAddress) error
	// Mode is link.Shared, link.Exclusive, or "" where there is no RDMA.
	Mode() string
	// OfDevice are the RDMA devices of a function that the host's namespace sees; CharDevices what a program opens of one.
	OfDevice(pci node.PCIAddress) []string
	CharDevices(rdma string) []string
}

// Net is an open network namespace.
type Net interface {
	ID() string // device:inode; one of a dead namespace may come again
	Fd() int
	Close() error
	Links
	RDMA
}

// Links changes a namespace's links.
type Links interface {
	Link(link.Query) (link.Link, error)
	Links() ([]link.Link, error)
	Change(index int, c link.Change) error
	IPs
	Admin
}

// IPs configures a link.
type IPs interface {
	Announce(name string) error
	Configure(index int, ip link.IP) error
	Configured(index int) (link.IP, error)
	Uplinks() ([]int, error) // what default routes go over, and what that stands on
}

// Admin is what a PF does to its VFs; pf is the index of its link.
type Admin interface {
	VF(pf, vf int) (link.VF, error) // link.ErrNoVF where the PF's driver tells nothing
	SetVF(pf, vf int, attr link.Attr, to link.VF) error
	SetGUID(pf, vf int, guid string) error
}

// RDMA moves RDMA devices between namespaces.
type RDMA interface {
	RDMA() ([]string, error) // the names of those in the namespace
	MoveRDMA(device string, to int) error
}

// Host is the real kernel.
type Host struct{ link.Host }

// Open is link.Host's.
func (h Host) Open(path string) (Net, error) {
	n, err := h.Host.Open(path)
	if err != nil {
		return nil, err // not a nil *link.Net in an interface
	}
	return n, nil
}
