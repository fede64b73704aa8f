// Command gen writes the shim's tables from its lists of intercepted calls.
//
// It reads vgpu/shim/api.def (the CUDA driver), nvml.def (NVML) and internal/cuda's entry points, and writes
// beside them: the typed hook records, the exports, the linkers' maps, the names that the shim knows, and the
// table of the C tests. Output is the same bytes for the same input; `make generate` runs it.
package main

//go:generate go run . ..

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"

	"github.com/kerf-gpu/kerf/internal/cuda"
)

func main() {
	dir := "."
	if len(os.Args) == 2 {
		dir = os.Args[1]
	}
	if err := run(dir); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

func run(dir string) error {
	table, err := cuda.Entrypoints()
	if err != nil {
		return err
	}
	api, err := readDef(filepath.Join(dir, "api.def"), cudaClasses)
	if err != nil {
		return err
	}
	if err := checkSince(api, table); err != nil {
		return err
	}
	nvml, err := readDef(filepath.Join(dir, "nvml.def"), nvmlClasses)
	if err != nil {
		return err
	}
	for name, write := range map[string]func(*bytes.Buffer){
		"hooks.gen.h":      func(b *bytes.Buffer) { writeHeader(b, api, cudaLibrary) },
		"hooks.gen.c":      func(b *bytes.Buffer) { writeHooks(b, api, table) },
		"names.gen.c":      func(b *bytes.Buffer) { writeNames(b, table) },
		"cuda.map":         func(b *bytes.Buffer) { writeMap(b, api, "libcuda.so.1") },
		"nvml_hooks.gen.h": func(b *bytes.Buffer) { writeHeader(b, nvml, nvmlLibrary) },
		"nvml_hooks.gen.c": func(b *bytes.Buffer) { writeNvmlHooks(b, nvml) },
		"nvml.map":         func(b *bytes.Buffer) { writeMap(b, nvml, "libnvidia-ml.so.1") },
		"test/hooks.gen.h": func(b *bytes.Buffer) { writeTestTable(b, api) },
	} {
		var b bytes.Buffer
		write(&b)
		if err := os.WriteFile(filepath.Join(dir, name), b.Bytes(), 0o644); err != nil {
			return err
		}
	}
	return nil
}
