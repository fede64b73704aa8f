package monitor

import (
	"encoding/json"
	"time"

	"github.com/kerf-gpu/kerf/internal/node"
)

const (
	minute = time.Minute
	hour   = time.Hour
)

// device is one device's state under test, with clocks that stand still until they are moved.
type device struct {
	State
	policy  Profile
	now     Moment
	notices []Notice
}

func newDevice(p Profile) *device {
	return &device{State: State{}.clone(), policy: p, now: Moment{0, time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}}
}

func (d *device) pass(t time.Duration) { d.now.Boot, d.now.Wall = d.now.Boot+t, d.now.Wall.Add(t) }

func (d *device) take(f Fact) []Notice {
	var notices []Notice
	d.State, notices = Step(d.policy, d.State, f, d.now)
	d.notices = append(d.notices, notices...)
	return notices
}

// allSignals is all that a healthy card tells in a reading.
var allSignals = []Signal{SignalLost, SignalRecovery, SignalRemapFail, SignalRemapWait, SignalSRAM, SignalECC, SignalNVLink, SignalPCIeWidth, SignalPCIeReplay, SignalThermal, SignalPower}

func (d *device) good(signals ...Signal) {
	if len(signals) == 0 {
		signals = allSignals
	}
	f := Fact{Kind: KindSample}
	for _, s := range signals {
		f.Signals = append(f.Signals, Reading{Signal: s})
	}
	d.take(f)
}

// bad is a reading in which one signal is bad, and the others are good.
func (d *device) bad(signal Signal, value string) {
	f := Fact{Kind: KindSample}
	for _, s := range allSignals {
		r := Reading{Signal: s}
		if s == signal {
			r.Bad, r.Value, r.Action = true, value, node.RecoveryReset
		}
		f.Signals = append(f.Signals, r)
	}
	d.take(f)
}

func (d *device) verdict(mode Mode) Verdict { return d.State.Verdict(d.policy, mode) }

// restart is kerfd's: what is on disk survives, and nothing else.
func (d *device) restart(sameBoot bool) {
	text, err := json.Marshal(d.State)
	if err != nil {
		panic(err)
	}
	var read State
	if err := json.Unmarshal(text, &read); err != nil {
		panic(err)
	}
	d.State = Resume(read, sameBoot)
	if !sameBoot {
		d.now.Boot = 0
	}
}

func (d *device) xid(code int) []Notice { return d.take(Fact{Kind: KindXid, Xid: Xid{Code: code}}) }
