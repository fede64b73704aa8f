package monitor

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/monitor/xid"
)

// Signal is something that a reading says about a device.
type Signal string

// The signals.
const (
	SignalLost       Signal = "lost"             // the driver cannot reach the card
	SignalRecovery   Signal = "recovery"         // the driver asks for an action
	SignalRemapFail  Signal = "remap-failure"    // no spare rows are left
	SignalRemapWait  Signal = "remap-pending"    // a row remap waits for a reset
	SignalSRAM       Signal = "sram-threshold"   // more SRAM errors than a card may have
	SignalECC        Signal = "ecc"              // errors beyond repair since the driver was loaded
	SignalNVLink     Signal = "nvlink"           // fewer links up than this card had
	SignalPCIeWidth  Signal = "pcie-width"       // narrower than card and slot can
	SignalPCIeSpeed  Signal = "pcie-speed"       // slower than they can, under load
	SignalPCIeReplay Signal = "pcie-replay"      // transfers repeated faster than a sound link does
	SignalThermal    Signal = "thermal"          // hardware slows down for heat
	SignalPower      Signal = "power-brake"      // hardware slows down for power
	SignalPort       Signal = "port-down"        // a network port that was up is down
	SignalPortErrors Signal = "port-errors"      // its error counters run
	SignalDisk       Signal = "disk"             // a disk says that it is not live
	SignalHang       Signal = "hang"             // two independent signs that work does not move; never more than suspected
	recoveryKey             = "recovery"         // of the condition, whatever told of it
	lostKey                 = string(SignalLost) // likewise
)

// Rule is how a signal becomes a condition, and how that goes again.
type Rule struct {
	Level   Level
	Confirm int           // bad samples in a row that establish it; at least 2
	Over    time.Duration // that they span at least
	Grace   time.Duration // after boot, or after the driver was loaded, in which bad samples do not count: links come up late
	Sticky  bool          // outlives samples and reboots; a release or another card ends it
	Floor   bool          // the hardware's own word: nothing is granted, whatever the mode
	Means   string        // what a person reads
}

// Repeat makes something of an application's fault that comes again and again for several tenants: that is no application's.
type Repeat struct {
	Code      int
	SamePlace bool // within the GPU
	Tenants   int  // different ones
	Within    time.Duration
	Level     Level
}

// Profile is a policy.
type Profile struct {
	Name     string
	Means    string
	Actions  map[xid.Action]Level          // of the catalogue; Healthy: an application's, or nobody's, fault
	Codes    map[int]Level                 // where the profile differs from the action
	Recovery map[node.RecoveryAction]Level // that a driver asks for; one that is not listed is Hold
	Signals  map[Signal]Rule
	Host     map[HostKind]map[Severity]Level // of errors that the kernel tells of
	Switch   Level                           // of a fatal code of an NVSwitch, for the cards that hang on it
	Repeats  []Repeat
	Ends     map[int]int     // a code that says that another's condition is over
	Pinned   []int           // codes that a tenant's own work brings about, also where the action asks for more
	Clear    int             // good samples in a row that end a condition
	Damp     []time.Duration // that they span at least, by how often this card had the condition: flapping lasts longer each time
	Lemon    int             // conditions that asked for a reset or more, over a card's life, from which on it is for replacement
	LemonIs  Level
}

// base is NVIDIA's catalogue taken at its word; the other profiles are this with differences.
func base() Profile {
	return Profile{
		Name: "nvidia", Means: "what NVIDIA's catalogue says of each code",
		Actions: map[xid.Action]Level{
			xid.None: Degraded, xid.Ignore: Healthy, xid.RestartApp: Healthy, xid.EvalXid154: Healthy, xid.CheckUVM: Healthy, xid.Workflow45: Healthy,
			xid.UpdateSW: Degraded, xid.Contact: Degraded, xid.ResetGPU: Reset, xid.Workflow48: Reset, xid.WorkflowLink: Reset,
			xid.WorkflowLink5: Degraded, // registers that no row fits; else their own action counts
			xid.FollowXid154:  Healthy,  // the recovery action in it counts
			xid.RestartNode:   Reboot, xid.RestartVM: Reboot, xid.Mechanicals: Replace,
		},
		Codes: map[int]Level{142: Replace, 157: Hold, 162: Healthy, 165: Replace},
		Recovery: map[node.RecoveryAction]Level{
			node.RecoveryNone: Healthy, node.RecoveryReset: Reset, node.RecoveryReboot: Reboot, node.RecoveryDrainP2P: Reset,
			node.RecoveryDrainAndReset: Reset, node.RecoveryIMEXDomain: Hold, node.RecoveryBusReset: Reset, node.RecoverySystemReboot: Reboot,
		},
		Signals: map[Signal]Rule{
			SignalLost:       {Level: Reboot, Confirm: 3, Over: 2 * time.Second, Floor: true, Means: "the driver cannot reach the card"},
			SignalRecovery:   {Level: Hold, Confirm: 2, Floor: true, Means: "the driver asks for a recovery action"}, // the action decides the level
			SignalRemapFail:  {Level: Replace, Confirm: 2, Sticky: true, Floor: true, Means: "no spare memory rows are left"},
			SignalRemapWait:  {Level: Hold, Confirm: 2, Floor: true, Means: "a row remap waits for a reset; what runs is safe"},
			SignalSRAM:       {Level: Replace, Confirm: 2, Sticky: true, Means: "more SRAM errors than a card may have"},
			SignalECC:        {Level: Degraded, Confirm: 2, Means: "memory errors beyond repair since the driver was loaded"},
			SignalNVLink:     {Level: Hold, Confirm: 3, Over: 30 * time.Second, Grace: 5 * time.Minute, Means: "fewer NVLinks are up than this card had"},
			SignalPCIeWidth:  {Level: Degraded, Confirm: 3, Over: 30 * time.Second, Grace: time.Minute, Means: "the PCIe link is narrower than card and slot can"},
			SignalPCIeSpeed:  {Level: Degraded, Confirm: 4, Over: time.Minute, Grace: time.Minute, Means: "the PCIe link is slow under load"},
			SignalPCIeReplay: {Level: Degraded, Confirm: 4, Over: time.Minute, Means: "PCIe transfers are repeated again and again"},
			SignalThermal:    {Level: Degraded, Confirm: 8, Over: 2 * time.Minute, Means: "the card slows down for heat"},
			SignalPower:      {Level: Degraded, Confirm: 8, Over: 2 * time.Minute, Means: "the card slows down: its power supply asks it to"},
			SignalPort:       {Level: Degraded, Confirm: 3, Over: 30 * time.Second, Grace: 5 * time.Minute, Means: "a network port that was up is down"},
			SignalPortErrors: {Level: Degraded, Confirm: 3, Over: 30 * time.Second, Grace: 5 * time.Minute, Means: "error counters of a network port run"},
			SignalDisk:       {Level: Degraded, Confirm: 3, Over: 30 * time.Second, Grace: time.Minute, Means: "a disk says that it is not live"},
			SignalHang:       {Level: Suspect, Confirm: 2, Over: time.Minute, Means: "work does not move, by two independent signs"},
		},
		Host:   hostRules(),
		Switch: Reset,
		Repeats: []Repeat{
			{Code: 13, SamePlace: true, Tenants: 3, Within: 24 * time.Hour, Level: Degraded},
			{Code: 31, Tenants: 3, Within: 24 * time.Hour, Level: Degraded},
		},
		Ends:   map[int]int{162: 163},
		Pinned: []int{13, 31, 43},
		Clear:  4, Damp: []time.Duration{30 * time.Second, 5 * time.Minute, 30 * time.Minute, 4 * time.Hour},
		Lemon: 5, LemonIs: Degraded,
	}
}

// Profiles is every profile, by name.
func Profiles() map[string]Profile {
	nvidia := base()

	conservative := base()
	conservative.Name, conservative.Means = "conservative", "whatever may be the hardware keeps new work away until it is cleared"
	conservative.Codes = merged(conservative.Codes, map[int]Level{63: Reset, 68: Reset, 92: Hold, 94: Reset, 160: Hold, 161: Hold, 163: Hold, 164: Hold,
		167: Reset, 168: Hold, 169: Reset, 171: Reset, 172: Reset})
	conservative.Actions = merged(conservative.Actions, map[xid.Action]Level{xid.None: Hold, xid.Contact: Hold, xid.WorkflowLink5: Hold})
	conservative.Signals = merged(conservative.Signals, map[Signal]Rule{
		SignalECC:       {Level: Reset, Confirm: 2, Means: nvidia.Signals[SignalECC].Means},
		SignalPCIeWidth: {Level: Hold, Confirm: 3, Over: 30 * time.Second, Grace: time.Minute, Means: nvidia.Signals[SignalPCIeWidth].Means},
	})
	conservative.Lemon, conservative.LemonIs = 3, Replace

	shared := base()
	shared.Name, shared.Means = "shared", "for cards that several tenants share: what a tenant's own work brings about is the tenant's, and never holds the card"
	shared.Codes = merged(shared.Codes, map[int]Level{109: Healthy})
	shared.Pinned = []int{13, 31, 43, 109}

	all := make(map[string]Profile)
	for _, p := range []Profile{nvidia, conservative, shared} {
		all[p.Name] = p
	}
	return all
}

func merged[K comparable, V any](a, b map[K]V) map[K]V {
	m := maps.Clone(a)
	maps.Copy(m, b)
	return m
}

// FindProfile is the profile of a name.
func FindProfile(name string) (Profile, error) {
	all := Profiles()
	p, ok := all[name]
	if !ok {
		return p, fmt.Errorf("profile %q: not known; use %s", name, strings.Join(slices.Sorted(maps.Keys(all)), ", "))
	}
	return p, nil
}

// Level is what the profile makes of a code, and of what its registers say where they decide (empty: they do not).
func (p Profile) Level(code int, decoded xid.Action) Level {
	if level, ok := p.Codes[code]; ok {
		return level
	}
	entry, known := xid.Lookup(code)
	switch {
	case decoded != xid.None:
		return p.Actions[decoded]
	case !known: // it is told and counted
		return Healthy
	}
	return p.Actions[entry.Action]
}

// recovery is the level of a recovery action. One that this version does not know is never ignored, and never moves what runs.
func (p Profile) recovery(action node.RecoveryAction) Level {
	if level, ok := p.Recovery[action]; ok {
		return level
	}
	return Hold
}

// damp is how long evidence must last for the nth time.
func (p Profile) damp(times int) time.Duration {
	if len(p.Damp) == 0 {
		return 0
	}
	return p.Damp[min(max(times, 1), len(p.Damp))-1]
}
