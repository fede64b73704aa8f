package cdi

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	oci "github.com/opencontainers/runtime-spec/specs-go"
	cdilib "tags.cncf.io/container-device-interface/pkg/cdi"
	"tags.cncf.io/container-device-interface/specs-go"

	"github.com/kerf-gpu/kerf/hook"
)

var update = flag.Bool("update", false, "write the golden files")

const (
	uuid0    = "GPU-1a2b3c4d-0000-0000-0000-000000000000"
	uuid1    = "GPU-5e6f7a8b-0000-0000-0000-000000000001"
	claim    = "11111111-2222-3333-4444-555555555555"
	hookPath = "/var/lib/kerf/host/v1/bin/kerf-hook"
	shims    = "/var/lib/kerf/host/v1/lib"
)

func simulated(id string, gpus ...string) Tenant {
	return Tenant{
		Name: claim + "-" + id, UUIDs: []string{uuid0}, Hook: hookPath,
		Share: hook.Share{
			ID: id, Pages: "/run/kerf/shares/" + id + "/s", Lib: shims, Simulated: true,
			CUDA: "/run/kerf/sim/usr/lib/x86_64-linux-gnu/libcuda.so.570.86.15", NVML: "/run/kerf/sim/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.570.86.15",
			GPUs: gpus, Control: []string{"/run/kerf/sim/dev/nvidiactl", "/run/kerf/sim/dev/nvidia-uvm"},
		},
	}
}

func realTenant(id string, gpus ...string) Tenant {
	return Tenant{
		Name: claim + "-" + id, UUIDs: []string{uuid0}, Hook: hookPath,
		Share: hook.Share{
			ID: id, Pages: "/run/kerf/shares/" + id + "/s", Lib: shims, Kerfd: "/run/kerf/hook.sock",
			CUDA: "/usr/lib/x86_64-linux-gnu/libcuda.so.570.86.15", NVML: "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.570.86.15",
			GPUs: gpus, Control: []string{"/dev/nvidiactl", "/dev/nvidia-uvm"},
		},
		Driver: Driver{
			Mounts: []*specs.Mount{
				{HostPath: "/usr/lib/x86_64-linux-gnu/libnvidia-ptxjitcompiler.so.570.86.15", ContainerPath: hook.LibDir + "/libnvidia-ptxjitcompiler.so.1", Options: []string{"ro"}},
				{HostPath: "/usr/bin/nvidia-smi", ContainerPath: "/usr/bin/nvidia-smi", Options: []string{"ro"}},
			},
			Nodes: []*specs.DeviceNode{{Path: "/dev/nvidia-uvm-tools", Permissions: "rw"}, {Path: "/dev/nvidiactl", Permissions: "rw"}},
		},
	}
}

func onMPS() Tenant {
	t := realTenant("0123456789abcdef", "/dev/nvidia0")
	t.Share.MPS, t.Share.MPSMemory = "/run/kerf/mps/0011223344556677/pipe", "/run/kerf/mps/0011223344556677/shm"
	return t
}

func admin() Tenant {
	t := realTenant("", "/dev/nvidia0", "/dev/nvidia1")
	t.Name, t.UUIDs = claim+"-0badcafe", []string{uuid0, uuid1}
	t.Share.Pages, t.Share.Kerfd, t.Share.CUDA, t.Share.Admin = "", "", "", true
	return t
}

func inDriverContainer() Tenant {
	t := realTenant("0123456789abcdef", "/run/nvidia/driver/dev/nvidia3")
	t.Share.Control = []string{"/run/nvidia/driver/dev/nvidiactl"}
	return t
}

func TestSpec(t *testing.T) {
	for name, tenant := range map[string]Tenant{
		"simulated":        simulated("0123456789abcdef", "/run/kerf/sim/dev/nvidia1"),
		"real":             realTenant("0123456789abcdef", "/dev/nvidia0"),
		"two":              realTenant("0123456789abcdef", "/dev/nvidia0", "/dev/nvidia1"),
		"mig":              realTenant("0123456789abcdef", "/dev/nvidia0", "/dev/nvidia-caps/nvidia-cap21", "/dev/nvidia-caps/nvidia-cap22"),
		"mps":              onMPS(),
		"admin":            admin(),
		"driver-container": inDriverContainer(),
	} {
		t.Run(name, func(t *testing.T) {
			spec, err := Spec(tenant)
			if err != nil {
				t.Fatal(err)
			}
			text, err := json.MarshalIndent(spec, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			got, golden := string(text)+"\n", filepath.Join("testdata", name+".json")
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Error(diff)
			}
			dir := t.TempDir()
			if err := Write(dir, spec); err != nil {
				t.Fatal(err)
			}
			cache := library(t, dir)
			if d := cache.GetDevice(Shares.Device(tenant.Name)); d == nil {
				t.Errorf("the CDI library does not know it: %v", cache.GetErrors())
			}
		})
	}
}

func library(t *testing.T, dir string) *cdilib.Cache {
	t.Helper()
	cache, err := cdilib.NewCache(cdilib.WithSpecDirs(dir), cdilib.WithAutoRefresh(false))
	if err != nil {
		t.Fatal(err)
	}
	if errs := cache.GetErrors(); len(errs) > 0 {
		t.Fatal(errs)
	}
	return cache
}

func TestBadName(t *testing.T) {
	tenant := simulated("0123456789abcdef")
	for _, tenant.Name = range []string{"", "a/b", "../x", "a b", "-a"} {
		if _, err := Spec(tenant); err == nil {
			t.Errorf("%q: no error", tenant.Name)
		}
	}
}

// The oracle is the CDI library as runtimes have it: two shares in one container keep their own directories and hooks, and what
// they have in common is there once.
func TestTwoSharesInOneContainer(t *testing.T) {
	dir := t.TempDir()
	var names []string
	for _, tenant := range []Tenant{simulated("aaaaaaaaaaaaaaaa", "/run/kerf/sim/dev/nvidia0"), simulated("bbbbbbbbbbbbbbbb", "/run/kerf/sim/dev/nvidia1")} {
		spec, err := Spec(tenant)
		if err != nil {
			t.Fatal(err)
		}
		if err := Write(dir, spec); err != nil {
			t.Fatal(err)
		}
		names = append(names, Shares.Device(tenant.Name))
	}
	spec := &oci.Spec{Linux: &oci.Linux{}, Mounts: []oci.Mount{{Destination: "/run", Type: "tmpfs", Source: "tmpfs"}, {Destination: "/proc", Type: "proc"}}}
	if unresolved, err := library(t, dir).InjectDevices(spec, names...); err != nil {
		t.Fatal(unresolved, err)
	}
	seen := make(map[string]int)
	for _, m := range spec.Mounts {
		seen[m.Destination]++
	}
	for _, want := range []string{
		hook.LibDir + "/libcuda.so.1", "/run/kerf/driver/libkerfreal-cuda.so.1", "/run/kerf/shares/aaaaaaaaaaaaaaaa", "/run/kerf/shares/bbbbbbbbbbbbbbbb",
		"/run/kerf/shares/aaaaaaaaaaaaaaaa/usage", "/run/kerf/sim/dev/nvidia0", "/run/kerf/sim/dev/nvidia1", "/run/kerf/sim/dev/nvidiactl",
	} {
		if seen[want] != 1 {
			t.Errorf("%s is mounted %d times", want, seen[want])
		}
	}
	shares, err := hook.Shares(spec)
	if err != nil || len(shares) != 2 {
		t.Fatal(shares, err)
	}
	if err := hook.Verify(spec, shares); err != nil {
		t.Error(err)
	}
}

func TestFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cdi") // made by the first Write
	spec, err := Spec(simulated("0123456789abcdef"))
	if err != nil {
		t.Fatal(err)
	}
	name := spec.Devices[0].Name
	if err := Write(dir, spec); err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(Shares.File(dir, name))
	if err != nil || before.Mode() != 0o644 {
		t.Fatal(before, err)
	}
	if err := Write(dir, spec); err != nil {
		t.Fatal(err)
	}
	if after, err := os.Stat(Shares.File(dir, name)); err != nil || !os.SameFile(before, after) {
		t.Error("written again without need", err)
	}
	for file, text := range map[string]string{
		"nvidia.yaml": "cdiVersion: x", Shares.prefix() + "half.json": `{"cdi`, "." + Shares.prefix() + "new.json.123.tmp": "{", "kerf.dev-share_.json": "", Shares.prefix() + "x.yaml": "",
	} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, Shares.prefix()+"dir.json"), 0o755); err != nil {
		t.Fatal(err)
	}
	names, err := Shares.List(dir)
	if diff := cmp.Diff([]string{name, "half"}, names); diff != "" || err != nil {
		t.Error(diff, err)
	}
	if err := Sweep(dir); err != nil {
		t.Error(err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".*")); len(left) > 0 {
		t.Error(left)
	}
	for range 2 {
		if err := Shares.Remove(dir, name); err != nil {
			t.Error(err)
		}
	}
	if names, err := Shares.List(dir); err != nil || slices.Contains(names, name) {
		t.Error(names, err)
	}
	if names, err := Shares.List(filepath.Join(dir, "none")); err != nil || names != nil {
		t.Error(names, err)
	}
}

func TestWriteErrors(t *testing.T) {
	spec, err := Spec(simulated("0123456789abcdef"))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ name, options, want string }{
		{"read-only", "ro", "mount it writable into kerfd's pod"},
		{"full", "size=4k,nr_inodes=2", "make room on the file system"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			mountTmpfs(t, dir, tt.options)
			if tt.name == "full" {
				if err := os.WriteFile(filepath.Join(dir, "filler"), make([]byte, 4096), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			err := Write(dir, spec)
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), dir) {
				t.Errorf("%v, want %q", err, tt.want)
			}
			if names, err := Shares.List(dir); err != nil || len(names) > 0 {
				t.Error(names, err)
			}
		})
	}
}

func BenchmarkWrite(b *testing.B) {
	dir := b.TempDir()
	spec, err := Spec(realTenant("0123456789abcdef", "/dev/nvidia0"))
	if err != nil {
		b.Fatal(err)
	}
	for i := range b.N {
		spec.Devices[0].Name = claim + "-" + string(rune('a'+i%26)) + string(rune('a'+i/26%26))
		if err := Write(dir, spec); err != nil {
			b.Fatal(err)
		}
		_ = Shares.Remove(dir, spec.Devices[0].Name)
	}
}
