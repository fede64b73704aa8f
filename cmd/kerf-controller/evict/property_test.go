package evict

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"
)

// gone is a pod that went, as the cluster has seen it.
type gone struct {
	at   time.Time
	node string
}

// world is a cluster whose devices break and whose pods are made again, and a controller that is killed at any line.
type world struct {
	*testing.T
	random *rand.Rand
	policy Policy
	now    time.Time

	broken  map[DeviceID]Device
	pods    []Pod
	history []byte // as it is kept
	made    int
	until   time.Time // the last act: no round begins before the one before it has ended
	went    []gone
}

const worldNodes, worldDevices = 12, 4

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{T: t, random: rand.New(rand.NewPCG(seed, 1)), now: start, broken: make(map[DeviceID]Device)}
	w.policy = policy(func(p *Policy) {
		p.Mode = Modes[1+w.random.IntN(3)]
		p.Pods, p.Nodes, p.NodesPercent = 1+w.random.IntN(6), 1+w.random.IntN(5), 5+w.random.IntN(96)
		p.Per, p.Window = time.Duration(10+w.random.IntN(100))*time.Second, time.Duration(60+w.random.IntN(300))*time.Second
		p.BreakerNodes, p.Settle = 2+w.random.IntN(6), time.Duration(w.random.IntN(20))*time.Second
		if w.random.IntN(2) == 0 {
			p.ForceAfter = time.Minute
		}
	})
	w.history, _ = json.Marshal(History{}) // it can be
	for range 30 {
		w.make("")
	}
	return w
}

// make starts a pod, of a gang or alone.
func (w *world) make(gang string) {
	w.made++
	if gang == "" && w.random.IntN(3) == 0 {
		gang = fmt.Sprintf("job-%d", w.random.IntN(5))
	}
	w.pods = append(w.pods, pod(fmt.Sprintf("p%d", w.made), gang, w.random.IntN(worldNodes), w.random.IntN(worldDevices)))
}

// happen lets devices break and heal.
func (w *world) happen() {
	w.now = maxTime(w.until, w.now.Add(time.Duration(w.random.IntN(15000))*time.Millisecond))
	for range w.random.IntN(3) {
		d := bad(w.random.IntN(worldNodes), w.random.IntN(worldDevices), fmt.Sprintf("xid=%d", w.random.IntN(4)))
		d.Since = w.now
		w.broken[d.DeviceID] = d
	}
	for id := range w.broken {
		if w.random.IntN(8) == 0 {
			delete(w.broken, id)
		}
	}
}

func (w *world) cluster() Cluster {
	c := Cluster{Nodes: worldNodes, Pods: slices.Clone(w.pods), Allowed: map[string]int{}}
	for _, d := range w.broken {
		c.Devices = append(c.Devices, d)
	}
	return c
}

// round is one of the controller's. It may be killed before, between and after its acts.
func (w *world) round() {
	var before History
	if err := json.Unmarshal(w.history, &before); err != nil {
		w.Fatal(err)
	}
	h, decisions := Plan(w.cluster(), w.policy, before, w.now)
	if before.Breaker != nil && (h.Breaker == nil || h.Breaker.Cause != before.Breaker.Cause) {
		w.Fatal("the breaker shut by itself")
	}
	w.keep(h)
	for _, d := range decisions {
		if d.Verb == Wait {
			continue
		}
		switch {
		case w.policy.Mode == ModeObserve:
			w.Fatal("observe moves nothing")
		case h.Breaker != nil:
			w.Fatal("the breaker is open")
		}
		for _, p := range d.Pods {
			if w.policy.Mode == ModeEvict && w.random.IntN(20) == 0 {
				return // killed; in a dry run what was asked is there still, and asking again costs nothing
			}
			w.act(&h, p)
		}
	}
	w.keep(h)
}

func (w *world) keep(h History) {
	var err error
	if w.history, err = json.Marshal(h); err != nil {
		w.Fatal(err)
	}
}

// act asks a pod to go, some time after it was decided.
func (w *world) act(h *History, p Pod) {
	if w.random.IntN(6) == 0 {
		h.Refused = orEmpty(h.Refused)
		h.Refused[p.UID] = w.now.Add(w.policy.RetryAfter)
		return
	}
	at := w.now.Add(time.Duration(w.random.IntN(int(actWithin))))
	h.done(p.UID)
	w.went, w.until = append(w.went, gone{at, p.Node}), maxTime(w.until, at)
	if w.policy.Mode == ModeEvict {
		w.pods = slices.DeleteFunc(w.pods, func(have Pod) bool { return have.UID == p.UID })
		w.make(p.Gang)
	}
}

// within holds every stretch of time to the budgets.
func (w *world) within() {
	slices.SortFunc(w.went, func(a, b gone) int { return a.at.Compare(b.at) })
	for i, first := range w.went {
		pods, nodes := 0, map[string]bool{}
		for _, g := range w.went[i:] {
			if g.at.Sub(first.at) < w.policy.Per {
				pods++
			}
			if g.at.Sub(first.at) < w.policy.Window {
				nodes[g.node] = true
			}
		}
		if pods > w.policy.Pods || len(nodes) > w.policy.nodes(worldNodes) {
			w.Fatalf("from %s on: %d pods within %s, %d nodes within %s; the budgets are %d and %d", first.at, pods, w.policy.Per, len(nodes), w.policy.Window,
				w.policy.Pods, w.policy.nodes(worldNodes))
		}
	}
}

// TestBudgetsHold: whatever breaks, whoever is killed, no stretch of time sees more go than the budgets allow.
func TestBudgetsHold(t *testing.T) {
	worlds := 300
	if os.Getenv("KERF_SOAK") != "" {
		worlds = 10000
	}
	moved, opened := 0, 0
	for seed := range worlds {
		w := newWorld(t, uint64(seed))
		for range 60 {
			w.happen()
			w.round()
			if w.random.IntN(25) == 0 {
				var h History
				if err := json.Unmarshal(w.history, &h); err != nil {
					t.Fatal(err)
				}
				if h.Breaker != nil {
					opened++
				}
				w.keep(h.Reset())
			}
		}
		w.within()
		moved += len(w.went)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
	if moved < worlds || opened == 0 {
		t.Errorf("%d pods moved, %d breakers were reset: these worlds show nothing", moved, opened)
	}
}

// TestGangsMoveWhole: with nobody killed and nothing refused, each gang either goes with all its pods or not at all.
func TestGangsMoveWhole(t *testing.T) {
	whole := 0
	for seed := range uint64(300) {
		w := newWorld(t, seed)
		w.policy.Mode = ModeEvict
		w.happen()
		size := map[string]int{}
		for _, p := range w.pods {
			size[p.gang()]++
		}
		_, decisions := Plan(w.cluster(), w.policy, History{}, w.now.Add(time.Minute))
		for _, d := range decisions {
			if len(d.Pods) != size[d.Gang] {
				t.Fatalf("seed %d: %s: %d of %d pods", seed, d.Gang, len(d.Pods), size[d.Gang])
			}
			if d.Verb == Evict && len(d.Pods) > 1 {
				whole++
			}
		}
	}
	if whole == 0 {
		t.Error("no gang moved: this shows nothing")
	}
}

func maxTime(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
