// Package drivertest runs the simulated CUDA driver's tests: a C program, each
// test a process of its own, on one simulated node.
package drivertest

import (
	"context"
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kerf-gpu/kerf/internal/cuda"
	"github.com/kerf-gpu/kerf/internal/sim"
)

const repo = "../../.."

// build makes the libraries and the test program with flags, and returns the
// directory that they are in.
func build(t *testing.T, cc, flags string) string {
	t.Helper()
	if _, err := exec.LookPath(cc); err != nil {
		t.Skipf("no %s: install it to run this test", cc)
	}
	dir := t.TempDir()
	run(t, "make", "-C", repo, "simdriver", "simdriver-test", "simnvml", "B="+dir, "CC="+cc, "SIMDRIVER_FLAGS="+flags)
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

func simulate(t *testing.T, built string) string {
	t.Helper()
	p, err := sim.LoadProfile("h200x8")
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(t.TempDir(), "node")
	n, err := sim.Create(root, p, filepath.Join(built, "lib/kerf/sim"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return root
}

func suite(t *testing.T, cc, flags string, env ...string) {
	built := build(t, cc, flags)
	program := filepath.Join(built, "drivertest")
	root := simulate(t, built)
	ptx, err := filepath.Abs(filepath.Join(repo, "internal/cuda/kernels.ptx"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range strings.Fields(run(t, program, "-list")) {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
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
		"ASAN_OPTIONS=detect_leaks=0", "UBSAN_OPTIONS=print_stacktrace=1")
}

// TestSymbols: the library exports what entrypoints.tsv lists and no more, and
// loads in images as old as glibc 2.17.
func TestSymbols(t *testing.T) {
	built := build(t, "gcc", "")
	f, err := elf.Open(filepath.Join(built, "lib/kerf/sim/libcuda.so.1"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	dynamic, err := f.DynamicSymbols()
	if err != nil {
		t.Fatal(err)
	}
	var got, want []string
	for _, s := range dynamic {
		if s.Section != elf.SHN_UNDEF {
			got = append(got, s.Name)
			continue
		}
		var minor int
		if n, _ := fmt.Sscanf(s.Version, "GLIBC_2.%d", &minor); n == 1 && minor > 17 {
			t.Errorf("needs %s of %s", s.Name, s.Version)
		}
	}
	table, err := cuda.Entrypoints()
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range table {
		want = append(want, e.Symbol)
	}
	slices.Sort(got)
	slices.Sort(want)
	if diff := cmp.Diff(slices.Compact(want), got); diff != "" {
		t.Errorf("exports differ from entrypoints.tsv (-want +got):\n%s", diff)
	}
}
