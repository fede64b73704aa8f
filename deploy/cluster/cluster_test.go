package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestBinaries holds the list of binaries and the tools of the modules to each other.
func TestBinaries(t *testing.T) {
	for _, m := range modules() {
		t.Run(m.name, func(t *testing.T) {
			version, err := m.version()
			if err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(m.key(version, "go"), m.name+"-"+version+"-") {
				t.Errorf("key %q does not begin with name and version", m.key(version, "go"))
			}
			out, err := exec.Command("go", "mod", "edit", "-json", "modules/"+m.name+".mod").Output()
			if err != nil {
				t.Fatal(err)
			}
			var mod struct{ Tool []struct{ Path string } }
			if err := json.Unmarshal(out, &mod); err != nil {
				t.Fatal(err)
			}
			var want []string
			for _, tool := range mod.Tool {
				want = append(want, tool.Path)
			}
			var got []string
			for _, b := range m.binaries {
				got = append(got, b.pkg)
			}
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("built are %q, modules/%s.mod has the tools %q", got, m.name, want)
			}
		})
	}
}

// TestKeyChanges: what the binaries are made of is in the key.
func TestKeyChanges(t *testing.T) {
	m := modules()[0]
	key := m.key("v1.0.0", "go1")
	other := m
	other.sum = append(slices.Clone(m.sum), 'x')
	for what, got := range map[string]string{"version": m.key("v1.0.1", "go1"), "toolchain": m.key("v1.0.0", "go2"), "sum": other.key("v1.0.0", "go1")} {
		if got == key {
			t.Errorf("another %s has the same key %s", what, key)
		}
	}
}

func TestConfiguration(t *testing.T) {
	files, err := configuration(layout{"/run/test"}, state{Slot: 7})
	if err != nil {
		t.Fatal(err)
	}
	var conf struct {
		Plugins []struct{ Bridge string }
	}
	if err := json.Unmarshal(files["/run/test/root/etc/cni/net.d/kerf.conflist"], &conf); err != nil {
		t.Fatal(err)
	}
	if len(conf.Plugins) != 1 || conf.Plugins[0].Bridge != "kerfcluster7" {
		t.Errorf("the network's plugins are %+v, want one on kerfcluster7", conf.Plugins)
	}
}

func TestLayoutRefuses(t *testing.T) {
	for _, dir := range []string{"/var/cluster", "/etc", "/run/a,b", "/run/" + strings.Repeat("x", dirLimit)} {
		if _, err := newLayout(dir); err == nil {
			t.Errorf("directory %s is taken", dir)
		}
	}
}

// TestRecord: only the process on record is killed, not another of its number.
func TestRecord(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	end := make(chan error, 1)
	go func() { end <- cmd.Wait() }()
	began, err := startTime(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := (record{cmd.Process.Pid, began + 1}).kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if p, err := (record{cmd.Process.Pid, began}).find(); err != nil || p == nil {
		t.Fatalf("the process of the same number and another start is gone (%v)", err)
	}
	if err := (record{cmd.Process.Pid, began}).kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-end; err == nil {
		t.Error("the process ended by itself")
	}
	if err := (record{cmd.Process.Pid, began}).kill(t.Context()); err != nil {
		t.Errorf("a second kill: %v", err)
	}
}

func TestMountPoints(t *testing.T) {
	const info = `22 1 0:1 / / rw - ext4 /dev/a rw
30 22 0:2 / /run/kc rw shared:1 - ext4 /dev/a rw
31 30 0:3 / /run/kc/a\040b rw - tmpfs x rw
32 22 0:4 / /run/kcx rw - tmpfs x rw
`
	got, err := mountPoints(strings.NewReader(info), "/run/kc")
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"/run/kc/a b", "/run/kc"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if _, err := mountPoints(strings.NewReader("1 2\n"), "/run/kc"); err == nil {
		t.Error("a broken line is taken")
	}
}

func TestImage(t *testing.T) {
	if !static(busybox) {
		t.Skip(busybox + " is not static here: install busybox-static")
	}
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "sub/tool"), []byte("tool"), 0o755); err != nil {
		t.Fatal(err)
	}
	i := image{name: "kerf.dev/test:local", entrypoint: []string{"/opt/sub/tool"}, files: map[string]string{"/opt": dir}}
	var first, second bytes.Buffer
	for _, out := range []*bytes.Buffer{&first, &second} {
		if err := i.write(t.Context(), out); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Error("the same image twice differs")
	}
	archive := untar(t, &first)
	layer := untar(t, bytes.NewBuffer(archive["layer.tar"]))
	if string(layer["opt/sub/tool"]) != "tool" {
		t.Error("the layer lacks opt/sub/tool")
	}
	if _, found := layer["bin/sh"]; !found {
		t.Error("the layer lacks bin/sh")
	}
	if !strings.Contains(string(archive["manifest.json"]), i.name) {
		t.Errorf("the manifest does not name %s", i.name)
	}
}

func untar(t *testing.T, r io.Reader) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	for in := tar.NewReader(r); ; {
		header, err := in.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if files[header.Name], err = io.ReadAll(in); err != nil {
			t.Fatal(err)
		}
	}
}

// program builds the cluster program, and skips where no cluster can be started.
func program(t *testing.T, needs ...string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a cluster needs root")
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Skip(err)
	}
	for _, name := range append(needs, "kubelet", "etcd") {
		if found, _ := filepath.Glob(filepath.Join(cache, "kerf/cluster/*", name)); len(found) == 0 {
			t.Skipf("%s is not in the cache: run cluster build --kwok, which takes minutes", name)
		}
	}
	bin := filepath.Join(t.TempDir(), "cluster")
	if out, err := exec.Command("go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v: %s", err, out)
	}
	return bin
}

// directory of a cluster; it must be short, and end with nothing left.
func directory(t *testing.T, bin string) layout {
	t.Helper()
	dir, err := os.MkdirTemp("/run", "kerf-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if out, err := exec.Command(bin, "down", "--dir", dir).CombinedOutput(); err != nil {
			t.Errorf("down: %v: %s", err, out)
		}
		_ = os.Remove(dir)
	})
	return layout{dir}
}

func command(t *testing.T, bin string, args ...string) string {
	t.Helper()
	out, err := exec.Command(bin, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("cluster %s: %v: %s", args[0], err, out)
	}
	return string(out)
}

func TestCluster(t *testing.T) {
	bin := program(t)
	l := directory(t, bin)
	at := "--dir=" + l.dir
	command(t, bin, "up", at)
	command(t, bin, "smoke", at)
	if out, err := exec.Command(bin, "up", at).CombinedOutput(); err == nil || !strings.Contains(string(out), "already") {
		t.Errorf("a second up: %v: %s", err, out)
	}
	command(t, bin, "image", at, "kerf.dev/test:local", "/etc/hello="+l.state())
	s, err := l.running()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range daemons(l, s) {
		command(t, bin, "restart", at, d.name)
	}
	command(t, bin, "kubectl", at, "run", "hello", "--image=kerf.dev/test:local", "--image-pull-policy=Never", "--command", "--", "tail", "-f", "/etc/hello")
	command(t, bin, "kubectl", at, "wait", "--for=condition=Ready", "--timeout=60s", "pod/hello")
	// The pod runs on without its shim and without containerd, and down still finds it.
	if err := killOne(t, l, "containerd"); err != nil {
		t.Fatal(err)
	}
	command(t, bin, "down", at)
	nothingLeft(t, l, s)
}

// TestSimulated starts two clusters beside each other, one with simulated nodes.
func TestSimulated(t *testing.T) {
	bin := program(t, "kwok")
	one, other := directory(t, bin), directory(t, bin)
	command(t, bin, "up", "--dir", one.dir, "--simulated-nodes", "20")
	command(t, bin, "up", "--dir", other.dir)
	for dir, want := range map[string]int{one.dir: 21, other.dir: 1} {
		nodes := command(t, bin, "kubectl", "--dir", dir, "get", "nodes", "-o", "name")
		if got := len(strings.Fields(nodes)); got != want {
			t.Errorf("%s has %d nodes, want %d", dir, got, want)
		}
	}
	command(t, bin, "down", "--dir", one.dir)
	command(t, bin, "smoke", "--dir", other.dir)
}

// TestCrash kills up at any moment, and then expects down to leave nothing.
func TestCrash(t *testing.T) {
	bin := program(t)
	kills := 5
	if os.Getenv("KERF_SOAK") != "" {
		kills = 100
	}
	l := directory(t, bin)
	for range kills {
		after := time.Duration(rand.Int64N(int64(4 * time.Second)))
		if rand.IntN(2) == 0 { // half of them where most is made
			after /= 20
		}
		ctx, cancel := context.WithTimeout(t.Context(), after)
		_ = exec.CommandContext(ctx, bin, "up", "--dir", l.dir).Run()
		cancel()
		s, found, err := l.readState()
		if err != nil {
			t.Fatal(err)
		}
		command(t, bin, "down", "--dir", l.dir)
		if found {
			nothingLeft(t, l, s)
		}
	}
}

func killOne(t *testing.T, l layout, name string) error {
	t.Helper()
	r, found, err := readRecord(l.proc(name))
	if err != nil || !found {
		t.Fatalf("%s is not on record (%v)", name, err)
	}
	return r.kill(t.Context())
}

func nothingLeft(t *testing.T, l layout, s state) {
	t.Helper()
	if _, err := os.Stat(l.dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is left (%v)", l.dir, err)
	}
	if _, err := net.InterfaceByName(s.link()); err == nil {
		t.Errorf("bridge %s is left", s.link())
	}
	all, err := hierarchies()
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range all {
		if _, err := os.Stat(filepath.Join(h.dir, s.cgroup())); err == nil {
			t.Errorf("control group %s/%s is left", h.dir, s.cgroup())
		}
	}
	commands, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range commands {
		if line, err := os.ReadFile(file); err == nil && strings.Contains(string(line), l.dir+"/") {
			t.Errorf("a process is left: %s", strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
}
