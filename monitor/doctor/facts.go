package doctor

import (
	"time"

	"github.com/kerf-gpu/kerf/internal/node"
)

// Section is facts that are gathered together.
type Section string

// The sections.
const (
	Daemon     Section = "daemon"     // what kerfd says of itself and its node
	State      Section = "state"      // shares and GPUs, from kerfd
	Health     Section = "health"     // what its monitor knows
	Files      Section = "files"      // the driver's files, and Kerf's
	Devices    Section = "devices"    // device nodes, opened
	MPS        Section = "mps"        // NVIDIA's MPS
	SelfTest   Section = "self-test"  // a program in a small slice
	Kubernetes Section = "kubernetes" // the cluster's side
	Storage    Section = "storage"    // pods' volumes, from kerfd
	Kernel     Section = "kernel"     // what this kernel and this user can
)

// Facts is everything that checks judge. What was not gathered is zero, and named in Failed.
type Facts struct {
	Failed    map[Section]string // why a section could not be gathered
	Took      map[Section]time.Duration
	Simulated bool

	// Daemon
	Socket, Version, Own, Root, LibDir string // Version is kerfd's, Own this program's
	Driver                             node.Driver
	GPUs                               []node.GPU
	NUMA                               int // memory nodes of the machine
	MemoryLimits                       bool

	// State
	Books []Book   // what shares hold
	Cards []Card   // what NVML sees
	Bad   []string // shares that were tampered with, or hold more than their limit

	// Health
	MonitorOff bool
	Verdicts   []Verdict
	Sources    []Source
	SetAside   []string       // state files that were damaged
	OrphanXids map[int]uint64 // of cards that NVML does not show
	Links      []Link
	Probes     []Probe

	// Files
	MissingLibrary string // why one of the driver's libraries cannot be found; empty: all are there
	Module         string // version of the kernel module
	NoModule       string // why there is none; empty: there is one, or it could not be told
	ModuleError    string
	BadShim        string // what is wrong with Kerf's libraries; empty: nothing

	// Devices
	Nodes  int    // that could be opened
	NoNode string // why one cannot be opened
	Denied bool   // it is a matter of rights
	Absent bool   // it is not there

	// MPS
	MPSProgram, NoMPS string
	MPSDaemons        int
	MPSTrouble        string

	// SelfTest
	TestSlice   node.Bytes
	TestSkipped string // why it was not run
	TestFailed  string // what its program said last

	// Kubernetes; OffCluster: kerfd serves no pods here
	OffCluster          bool
	NodeName, NotReady  string
	CDIDir, CDIError    string
	Specs               int
	MissingSpecs        []string
	Published, Expected []string

	// Storage; StorageOff: kerfd serves no volumes here
	StorageOff, StorageUnknown bool // Unknown: to kubelet
	Pools                      []Pool
	Strangers                  []string // POOL/ID of what no record names

	// Kernel
	PCIGPUs  int      // NVIDIA's GPUs on the PCI bus; -1: this machine has no PCI bus to look at
	Lacking  []string // features that some part of Kerf would use, with what goes without
	BootID   string
	Hostname string
}

// Book is what shares hold of one GPU.
type Book struct {
	GPU  node.UUID
	Held node.Bytes
}

// Card is one GPU as NVML sees it.
type Card struct {
	Index         int
	UUID          node.UUID
	Used, Outside node.Bytes
	Fault, Error  string
}

// Verdict is the monitor's on one device.
type Verdict struct {
	Name   string // GPU 3, port:mlx5_0/1
	Status Status
	Text   string
	Clears string
}

// Source is one of the monitor's.
type Source struct {
	Name, Why string
	Up        bool
	Lost      uint64
}

// Probe is one of the programs in the kernel.
type Probe struct {
	Name   string  `json:"name"`
	Needs  string  `json:"needs"`
	On     bool    `json:"on"`
	Reason string  `json:"reason,omitempty"` // it is off
	Hits   uint64  `json:"hits"`
	Lost   uint64  `json:"lost"`
	PerRun float64 `json:"perRunSeconds"` // 0: not measured
	Cost   float64 `json:"costRatio"`     // of one CPU
}

// Link is a GPU's PCIe link and its NVLinks.
type Link struct {
	Index       int
	Link        node.PCIeLink
	NVLinks, Up int
}
