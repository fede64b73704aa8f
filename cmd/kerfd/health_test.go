package main

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/dynamic-resource-allocation/kubeletplugin"

	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/monitor"
)

// knows is a monitor with one verdict.
type knows struct{ verdict monitor.Verdict }

func (k knows) Verdict(node.UUID) (monitor.Verdict, bool) { return k.verdict, true }

// One reading of a fault is no fault once a monitor watches; before that, and while it cannot tell, the card's own word counts.
func TestJudged(t *testing.T) {
	lost := node.GPU{UUID: node.UUID{1}, Fault: node.Fault{Lost: true}}
	for _, tt := range []struct {
		name     string
		verdicts verdicts
		lost     bool
		refuse   string
	}{
		{"nobody watches", nil, true, ""},
		{"not read yet", knows{monitor.Verdict{Health: monitor.HealthUnknown}}, true, ""},
		{"one bad reading", knows{monitor.Verdict{Health: monitor.HealthGood}}, false, ""},
		{"established", knows{monitor.Verdict{Health: monitor.HealthBad, Refuse: "lost"}}, false, "lost"},
		{"from before a restart", knows{monitor.Verdict{Health: monitor.HealthUnknown, Refuse: "Xid 79"}}, true, "Xid 79"},
	} {
		h := &hardware{verdicts: tt.verdicts}
		if g, refuse := h.judged(lost); g.Fault.Lost != tt.lost || refuse != tt.refuse {
			t.Errorf("%s: lost %v, refused %q", tt.name, g.Fault.Lost, refuse)
		}
	}
}

func TestJudge(t *testing.T) {
	h, ok := judge{knows{monitor.Verdict{Health: monitor.HealthBad, Reason: "Xid 79", Clears: "a reboot",
		Taints: []monitor.Taint{{Key: "kerf.dev/xid", Value: "79", Effect: monitor.EffectNoSchedule}}}}}.Health(node.UUID{1})
	if !ok || h.Status != kubeletplugin.HealthStatusUnhealthy || h.Message != "Xid 79; clears with: a reboot" || len(h.Taints) != 1 || h.Taints[0].Effect != "NoSchedule" {
		t.Errorf("%+v", h)
	}
}

func TestHealthEvents(t *testing.T) {
	gpu := monitor.Device{ID: "GPU-1", Index: 3}
	for _, tt := range []struct {
		name                    string
		notice                  monitor.Notice
		kind, about, words, typ string
	}{
		{"fault", monitor.Notice{Kind: monitor.NoticeRaised, Text: "Xid 79"}, "Node", "n1", "GPU 3 (GPU-1): Xid 79", corev1.EventTypeWarning},
		{"cleared", monitor.Notice{Kind: monitor.NoticeCleared, Text: "good"}, "Node", "n1", "good", corev1.EventTypeNormal},
		{"audit", monitor.Notice{Kind: monitor.NoticeReleased, Text: "released by user 0: x"}, "Node", "n1", "released by user 0", corev1.EventTypeNormal},
		{"a pod's own", monitor.Notice{Kind: monitor.NoticeTenant, Code: 31, PID: 7, Tenant: "pod ns/p-1 (main)"}, "Pod", "p-1", "Xid 31 by process 7", corev1.EventTypeWarning},
		{"a pod's process killed", monitor.Notice{Kind: monitor.NoticeOOM, PID: 7, Tenant: "pod ns/p-1 (main)", Text: "no memory"}, "Pod", "p-1", "process 7: no memory", corev1.EventTypeWarning},
		{"a pod's process crashed", monitor.Notice{Kind: monitor.NoticeCrash, PID: 7, Tenant: "pod ns/p-1 (main)", Text: "SIGSEGV"}, "Pod", "p-1", "process 7: SIGSEGV", corev1.EventTypeWarning},
		{"a user's process killed", monitor.Notice{Kind: monitor.NoticeOOM, PID: 7, Tenant: "user 5, 7 x"}, "", "", "", ""},
		{"nobody's", monitor.Notice{Kind: monitor.NoticeTenant, Code: 31}, "", "", "", ""},
		{"noted", monitor.Notice{Kind: monitor.NoticeNoted}, "", "", "", ""},
		{"long", monitor.Notice{Kind: monitor.NoticeRaised, Text: strings.Repeat("x", 5000)}, "Node", "n1", "xxx", corev1.EventTypeWarning},
	} {
		e := healthEvent("n1", gpu, tt.notice, time.Unix(0, 0))
		switch {
		case e == nil && tt.kind == "":
		case e == nil:
			t.Errorf("%s: no Event", tt.name)
		case e.InvolvedObject.Kind != tt.kind || e.InvolvedObject.Name != tt.about || !strings.Contains(e.Message, tt.words) || e.Type != tt.typ || len(e.Message) > 1024:
			t.Errorf("%s: %+v", tt.name, e)
		}
	}
}
