package topo_test

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/internal/sysfs"
)

// A fixture is a machine as indented text, a line a directory below /sys/devices, and what is expected of it after a
// line of ==. A line is the directory's name, what it is (dir, bridge, gpu, nic, function), and key=value:
//
//	numa=0            numa_node, else the file is not there
//	link=4x16/5x16    as trained and at most; one alone is both
//	acs=redirect      of a bridge, in its configuration space (acs=direct: it has the capability, switched off)
//	id=15b3:2100      vendor and device
//	v3=X, vu=X        in its vital product data
//	rdma=mlx5_0 net=eth0 vfs=4
//	raw=file:text     a file as it is, for what is broken
//	to=path           the entry is a symlink
type line struct {
	depth      int
	name, what string
	attributes map[string]string
}

func parseFixture(t testing.TB, text string) (lines []line) {
	t.Helper()
	for l := range strings.Lines(text) {
		fields := strings.Fields(l)
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		at := line{depth: (len(l) - len(strings.TrimLeft(l, " "))) / 2, name: fields[0], what: "dir", attributes: map[string]string{}}
		for _, f := range fields[1:] {
			if key, value, ok := strings.Cut(f, "="); ok {
				at.attributes[key] = value
			} else {
				at.what = f
			}
		}
		lines = append(lines, at)
	}
	return lines
}

var classes = map[string]string{"bridge": "0x060400", "gpu": "0x030200", "nic": "0x020000", "function": "0x088000"}

// build makes the machine's /sys below root, and tells its GPUs in order.
func build(t testing.TB, root string, lines []line) (gpus []node.GPU) {
	t.Helper()
	var above []string
	for _, l := range lines {
		above = append(above[:min(l.depth, len(above))], l.name)
		dir := filepath.Join(append([]string{root, "sys/devices"}, above...)...)
		if to, ok := l.attributes["to"]; ok {
			must(t, os.Symlink(to, dir))
			continue
		}
		must(t, os.MkdirAll(dir, 0o755))
		if class, ok := classes[l.what]; ok {
			function(t, root, dir, class, l)
		}
		if l.what == "gpu" {
			at, err := node.ParsePCIAddress(l.name)
			must(t, err)
			gpus = append(gpus, node.GPU{Index: len(gpus), UUID: node.UUID{byte(len(gpus) + 1)}, PCI: at, NUMA: node.UnknownNUMA})
		}
	}
	return gpus
}

func function(t testing.TB, root, dir, class string, l line) {
	write(t, dir, "class", class)
	vendor, device, ok := strings.Cut(l.attributes["id"], ":")
	if !ok {
		vendor, device = "15b3", "1021"
	}
	write(t, dir, "vendor", "0x"+vendor)
	write(t, dir, "device", "0x"+device)
	bus(t, root, dir, l.name)
	for key, value := range l.attributes {
		switch key {
		case "numa":
			write(t, dir, "numa_node", value)
		case "link":
			now, most, ok := strings.Cut(value, "/")
			if !ok {
				most = now
			}
			linkFiles(t, dir, "current", now)
			linkFiles(t, dir, "max", most)
		case "acs":
			must(t, os.WriteFile(filepath.Join(dir, "config"), configSpace(value == "redirect"), 0o600))
		case "v3", "vu":
			must(t, os.WriteFile(filepath.Join(dir, "vpd"), vpd(strings.ToUpper(key), value), 0o600))
		case "rdma":
			must(t, os.MkdirAll(filepath.Join(dir, "infiniband", value), 0o755))
		case "net":
			write(t, filepath.Join(dir, "net", value), "type", "1")
		case "vfs":
			virtual(t, root, dir, l.name, value)
		case "raw":
			name, text, _ := strings.Cut(value, ":")
			must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
		}
	}
}

func bus(t testing.TB, root, dir, name string) {
	at := filepath.Join(root, "sys/bus/pci/devices")
	must(t, os.MkdirAll(at, 0o755))
	rel, err := filepath.Rel(at, dir)
	must(t, err)
	must(t, os.Symlink(rel, filepath.Join(at, name)))
}

func virtual(t testing.TB, root, pf, name, count string) {
	n, err := strconv.Atoi(count)
	must(t, err)
	at, err := node.ParsePCIAddress(name)
	must(t, err)
	for i := range n {
		vf := at
		vf.Device, vf.Function = uint8(0x10+i/8), uint8(i%8)
		dir := filepath.Join(filepath.Dir(pf), vf.String())
		write(t, dir, "class", "0x020000")
		must(t, os.Symlink("../"+name, filepath.Join(dir, "physfn")))
		must(t, os.Symlink("../"+vf.String(), filepath.Join(pf, fmt.Sprint("virtfn", i))))
		bus(t, root, dir, vf.String())
	}
}

func linkFiles(t testing.TB, dir, which, text string) {
	gen, width, _ := strings.Cut(text, "x")
	speed := map[string]string{"1": "2.5", "2": "5.0", "3": "8.0", "4": "16.0", "5": "32.0", "6": "64.0"}[gen]
	write(t, dir, which+"_link_speed", speed+" GT/s PCIe")
	write(t, dir, which+"_link_width", width)
}

// configSpace has AER before ACS, as most bridges do.
func configSpace(redirect bool) []byte {
	b := make([]byte, 4096)
	binary.LittleEndian.PutUint32(b[0x100:], 0x0001|1<<16|0x148<<20)
	binary.LittleEndian.PutUint32(b[0x148:], 0x000d|1<<16)
	if redirect {
		binary.LittleEndian.PutUint16(b[0x148+6:], 0x1d) // what the kernel sets for the IOMMU
	}
	return b
}

func vpd(key, value string) []byte {
	field := append([]byte{key[0], key[1], byte(len(value))}, value...)
	b := append([]byte{0x82, 4, 0}, "name"...)
	b = append(b, 0x90, byte(len(field)), 0)
	return append(append(b, field...), 0x78)
}

func write(t testing.TB, dir, name, text string) {
	must(t, os.MkdirAll(dir, 0o755))
	must(t, os.WriteFile(filepath.Join(dir, name), []byte(text+"\n"), 0o600))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// machine is the node of a fixture's tree.
func machine(t testing.TB, tree string) node.Node {
	t.Helper()
	root := t.TempDir()
	n := node.Node{GPUs: build(t, root, parseFixture(t, tree))}
	host := sysfs.New(root)
	host.Locate(n.GPUs)
	var err error
	n.NICs, err = host.NICs()
	must(t, err)
	host.Inspect(&n)
	return n
}
