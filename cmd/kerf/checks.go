package main

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/kerf-gpu/kerf/cmd/internal/control"
	"github.com/kerf-gpu/kerf/cmd/internal/version"
	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/internal/nvml"
)

// patient is what the checks look at.
type patient struct {
	socket string
	node   control.Node
	err    error // why kerfd did not tell of its node; the checks of the machine itself go on without it
}

func newPatient(ctx context.Context, o *options) *patient {
	p := &patient{socket: o.socket}
	p.node, p.err = o.client().Node(ctx)
	if p.err != nil {
		p.node.Root = "/"
	}
	return p
}

// checks are all of them, in the order in which they are shown: what others stand on comes first.
var checks = []struct {
	id   string
	look func(context.Context, *patient) finding
}{
	{"daemon", checkDaemon},
	{"driver.library", checkLibrary},
	{"driver.module", checkModule},
	{"driver.nodes", checkNodes},
	{"driver.limits", checkLimits},
	{"mps.control", checkMPS},
	{"gpu.faults", checkFaults},
	{"gpu.health", checkHealth},
	{"monitor.sources", checkSources},
	{"shim.file", checkShimFile},
	{"shim.limit", checkShimLimit},
	{"ledger.memory", checkLedger},
	{"kubernetes.ready", checkKubernetes},
	{"kubernetes.cdi", checkCDI},
	{"kubernetes.slices", checkSlices},
}

func pass(format string, a ...any) finding {
	return finding{Status: statusPass, Found: fmt.Sprintf(format, a...)}
}

func found(s status, fix, format string, a ...any) finding {
	return finding{Status: s, Found: fmt.Sprintf(format, a...), Fix: fix}
}

// needsDaemon is the answer of a check that cannot look without kerfd.
func (p *patient) needsDaemon() (finding, bool) {
	return found(statusSkip, "", "needs kerfd"), p.err != nil
}

func checkDaemon(_ context.Context, p *patient) finding {
	switch {
	case p.err != nil:
		return found(statusCrit, "start kerfd", "%v", p.err)
	case p.node.Version != version.Version:
		return found(statusWarn, "install both from one release", "kerfd is %s, kerf is %s", p.node.Version, version.Version)
	}
	return pass("kerfd %s at %s serves %s%s", p.node.Version, p.socket, p.node.Root, simulatedMark(p.node.Simulated))
}

func checkLibrary(_ context.Context, p *patient) finding {
	for _, name := range []string{"libcuda.so.1", "libnvidia-ml.so.1"} {
		if _, err := nvml.FindLibrary(p.node.Root, name); err != nil {
			return found(statusCrit, "install the NVIDIA driver's libraries, or set root in kerfd's configuration", "%v", err)
		}
	}
	if p.node.Driver.Version == "" {
		return found(statusInfo, "", "libcuda.so.1 and libnvidia-ml.so.1 are there; kerfd would tell their version")
	}
	return pass("driver %s, CUDA %s%s", p.node.Driver.Version, p.node.Driver.CUDAVersion, simulatedMark(p.node.Simulated))
}

// checkModule compares user space with the kernel: after an update without a reboot they differ, and cuInit fails with 803.
func checkModule(_ context.Context, p *patient) finding {
	module, err := nvml.KernelModuleVersion(p.node.Root)
	library := p.node.Driver.Version
	switch {
	case errors.Is(err, nvml.ErrNoDriver):
		return found(statusCrit, "modprobe nvidia; then look at dmesg", "the kernel module is not loaded (%s has none)", filepath.Join(p.node.Root, "proc/driver/nvidia/version"))
	case err != nil:
		return found(statusUnknown, "", "%v", err)
	case library == "":
		return found(statusInfo, "", "kernel module %s; kerfd would tell the library's version", module)
	case module != library:
		return found(statusCrit, "reboot, or reload the module, so that both are of one version", "kernel module %s, library %s", module, library)
	}
	return pass("kernel module and library are both %s", module)
}

func checkNodes(_ context.Context, p *patient) finding {
	if f, missing := p.needsDaemon(); missing {
		return f
	}
	if len(p.node.GPUs) == 0 {
		return found(statusInfo, "", "no GPU on this node")
	}
	nodes := []string{"/dev/nvidiactl"}
	for _, g := range p.node.GPUs {
		nodes = append(nodes, g.DeviceNode)
	}
	for _, name := range nodes {
		f, err := os.OpenFile(filepath.Join(p.node.Root, name), os.O_RDWR, 0)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return found(statusCrit, "run nvidia-modprobe -c 0 -u, or nvidia-smi once as root", "%s is missing", name)
		case errors.Is(err, fs.ErrPermission):
			return found(statusWarn, "check the mode of the device node", "%s cannot be opened by user %d", name, os.Getuid())
		case err != nil:
			return found(statusCrit, "look at dmesg", "%s cannot be opened: %v", name, err)
		}
		_ = f.Close()
	}
	return pass("%d device nodes open", len(nodes))
}

func checkLimits(_ context.Context, p *patient) finding {
	if f, missing := p.needsDaemon(); missing {
		return f
	}
	if p.node.MemoryLimits {
		return found(statusInfo, "", "the driver can limit memory by cgroup itself (R615 and later): a second wall behind the shim")
	}
	return found(statusInfo, "", "the driver (%s) has no limits by cgroup (R615 and later do): the shim alone holds them", p.node.Driver.Version)
}

func checkFaults(ctx context.Context, p *patient) finding {
	if f, missing := p.needsDaemon(); missing {
		return f
	}
	state, err := control.Dial(p.socket).State(ctx)
	if err != nil {
		return found(statusUnknown, "", "%v", err)
	}
	var sick []string
	for _, g := range state.GPUs {
		if g.Fault != "" {
			sick = append(sick, fmt.Sprintf("GPU %d: %s", g.Index, g.Fault))
		}
	}
	if len(sick) > 0 {
		return found(statusCrit, "nothing is granted there; drain a sick GPU and reset it", "%s", strings.Join(sick, ", "))
	}
	return pass("%d GPUs, none says that something is wrong", len(state.GPUs))
}

// checkShimFile looks at what makes the substitution work: the names in the shim's ELF header.
func checkShimFile(_ context.Context, p *patient) finding {
	dir := p.node.LibDir
	if dir == "" {
		return found(statusSkip, "", "needs kerfd, which knows where the shim is")
	}
	for name, needed := range map[string]string{"libcuda.so.1": "libkerfreal-cuda.so.1", "libnvidia-ml.so.1": "libkerfreal-nvidia-ml.so.1"} {
		path := filepath.Join(dir, name)
		f, err := elf.Open(path)
		if err != nil {
			return found(statusCrit, "install Kerf's libraries, or set libDir in kerfd's configuration", "%s: %v", path, err)
		}
		sonames, err1 := f.DynString(elf.DT_SONAME)
		libraries, err2 := f.ImportedLibraries()
		_ = f.Close()
		if err := errors.Join(err1, err2); err != nil || !slices.Contains(sonames, name) || !slices.Contains(libraries, needed) {
			return found(statusCrit, "install Kerf's libraries again", "%s is not Kerf's shim (soname %v, needs %v)", path, sonames, libraries)
		}
	}
	return pass("the shims in %s are whole", dir)
}

// selfTestMemory is the slice of the self-test: room for a context on every card.
const selfTestMemory = 2 * node.GiB

// checkShimLimit runs the hog in a small slice: it asks for one chunk too many and must be refused there.
func checkShimLimit(ctx context.Context, p *patient) finding {
	if f, missing := p.needsDaemon(); missing {
		return f
	}
	if len(p.node.GPUs) == 0 {
		return found(statusSkip, "", "no GPU on this node")
	}
	self, err := os.Executable()
	if err != nil {
		return found(statusUnknown, "", "%v", err)
	}
	hog := filepath.Join(p.node.LibDir, "..", "..", "libexec", "kerf", "hog")
	if _, err := os.Stat(hog); err != nil {
		return found(statusSkip, "", "%s is not installed", hog)
	}
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, self, "--socket", p.socket, "run", "--memory", selfTestMemory.Exact(), "--", hog, "--limit", selfTestMemory.Exact(), "--class", "linear").CombinedOutput()
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	last := lines[len(lines)-1]
	var exit *exec.ExitError
	switch {
	case err == nil:
		return pass("a slice of %s refuses the chunk beyond it%s", selfTestMemory, simulatedMark(p.node.Simulated))
	case errors.As(err, &exit) && exit.ExitCode() == exitRun && strings.Contains(last, "ask for less"):
		return found(statusSkip, "", "no %s are free for the test", selfTestMemory)
	}
	return found(statusCrit, "run it yourself: kerf run --memory 2Gi -- "+hog+" --class linear", "the self-test failed: %s", last)
}

// checkLedger compares what shares hold with what NVML sees.
func checkLedger(ctx context.Context, p *patient) finding {
	if f, missing := p.needsDaemon(); missing {
		return f
	}
	state, err := control.Dial(p.socket).State(ctx)
	if err != nil {
		return found(statusUnknown, "", "%v", err)
	}
	var complaints []string
	held := make(map[node.UUID]node.Bytes)
	for _, s := range state.Shares {
		if s.Tampered != "" {
			complaints = append(complaints, fmt.Sprintf("share %s: tampered with (%s)", s.ID, s.Tampered))
		}
		for _, d := range s.Devices {
			held[d.UUID] += d.Used()
			if d.Used() > d.Limit {
				complaints = append(complaints, fmt.Sprintf("share %s holds %s, limit %s", s.ID, d.Used(), d.Limit))
			}
		}
	}
	var outside node.Bytes
	for _, g := range state.GPUs {
		if g.Error != "" {
			return found(statusUnknown, "", "GPU %d: %s", g.Index, g.Error)
		}
		outside += g.Outside
		if inShares := g.Used - g.Outside; inShares > held[g.UUID]+64*node.MiB {
			complaints = append(complaints, fmt.Sprintf("GPU %d: NVML sees %s in shares, their books have %s", g.Index, inShares, held[g.UUID]))
		}
	}
	switch {
	case len(complaints) > 0:
		return found(statusCrit, "end the share's programs; if it comes again, report it with kerfd's log", "%s", strings.Join(complaints, "; "))
	case outside > 0:
		return found(statusWarn, "programs outside kerf run take memory that shares were promised; kerf top shows which GPU", "%s are in use outside of shares", outside)
	}
	return pass("%d shares, and NVML sees what they hold", len(state.Shares))
}
