// Package nodetest is the contract of internal/nvml and internal/sysfs as a
// suite of tests, run against every simulated node always, and against the real
// machine where there is one.
//
// It says what any root must fulfil, not what a certain machine has: that NVML,
// /sys and /proc agree with each other, that names are unique, that relations
// hold both ways. What a certain profile has is in the goldens beside it.
//
// Trap: a process can bind one NVML only (see internal/nvml), so each root needs
// a process of its own. InOwnProcess gives a test one.
package nodetest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/internal/nvml"
	"github.com/kerf-gpu/kerf/internal/sysfs"
)

// Read is the whole inventory of a root.
func Read(lib *nvml.Library, root string) (node.Node, error) {
	n := node.Node{Simulated: lib.Simulated()}
	var err error
	if n.Driver, err = lib.Driver(); err != nil {
		return n, err
	}
	if n.GPUs, err = lib.GPUs(); err != nil {
		return n, err
	}
	host := sysfs.New(root)
	host.Locate(n.GPUs)
	if n.NICs, err = host.NICs(); err != nil {
		return n, err
	}
	if n.Disks, err = host.Disks(); err != nil {
		return n, err
	}
	n.NUMA, err = host.NUMA()
	return n, err
}

// Run holds the root to the contract. It must be the only root of its process.
func Run(t *testing.T, root string, expectSimulated bool) {
	t.Helper()
	lib, err := nvml.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lib.Close(); err != nil {
			t.Error(err)
		}
	})
	n, err := Read(lib, root)
	if err != nil {
		t.Fatal(err)
	}
	if n.Simulated != expectSimulated {
		t.Fatalf("simulated: %v, want %v", n.Simulated, expectSimulated)
	}
	t.Run("driver", func(t *testing.T) { driver(t, n) })
	t.Run("identity", func(t *testing.T) { identity(t, root, n) })
	t.Run("memory", func(t *testing.T) { memory(t, lib, n) })
	t.Run("place", func(t *testing.T) { place(t, root, n) })
	t.Run("nvlink", func(t *testing.T) { nvlink(t, n) })
	t.Run("mig", func(t *testing.T) { mig(t, root, n) })
	if n.Simulated { // nobody's card is cut up for a test
		t.Run("divide", func(t *testing.T) { divide(t, lib, root, n) })
	}
	t.Run("host", func(t *testing.T) { host(t, n) })
	t.Run("events", func(t *testing.T) { events(t, lib) })
	t.Run("unknown GPU", func(t *testing.T) { unknown(t, lib) })
}

func driver(t *testing.T, n node.Node) {
	d := n.Driver
	if d.Version == "" || d.Version != d.Kernel {
		t.Errorf("library version %q, kernel module %q; want the same", d.Version, d.Kernel)
	}
	if d.CUDAVersion < 12000 || d.CUDAVersion%10 != 0 {
		t.Errorf("CUDA version %d", int(d.CUDAVersion))
	}
}

// unique fails where two GPUs share a name.
func unique[K comparable](t *testing.T, what string, gpus []node.GPU, key func(node.GPU) K) {
	t.Helper()
	seen := map[K]int{}
	for _, g := range gpus {
		if other, dup := seen[key(g)]; dup {
			t.Errorf("GPUs %d and %d have the same %s: %v", other, g.Index, what, key(g))
		}
		seen[key(g)] = g.Index
	}
}

func identity(t *testing.T, root string, n node.Node) {
	unique(t, "UUID", n.GPUs, func(g node.GPU) node.UUID { return g.UUID })
	unique(t, "PCI address", n.GPUs, func(g node.GPU) node.PCIAddress { return g.PCI })
	unique(t, "device node", n.GPUs, func(g node.GPU) string { return g.DeviceNode })
	for i, g := range n.GPUs {
		if g.Index != i || g.UUID.IsZero() || g.PCI.IsZero() || g.ProductName == "" || g.Architecture == "" || g.SMs <= 0 || g.Compute.Major < 5 {
			t.Errorf("GPU %d is not fully described: %+v", i, g)
		}
		if g.Simulated != n.Simulated || g.Simulated != strings.HasSuffix(g.ProductName, "(simulated)") {
			t.Errorf("GPU %d: simulated %v, name %q, node simulated %v", i, g.Simulated, g.ProductName, n.Simulated)
		}
		if _, err := os.Stat(filepath.Join(root, g.DeviceNode)); err != nil {
			t.Errorf("GPU %d: %v", i, err)
		}
		if g.DriverVersion != n.Driver.Version || g.CUDAVersion != n.Driver.CUDAVersion {
			t.Errorf("GPU %d: driver %s, CUDA %s; the node has %+v", i, g.DriverVersion, g.CUDAVersion, n.Driver)
		}
	}
}

func memory(t *testing.T, lib *nvml.Library, n node.Node) {
	for _, g := range n.GPUs {
		m, err := lib.Memory(g.UUID)
		if err != nil {
			t.Error(err)
			continue
		}
		if m.Total != g.Memory || m.Total < node.GiB || m.Used+m.Free+m.Reserved != m.Total {
			t.Errorf("GPU %d: %+v do not add up to %d", g.Index, m, g.Memory)
		}
		procs, err := lib.Processes(g.UUID)
		if err != nil {
			t.Error(err)
		}
		for _, p := range procs {
			if p.PID <= 0 || p.Bytes > m.Total {
				t.Errorf("GPU %d: process %+v", g.Index, p)
			}
		}
		if u, err := lib.Utilization(g.UUID); err != nil || u.GPU.Validate() != nil || u.Memory.Validate() != nil {
			t.Errorf("GPU %d: utilization %+v, %v", g.Index, u, err)
		}
	}
}

func place(t *testing.T, root string, n node.Node) {
	sys := sysfs.New(root)
	for _, g := range n.GPUs {
		if len(g.Path.Chain) == 0 || g.Path.Chain[len(g.Path.Chain)-1] != g.PCI {
			t.Errorf("GPU %d: path %v does not end at %v", g.Index, g.Path, g.PCI)
		}
		if g.NUMA != node.UnknownNUMA && !knows(n.NUMA, g.NUMA) {
			t.Errorf("GPU %d: NUMA node %d does not exist", g.Index, g.NUMA)
		}
		l, err := sys.Link(g.PCI)
		if err != nil {
			t.Error(err)
		}
		// Speed is left out: it changes between the two readings.
		if l.Width != 0 && (l.Width != g.Link.Width || l.MaxWidth < l.Width) {
			t.Errorf("GPU %d: link %+v by sysfs, %+v by NVML", g.Index, l, g.Link)
		}
		for _, other := range n.GPUs {
			ab, ba := node.GPUAffinity(g, other), node.GPUAffinity(other, g)
			if ab != ba || (ab == node.Self) != (g.Index == other.Index) {
				t.Errorf("GPUs %d and %d: affinity %v one way, %v the other", g.Index, other.Index, ab, ba)
			}
		}
	}
}

func knows(numa []node.NUMA, id int) bool {
	for _, n := range numa {
		if n.ID == id {
			return true
		}
	}
	return false
}

func nvlink(t *testing.T, n node.Node) {
	byPCI := map[node.PCIAddress]node.GPU{}
	for _, g := range n.GPUs {
		byPCI[g.PCI] = g
	}
	for _, g := range n.GPUs {
		for _, l := range g.NVLink {
			if !l.Active || l.Kind != node.NVLinkToGPU {
				continue
			}
			peer, ok := byPCI[l.Peer]
			if !ok {
				continue // not visible from here, as in a container
			}
			if node.GPUAffinity(g, peer).NVLinkCount() == 0 || node.GPUAffinity(peer, g).NVLinkCount() == 0 {
				t.Errorf("GPU %d link %d leads to GPU %d, which has no way back", g.Index, l.Link, peer.Index)
			}
		}
	}
}

func mig(t *testing.T, root string, n node.Node) {
	for _, g := range n.GPUs {
		if g.MIG.Enabled && !g.MIG.Capable || len(g.MIG.Instances) > 0 && !g.MIG.Enabled {
			t.Errorf("GPU %d: MIG %+v", g.Index, g.MIG)
		}
		names := map[string]bool{}
		for _, p := range g.MIG.Profiles {
			names[p.Name] = true
			if p.Name == "" || p.Memory == 0 || p.Memory > g.Memory || p.SMs > g.SMs || g.MIG.Enabled && len(p.Placements) == 0 {
				t.Errorf("GPU %d: MIG profile %+v", g.Index, p)
			}
		}
		var sum node.Bytes
		for i, in := range g.MIG.Instances {
			sum += in.Memory
			if node.UUID(in.UUID).IsZero() || !names[in.Profile] || in.Slices == 0 {
				t.Errorf("GPU %d: MIG instance %+v", g.Index, in)
			}
			for _, other := range g.MIG.Instances[:i] {
				if in.Start < other.Start+other.Slices && other.Start < in.Start+in.Slices {
					t.Errorf("GPU %d: MIG instances %+v and %+v overlap", g.Index, other, in)
				}
			}
			nodes, err := nvml.InstanceNodes(root, g, in)
			if err != nil || len(nodes) != 2 {
				t.Errorf("GPU %d: device nodes %v, %v", g.Index, nodes, err)
			}
			for _, path := range nodes {
				if _, err := os.Stat(filepath.Join(root, path)); err != nil {
					t.Errorf("GPU %d: MIG instance %+v: %v", g.Index, in, err)
				}
			}
		}
		if sum > g.Memory {
			t.Errorf("GPU %d: MIG instances have %v of %v", g.Index, sum, g.Memory)
		}
	}
}

func host(t *testing.T, n node.Node) {
	for _, nic := range n.NICs {
		for i, vf := range nic.VFs {
			if vf.PCI == nic.PCI || vf.PCI.Domain != nic.PCI.Domain || i > 0 && vf.Index <= nic.VFs[i-1].Index {
				t.Errorf("NIC %v: VF %+v", nic.PCI, vf)
			}
		}
		if len(nic.VFs) > nic.MaxVFs || nic.Vendor == 0 || nic.Path.Root == "" {
			t.Errorf("NIC %+v", nic)
		}
	}
	for _, d := range n.Disks {
		if d.Name == "" || d.Path.Root == "" {
			t.Errorf("disk %+v", d)
		}
	}
	for i, m := range n.NUMA {
		if m.Memory == 0 && m.CPUs == "" || i > 0 && m.ID <= n.NUMA[i-1].ID || len(m.Distance) != 0 && len(m.Distance) != len(n.NUMA) {
			t.Errorf("NUMA node %+v", m)
		}
	}
}

func events(t *testing.T, lib *nvml.Library) {
	w, err := lib.Watch()
	if err != nil {
		t.Fatal(err)
	}
	if e, ok, err := w.Wait(time.Millisecond); err != nil {
		t.Errorf("wait on a quiet node: %+v, %v, %v", e, ok, err)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
}

func unknown(t *testing.T, lib *nvml.Library) {
	if _, err := lib.Memory(node.UUID{0xff}); err == nil || !strings.Contains(err.Error(), node.UUID{0xff}.String()) {
		t.Errorf("memory of a GPU that is not there: error %v", err)
	}
}

// childEnv names the test that this process was started for.
const childEnv = "KERF_NODETEST_CHILD"

// InOwnProcess runs f as the test t in a new process of the test binary, and
// fails t if it fails there. It must be the last thing that t does.
func InOwnProcess(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	if os.Getenv(childEnv) == t.Name() {
		f(t)
		return
	}
	if os.Getenv(childEnv) != "" {
		return // a process for another test
	}
	SimulatorDir(t) // asked here too, so that a cached result ends with the libraries that it was made with
	pattern := "^" + strings.ReplaceAll(t.Name(), "/", "$/^") + "$"
	cmd := exec.Command(os.Args[0], append([]string{"-test.run=" + pattern, "-test.v"}, passed()...)...)
	cmd.Env = append(os.Environ(), childEnv+"="+t.Name())
	out, err := cmd.CombinedOutput()
	switch {
	case err != nil:
		t.Fatalf("in its own process: %v\n%s", err, out)
	case strings.Contains(string(out), "--- SKIP: "+t.Name()):
		t.Skip(string(out))
	}
}

// passed is the flags of the program's own tests that the child needs too.
func passed() []string {
	var args []string
	for _, a := range os.Args[1:] {
		if strings.HasPrefix(a, "-update") {
			args = append(args, a)
		}
	}
	return args
}

// SimulatorDir is where the simulated libraries were built: below build, or
// KERF_TEST_BUILD (another compiler's, or one with sanitizers). Without them
// the test is skipped, but fails under KERF_NO_SKIP.
func SimulatorDir(t *testing.T) string {
	t.Helper()
	build := os.Getenv("KERF_TEST_BUILD")
	if build == "" {
		build = filepath.Join(moduleRoot(t), "build")
	}
	dir := filepath.Join(build, "lib/kerf/sim")
	for _, name := range []string{"libcuda.so.1", "libnvidia-ml.so.1"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			if os.Getenv("KERF_NO_SKIP") != "" {
				t.Fatalf("%v; run make build", err)
			}
			t.Skipf("%v; run make build", err)
		}
	}
	return dir
}

func moduleRoot(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
	}
	t.Fatal("this test runs within the source tree")
	return ""
}
