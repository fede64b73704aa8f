package doctor

import (
	"fmt"
	"slices"
	"strings"

	"github.com/kerf-gpu/kerf/internal/node"
)

const daemonCheck = "daemon"

// Checks is every check, in the order in which they are shown: what others stand on comes first.
var Checks = []Check{
	{daemonCheck, Quick, []Section{Daemon}, judgeDaemon},
	{"driver.library", Quick, []Section{Files}, judgeLibrary},
	{"driver.module", Quick, []Section{Files}, judgeModule},
	{"driver.nodes", Quick, []Section{Daemon, Devices}, judgeNodes},
	{"driver.limits", Quick, []Section{Daemon}, judgeLimits},
	{"mps.control", Quick, []Section{Daemon, MPS}, judgeMPS},
	{"gpu.count", Quick, []Section{Daemon, Kernel}, judgeCount},
	{"gpu.faults", Quick, []Section{Daemon, State}, judgeFaults},
	{"gpu.health", Quick, []Section{Daemon, Health}, judgeHealth},
	{"gpu.links", Quick, []Section{Daemon, Health}, judgeLinks},
	{"topology.numa", Quick, []Section{Daemon}, judgeNUMA},
	{"monitor.sources", Quick, []Section{Daemon, Health}, judgeSources},
	{"monitor.probes", Quick, []Section{Daemon, Health}, judgeProbes},
	{"kernel.features", Quick, []Section{Kernel}, judgeKernel},
	{"shim.file", Quick, []Section{Daemon, Files}, judgeShim},
	{"shim.limit", Active, []Section{Daemon, SelfTest}, judgeSelfTest},
	{"ledger.memory", Quick, []Section{Daemon, State}, judgeLedger},
	{"kubernetes.ready", Quick, []Section{Daemon, Kubernetes}, judgeReady},
	{"kubernetes.cdi", Quick, []Section{Daemon, Kubernetes}, judgeCDI},
	{"kubernetes.slices", Quick, []Section{Daemon, Kubernetes}, judgeSlices},
	{"storage.pools", Quick, []Section{Daemon, Storage}, judgePools},
}

func mark(simulated bool) string {
	if simulated {
		return " (simulated)"
	}
	return ""
}

func judgeDaemon(f *Facts) Finding {
	if why, failed := f.Failed[Daemon]; failed {
		return found(Crit, "start kerfd", "%s", why)
	}
	if f.Version != f.Own {
		return found(Warn, "install both from one release", "kerfd is %s, kerf is %s", f.Version, f.Own)
	}
	return pass("kerfd %s at %s serves %s%s", f.Version, f.Socket, f.Root, mark(f.Simulated))
}

func judgeLibrary(f *Facts) Finding {
	switch {
	case f.MissingLibrary != "":
		return found(Crit, "install the NVIDIA driver's libraries, or set root in kerfd's configuration", "%s", f.MissingLibrary)
	case f.Driver.Version == "":
		return found(Info, "", "libcuda.so.1 and libnvidia-ml.so.1 are there; kerfd would tell their version")
	}
	return pass("driver %s, CUDA %s%s", f.Driver.Version, f.Driver.CUDAVersion, mark(f.Simulated))
}

// judgeModule compares user space with the kernel: after an update without a reboot they differ, and cuInit fails with 803.
func judgeModule(f *Facts) Finding {
	library := f.Driver.Version
	switch {
	case f.NoModule != "":
		return found(Crit, "modprobe nvidia; then look at dmesg", "the kernel module is not loaded (%s)", f.NoModule)
	case f.ModuleError != "":
		return found(Unknown, "", "%s", f.ModuleError)
	case library == "":
		return found(Info, "", "kernel module %s; kerfd would tell the library's version", f.Module)
	case f.Module != library:
		return found(Crit, "reboot, or reload the module, so that both are of one version", "kernel module %s, library %s", f.Module, library)
	}
	return pass("kernel module and library are both %s", f.Module)
}

func judgeNodes(f *Facts) Finding {
	switch {
	case len(f.GPUs) == 0:
		return found(Info, "", "no GPU on this node")
	case f.NoNode != "" && f.Absent:
		return found(Crit, "run nvidia-modprobe -c 0 -u, or nvidia-smi once as root", "%s", f.NoNode)
	case f.NoNode != "" && f.Denied:
		return found(Warn, "check the mode of the device node", "%s", f.NoNode)
	case f.NoNode != "":
		return found(Crit, "look at dmesg", "%s", f.NoNode)
	}
	return pass("%d device nodes open", f.Nodes)
}

func judgeLimits(f *Facts) Finding {
	if f.MemoryLimits {
		return found(Info, "", "the driver can limit memory by cgroup itself (R615 and later): a second wall behind the shim")
	}
	return found(Info, "", "the driver (%s) has no limits by cgroup (R615 and later do): the shim alone holds them", f.Driver.Version)
}

// judgeMPS: to be without MPS is no fault, the other tiers do not need it.
func judgeMPS(f *Facts) Finding {
	switch {
	case len(f.GPUs) == 0:
		return found(Skip, "", "no GPU on this node")
	case f.NoMPS != "":
		return found(Info, "", "no shares of tier mps here: %s", f.NoMPS)
	case f.MPSTrouble != "":
		return found(Warn, "kerfd tries again; its log, and the daemon's in kerfd's run directory under mps/, say more", "%s", f.MPSTrouble)
	}
	return pass("%s serves tier mps, on %d GPUs now%s", f.MPSProgram, f.MPSDaemons, mark(f.Simulated))
}

// judgeCount: a card that fell off before kerfd started is in no list of NVML's any more; the PCI bus may still have it.
func judgeCount(f *Facts) Finding {
	switch {
	case f.PCIGPUs < 0:
		return found(Skip, "", "no PCI bus to compare with")
	case len(f.GPUs) < f.PCIGPUs:
		return found(Crit, "look at dmesg for NVRM lines of the missing one; a reboot brings back what has fallen off the bus", "the PCI bus has %d GPUs, NVML shows %d", f.PCIGPUs, len(f.GPUs))
	case len(f.OrphanXids) > 0:
		return found(Warn, "look at dmesg", "Xids of a card that NVML does not show")
	}
	return pass("NVML shows all of %d GPUs%s", len(f.GPUs), mark(f.Simulated))
}

func judgeFaults(f *Facts) Finding {
	var sick []string
	for _, c := range f.Cards {
		if c.Fault != "" {
			sick = append(sick, fmt.Sprintf("GPU %d: %s", c.Index, c.Fault))
		}
	}
	if len(sick) > 0 {
		return found(Crit, "nothing is granted there; drain a sick GPU and reset it", "%s", strings.Join(sick, ", "))
	}
	return pass("%d GPUs, none says that something is wrong", len(f.Cards))
}

func judgeHealth(f *Facts) Finding {
	if f.MonitorOff {
		return found(Skip, "", "monitor.enabled is false in kerfd's configuration")
	}
	worst := pass("%d devices, nothing is wrong with any%s", len(f.Verdicts), mark(f.Simulated))
	var said, fixes []string
	for _, v := range f.Verdicts {
		if v.Status == Pass {
			continue
		}
		said = append(said, v.Name+": "+v.Text)
		fixes = append(fixes, v.Name+" clears with: "+v.Clears)
		worst.Status = Worse(worst.Status, v.Status)
	}
	if len(said) > 0 {
		worst.Found, worst.Fix = strings.Join(said, "; "), strings.Join(fixes, "; ")
	}
	return worst
}

func judgeLinks(f *Facts) Finding {
	if f.MonitorOff {
		return found(Skip, "", "monitor.enabled is false in kerfd's configuration")
	}
	var poor []string
	for _, l := range f.Links {
		if l.Link.Width < l.Link.MaxWidth {
			poor = append(poor, fmt.Sprintf("GPU %d has PCIe x%d of x%d", l.Index, l.Link.Width, l.Link.MaxWidth))
		}
		if l.Up > 0 && l.Up < l.NVLinks {
			poor = append(poor, fmt.Sprintf("GPU %d has %d of %d NVLinks up", l.Index, l.Up, l.NVLinks))
		}
	}
	if len(poor) > 0 {
		return found(Warn, "seat the card anew, or look at the slot; for NVLink see the fabric manager", "%s", strings.Join(poor, ", "))
	}
	return pass("PCIe width and NVLinks of %d GPUs are what the cards can", len(f.Links))
}

func judgeNUMA(f *Facts) Finding {
	var unknown []string
	for _, g := range f.GPUs {
		if g.NUMA == node.UnknownNUMA {
			unknown = append(unknown, fmt.Sprint(g.Index))
		}
	}
	switch {
	case len(f.GPUs) == 0:
		return found(Skip, "", "no GPU on this node")
	case len(unknown) > 0 && f.NUMA > 1:
		return found(Warn, "the BIOS does not say; affinity of GPUs, NICs and CPUs is a guess there", "the machine has %d NUMA nodes, and GPUs %s are at none", f.NUMA, strings.Join(unknown, ", "))
	case len(unknown) > 0:
		return found(Info, "", "one NUMA node, or the kernel does not say")
	}
	return pass("every GPU's NUMA node is known (of %d)", f.NUMA)
}

func judgeSources(f *Facts) Finding {
	if f.MonitorOff {
		return found(Skip, "", "monitor.enabled is false in kerfd's configuration")
	}
	var down []string
	lost := uint64(0)
	for _, s := range f.Sources {
		lost += s.Lost
		if !s.Up {
			down = append(down, s.Name+": "+s.Why)
		}
	}
	switch {
	case len(f.SetAside) > 0:
		return found(Warn, "look at the file, then remove it", "what was known of earlier faults is lost: %s", strings.Join(f.SetAside, ", "))
	case len(down) > 0:
		return found(Warn, "faults that only these tell of are not seen; the reason says what to do", "%s", strings.Join(down, "; "))
	case lost > 0:
		return found(Info, "", "%d sources are up; %d records of the kernel log were overwritten unread, and the GPUs were read again after each loss", len(f.Sources), lost)
	}
	return pass("%d sources are up, nothing was lost", len(f.Sources))
}

// judgeProbes: nothing needs the probes, so that one that is off is no fault.
func judgeProbes(f *Facts) (finding Finding) {
	if f.MonitorOff {
		return found(Skip, "", "monitor.enabled is false in kerfd's configuration")
	}
	var off, lossy []string
	cost := 0.0
	for _, p := range f.Probes {
		cost += p.Cost
		if !p.On {
			off = append(off, p.Name+": "+p.Reason)
		}
		if p.Lost > 0 {
			lossy = append(lossy, fmt.Sprintf("%s lost %d of %d", p.Name, p.Lost, p.Hits))
		}
	}
	defer func() { finding.Probes = f.Probes }()
	on := fmt.Sprintf("%d of %d probes are on, at %.3g %% of a CPU", len(f.Probes)-len(off), len(f.Probes), cost*100)
	switch {
	case len(lossy) > 0:
		return found(Warn, "more happened at once than could be told; the kernel log has what it was", "%s; %s", on, strings.Join(lossy, "; "))
	case len(off) > 0:
		return found(Info, "", "%s; off: %s", on, strings.Join(off, "; "))
	}
	return pass("%s", on)
}

func judgeKernel(f *Facts) Finding {
	if len(f.Lacking) > 0 {
		return found(Info, "", "%s", strings.Join(f.Lacking, "; "))
	}
	return pass("the kernel has all that Kerf can use")
}

func judgeShim(f *Facts) Finding {
	if f.BadShim != "" {
		return found(Crit, "install Kerf's libraries, or set libDir in kerfd's configuration", "%s", f.BadShim)
	}
	return pass("the shims in %s are whole", f.LibDir)
}

func judgeSelfTest(f *Facts) Finding {
	switch {
	case f.TestSkipped != "":
		return found(Skip, "", "%s", f.TestSkipped)
	case f.TestFailed != "":
		return found(Crit, "run it yourself: kerf run --memory 2Gi -- hog --class linear", "the self-test failed: %s", f.TestFailed)
	}
	return pass("a slice of %s refuses the chunk beyond it%s", f.TestSlice, mark(f.Simulated))
}

// slack is what NVML may see more than the books have, between two looks at a program that is just allocating.
const slack = 64 * node.MiB

// judgeLedger compares what shares hold with what NVML sees.
func judgeLedger(f *Facts) Finding {
	complaints := slices.Clone(f.Bad)
	held := make(map[node.UUID]node.Bytes)
	for _, b := range f.Books {
		held[b.GPU] += b.Held
	}
	var outside node.Bytes
	for _, c := range f.Cards {
		if c.Error != "" {
			return found(Unknown, "", "GPU %d: %s", c.Index, c.Error)
		}
		outside += c.Outside
		if inShares := c.Used - c.Outside; inShares > held[c.UUID]+slack {
			complaints = append(complaints, fmt.Sprintf("GPU %d: NVML sees %s in shares, their books have %s", c.Index, inShares, held[c.UUID]))
		}
	}
	switch {
	case len(complaints) > 0:
		return found(Crit, "end the share's programs; if it comes again, report it with kerfd's log", "%s", strings.Join(complaints, "; "))
	case outside > 0:
		return found(Warn, "programs outside kerf run take memory that shares were promised; kerf top shows which GPU", "%s are in use outside of shares", outside)
	}
	return pass("%d GPUs' shares, and NVML sees what they hold", len(f.Cards))
}

func judgeReady(f *Facts) Finding {
	switch {
	case f.OffCluster:
		return found(Skip, "", "kerfd serves no pods on this node")
	case f.NotReady != "":
		return found(Crit, "see kerfd's log (kubectl -n kerf-system logs ds/kerfd), and that kubernetes.kubeletDir is kubelet's root directory", "pods cannot get slices: %s", f.NotReady)
	}
	return pass("kubelet of node %s knows kerfd, and its GPUs are published", f.NodeName)
}

// judgeCDI looks for what the container runtime would miss.
func judgeCDI(f *Facts) Finding {
	switch {
	case f.OffCluster:
		return found(Skip, "", "kerfd serves no pods on this node")
	case f.CDIError != "":
		return found(Crit, "make the directory, or set kubernetes.cdiDir to the one that the container runtime reads", "CDI directory: %s", f.CDIError)
	case len(f.MissingSpecs) > 0:
		return found(Crit, "restart kerfd, which writes them anew: containers that begin now would fail", "%s has no spec for %s", f.CDIDir, strings.Join(f.MissingSpecs, ", "))
	}
	return pass("%s has a spec for each of %d shares of pods", f.CDIDir, f.Specs)
}

// judgeSlices compares what the scheduler was told with what is there.
func judgeSlices(f *Facts) Finding {
	without := func(a, b []string) []string {
		return slices.DeleteFunc(slices.Clone(a), func(name string) bool { return slices.Contains(b, name) })
	}
	unpublished, stale := without(f.Expected, f.Published), without(f.Published, f.Expected)
	switch {
	case f.OffCluster:
		return found(Skip, "", "kerfd serves no pods on this node")
	case len(unpublished) > 0:
		return found(Warn, "kubectl get resourceslices; kerfd's log says why they are not there", "not published: %s", strings.Join(unpublished, ", "))
	case len(stale) > 0:
		return found(Warn, "kubectl get resourceslices; kerfd's log says why they are still there", "published, and not on this node: %s", strings.Join(stale, ", "))
	}
	return pass("%d devices are published, as this node has them%s", len(f.Published), mark(f.Simulated))
}
