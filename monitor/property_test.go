package monitor

import (
	"math/rand/v2"
	"testing"
	"time"
)

// noise is what may happen to a device that nothing is wrong with: readings, a single bad one among them, a source that dies, restarts of
// kerfd, of the driver and of the machine, and clocks that jump. lastBad is the signal that was bad in the reading before.
func noise(d *device, rng *rand.Rand, lastBad *Signal) {
	previous := *lastBad
	*lastBad = ""
	switch rng.IntN(10) {
	case 0, 1, 2:
		d.good()
	case 3, 4:
		signal := allSignals[rng.IntN(len(allSignals))]
		if signal == previous {
			d.good()
			return
		}
		d.bad(signal, "noise")
		*lastBad = signal
	case 5:
		for range 1 + rng.IntN(40) {
			d.take(Fact{Kind: KindSilence, Reason: "no answer"})
			d.pass(15 * time.Second)
		}
	case 6:
		d.restart(rng.IntN(4) > 0)
		if rng.IntN(2) == 0 {
			d.take(Fact{Kind: KindReplayed})
		}
	case 7:
		*lastBad = previous // a clock is no reading
		jump := time.Duration(rng.Int64N(int64(2000*hour))) - 1000*hour
		d.now.Wall = d.now.Wall.Add(jump)
		if rng.IntN(4) == 0 { // not even the kernel's own clock is trusted
			d.now.Boot += jump / 1000
		}
	case 8:
		d.take(Fact{Kind: KindReload})
	case 9: // others' ends, and what the link put right
		*lastBad = previous // likewise
		kind := []HostKind{HostOOM, HostCrash, HostPCIe}[rng.IntN(3)]
		d.take(Fact{Kind: KindHost, Host: HostFact{Kind: kind, Severity: SeverityCorrected, PID: 7, Tenant: "pod a/b (c)"}})
	}
	d.pass(time.Duration(rng.Int64N(int64(minute))))
}

const sequences = 100_000

// Whatever noise there is, nothing is held or marked, in the strictest profile and mode.
func TestNoiseNeverTaints(t *testing.T) {
	p := Profiles()["conservative"]
	rng := rand.New(rand.NewPCG(7, 9))
	for n := range sequences {
		d := newDevice(p)
		var lastBad Signal
		for step := range 12 {
			noise(d, rng, &lastBad)
			v := d.verdict(ModeEvict)
			for _, taint := range v.Taints {
				if taint.Key != TaintUnmonitored || taint.Effect != EffectNone {
					t.Fatalf("sequence %d, step %d: taint %+v (%s)", n, step, taint, v.Reason)
				}
			}
			if v.Health == HealthBad || v.Refuse != "" || v.Level != Healthy {
				t.Fatalf("sequence %d, step %d: %s, level %s, refused %q", n, step, v.Health, v.Level, v.Refuse)
			}
		}
	}
}

// A fault that is there is not forgotten by noise either: while the driver asks for a reset, no sequence lifts the hold.
func TestNoiseNeverLifts(t *testing.T) {
	p := Profiles()["nvidia"]
	rng := rand.New(rand.NewPCG(3, 5))
	for n := range sequences / 10 {
		d := newDevice(p)
		d.pass(hour)
		d.xid(48)
		for step := range 12 {
			switch rng.IntN(5) {
			case 0:
				d.take(Fact{Kind: KindSilence, Reason: "no answer"})
			case 1:
				d.restart(true)
			case 2:
				d.now.Wall = d.now.Wall.Add(time.Duration(rng.Int64N(int64(1000*hour))) - 500*hour)
			case 3:
				d.bad(SignalRecovery, "gpu reset")
			case 4:
				d.take(Fact{Kind: KindReplayed})
			}
			d.pass(time.Duration(rng.Int64N(int64(hour))))
			if v := d.verdict(ModeHold); v.Level < Reset || v.Refuse == "" {
				t.Fatalf("sequence %d, step %d: level %s, refused %q", n, step, v.Level, v.Refuse)
			}
		}
	}
}

// Step leaves the state that it was given as it was: a caller may keep it.
func TestStepIsPure(t *testing.T) {
	p := Profiles()["conservative"]
	rng := rand.New(rand.NewPCG(1, 2))
	d := newDevice(p)
	for range 2000 {
		before := d.State
		kept := before.clone()
		var lastBad Signal
		noise(d, rng, &lastBad)
		d.xid(rng.IntN(180))
		if !sameConditions(before.Conditions, kept.Conditions) || len(before.Xids) != len(kept.Xids) || len(before.History) != len(kept.History) {
			t.Fatal("an earlier state changed")
		}
	}
}
