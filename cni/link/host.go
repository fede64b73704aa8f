package link

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

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/kerf-gpu/kerf/internal/node"
)

// Host is a machine. Its zero value is this one.
type Host struct {
	Sys  string // where /sys is; a simulated node has another
	Proc string // likewise
	Run  string // /run, where names of namespaces are
	Dev  string
}

func at(root, real string, parts ...string) string {
	if root == "" {
		root = real
	}
	return filepath.Join(append([]string{root}, parts...)...)
}

func (h Host) sys(parts ...string) string { return at(h.Sys, "/sys", parts...) }

func text(parts ...string) string {
	b, err := os.ReadFile(filepath.Join(parts...))
	if err != nil {
		return "" // sysfs has no file where there is nothing to tell
	}
	return strings.TrimSpace(string(b))
}

func number(parts ...string) int {
	n, _ := strconv.Atoi(text(parts...)) // likewise
	return n
}

func names(dir string) (list []string) {
	entries, _ := os.ReadDir(dir) // likewise
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

// Device finds a NIC by its PCI address, or by the name of its link in the host's namespace.
func (h Host) Device(id string) (Device, error) {
	address, err := node.ParsePCIAddress(id)
	if err != nil {
		if id == "" || strings.ContainsAny(id, "/: \t\n") || len(id) > 15 {
			return Device{}, fmt.Errorf("%q is neither a PCI address (0000:24:10.0) nor the name of a link: %w", id, ErrNotFound)
		}
		// A link of hardware is known by its PCI address, whatever it is called.
		target, err := filepath.EvalSymlinks(h.sys("class/net", id, "device"))
		if err == nil {
			if address, err = node.ParsePCIAddress(filepath.Base(target)); err == nil {
				return h.function(address)
			}
		}
		return Device{Name: id, VF: -1}, nil
	}
	return h.function(address)
}

func (h Host) function(address node.PCIAddress) (Device, error) {
	dir, err := filepath.EvalSymlinks(h.sys("bus/pci/devices", address.String()))
	if err != nil {
		return Device{}, fmt.Errorf("no PCI device %s: %w", address, ErrNotFound)
	}
	d := Device{PCI: address, VF: -1, NumVFs: number(dir, "sriov_numvfs"), RDMA: names(filepath.Join(dir, "infiniband"))}
	d.Name = first(netNames(dir))
	if driver, err := os.Readlink(filepath.Join(dir, "driver")); err == nil {
		d.Driver = filepath.Base(driver)
	}
	pf := dir
	if target, err := filepath.EvalSymlinks(filepath.Join(dir, "physfn")); err == nil {
		pf = target
		if d.PF, err = node.ParsePCIAddress(filepath.Base(pf)); err != nil {
			return Device{}, fmt.Errorf("PF of %s: %w", address, err)
		}
		d.VF = virtualIndex(pf, address)
	}
	d.PFName = first(netNames(pf))
	if h.Sys == "" && (d.IsVF() || d.NumVFs > 0) {
		d.Eswitch = eswitch(filepath.Base(pf))
	}
	return d, nil
}

// netNames are a function's links; virtio stands between the two. A PF in switchdev mode has its representors here too: its own
// comes first, by the port's name.
func netNames(dir string) []string {
	list := names(filepath.Join(dir, "net"))
	virtio, _ := filepath.Glob(filepath.Join(dir, "virtio*/net/*")) // a constant pattern
	for _, path := range virtio {
		list = append(list, filepath.Base(path))
	}
	slices.SortStableFunc(list, func(a, b string) int {
		return strings.Compare(portName(dir, a), portName(dir, b))
	})
	return list
}

func portName(dir, name string) string { return text(dir, "net", name, "phys_port_name") }

func first(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return list[0]
}

func virtualIndex(pf string, vf node.PCIAddress) int {
	links, _ := filepath.Glob(filepath.Join(pf, "virtfn*")) // a constant pattern
	for _, l := range links {
		target, err := os.Readlink(l)
		if err == nil && filepath.Base(target) == vf.String() {
			n, _ := strconv.Atoi(strings.TrimPrefix(filepath.Base(l), "virtfn"))
			return n
		}
	}
	return -1
}

// eswitch is the mode of a PF's switch; "" where there is no devlink or the driver has no switch.
func eswitch(pf string) string {
	handle, err := netlink.NewHandle(unix.NETLINK_GENERIC)
	if err != nil {
		return ""
	}
	defer handle.Close()
	device, err := handle.DevLinkGetDeviceByName("pci", pf)
	if err != nil {
		return ""
	}
	return device.Attrs.Eswitch.Mode
}

// VFs are the PCI addresses of a PF's VFs, in the order of their numbers.
func (h Host) VFs(pf string) ([]string, error) {
	d, err := h.Device(pf)
	if err != nil {
		return nil, err
	}
	if d.PCI.IsZero() {
		return nil, fmt.Errorf("%s has no PCI device, so it has no VFs: %w", pf, ErrNotFound)
	}
	dir := h.sys("bus/pci/devices", d.PCI.String())
	var list []string
	for i := range number(dir, "sriov_numvfs") {
		target, err := os.Readlink(filepath.Join(dir, "virtfn"+strconv.Itoa(i)))
		if err == nil {
			list = append(list, filepath.Base(target))
		}
	}
	return list, nil
}

// Place is where a NIC sits. Its NUMA node is that of the nearest bridge above that knows one.
func (h Host) Place(id string) (node.Place, error) {
	d, err := h.Device(id)
	if err != nil {
		return node.Place{}, err
	}
	if d.PCI.IsZero() {
		return node.Place{NUMA: node.UnknownNUMA}, nil
	}
	dir, err := filepath.EvalSymlinks(h.sys("bus/pci/devices", d.PCI.String()))
	if err != nil {
		return node.Place{}, err
	}
	p := node.Place{Path: node.ParsePCIePath(dir), NUMA: node.UnknownNUMA}
	for range p.Path.Chain {
		if n, err := strconv.Atoi(text(dir, "numa_node")); err == nil && n >= 0 {
			p.NUMA = n
			break
		}
		dir = filepath.Dir(dir)
	}
	return p, nil
}

// Open opens a network namespace; "" is the one that this process was started in, the host's.
func (h Host) Open(path string) (*Net, error) {
	if path == "" {
		// Not /proc/self: that is the first thread's, which may be in another namespace this very moment, to open a socket there.
		path = "/proc/thread-self/ns/net"
	}
	f, err := os.Open(path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = errors.Join(ErrNotFound, err)
		}
		return nil, err
	}
	n := &Net{file: f, host: h}
	var stat unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &stat); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		_ = f.Close()
		return nil, fmt.Errorf("%s is no network namespace: %w", path, ErrNotFound) // its mount is gone, the file is still there
	}
	n.id = fmt.Sprintf("%d:%d", stat.Dev, stat.Ino)
	socket, err := nl.GetNetlinkSocketAt(n.handle(), none, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open netlink in %s: %w", path, err), f.Close())
	}
	n.sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: socket}}
	return n, nil
}

// Namespaces are paths that lead to network namespaces, one for each: by name, and of every process.
func (h Host) Namespaces() []string {
	var list []string
	for _, pattern := range []string{at(h.Run, "/run", "netns/*"), at(h.Proc, "/proc", "[0-9]*/ns/net")} {
		found, _ := filepath.Glob(pattern) // constant patterns
		list = append(list, found...)
	}
	seen := make(map[uint64]bool)
	return slices.DeleteFunc(list, func(path string) bool {
		info, err := os.Stat(path) // one that ended since has none
		if err != nil {
			return true
		}
		inode := info.Sys().(*syscall.Stat_t).Ino
		defer func() { seen[inode] = true }()
		return seen[inode]
	})
}

// Rebind takes a VF from its driver and gives it back, which makes its link and its RDMA device anew.
func (h Host) Rebind(vf node.PCIAddress) error {
	driver, err := filepath.EvalSymlinks(h.sys("bus/pci/devices", vf.String(), "driver"))
	if err != nil {
		return fmt.Errorf("%s has no driver: %w", vf, err)
	}
	for _, verb := range []string{"unbind", "bind"} {
		if err := os.WriteFile(filepath.Join(driver, verb), []byte(vf.String()), 0o200); err != nil {
			return fmt.Errorf("%s %s: %w", verb, vf, err)
		}
	}
	return nil
}

// MaxVFs is how many VFs a PF can have.
func (h Host) MaxVFs(pf node.PCIAddress) int {
	return number(h.sys("bus/pci/devices", pf.String()), "sriov_totalvfs")
}

// SetNumVFs makes a PF have so many VFs. The kernel goes from one number to another by way of none only.
func (h Host) SetNumVFs(pf node.PCIAddress, n int) error {
	file := h.sys("bus/pci/devices", pf.String(), "sriov_numvfs")
	return os.WriteFile(file, []byte(strconv.Itoa(n)), 0o200)
}
