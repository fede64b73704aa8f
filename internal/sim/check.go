package sim

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/kerf-gpu/kerf/internal/node"
)

var (
	profileNameRE = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,30}$`)
	versionRE     = regexp.MustCompile(`^[0-9]+\.[0-9]+(\.[0-9]+)?$`)
	pciIDRE       = regexp.MustCompile(`^[0-9a-f]{4}:[0-9a-f]{4}$`)
	rootRE        = regexp.MustCompile(`^pci[0-9a-f]{4,8}:[0-9a-f]{2}$`)
	deviceNameRE  = regexp.MustCompile(`^[a-zA-Z0-9_.-]{1,15}$`)
)

// architectures that a model may name, by NVML's number.
var architectures = map[string]uint32{
	"volta": 5, "turing": 6, "ampere": 7, "ada": 8, "hopper": 9, "blackwell": 10,
}

// brands that a model may name, by NVML's number.
var brands = map[string]uint32{"tesla": 2, "geforce": 5, "rtx": 12, "nvidia": 14}

// check refuses a profile that is not a possible machine. Each error names the
// value, the reason and the fix.
func (p *Profile) check() error {
	checks := []func() error{
		p.checkHead, p.checkModels, p.checkNICModels, p.checkNUMA, p.checkTree,
		p.checkDevices, p.checkNVLink, p.checkMIG, p.checkFaults,
	}
	for _, c := range checks {
		if err := c(); err != nil {
			return err
		}
	}
	return nil
}

func (p *Profile) checkHead() error {
	if !profileNameRE.MatchString(p.Name) {
		return fmt.Errorf("name %q: not a short name; use small letters, digits and -", p.Name)
	}
	if p.Driver == (DriverSpec{}) {
		if len(p.of("gpu")) > 0 {
			return fmt.Errorf("driver: missing, but the profile has GPUs; add driver: {version: 580.95.05, cuda: \"13.0\"}")
		}
		return nil
	}
	if !versionRE.MatchString(p.Driver.Version) {
		return fmt.Errorf("driver version %q: not a driver version; write it as 580.95.05", p.Driver.Version)
	}
	if p.Driver.cudaVersion() < 12000 {
		return fmt.Errorf("driver cuda %q: not a CUDA version from 12.0 on; write it as \"13.0\", with quotes", p.Driver.CUDA)
	}
	return nil
}

func (p *Profile) checkModels() error {
	for _, key := range slices.Sorted(maps.Keys(p.Models)) {
		if err := p.Models[key].check(); err != nil {
			return fmt.Errorf("model %q: %w", key, err)
		}
	}
	return nil
}

func (m Model) check() error {
	var major, minor int
	n, _ := fmt.Sscanf(m.Compute, "%d.%d", &major, &minor)
	_, arch := architectures[m.Architecture]
	_, brand := brands[m.Brand]
	switch {
	case m.Name == "" || len(m.Name) > maxProductName:
		return fmt.Errorf("name %q: empty or longer than %d; write the product's name", m.Name, maxProductName)
	case !arch:
		return fmt.Errorf("architecture %q: unknown; use one of %s", m.Architecture, known(architectures))
	case !brand:
		return fmt.Errorf("brand %q: unknown; use one of %s", m.Brand, known(brands))
	case n != 2:
		return fmt.Errorf("compute_capability %q: not major.minor; write it as \"9.0\", with quotes", m.Compute)
	case !pciIDRE.MatchString(m.PCIID):
		return fmt.Errorf("pci_id %q: not vendor:device; write it as 10de:2335", m.PCIID)
	case m.Memory == 0 || m.Memory%(2*node.MiB) != 0 && m.Memory%node.MiB != 0:
		return fmt.Errorf("memory %s: zero or no whole number of Mi; write it as 143771Mi", m.Memory.Exact())
	case m.Reserved+m.ContextBytes >= m.Memory:
		return fmt.Errorf("reserved %s and context_bytes %s: they fill the memory of %s; lower them", m.Reserved, m.ContextBytes, m.Memory)
	case m.SMs <= 0:
		return fmt.Errorf("sms %d: a GPU has at least one; correct it", m.SMs)
	case m.PCIe.bad():
		return fmt.Errorf("pcie gen %d width %d: no such link; use gen 1 to 6 and width 1, 2, 4, 8 or 16", m.PCIe.Gen, m.PCIe.Width)
	case m.Timeslice < 0 || m.Launch < 0 || m.Bandwidth.negative():
		return fmt.Errorf("timeslice, launch or bandwidth: negative; use positive figures")
	}
	return m.MIG.check()
}

func known(names map[string]uint32) string {
	return strings.Join(slices.Sorted(maps.Keys(names)), ", ")
}

func (l LinkSpec) bad() bool {
	return l.Gen < 1 || l.Gen > 6 || !slices.Contains([]int{1, 2, 4, 8, 16}, l.Width)
}

func (b Bandwidth) negative() bool { return b.H2D < 0 || b.D2H < 0 || b.D2D < 0 || b.Peer < 0 }

func (m MIGModel) check() error {
	if len(m.Profiles) > maxMIGProfiles {
		return fmt.Errorf("mig: %d profiles; the simulator holds %d, remove some", len(m.Profiles), maxMIGProfiles)
	}
	slots := map[int]string{}
	for _, q := range m.Profiles {
		if other, taken := slots[q.Slot]; taken {
			return fmt.Errorf("mig profile %q: slot %d is also that of %q; give each its own", q.Name, q.Slot, other)
		}
		slots[q.Slot] = q.Name
		if q.Name == "" || len(q.Placements) == 0 || len(q.Placements) > maxMIGPlacements || q.Size < 1 || q.Max < 1 {
			return fmt.Errorf("mig profile %q: needs a name, size, max, and 1 to %d placements", q.Name, maxMIGPlacements)
		}
		if slices.Min(q.Placements) < 0 || slices.Max(q.Placements)+q.Size > maxMIGPlacements {
			return fmt.Errorf("mig profile %q: placements %v of size %d: outside the %d memory slices; correct them", q.Name, q.Placements, q.Size, maxMIGPlacements)
		}
	}
	return nil
}

func (p *Profile) checkNICModels() error {
	for _, key := range slices.Sorted(maps.Keys(p.NICs)) {
		m := p.NICs[key]
		switch {
		case !pciIDRE.MatchString(m.PCIID):
			return fmt.Errorf("nic %q: pci_id %q: not vendor:device; write it as 15b3:1021", key, m.PCIID)
		case m.Link != "ethernet" && m.Link != "infiniband":
			return fmt.Errorf("nic %q: link %q: use ethernet or infiniband", key, m.Link)
		case m.VFs < 0 || m.VFs > m.MaxVFs || m.MaxVFs > 64:
			return fmt.Errorf("nic %q: vfs %d of max_vfs %d: use 0 to max_vfs, and max_vfs up to 64", key, m.VFs, m.MaxVFs)
		case m.PCIe.bad():
			return fmt.Errorf("nic %q: pcie gen %d width %d: no such link; use gen 1 to 6 and width 1 to 16", key, m.PCIe.Gen, m.PCIe.Width)
		}
	}
	return nil
}

func (p *Profile) checkNUMA() error {
	if len(p.NUMA) == 0 {
		return fmt.Errorf("numa: missing; a machine has at least {id: 0, cpus: 0-15, memory: 64Gi}")
	}
	for i, n := range p.NUMA {
		if n.ID != i {
			return fmt.Errorf("numa id %d: nodes are numbered from 0 in order; this one is %d", n.ID, i)
		}
		if n.CPUs == "" || n.Memory == 0 {
			return fmt.Errorf("numa node %d: without cpus or memory; add both", i)
		}
	}
	for _, r := range p.PCIe {
		if r.NUMA < node.UnknownNUMA || r.NUMA >= len(p.NUMA) {
			return fmt.Errorf("root %s: numa %d is not among the %d nodes; use 0 to %d, or -1 for unknown", r.Root, r.NUMA, len(p.NUMA), len(p.NUMA)-1)
		}
	}
	return nil
}

// checkTree proves that the PCI addresses can exist on one machine: each once,
// each bus below one bridge only, and in the domain of its root.
func (p *Profile) checkTree() error {
	roots := map[string]bool{}
	for _, r := range p.PCIe {
		if !rootRE.MatchString(r.Root) {
			return fmt.Errorf("root %q: not a root complex; write it as pci0000:15", r.Root)
		}
		if roots[r.Root] {
			return fmt.Errorf("root %s: twice in the profile; give each root complex its own bus", r.Root)
		}
		roots[r.Root] = true
	}
	seen := map[node.PCIAddress]bool{}
	busParent := map[string]string{}
	for _, s := range p.slots() {
		if s.At.IsZero() {
			return fmt.Errorf("a %s below %s has no PCI address; add at: \"0000:b3:00.0\"", s.Is, s.parent())
		}
		if seen[s.At] {
			return fmt.Errorf("PCI address %s: two functions have it; give each its own", s.At)
		}
		seen[s.At] = true
		bus := s.At.String()[:len(s.At.String())-len(":00.0")]
		if other, taken := busParent[bus]; taken && other != s.parent() {
			return fmt.Errorf("PCI address %s: bus %s is below %s already, and cannot be below %s too; change the bus", s.At, bus, other, s.parent())
		}
		busParent[bus] = s.parent()
		if !strings.HasPrefix(s.At.String(), strings.SplitN(strings.TrimPrefix(s.root.Root, "pci"), ":", 2)[0]+":") {
			return fmt.Errorf("PCI address %s: not in the domain of its root %s; change one of them", s.At, s.root.Root)
		}
		if len(s.path) == 1 && "pci"+bus != s.root.Root {
			return fmt.Errorf("PCI address %s: right below %s it must be on the root's own bus; change one of them", s.At, s.root.Root)
		}
	}
	return nil
}

// parent is the bridge or root that the slot hangs on.
func (s placed) parent() string {
	if len(s.path) < 2 {
		return s.root.Root
	}
	return s.path[len(s.path)-2].String()
}

func (p *Profile) checkDevices() error {
	names := map[string]bool{}
	for _, s := range p.slots() {
		if err := p.checkDevice(s); err != nil {
			return fmt.Errorf("%s at %s: %w", s.Is, s.At, err)
		}
		for _, name := range []string{s.NetDev, s.RDMA} {
			if name == "" {
				continue
			}
			if !deviceNameRE.MatchString(name) || names[name] {
				return fmt.Errorf("%s at %s: device name %q: used twice or not a device name; choose another", s.Is, s.At, name)
			}
			names[name] = true
		}
	}
	if n := len(p.of("gpu")); n > maxGPUs {
		return fmt.Errorf("%d GPUs: the simulator holds %d; remove some", n, maxGPUs)
	}
	return nil
}

func (p *Profile) checkDevice(s placed) error {
	if s.Is != "bridge" && len(s.Below) > 0 {
		return fmt.Errorf("it has functions below it; only a bridge may")
	}
	switch s.Is {
	case "bridge", "nvswitch":
		return nil
	case "gpu":
		m, ok := p.Models[s.Model]
		if !ok {
			return fmt.Errorf("model %q is not among models; add it there", s.Model)
		}
		if s.Width != 0 && (LinkSpec{m.PCIe.Gen, s.Width}).bad() || s.Width > m.PCIe.Width {
			return fmt.Errorf("width %d: use 1, 2, 4, 8 or 16, up to the model's %d", s.Width, m.PCIe.Width)
		}
		return nil
	case "nic":
		m, ok := p.NICs[s.Model]
		if !ok {
			return fmt.Errorf("model %q is not among nics; add it there", s.Model)
		}
		if last := vfAddress(node.PCIAddress{}, 0, 0); int(s.At.Device)+int(last.Device)+(int(s.At.Function)+1)*m.MaxVFs/8 > 31 {
			return fmt.Errorf("max_vfs %d: the VFs of function %d do not fit on its bus; lower it", m.MaxVFs, s.At.Function)
		}
		if s.NetDev == "" {
			return fmt.Errorf("it has no netdev; add netdev: eth0")
		}
		return nil
	case "nvme":
		if s.Size == 0 {
			return fmt.Errorf("it has no size; add size: 960G")
		}
		return nil
	}
	return fmt.Errorf("unknown kind %q; use bridge, gpu, nic, nvme or nvswitch", s.Is)
}

func (p *Profile) checkNVLink() error {
	gpus := len(p.of("gpu"))
	joined := map[int]bool{}
	for _, l := range p.NVLink {
		switch {
		case l.Links < 1 || l.Links > maxNVLinks:
			return fmt.Errorf("nvlink of GPUs %v: %d links; use 1 to %d", l.GPUs, l.Links, maxNVLinks)
		case l.Through == "bridge" && len(l.GPUs) != 2:
			return fmt.Errorf("nvlink of GPUs %v: a bridge joins two GPUs; name two, or use through: switch", l.GPUs)
		case l.Through == "switch" && len(p.of("nvswitch")) == 0:
			return fmt.Errorf("nvlink of GPUs %v: through switch, but pcie has no nvswitch; add one, or use through: bridge", l.GPUs)
		case l.Through != "bridge" && l.Through != "switch":
			return fmt.Errorf("nvlink of GPUs %v: through %q is unknown; use switch or bridge", l.GPUs, l.Through)
		}
		for _, g := range l.GPUs {
			if g < 0 || g >= gpus || joined[g] {
				return fmt.Errorf("nvlink of GPUs %v: GPU %d does not exist or is in two groups; there are %d GPUs", l.GPUs, g, gpus)
			}
			joined[g] = true
		}
	}
	return nil
}

func (p *Profile) checkMIG() error {
	gpus := p.of("gpu")
	for _, m := range p.MIG {
		if m.GPU < 0 || m.GPU >= len(gpus) {
			return fmt.Errorf("mig: GPU %d does not exist; there are %d", m.GPU, len(gpus))
		}
		model := p.Models[gpus[m.GPU].Model]
		if !model.MIG.Capable {
			return fmt.Errorf("mig: GPU %d is a %s, which has no MIG; remove it", m.GPU, model.Name)
		}
		if err := model.MIG.checkInstances(m.Instances); err != nil {
			return fmt.Errorf("mig of GPU %d: %w", m.GPU, err)
		}
	}
	return nil
}

func (m MIGModel) checkInstances(instances []MIGInstanceSpec) error {
	if len(instances) > maxMIGInstances {
		return fmt.Errorf("%d instances; a GPU holds %d", len(instances), maxMIGInstances)
	}
	var used [maxMIGPlacements]bool
	for _, in := range instances {
		q, ok := m.profile(in.Profile)
		if !ok {
			return fmt.Errorf("profile %q: the model has none by this name; correct it", in.Profile)
		}
		if !slices.Contains(q.Placements, in.Start) {
			return fmt.Errorf("profile %q cannot start at %d; use one of %v", in.Profile, in.Start, q.Placements)
		}
		for i := in.Start; i < in.Start+q.Size; i++ {
			if used[i] {
				return fmt.Errorf("profile %q at %d overlaps another instance; move it", in.Profile, in.Start)
			}
			used[i] = true
		}
	}
	return nil
}

func (m MIGModel) profile(name string) (MIGProfile, bool) {
	i := slices.IndexFunc(m.Profiles, func(q MIGProfile) bool { return q.Name == name })
	if i < 0 {
		return MIGProfile{}, false
	}
	return m.Profiles[i], true
}

func (p *Profile) checkFaults() error {
	for _, f := range p.Faults {
		if n := len(p.of("gpu")); f.GPU < 0 || f.GPU >= n {
			return fmt.Errorf("fault: GPU %d does not exist; there are %d", f.GPU, n)
		}
		if err := (Injection{Kind: f.Kind, Value: f.Value}).check(); err != nil {
			return fmt.Errorf("fault of GPU %d: %w", f.GPU, err)
		}
	}
	return nil
}
