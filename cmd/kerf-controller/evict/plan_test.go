package evict

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func id(node, device int) DeviceID {
	return DeviceID{Driver: "gpu.kerf.dev", Pool: fmt.Sprintf("n%d", node), Name: fmt.Sprintf("gpu-%d", device)}
}

// bad is a device that asks to be drained.
func bad(node, device int, cause string) Device {
	d := id(node, device)
	return Device{DeviceID: d, Node: d.Pool, Causes: []string{cause}, Level: "reboot", Since: start.Add(-time.Minute)}
}

// on a device of a node runs a pod.
func pod(name, gang string, node, device int) Pod {
	return Pod{Namespace: "team", Name: name, UID: "uid-" + name, Node: fmt.Sprintf("n%d", node), Gang: gang, Devices: []DeviceID{id(node, device)}}
}

func policy(change func(*Policy)) Policy {
	p := DefaultPolicy
	p.Mode, p.Pods, p.Nodes, p.NodesPercent = ModeEvict, 2, 2, 100
	if change != nil {
		change(&p)
	}
	return p
}

// told is a plan in words: of each gang, what is done with which pods, or why it waits.
func told(decisions []Decision) string {
	var all []string
	for _, d := range decisions {
		var names []string
		for _, p := range d.Pods {
			names = append(names, p.Name)
		}
		verb := string(d.Verb)
		if d.Verb == Wait {
			verb = string(d.Why)
		}
		all = append(all, verb+" "+strings.Join(names, "+"))
	}
	return strings.Join(all, ", ")
}

func TestPlan(t *testing.T) {
	moved := func(name string, node int, ago time.Duration) Move {
		return Move{UID: "uid-" + name, Name: name, Namespace: "team", Gang: "pod team/" + name + " uid-" + name, Node: fmt.Sprintf("n%d", node),
			Causes: []string{"xid=79"}, At: start.Add(-ago), Done: true}
	}
	for _, tt := range []struct {
		name    string
		devices []Device
		pods    []Pod
		change  func(*Policy)
		history History
		allowed map[string]int
		want    string
	}{
		{name: "nothing asks", pods: []Pod{pod("a", "", 1, 1)}, want: ""},
		{name: "a pod goes, its neighbour stays", devices: []Device{bad(1, 1, "xid=79")}, pods: []Pod{pod("a", "", 1, 1), pod("b", "", 1, 2)}, want: "evict a"},
		{name: "one that goes anyway", devices: []Device{bad(1, 1, "xid=79")}, pods: []Pod{{Name: "a", UID: "a", Devices: []DeviceID{id(1, 1)}, Ending: true}}, want: ""},
		{name: "observe", devices: []Device{bad(1, 1, "xid=79")}, pods: []Pod{pod("a", "", 1, 1)}, change: func(p *Policy) { p.Mode = ModeObserve }, want: "observe a"},
		{name: "dry run decides the same", devices: []Device{bad(1, 1, "xid=79")}, pods: []Pod{pod("a", "", 1, 1)}, change: func(p *Policy) { p.Mode = ModeDryRun }, want: "evict a"},
		{name: "a dry run's pod is asked once", devices: []Device{bad(1, 1, "xid=79")}, pods: []Pod{pod("a", "", 1, 1)}, change: func(p *Policy) { p.Mode = ModeDryRun },
			history: History{Moves: []Move{moved("a", 1, 24*time.Hour)}}, want: "moved a"},
		{name: "too soon", devices: []Device{bad(1, 1, "xid=79")}, pods: []Pod{pod("a", "", 1, 1)}, change: func(p *Policy) { p.Settle = 2 * time.Minute }, want: "settle a"},
		{name: "nobody would make it again", devices: []Device{bad(1, 1, "xid=79")}, pods: []Pod{{Name: "a", UID: "a", Devices: []DeviceID{id(1, 1)}, Fixed: "bare"}}, want: "fixed a"},
		{name: "rate", devices: []Device{bad(1, 1, "xid=79")}, pods: []Pod{pod("a", "", 1, 1), pod("b", "", 1, 1), pod("c", "", 1, 1)}, want: "evict a, evict b, rate c"},
		{name: "rate over time", devices: []Device{bad(1, 1, "xid=79")}, pods: []Pod{pod("a", "", 1, 1), pod("b", "", 1, 1)},
			history: History{Moves: []Move{moved("x", 1, 69*time.Second)}}, want: "evict a, rate b"},
		{name: "a move that is past", devices: []Device{bad(1, 1, "xid=79")}, pods: []Pod{pod("a", "", 1, 1), pod("b", "", 1, 1)},
			history: History{Moves: []Move{moved("x", 1, 70*time.Second)}}, want: "evict a, evict b"},
		{name: "nodes", devices: []Device{bad(1, 1, "xid=79"), bad(2, 1, "xid=48"), bad(3, 1, "xid=63")},
			pods: []Pod{pod("a", "", 1, 1), pod("b", "", 2, 1), pod("c", "", 3, 1)}, change: func(p *Policy) { p.Pods = 9 }, want: "evict a, evict b, nodes c"},
		{name: "percent of nodes, one at least", devices: []Device{bad(1, 1, "xid=79"), bad(2, 1, "xid=48")},
			pods: []Pod{pod("a", "", 1, 1), pod("b", "", 2, 1)}, change: func(p *Policy) { p.NodesPercent = 3 }, want: "evict a, nodes b"},
		{name: "a gang goes together", devices: []Device{bad(1, 1, "xid=79")}, pods: []Pod{pod("a", "job", 1, 1), pod("b", "job", 2, 1)}, want: "evict a+b"},
		{name: "a gang that fits later", devices: []Device{bad(1, 1, "xid=79")}, pods: []Pod{pod("a", "job", 1, 1), pod("b", "job", 2, 1)},
			history: History{Moves: []Move{moved("x", 1, time.Second)}}, want: "rate a+b"},
		{name: "a gang that never fits", devices: []Device{bad(1, 1, "xid=79")}, pods: []Pod{pod("a", "job", 1, 1), pod("b", "job", 2, 1), pod("c", "job", 3, 1)}, want: "gang a+b+c"},
		{name: "smaller ones go by", devices: []Device{bad(1, 1, "xid=79")},
			pods: []Pod{pod("a", "job", 1, 1), pod("b", "job", 2, 1), pod("c", "job", 3, 1), pod("d", "", 1, 1)}, want: "gang a+b+c, evict d"},
		{name: "one of a gang is fixed", devices: []Device{bad(1, 1, "xid=79")},
			pods: []Pod{pod("a", "job", 1, 1), {Namespace: "team", Name: "b", UID: "b", Gang: "job", Fixed: "its owner says never"}}, want: "fixed a+b"},
		{name: "a budget of theirs for half of a gang", devices: []Device{bad(1, 1, "xid=79")}, allowed: map[string]int{"team/all": 1},
			pods: []Pod{{Namespace: "team", Name: "a", UID: "a", Node: "n1", Gang: "job", Devices: []DeviceID{id(1, 1)}, PDBs: []string{"team/all"}},
				{Namespace: "team", Name: "b", UID: "b", Node: "n1", Gang: "job", PDBs: []string{"team/all"}}}, want: "pdb a+b"},
		{name: "refused lately", devices: []Device{bad(1, 1, "xid=79")}, pods: []Pod{pod("a", "", 1, 1)},
			history: History{Refused: map[string]time.Time{"uid-a": start.Add(time.Second)}}, want: "pdb a"},
		{name: "refused, and asked again", devices: []Device{bad(1, 1, "xid=79")}, pods: []Pod{pod("a", "", 1, 1)},
			history: History{Refused: map[string]time.Time{"uid-a": start}}, want: "evict a"},
		{name: "refused for too long", devices: []Device{bad(1, 1, "xid=79")}, pods: []Pod{pod("a", "", 1, 1)}, change: func(p *Policy) { p.ForceAfter = time.Minute },
			history: History{Refused: map[string]time.Time{"uid-a": start.Add(time.Second)}}, want: "force a"},
		{name: "a deadline alone forces nothing", devices: []Device{bad(1, 1, "xid=79")}, pods: []Pod{pod("a", "", 1, 1)}, change: func(p *Policy) { p.ForceAfter = time.Second }, want: "evict a"},
		{name: "force takes the device's other pods, and their budget", devices: []Device{bad(1, 1, "xid=79")}, pods: []Pod{pod("a", "", 1, 1), pod("b", "", 1, 1), pod("c", "", 1, 1)},
			change: func(p *Policy) { p.ForceAfter = time.Minute }, history: History{Refused: map[string]time.Time{"uid-a": start.Add(time.Second)}}, want: "gang a, evict b, evict c"},
		{name: "one cause on many nodes", devices: []Device{bad(1, 1, "xid=79"), bad(2, 1, "xid=79"), bad(3, 1, "xid=79")}, change: func(p *Policy) { p.BreakerNodes = 3 },
			pods: []Pod{pod("a", "", 1, 1)}, want: "breaker a"},
		{name: "many of one node are one", devices: []Device{bad(1, 1, "xid=79"), bad(1, 2, "xid=79"), bad(1, 3, "xid=79")}, change: func(p *Policy) { p.BreakerNodes = 3 },
			pods: []Pod{pod("a", "", 1, 1)}, want: "evict a"},
		{name: "other causes", devices: []Device{bad(1, 1, "xid=79"), bad(2, 1, "xid=48"), bad(3, 1, "xid=63")}, change: func(p *Policy) { p.BreakerNodes = 3 },
			pods: []Pod{pod("a", "", 1, 1)}, want: "evict a"},
		{name: "interrupted before it asked: the pod is there, and costs nothing", devices: []Device{bad(1, 1, "xid=79")}, pods: []Pod{pod("a", "", 1, 1), pod("b", "", 1, 1)},
			history: History{Moves: []Move{{UID: "uid-a", Gang: "pod team/a uid-a", Node: "n1", At: start}, {UID: "uid-b", Gang: "pod team/b uid-b", Node: "n1", At: start}}}, want: "evict a, evict b"},
		{name: "interrupted after it asked: the pod is gone, and counts", devices: []Device{bad(1, 1, "xid=79")}, pods: []Pod{pod("c", "", 1, 1)},
			history: History{Moves: []Move{{UID: "uid-a", Node: "n1", At: start}, {UID: "uid-b", Node: "n1", At: start}}}, want: "rate c"},
		{name: "half a gang went: the rest follows, its replacement stays", pods: []Pod{pod("b", "job", 2, 1), pod("a2", "job", 3, 1)},
			history: History{Moves: []Move{{UID: "uid-a", Gang: "job", Node: "n1", At: start, Done: true}}, Owed: map[string]string{"uid-b": "job"}}, want: "evict b"},
		{name: "released before it went", pods: []Pod{pod("a", "", 1, 1)}, history: History{Owed: map[string]string{"uid-a": "pod team/a uid-a"}}, want: ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := policy(tt.change)
			h, decisions := Plan(Cluster{Devices: tt.devices, Nodes: 50, Pods: tt.pods, Allowed: tt.allowed}, p, tt.history, start)
			if got := told(decisions); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			for _, d := range decisions {
				if d.Reason == "" {
					t.Errorf("%s %s: no reason", d.Verb, d.Gang)
				}
			}
			if (h.Breaker != nil) != strings.Contains(tt.want, "breaker") {
				t.Errorf("breaker %v", h.Breaker)
			}
		})
	}
}

// TestBreaker: it opens by what was seen within its time, stays open whatever clears, and after a reset what was known opens it no more.
func TestBreaker(t *testing.T) {
	p := policy(func(p *Policy) { p.BreakerNodes = 3; p.Pods, p.Nodes = 9, 9 })
	at := func(n int, ago time.Duration) Device {
		d := bad(n, 1, "xid=79")
		d.Since = start.Add(-ago)
		return d
	}
	slow := Cluster{Nodes: 9, Devices: []Device{at(1, time.Hour), at(2, 40*time.Minute), at(3, time.Minute)}, Pods: []Pod{pod("a", "", 1, 1)}}
	if h, _ := Plan(slow, p, History{}, start); h.Breaker != nil {
		t.Error("three nodes within an hour opened it; its time is ten minutes")
	}
	first := Cluster{Nodes: 9, Devices: []Device{at(1, time.Minute)}, Pods: []Pod{pod("a", "", 1, 1)}}
	h, decisions := Plan(first, p, History{}, start)
	if told(decisions) != "evict a" {
		t.Fatal(told(decisions))
	}
	all := Cluster{Nodes: 9, Devices: []Device{at(1, time.Minute), at(2, time.Minute), at(3, time.Minute)}, Pods: []Pod{pod("b", "", 2, 1)}}
	h, decisions = Plan(all, p, h, start.Add(time.Second))
	if told(decisions) != "breaker b" || len(h.Breaker.Nodes) != 3 || len(h.Breaker.Undo) != 1 || h.Breaker.Undo[0].Name != "a" {
		t.Fatalf("%s, breaker %+v, want one move to undo", told(decisions), h.Breaker)
	}
	one := Cluster{Nodes: 9, Devices: []Device{at(2, time.Minute)}, Pods: []Pod{pod("b", "", 2, 1)}}
	for i := range 5 {
		h, decisions = Plan(one, p, h, start.Add(time.Duration(i)*time.Hour))
		if told(decisions) != "breaker b" {
			t.Fatalf("hour %d: %s: it must stay open", i, told(decisions))
		}
	}
	h, decisions = Plan(all, p, h.Reset(), start.Add(5*time.Hour))
	if told(decisions) != "evict b" {
		t.Fatalf("after the reset: %s, %+v", told(decisions), h.Breaker)
	}
}

func TestPolicyValidate(t *testing.T) {
	if err := DefaultPolicy.Validate(); err != nil {
		t.Error(err)
	}
	for _, change := range []func(*Policy){
		func(p *Policy) { p.Mode = "now" }, func(p *Policy) { p.Pods = 0 }, func(p *Policy) { p.Nodes = 0 }, func(p *Policy) { p.NodesPercent = 101 },
		func(p *Policy) { p.BreakerNodes = 1 }, func(p *Policy) { p.Per = 0 }, func(p *Policy) { p.Settle = -1 },
	} {
		if p := policy(change); p.Validate() == nil {
			t.Errorf("%+v is taken", p)
		}
	}
}
