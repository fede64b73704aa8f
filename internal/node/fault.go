package node

import (
	"fmt"
	"slices"
)

// Fault is what a GPU says is wrong with it. The zero value is a GPU that says
// nothing is.
type Fault struct {
	// Lost: the driver cannot reach the card ("fallen off the bus"). All other
	// dynamic fields are then of the last good reading, or zero.
	Lost bool `json:"lost,omitempty"`
	// Recovery is what the driver asks for (NVML field 230, from R565).
	Recovery RecoveryAction `json:"recovery"`
	// RemapPending: a row remap waits for a reset. Running work is safe.
	RemapPending bool `json:"remapPending,omitempty"`
	// RemapFailure: no spare rows are left. The card is to be replaced.
	RemapFailure bool `json:"remapFailure,omitempty"`
	// Uncorrectable counts ECC errors beyond repair since the driver loaded.
	Uncorrectable uint64 `json:"uncorrectable,omitempty"`
}

// Healthy reports whether nothing is said to be wrong. What to do if not is
// monitor's policy, not ours.
func (f Fault) Healthy() bool {
	return !f.Lost && f.Recovery == RecoveryNone && !f.RemapPending && !f.RemapFailure
}

func (f Fault) String() string {
	switch {
	case f.Lost:
		return "lost"
	case f.Recovery != RecoveryNone:
		return f.Recovery.String()
	case f.RemapFailure:
		return "row remap failed"
	case f.RemapPending:
		return "row remap pending"
	}
	return "healthy"
}

// RecoveryAction is what the driver says must happen before the GPU is whole
// again. Values are NVML's. Later drivers may send more: any value that is not
// RecoveryNone is a fault.
type RecoveryAction int

// NVML's values.
const (
	RecoveryNone          RecoveryAction = 0
	RecoveryReset         RecoveryAction = 1
	RecoveryReboot        RecoveryAction = 2
	RecoveryDrainP2P      RecoveryAction = 3
	RecoveryDrainAndReset RecoveryAction = 4
	RecoveryIMEXDomain    RecoveryAction = 5
	RecoveryBusReset      RecoveryAction = 6
	RecoverySystemReboot  RecoveryAction = 7
)

var recoveryNames = [...]string{
	"none", "gpu reset", "node reboot", "drain p2p", "drain and reset",
	"recover imex domain", "bus reset", "system reboot",
}

func (r RecoveryAction) String() string {
	if r < 0 || int(r) >= len(recoveryNames) {
		return fmt.Sprintf("unknown action %d", int(r))
	}
	return recoveryNames[r]
}

// MarshalText writes the name.
func (r RecoveryAction) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (r *RecoveryAction) UnmarshalText(text []byte) error {
	if i := slices.Index(recoveryNames[:], string(text)); i >= 0 {
		*r = RecoveryAction(i)
		return nil
	}
	if _, err := fmt.Sscanf(string(text), "unknown action %d", (*int)(r)); err != nil {
		return fmt.Errorf("recovery action %q: not known", text)
	}
	return nil
}
