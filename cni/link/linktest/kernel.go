// Package linktest is a kernel in memory for tests of package cni: it keeps state and follows the rules of the real one, as measured
// on igb in a virtual machine and read in the kernel's source for what no virtual machine has (RDMA in exclusive mode, InfiniBand). It
// is no hardware, and nothing of it says what real drivers do beyond these rules.
//
// A Stopper around it, or around the real kernel, ends the process before any call that the engine makes.
package linktest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/kerf-gpu/kerf/cni"
	"github.com/kerf-gpu/kerf/cni/link"
	"github.com/kerf-gpu/kerf/internal/node"
)

// Kernel is a machine. Its methods are those of cni.Kernel, and what an administrator does.
type Kernel struct {
	mu      sync.Mutex
	spaces  []*space // the host's first
	links   []*iface
	devices []*function
	rdma    []*rdmaDevice
	mode    string
	next    int

	Moves   int                 // of links, between namespaces
	Refuse  map[link.Attr]error // what the PFs' driver does not do
	Keep    map[link.Attr]error // what it sets, and does not take back
	NoAdopt bool                // VFs take an address only when they are bound again
}

type space struct {
	id   int
	path string
	dead bool
}

type iface struct {
	link.Link
	in     *space
	of     *function // nil: no hardware
	ip     link.IP
	notify bool
}

type function struct {
	pci, pf node.PCIAddress
	index   int // of a VF
	driver  string
	eswitch string
	numVFs  int
	vf      link.VF
	own     string // the address that the VF gave itself
	byPF    bool   // its address was set by its PF
	guid    string
	place   node.Place
	ib      bool
}

type rdmaDevice struct {
	name         string
	of           *function
	in           *space
	disassociate bool // the driver can take a device from a program that has it open
}

// New is a machine with one namespace and no NIC, and no RDMA.
func New() *Kernel {
	return &Kernel{spaces: []*space{{id: 1, path: ""}}, next: 10, Refuse: map[link.Attr]error{}, Keep: map[link.Attr]error{}}
}

func (k *Kernel) host() *space { return k.spaces[0] }

func (k *Kernel) number() int { k.next++; return k.next }

func (k *Kernel) mac() string {
	n := k.number()
	return fmt.Sprintf("02:aa:00:00:%02x:%02x", n>>8, n&0xff)
}

// AddSpace makes a namespace.
func (k *Kernel) AddSpace(path string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.spaces = append(k.spaces, &space{id: k.number(), path: path})
}

// EndSpace ends a namespace: hardware goes back to the host under the name that it has, or another if that is taken; what is no
// hardware is destroyed; RDMA devices go back.
func (k *Kernel) EndSpace(path string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	i := slices.IndexFunc(k.spaces, func(s *space) bool { return s.path == path && !s.dead })
	if i < 0 {
		return
	}
	ended := k.spaces[i]
	ended.dead = true
	for _, l := range slices.Clone(k.links) {
		switch {
		case l.in != ended:
		case l.of == nil:
			k.links = slices.DeleteFunc(k.links, func(o *iface) bool { return o == l })
		default:
			if k.named(k.host(), l.Name) != nil {
				l.Name = fmt.Sprintf("dev%d", l.Index)
			}
			k.put(l, k.host())
		}
	}
	for _, r := range k.rdma {
		if r.in == ended {
			r.in = k.host()
			k.renewIPoIB(r.of)
		}
	}
	k.spaces = slices.Delete(k.spaces, i, i+1)
}

// AddLink makes a link without hardware, in the host's namespace.
func (k *Kernel) AddLink(name, kind string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.links = append(k.links, &iface{Link: link.Link{Index: k.number(), Name: name, MTU: 1500, MAC: k.mac(), Kind: kind}, in: k.host()})
}

// Enslave puts a link of the host into a bond or bridge.
func (k *Kernel) Enslave(name, master string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.named(k.host(), name).Master = k.named(k.host(), master).Index
}

// RemoveLink removes a link of the host.
func (k *Kernel) RemoveLink(name string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.links = slices.DeleteFunc(k.links, func(l *iface) bool { return l.in == k.host() && l.Name == name })
}

// AddPF makes a PF with VFs called vf0, vf1, … of it.
func (k *Kernel) AddPF(pci, name, driver string, vfs int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	pf := &function{pci: address(pci), driver: driver, numVFs: vfs}
	k.devices = append(k.devices, pf)
	k.probe(pf, name)
	for i := range vfs {
		vf := &function{pci: pf.pci, pf: pf.pci, index: i, driver: driver + "vf", own: k.mac()}
		vf.pci.Device, vf.pci.Function = 0x10+uint8(i/8), uint8(i%8)
		vf.vf = link.VF{MAC: vf.own, Proto: link.Q, SpoofCheck: true, State: link.Auto}
		k.devices = append(k.devices, vf)
		k.probe(vf, fmt.Sprintf("%sv%d", name, i))
	}
}

func address(pci string) node.PCIAddress {
	a, err := node.ParsePCIAddress(pci)
	if err != nil {
		panic(err) // a mistake of the test
	}
	return a
}

// AddRDMA gives a function an RDMA device. mode is of the whole system.
func (k *Kernel) AddRDMA(pci, name, mode string, disassociate, infiniband bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	f := k.function(address(pci))
	f.ib = infiniband
	k.mode = mode
	k.rdma = append(k.rdma, &rdmaDevice{name, f, k.host(), disassociate})
	for _, l := range k.links {
		if l.of == f {
			l.IPoIB = infiniband
		}
	}
}

// SetMode is `rdma system set netns`.
func (k *Kernel) SetMode(mode string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.spaces) > 1 {
		return unix.EBUSY
	}
	k.mode = mode
	return nil
}

// Edit changes a function as an administrator does: bind it elsewhere, switch its mode.
func (k *Kernel) Edit(pci, driver, eswitch string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	f := k.function(address(pci))
	f.driver, f.eswitch = driver, eswitch
}

// probe makes the link of a function.
func (k *Kernel) probe(f *function, name string) {
	l := link.Link{Index: k.number(), Name: name, MTU: 1500, MAC: f.own, Device: f.pci.String(), IPoIB: f.ib}
	if f.pf.IsZero() {
		l.MAC = k.mac()
		l.PermMAC = l.MAC
	} else if f.byPF {
		l.MAC = f.vf.MAC
	}
	k.links = append(k.links, &iface{Link: l, in: k.host(), of: f})
}

func (k *Kernel) function(pci node.PCIAddress) *function {
	for _, f := range k.devices {
		if f.pci == pci {
			return f
		}
	}
	return nil
}

func (k *Kernel) named(in *space, name string) *iface {
	for _, l := range k.links {
		if l.in == in && l.Name == name {
			return l
		}
	}
	return nil
}

// put moves a link: it goes down and loses its addresses, and gets another index if its own is taken.
func (k *Kernel) put(l *iface, to *space) {
	for _, other := range k.links {
		if other != l && other.in == to && other.Index == l.Index {
			l.Index = k.number()
		}
	}
	l.in, l.Up, l.ip = to, false, link.IP{}
	k.Moves++
}

// renewIPoIB makes the IPoIB link of a function anew, in the host's namespace, as moving its RDMA device does.
func (k *Kernel) renewIPoIB(f *function) {
	if f == nil || !f.ib {
		return
	}
	k.links = slices.DeleteFunc(k.links, func(l *iface) bool { return l.of == f })
	k.probe(f, fmt.Sprintf("ib%d", k.number()))
}

// State is everything that has to be as it was: one line a link, VF and RDMA device, without indexes, which do not come again.
func (k *Kernel) State() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var lines []string
	for _, l := range k.links {
		name := l.Name
		if l.of != nil && l.of.ib {
			name = "ib" // a new one each time
		}
		lines = append(lines, fmt.Sprintf("link %s %s in %q mtu %d mac %s alias %q up %v", l.Device, name, l.in.path, l.MTU, l.MAC, l.Alias, l.Up))
	}
	for _, f := range k.devices {
		vf := f.vf
		if !f.byPF {
			vf.MAC = "its own" // the PF may tell it or not
		}
		lines = append(lines, fmt.Sprintf("function %s vf %+v byPF %v guid %q", f.pci, vf, f.byPF, f.guid))
	}
	for _, r := range k.rdma {
		lines = append(lines, fmt.Sprintf("rdma of %s in %q", r.of.pci, r.in.path))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// Open is cni.Kernel's.
func (k *Kernel) Open(path string) (cni.Net, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, s := range k.spaces {
		if s.path == path {
			return &Net{k, s}, nil
		}
	}
	return nil, fmt.Errorf("%s: %w", path, link.ErrNotFound)
}

// Namespaces is cni.Kernel's.
func (k *Kernel) Namespaces() (paths []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, s := range k.spaces[1:] {
		paths = append(paths, s.path)
	}
	return paths
}

// Device is cni.Kernel's.
func (k *Kernel) Device(id string) (link.Device, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	pci, err := node.ParsePCIAddress(id)
	if err != nil {
		l := k.named(k.host(), id)
		if l == nil || l.of == nil {
			return link.Device{Name: id, VF: -1}, nil
		}
		pci = l.of.pci
	}
	f := k.function(pci)
	if f == nil {
		return link.Device{}, link.ErrNotFound
	}
	d := link.Device{PCI: f.pci, Driver: f.driver, PF: f.pf, VF: -1, NumVFs: f.numVFs, Eswitch: f.eswitch, RDMA: k.rdmaOf(f)}
	pf := f
	if !f.pf.IsZero() {
		d.VF = f.index
		pf = k.function(f.pf)
		d.Eswitch = pf.eswitch
	}
	for _, l := range k.links {
		if l.of == f && l.in == k.host() {
			d.Name = l.Name
		}
		if l.of == pf && l.in == k.host() {
			d.PFName = l.Name
		}
	}
	return d, nil
}

func (k *Kernel) rdmaOf(f *function) (names []string) {
	for _, r := range k.rdma {
		if r.of == f && (r.in == k.host() || k.mode == link.Shared) {
			names = append(names, r.name)
		}
	}
	return names
}

// VFs is cni.Kernel's.
func (k *Kernel) VFs(pf string) (list []string, err error) {
	d, err := k.Device(pf)
	if err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, f := range k.devices {
		if f.pf == d.PCI {
			list = append(list, f.pci.String())
		}
	}
	return list, nil
}

// Place is cni.Hardware's.
func (k *Kernel) Place(id string) (node.Place, error) {
	d, err := k.Device(id)
	if err != nil {
		return node.Place{}, err
	}
	return k.function(d.PCI).place, nil
}

// Rebind is cni.Hardware's: link and RDMA device are made anew, and take what the PF has set.
func (k *Kernel) Rebind(vf node.PCIAddress) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	f := k.function(vf)
	name := ""
	for _, l := range k.links {
		if l.of == f {
			name = l.Name
		}
	}
	k.links = slices.DeleteFunc(k.links, func(l *iface) bool { return l.of == f })
	k.probe(f, name)
	for _, r := range k.rdma {
		if r.of == f {
			r.name, r.in = fmt.Sprintf("mlx5_%d", k.number()), k.host()
		}
	}
	return nil
}

// Mode is cni.Hardware's.
func (k *Kernel) Mode() string { k.mu.Lock(); defer k.mu.Unlock(); return k.mode }

// OfDevice is cni.Hardware's.
func (k *Kernel) OfDevice(pci node.PCIAddress) []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.rdmaOf(k.function(pci))
}

// CharDevices is cni.Hardware's.
func (k *Kernel) CharDevices(rdma string) []string {
	return []string{"/dev/infiniband/rdma_cm", "/dev/infiniband/uverbs-" + rdma}
}

var errGone = errors.Join(link.ErrNotFound, unix.ENODEV)

// SetPlace says where a function sits.
func (k *Kernel) SetPlace(pci string, p node.Place) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.function(address(pci)).place = p
}
