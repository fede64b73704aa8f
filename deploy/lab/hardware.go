package main

import (
	"fmt"
	"path"
	"strconv"
)

// Kind is what a device stands for.
type Kind string

const (
	GPU  Kind = "gpu"  // QEMU's edu device: a PCI function with a BAR and DMA, and no driver
	NIC  Kind = "nic"  // igb, an SR-IOV card of 1 Gbit/s
	Disk Kind = "disk" // NVMe, on a sparse file
)

// Machine describes a computer. Each NUMA node has one CPU and one PCIe root complex.
type Machine struct {
	Name    string
	Nodes   []Node
	Classes []Pair   // what the paths between devices are, for tests that compute it
	Modules []string // of the kernel, loaded before the first job; what they depend on comes by itself
	Tools   []string // programs of Debian; busybox is always there, after them in PATH
}

// Node is a NUMA node.
type Node struct {
	MiB   int
	Bus   int // number of its root complex's first bus; buses below it follow
	Ports []Port
}

// Port is a root port with a device behind it, or with a switch and a device behind each of the switch's ports.
type Port struct {
	Device *Device
	Switch []Device
}

// Device is the end of a path.
type Device struct {
	Name string
	Kind Kind
	VFs  int // made at boot
	MiB  int // size of a disk
}

// Pair is two devices and the class of the path between them, in nvidia-smi's words.
type Pair struct{ A, B, Class string }

// Place is where a device is.
type Place struct {
	Name    string
	Kind    Kind
	Address string // 0000:24:00.0
	Path    string // in /sys/devices
	Node    int    // of NUMA
	VFs     []string
}

// Described is what tests find in /lab/machine.json.
type Described struct {
	Name    string
	Devices []Place
	Classes []Pair
}

// igb's VFs begin at routing ID + 0x80 and are two apart, as SR-IOV's capability of the card says.
const (
	igbOffset = 0x80
	igbStride = 2
	igbVFs    = 7 // the most that the card has
)

// plan is what a description comes to.
type plan struct {
	args   []string // of QEMU
	places []Place
	disks  []Device
}

// planner walks the tree depth first, as the firmware does when it numbers buses.
type planner struct {
	plan
	next int // bus number
	node int
	path string
	nics int
}

func address(bus, slot int) string { return fmt.Sprintf("0000:%02x:%02x.0", bus, slot) }

// plan computes QEMU's arguments and where each device will be. Disks' files are named disk0, disk1, ... in dir.
func (m Machine) plan(dir string) plan {
	p := &planner{}
	total := 0
	for i, n := range m.Nodes {
		id := strconv.Itoa(i)
		total += n.MiB
		p.add("-object", fmt.Sprintf("memory-backend-ram,id=memory%s,size=%dM", id, n.MiB))
		p.add("-numa", fmt.Sprintf("node,nodeid=%s,cpus=%s,memdev=memory%s", id, id, id))
	}
	for i := range m.Nodes {
		for j := i + 1; j < len(m.Nodes); j++ {
			p.add("-numa", fmt.Sprintf("dist,src=%d,dst=%d,val=21", i, j))
		}
	}
	cpus := len(m.Nodes)
	p.args = append([]string{"-smp", fmt.Sprintf("%d,sockets=%d,cores=1", cpus, cpus), "-m", fmt.Sprintf("%dM", total)}, p.args...)
	for i, n := range m.Nodes {
		p.complex(i, n, dir)
	}
	return p.plan
}

func (p *planner) add(args ...string) { p.args = append(p.args, args...) }

func (p *planner) complex(i int, n Node, dir string) {
	p.node, p.next = i, n.Bus+1
	root := fmt.Sprintf("root%d", i)
	p.add("-device", fmt.Sprintf("pxb-pcie,id=%s,bus=pcie.0,addr=0x%x,bus_nr=%d,numa_node=%d", root, 0x10+i, n.Bus, i))
	for j, port := range n.Ports {
		id := fmt.Sprintf("port%d.%d", i, j)
		p.path = path.Join(fmt.Sprintf("pci0000:%02x", n.Bus), address(n.Bus, j))
		p.add("-device", fmt.Sprintf("pcie-root-port,id=%s,bus=%s,addr=0x%x,chassis=%d,slot=%d", id, root, j, len(p.args), j))
		bus := p.bus()
		if port.Device != nil {
			p.device(*port.Device, id, bus, p.path, dir)
			continue
		}
		up := fmt.Sprintf("up%d.%d", i, j)
		p.add("-device", fmt.Sprintf("x3130-upstream,id=%s,bus=%s,addr=0x0", up, id))
		upPath, inner := path.Join(p.path, address(bus, 0)), p.bus()
		for k, d := range port.Switch {
			down := fmt.Sprintf("down%d.%d.%d", i, j, k)
			p.add("-device", fmt.Sprintf("xio3130-downstream,id=%s,bus=%s,addr=0x%x,chassis=%d,slot=%d", down, up, k, len(p.args), k))
			p.device(d, down, p.bus(), path.Join(upPath, address(inner, k)), dir)
		}
	}
}

// bus takes the next number.
func (p *planner) bus() int {
	p.next++
	return p.next - 1
}

func (p *planner) device(d Device, port string, bus int, above, dir string) {
	place := Place{Name: d.Name, Kind: d.Kind, Address: address(bus, 0), Path: path.Join(above, address(bus, 0)), Node: p.node}
	switch d.Kind {
	case GPU:
		p.add("-device", fmt.Sprintf("edu,id=%s,bus=%s", d.Name, port))
	case NIC:
		p.nics++
		p.add("-netdev", fmt.Sprintf("hubport,id=net-%s,hubid=1", d.Name))
		p.add("-device", fmt.Sprintf("igb,id=%s,bus=%s,netdev=net-%s,mac=52:54:00:00:00:%02x", d.Name, port, d.Name, p.nics))
		for i := range d.VFs {
			id := igbOffset + i*igbStride
			place.VFs = append(place.VFs, fmt.Sprintf("0000:%02x:%02x.%d", bus, id>>3, id&7))
		}
	case Disk:
		file := path.Join(dir, fmt.Sprintf("disk%d", len(p.disks)))
		p.disks = append(p.disks, d)
		p.add("-drive", fmt.Sprintf("file=%s,if=none,id=drive-%s,format=raw,cache=unsafe,discard=unmap", file, d.Name))
		p.add("-device", fmt.Sprintf("nvme,id=%s,bus=%s,serial=%s,drive=drive-%s", d.Name, port, d.Name, d.Name))
	}
	p.places = append(p.places, place)
}

// described is the machine as tests read it.
func (m Machine) described() Described {
	return Described{Name: m.Name, Devices: m.plan("").places, Classes: m.Classes}
}
