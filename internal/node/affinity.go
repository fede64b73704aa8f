package node

import "strconv"

// AffinityClass says how far apart two PCI devices are, nearest first, in the
// words of nvidia-smi topo -m. NVLinks(n) stands before all of them.
//
// The border that matters is between PXB and PHB: NCCL's default does GPUDirect
// RDMA up to PXB and goes through host memory from PHB on.
type AffinityClass int

// The classes. UnknownAffinity sorts last: what is not known is not near.
const (
	Self            AffinityClass = iota // X: the same device
	PIX                                  // at most one PCIe switch between them
	PXB                                  // several switches, no host bridge
	PHB                                  // through a host bridge (root complex)
	NODE                                 // across host bridges of one NUMA node
	SYS                                  // across NUMA nodes
	UnknownAffinity                      // the NUMA node of one of them is not known
)

// nvLinkBase keeps NVLinks(n) below Self for every n, and NV18 nearer than NV4.
const nvLinkBase AffinityClass = -1 << 16

// NVLinks is the class of two GPUs joined by n bonded NVLinks.
func NVLinks(n int) AffinityClass { return nvLinkBase - AffinityClass(n) }

// NVLinkCount is n of NVLinks(n), and 0 for the PCIe classes.
func (c AffinityClass) NVLinkCount() int {
	if c > nvLinkBase {
		return 0
	}
	return int(nvLinkBase - c)
}

// PeerDMA reports whether devices in this class reach each other without
// passing the CPU.
func (c AffinityClass) PeerDMA() bool { return c <= PXB }

func (c AffinityClass) String() string {
	if n := c.NVLinkCount(); n > 0 {
		return "NV" + strconv.Itoa(n)
	}
	names := [...]string{"X", "PIX", "PXB", "PHB", "NODE", "SYS", "UNKNOWN"}
	if c < 0 || int(c) >= len(names) {
		return "UNKNOWN"
	}
	return names[c]
}

// MarshalText writes the name.
func (c AffinityClass) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// Place is where a PCI device sits. NUMA is UnknownNUMA where the kernel does
// not say.
type Place struct {
	Path PCIePath `json:"path"`
	NUMA int      `json:"numa"`
}

// UnknownNUMA is the kernel's numa_node of a device whose node is not known.
const UnknownNUMA = -1

// Affinity is the PCIe class of two devices. A VF hangs off its PF's parent, so
// it has its PF's class without special care.
func Affinity(a, b Place) AffinityClass {
	if a.Path.Root == b.Path.Root && a.Path.Root != "" {
		return underOneRoot(a.Path.Chain, b.Path.Chain)
	}
	switch {
	case a.NUMA < 0 || b.NUMA < 0:
		return UnknownAffinity
	case a.NUMA == b.NUMA:
		return NODE
	}
	return SYS
}

func underOneRoot(a, b []PCIAddress) AffinityClass {
	if len(a) > 0 && len(b) > 0 && a[len(a)-1] == b[len(b)-1] {
		return Self
	}
	common := 0 // bridges that both pass, the devices themselves excluded
	for common < len(a)-1 && common < len(b)-1 && a[common] == b[common] {
		common++
	}
	switch {
	case common == 0:
		return PHB
	case len(a)-common <= 2 && len(b)-common <= 2: // at most one downstream port on each side
		return PIX
	}
	return PXB
}
