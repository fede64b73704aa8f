package main

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kerf-gpu/kerf/internal/nvml"
	"github.com/kerf-gpu/kerf/monitor/doctor"
)

// root is the driver root, as far as kerfd said.
func (p patient) root() string {
	if p.node.Root == "" {
		return "/"
	}
	return p.node.Root
}

func gatherFiles(ctx context.Context, p patient) (func(*doctor.Facts), error) {
	var missing, noModule, moduleError, badShim string
	for _, name := range []string{"libcuda.so.1", "libnvidia-ml.so.1"} {
		if _, err := nvml.FindLibrary(p.root(), name); err != nil {
			missing = err.Error()
			break
		}
	}
	module, err := nvml.KernelModuleVersion(p.root())
	switch {
	case errors.Is(err, nvml.ErrNoDriver):
		noModule = filepath.Join(p.root(), "proc/driver/nvidia/version") + " has none"
	case err != nil:
		moduleError = err.Error()
	}
	if n, err := p.client.Node(ctx); err == nil { // without kerfd the check of the shim is skipped
		badShim = shimTrouble(n.LibDir)
	}
	return func(f *doctor.Facts) {
		f.MissingLibrary, f.Module, f.NoModule, f.ModuleError, f.BadShim = missing, module, noModule, moduleError, badShim
	}, nil
}

// shimTrouble looks at what makes the substitution work: the names in the shim's ELF header.
func shimTrouble(dir string) string {
	for name, needed := range map[string]string{"libcuda.so.1": "libkerfreal-cuda.so.1", "libnvidia-ml.so.1": "libkerfreal-nvidia-ml.so.1"} {
		path := filepath.Join(dir, name)
		f, err := elf.Open(path)
		if err != nil {
			return fmt.Sprintf("%s: %v", path, err)
		}
		sonames, err1 := f.DynString(elf.DT_SONAME)
		libraries, err2 := f.ImportedLibraries()
		_ = f.Close()
		if err := errors.Join(err1, err2); err != nil || !slices.Contains(sonames, name) || !slices.Contains(libraries, needed) {
			return fmt.Sprintf("%s is not Kerf's shim (soname %v, needs %v)", path, sonames, libraries)
		}
	}
	return ""
}

func gatherDevices(ctx context.Context, p patient) (func(*doctor.Facts), error) {
	n, err := p.client.Node(ctx)
	if err != nil {
		return nil, err
	}
	nodes := []string{"/dev/nvidiactl"}
	for _, g := range n.GPUs {
		nodes = append(nodes, g.DeviceNode)
	}
	for _, name := range nodes {
		file, err := os.OpenFile(filepath.Join(n.Root, name), os.O_RDWR, 0)
		if err == nil {
			_ = file.Close()
			continue
		}
		text := fmt.Sprintf("%s cannot be opened: %v", name, err)
		absent, denied := errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission)
		switch {
		case absent:
			text = name + " is missing"
		case denied:
			text = fmt.Sprintf("%s cannot be opened by user %d", name, os.Getuid())
		}
		return func(f *doctor.Facts) { f.NoNode, f.Absent, f.Denied = text, absent, denied }, nil
	}
	return func(f *doctor.Facts) { f.Nodes = len(nodes) }, nil
}

// features are files that tell what a kernel can, below its root, and what goes without.
var features = []struct{ path, lacks string }{
	{"sys/fs/cgroup/cgroup.controllers", "no cgroup v2: the driver's own memory limits cannot be used"},
	{"sys/kernel/btf/vmlinux", "no BTF: kernel probes that need it stay off"},
	{"proc/sys/kernel/random/boot_id", "no boot id: the monitor cannot tell boots apart"},
	{"dev/kmsg", "no /dev/kmsg: faults are learnt from NVML alone"},
}

func gatherKernel(_ context.Context, p patient) (func(*doctor.Facts), error) {
	var lacking []string
	for _, feature := range features {
		if _, err := os.Stat(filepath.Join("/", feature.path)); err != nil {
			lacking = append(lacking, feature.lacks)
		}
	}
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id") // the list above says that it lacks
	host, _ := os.Hostname()                                  // a report without a name is still one
	machine := "/"                                            // wherever the driver is
	if p.node.Simulated {
		machine = p.root()
	}
	gpus := countPCI(machine)
	return func(f *doctor.Facts) {
		f.Lacking, f.BootID, f.Hostname, f.PCIGPUs = lacking, strings.TrimSpace(string(boot)), host, gpus
	}, nil
}

// countPCI counts NVIDIA's display and 3D controllers; -1 where there is no PCI bus.
func countPCI(root string) (count int) {
	base := filepath.Join(root, "sys/bus/pci/devices")
	entries, err := os.ReadDir(base)
	if err != nil {
		return -1
	}
	for _, e := range entries {
		vendor, _ := os.ReadFile(filepath.Join(base, e.Name(), "vendor")) // a device that went is none
		class, _ := os.ReadFile(filepath.Join(base, e.Name(), "class"))
		if strings.TrimSpace(string(vendor)) == "0x10de" && strings.HasPrefix(string(class), "0x03") {
			count++
		}
	}
	return count
}
