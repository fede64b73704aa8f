package monitor

import (
	"fmt"
	"time"

	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/monitor/source"
)

// Thresholds are numbers that a site may want otherwise.
type Thresholds struct {
	PCIeReplays float64 `yaml:"pcieReplaysPerMinute"` // above it a link is not sound
	PortErrors  float64 `yaml:"portErrorsPerMinute"`  // of one counter of a port
	BusyPercent int     `yaml:"busyPercent"`          // from which on a PCIe link must have its full speed
}

// DefaultThresholds are what a sound machine stays far below.
func DefaultThresholds() Thresholds {
	return Thresholds{PCIeReplays: 60, PortErrors: 120, BusyPercent: 50}
}

// earlier is the reading before, for rates.
type earlier struct {
	vitals node.Vitals
	at     time.Duration
	ok     bool
}

// perMinute is how fast a counter runs. One that went back was reset, and says nothing.
func perMinute(before, now uint64, over time.Duration) float64 {
	if now < before || over <= 0 {
		return 0
	}
	return float64(now-before) / over.Minutes()
}

// readings are the signals in what a GPU says of itself. What it did not tell is in none of them. mostLinks is how many NVLinks it had
// at its best.
func readings(v node.Vitals, before earlier, at time.Duration, mostLinks int, t Thresholds) (all []Reading) {
	add := func(s Signal, bad bool, format string, a ...any) {
		r := Reading{Signal: s, Bad: bad}
		if bad {
			r.Value = fmt.Sprintf(format, a...)
		}
		all = append(all, r)
	}
	add(SignalLost, v.Lost, "NVML: GPU is lost")
	if v.Lost { // the rest was not read
		return all
	}
	if v.Told.Has(node.ToldRecovery) {
		all = append(all, Reading{Signal: SignalRecovery, Bad: v.Recovery != node.RecoveryNone, Value: v.Recovery.String(), Action: v.Recovery})
	}
	if v.Told.Has(node.ToldRemap) {
		add(SignalRemapFail, v.RemapFailure, "row remap failed")
		add(SignalRemapWait, v.RemapPending, "row remap pending")
	}
	if v.Told.Has(node.ToldSRAM) {
		add(SignalSRAM, v.SRAMThreshold, "threshold exceeded")
	}
	if v.Told.Has(node.ToldECC) {
		add(SignalECC, v.Uncorrectable > 0, "%d uncorrectable", v.Uncorrectable)
	}
	if mostLinks > 0 {
		add(SignalNVLink, v.NVLinksUp < mostLinks, "%d of %d up", v.NVLinksUp, mostLinks)
	}
	if v.Link.Width > 0 && v.Link.MaxWidth > 0 {
		add(SignalPCIeWidth, v.Link.Width < v.Link.MaxWidth, "x%d of x%d", v.Link.Width, v.Link.MaxWidth)
		if int(v.Utilization) >= t.BusyPercent { // an idle link rests
			add(SignalPCIeSpeed, v.Link.Gen < v.Link.MaxGen, "generation %d of %d", v.Link.Gen, v.Link.MaxGen)
		}
	}
	if v.Told.Has(node.ToldReplays) && before.ok && before.vitals.Told.Has(node.ToldReplays) {
		rate := perMinute(before.vitals.Replays, v.Replays, at-before.at)
		add(SignalPCIeReplay, rate > t.PCIeReplays, "more than %.0f replays a minute", t.PCIeReplays)
	}
	if v.Told.Has(node.ToldThrottle) {
		thermal := v.Throttle & (node.ThrottleThermalHW | node.ThrottleThermalSW)
		add(SignalThermal, thermal != 0, "%s", thermal)
		add(SignalPower, v.Throttle&node.ThrottlePowerBrake != 0, "%s", node.ThrottlePowerBrake)
	}
	return all
}

// portReadings are the signals of a network port. One that was never up is not connected, and nothing is wrong with it.
func portReadings(p, before source.Port, over time.Duration, wasUp bool, t Thresholds) (all []Reading) {
	if wasUp {
		all = append(all, Reading{Signal: SignalPort, Bad: p.State != portActive, Value: p.State})
	}
	worst, name := 0.0, ""
	for counter, n := range p.Counters {
		if old, ok := before.Counters[counter]; ok {
			if rate := perMinute(old, n, over); rate > worst {
				worst, name = rate, counter
			}
		}
	}
	return append(all, Reading{Signal: SignalPortErrors, Bad: worst > t.PortErrors, Value: name})
}

const portActive = "ACTIVE"

func diskReadings(d source.Disk) []Reading {
	return []Reading{{Signal: SignalDisk, Bad: d.State == "dead" || d.State == "deleting", Value: d.State}}
}
