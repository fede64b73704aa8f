// Package control is how the command kerf and the daemon kerfd talk on one machine: JSON over HTTP on a unix socket.
//
// It is no public interface: both ends come from one release. What people may rely on is the output of
// `kerf … --json`, which carries a schema.
package control

import (
	"path/filepath"
	"time"

	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/monitor"
	"github.com/kerf-gpu/kerf/vgpu/arbiter"
	"github.com/kerf-gpu/kerf/vgpu/ledger"
	"github.com/kerf-gpu/kerf/vgpu/mps"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

// The schemas of what is printed with --json.
const (
	TopSchema     = "kerf.top/v1"
	NodeSchema    = "kerf.node/v1"
	DoctorSchema  = "kerf.doctor/v1"
	VersionSchema = "kerf.version/v1"
	HealthSchema  = "kerf.health/v1"
	XidSchema     = "kerf.xid/v1"
)

// The paths of the interface.
const (
	GrantsPath = "/v1/grants" // POST GrantRequest → Granted; DELETE /v1/grants/ID; POST /v1/grants/ID/settings Settings → share.Grant
	StatePath  = "/v1/state"  // GET → State
	NodePath   = "/v1/node"   // GET → Node
	HealthPath = "/v1/health" // GET → Health; POST /v1/health/DEVICE/release Release: root's only
	ReadyPath  = "/v1/ready"  // GET → {}, or why not yet
	// For the next kerfd and the last one, on a node where one follows the other. Root's only.
	SuccessionPath = "/v1/succession" // POST: let go of the core
	DoorsPath      = "/v1/doors"      // POST /v1/doors/NAME/holds Holding → []ledger.Held; GET → []ledger.Owner; DELETE /v1/doors/NAME/holds/OWNER
	// MetricsPath answers in Prometheus' text format.
	MetricsPath = "/metrics"
)

// DefaultRunDir is where a kerfd that serves the machine keeps its sockets and shares.
const DefaultRunDir = "/run/kerf"

// Socket is the control socket in a run directory.
func Socket(runDir string) string { return filepath.Join(runDir, "kerfd.sock") }

// GrantRequest asks for a slice on behalf of the process that sends it: the grant ends with that process, once nothing
// is attached to the share any more.
type GrantRequest struct {
	share.Request
	Command string `json:"command"` // shown in kerf top
}

// Settings is what can be changed of a share in force; nil stays as it is.
type Settings struct {
	Cores  *node.Percent `json:"cores,omitempty"`
	Class  *share.Class  `json:"class,omitempty"`
	Capped *bool         `json:"capped,omitempty"`
}

// Holding is what an owner asks of a door.
type Holding struct {
	Owner ledger.Owner `json:"owner"`
	Asks  []ledger.Ask `json:"asks"`
}

// Granted is a slice, and what its tenant's view is made from. Paths are the host's.
type Granted struct {
	ID        string      `json:"id"`
	Grant     share.Grant `json:"grant"`
	ShareDir  string      `json:"shareDir"`
	LibDir    string      `json:"libDir"` // Kerf's libraries
	Driver    Driver      `json:"driver"`
	MPS       mps.Place   `json:"mps,omitzero"` // zero with another tier
	Simulated bool        `json:"simulated"`
}

// Driver is where the real (or simulated) driver is.
type Driver struct {
	CUDA    string   `json:"cuda"`              // libcuda.so.1
	NVML    string   `json:"nvml"`              // libnvidia-ml.so.1
	Granted []string `json:"granted"`           // device nodes of the grant
	Others  []string `json:"others,omitempty"`  // device nodes that the tenant must not see
	Control []string `json:"control,omitempty"` // nodes that every tenant needs: nvidiactl, nvidia-uvm
}

// State is what kerf top shows.
type State struct {
	Schema    string    `json:"schema"`
	Time      time.Time `json:"time"`
	Simulated bool      `json:"simulated"`
	GPUs      []GPU     `json:"gpus"`
	Shares    []Share   `json:"shares"`
}

// GPU is one GPU's memory and use. Bytes.
type GPU struct {
	Index       int          `json:"index"`
	UUID        node.UUID    `json:"uuid"`
	Name        string       `json:"name"`
	Memory      node.Bytes   `json:"memory"`  // that can be granted
	Granted     node.Bytes   `json:"granted"` // to shares
	Cores       node.Percent `json:"coresGranted"`
	Used        node.Bytes   `json:"used"`    // as NVML says
	Outside     node.Bytes   `json:"outside"` // by processes that are in no share
	Utilization node.Percent `json:"utilization"`
	Fault       string       `json:"fault,omitempty"`
	MPS         *mps.State   `json:"mps,omitempty"`   // its daemon, where it has shares of tier mps
	Error       string       `json:"error,omitempty"` // why the numbers above are not known
}

// Share is a grant in force and what it holds.
type Share struct {
	arbiter.ShareState
	Class   share.Class   `json:"class"`
	Holder  ledger.Holder `json:"holder"`
	Created time.Time     `json:"created"`
	Inside  []Container   `json:"containers,omitempty"` // that hold the share
}

// Container is a container of a pod.
type Container struct {
	Namespace string `json:"namespace"`
	Pod       string `json:"pod"`
	Name      string `json:"name"`
	ID        string `json:"id"`
}

// Kubernetes is what kerfd knows of the cluster's side of its node.
type Kubernetes struct {
	NodeName  string   `json:"nodeName"`
	CDIDir    string   `json:"cdiDir"`
	Specs     []string `json:"specs"`              // CDI devices of shares, as found in the directory
	Missing   []string `json:"missing,omitempty"`  // CDI devices of shares in force that are not there
	Published []string `json:"published"`          // devices in the node's ResourceSlices, as last published
	Expected  []string `json:"expected"`           // devices that the inventory makes
	NotReady  string   `json:"notReady,omitempty"` // why pods cannot get slices now
}

// Node is the hardware that kerfd serves.
type Node struct {
	Schema  string `json:"schema"`
	Version string `json:"version"` // of kerfd
	Root    string `json:"root"`    // the driver root
	RunDir  string `json:"runDir"`
	LibDir  string `json:"libDir"`
	node.Node
	MemoryLimits bool        `json:"driverMemoryLimits"` // the driver can limit memory by cgroup itself
	Kubernetes   *Kubernetes `json:"kubernetes,omitempty"`
	Page         string      `json:"page,omitempty"` // URL of the node page
}

// Health is what the monitor knows of the node's devices.
type Health struct {
	Schema    string `json:"schema"`
	Simulated bool   `json:"simulated"`
	Off       bool   `json:"off,omitempty"` // monitor.enabled is false
	// Probes are programs in the kernel that tell the monitor of the machine around the GPUs.
	Probes []Probe `json:"probes,omitempty"`
	monitor.Report
}

// Probe is one of them.
type Probe struct {
	Name   string        `json:"name"`
	Tells  string        `json:"tells"`
	Needs  string        `json:"needs"`
	On     bool          `json:"on"`
	Reason string        `json:"reason,omitempty"` // it is off
	Hits   uint64        `json:"hits"`
	Lost   uint64        `json:"lost"`   // events that had no room
	Runs   uint64        `json:"runs"`   // while it was measured
	PerRun time.Duration `json:"perRun"` // in ns; 0: not measured
	Cost   float64       `json:"cost"`   // of one CPU
}

// Release is somebody's word that a device is well.
type Release struct {
	Why string `json:"why"`
}

// Problem is the body of an answer that is not 2xx.
type Problem struct {
	Error string `json:"error"`
}
