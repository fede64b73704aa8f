package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/kerf-gpu/kerf/hook"
	"github.com/kerf-gpu/kerf/hook/ldcache"
)

// The test's own program is kerf-hook, or one that takes memory without end, where it is started with this variable.
const actAs = "KERF_HOOK_TEST_ACT_AS"

func TestMain(m *testing.M) {
	switch os.Getenv(actAs) {
	case "hook":
		main()
	case "glutton":
		if err := bound(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		var hoard [][]byte
		for range 4 * atMost >> 20 {
			hoard = append(hoard, bytes.Repeat([]byte{1}, 1<<20))
		}
		fmt.Fprintln(os.Stderr, "unbounded:", len(hoard), "MiB")
	default:
		os.Exit(m.Run())
	}
}

// run starts this program as another, and says how much memory it took at most.
func run(t *testing.T, as, stdin string, args ...string) (stderr string, peak int64) {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), actAs+"="+as)
	cmd.Stdin = strings.NewReader(stdin)
	var out strings.Builder
	cmd.Stderr = &out
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return out.String(), cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss << 10
}

// A loader cache that says of itself that it has a hundred CPU levels once made the program read it a hundred times.
func TestHostileCache(t *testing.T) {
	dir := t.TempDir()
	rootfs := filepath.Join(dir, "rootfs")
	loader := map[string]string{"amd64": "/lib64/ld-linux-x86-64.so.2", "arm64": "/lib/ld-linux-aarch64.so.1"}[runtime.GOARCH]
	for name, text := range map[string]string{
		rootfs + loader:                             "GLIBC_2.2\x00/lib64/\x00/usr/lib64/\x00\x00",
		rootfs + "/usr/lib64/x":                     "",
		rootfs + hook.LibDir + "/libcuda.so.1":      "shim",
		rootfs + hook.LibDir + "/libnvidia-ml.so.1": "shim",
		rootfs + "/etc/ld.so.conf.d/x":              "",
		filepath.Join(dir, "config.json"):           `{"ociVersion": "1.0.0", "root": {"path": "rootfs"}}`,
		filepath.Join(rootfs, ldcache.Path):         string(manyLevels(120)),
	} {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	state, err := json.Marshal(map[string]any{"ociVersion": "1.0.0", "id": "x", "status": "created", "pid": os.Getpid(), "bundle": dir})
	if err != nil {
		t.Fatal(err)
	}
	stderr, peak := run(t, "hook", string(state), hook.CreateContainerVerb, "--share", "x", "--pages", "/x", "--lib", "/x", "--cuda", "/x", "--nvml", "/x")
	if want := "make it anew with ldconfig"; !strings.Contains(stderr, want) {
		t.Errorf("%q, want %q", stderr, want)
	}
	if peak > 80<<20 {
		t.Errorf("it took %d MiB", peak>>20)
	}
}

func manyLevels(n uint32) []byte {
	cache := make([]byte, ldcache.MaxBytes)
	copy(cache, "glibc-ld.so.cache1.1")
	for at, words := range map[int][]uint32{32: {48}, 48: {0xEAA42174, 1, 1, 0, 1000, 4 * n}} {
		for i, w := range words {
			binary.LittleEndian.PutUint32(cache[at+4*i:], w)
		}
	}
	return cache
}

// Whatever makes it want more than it should: it ends, before the node is short of memory.
func TestBounded(t *testing.T) {
	stderr, peak := run(t, "glutton", "")
	if strings.Contains(stderr, "unbounded") || !strings.Contains(stderr, "out of memory") || peak > 2*atMost {
		t.Errorf("%d MiB; %.300s", peak>>20, stderr)
	}
}
