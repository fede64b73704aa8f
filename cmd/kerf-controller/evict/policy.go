package evict

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// Mode is what is done about pods on devices that are to be drained.
type Mode string

// The modes.
const (
	ModeOff     Mode = "off"     // nothing is looked at
	ModeObserve Mode = "observe" // what there is to move is counted
	ModeDryRun  Mode = "dry-run" // the API server is asked, and moves nothing; budgets count
	ModeEvict   Mode = "evict"
)

// Modes is all of them.
var Modes = []Mode{ModeOff, ModeObserve, ModeDryRun, ModeEvict}

// Policy is how much may be moved, and when.
type Policy struct {
	Mode   Mode
	Settle time.Duration // a device must have asked that long: a fault that many have is seen by then

	Pods int           // at most so many are moved
	Per  time.Duration // in any stretch of this length

	Nodes        int           // pods of at most so many nodes are moved
	NodesPercent int           // and of so many of a hundred nodes with devices, but always of one
	Window       time.Duration // in any stretch of this length

	BreakerNodes  int           // one cause on so many nodes opens the breaker
	BreakerWithin time.Duration // where it appears within that time

	RetryAfter time.Duration // after a PodDisruptionBudget's refusal
	ForceAfter time.Duration // a device whose pods were refused that long gets the effect NoExecute, which asks no budget of theirs; 0: never
}

// DefaultPolicy is careful: what runs out of it is said, and a person can raise it.
var DefaultPolicy = Policy{Mode: ModeOff, Settle: 5 * time.Second, Pods: 10, Per: time.Minute, Nodes: 5, NodesPercent: 10, Window: 10 * time.Minute,
	BreakerNodes: 5, BreakerWithin: 10 * time.Minute, RetryAfter: 30 * time.Second}

// Validate says what is wrong.
func (p Policy) Validate() error {
	switch {
	case !slices.Contains(Modes, p.Mode):
		return fmt.Errorf("evictions: mode %q: not known; use off, observe, dry-run or evict", p.Mode)
	case p.Pods < 1 || p.Nodes < 1:
		return fmt.Errorf("evictions: %d pods and %d nodes: nothing could ever be moved; use at least 1 each, or mode observe", p.Pods, p.Nodes)
	case p.NodesPercent < 1 || p.NodesPercent > 100:
		return fmt.Errorf("evictions: %d percent of nodes: outside 1 to 100", p.NodesPercent)
	case p.BreakerNodes < 2:
		return fmt.Errorf("evictions: breaker at %d nodes: one fault of one node would stop everything; use at least 2", p.BreakerNodes)
	case p.Per < time.Second || p.Window < time.Second || p.BreakerWithin < time.Second || p.RetryAfter < time.Second:
		return errors.New("evictions: a time of the budgets, the breaker or the retry is below 1s")
	case p.Settle < 0 || p.ForceAfter < 0:
		return errors.New("evictions: a time is below 0")
	}
	return nil
}

// nodes is how many nodes may be disturbed in a window, of all that have devices.
func (p Policy) nodes(all int) int { return min(p.Nodes, max(1, all*p.NodesPercent/100)) }
