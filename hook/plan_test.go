package hook

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/kerf-gpu/kerf/hook/ldcache"
)

func TestPlan(t *testing.T) {
	shims := []string{"libcuda.so", "libcuda.so.1", "libnvidia-ml.so", "libnvidia-ml.so.1"}
	links := func(dir string, names ...string) (lines []string) {
		for _, name := range names {
			lines = append(lines, "link /run/kerf/lib/"+name+" "+dir+"/"+name)
		}
		return lines
	}
	for _, tt := range []struct {
		name  string
		image Image
		want  []string
	}{
		{"an image without a driver", Image{Libraries: shims, Default: []string{"/lib64", "/usr/lib64"}},
			append(links("/lib64", shims...), "write /etc/ld.so.cache")},
		{"files in the way", Image{Libraries: shims, Default: []string{"/lib64"}, ConfDir: true, Taken: []string{"/lib64/libcuda.so.1", "/lib64/libcuda.so.570", "/opt/libnvidia-ml.so.1"}},
			slices.Concat([]string{"bind /run/kerf/lib/libcuda.so.1 /lib64/libcuda.so.1", "bind /run/kerf/lib/libcuda.so.1 /lib64/libcuda.so.570", "bind /run/kerf/lib/libnvidia-ml.so.1 /opt/libnvidia-ml.so.1"},
				links("/lib64", "libcuda.so", "libnvidia-ml.so", "libnvidia-ml.so.1"), []string{"write /etc/ld.so.conf.d/000-kerf.conf", "write /etc/ld.so.cache"})},
		{"monitoring has no libcuda to put there", Image{Libraries: shims[2:], Default: []string{"/lib"}, Taken: []string{"/lib/libcuda.so.1"}},
			append(links("/lib", shims[2:]...), "write /etc/ld.so.cache")},
		{"the driver's other libraries are in the cache only", Image{Libraries: append(slices.Clone(shims), "libnvidia-nvvm.so.4"), Default: []string{"/lib"}},
			append(links("/lib", shims...), "write /etc/ld.so.cache")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for _, step := range Plan(&tt.image) {
				got = append(got, strings.Join(strings.Fields(fmt.Sprint(step.Verb, " ", step.Source, " ", step.Target)), " "))
				if step.Target == ldcache.Path {
					checkCache(t, step.Content, tt.image.Libraries)
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func checkCache(t *testing.T, content []byte, libraries []string) {
	t.Helper()
	cache, err := ldcache.Parse(content)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range libraries {
		if diff := cmp.Diff([]string{LibDir + "/" + name}, cache.Find(name)); diff != "" {
			t.Error(diff)
		}
	}
}

func TestDefaultDirs(t *testing.T) {
	for _, tt := range []struct {
		loader string
		want   []string
	}{
		{"GLIBC_2.2\x00/lib/x86_64-linux-gnu/\x00/usr/lib/x86_64-linux-gnu/\x00/lib/\x00/usr/lib/\x00\x00x", []string{"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib", "/usr/lib"}},
		{"\x00/lib64/\x00/usr/lib64/\x00/lib/ld.so\x00", []string{"/lib64", "/usr/lib64"}},
		{"\x00/lib/\x00/usr/lib/\x00\x00", []string{"/lib", "/usr/lib"}},
		{"nothing", []string{"/lib64", "/usr/lib64", "/lib", "/usr/lib"}},
	} {
		if diff := cmp.Diff(tt.want, defaultDirs([]byte(tt.loader))); diff != "" {
			t.Errorf("%q: %s", tt.loader, diff)
		}
	}
	loader, err := os.ReadFile(loaders[runtime.GOARCH].glibc[0])
	if err != nil {
		t.Skip("this machine has no glibc: ", err)
	}
	if dirs := defaultDirs(loader); len(dirs) < 2 {
		t.Errorf("of this machine's loader: %v", dirs)
	}
}

// fakeRoot is a directory as a container's root: what the plan makes is made there, without mounts.
func fakeRoot(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		loaders[runtime.GOARCH].glibc[0]: "GLIBC_2.2\x00/lib64/\x00/usr/lib64/\x00\x00",
		"/usr/lib64/x":                   "", "/etc/x": "",
		LibDir + "/libcuda.so.1": "shim", LibDir + "/libnvidia-ml.so.1": "shim",
	} {
		writeFile(t, filepath.Join(dir, name), text)
	}
	return dir
}

func writeFile(t testing.TB, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestCreateContainerIsConvergent(t *testing.T) {
	dir := fakeRoot(t)
	c := &container{spec: new(specs.Spec), rootfs: dir}
	if err := createContainer(c); err != nil {
		t.Fatal(err)
	}
	cache := filepath.Join(dir, ldcache.Path)
	before, err := os.Stat(cache)
	if err != nil {
		t.Fatal(err)
	}
	if target, err := os.Readlink(filepath.Join(dir, "lib64/libcuda.so.1")); err != nil || target != LibDir+"/libcuda.so.1" {
		t.Error(target, err)
	}
	if err := createContainer(c); err != nil { // the second share's hook
		t.Fatal(err)
	}
	if after, err := os.Stat(cache); err != nil || !os.SameFile(before, after) {
		t.Error("the cache was written again", err)
	}
}

// A root that a hostile image has filled with links: each leads back into it.
func TestConfinement(t *testing.T) {
	outside := t.TempDir()
	writeFile(t, filepath.Join(outside, "file"), "the host's")
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "etc/x"), "")
	for link, target := range map[string]string{
		"absolute": outside + "/file", "up": strings.Repeat("../", 20) + outside[1:] + "/file", "etc/dir": outside, "self": "/proc/self/root",
	} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	r, err := openRoot(unix.AT_FDCWD, dir)
	if err != nil {
		t.Fatal(err)
	}
	defer r.close()
	for _, name := range []string{"/absolute", "/up", "/etc/dir/file", "/self/" + outside + "/file", "/../../" + outside + "/file"} {
		if text, err := r.read(name); err == nil {
			t.Errorf("%s: read %q", name, text)
		}
		if err := r.write(name, []byte("hostile")); err == nil && name != "/absolute" && name != "/up" { // those two are replaced themselves
			t.Errorf("%s: written", name)
		}
	}
	if text, err := os.ReadFile(filepath.Join(outside, "file")); err != nil || string(text) != "the host's" {
		t.Error(string(text), err)
	}
	if got, err := r.list("/etc/dir", anyName); got != nil || err != nil {
		t.Error(got, err)
	}
}

func TestGlob(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"usr/local/cuda-12/compat/x", "usr/local/cuda/compat/x", "usr/local/cube/compat/x", "opt/conda/envs/a/lib/x", "opt/conda/envs/b/lib/x"} {
		writeFile(t, filepath.Join(dir, name), "")
	}
	r, err := openRoot(unix.AT_FDCWD, dir)
	if err != nil {
		t.Fatal(err)
	}
	defer r.close()
	for pattern, want := range map[string][]string{
		"/usr/local/cuda*/compat": {"/usr/local/cuda-12/compat", "/usr/local/cuda/compat"},
		"/opt/conda/envs/*/lib":   {"/opt/conda/envs/a/lib", "/opt/conda/envs/b/lib"},
		"/opt/conda/envs/*":       {"/opt/conda/envs/a", "/opt/conda/envs/b"},
		"/none/*/lib":             nil,
		"/plain":                  {"/plain"},
	} {
		got, err := r.glob("/", pattern)
		if err != nil {
			t.Error(err)
		}
		slices.Sort(got)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", pattern, diff)
		}
	}
}

// What a hostile image, or a volume in it, has in masses is not collected: it is passed over, or refused.
func TestMasses(t *testing.T) {
	many := func(t *testing.T, dir, pattern string) {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for i := range maxNames + 1 {
			if err := os.Mkdir(filepath.Join(dir, fmt.Sprintf(pattern, i)), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, tt := range []struct {
		name string
		make func(t *testing.T, dir string)
		env  string
		want string // part of the refusal
	}{
		{"a volume of other files", func(t *testing.T, dir string) { many(t, dir+"/data", "%d") }, "LD_LIBRARY_PATH=/data", ""},
		{"a path with stars, which are no pattern to a loader", func(t *testing.T, dir string) {
			many(t, dir+"/data", "%d")
			writeFile(t, dir+"/data/0/libcuda.so.1", "")
		}, "LD_LIBRARY_PATH=/*/*:/*", ""},
		{"a path of masses that are not there", func(*testing.T, string) {}, "LD_LIBRARY_PATH=" + strings.Repeat("/none:", 10000), ""},
		{"a path of masses", func(*testing.T, string) {}, "LD_LIBRARY_PATH=" + strings.Repeat("/etc:", 10000), "LD_LIBRARY_PATH and the like: more than"},
		{"libraries", func(t *testing.T, dir string) { many(t, dir+"/usr/lib64", "libcuda.so.%d") }, "", "/usr/lib64: more than"},
		{"environments", func(t *testing.T, dir string) { many(t, dir+"/opt/conda/envs", "%d") }, "", "/opt/conda/envs: more than"},
		{"files among Kerf's", func(t *testing.T, dir string) { many(t, dir+LibDir, "%d") }, "", LibDir + ": more than"},
		{"a loader", func(t *testing.T, dir string) {
			if err := os.Truncate(dir+loaders[runtime.GOARCH].glibc[0], maxRead+1); err != nil {
				t.Fatal(err)
			}
		}, "", "larger than the 8 MiB"},
		{"a cache", func(t *testing.T, dir string) {
			writeFile(t, dir+ldcache.Path, "")
			if err := os.Truncate(dir+ldcache.Path, maxRead+1); err != nil {
				t.Fatal(err)
			}
		}, "", "make it anew with ldconfig"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := fakeRoot(t)
			tt.make(t, dir)
			err := createContainer(&container{spec: &specs.Spec{Process: &specs.Process{Env: []string{tt.env}}}, rootfs: dir})
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
}

func BenchmarkCreateContainer(b *testing.B) {
	dir := fakeRoot(b)
	cache := new(ldcache.Cache)
	paths := make(map[string]string)
	for i := range 3000 {
		name := fmt.Sprintf("libnumber%d.so.1", i)
		writeFile(b, filepath.Join(dir, "usr/lib64", name), "")
		paths[name] = "/usr/lib64/" + name
	}
	content := cache.With(paths).Bytes()
	c := &container{spec: new(specs.Spec), rootfs: dir}
	for b.Loop() {
		b.StopTimer()
		writeFile(b, filepath.Join(dir, ldcache.Path), string(content))
		b.StartTimer()
		if err := createContainer(c); err != nil {
			b.Fatal(err)
		}
	}
}
