package arbiter

import (
	"time"

	"github.com/kerf-gpu/kerf/internal/node"
)

// Decision is something to do.
type Decision interface{ decision() }

type (
	// OpenGate begins a lease, with a number that no other has.
	OpenGate struct {
		Tenant string
		Lease  uint64
	}

	// CloseGate comes before StartDrain, and alone for a tenant that left.
	CloseGate struct{ Tenant string }

	// StartDrain asks every process of the tenant to report Drained, with the number of the lease.
	StartDrain struct {
		Tenant string
		Lease  uint64
	}

	// SetTimer replaces the one timer; At 0 stops it.
	SetTimer struct{ At time.Duration }

	// Evict moves bytes of a process out to the host.
	Evict struct {
		Tenant  string
		Process int
		GPU     int
		Bytes   node.Bytes
	}

	// BringIn moves bytes of a process to the GPU. Bytes just asked for are made, and not copied.
	BringIn struct {
		Tenant  string
		Process int
		GPU     int
		Bytes   node.Bytes
	}

	// Mark says that a tenant does not drain or swap in time, or does so again.
	Mark struct {
		Tenant      string
		NonYielding bool
	}

	// Refuse answers an event that cannot be, or that came too late. Nothing has changed.
	Refuse struct {
		Event  LeaseEvent
		Reason string
	}

	// Report is a line for a person.
	Report struct {
		Tenant string
		Text   string
	}
)

func (OpenGate) decision()   {}
func (CloseGate) decision()  {}
func (StartDrain) decision() {}
func (SetTimer) decision()   {}
func (Evict) decision()      {}
func (BringIn) decision()    {}
func (Mark) decision()       {}
func (Refuse) decision()     {}
func (Report) decision()     {}
