package cdi

import (
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"tags.cncf.io/container-device-interface/specs-go"

	"github.com/kerf-gpu/kerf/hook"
)

func TestEdit(t *testing.T) {
	const lib = "/host/usr/lib/x86_64-linux-gnu/"
	mount := func(host, container string) *specs.Mount {
		return &specs.Mount{HostPath: host, ContainerPath: container, Options: []string{"ro", "nosuid", "nodev", "rbind", "rprivate"}}
	}
	answer := specs.ContainerEdits{
		Env: []string{"NVIDIA_CTK_LIBCUDA_DIR=/usr/lib/x86_64-linux-gnu", "NVIDIA_VISIBLE_DEVICES=void"},
		DeviceNodes: []*specs.DeviceNode{
			{Path: "/dev/nvidiactl", HostPath: "/host/dev/nvidiactl"}, {Path: "/dev/nvidia-uvm", HostPath: "/host/dev/nvidia-uvm"}, {Path: "/dev/nvidia0"},
		},
		Hooks: []*specs.Hook{{HookName: "createContainer", Path: "/usr/bin/nvidia-cdi-hook", Args: []string{"nvidia-cdi-hook", "update-ldcache"}}},
		Mounts: []*specs.Mount{
			mount(lib+"libcuda.so.570.1", "/usr/lib/x86_64-linux-gnu/libcuda.so.570.1"),
			mount(lib+"libnvidia-ml.so.570.1", "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.570.1"),
			mount(lib+"libcudadebugger.so.570.1", "/usr/lib/x86_64-linux-gnu/libcudadebugger.so.570.1"),
			mount(lib+"libnvidia-nvvm.so.570.1", "/usr/lib/x86_64-linux-gnu/libnvidia-nvvm.so.570.1"),
			mount(lib+"nvidia/xorg/nvidia_drv.so", "/usr/lib/x86_64-linux-gnu/nvidia/xorg/nvidia_drv.so"),
			mount(lib+"libother.so.1", "/usr/lib/x86_64-linux-gnu/libother.so.1"),
			mount("/host/usr/bin/nvidia-smi", "/usr/bin/nvidia-smi"),
			mount("/host/usr/bin/nvidia-cuda-mps-server", "/usr/bin/nvidia-cuda-mps-server"),
		},
	}
	names := map[string]string{"libcudadebugger.so.570.1": "libcudadebugger.so.1", "libnvidia-nvvm.so.570.1": "libnvidia-nvvm.so.4", "libother.so.1": "libcuda.so.1"}
	got, err := Edit(answer, Roots{Seen: "/host", Host: "/"}, func(file string) (string, error) { return names[filepath.Base(file)], nil })
	if err != nil {
		t.Fatal(err)
	}
	const hostLib = "/usr/lib/x86_64-linux-gnu/"
	want := Driver{
		Mounts: []*specs.Mount{
			mount(hostLib+"libcudadebugger.so.570.1", hook.LibDir+"/libcudadebugger.so.1"),
			mount(hostLib+"libnvidia-nvvm.so.570.1", hook.LibDir+"/libnvidia-nvvm.so.4"),
			mount(hostLib+"nvidia/xorg/nvidia_drv.so", hostLib+"nvidia/xorg/nvidia_drv.so"),
			mount("/usr/bin/nvidia-smi", "/usr/bin/nvidia-smi"),
		},
		Nodes: []*specs.DeviceNode{{Path: "/dev/nvidiactl", Permissions: "rw"}, {Path: "/dev/nvidia-uvm", Permissions: "rw"}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestRoots(t *testing.T) {
	for _, tt := range []struct {
		roots      Roots
		file, want string
	}{
		{Roots{"/host", "/"}, "/host/usr/bin/nvidia-smi", "/usr/bin/nvidia-smi"},
		{Roots{"/", "/"}, "/usr/bin/nvidia-smi", "/usr/bin/nvidia-smi"},
		{Roots{"/driver", "/run/nvidia/driver"}, "/driver/usr/lib/x", "/run/nvidia/driver/usr/lib/x"},
		{Roots{"/host", "/"}, "/hostile/x", "/hostile/x"},
	} {
		if got := tt.roots.host(tt.file); got != tt.want {
			t.Errorf("%v %s: %s, want %s", tt.roots, tt.file, got, tt.want)
		}
	}
}

// A driver root as the toolkit finds one: it looks for real files, so libraries are compiled.
func TestFromToolkit(t *testing.T) {
	const version = "570.86.15"
	root := t.TempDir()
	lib := filepath.Join(root, "usr/lib/x86_64-linux-gnu")
	for _, l := range []struct{ file, soname string }{
		{"libcuda.so." + version, "libcuda.so.1"}, {"libnvidia-ml.so." + version, "libnvidia-ml.so.1"},
		{"libnvidia-ptxjitcompiler.so." + version, "libnvidia-ptxjitcompiler.so.1"}, {"libnvidia-nvvm.so." + version, "libnvidia-nvvm.so.4"},
		{"libcudadebugger.so." + version, "libcudadebugger.so.1"},
	} {
		compileLibrary(t, filepath.Join(lib, l.file), l.soname)
	}
	for link, target := range map[string]string{"libcuda.so.1": "libcuda.so." + version, "libnvidia-ml.so.1": "libnvidia-ml.so." + version} {
		if err := os.Symlink(target, filepath.Join(lib, link)); err != nil {
			t.Fatal(err)
		}
	}
	smi := filepath.Join(root, "usr/bin/nvidia-smi")
	if err := os.MkdirAll(filepath.Dir(smi), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(smi, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	got, err := FromToolkit(Roots{Seen: root, Host: "/"}, version)
	if err != nil {
		t.Fatal(err)
	}
	var mounts []string
	for _, m := range got.Mounts {
		mounts = append(mounts, m.HostPath+" "+m.ContainerPath)
		if !slices.Contains(m.Options, "ro") {
			t.Errorf("%s is writable: %v", m.ContainerPath, m.Options)
		}
	}
	slices.Sort(mounts)
	const host = "/usr/lib/x86_64-linux-gnu/"
	want := []string{
		"/usr/bin/nvidia-smi /usr/bin/nvidia-smi",
		host + "libcudadebugger.so." + version + " " + hook.LibDir + "/libcudadebugger.so.1",
		host + "libnvidia-nvvm.so." + version + " " + hook.LibDir + "/libnvidia-nvvm.so.4",
		host + "libnvidia-ptxjitcompiler.so." + version + " " + hook.LibDir + "/libnvidia-ptxjitcompiler.so.1",
	}
	if diff := cmp.Diff(want, mounts); diff != "" {
		t.Error(diff)
	}
	if _, err := FromToolkit(Roots{Seen: t.TempDir(), Host: "/"}, version); err == nil || !strings.Contains(err.Error(), "is the driver installed whole?") {
		t.Errorf("an empty root: %v", err)
	}
}

func compileLibrary(t *testing.T, file, soname string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	source := filepath.Join(t.TempDir(), "empty.c")
	if err := os.WriteFile(source, []byte("int kerf_nothing;\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("gcc", "-shared", "-nostdlib", "-Wl,-soname,"+soname, "-o", file, source).CombinedOutput(); err != nil {
		t.Skipf("no C compiler to make libraries with: %v: %s", err, out)
	}
}

func TestCheck(t *testing.T) {
	seen := t.TempDir()
	for _, node := range []string{"nvidiactl", "nvidia0"} {
		if err := os.MkdirAll(path.Join(seen, "dev"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path.Join(seen, "dev", node), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	tenant := Tenant{Share: hook.Share{Control: []string{"/dev/nvidiactl"}, GPUs: []string{"/dev/nvidia0"}}}
	if err := Check(tenant, Roots{Seen: seen, Host: "/"}); err != nil {
		t.Error(err)
	}
	tenant.Share.GPUs = []string{"/dev/nvidia7"}
	if err := Check(tenant, Roots{Seen: seen, Host: "/"}); err == nil || !strings.Contains(err.Error(), "/dev/nvidia7: not on this node") {
		t.Error(err)
	}
}
