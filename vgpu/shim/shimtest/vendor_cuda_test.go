package shimtest

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/kerf-gpu/kerf/internal/cuda"
)

// TestRuntimeLibrary runs NVIDIA's cudart over the shim over NVIDIA's driver: the same answers as without the shim,
// up to the point where a card is missing.
func TestRuntimeLibrary(t *testing.T) {
	cudart := unpacked(t, "libcudart12", cudaDev, "*/libcudart.so.*")
	shared, _ := filepath.Glob(filepath.Join(cudart, "usr/lib/*/libcudart.so.12.*"))
	static, _ := filepath.Glob(filepath.Join(cudaToolkit(t), "usr/lib/*/libcudart_static.a"))
	if len(shared) != 1 || len(static) != 1 {
		t.Fatalf("the packages hold %v and %v", shared, static)
	}
	for _, v := range vendorDrivers {
		for name, lib := range map[string][]string{
			"shared": {shared[0], "-Wl,-rpath," + filepath.Dir(shared[0])},
			"static": {static[0], "-ldl", "-lrt", "-lpthread"},
		} {
			t.Run(v.branch+"/"+name, func(t *testing.T) {
				bin := program(t, "cudart-"+name, "cudart.c", lib...)
				n := vendorTenant(t, v)
				got := n.view(bin).run(t, "").ok(t).out
				want := n.direct(t).view(bin).run(t, "").ok(t).out
				if got != want {
					t.Errorf("through the shim:\n%s\ndirectly:\n%s", got, want)
				}
				for _, line := range []string{"count cudaErrorNoDevice", "malloc cudaErrorNoDevice"} {
					if !strings.Contains(got, line) && v.cuda >= 12040 {
						t.Errorf("%q is not in\n%s", line, got)
					}
				}
			})
		}
	}
}

// TestVendorInit: without a card NVIDIA's cuInit says so, and so does the shim, by every route.
func TestVendorInit(t *testing.T) {
	init := program(t, "init", "init.c")
	for _, v := range vendorDrivers {
		for _, route := range []string{"dlopen", "deepbind", "dlmopen"} {
			t.Run(v.branch+"/"+route, func(t *testing.T) {
				if out := vendorTenant(t, v).view(init, route).run(t, "").ok(t).out; out != "100\n" {
					t.Errorf("cuInit returned %s, want 100 (no device)", out)
				}
			})
		}
	}
}

// TestVendorHeader: every call of CUDA 12.4's header is in the table.
func TestVendorHeader(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(cudaToolkit(t), "usr/include/cuda.h"))
	if err != nil {
		t.Fatal(err)
	}
	table, err := cuda.Entrypoints()
	if err != nil {
		t.Fatal(err)
	}
	symbols := map[string]bool{}
	for _, e := range table {
		symbols[e.Symbol] = true
	}
	calls := regexp.MustCompile(`CUresult CUDAAPI (cu\w+)\(`).FindAllStringSubmatch(string(text), -1)
	if len(calls) < 400 {
		t.Fatalf("%d calls found in the header", len(calls))
	}
	for _, m := range calls {
		if name := m[1]; !symbols[name] && !onlyExported[name] {
			t.Errorf("%s is in the header of 12.4 and not in entrypoints.tsv", name)
		}
	}
}

// onlyExported are calls that cuGetProcAddress does not know: no row can be measured.
var onlyExported = map[string]bool{"cuMemGetAttribute": true, "cuMemGetAttribute_v2": true}
