package hook_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	cdilib "tags.cncf.io/container-device-interface/pkg/cdi"

	"github.com/kerf-gpu/kerf/hook"
	"github.com/kerf-gpu/kerf/hook/cdi"
	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/internal/sim"
	"github.com/kerf-gpu/kerf/vgpu/arbiter"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

// once makes what all tests use, in a directory that TestMain removes.
var once struct {
	dir           string
	program, look func() (string, error)
}

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "kerf-hook-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	once.dir = dir
	once.program = sync.OnceValues(func() (string, error) {
		file := filepath.Join(dir, hook.Program)
		return file, command([]string{"CGO_ENABLED=0"}, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", file, "../cmd/kerf-hook")
	})
	once.look = sync.OnceValues(func() (string, error) {
		file := filepath.Join(dir, "look")
		return file, command(nil, "gcc", "-o", file, "testdata/look.c", "-ldl")
	})
	code := m.Run()
	_ = os.RemoveAll(dir)
	for _, pattern := range []string{"/sys/fs/cgroup/kerf-hook-test", "/sys/fs/cgroup/*/kerf-hook-test"} { // runc removes what is below
		groups, _ := filepath.Glob(pattern)
		for _, group := range groups {
			_ = os.Remove(group)
		}
	}
	os.Exit(code)
}

func command(env []string, name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, out)
	}
	return nil
}

// machine is a simulated node with shares in force.
type machine struct {
	t      testing.TB
	dir    string
	server *arbiter.Server
	sim    *sim.Node
	cdi    string
}

const (
	sharedMemory = 3 * node.GiB
	idA, idB     = "aaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbb"
)

type noProcesses struct{}

func (noProcesses) ProcessMemory(node.UUID) (map[int]node.Bytes, error) { return nil, nil }

func newMachine(t testing.TB) *machine {
	t.Helper()
	for _, needed := range []string{"runc", "gcc"} {
		if _, err := exec.LookPath(needed); err != nil {
			t.Skip("runs containers: ", err)
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("runs containers, which needs root here")
	}
	if _, err := os.Stat("../build/lib/kerf/libcuda.so.1"); err != nil {
		t.Skip("no shim; run make build: ", err)
	}
	dir, err := os.MkdirTemp("", "kerf") // t.TempDir is too long for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	m := &machine{t: t, dir: dir, cdi: filepath.Join(dir, "cdi")}
	profile, err := sim.LoadProfile("h200x8")
	if err != nil {
		t.Fatal(err)
	}
	if m.sim, err = sim.Create(filepath.Join(dir, "sim"), profile, "../build/lib/kerf/sim"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.sim.Remove(true) })
	m.server, err = arbiter.New(arbiter.Config{Shares: m.shares(), Sessions: filepath.Join(dir, "sessions"), Memory: noProcesses{}, Now: time.Now, Notify: func(arbiter.Event) {}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.server.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return m
}

func (m *machine) shares() string { return filepath.Join(m.dir, "shares") }

// share puts a share of one GPU in force and writes its CDI spec.
func (m *machine) share(id string, gpu int, edit ...func(*cdi.Tenant)) string {
	m.t.Helper()
	program, err := once.program()
	if err != nil {
		m.t.Fatal(err)
	}
	uuid := m.sim.Status().GPUs[gpu].UUID
	err = m.server.Add(arbiter.Spec{ID: id, Simulated: true, Grant: share.Grant{Devices: []share.Device{{UUID: uuid, Index: gpu, Memory: sharedMemory}}}})
	if err != nil {
		m.t.Fatal(err)
	}
	shims, err := filepath.Abs("../build/lib/kerf")
	if err != nil {
		m.t.Fatal(err)
	}
	lib := filepath.Join(m.sim.Root, "usr/lib/x86_64-linux-gnu")
	tenant := cdi.Tenant{
		Name: "claim-" + id, UUIDs: []string{uuid.String()}, Hook: program,
		Share: hook.Share{
			ID: id, Pages: arbiter.Directory(m.shares(), id), Lib: shims, CUDA: filepath.Join(lib, "libcuda.so.1"), NVML: filepath.Join(lib, "libnvidia-ml.so.1"),
			GPUs:    []string{filepath.Join(m.sim.Root, fmt.Sprintf("dev/nvidia%d", gpu))},
			Control: []string{filepath.Join(m.sim.Root, "dev/nvidiactl"), filepath.Join(m.sim.Root, "dev/nvidia-uvm")}, Simulated: true,
		},
	}
	for _, e := range edit {
		e(&tenant)
	}
	return m.write(tenant)
}

func (m *machine) write(tenant cdi.Tenant) string {
	m.t.Helper()
	spec, err := cdi.Spec(tenant)
	if err != nil {
		m.t.Fatal(err)
	}
	if err := cdi.Write(m.cdi, spec); err != nil {
		m.t.Fatal(err)
	}
	return cdi.Shares.Device(tenant.Name)
}

// bundle is a container that has not run yet.
type bundle struct {
	m      *machine
	dir    string
	rootfs string
	spec   *specs.Spec
}

// glibc's files as a small image has them.
var glibcFiles = []string{
	"/lib64/ld-linux-x86-64.so.2", "/lib/x86_64-linux-gnu/libc.so.6", "/lib/x86_64-linux-gnu/libdl.so.2", "/lib/x86_64-linux-gnu/libpthread.so.0",
}

// bundle makes a root directory of this machine's own glibc, and a configuration with the CDI devices in it, as a runtime does.
func (m *machine) bundle(image func(b *bundle), devices ...string) *bundle {
	m.t.Helper()
	dir, err := os.MkdirTemp(m.dir, "bundle")
	if err != nil {
		m.t.Fatal(err)
	}
	b := &bundle{m: m, dir: dir, rootfs: filepath.Join(dir, "rootfs")}
	for _, d := range []string{"proc", "dev", "etc", "tmp", "usr/local"} {
		b.mkdir(d)
	}
	for _, file := range glibcFiles {
		b.copy(file, file)
	}
	look, err := once.look()
	if err != nil {
		m.t.Fatal(err)
	}
	b.copy(look, "/look")
	b.spec = &specs.Spec{
		Version: "1.0.2",
		Process: &specs.Process{Args: []string{"/look"}, Cwd: "/", Env: []string{"PATH=/bin"}},
		Root:    &specs.Root{Path: "rootfs"},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755"}},
		},
		Annotations: map[string]string{
			"io.kubernetes.cri.sandbox-namespace": "default", "io.kubernetes.cri.sandbox-name": "llm-0", "io.kubernetes.cri.sandbox-uid": "u-1",
			"io.kubernetes.cri.container-name": "server",
		},
		Linux: &specs.Linux{
			CgroupsPath: "/kerf-hook-test/" + filepath.Base(dir),
			Namespaces:  []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}},
			Resources:   &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}},
		},
	}
	if image != nil {
		image(b)
	}
	if len(devices) > 0 {
		cache, err := cdilib.NewCache(cdilib.WithSpecDirs(m.cdi), cdilib.WithAutoRefresh(false))
		if err != nil {
			m.t.Fatal(err)
		}
		if _, err := cache.InjectDevices(b.spec, devices...); err != nil {
			m.t.Fatal(err)
		}
	}
	return b
}

func (b *bundle) path(name string) string { return filepath.Join(b.rootfs, name) }

func (b *bundle) mkdir(name string) {
	b.m.t.Helper()
	if err := os.MkdirAll(b.path(name), 0o755); err != nil {
		b.m.t.Fatal(err)
	}
}

func (b *bundle) copy(from, name string) {
	b.m.t.Helper()
	text, err := os.ReadFile(from)
	if err != nil {
		b.m.t.Skip("this machine's glibc is not where Debian has it: ", err)
	}
	b.file(name, string(text))
}

func (b *bundle) file(name, text string) {
	b.m.t.Helper()
	b.mkdir(filepath.Dir(name))
	if err := os.WriteFile(b.path(name), []byte(text), 0o755); err != nil {
		b.m.t.Fatal(err)
	}
}

func (b *bundle) link(target, name string) {
	b.m.t.Helper()
	b.mkdir(filepath.Dir(name))
	if err := os.Symlink(target, b.path(name)); err != nil {
		b.m.t.Fatal(err)
	}
}

func (b *bundle) remove(name string) {
	b.m.t.Helper()
	if err := os.RemoveAll(b.path(name)); err != nil {
		b.m.t.Fatal(err)
	}
}

// run runs the container to its end and gives what it and runc said.
func (b *bundle) run() (string, error) {
	b.m.t.Helper()
	text, err := json.Marshal(b.spec)
	if err != nil {
		b.m.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(b.dir, "config.json"), text, 0o644); err != nil {
		b.m.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	id := "kerf-hook-test-" + filepath.Base(b.dir)
	cmd := exec.CommandContext(ctx, "runc", "--root", filepath.Join(b.m.dir, "runc"), "run", "--bundle", b.dir, id)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run()
	b.m.t.Logf("%s", strings.TrimSpace(out.String()))
	return out.String(), err
}

func (b *bundle) ok(want ...string) {
	b.m.t.Helper()
	out, err := b.run()
	if err != nil {
		b.m.t.Fatal(err)
	}
	for _, w := range append(want, fmt.Sprintf("cuda 0 gpus 1 total %d\n", sharedMemory)) {
		if !strings.Contains(out, w) {
			b.m.t.Errorf("%q is missing", w)
		}
	}
}

func (b *bundle) refused(want string) {
	b.m.t.Helper()
	out, err := b.run()
	if err == nil || !strings.Contains(out, want) {
		b.m.t.Errorf("%v, want %q", err, want)
	}
	if strings.Contains(out, "cuda 0") {
		b.m.t.Error("the program ran all the same")
	}
}

func TestContainer(t *testing.T) {
	m := newMachine(t)
	device := m.share(idA, 2)
	own := func(b *bundle, name string) {
		b.copy(filepath.Join(m.sim.Root, "usr/lib/x86_64-linux-gnu/libcuda.so.1"), name)
	}
	const shim = "libcuda.so.1 /run/kerf/lib/libcuda.so.1\n"
	for _, tt := range []struct {
		name  string
		image func(b *bundle)
		want  []string
	}{
		{"no loader cache", nil, []string{shim, "libnvidia-ml.so.1 /run/kerf/lib/libnvidia-ml.so.1\n"}},
		{"a loader cache", func(b *bundle) { b.copy("/etc/ld.so.cache", "/etc/ld.so.cache"); b.mkdir("/etc/ld.so.conf.d") }, []string{shim}},
		{"a damaged loader cache", func(b *bundle) { b.file("/etc/ld.so.cache", "glibc-ld.so.cache1.1\xff\xff\xff\xff\xff") }, []string{shim}},
		{"read-only root", func(b *bundle) { b.spec.Root.Readonly = true }, []string{shim}},
		{"emptyDir on /run", func(b *bundle) {
			b.mkdir("/run")
			b.spec.Mounts = append(b.spec.Mounts, specs.Mount{Destination: "/run", Type: "tmpfs", Source: "tmpfs"})
		}, []string{shim}},
		{"an image with a driver", func(b *bundle) {
			own(b, "/usr/lib/x86_64-linux-gnu/libcuda.so.999")
			b.link("libcuda.so.999", "/usr/lib/x86_64-linux-gnu/libcuda.so.1")
			b.spec.Process.Args = append(b.spec.Process.Args, "libcuda.so.1", "/usr/lib/x86_64-linux-gnu/libcuda.so.1", "/usr/lib/x86_64-linux-gnu/libcuda.so.999")
		}, nil},
		{"forward compatibility by LD_LIBRARY_PATH", func(b *bundle) {
			own(b, "/opt/mine/libcuda.so.1")
			b.spec.Process.Env = append(b.spec.Process.Env, "LD_LIBRARY_PATH=/nowhere:/opt/mine")
		}, []string{"libcuda.so.1 /opt/mine/libcuda.so.1\n"}},
		{"one directory by two names", func(b *bundle) {
			own(b, "/usr/lib/x86_64-linux-gnu/libcuda.so.1")
			for _, file := range glibcFiles[1:] {
				b.copy(file, "/usr"+file)
			}
			b.remove("/lib")
			b.link("usr/lib", "/lib")
			b.spec.Process.Env = append(b.spec.Process.Env, "LD_LIBRARY_PATH=/usr/lib/x86_64-linux-gnu")
		}, nil},
		{"CPU levels", func(b *bundle) { own(b, "/lib/x86_64-linux-gnu/glibc-hwcaps/x86-64-v2/libcuda.so.1") }, nil},
		{"CUDA's compat directory", func(b *bundle) {
			own(b, "/usr/local/cuda-12.8/compat/libcuda.so.1")
			b.link("cuda-12.8", "/usr/local/cuda")
			b.spec.Process.Args = append(b.spec.Process.Args, "/usr/local/cuda/compat/libcuda.so.1")
		}, nil},
		{"links out of the image", func(b *bundle) {
			b.file("/etc/own", "the image's")
			b.link("/../../../../../../../../etc/own", "/usr/lib/libcuda.so.1")
			b.link(m.dir+"/victim", "/usr/lib/libcuda.so")
			b.link("/../../../../../../../../"+m.dir+"/victim", "/lib/x86_64-linux-gnu/libcuda.so.1")
			b.link(m.dir+"/victim", "/etc/ld.so.cache")
			b.link("../../../../../../../../../../"+m.dir, "/etc/ld.so.conf.d")
		}, nil},
		{"/etc is a volume", func(b *bundle) {
			b.file("/etc/ld.so.conf", "")
			b.spec.Mounts = append(b.spec.Mounts, specs.Mount{Destination: "/etc", Type: "bind", Source: b.path("etc"), Options: []string{"rbind"}})
		}, nil},
		{"a volume with a driver", func(b *bundle) {
			own(b, "../volume/libcuda.so.1")
			b.spec.Mounts = append(b.spec.Mounts, specs.Mount{Destination: "/usr/local/nvidia/lib64", Type: "bind", Source: filepath.Join(b.dir, "volume"), Options: []string{"rbind", "rprivate"}})
			b.spec.Process.Env = append(b.spec.Process.Env, "LD_LIBRARY_PATH=/usr/local/nvidia/lib64")
		}, nil},
		{"/run is a link", func(b *bundle) { b.mkdir("/var/run"); b.link("var/run", "/run") }, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m.t = t
			victim := filepath.Join(m.dir, "victim")
			if err := os.WriteFile(victim, []byte("untouched"), 0o644); err != nil {
				t.Fatal(err)
			}
			b := m.bundle(tt.image, device)
			b.ok(tt.want...)
			if text, err := os.ReadFile(victim); err != nil || string(text) != "untouched" {
				t.Error("a file of the host was changed: ", string(text), err)
			}
			if _, err := os.Stat(filepath.Join(m.dir, "000-kerf.conf")); !errors.Is(err, fs.ErrNotExist) {
				t.Error("a file was made on the host")
			}
			checkBinding(t, m, b)
		})
	}
}

// Images run ldconfig when they start: NVIDIA's do, and each apt-get install.
func TestLdconfigInside(t *testing.T) {
	m := newMachine(t)
	device := m.share(idA, 0)
	for _, tt := range []struct {
		name  string
		image func(b *bundle)
		want  string
	}{
		{"with a directory of configurations", func(b *bundle) {
			b.file("/etc/ld.so.conf", "include /etc/ld.so.conf.d/*.conf\n")
			b.mkdir("/etc/ld.so.conf.d")
		}, "libcuda.so.1 /run/kerf/lib/libcuda.so.1\n"},
		{"without", func(b *bundle) { b.file("/etc/ld.so.conf", "/lib/x86_64-linux-gnu\n") }, "libcuda.so.1 /lib/x86_64-linux-gnu/libcuda.so.1\n"},
		{"a driver without its link", func(b *bundle) {
			b.file("/etc/ld.so.conf", "/usr/lib/x86_64-linux-gnu\n/lib/x86_64-linux-gnu\n")
			b.copy(filepath.Join(m.sim.Root, "usr/lib/x86_64-linux-gnu/libcuda.so.1"), "/usr/lib/x86_64-linux-gnu/libcuda.so.999")
		}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m.t = t
			m.bundle(func(b *bundle) {
				tt.image(b)
				for _, program := range []string{"/usr/bin/busybox", "/sbin/ldconfig"} {
					b.copy(program, program)
				}
				b.spec.Process.Args = []string{"/usr/bin/busybox", "sh", "-c", "/sbin/ldconfig && exec /look"}
			}, device).ok(tt.want)
		})
	}
}

// checkBinding: the share knows who holds it.
func checkBinding(t *testing.T, m *machine, b *bundle) {
	t.Helper()
	bindings, err := hook.Bindings(arbiter.Directory(m.shares(), idA))
	if err != nil {
		t.Fatal(err)
	}
	id := "kerf-hook-test-" + filepath.Base(b.dir)
	for _, got := range bindings {
		if got.ID != id {
			continue
		}
		if got.PID == 0 || got.Start == 0 || got.Namespace != "default" || got.Pod != "llm-0" || got.PodUID != "u-1" || got.Container != "server" {
			t.Errorf("%+v", got)
		}
		if err := hook.Unbind(arbiter.Directory(m.shares(), idA), id); err != nil {
			t.Error(err)
		}
		return
	}
	t.Errorf("no binding of %s in %+v", id, bindings)
}

func TestContainerRefused(t *testing.T) {
	m := newMachine(t)
	device := m.share(idA, 0)
	missing := m.share(idB, 1, func(tenant *cdi.Tenant) { tenant.Hook = "/var/lib/kerf/gone/kerf-hook" })
	for _, tt := range []struct {
		name   string
		image  func(b *bundle)
		after  func(b *bundle) // when the runtime has applied the CDI spec
		device string
		want   string
	}{
		{name: "musl", image: func(b *bundle) { b.remove("/lib64"); b.file("/lib/ld-musl-x86_64.so.1", "musl") }, want: "the image has musl, not glibc"},
		{name: "musl with a glibc layer", image: func(b *bundle) {
			b.file("/lib/ld-musl-x86_64.so.1", "musl")
			b.file("/lib64/ld-linux-x86-64.so.2", "gcompat")
		}, want: "is a compatibility layer"},
		{name: "a shared volume with a driver", image: func(b *bundle) {
			b.copy(filepath.Join(m.sim.Root, "usr/lib/x86_64-linux-gnu/libcuda.so.1"), "../volume/libcuda.so.1")
			b.spec.Linux.RootfsPropagation = "rshared"
			b.spec.Mounts = append(b.spec.Mounts, specs.Mount{Destination: "/usr/local/nvidia/lib64", Type: "bind", Source: filepath.Join(b.dir, "volume"), Options: []string{"rbind", "rshared"}})
		}, want: "mountPropagation Bidirectional"},
		{name: "no loader", image: func(b *bundle) { b.remove("/lib64") }, want: "the image has no loader /lib64/ld-linux-x86-64.so.2"},
		{name: "shadowing mount", after: func(b *bundle) {
			b.spec.Mounts = append(b.spec.Mounts, specs.Mount{Destination: "/run/kerf/lib", Type: "tmpfs", Source: "tmpfs"})
		}, want: "tmpfs is mounted on /run/kerf/lib"},
		{name: "shadowing mount by a link", image: func(b *bundle) { b.mkdir("/run/kerf/lib"); b.link("/run/kerf/lib", "/innocent") }, after: func(b *bundle) {
			b.spec.Mounts = append(b.spec.Mounts, specs.Mount{Destination: "/innocent", Type: "tmpfs", Source: "tmpfs"})
		}, want: "in its mounts"},
		{name: "another share in sight", image: func(b *bundle) { b.mkdir("/run/kerf/shares/cccccccccccccccc") }, want: "another container's share is in sight"},
		{name: "foreign GPU", after: func(b *bundle) {
			b.spec.Linux.Devices = append(b.spec.Linux.Devices, specs.LinuxDevice{Path: "/dev/nvidia5", Type: "c", Major: 195, Minor: 5})
		}, want: "/dev/nvidia5 (195:5) is in the container"},
		{name: "privileged", after: func(b *bundle) { b.spec.Linux.Resources.Devices[0].Allow = true }, want: "may open every device"},
		{name: "missing hook", device: missing, want: "/var/lib/kerf/gone/kerf-hook: no such file or directory"},
		{name: "share gone", after: func(b *bundle) { _ = os.RemoveAll(filepath.Join(m.shares(), idB)) }, device: missing, want: "no such file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m.t = t
			if tt.device == "" {
				tt.device = device
			}
			b := m.bundle(tt.image, tt.device)
			if tt.after != nil {
				tt.after(b)
			}
			b.refused(tt.want)
		})
	}
}

func TestTwoShares(t *testing.T) {
	m := newMachine(t)
	b := m.bundle(nil, m.share(idA, 0), m.share(idB, 5))
	out, err := b.run()
	if err != nil || !strings.Contains(out, fmt.Sprintf("cuda 0 gpus 2 total %d\n", sharedMemory)) {
		t.Error(out, err)
	}
	for _, id := range []string{idA, idB} {
		if bindings, err := hook.Bindings(arbiter.Directory(m.shares(), id)); err != nil || len(bindings) != 1 || bindings[0].Share != id {
			t.Error(id, bindings, err)
		}
	}
}

// Monitoring sees the node as NVML has it, and has no libcuda.
func TestMonitoring(t *testing.T) {
	m := newMachine(t)
	device := m.share(idA, 0, func(tenant *cdi.Tenant) {
		tenant.Share.ID, tenant.Share.Pages, tenant.Share.CUDA, tenant.Share.Admin = "", "", "", true
	})
	out, err := m.bundle(nil, device).run()
	if err == nil || !strings.Contains(out, "libnvidia-ml.so.1 /run/kerf/lib/libnvidia-ml.so.1\nlibcuda.so.1: ") {
		t.Error(out, err)
	}
}

// hostUsers: false. The container's root is nobody on the host, and createContainer runs as it.
func TestUserNamespace(t *testing.T) {
	m := newMachine(t)
	for _, dir := range []string{m.dir, once.dir, filepath.Join(m.dir, "sim")} {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	device := m.share(idA, 0)
	const own = "/usr/lib/x86_64-linux-gnu/libcuda.so.1" // to be covered in the namespace
	b := m.bundle(func(b *bundle) { b.copy(filepath.Join(m.sim.Root, own), own) }, device)
	b.spec.Process.Args = append(b.spec.Process.Args, own)
	b.spec.Linux.Namespaces = append(b.spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
	ids := []specs.LinuxIDMapping{{HostID: 100000, Size: 65536}}
	b.spec.Linux.UIDMappings, b.spec.Linux.GIDMappings = ids, ids
	if err := os.Chmod(b.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := command(nil, "chown", "-R", "100000:100000", b.rootfs); err != nil {
		t.Fatal(err)
	}
	b.ok() // the slice's memory: the file that was covered would say the whole card's
}
