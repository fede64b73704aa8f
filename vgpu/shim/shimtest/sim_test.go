package shimtest

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/kerf-gpu/kerf/internal/sim"
)

// simNode makes a simulated node for the test.
func simNode(t *testing.T, profile string) *sim.Node {
	t.Helper()
	p, err := sim.LoadProfile(profile)
	if err != nil {
		t.Fatal(err)
	}
	libs := libraries(t, plain, "simdriver", "simnvml")
	s, err := sim.Create(filepath.Join(t.TempDir(), "sim"), p, filepath.Join(libs, "sim"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// tenantOn is a tenant of the first GPUs of the node.
func tenantOn(t *testing.T, s *sim.Node, v variant, gpus int) *tenantNode {
	t.Helper()
	libs := libraries(t, plain, "simdriver", "simnvml")
	n := newTenant(t, libraries(t, v, "shim"), filepath.Join(libs, "sim/libcuda.so.1"), filepath.Join(libs, "sim/libnvidia-ml.so.1"))
	n.sim = s.Root
	for i := range gpus {
		n.gpus = append(n.gpus, i)
	}
	return n
}

func simTenant(t *testing.T, v variant, profile string, gpus int) (*tenantNode, *sim.Node) {
	t.Helper()
	s := simNode(t, profile)
	return tenantOn(t, s, v, gpus), s
}

var classes = []string{"linear", "managed", "pitched", "async", "from-pool", "vmm", "mapped", "array", "array3d", "mipmap", "graph", "captured", "external"}

var routes = []string{"linked", "next", "dlopen", "deepbind", "dlmopen", "gpa1-0", "gpa1-1", "gpa1-2", "gpa2-0", "gpa2-1", "gpa2-2"}

// driverProgram compiles a test program that finds the driver by the route.
func driverProgram(t *testing.T, source, route string) (bin string, env []string) {
	t.Helper()
	name := strings.TrimSuffix(source, ".c")
	if route != "linked" && route != "next" {
		return program(t, name, source), nil
	}
	lib := filepath.Join(libraries(t, plain, "simdriver", "simnvml"), "sim/libcuda.so.1")
	bin = program(t, name+"-linked", source, "-DLINKED", lib)
	if route == "next" {
		env = []string{"LD_PRELOAD=" + program(t, "preload.so", "preload.c", "-shared", "-fPIC")}
	}
	return bin, env
}

const contextBytes = 512 * mib // of profile h200x8

// gpuGrants gives the tenant's GPUs, each with the limit.
func gpuGrants(s *sim.Node, gpus int, limit uint64) []grant {
	var g []grant
	for _, gpu := range s.Status().GPUs[:gpus] {
		g = append(g, grant{uuid: gpu.UUID, limit: limit, context: contextBytes})
	}
	return g
}

// cardIsEmpty fails if a process still holds memory of a simulated GPU.
func cardIsEmpty(t *testing.T, s *sim.Node) {
	t.Helper()
	for _, gpu := range s.Status().GPUs {
		if gpu.Used != 0 {
			t.Errorf("GPU %d holds %s after its tenants ended", gpu.Index, gpu.Used)
		}
	}
}

// TestToTheLimit allocates by every class and every route up to the limit, is refused one granule more, gives all
// back and ends at zero; cuMemGetInfo, NVML and the usage page agree at every step, and the card never holds more.
func TestToTheLimit(t *testing.T) {
	n, s := simTenant(t, plain, "h200x8", 1)
	sh := n.share(t, "limit", gpuGrants(s, 1, 1<<30)...)
	for _, route := range routes {
		bin, env := driverProgram(t, "mem.c", route)
		for _, class := range classes {
			t.Run(class+"/"+route, func(t *testing.T) {
				r := n.view(bin, route, class).run(t, "", env...).ok(t)
				if r.out != "ok\n" {
					t.Errorf("%s%s", r.out, r.errs)
				}
				if left := sh.charged(0); left != 0 {
					t.Errorf("%d bytes are charged after the process ended in order", left)
				}
			})
		}
	}
	cardIsEmpty(t, s)
}

// TestPoolsNeverOver fills slices whose size is no multiple of a pool's growth: the pool must not grow over the limit to find out.
func TestPoolsNeverOver(t *testing.T) {
	n, s := simTenant(t, plain, "h200x8", 1)
	sh := n.share(t, "limit", gpuGrants(s, 1, 1<<30)...)
	for _, part := range []uint64{2 * mib, 18 * mib, 30 * mib} {
		sh.policy.Page.Device[0].Limit = 1<<30 + part
		for _, class := range []string{"async", "from-pool"} {
			n.view(program(t, "mem", "mem.c"), "dlopen", class).run(t, "").ok(t)
		}
	}
	cardIsEmpty(t, s)
}
