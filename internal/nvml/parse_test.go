package nvml

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	gonvml "github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/google/go-cmp/cmp"
)

func TestParseModuleVersion(t *testing.T) {
	for text, want := range map[string]string{
		"NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.163.01  Tue Apr  8 12:41:17 UTC 2025\nGCC version:  gcc version 12.2.0\n":                                      "550.163.01",
		"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (dvs-builder@U22)  Tue Sep 23 10:11:16 UTC 2025\nGCC version: gcc version 12\n": "580.95.05",
		"GCC version: 12.2.0\nNVRM version: NVIDIA UNIX Open Kernel Module for aarch64  615.10  Release Build\n":                                                            "615.10",
	} {
		if got, err := parseModuleVersion(text); err != nil || got != want {
			t.Errorf("%q: %q, %v; want %s", text, got, err, want)
		}
	}
	if _, err := parseModuleVersion("GCC version: 12.2.0"); err == nil || !strings.Contains(err.Error(), "no version in") {
		t.Errorf("error %v", err)
	}
}

func TestKernelModuleVersion(t *testing.T) {
	root := t.TempDir()
	if _, err := KernelModuleVersion(root); !errors.Is(err, ErrNoDriver) {
		t.Errorf("error %v, want ErrNoDriver", err)
	}
	dir := filepath.Join(root, "proc/driver/nvidia")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "version"), []byte("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.261.03  x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if v, err := KernelModuleVersion(root); err != nil || v != "535.261.03" {
		t.Errorf("%q, %v", v, err)
	}
}

func TestOpenWithoutDriver(t *testing.T) {
	_, err := Open(t.TempDir())
	if !errors.Is(err, ErrNoDriver) || !strings.Contains(err.Error(), "correct the driver root") {
		t.Errorf("error %v", err)
	}
}

func TestMerge(t *testing.T) {
	got := map[int]ProcessMemory{}
	merge(got, []gonvml.ProcessInfo{{Pid: 1, UsedGpuMemory: 10}, {Pid: 2, UsedGpuMemory: notAvailable}, {Pid: 3, UsedGpuMemory: 4}, {Pid: 3, UsedGpuMemory: 5}})
	merge(got, []gonvml.ProcessInfo{{Pid: 1, UsedGpuMemory: 12}, {Pid: 4, UsedGpuMemory: 0}})
	want := map[int]ProcessMemory{
		1: {PID: 1, Bytes: 12}, 2: {PID: 2, Unknown: true}, 3: {PID: 3, Bytes: 9}, 4: {PID: 4},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("merged (-want +got):\n%s", d)
	}
}
