package node

import "fmt"

// Node is one machine as Kerf sees it.
type Node struct {
	// Simulated is true where any part of this node is not real hardware.
	Simulated bool   `json:"simulated"`
	Driver    Driver `json:"driver"`
	GPUs      []GPU  `json:"gpus"`
	NICs      []NIC  `json:"nics,omitempty"`
	Disks     []Disk `json:"disks,omitempty"`
	NUMA      []NUMA `json:"numa,omitempty"`
}

// Driver is the installed NVIDIA driver.
type Driver struct {
	Version     string      `json:"version"`     // of the user-space libraries: 580.95.05
	Kernel      string      `json:"kernel"`      // of the kernel module; empty where it is not loaded
	CUDAVersion CUDAVersion `json:"cudaVersion"` // newest CUDA that the driver serves
	NVMLVersion string      `json:"nvmlVersion,omitempty"`
}

// CUDAVersion is CUDA's own number: 1000·major + 10·minor, 13000 for 13.0.
type CUDAVersion int

func (v CUDAVersion) String() string { return fmt.Sprintf("%d.%d", int(v)/1000, int(v)%1000/10) }

// ComputeCapability is a GPU's instruction set generation: 9.0 for Hopper.
type ComputeCapability struct {
	Major int `json:"major"`
	Minor int `json:"minor"`
}

func (c ComputeCapability) String() string { return fmt.Sprintf("%d.%d", c.Major, c.Minor) }

// GPU is one physical card, what is fixed about it and its fault state when it
// was read. Memory in use and processes change by the millisecond, and are
// asked from internal/nvml instead.
type GPU struct {
	Index        int               `json:"index"` // NVML's order; not CUDA's, and not stable
	UUID         UUID              `json:"uuid"`
	ProductName  string            `json:"productName"`
	Architecture string            `json:"architecture"` // Hopper, Ampere, …; empty if unknown
	Compute      ComputeCapability `json:"computeCapability"`
	Memory       Bytes             `json:"memory"` // total, as NVML says: the driver's own part included
	SMs          int               `json:"sms"`    // 0 where NVML cannot tell
	Serial       string            `json:"serial,omitempty"`
	DeviceNode   string            `json:"deviceNode"` // /dev/nvidia0, without the root
	Minor        int               `json:"minor"`

	PCI    PCIAddress `json:"pci"`
	Path   PCIePath   `json:"path"`
	NUMA   int        `json:"numa"` // UnknownNUMA where the kernel does not know
	Link   PCIeLink   `json:"link"`
	NVLink []NVLink   `json:"nvlink,omitempty"`
	MIG    MIG        `json:"mig"`

	DriverVersion string      `json:"driverVersion"`
	CUDAVersion   CUDAVersion `json:"cudaVersion"`
	Fault         Fault       `json:"fault"`
	Simulated     bool        `json:"simulated"`
}

// Place is where the GPU sits, for Affinity.
func (g GPU) Place() Place { return Place{Path: g.Path, NUMA: g.NUMA} }

// GPUAffinity is the class of two GPUs: NVn where they are joined by NVLink,
// directly or through switches, else the PCIe class.
//
// A link to an NVSwitch does not name the GPU at the far end. Two GPUs that
// both have links to switches are taken as joined by the smaller number of
// them, as nvidia-smi does; fabric partitions are not visible here.
func GPUAffinity(a, b GPU) AffinityClass {
	if a.UUID == b.UUID {
		return Self
	}
	direct, switchedA, switchedB := 0, 0, 0
	for _, l := range a.NVLink {
		switch {
		case l.Active && l.Kind == NVLinkToSwitch:
			switchedA++
		case l.Active && l.Peer == b.PCI:
			direct++
		}
	}
	for _, l := range b.NVLink {
		if l.Active && l.Kind == NVLinkToSwitch {
			switchedB++
		}
	}
	if n := max(direct, min(switchedA, switchedB)); n > 0 {
		return NVLinks(n)
	}
	return Affinity(a.Place(), b.Place())
}

// NVLink is one link of a GPU, active or not.
type NVLink struct {
	Link    int        `json:"link"`
	Version int        `json:"version"` // NVLink generation; 0 where it is not known
	Active  bool       `json:"active"`
	Kind    NVLinkKind `json:"kind"`
	Peer    PCIAddress `json:"peer"` // the far end; zero where it is not known
}

// NVLinkKind is what sits at the far end of a link.
type NVLinkKind string

// What NVML calls the remote device type of a link.
const (
	NVLinkToUnknown NVLinkKind = ""
	NVLinkToGPU     NVLinkKind = "gpu"
	NVLinkToSwitch  NVLinkKind = "switch"
	NVLinkToCPU     NVLinkKind = "cpu"
)

// MIG is the state of Multi-Instance GPU on a card.
type MIG struct {
	Capable   bool          `json:"capable"`
	Enabled   bool          `json:"enabled"`
	Pending   bool          `json:"pending,omitempty"` // the mode changes at the next reset
	Profiles  []MIGProfile  `json:"profiles,omitempty"`
	Instances []MIGInstance `json:"instances,omitempty"`
}

// MIGProfile is one way to cut a slice from the card.
type MIGProfile struct {
	ID         int    `json:"id"`   // the driver's number
	Name       string `json:"name"` // 1g.18gb
	Memory     Bytes  `json:"memory"`
	SMs        int    `json:"sms"`
	Slices     int    `json:"slices"`
	MaxCount   int    `json:"maxCount"`
	Size       int    `json:"size,omitempty"`       // memory slices that a placement takes, of the card's eight
	Placements []int  `json:"placements,omitempty"` // possible first memory slices
}

// MIGInstance is one slice that exists. It takes Slices memory slices from
// Start on.
type MIGInstance struct {
	UUID            MIGUUID `json:"uuid"`
	GPUInstance     int     `json:"gpuInstance"`
	ComputeInstance int     `json:"computeInstance"`
	Profile         string  `json:"profile"`
	Start           int     `json:"start"`
	Slices          int     `json:"slices"`
	Memory          Bytes   `json:"memory"`
	SMs             int     `json:"sms"`
}
