package cdi

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/nvidia-container-toolkit/pkg/nvcdi"
	"tags.cncf.io/container-device-interface/specs-go"

	"github.com/kerf-gpu/kerf/hook"
)

// Roots is one directory under two names: kerfd's, and the host's, which the container runtime uses.
type Roots struct {
	Seen string // as kerfd sees it: "/host", "/run/nvidia/driver"
	Host string // as the runtime does: "/", "/run/nvidia/driver"
}

// FromToolkit asks NVIDIA's toolkit which files and nodes of a driver root every container needs. The driver's version is given: the
// toolkit would load NVML a second time to learn it, and a hung GPU would hang that.
func FromToolkit(roots Roots, version string) (Driver, error) {
	lib, err := nvcdi.New(
		nvcdi.WithMode(nvcdi.ModeNvml),
		nvcdi.WithDriverRoot(roots.Seen),
		nvcdi.WithNvmlLib(knownVersion{version: version}),
		nvcdi.WithLogger(quiet{}),
		nvcdi.WithDisabledHooks(nvcdi.AllHooks), // what they do, kerf-hook does; nothing of NVIDIA's need be installed
		nvcdi.WithFeatureFlags(nvcdi.FeatureDisableNvsandboxUtils, nvcdi.FeatureDisableIPCDiscoverer, nvcdi.FeatureNoAdditionalGIDsForDeviceNodes),
	)
	if err != nil {
		return Driver{}, fmt.Errorf("ask NVIDIA's container toolkit: %w", err)
	}
	edits, err := lib.GetCommonEdits()
	if err != nil {
		return Driver{}, fmt.Errorf("ask NVIDIA's container toolkit for the files of driver %s under %s: %w; is the driver installed whole?", version, roots.Seen, err)
	}
	return Edit(*edits.ContainerEdits, roots, soname)
}

// dropped are programs and libraries that a tenant is not to have: they serve the whole node, and the real names of what the
// shims stand in for.
var dropped = []string{"nvidia-persistenced", "nvidia-cuda-mps-control", "nvidia-cuda-mps-server", "nvidia-imex", "nvidia-imex-ctl"}

// Edit is what a share takes of the toolkit's answer. Nothing but mounts and nodes: its hooks and variables would put the real
// libraries back. Libraries go to hook.LibDir, under the name that a loader asks for, which soname says of a file; "" is none.
func Edit(edits specs.ContainerEdits, roots Roots, soname func(file string) (string, error)) (Driver, error) {
	var d Driver
	for _, m := range edits.Mounts {
		name := path.Base(m.ContainerPath)
		if isStoodIn(name) || slices.Contains(dropped, name) {
			continue
		}
		mount := &specs.Mount{HostPath: roots.host(m.HostPath), ContainerPath: m.ContainerPath, Options: m.Options, Type: m.Type}
		if isLibrary(name) {
			asked, err := soname(m.HostPath)
			if err != nil {
				return Driver{}, fmt.Errorf("read library %s: %w; is the driver installed whole?", m.HostPath, err)
			}
			if asked != "" && isStoodIn(asked) { // another file with the driver's name
				continue
			}
			if asked != "" {
				mount.ContainerPath = path.Join(hook.LibDir, asked)
			}
		}
		if !slices.ContainsFunc(d.Mounts, func(o *specs.Mount) bool { return o.ContainerPath == mount.ContainerPath }) {
			d.Mounts = append(d.Mounts, mount)
		}
	}
	for _, n := range edits.DeviceNodes {
		if isGPU(n.Path) { // the share says which
			continue
		}
		node := *n
		seen := node.HostPath
		if seen == "" {
			seen = node.Path
		}
		node.HostPath, node.Permissions = roots.host(seen), "rw"
		if node.HostPath == node.Path {
			node.HostPath = ""
		}
		d.Nodes = append(d.Nodes, &node)
	}
	return d, nil
}

// host is the host's name of a file.
func (r Roots) host(file string) string {
	below, ok := strings.CutPrefix(file, strings.TrimSuffix(r.Seen, "/")+"/")
	if !ok {
		return file
	}
	return filepath.Join(r.Host, below)
}

// isStoodIn: a name of libcuda or libnvidia-ml. libcudadebugger is neither.
func isStoodIn(name string) bool {
	return strings.HasPrefix(name, "libcuda.so") || strings.HasPrefix(name, "libnvidia-ml.so")
}

func isLibrary(name string) bool {
	return strings.HasPrefix(name, "lib") && strings.Contains(name, ".so")
}

// isGPU: /dev/nvidia0.
func isGPU(node string) bool {
	number, ok := strings.CutPrefix(path.Base(node), "nvidia")
	return ok && number != "" && strings.Trim(number, "0123456789") == ""
}

// Check says which device node of a share is not on the host: a runtime's own words for that are hard to read. Simulated nodes
// are files, which are looked for too.
func Check(t Tenant, roots Roots) error {
	for _, node := range slices.Concat(t.Share.Control, t.Share.GPUs) {
		seen := node
		if below, ok := strings.CutPrefix(node, strings.TrimSuffix(roots.Host, "/")+"/"); ok {
			seen = filepath.Join(roots.Seen, below)
		}
		if _, err := os.Stat(seen); errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("device node %s: not on this node; is the driver loaded? nvidia-modprobe -c=0 -u makes the nodes", node)
		}
	}
	return nil
}

// knownVersion is an NVML that knows one thing.
type knownVersion struct {
	nvml.Interface
	version string
}

func (knownVersion) Init() nvml.Return     { return nvml.SUCCESS }
func (knownVersion) Shutdown() nvml.Return { return nvml.SUCCESS }
func (k knownVersion) SystemGetDriverVersion() (string, nvml.Return) {
	return k.version, nvml.SUCCESS
}

// quiet is a log that nobody reads: what the toolkit does not find is no error, and what is one it returns.
type quiet struct{}

func (quiet) Debugf(string, ...any)   {}
func (quiet) Errorf(string, ...any)   {}
func (quiet) Infof(string, ...any)    {}
func (quiet) Warningf(string, ...any) {}
func (quiet) Tracef(string, ...any)   {}
