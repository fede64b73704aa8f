package monitor

import (
	"testing"
	"time"

	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/monitor/source"
)

func TestHang(t *testing.T) {
	now := hour
	for _, tt := range []struct {
		name    string
		waits   waits
		vitals  node.Vitals
		bad, ok bool
	}{
		{"nobody looks at calls", waits{}, node.Vitals{}, false, false},
		{"somebody looked long ago", waits{2 * minute, now - minute}, node.Vitals{}, false, false},
		{"the card is lost", waits{2 * minute, now}, node.Vitals{Fault: node.Fault{Lost: true}}, false, false},
		{"nobody waits", waits{0, now}, node.Vitals{}, false, true},
		{"waits, card busy", waits{2 * minute, now}, node.Vitals{Utilization: 100}, false, true},
		{"waits, card hardly busy", waits{2 * minute, now}, node.Vitals{Utilization: 1}, false, true},
		{"waits a little, card idle", waits{minute - 1, now}, node.Vitals{}, false, true},
		{"waits, card idle", waits{minute, now}, node.Vitals{}, true, true},
	} {
		r, ok := hang(tt.waits, tt.vitals, now)
		if ok != tt.ok || r.Bad != tt.bad || tt.bad != (r.Value != "") {
			t.Errorf("%s: %+v, told %v", tt.name, r, ok)
		}
	}
}

// A hang is suspected after it has lasted, told, taints and holds nothing in any profile, and goes once work moves or nobody waits.
func TestHangIsOnlySuspected(t *testing.T) {
	for name, p := range Profiles() {
		if level := p.Signals[SignalHang].Level; level > Suspect {
			t.Errorf("profile %s: a hang is %s", name, level)
		}
	}
	m := newMachine(t, "conservative", ModeEvict)
	look := func(waited time.Duration, utilization int) Verdict {
		m.Waiting(uuid(0), waited)
		m.reading(source.Reading{GPU: uuid(0), Vitals: node.Vitals{Utilization: node.Percent(utilization)}})
		m.pass(15 * time.Second)
		v, _ := m.Verdict(uuid(0))
		return v
	}
	for range 3 {
		if v := look(10*minute, 0); v.Level != Healthy {
			t.Fatalf("too soon: %+v", v)
		}
	}
	var v Verdict
	for range 6 {
		v = look(10*minute, 0)
	}
	if v.Level != Suspect || v.Health != HealthGood || len(v.Taints) != 0 || v.Refuse != "" {
		t.Fatalf("hanging: %+v", v)
	}
	for range 10 {
		v = look(10*minute, 50)
	}
	if v.Level != Healthy {
		t.Errorf("the card works again: %+v", v)
	}
}
