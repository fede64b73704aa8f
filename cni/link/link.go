// Package link is the kernel's side of a network attachment: interfaces and the namespaces that they move between, what a PF
// sets on its VFs, RDMA devices. It does one thing at a time and decides nothing; package cni plans.
//
// Words. A link is a network interface. Its device is the PCI function behind it, if there is one; a veth or macvlan has none. A PF
// administers its VFs: what it sets on one (an address, a VLAN, a rate) is not the VF's own to change. A Change is one RTM_NEWLINK
// message, so a link is moved, renamed and marked in one step that either happened or did not.
//
// Traps
//
//   - The kernel moves a link first, and only then sets what else the message asks. A message may fail and have moved.
//   - A move costs an RCU grace period under RTNL, some 16 ms, and moves are serial on a machine. Everything else is noise.
//   - Asking for a link with RTEXT_FILTER_VF makes the kernel ask the PF's firmware for each VF: 64 VFs are 64 ms or more. Only
//     Host.VF asks so, and only for a PF.
//   - A link that comes back because its namespace died keeps its name in the pod, MTU, address and alias. A veth or a macvlan does
//     not come back: it is destroyed.
//   - The net directory of a PCI function in sysfs is empty while its link is in another namespace; IFLA_PARENT_DEV_NAME (5.14)
//     names the function wherever the link is.
//   - A namespace's inode number is used again after its death.
package link

import (
	"errors"
	"strings"

	"github.com/kerf-gpu/kerf/internal/node"
)

// Link is a network interface as the kernel describes it.
type Link struct {
	Index   int    `json:"index"`
	Name    string `json:"name"`
	MTU     int    `json:"mtu"`
	MAC     string `json:"mac"`               // of 6 bytes, or of 20 for IPoIB; "" for a link that has none
	PermMAC string `json:"permMAC,omitempty"` // burnt in, where the driver says
	Alias   string `json:"alias,omitempty"`
	Up      bool   `json:"up"`               // administratively
	Kind    string `json:"kind,omitempty"`   // veth, macvlan, …; "" for hardware
	Master  int    `json:"master,omitempty"` // index of the bond or bridge it belongs to
	Parent  int    `json:"-"`                // index of the link it is on, as a VLAN or macvlan is
	Device  string `json:"device,omitempty"` // the PCI function, in the kernel's words
	IPoIB   bool   `json:"ipoib,omitempty"`
}

// Query names a link: by all of its fields that are not zero.
type Query struct {
	Index  int
	Name   string
	Alias  string
	Device string
}

// Matches says whether a link is one that is asked for.
func (q Query) Matches(l Link) bool {
	return (q.Index == 0 || q.Index == l.Index) && (q.Name == "" || q.Name == l.Name) &&
		(q.Alias == "" || q.Alias == l.Alias) && (q.Device == "" || q.Device == l.Device)
}

// Change is one message to the kernel. What is nil or zero stays as it is.
type Change struct {
	To    int     `json:"to,omitempty"` // descriptor of the namespace to move to; 0 is never one of ours
	Name  string  `json:"name,omitempty"`
	MTU   int     `json:"mtu,omitempty"`
	MAC   string  `json:"mac,omitempty"`
	Alias *string `json:"alias,omitempty"` // "" takes it away
	Up    *bool   `json:"up,omitempty"`
}

// IP is what a link has in a pod beyond its being there.
type IP struct {
	Addresses []string `json:"addresses,omitempty"` // 10.1.2.3/24
	Routes    []Route  `json:"routes,omitempty"`
}

// Route is a route over a link.
type Route struct {
	To       string `json:"to"`            // 0.0.0.0/0
	Via      string `json:"via,omitempty"` // "": on the link
	MTU      int    `json:"mtu,omitempty"`
	AdvMSS   int    `json:"advmss,omitempty"`
	Priority int    `json:"priority,omitempty"`
	Table    int    `json:"table,omitempty"`
	Scope    int    `json:"scope,omitempty"`
}

// Default says whether it is a default route.
func (r Route) Default() bool { return strings.HasSuffix(r.To, "/0") }

// State is what a PF lets a VF see of the cable.
type State string

// The states, by the names that sriov-cni has for them. The order is the kernel's.
const (
	Auto    State = "auto"
	Enable  State = "enable"
	Disable State = "disable"
)

// The VLAN protocols.
const (
	Q  = "802.1q"
	AD = "802.1ad"
)

// NoMAC is the address that takes an administrative one away.
const NoMAC = "00:00:00:00:00:00"

// VF is what a PF has set on one of its VFs. Rates are in Mbit/s; 0 is no limit.
type VF struct {
	MAC        string `json:"mac"`
	VLAN       int    `json:"vlan"`
	QoS        int    `json:"qos"`
	Proto      string `json:"proto"`
	SpoofCheck bool   `json:"spoofchk"`
	Trust      bool   `json:"trust"`
	MinRate    int    `json:"minTxRate"`
	MaxRate    int    `json:"maxTxRate"`
	State      State  `json:"linkState"`
}

// Attr is what of a VF is set by one message.
type Attr string

// The attributes.
const (
	AttrVLAN  Attr = "vlan" // with QoS and protocol
	AttrMAC   Attr = "mac"
	AttrRate  Attr = "rate" // both
	AttrSpoof Attr = "spoofchk"
	AttrTrust Attr = "trust"
	AttrState Attr = "link_state"
)

// Attrs is every attribute, in the order in which they are set: some drivers take an address only from a VF that is still trusted.
var Attrs = []Attr{AttrVLAN, AttrMAC, AttrRate, AttrState, AttrSpoof, AttrTrust}

// Equal compares one attribute of two VFs.
func (a Attr) Equal(x, y VF) bool {
	switch a {
	case AttrVLAN:
		return x.VLAN == y.VLAN && x.QoS == y.QoS && (x.VLAN == 0 || x.Proto == y.Proto)
	case AttrMAC:
		return x.MAC == y.MAC
	case AttrRate:
		return x.MinRate == y.MinRate && x.MaxRate == y.MaxRate
	case AttrSpoof:
		return x.SpoofCheck == y.SpoofCheck
	case AttrTrust:
		return x.Trust == y.Trust
	}
	return x.State == y.State
}

// Device is a NIC as sysfs and devlink show it.
type Device struct {
	PCI     node.PCIAddress `json:"pci,omitzero"` // zero for a link without hardware
	Name    string          `json:"name"`         // of its link in the host's namespace; "" while that is elsewhere
	Driver  string          `json:"driver,omitempty"`
	PF      node.PCIAddress `json:"pf,omitzero"` // zero for what is not a VF
	PFName  string          `json:"pfName,omitempty"`
	VF      int             `json:"vf"`
	NumVFs  int             `json:"numVFs,omitempty"`  // that it has now, if it is a PF
	Eswitch string          `json:"eswitch,omitempty"` // its PF's: legacy, switchdev, "" where the driver has none
	RDMA    []string        `json:"rdma,omitempty"`    // devices, those seen from the host's namespace
}

// ID is what the journal and the configuration call it.
func (d Device) ID() string {
	if d.PCI.IsZero() {
		return d.Name
	}
	return d.PCI.String()
}

// IsVF says that a PF administers it.
func (d Device) IsVF() bool { return !d.PF.IsZero() }

// The modes of the RDMA subsystem.
const (
	Shared    = "shared"    // every namespace sees every RDMA device
	Exclusive = "exclusive" // a device belongs to one namespace
)

// What callers tell from other failures.
var (
	ErrNotFound = errors.New("no such link")        // there is no link, or no namespace, of that name
	ErrNoVF     = errors.New("not a VF of this PF") // the kernel tells nothing of it
)
