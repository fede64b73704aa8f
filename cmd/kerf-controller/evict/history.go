package evict

import (
	"cmp"
	"maps"
	"slices"
	"time"
)

// actWithin bounds the time from the moment when a move is written down to that when the pod is asked to go. Windows are longer by it: so
// the budgets hold for when pods go, too.
const actWithin = 10 * time.Second

// History is what must be remembered, whoever leads. The zero History knows nothing.
type History struct {
	Moves     []Move                          `json:"moves,omitempty"`     // the oldest first
	Owed      map[string]string               `json:"owed,omitempty"`      // pods by UID that did not go while others of their gang did: its name
	Refused   map[string]time.Time            `json:"refused,omitempty"`   // pods by UID: when to ask again
	Sightings map[string]map[string]*Sighting `json:"sightings,omitempty"` // cause → node
	Breaker   *Breaker                        `json:"breaker,omitempty"`   // open; nil: shut
	Resets    int                             `json:"resets,omitempty"`
}

// Move is a pod that was asked to go, or is about to be.
type Move struct {
	UID       string    `json:"uid"`
	Namespace string    `json:"namespace"`
	Name      string    `json:"name"`
	Gang      string    `json:"gang"`
	Node      string    `json:"node"`
	Causes    []string  `json:"causes"`
	At        time.Time `json:"at"`
	Done      bool      `json:"done,omitempty"` // the API server has taken it
}

// Sighting is when a cause was first seen on a node. One that was there at a reset is acknowledged, and opens nothing.
type Sighting struct {
	At           time.Time `json:"at"`
	Acknowledged bool      `json:"acknowledged,omitempty"`
}

// Breaker is why everything was stopped.
type Breaker struct {
	Cause string    `json:"cause"`
	At    time.Time `json:"at"`
	Nodes []string  `json:"nodes"` // that had it then
	Undo  []Move    `json:"undo"`  // the last window's moves for that cause
}

// clone lets a plan change its own.
func (h History) clone() History {
	h.Moves = slices.Clone(h.Moves)
	h.Owed = orEmpty(h.Owed)
	h.Refused = orEmpty(h.Refused)
	sightings := make(map[string]map[string]*Sighting, len(h.Sightings))
	for cause, nodes := range h.Sightings {
		sightings[cause] = make(map[string]*Sighting, len(nodes))
		for node, s := range nodes {
			own := *s
			sightings[cause][node] = &own
		}
	}
	h.Sightings = sightings
	return h
}

func orEmpty[M ~map[K]V, K comparable, V any](m M) M {
	if m == nil {
		return make(M)
	}
	return maps.Clone(m)
}

// settle sees what became of the moves, by the pods that are there. A pod that is there and was not asked for sure has not gone: it costs
// nothing, and its gang owes it.
func (h *History) settle(c Cluster, p Policy, now time.Time) {
	there := make(map[string]bool)
	for _, pod := range c.Pods {
		if !pod.Ending {
			there[pod.UID] = true
		}
	}
	kept := h.Moves[:0]
	for _, m := range h.Moves {
		switch {
		case !m.Done && there[m.UID]:
			h.Owed[m.UID] = m.Gang
			continue
		case !m.Done:
			m.Done = true
		}
		if there[m.UID] || now.Sub(m.At) < max(p.Per, p.Window, p.BreakerWithin)+actWithin {
			kept = append(kept, m)
		}
	}
	h.Moves = kept
	maps.DeleteFunc(h.Owed, func(uid, _ string) bool { return !there[uid] })
	maps.DeleteFunc(h.Refused, func(uid string, _ time.Time) bool { return !there[uid] })
}

// see notes which causes are on which nodes, and opens the breaker for one that is on too many.
func (h *History) see(c Cluster, p Policy, now time.Time) {
	here := make(map[string]map[string]bool)
	for _, d := range c.Devices {
		for _, cause := range d.Causes {
			if here[cause] == nil {
				here[cause] = make(map[string]bool)
			}
			here[cause][d.Node] = true
			if h.Sightings[cause] == nil {
				h.Sightings[cause] = make(map[string]*Sighting)
			}
			if h.Sightings[cause][d.Node] == nil {
				at := now
				if !d.Since.IsZero() && d.Since.Before(now) {
					at = d.Since
				}
				h.Sightings[cause][d.Node] = &Sighting{At: at}
			}
		}
	}
	for cause, nodes := range h.Sightings {
		maps.DeleteFunc(nodes, func(node string, s *Sighting) bool { return !here[cause][node] && now.Sub(s.At) >= p.BreakerWithin })
		if len(nodes) == 0 {
			delete(h.Sightings, cause)
		}
	}
	for _, cause := range slices.Sorted(maps.Keys(h.Sightings)) {
		if nodes := h.together(cause, p); h.Breaker == nil && len(nodes) >= p.BreakerNodes {
			h.open(cause, nodes, p, now)
		}
	}
}

// together are the most nodes on which a cause appeared within the breaker's time of each other, in whatever round that is seen: a
// controller that was away sees them all at once.
func (h *History) together(cause string, p Policy) (most []string) {
	var fresh []string
	seen := h.Sightings[cause]
	for node, s := range seen {
		if !s.Acknowledged {
			fresh = append(fresh, node)
		}
	}
	slices.SortFunc(fresh, func(a, b string) int {
		return cmp.Or(seen[a].At.Compare(seen[b].At), cmp.Compare(a, b))
	})
	first := 0
	for i, node := range fresh {
		for seen[node].At.Sub(seen[fresh[first]].At) > p.BreakerWithin {
			first++
		}
		if i+1-first > len(most) {
			most = fresh[first : i+1]
		}
	}
	return slices.Sorted(slices.Values(most))
}

func (h *History) open(cause string, nodes []string, p Policy, now time.Time) {
	b := &Breaker{Cause: cause, At: now, Nodes: nodes, Undo: []Move{}}
	for _, m := range h.Moves {
		if slices.Contains(m.Causes, cause) && now.Sub(m.At) <= p.BreakerWithin {
			b.Undo = append(b.Undo, m)
		}
	}
	h.Breaker = b
}

// Reset shuts the breaker, by a person's word. What was seen until now opens it no more.
func (h History) Reset() History {
	h = h.clone()
	h.Breaker = nil
	h.Resets++
	for _, nodes := range h.Sightings {
		for _, s := range nodes {
			s.Acknowledged = true
		}
	}
	return h
}

// Spent is what of the budgets is used up.
type Spent struct {
	Pods  int
	Nodes map[string]bool
}

func (h History) spent(p Policy, now time.Time) Spent {
	s := Spent{Nodes: make(map[string]bool)}
	for _, m := range h.Moves {
		if now.Sub(m.At) < p.Per+actWithin {
			s.Pods++
		}
		if now.Sub(m.At) < p.Window+actWithin {
			s.Nodes[m.Node] = true
		}
	}
	return s
}

// done says that the API server has taken it.
func (h *History) done(uid string) {
	for i := range h.Moves {
		if h.Moves[i].UID == uid {
			h.Moves[i].Done = true
		}
	}
	delete(h.Refused, uid)
}

// refuse says that a pod has not gone, and when to ask again.
func (h *History) refuse(uid string, again time.Time) {
	h.Refused = orEmpty(h.Refused)
	h.Refused[uid] = again
}
