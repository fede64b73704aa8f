package monitor

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/monitor/xid"
)

// Every profile has an answer to everything that can come, and every signal needs more than one bad sample.
func TestProfilesAreWhole(t *testing.T) {
	for name, p := range Profiles() {
		if p.Name != name || p.Means == "" || p.Clear < 1 || len(p.Damp) == 0 {
			t.Errorf("%s: %+v", name, p)
		}
		for _, a := range xid.Actions {
			if _, ok := p.Actions[a]; !ok {
				t.Errorf("%s: no level for the action %q", name, a)
			}
		}
		for s, r := range p.Signals {
			if r.Confirm < 2 || r.Means == "" || r.Level == Healthy {
				t.Errorf("%s: signal %s: %+v", name, s, r)
			}
		}
		for code := range p.Codes {
			if _, ok := xid.Lookup(code); !ok {
				t.Errorf("%s: code %d is not in the catalogue", name, code)
			}
		}
		for _, r := range p.Repeats {
			if r.Tenants < 2 {
				t.Errorf("%s: one tenant alone makes a pattern of Xid %d: one that crashes in a loop would mark the card", name, r.Code)
			}
		}
		if p.Signals[SignalHang].Level != Suspect {
			t.Errorf("%s: a hang is more than suspected", name)
		}
		if p.recovery(99) != Hold {
			t.Errorf("%s: an unknown recovery action is %s, want hold: never ignored, and never moves what runs", name, p.recovery(99))
		}
	}
}

func TestReactions(t *testing.T) {
	for _, tt := range []struct {
		code                         int
		nvidia, conservative, shared Level
	}{
		{13, Healthy, Healthy, Healthy}, {31, Healthy, Healthy, Healthy}, {43, Healthy, Healthy, Healthy}, {45, Healthy, Healthy, Healthy},
		{48, Reset, Reset, Reset}, {54, Replace, Replace, Replace}, {63, Healthy, Reset, Healthy}, {64, Reset, Reset, Reset},
		{74, Reset, Reset, Reset}, {79, Reboot, Reboot, Reboot}, {94, Healthy, Reset, Healthy}, {95, Reset, Reset, Reset},
		{109, Reset, Reset, Healthy}, {119, Reset, Reset, Reset}, {149, Degraded, Hold, Degraded}, {151, Reboot, Reboot, Reboot},
		{154, Healthy, Healthy, Healthy}, {165, Replace, Replace, Replace}, {171, Degraded, Reset, Degraded}, {500, Healthy, Healthy, Healthy},
	} {
		for name, want := range map[string]Level{"nvidia": tt.nvidia, "conservative": tt.conservative, "shared": tt.shared} {
			if got := Profiles()[name].Level(tt.code, xid.None); got != want {
				t.Errorf("Xid %d under %s: %s, want %s", tt.code, name, got, want)
			}
		}
	}
	if got := Profiles()["nvidia"].Level(149, xid.ResetGPU); got != Reset {
		t.Errorf("an NVLink error whose registers ask for a reset: %s", got)
	}
	if got := Profiles()["nvidia"].Level(149, xid.Ignore); got != Healthy {
		t.Errorf("an NVLink error whose registers ask for nothing: %s", got)
	}
}

func TestUnknownProfile(t *testing.T) {
	_, err := FindProfile("lenient")
	if err == nil || !strings.Contains(err.Error(), `"lenient"`) || !strings.Contains(err.Error(), "conservative, nvidia, shared") {
		t.Error(err)
	}
}

// The step under one condition can be left again: no state is a trap.
func TestEveryConditionHasAnExit(t *testing.T) {
	p := Profiles()["nvidia"]
	signals := slices.Sorted(maps.Keys(p.Signals))
	facts := map[string]Fact{"recovery": {Kind: KindRecovery, Recovery: node.RecoveryReset}, "switch": {Kind: KindSwitch, Xid: Xid{Code: 20034}}}
	for _, e := range xid.All() {
		facts[xidKey(e.Code)] = Fact{Kind: KindXid, Xid: Xid{Code: e.Code}}
	}
	for _, s := range signals {
		facts[string(s)] = Fact{Kind: KindSample, Signals: []Reading{{Signal: s, Bad: true, Value: "bad", Action: node.RecoveryReset}}}
	}
	for name, f := range facts {
		d := newDevice(p)
		d.pass(hour)
		for range 10 {
			d.take(f)
			d.pass(minute)
		}
		sticky := false
		for _, c := range d.Conditions {
			sticky = sticky || c.Sticky
		}
		for range 20 {
			d.good(signals...)
			d.pass(minute)
		}
		if v := d.verdict(ModeHold); !sticky && (v.Level != Healthy || v.Health != HealthGood || len(v.Taints) > 0) {
			t.Errorf("%s: after twenty good readings still %s: %s", name, v.Level, v.Reason)
		} else if sticky && v.Level == Healthy {
			t.Errorf("%s: a sticky condition went by itself", name)
		}
		d.take(Fact{Kind: KindRelease, Reason: "test"})
		if v := d.verdict(ModeHold); v.Level != Healthy || v.Refuse != "" {
			t.Errorf("%s: after a release still %s", name, v.Level)
		}
	}
}
