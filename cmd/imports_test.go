package cmd

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// module is the path of all of Kerf's packages.
const module = "github.com/kerf-gpu/kerf/"

// rule says what the packages under a path may import of Kerf (Kerf), and which outside modules (Outside). A package is
// ruled by the longest path that fits. Tests are free: they may use the simulator.
type rule struct {
	path    string
	kerf    []string // prefixes of Kerf's own packages
	outside []string // prefixes of modules; "*" is any
}

// Arrows point down: cmd → adapters → vgpu → internal → standard library. This table is the authority.
var rules = []rule{
	{"internal/node", nil, nil},
	{"internal/cuda", nil, nil},
	{"internal/durable", []string{"internal/node"}, nil},
	{"internal/nvml", []string{"internal/node"}, []string{"github.com/NVIDIA/go-nvml"}},
	{"internal/sysfs", []string{"internal/node"}, nil},
	{"internal/sim", []string{"internal/node", "internal/cuda"}, []string{"go.yaml.in/yaml/v3"}},
	{"internal/browser", nil, nil}, // for tests
	{"internal/nodetest", []string{"internal/"}, []string{"github.com/google/go-cmp"}},
	{"vgpu/share", []string{"internal/node"}, nil},
	{"vgpu/ledger", []string{"internal/node", "internal/durable", "vgpu/share"}, nil},
	{"vgpu/region", []string{"internal/node"}, nil},
	{"vgpu/arbiter", []string{"internal/node", "internal/durable", "vgpu/region", "vgpu/share"}, []string{"golang.org/x/sys"}},
	{"vgpu/mps", []string{"internal/node", "internal/durable", "vgpu/arbiter"}, nil},
	{"vgpu/shim", []string{"internal/cuda"}, nil}, // its generator
	{"dra-driver", adapter, []string{"k8s.io/", "google.golang.org/grpc", "github.com/prometheus/client_golang", "sigs.k8s.io/"}},
	{"dra-driver/nic", append([]string{"dra-driver"}, adapter...), []string{"k8s.io/", "github.com/containerd/nri"}},
	{"deviceplugin", adapter, []string{"k8s.io/kubelet", "google.golang.org/grpc", "github.com/fsnotify/fsnotify"}},
	{"hook", adapter, []string{"github.com/opencontainers/runtime-spec", "golang.org/x/sys"}}, // kerf-hook is this: its start is paid per container
	{"hook/cdi", append([]string{"hook"}, adapter...), []string{"tags.cncf.io/container-device-interface", "github.com/NVIDIA/", "github.com/opencontainers/runtime-spec", "golang.org/x/sys"}},
	{"cni", adapter, []string{"github.com/containernetworking/cni", "github.com/vishvananda/", "github.com/Mellanox/rdmamap", "golang.org/x/sys"}}, // kerf-cni is this
	{"cmd/kerf-cni", []string{"cni", "internal/node", "cmd/internal/version"}, []string{"github.com/containernetworking/cni"}},
	{"cmd/kerf-hook", []string{"hook", "cmd/internal/version"}, nil},
	{"cmd", []string{"cmd/internal/", "internal/", "vgpu/", "bench", "cni", "csi", "deviceplugin", "dra-driver", "hook", "monitor"}, []string{"*"}},
	{"csi", adapter, []string{"github.com/container-storage-interface/spec", "github.com/prometheus/client_golang", "golang.org/x/sys", "google.golang.org/", "k8s.io/", "sigs.k8s.io/"}},
	{"csi/mount", nil, []string{"golang.org/x/sys"}},
	{"csi/pool", []string{"internal/node", "internal/durable", "csi/mount"}, []string{"golang.org/x/sys"}},
	{"csi/fetch", []string{"internal/node"}, []string{"github.com/minio/minio-go", "oras.land/oras-go", "github.com/opencontainers/image-spec", "github.com/opencontainers/go-digest", "github.com/klauspost/compress"}},
	{"csi/dataset", []string{"csi/fetch", "internal/node", "internal/durable"}, nil},
	{"cni/topo", []string{"internal/node"}, nil},
	{"monitor", adapter, []string{"github.com/prometheus/client_golang", "golang.org/x/sys"}},
	{"monitor/bpf", nil, []string{"github.com/cilium/ebpf", "golang.org/x/sys"}},
	{"monitor/xid", []string{"internal/node"}, nil},
	{"monitor/doctor", []string{"internal/node"}, nil},
	{"deploy", []string{"internal/node", "dra-driver"}, []string{"*"}}, // makes images and manifests
	{"bench", []string{"bench", "cmd/internal/version", "cmd/internal/control", "internal/", "vgpu/", "dra-driver", "cni/call", "csi"}, []string{"github.com/container-storage-interface/spec", "golang.org/x/sys", "github.com/vishvananda/netlink", "k8s.io/", "sigs.k8s.io/", "google.golang.org/grpc"}},
}

// adapter is what an adapter may import of Kerf: values and vgpu, never the hardware, never another adapter.
var adapter = []string{"internal/node", "internal/durable", "vgpu/share", "vgpu/ledger", "vgpu/region"}

// listed is what `go list -json` says of a package.
type listed struct {
	ImportPath string
	Imports    []string
	Standard   bool
}

func TestImports(t *testing.T) {
	checked := 0
	for _, p := range list(t) {
		path := strings.TrimPrefix(p.ImportPath, module)
		r, ok := ruleFor(path)
		if !ok {
			t.Errorf("%s: no rule covers it; add a line to this test, or find the room where it belongs", path)
			continue
		}
		for _, imported := range p.Imports {
			checked++
			if !r.allows(path, imported) {
				t.Errorf("%s imports %s, which its rule does not allow", path, imported)
			}
		}
	}
	if checked < 50 {
		t.Errorf("only %d imports were seen: the test looks at the wrong packages", checked)
	}
}

func TestRulesRefuse(t *testing.T) {
	for _, tt := range []struct {
		from, to string
		want     bool
	}{
		{"internal/node", "fmt", true},
		{"internal/node", "golang.org/x/sys/unix", false},
		{"internal/node", module + "internal/sim", false},
		{"vgpu/share", module + "vgpu/ledger", false},
		{"vgpu/ledger", module + "vgpu/share", true},
		{"vgpu/arbiter", "log/slog", false},
		{"internal/sysfs", "github.com/NVIDIA/go-nvml/pkg/nvml", false},
		{"cmd/kerfd", "k8s.io/api/core/v1", true},
		{"dra-driver", module + "internal/nvml", false},
		{"dra-driver", module + "hook", false},
		{"deviceplugin", module + "vgpu/ledger", true},
		{"hook", "k8s.io/api/core/v1", false},
		{"cmd/kerf-hook", "github.com/spf13/cobra", false},
		{"cmd/kerf-cni", "k8s.io/client-go/kubernetes", false},
		{"cmd/kerf-cni", "google.golang.org/grpc", false},
		{"cmd/kerf-cni", "github.com/prometheus/client_golang/prometheus", false},
		{"cni", module + "internal/sysfs", false},
	} {
		r, _ := ruleFor(tt.from)
		if got := r.allows(tt.from, tt.to); got != tt.want {
			t.Errorf("%s → %s: allowed %v, want %v", tt.from, tt.to, got, tt.want)
		}
	}
}

func ruleFor(path string) (best rule, ok bool) {
	for _, r := range rules {
		if (path == r.path || strings.HasPrefix(path, r.path+"/")) && len(r.path) > len(best.path) {
			best, ok = r, true
		}
	}
	return best, ok
}

func (r rule) allows(from, imported string) bool {
	own, isOwn := strings.CutPrefix(imported, module)
	under := func(prefix string) bool { return strings.HasPrefix(own, prefix) }
	switch {
	case isOwn:
		return strings.HasPrefix(own, r.path) || slices.ContainsFunc(r.kerf, under)
	case imported == "log/slog": // libraries return errors and do not log
		return r.path == "cmd"
	case !strings.Contains(strings.Split(imported, "/")[0], "."):
		return true // standard library
	}
	return slices.ContainsFunc(r.outside, func(m string) bool { return m == "*" || strings.HasPrefix(imported, m) })
}

func list(t *testing.T) (packages []listed) {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports,Standard", module+"...").Output()
	if err != nil {
		t.Fatal(err)
	}
	decoder := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var p listed
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			return packages
		} else if err != nil {
			t.Fatal(err)
		}
		packages = append(packages, p)
	}
}
