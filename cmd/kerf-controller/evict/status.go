package evict

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// maxListed bounds what is listed for people.
const maxListed = 30

// statusText is what people read. It names moments and no ages: it is written when something changes.
func statusText(p Policy, h History, c Cluster, decisions []Decision, now time.Time) string {
	var out strings.Builder
	spent := h.spent(p, now)
	fmt.Fprintf(&out, "mode %s; %d devices of %d nodes ask to be drained\n", p.Mode, len(c.Devices), c.Nodes)
	fmt.Fprintf(&out, "budgets: %d of %d pods within %s, pods of %d of %d nodes within %s\n", spent.Pods, p.Pods, p.Per, len(spent.Nodes), p.nodes(c.Nodes), p.Window)
	if b := h.Breaker; b != nil {
		fmt.Fprintf(&out, "BREAKER OPEN since %s: %s on %d nodes at once; nothing is moved. If the cause is dealt with:\n  kubectl annotate configmap %s %s='who: why'\n",
			b.At.UTC().Format(time.RFC3339), b.Cause, len(b.Nodes), BookName, ResetAnnotation)
	}
	waiting := make(map[Why]int)
	for i, d := range decisions {
		if d.Verb == Wait {
			waiting[d.Why]++
		}
		if i < maxListed {
			fmt.Fprintf(&out, "%s: %s%s: %s\n", d.Gang, d.Verb, suffix(string(d.Why)), stable(d))
		}
	}
	if more := len(decisions) - maxListed; more > 0 {
		fmt.Fprintf(&out, "and %d more\n", more)
	}
	for _, why := range slices.Sorted(maps.Keys(waiting)) {
		fmt.Fprintf(&out, "waiting: %d (%s)\n", waiting[why], why)
	}
	return out.String()
}

func suffix(why string) string {
	if why == "" {
		return ""
	}
	return " (" + why + ")"
}

// stable is a reason without what changes with each look.
func stable(d Decision) string {
	if !d.Again.IsZero() {
		return "looked at again at " + d.Again.UTC().Format(time.TimeOnly)
	}
	return d.Reason
}

// undoText is what the breaker proposes: what was moved for a cause that is no device's own, and which nodes are held for it.
func undoText(h History) string {
	b := h.Breaker
	if b == nil {
		return ""
	}
	var out strings.Builder
	fmt.Fprintf(&out, "%s came to %d nodes at once: rather software, power or a fabric than %d broken devices.\n", b.Cause, len(b.Nodes), len(b.Nodes))
	out.WriteString("If the devices are well, give them back: on each node, kerf release DEVICE --why '...'. Nodes: ")
	out.WriteString(strings.Join(b.Nodes[:min(len(b.Nodes), maxListed)], " "))
	if more := len(b.Nodes) - maxListed; more > 0 {
		fmt.Fprintf(&out, " and %d more", more)
	}
	fmt.Fprintf(&out, "\n%d pods were moved for it before the breaker opened; they may go back:\n", len(b.Undo))
	for _, m := range b.Undo[:min(len(b.Undo), maxListed)] {
		fmt.Fprintf(&out, "  %s/%s, from %s at %s\n", m.Namespace, m.Name, m.Node, m.At.UTC().Format(time.RFC3339))
	}
	return out.String()
}
