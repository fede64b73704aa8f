package sim

import (
	"fmt"
	"path"
	"strconv"
	"strings"

	"github.com/kerf-gpu/kerf/internal/node"
)

// entry is one file or symlink of the simulated node, by its path in it.
type entry struct {
	path string
	text string
	link string // a symlink's target; then text is empty
}

// tree collects the files of a simulated /sys. Paths are those of the kernel:
// devices live below /sys/devices, and everything else is symlinks to them.
type tree struct {
	entries []entry
}

func (t *tree) file(dir, name, format string, args ...any) {
	t.entries = append(t.entries, entry{path: path.Join(dir, name), text: fmt.Sprintf(format, args...) + "\n"})
}

// link adds a symlink that is relative, as the kernel's are, so that it holds
// under any root.
func (t *tree) link(at, target string) {
	up := strings.Repeat("../", strings.Count(at, "/")-1)
	rel := up + strings.TrimPrefix(target, "sys/")
	t.entries = append(t.entries, entry{path: at, link: rel})
}

// sysfs is every file below sys/ of the simulated node.
func (p *Profile) sysfs() []entry {
	var t tree
	for _, n := range p.NUMA {
		p.numaFiles(&t, n)
	}
	t.file("sys/devices/system/node", "online", "%s", upTo(len(p.NUMA)))
	t.file("sys/devices/system/node", "possible", "%s", upTo(len(p.NUMA)))
	disks := 0
	for _, s := range p.slots() {
		dir := s.dir()
		switch s.Is {
		case "bridge":
			now, most := p.link(s.Slot)
			p.function(&t, dir, s, fn{class: 0x060400, vendor: 0x1000, device: 0xc010, driver: "pcieport", link: now, max: most})
		case "nvswitch":
			p.function(&t, dir, s, fn{class: 0x068000, vendor: 0x10de, device: 0x22a3, driver: "nvidia-nvswitch"})
		case "gpu":
			p.gpuFiles(&t, dir, s)
		case "nic":
			p.nicFiles(&t, dir, s)
		case "nvme":
			p.diskFiles(&t, dir, s, disks)
			disks++
		}
	}
	return t.entries
}

func upTo(n int) string {
	if n == 1 {
		return "0"
	}
	return fmt.Sprintf("0-%d", n-1)
}

// dir is the function's own directory.
func (s placed) dir() string {
	parts := []string{"sys/devices", s.root.Root}
	for _, a := range s.path {
		parts = append(parts, a.String())
	}
	return path.Join(parts...)
}

// fn is what the PCI core shows of one function.
type fn struct {
	class          int
	vendor, device int
	driver         string
	link, max      LinkSpec // zero: the function shows none
}

func (p *Profile) function(t *tree, dir string, s placed, f fn) {
	bdf := path.Base(dir)
	t.file(dir, "vendor", "0x%04x", f.vendor)
	t.file(dir, "device", "0x%04x", f.device)
	t.file(dir, "class", "0x%06x", f.class)
	t.file(dir, "numa_node", "%d", s.root.NUMA)
	t.file(dir, "local_cpulist", "%s", p.cpus(s.root.NUMA))
	t.file(dir, "uevent", "DRIVER=%s\nPCI_CLASS=%X\nPCI_ID=%04X:%04X\nPCI_SLOT_NAME=%s", f.driver, f.class, f.vendor, f.device, bdf)
	if f.max != (LinkSpec{}) {
		t.file(dir, "current_link_speed", "%s", linkSpeed(f.link.Gen))
		t.file(dir, "current_link_width", "%d", f.link.Width)
		t.file(dir, "max_link_speed", "%s", linkSpeed(f.max.Gen))
		t.file(dir, "max_link_width", "%d", f.max.Width)
	}
	t.link(path.Join("sys/bus/pci/devices", bdf), dir)
	if f.driver != "" {
		t.link(path.Join(dir, "driver"), path.Join("sys/bus/pci/drivers", f.driver))
		t.link(path.Join("sys/bus/pci/drivers", f.driver, bdf), dir)
	}
}

// linkSpeed is the PCI core's text for a generation.
func linkSpeed(gen int) string {
	return [...]string{"Unknown", "2.5 GT/s PCIe", "5.0 GT/s PCIe", "8.0 GT/s PCIe", "16.0 GT/s PCIe", "32.0 GT/s PCIe", "64.0 GT/s PCIe"}[gen]
}

func (p *Profile) cpus(numa int) string {
	if numa >= 0 {
		return p.NUMA[numa].CPUs
	}
	var all []string
	for _, n := range p.NUMA {
		all = append(all, n.CPUs)
	}
	return strings.Join(all, ",")
}

// splitID reads vendor:device, which check has proved to be such.
func splitID(id string) (vendor, device int) {
	v, d, _ := strings.Cut(id, ":")
	vendor64, _ := strconv.ParseUint(v, 16, 16)
	device64, _ := strconv.ParseUint(d, 16, 16)
	return int(vendor64), int(device64)
}

// link of a slot as it trained, and at its best. A bridge's is as good as the
// best that hangs below it.
func (p *Profile) link(s Slot) (now, most LinkSpec) {
	switch s.Is {
	case "gpu":
		most = p.Models[s.Model].PCIe
	case "nic":
		most = p.NICs[s.Model].PCIe
	case "nvme":
		most = LinkSpec{Gen: 4, Width: 4}
	}
	now = most
	if s.Width != 0 {
		now.Width = s.Width
	}
	for _, below := range s.Below {
		n, m := p.link(below)
		now, most = better(now, n), better(most, m)
	}
	return now, most
}

func better(a, b LinkSpec) LinkSpec {
	return LinkSpec{Gen: max(a.Gen, b.Gen), Width: max(a.Width, b.Width)}
}

func (p *Profile) gpuFiles(t *tree, dir string, s placed) {
	m := p.Models[s.Model]
	f := fn{class: 0x030200, driver: "nvidia"}
	f.link, f.max = p.link(s.Slot)
	if m.Brand == "geforce" || m.Brand == "rtx" {
		f.class = 0x030000 // these drive displays
	}
	f.vendor, f.device = splitID(m.PCIID)
	p.function(t, dir, s, f)
}

func (p *Profile) nicFiles(t *tree, dir string, s placed) {
	m := p.NICs[s.Model]
	f := fn{class: 0x020000, driver: m.Driver, max: m.PCIe, link: m.PCIe}
	if m.Link == "infiniband" {
		f.class = 0x020700
	}
	f.vendor, f.device = splitID(m.PCIID)
	p.function(t, dir, s, f)
	netFiles(t, dir, s.NetDev, m, s.At)
	if s.RDMA != "" {
		rdmaFiles(t, dir, s.RDMA, m, s.At)
	}
	if m.MaxVFs == 0 {
		return
	}
	t.file(dir, "sriov_totalvfs", "%d", m.MaxVFs)
	t.file(dir, "sriov_numvfs", "%d", m.VFs)
	f.device++ // a VF's own device ID; for mlx5 it is the PF's plus one
	for i := range m.VFs {
		p.vfFiles(t, dir, s, f, i)
	}
}

func (p *Profile) vfFiles(t *tree, pf string, s placed, f fn, i int) {
	m := p.NICs[s.Model]
	at := vfAddress(s.At, m.MaxVFs, i)
	dir := path.Join(path.Dir(pf), at.String()) // a VF hangs on its PF's parent
	f.max, f.link = LinkSpec{}, LinkSpec{}
	p.function(t, dir, s, f)
	t.link(path.Join(dir, "physfn"), pf)
	t.link(path.Join(pf, fmt.Sprintf("virtfn%d", i)), dir)
	netFiles(t, dir, fmt.Sprintf("%sv%d", s.NetDev, i), m, at)
	if s.RDMA != "" {
		rdmaFiles(t, dir, fmt.Sprintf("%sv%d", s.RDMA, i), m, at)
	}
}

// vfAddress puts the VFs of function 0 first, after all the PFs a card can have.
func vfAddress(pf node.PCIAddress, maxVFs, i int) node.PCIAddress {
	rid := 8 + int(pf.Function)*maxVFs + i
	return node.PCIAddress{Domain: pf.Domain, Bus: pf.Bus, Device: pf.Device + uint8(rid/8), Function: uint8(rid % 8)}
}

func netFiles(t *tree, dir, name string, m NICModel, at node.PCIAddress) {
	net := path.Join(dir, "net", name)
	arphrd := 1
	if m.Link == "infiniband" {
		arphrd = 32
	}
	t.file(net, "address", "02:%02x:%02x:%02x:%02x:%02x", at.Domain&0xff, at.Bus, at.Device, at.Function, len(name))
	t.file(net, "type", "%d", arphrd)
	t.file(net, "operstate", "up")
	t.file(net, "mtu", "%d", 9000)
	t.file(net, "speed", "%d", m.Speed)
	t.link(path.Join(net, "device"), dir)
	t.link(path.Join("sys/class/net", name), net)
}

func rdmaFiles(t *tree, dir, name string, m NICModel, at node.PCIAddress) {
	ib := path.Join(dir, "infiniband", name)
	layer := "Ethernet"
	if m.Link == "infiniband" {
		layer = "InfiniBand"
	}
	t.file(ib, "node_type", "1: CA")
	t.file(ib, "node_guid", "0200:%02x%02x:%02x%02x:%04x", at.Domain&0xff, at.Bus, at.Device, at.Function, len(name))
	port := path.Join(ib, "ports/1")
	t.file(port, "state", "4: ACTIVE")
	t.file(port, "phys_state", "5: LinkUp")
	t.file(port, "rate", "%d Gb/sec (4X)", m.Speed/1000)
	t.file(port, "link_layer", "%s", layer)
	t.link(path.Join(ib, "device"), dir)
	t.link(path.Join("sys/class/infiniband", name), ib)
}

func (p *Profile) diskFiles(t *tree, dir string, s placed, n int) {
	now, most := p.link(s.Slot)
	p.function(t, dir, s, fn{class: 0x010802, vendor: 0x144d, device: 0xa80a, driver: "nvme", max: most, link: now})
	name := fmt.Sprintf("nvme%d", n)
	ctrl := path.Join(dir, "nvme", name)
	t.file(ctrl, "model", "Kerf simulated NVMe %-20s", s.Size)
	t.file(ctrl, "serial", "SIM%s", strings.NewReplacer(":", "", ".", "").Replace(s.At.String()))
	t.file(ctrl, "state", "live")
	t.file(ctrl, "transport", "pcie")
	t.link(path.Join(ctrl, "device"), dir)
	t.link(path.Join("sys/class/nvme", name), ctrl)
	ns := path.Join(ctrl, name+"n1")
	t.file(ns, "size", "%d", s.Size/512) // always in sectors of 512, whatever the disk's own
	t.file(ns, "queue/rotational", "0")
	t.link(path.Join(ns, "device"), ctrl)
	t.link(path.Join("sys/class/block", name+"n1"), ns)
}

func (p *Profile) numaFiles(t *tree, n NUMASpec) {
	dir := fmt.Sprintf("sys/devices/system/node/node%d", n.ID)
	t.file(dir, "cpulist", "%s", n.CPUs)
	t.file(dir, "meminfo", "Node %d MemTotal:       %d kB", n.ID, n.Memory/node.KiB)
	var distance []string
	for other := range p.NUMA {
		d := "10"
		if other != n.ID {
			d = "21"
		}
		distance = append(distance, d)
	}
	t.file(dir, "distance", "%s", strings.Join(distance, " "))
}
