package monitor

import (
	"fmt"
	"strings"

	"github.com/kerf-gpu/kerf/internal/node"
)

// HostKind is what the kernel told of the machine around the GPUs.
type HostKind string

// The kinds.
const (
	HostOOM    HostKind = "oom-kill"     // a process was killed for lack of memory
	HostCrash  HostKind = "crash"        // a GPU process ended by a signal for its own fault
	HostMemory HostKind = "memory-error" // a memory controller reported an error
	HostPCIe   HostKind = "pcie-error"   // a PCIe device did
	HostDisk   HostKind = "disk-error"   // a disk failed a request
)

// HostKinds is all of them.
var HostKinds = []HostKind{HostOOM, HostCrash, HostMemory, HostPCIe, HostDisk}

// Severity is how bad an error of hardware is.
type Severity string

// The severities.
const (
	SeverityCorrected   Severity = "corrected"   // the hardware put it right
	SeverityUncorrected Severity = "uncorrected" // data was lost, the machine goes on
	SeverityFatal       Severity = "fatal"       // what it happened to cannot go on
)

// HostFact is one thing that the kernel told.
type HostFact struct {
	Kind     HostKind
	Severity Severity        // of errors of hardware
	PID      int             // of HostOOM and HostCrash
	Tenant   string          // whose process that was; empty: nobody's that Kerf knows
	PCI      node.PCIAddress // of HostPCIe
	Device   string          // of HostMemory and HostDisk: mc0, nvme0n1
	Text     string          // in words
}

// hostRules is what each error is for the device that it happened to. None holds a card: an error of the link to it is a sign, and what
// became of the card its driver says.
func hostRules() map[HostKind]map[Severity]Level {
	return map[HostKind]map[Severity]Level{
		HostPCIe:   {SeverityUncorrected: Suspect, SeverityFatal: Suspect},
		HostMemory: {SeverityUncorrected: Degraded, SeverityFatal: Degraded},
		HostDisk:   {SeverityUncorrected: Degraded},
	}
}

// hostMeans is what a person reads.
var hostMeans = map[HostKind]string{
	HostMemory: "the machine's memory has errors", HostPCIe: "the PCIe link has errors", HostDisk: "a disk fails requests",
}

// host takes in what the kernel told. The end of a process is its tenant's business, and says nothing of any device.
func (s *step) host(f HostFact) {
	switch f.Kind {
	case HostOOM:
		s.tell(NoticeOOM, Notice{PID: f.PID, Tenant: f.Tenant, Text: f.Text})
	case HostCrash:
		s.tell(NoticeCrash, Notice{PID: f.PID, Tenant: f.Tenant, Text: f.Text})
	default:
		s.raise(Condition{Key: string(f.Kind), Level: s.policy.Host[f.Kind][f.Severity], Event: true, Means: hostMeans[f.Kind], Evidence: f.Text})
	}
}

// hostDevice is who stands for the machine where a notice needs a device.
var hostDevice = Device{ID: "host", Index: -1, Name: "this machine"}

// Host takes in what the kernel told of the machine. What concerns no device and no tenant is counted.
func (m *Monitor) Host(f HostFact) {
	m.mu.Lock()
	m.counts.host[hostCount{f.Kind, f.Severity}]++
	level := m.config.Profile.Host[f.Kind][f.Severity]
	m.mu.Unlock()
	now := m.config.Now()
	switch {
	case f.Kind == HostOOM || f.Kind == HostCrash:
		if f.Tenant == "" || m.config.Notify == nil {
			return
		}
		_, notices := Step(m.config.Profile, State{}, Fact{Kind: KindHost, Host: f}, now)
		for _, n := range notices {
			m.config.Notify(hostDevice, n)
		}
	case level == Healthy:
	case f.Kind == HostPCIe:
		if w := m.at(f.PCI); w != nil {
			m.take(w, Fact{Kind: KindHost, Host: f}, now)
			m.look(w.ID)
		}
	case f.Kind == HostDisk && madeUp(f.Device):
	default:
		w := m.other(hostPrefixes[f.Kind]+f.Device, f.Device)
		m.mu.Lock()
		w.host = true
		m.mu.Unlock()
		m.take(w, Fact{Kind: KindSample}, now) // it answers, or nothing would have been told of it
		m.take(w, Fact{Kind: KindHost, Host: f}, now)
	}
}

var hostPrefixes = map[HostKind]string{HostMemory: "memory:", HostDisk: "disk:"}

// madeUp reports whether a disk is software: what is beneath it tells of itself, and there is no end to their names.
func madeUp(disk string) bool {
	for _, prefix := range []string{"loop", "ram", "zram", "nbd", "dm-", "md"} {
		if strings.HasPrefix(disk, prefix) {
			return true
		}
	}
	return false
}

// calm passes for a good reading of devices that only ever tell of errors: that none came is all that can be seen of them.
func (m *Monitor) calm() {
	m.mu.Lock()
	var quiet []*watched
	for _, w := range m.devices {
		if w.host {
			quiet = append(quiet, w)
		}
	}
	m.mu.Unlock()
	for _, w := range quiet {
		m.take(w, Fact{Kind: KindSample}, m.config.Now())
	}
}

// hostCount is what host facts are counted by.
type hostCount struct {
	kind     HostKind
	severity Severity
}

// hostClears is what ends a condition that the kernel told of.
func (s State) hostClears(c Condition, p Profile) string {
	return fmt.Sprintf("%s without another; or kerf release DEVICE", p.damp(s.Lifetime[c.Key]))
}
