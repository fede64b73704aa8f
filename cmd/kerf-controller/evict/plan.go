package evict

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Cluster is what a plan is made of.
type Cluster struct {
	Devices []Device       // that ask to be drained
	Nodes   int            // that have devices of ours
	Pods    []Pod          // that have devices, or may be of a gang with one that has
	Allowed map[string]int // by the PodDisruptionBudgets: how many of their pods may go now
}

// Device is one that asks to be drained.
type Device struct {
	DeviceID
	Node   string
	Causes []string // other taints that keep pods away, as key=value
	Level  string   // what is to be done to it then: reset, reboot, replace
	Since  time.Time
}

// DeviceID names a device of the cluster.
type DeviceID struct{ Driver, Pool, Name string }

func (d DeviceID) String() string { return d.Pool + "/" + d.Name }

// Pod is one that may be moved.
type Pod struct {
	Namespace, Name, UID, Node string

	Gang    string // whole gangs are moved; empty: it is its own
	Devices []DeviceID
	Ending  bool     // it goes anyway
	Fixed   string   // why it is never moved; empty: it may be
	PDBs    []string // that count it
}

func (p Pod) String() string { return p.Namespace + "/" + p.Name }

func (p Pod) gang() string { return cmp.Or(p.Gang, "pod "+p.String()+" "+p.UID) }

// Verb is what is done about a gang.
type Verb string

// The verbs.
const (
	Evict Verb = "evict"
	Force Verb = "force" // its devices get the effect NoExecute
	Wait  Verb = "wait"
)

// Why is what a gang waits for, in a word for metrics.
type Why string

// What there is to wait for.
const (
	WhyObserve Why = "observe"
	WhyFixed   Why = "fixed"
	WhyBreaker Why = "breaker"
	WhySettle  Why = "settle"
	WhyMoved   Why = "moved"
	WhyPDB     Why = "pdb"
	WhyRate    Why = "rate"
	WhyNodes   Why = "nodes"
	WhyGang    Why = "gang"
)

// Whys is all of them.
var Whys = []Why{WhyObserve, WhyFixed, WhyBreaker, WhySettle, WhyMoved, WhyPDB, WhyRate, WhyNodes, WhyGang}

// Decision is what is done about a gang now, or what it waits for.
type Decision struct {
	Verb    Verb
	Why     Why    // of a wait
	Reason  string // in words
	Gang    string
	Pods    []Pod // that go now, or wait
	Devices []Device
	Again   time.Time // when a wait may be over by itself; zero: not by time
}

// group is a gang with what it must leave.
type group struct {
	gang    string
	pods    []Pod // that are there
	devices []Device
	owed    bool // the rest of one that has begun to move
}

// Plan decides about every gang that has pods on a device that is to be drained. The history that it returns must be kept before any
// decision is carried out; in it, all that is to go now is on record.
func Plan(c Cluster, p Policy, before History, now time.Time) (History, []Decision) {
	h := before.clone()
	h.settle(c, p, now)
	h.see(c, p, now)
	decisions := []Decision{}
	for _, g := range groups(c, h) {
		d := h.decide(g, c, p, now)
		d.Gang, d.Pods, d.Devices = g.gang, g.pods, g.devices
		if d.Verb == Force {
			d.Pods = on(d.Devices, c.Pods)
		}
		if d.Verb != Wait {
			h.charge(d, now)
		}
		decisions = append(decisions, d)
	}
	return h, decisions
}

// groups are the gangs that are to move, those first that have begun, then by how long their devices have asked.
func groups(c Cluster, h History) (all []group) {
	drained, members, begun := make(map[DeviceID]Device), make(map[string][]Pod), make(map[string]bool)
	for _, d := range c.Devices {
		drained[d.DeviceID] = d
	}
	for _, pod := range c.Pods {
		if !pod.Ending {
			members[pod.gang()] = append(members[pod.gang()], pod)
		}
	}
	for _, m := range h.Moves {
		begun[m.Gang] = true
	}
	for gang, pods := range members {
		g := group{gang: gang, pods: pods, devices: asking(pods, drained)}
		if begun[gang] { // those that have replaced the moved are where they should be
			if owed := slices.DeleteFunc(slices.Clone(pods), func(p Pod) bool { return h.Owed[p.UID] != gang }); len(owed) > 0 {
				g.pods, g.owed = owed, true
			}
		}
		if len(g.devices) > 0 || g.owed {
			slices.SortFunc(g.pods, func(a, b Pod) int { return cmp.Or(cmp.Compare(a.String(), b.String()), cmp.Compare(a.UID, b.UID)) })
			all = append(all, g)
		}
	}
	slices.SortFunc(all, func(a, b group) int {
		return cmp.Or(-cmp.Compare(number(a.owed), number(b.owed)), a.since().Compare(b.since()), cmp.Compare(a.gang, b.gang))
	})
	return all
}

// asking are the devices of these pods that ask to be drained, the first to ask first.
func asking(pods []Pod, drained map[DeviceID]Device) (devices []Device) {
	seen := make(map[DeviceID]bool)
	for _, pod := range pods {
		for _, id := range pod.Devices {
			if d, ok := drained[id]; ok && !seen[id] {
				seen[id] = true
				devices = append(devices, d)
			}
		}
	}
	slices.SortFunc(devices, func(a, b Device) int { return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.String(), b.String())) })
	return devices
}

func number(b bool) int {
	if b {
		return 1
	}
	return 0
}

// since is when the first of its devices asked.
func (g group) since() time.Time {
	if len(g.devices) == 0 {
		return time.Time{}
	}
	return g.devices[0].Since
}

// decide is about one gang.
func (h *History) decide(g group, c Cluster, p Policy, now time.Time) Decision {
	wait := func(why Why, again time.Time, format string, args ...any) Decision {
		return Decision{Verb: Wait, Why: why, Again: again, Reason: fmt.Sprintf(format, args...)}
	}
	for _, pod := range g.pods {
		if pod.Fixed != "" {
			return wait(WhyFixed, time.Time{}, "pod %s stays: %s", pod, pod.Fixed)
		}
	}
	if p.Mode == ModeObserve || p.Mode == ModeOff {
		return wait(WhyObserve, time.Time{}, "evictions are observed only; set the mode to evict to have it moved")
	}
	if b := h.Breaker; b != nil {
		return wait(WhyBreaker, time.Time{}, "the breaker is open: %s came to %d nodes at once; a person must reset it", b.Cause, len(b.Nodes))
	}
	if h.moved(g) {
		return wait(WhyMoved, time.Time{}, "it was asked to go, and has not gone yet")
	}
	if ready := g.since().Add(p.Settle); !g.owed && now.Before(ready) {
		return wait(WhySettle, ready, "its device asked %s ago, and others may too: nothing is moved before %s", now.Sub(g.since()).Round(time.Millisecond), p.Settle)
	}
	verb, why := h.pdbs(g, c, p, now)
	if verb == Wait {
		return why
	}
	pods := g.pods
	if verb == Force {
		pods = on(g.devices, c.Pods)
	}
	if d := h.over(pods, c, p, now); d.Why != "" {
		return d
	}
	return Decision{Verb: verb, Reason: because(g)}
}

func because(g group) string {
	var text []string
	for _, d := range g.devices {
		text = append(text, fmt.Sprintf("%s (%s) is to be drained for a %s", d, strings.Join(d.Causes, ", "), cmp.Or(d.Level, "repair")))
	}
	if len(text) == 0 {
		return "others of its gang were moved"
	}
	return strings.Join(text, "; ")
}

// moved reports whether all of it was asked already.
func (h *History) moved(g group) bool {
	for _, pod := range g.pods {
		if !slices.ContainsFunc(h.Moves, func(m Move) bool { return m.UID == pod.UID }) {
			return false
		}
	}
	return true
}

// pdbs says whether PodDisruptionBudgets let it go. A pod alone is asked for: the API server knows best. Of a gang all must be able to go.
func (h *History) pdbs(g group, c Cluster, p Policy, now time.Time) (Verb, Decision) {
	var again time.Time
	for _, pod := range g.pods {
		if at, ok := h.Refused[pod.UID]; ok && at.After(again) {
			again = at
		}
	}
	if !again.IsZero() && p.ForceAfter > 0 && len(g.devices) > 0 && now.Sub(g.since()) >= p.ForceAfter {
		return Force, Decision{}
	}
	if now.Before(again) {
		return Wait, Decision{Verb: Wait, Why: WhyPDB, Again: again, Reason: fmt.Sprintf("a PodDisruptionBudget refused; it is asked again in %s", again.Sub(now).Round(time.Second))}
	}
	if len(g.pods) == 1 {
		return Evict, Decision{}
	}
	of := make(map[string]int)
	for _, pod := range g.pods {
		for _, name := range pod.PDBs {
			of[name]++
		}
	}
	for _, name := range slices.Sorted(maps.Keys(of)) {
		if of[name] > c.Allowed[name] {
			return Wait, Decision{Verb: Wait, Why: WhyPDB, Reason: fmt.Sprintf("its %d pods go together, and PodDisruptionBudget %s lets %d go now", of[name], name, c.Allowed[name])}
		}
	}
	return Evict, Decision{}
}

// over says which budget would be exceeded if these pods went now; the zero Decision: none.
func (h *History) over(pods []Pod, c Cluster, p Policy, now time.Time) (d Decision) {
	d.Verb = Wait
	spent := h.spent(p, now)
	nodes := maps.Clone(spent.Nodes)
	for _, pod := range pods {
		nodes[pod.Node] = true
	}
	its := len(nodes) - len(spent.Nodes)
	limit := p.nodes(c.Nodes)
	switch {
	case len(pods) > p.Pods || its > limit:
		d.Why, d.Reason = WhyGang, fmt.Sprintf("its %d pods on %d further nodes go together, and the budget is %d pods and %d nodes: it never fits; raise the budget, or move it by hand",
			len(pods), its, p.Pods, limit)
	case spent.Pods+len(pods) > p.Pods:
		d.Why, d.Reason = WhyRate, fmt.Sprintf("%d of %d pods were moved within %s, and this is %d more", spent.Pods, p.Pods, p.Per, len(pods))
		d.Again = h.after(p.Per, now)
	case its > 0 && len(nodes) > limit:
		d.Why, d.Reason = WhyNodes, fmt.Sprintf("pods of %d nodes were moved within %s, and %d may be (%d, and %d %% of %d)", len(spent.Nodes), p.Window, limit, p.Nodes, p.NodesPercent, c.Nodes)
		d.Again = h.after(p.Window, now)
	}
	return d
}

// after is when the oldest move that counts does no more.
func (h *History) after(window time.Duration, now time.Time) time.Time {
	for _, m := range h.Moves {
		if end := m.At.Add(window + actWithin); end.After(now) {
			return end
		}
	}
	return now
}

// charge puts on record what is to go.
func (h *History) charge(d Decision, now time.Time) {
	causes := []string{}
	for _, device := range d.Devices {
		for _, cause := range device.Causes {
			if !slices.Contains(causes, cause) {
				causes = append(causes, cause)
			}
		}
	}
	for _, pod := range d.Pods {
		h.Moves = append(h.Moves, Move{UID: pod.UID, Namespace: pod.Namespace, Name: pod.Name, Gang: pod.gang(), Node: pod.Node, Causes: causes, At: now})
		delete(h.Owed, pod.UID)
	}
}

// on are the pods that have one of these devices.
func on(devices []Device, pods []Pod) (some []Pod) {
	for _, pod := range pods {
		if !pod.Ending && slices.ContainsFunc(devices, func(d Device) bool { return slices.Contains(pod.Devices, d.DeviceID) }) {
			some = append(some, pod)
		}
	}
	return some
}

// since is when the first of its devices asked.
func (d Decision) since() time.Time { return group{devices: d.Devices}.since() }
