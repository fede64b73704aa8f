package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kerf-gpu/kerf/internal/cuda"
)

// TestCommittedFilesAreGenerated makes the files again beside copies of the lists, and compares.
func TestCommittedFilesAreGenerated(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "test"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, def := range []string{"api.def", "nvml.def"} {
		b, err := os.ReadFile(filepath.Join("..", def))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, def), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := run(dir); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"hooks.gen.h", "hooks.gen.c", "names.gen.c", "cuda.map", "nvml_hooks.gen.h", "nvml_hooks.gen.c", "nvml.map", "test/hooks.gen.h"} {
		made, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		have, err := os.ReadFile(filepath.Join("..", name))
		if err != nil {
			t.Fatal(err)
		}
		if string(made) != string(have) {
			t.Errorf("%s is not what the generator writes: run make generate", name)
		}
		if !strings.Contains(strings.SplitN(string(have), "\n", 2)[0], "generated") {
			t.Errorf("%s does not say on its first line that it is generated", name)
		}
	}
}

func TestParseCall(t *testing.T) {
	c, err := parseCall("alloc cuMemAllocAsync+ptsz 11020 (CUdeviceptr *p, size_t n, CUstream stream)  alloc_async", cudaClasses)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(c.symbols(), " "); got != "cuMemAllocAsync cuMemAllocAsync_ptsz" {
		t.Errorf("symbols %s", got)
	}
	if got := c.args("real"); got != "real, p, n, stream" {
		t.Errorf("args %s", got)
	}
	if got := c.paramList(); got != "CUdeviceptr *p, size_t n, CUstream stream" {
		t.Errorf("parameters %s", got)
	}
	for _, bad := range []struct{ line, want string }{
		{"alloc cuMemAlloc", "want class symbol"},
		{"take cuMemAlloc 2000 (void) x", `class "take"`},
		{"alloc cuMemAlloc 2000 (void)", "needs a handler"},
		{"submit cuMemcpy 2000 (size_t)", "want a type and a name"},
	} {
		if _, err := parseCall(bad.line, cudaClasses); err == nil || !strings.Contains(err.Error(), bad.want) {
			t.Errorf("parse %q: %v, want an error with %q", bad.line, err, bad.want)
		}
	}
}

func TestCheckSince(t *testing.T) {
	table := cuda.Table{{Name: "cuInit", Symbol: "cuInit", Since: 2000, Stream: cuda.AnyStream}}
	for _, c := range []struct {
		call call
		want string
	}{
		{call{symbol: "cuInit", since: 2000}, ""},
		{call{symbol: "cuInit", since: 3000}, "says 2000"},
		{call{symbol: "cuStop", since: 2000}, "no symbol of entrypoints.tsv"},
		{call{symbol: "cuInit", since: 2000, twin: "ptsz"}, "cuInit_ptsz is no symbol"},
	} {
		err := checkSince([]call{c.call}, table)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.call, err, c.want)
		}
	}
}

// TestPrices: work is known by its function, its graph, or its call and size; an event takes no time, so it has none.
func TestPrices(t *testing.T) {
	for line, want := range map[string]string{
		"launch cuLaunch 2000 (CUfunction f)":                                                     "AT(NULL, (uintptr_t)f, false)",
		"launch cuGraphLaunch 10000 (CUgraphExec exec, CUstream stream)":                          "AT(stream, (uintptr_t)exec, false)",
		"submit cuMemcpyAsync 4000 (CUdeviceptr dst, CUdeviceptr src, size_t n, CUstream stream)": "AT(stream, CALL_KEY(cuMemcpyAsync, n), false)",
		"mark cuEventRecord 2000 (CUevent event, CUstream stream)":                                "AT(stream, 0, false)",
	} {
		c, err := parseCall(line, cudaClasses)
		if err != nil {
			t.Fatal(err)
		}
		if got := c.at(c.symbol, false); got != want {
			t.Errorf("%s: %s, want %s", line, got, want)
		}
	}
}
