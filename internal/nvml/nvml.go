// Package nvml reads GPUs from NVIDIA's management library under a driver root
// into the words of internal/node, and divides them by MIG. It is the only
// importer of go-nvml.
//
// Vocabulary: a driver root is the directory under which a driver is installed:
// "/" on most machines, another one for a driver container or a simulated node.
// What is found is the same code path either way; the simulated library says
// that it is one, and Library.Simulated and node.GPU.Simulated pass it on.
//
// Traps
//
//   - One process, one root. go-nvml binds NVML's functions once, through the
//     program's own symbol table, to the first library loaded; a second library
//     would be called through the first one's addresses. Open refuses it, and
//     the library stays loaded until the process ends.
//   - A function that the installed driver lacks is no error but the end of the
//     process ("symbol lookup error"). Everything younger than driver 535 is
//     looked up before it is called.
//   - Memory used by version 2 of the call leaves out what driver and firmware
//     reserve, version 1 counts it in. Memory gives both parts.
//   - A call into a hung GPU can block for long, and cannot be cancelled. Call
//     from a goroutine that may be left behind.
//   - A MIG device's UUID names what was made, not its place: made again after a
//     reboot, the same placement may have another.
//   - NVML names processes by their pid in the host's pid namespace.
package nvml

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	gonvml "github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/kerf-gpu/kerf/internal/node"
)

// ErrNoDriver is wrapped by Open where there is no driver to talk to: a machine
// without GPUs, rather than a broken one.
var ErrNoDriver = errors.New("no NVIDIA driver")

// ErrLost is wrapped by the calls on a GPU that the driver cannot reach.
var ErrLost = errors.New("GPU is lost")

// Library is an open NVML. It may be used from any goroutine.
type Library struct {
	root string
	api  gonvml.Interface

	mu   sync.Mutex
	last map[int]node.GPU // as last read, by index, to name a GPU that is lost
}

// loaded is the one library of this process; see the package comment.
var loaded struct {
	sync.Mutex
	path string
	api  gonvml.Interface
}

// places are where a driver's libraries are, below its root.
var places = []string{
	"usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu", "usr/lib64", "usr/lib",
	"lib/x86_64-linux-gnu", "lib/aarch64-linux-gnu", "lib64", "lib",
	"usr/local/nvidia/lib64", "home/kubernetes/bin/nvidia/lib64",
}

const soname = "libnvidia-ml.so.1"

// FindLibrary is the path of a driver's library (libnvidia-ml.so.1,
// libcuda.so.1) below a root. Under "/" it is the bare name if the file is in
// none of the usual places: the loader may know better.
func FindLibrary(root, name string) (string, error) {
	for _, dir := range places {
		path := filepath.Join(root, dir, name)
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	if filepath.Clean(root) == "/" {
		return name, nil
	}
	return "", fmt.Errorf("%s is in none of the library directories below %s: %w; install the driver there, or correct the driver root", name, root, ErrNoDriver)
}

// Open starts NVML with the library below root. With root "/" the loader's own
// choice comes first. An error wraps ErrNoDriver where there is no library or
// no kernel module.
func Open(root string) (*Library, error) {
	path := soname
	if filepath.Clean(root) != "/" {
		var err error
		if path, err = FindLibrary(root, soname); err != nil {
			return nil, fmt.Errorf("open NVML: %w", err)
		}
	}
	api, err := load(path)
	if err != nil {
		return nil, fmt.Errorf("open NVML: %w", err)
	}
	if ret := api.Init(); ret != gonvml.SUCCESS {
		return nil, fmt.Errorf("open NVML: %w", initError(ret, root, path))
	}
	return &Library{root: root, api: api, last: make(map[int]node.GPU)}, nil
}

// load loads path for the life of the process.
func load(path string) (gonvml.Interface, error) {
	loaded.Lock()
	defer loaded.Unlock()
	if loaded.api != nil {
		if loaded.path != path {
			return nil, fmt.Errorf("%s: this process uses %s already, and NVML can be bound once only; start another process for another driver root", path, loaded.path)
		}
		return loaded.api, nil
	}
	api := gonvml.New(gonvml.WithLibraryPath(path))
	// This reference is never given back, so that Close does not unload the
	// library that the program's symbols are bound to.
	ret := api.Init()
	if ret == gonvml.ERROR_LIBRARY_NOT_FOUND {
		return nil, fmt.Errorf("%s cannot be loaded: %w; install the NVIDIA driver, or use a simulated node", path, ErrNoDriver)
	}
	loaded.path, loaded.api = path, api
	return api, nil
}

func initError(ret gonvml.Return, root, path string) error {
	switch ret {
	case gonvml.ERROR_DRIVER_NOT_LOADED:
		return fmt.Errorf("%s found no kernel driver: %w; load the module (modprobe nvidia) or look for its error in dmesg", path, ErrNoDriver)
	case gonvml.ERROR_LIB_RM_VERSION_MISMATCH:
		kernel, err := KernelModuleVersion(root)
		if err != nil {
			kernel = "unknown"
		}
		return fmt.Errorf("%s is of another version than the kernel module (%s); the driver was upgraded: reload the module or reboot", path, kernel)
	case gonvml.ERROR_NO_PERMISSION:
		return fmt.Errorf("%s: no permission for %s; run as root, or give access to the device nodes", path, filepath.Join(root, "dev/nvidiactl"))
	}
	return fmt.Errorf("%s: %s; see dmesg for NVRM messages", path, ret.Error())
}

// Close ends the use of NVML. The library stays loaded; see the package comment.
func (l *Library) Close() error {
	return check(l.api.Shutdown(), "close NVML")
}

// check is nil for success, else an error that wraps ErrLost for a lost GPU.
func check(ret gonvml.Return, format string, args ...any) error {
	what := fmt.Sprintf(format, args...)
	switch ret {
	case gonvml.SUCCESS:
		return nil
	case gonvml.ERROR_GPU_IS_LOST:
		return fmt.Errorf("%s: %w; it has fallen off the bus, see dmesg; it comes back with a reset or a reboot", what, ErrLost)
	}
	return fmt.Errorf("%s: %s", what, ret.Error())
}

// has reports whether the library offers a function.
func (l *Library) has(symbol string) bool {
	return l.api.Extensions().LookupSymbol(symbol) == nil
}

// simulatedMark ends the product name of every simulated GPU.
const simulatedMark = " (simulated)"

// Simulated reports whether the library is Kerf's simulator.
func (l *Library) Simulated() bool {
	return l.has("kerfSimulatedNVML")
}

// Driver tells the versions of what is installed.
func (l *Library) Driver() (node.Driver, error) {
	var d node.Driver
	var ret gonvml.Return
	if d.Version, ret = l.api.SystemGetDriverVersion(); ret != gonvml.SUCCESS {
		return d, check(ret, "read driver version")
	}
	cuda, ret := l.api.SystemGetCudaDriverVersion()
	if ret != gonvml.SUCCESS {
		return d, check(ret, "read CUDA version of the driver")
	}
	d.CUDAVersion = node.CUDAVersion(cuda)
	if d.NVMLVersion, ret = l.api.SystemGetNVMLVersion(); ret != gonvml.SUCCESS {
		return d, check(ret, "read NVML version")
	}
	kernel, err := KernelModuleVersion(l.root)
	if err != nil && !errors.Is(err, ErrNoDriver) {
		return d, err
	}
	d.Kernel = kernel
	return d, nil
}

// KernelModuleVersion is the version of the loaded kernel module, by
// root/proc/driver/nvidia/version. The error wraps ErrNoDriver where none is
// loaded.
func KernelModuleVersion(root string) (string, error) {
	path := filepath.Join(root, "proc/driver/nvidia/version")
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("read kernel module version: %s is missing: %w; load the module (modprobe nvidia)", path, ErrNoDriver)
	}
	if err != nil {
		return "", fmt.Errorf("read kernel module version: %w", err)
	}
	return parseModuleVersion(string(b))
}

// parseModuleVersion finds the first dotted number of the line that starts with
// NVRM version. The words before it differ between the closed module
// ("Kernel Module  550.163.01") and the open one ("Open Kernel Module for
// x86_64  580.95.05").
func parseModuleVersion(text string) (string, error) {
	for line := range strings.Lines(text) {
		rest, ok := strings.CutPrefix(line, "NVRM version:")
		if !ok {
			continue
		}
		for word := range strings.FieldsSeq(rest) {
			if strings.Count(word, ".") >= 1 && strings.Trim(word, "0123456789.") == "" {
				return word, nil
			}
		}
	}
	return "", fmt.Errorf("read kernel module version: no version in %q; is this a driver that Kerf does not know yet?", strings.TrimSpace(text))
}

// MemoryLimitsSupported reports whether the driver can limit memory by cgroup
// itself (from R615 on). That the function exists says nothing of whether the
// kernel's cgroups or the GPU allow it.
func (l *Library) MemoryLimitsSupported() bool {
	return l.has("nvmlDeviceSetMemoryLimits_v1")
}
