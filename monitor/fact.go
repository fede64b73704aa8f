package monitor

import (
	"time"

	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/monitor/xid"
)

// Kind is what sort of fact it is.
type Kind string

// The kinds.
const (
	KindXid      Kind = "xid"      // the driver reported a code
	KindRecovery Kind = "recovery" // the driver said which recovery action it asks for from now on
	KindSwitch   Kind = "switch"   // an NVSwitch that the device hangs on reported a fatal code
	KindSample   Kind = "sample"   // a reading of a device
	KindSilence  Kind = "silence"  // a reading was not answered
	KindReload   Kind = "reload"   // the driver was loaded anew, or the device reset: a fresh start
	KindReplayed Kind = "replayed" // the kernel log of this boot has been read up to now
	KindRelease  Kind = "release"  // somebody says that the device is well
	KindHost     Kind = "host"     // the kernel told of an error beside the driver
)

// Fact is something that a source saw of one device.
type Fact struct {
	Kind     Kind
	Xid      Xid                 // of KindXid and KindSwitch
	Recovery node.RecoveryAction // of KindRecovery
	Signals  []Reading           // of KindSample: those that the device told
	Host     HostFact            // of KindHost
	Reason   string              // of KindSilence: why; of KindRelease: who, and why
}

// Xid is a code that the driver reported.
type Xid struct {
	Code    int
	Action  xid.Action // what its registers say, where it is one that they decide
	PID     int        // 0: none, or not known
	Tenant  string     // whose process that was; empty: nobody's that Kerf knows
	Place   string     // within the GPU: "GPC 1 TPC 2 SM 0"
	Text    string
	Follows int // the code that this one only follows from; 0: it stands for itself
}

// Reading is one signal of a sample.
type Reading struct {
	Signal Signal
	Bad    bool
	Value  string              // in words
	Action node.RecoveryAction // of the signal recovery
}

// Moment is when a fact was seen.
type Moment struct {
	Boot time.Duration // since boot; this counts
	Wall time.Time     // for people
}

// Level is what a condition asks for.
type Level int

// The levels, in order.
const (
	Healthy  Level = iota
	Suspect        // something was seen; not established
	Degraded       // the device works, but not as it should
	Hold           // nothing new; what runs may stay
	Reset          // nothing new, and a reset once what runs has gone
	Reboot         // the same with the node
	Replace        // the hardware is at its end
)

var levelNames = []string{"healthy", "suspect", "degraded", "hold", "reset", "reboot", "replace"}

func (l Level) String() string { return levelNames[l] }

// MarshalText writes the name.
func (l Level) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (l *Level) UnmarshalText(text []byte) error { return unmarshalName(levelNames, text, (*int)(l)) }

// drains reports whether the level asks for what runs to end.
func (l Level) drains() bool { return l >= Reset }

// Health is what others are told.
type Health int

// The healths.
const (
	HealthUnknown Health = iota // nobody can tell
	HealthGood
	HealthBad
)

var healthNames = []string{"unknown", "healthy", "unhealthy"}

func (h Health) String() string { return healthNames[h] }

// MarshalText writes the name.
func (h Health) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (h *Health) UnmarshalText(text []byte) error {
	return unmarshalName(healthNames, text, (*int)(h))
}
