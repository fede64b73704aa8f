package topo_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kerf-gpu/kerf/cni/topo"
	"github.com/kerf-gpu/kerf/internal/node"
)

var update = flag.Bool("update", false, "write what is found into the fixtures")

const separator = "\n== found\n"

// TestFixtures: machines as /sys shows them, each with the matrix and the facts that its file says.
func TestFixtures(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	must(t, err)
	if len(files) < 14 {
		t.Fatalf("%d fixtures: some are lost", len(files))
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			must(t, err)
			tree, want, _ := strings.Cut(string(text), separator)
			got := describe(machine(t, tree))
			if *update {
				must(t, os.WriteFile(file, []byte(tree+separator+got), 0o600))
				return
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

// fixture is the machine of a file.
func fixture(t testing.TB, name string) node.Node {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name+".txt"))
	must(t, err)
	tree, _, _ := strings.Cut(string(text), separator)
	return machine(t, tree)
}

// describe is a machine's classes and facts as fixtures say them.
func describe(n node.Node) string {
	var b strings.Builder
	facts := topo.Of(n, nil)
	matrix := matrixOf(n.GPUs, n.NICs)
	for g, gpu := range n.GPUs {
		fmt.Fprintf(&b, "gpu %s numa %d port %s:", gpu.PCI, gpu.NUMA, port(gpu.Path.RootPort()))
		for _, class := range matrix[g] {
			fmt.Fprintf(&b, " %s", class)
		}
		fmt.Fprintln(&b)
	}
	for i, f := range facts {
		fmt.Fprintf(&b, "nic %s numa %d root %s port %s rail %d rate %.1f GB/s near %v", n.NICs[i].PCI, f.NUMA, f.Root, port(f.RootPort), f.Rail, float64(f.Rate)/1e9, f.Near)
		if !f.DataDirect.IsZero() {
			fmt.Fprintf(&b, " direct %s own root %s", f.DataDirect, f.OwnRoot)
		}
		for _, l := range f.Slow {
			fmt.Fprintf(&b, " slow %s", l)
		}
		fmt.Fprintln(&b)
	}
	for _, gpu := range n.GPUs {
		for _, nic := range n.NICs {
			if at := topo.Redirects(gpu.Path, nic.Path); len(at) > 0 {
				fmt.Fprintf(&b, "acs %s %s at %v\n", gpu.PCI, nic.PCI, at)
			}
		}
	}
	return b.String()
}

func port(at node.PCIAddress) string {
	if at.IsZero() {
		return "none"
	}
	return at.String()
}

// TestNearest: the NIC on the pod's switch first; with none there the nearest, and equal ones by address; all are in it.
func TestNearest(t *testing.T) {
	n := fixture(t, "qemu")
	for _, tt := range []struct {
		name string
		gpus []int
		want string
	}{
		{"on the switch of nic 0", []int{0}, "0 PIX, 1 SYS"},
		{"on the switch of nic 1", []int{2}, "1 PIX, 0 SYS"},
		{"only the root complex shared", []int{1}, "0 PHB, 1 SYS"},
		{"two GPUs, the first by a tie", []int{2, 0}, "0 PIX, 1 PIX"},
		{"more classes near", []int{1, 2, 0}, "0 PIX, 1 PIX"},
		{"no GPU", nil, "0 UNKNOWN, 1 UNKNOWN"},
	} {
		var gpus []node.GPU
		for _, i := range tt.gpus {
			gpus = append(gpus, n.GPUs[i])
		}
		var got []string
		for _, c := range topo.Nearest(gpus, n.NICs) {
			got = append(got, fmt.Sprint(c.NIC, " ", c.Class))
		}
		if d := cmp.Diff(tt.want, strings.Join(got, ", ")); d != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, d)
		}
	}
	near := topo.Nearest(n.GPUs[1:2], n.NICs)[0]
	if near.AtLeast(node.PXB) || !near.AtLeast(node.PHB) {
		t.Errorf("PHB counts as PXB, or not as PHB: %+v", near)
	}
}

func TestParseClass(t *testing.T) {
	for text, want := range map[string]bool{"PIX": true, "PXB": true, "PHB": true, "NODE": true, "SYS": true, "pix": false, "X": false, "UNKNOWN": false, "": false} {
		if class, ok := topo.ParseClass(text); ok != want || ok && class.String() != text {
			t.Errorf("%q: %v, %v", text, class, ok)
		}
	}
}

// TestRails: labels win, and a NIC without RDMA is no rail where nothing is near.
func TestRails(t *testing.T) {
	at := func(bus uint8) node.PCIAddress { return node.PCIAddress{Bus: bus} }
	nics := []node.NIC{
		{PCI: at(9), Device: 1, RDMA: []string{"a"}}, {PCI: at(3), Device: 1, RDMA: []string{"b"}}, {PCI: at(1), Device: 2, RDMA: []string{"c"}}, {PCI: at(2), Device: 1},
	}
	if d := cmp.Diff([]int{1, 0, -1, -1}, topo.Rails([]node.GPU{{NUMA: -1}}, nics, nil)); d != "" {
		t.Errorf("by kind and address (-want +got):\n%s", d)
	}
	if d := cmp.Diff([]int{1, 0, 7, -1}, topo.Rails([]node.GPU{{NUMA: -1}}, nics, map[node.PCIAddress]int{at(1): 7})); d != "" {
		t.Errorf("labelled (-want +got):\n%s", d)
	}
	var gpus []node.GPU
	for _, bus := range []uint8{0x80, 0x10, 0x20, 0x90} {
		gpus = append(gpus, node.GPU{PCI: at(bus)})
	}
	for i, s := range topo.Seats(gpus, []int{0, -1, 1}) {
		if want := []int{1, 0, 0, 1}[i]; s.Rail != want {
			t.Errorf("GPU %d of 4 on 2 rails: %d, want %d", i, s.Rail, want)
		}
	}
	if s := topo.Seats(gpus, []int{-1}); s[0].Rail != topo.NoRail {
		t.Errorf("a rail where there are none: %d", s[0].Rail)
	}
}

// FuzzPaths: whatever the paths are, a class has no direction, and one root port of one root complex is PXB or better.
func FuzzPaths(f *testing.F) {
	f.Add("/sys/devices/pci0000:20/0000:20:00.0/0000:21:00.0/0000:22:00.0/0000:23:00.0", "pci0000:20/0000:20:00.0/0000:24:00.0", 0, 1)
	f.Add("pci0000:00/0000:00:0e.0/pci10000:00/10000:00:02.0/10000:01:00.0", "LNXSYSTM:00/VMBUS:01/x/pci0101:00/0101:00:00.0", -1, 0)
	f.Add("pci0000:zz/../..//", "pci0000:00/0000:00:1f.7", 0, 0)
	f.Fuzz(func(t *testing.T, a, b string, numaA, numaB int) {
		gpu := node.GPU{Path: node.ParsePCIePath(a), NUMA: numaA}
		nic := node.NIC{Path: node.ParsePCIePath(b), NUMA: numaB}
		class, _ := topo.Between(gpu, nic)
		if back := node.Affinity(nic.Place(), gpu.Place()); back != class {
			t.Errorf("%s one way, %s the other", class, back)
		}
		port := gpu.Path.RootPort()
		if one := gpu.Path.Root != "" && gpu.Path.Root == nic.Path.Root && !port.IsZero() && port == nic.Path.RootPort(); one && !class.PeerDMA() {
			t.Errorf("one root port %s, and %s", port, class)
		}
		nic.Path.Hops = make([]node.Hop, len(nic.Path.Chain))
		if topo.Rate(nic.Path) != 0 || len(topo.Links(nic.Path)) != 0 {
			t.Error("links where nothing is known")
		}
		topo.Of(node.Node{GPUs: []node.GPU{gpu}, NICs: []node.NIC{nic}}, nil)
	})
}

// matrixOf is the classes by GPU, then by NIC.
func matrixOf(gpus []node.GPU, nics []node.NIC) [][]node.AffinityClass {
	matrix := make([][]node.AffinityClass, len(gpus))
	for g := range gpus {
		matrix[g] = make([]node.AffinityClass, len(nics))
		for n := range nics {
			matrix[g][n], _ = topo.Between(gpus[g], nics[n])
		}
	}
	return matrix
}
