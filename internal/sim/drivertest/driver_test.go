// Package drivertest runs the simulated CUDA driver's tests: a C program, one
// process a test, on a simulated node of its own.
package drivertest

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/kerf-gpu/kerf/internal/sim"
)

const repo = "../../.."

// build makes the driver and the test program with flags, and returns their
// directory: lib/kerf/sim/libcuda.so.1 and drivertest.
func build(t *testing.T, cc, flags string) string {
	t.Helper()
	if _, err := exec.LookPath(cc); err != nil {
		t.Skipf("no %s: install it to run this test", cc)
	}
	dir := t.TempDir()
	run(t, "make", "-C", repo, "simdriver", "simdriver-test", "B="+dir, "CC="+cc, "SIMDRIVER_FLAGS="+flags)
	return dir
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
	return string(out)
}

func simulate(t *testing.T, lib string) string {
	t.Helper()
	p, err := sim.LoadProfile("h200x8")
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(t.TempDir(), "node")
	n, err := sim.Create(root, p, lib)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return root
}

// libraries is a directory with the simulated driver just built and an NVML,
// which sim.Create wants and these tests do not.
func libraries(t *testing.T, built string) string {
	t.Helper()
	run(t, "make", "-C", repo, "simnvml", "B="+built)
	return filepath.Join(built, "lib/kerf/sim")
}

func suite(t *testing.T, cc, flags string, env ...string) {
	built := build(t, cc, flags)
	program := filepath.Join(built, "drivertest")
	lib := libraries(t, built)
	ptx, err := filepath.Abs(filepath.Join(repo, "internal/cuda/kernels.ptx"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range strings.Fields(run(t, program, "-list")) {
		t.Run(name, func(t *testing.T) {
			root := simulate(t, lib)
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			cmd := exec.CommandContext(ctx, program, root, ptx, name)
			cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+filepath.Join(root, "usr/lib", triplet()))
			cmd.Env = append(cmd.Env, env...)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

func triplet() string {
	if runtime.GOARCH == "arm64" {
		return "aarch64-linux-gnu"
	}
	return "x86_64-linux-gnu"
}

func TestDriver(t *testing.T) { suite(t, "gcc", "") }

// Clang builds the library and the tests without a warning (-Werror), and they pass.
func TestDriverClang(t *testing.T) { suite(t, "clang", "") }

func TestDriverSanitized(t *testing.T) {
	suite(t, "gcc", "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer",
		"ASAN_OPTIONS=detect_leaks=0:abort_on_error=1", "UBSAN_OPTIONS=print_stacktrace=1")
}
