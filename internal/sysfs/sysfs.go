// Package sysfs reads what the kernel tells of a machine, from /sys and /proc
// below a root, into the words of internal/node: where each PCI device sits,
// NICs with their VFs and RDMA devices, NVMe disks, NUMA nodes.
//
// Nothing is cached and nothing is kept open. A value that the kernel does not
// give is zero (node.UnknownNUMA for a NUMA node) and no error: much of it is
// missing in VMs. A PCI device that is gone while it is read is an error, since
// the caller asked for it by address.
//
// Traps
//
//   - Names (eth0, mlx5_0, nvme0) change over boots and moves; the PCI address
//     is what names a device.
//   - The net directory of a PCI device is empty while its interface is in
//     another network namespace.
//   - The root's own symlinks are relative, so they resolve under any root.
package sysfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/kerf-gpu/kerf/internal/node"
)

// Host is a machine's /sys below a root.
type Host struct{ root string }

// New is the machine whose /sys is at root/sys; "/" is this one.
func New(root string) Host { return Host{root} }

func (h Host) path(parts ...string) string {
	return filepath.Join(append([]string{h.root, "sys"}, parts...)...)
}

// text is a one-line attribute, empty where there is none.
func text(dir, name string) string {
	b, err := attribute(filepath.Join(dir, name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// attribute reads a file of the kernel in three system calls. os.ReadFile takes ten, for what such a file is not (pollable, large), and
// a node has some hundred of them that are read every few seconds.
func attribute(path string) (content []byte, err error) {
	fd, err := retry(func() (int, error) { return syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC, 0) })
	if err != nil {
		return nil, err
	}
	defer func() { _ = syscall.Close(fd) }()
	const page = 4096 // that the kernel gives at most for one attribute
	for {
		content = slices.Grow(content, page)
		n, err := retry(func() (int, error) { return syscall.Read(fd, content[len(content):cap(content)]) })
		if err != nil {
			return nil, err
		}
		short := n < cap(content)-len(content)
		content = content[:len(content)+n]
		if short {
			return content, nil
		}
	}
}

// retry goes on after a signal, which the Go runtime sends itself.
func retry(call func() (int, error)) (n int, err error) {
	for {
		if n, err = call(); err != syscall.EINTR { //nolint:errorlint // a system call's own
			return n, err
		}
	}
}

func number(dir, name string) int {
	n, _ := strconv.ParseInt(text(dir, name), 0, 64) // what is no number counts as not given
	return int(n)
}

// device is the resolved directory of a PCI function.
func (h Host) device(at node.PCIAddress) (string, error) {
	name := h.path("bus/pci/devices", at.String())
	target, err := os.Readlink(name)
	dir := filepath.Join(filepath.Dir(name), target) // one link in the kernel's own tree: there is no need to look at every part of the path
	if err == nil {
		_, err = os.Lstat(dir)
	} else {
		dir, err = filepath.EvalSymlinks(name)
	}
	if err != nil {
		return "", fmt.Errorf("find PCI device %s: %w", at, err)
	}
	return dir, nil
}

// Place tells where a PCI function sits. Its NUMA node is that of the nearest
// bridge above that knows one.
func (h Host) Place(at node.PCIAddress) (node.Place, error) {
	dir, err := h.device(at)
	if err != nil {
		return node.Place{}, err
	}
	return place(dir), nil
}

// Link is the state of a function's PCIe link.
func (h Host) Link(at node.PCIAddress) (node.PCIeLink, error) {
	dir, err := h.device(at)
	if err != nil {
		return node.PCIeLink{}, err
	}
	return link(dir), nil
}

// Locate fills in what NVML leaves out of GPUs: path, NUMA node, and the link
// where NVML gave none. GPUs that sysfs does not show stay as they are.
func (h Host) Locate(gpus []node.GPU) {
	for i := range gpus {
		g := &gpus[i]
		dir, err := h.device(g.PCI)
		if err != nil {
			continue
		}
		p := place(dir)
		g.Path, g.NUMA = p.Path, p.NUMA
		if g.Link == (node.PCIeLink{}) {
			g.Link = link(dir)
		}
	}
}

// function is one PCI function found by its class.
type function struct {
	at  node.PCIAddress
	dir string
}

// functions lists the PCI functions of a base class, in order of address.
func (h Host) functions(class int) ([]function, error) {
	entries, err := os.ReadDir(h.path("bus/pci/devices"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // a machine without PCI
	}
	if err != nil {
		return nil, fmt.Errorf("list PCI devices: %w", err)
	}
	var found []function
	for _, e := range entries {
		at, err := node.ParsePCIAddress(e.Name())
		if err != nil {
			continue
		}
		dir, err := h.device(at)
		if err == nil && (class == anyClass || number(dir, "class")>>16 == class) { // one removed since the listing is no news
			found = append(found, function{at, dir})
		}
	}
	slices.SortFunc(found, func(a, b function) int { return a.at.Compare(b.at) })
	return found, nil
}

// Base classes of the PCI specification.
const (
	anyClass     = -1
	classStorage = 0x01
	classNetwork = 0x02
	classBridge  = 0x06
)

// NICs lists the physical network functions, each with its VFs.
func (h Host) NICs() ([]node.NIC, error) {
	found, err := h.functions(classNetwork)
	if err != nil {
		return nil, err
	}
	var nics []node.NIC
	for _, f := range found {
		if _, err := os.Lstat(filepath.Join(f.dir, "physfn")); err == nil || isDataDirect(f.dir) {
			continue // a VF is listed below its PF, a Data Direct function with its NIC
		}
		nics = append(nics, nic(f))
	}
	return nics, h.dataDirect(nics)
}

func nic(f function) node.NIC {
	p := place(f.dir)
	return node.NIC{
		PCI: f.at, Path: p.Path, NUMA: p.NUMA, Link: link(f.dir),
		Vendor: uint16(number(f.dir, "vendor")), Device: uint16(number(f.dir, "device")),
		Driver: driver(f.dir), NetDevs: netDevs(f.dir), RDMA: children(f.dir, "infiniband/*"),
		MaxVFs: number(f.dir, "sriov_totalvfs"), VFs: vfs(f.dir), LinkType: linkType(f.dir),
	}
}

func vfs(pf string) []node.VF {
	var found []node.VF
	for _, name := range children(pf, "virtfn*") {
		index, err := strconv.Atoi(strings.TrimPrefix(name, "virtfn"))
		if err != nil {
			continue
		}
		dir, err := filepath.EvalSymlinks(filepath.Join(pf, name))
		if err != nil {
			continue
		}
		at, err := node.ParsePCIAddress(filepath.Base(dir))
		if err != nil {
			continue
		}
		found = append(found, node.VF{
			Index: index, PCI: at, Driver: driver(dir), NetDevs: netDevs(dir), RDMA: children(dir, "infiniband/*"),
		})
	}
	slices.SortFunc(found, func(a, b node.VF) int { return a.Index - b.Index })
	return found
}

// children is the sorted base names that match a pattern below dir.
func children(dir, pattern string) []string {
	paths, _ := filepath.Glob(filepath.Join(dir, pattern)) // the patterns are constants, and right
	var names []string
	for _, p := range paths {
		names = append(names, filepath.Base(p))
	}
	return names
}

// netDevs also looks below a virtio device, which stands between the PCI
// function and its interface.
func netDevs(dir string) []string {
	return append(children(dir, "net/*"), children(dir, "virtio*/net/*")...)
}

func driver(dir string) string {
	target, err := os.Readlink(filepath.Join(dir, "driver"))
	if err != nil {
		return ""
	}
	return filepath.Base(target)
}

// linkType by the interface's ARPHRD number.
func linkType(dir string) string {
	for _, pattern := range []string{"net/*", "virtio*/net/*"} {
		paths, _ := filepath.Glob(filepath.Join(dir, pattern))
		for _, p := range paths {
			switch number(p, "type") {
			case 1:
				return "ethernet"
			case 32:
				return "infiniband"
			}
		}
	}
	return ""
}

// Disks lists the NVMe controllers.
func (h Host) Disks() ([]node.Disk, error) {
	found, err := h.functions(classStorage)
	if err != nil {
		return nil, err
	}
	var disks []node.Disk
	for _, f := range found {
		p := place(f.dir)
		for _, name := range children(f.dir, "nvme/nvme*") {
			ctrl := filepath.Join(f.dir, "nvme", name)
			disks = append(disks, node.Disk{
				Name: name, PCI: f.at, Path: p.Path, NUMA: p.NUMA, Model: text(ctrl, "model"), Namespaces: namespaces(ctrl, name),
			})
		}
	}
	return disks, nil
}

// sector is the unit of a block device's size in sysfs, whatever its own is.
const sector = 512

func namespaces(ctrl, name string) []node.DiskPart {
	var parts []node.DiskPart
	for _, ns := range children(ctrl, name+"n*") {
		parts = append(parts, node.DiskPart{Name: ns, Size: node.Bytes(number(filepath.Join(ctrl, ns), "size")) * sector})
	}
	return parts
}

// NUMA lists the memory nodes; none where the kernel was built without them.
func (h Host) NUMA() ([]node.NUMA, error) {
	dirs, _ := filepath.Glob(h.path("devices/system/node/node[0-9]*")) // a constant pattern
	var nodes []node.NUMA
	for _, dir := range dirs {
		id, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(dir), "node"))
		if err != nil {
			continue
		}
		n := node.NUMA{ID: id, CPUs: text(dir, "cpulist"), Memory: memTotal(text(dir, "meminfo"))}
		for field := range strings.FieldsSeq(text(dir, "distance")) {
			d, err := strconv.Atoi(field)
			if err != nil {
				return nil, fmt.Errorf("read NUMA distances: node %d: %q is not a number", id, field)
			}
			n.Distance = append(n.Distance, d)
		}
		nodes = append(nodes, n)
	}
	slices.SortFunc(nodes, func(a, b node.NUMA) int { return a.ID - b.ID })
	return nodes, nil
}

func memTotal(meminfo string) node.Bytes {
	for line := range strings.Lines(meminfo) {
		_, rest, ok := strings.Cut(line, "MemTotal:")
		if !ok {
			continue
		}
		kb, err := strconv.ParseUint(strings.Fields(rest + " 0")[0], 10, 64)
		if err == nil {
			return node.Bytes(kb) * node.KiB
		}
	}
	return 0
}
