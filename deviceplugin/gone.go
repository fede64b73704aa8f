package deviceplugin

import (
	"slices"
	"time"

	"github.com/kerf-gpu/kerf/vgpu/ledger"
)

// sight is what is known of one owner from kubelet's lists.
type sight struct {
	since  time.Time // when it was first looked for
	seen   bool      // it was in a list
	absent int       // it was not in so many lists since then
}

// Sightings tells from kubelet's lists which owners have ended. The zero value knows nobody. It is not safe for concurrent use.
type Sightings struct {
	known map[string]sight
}

// absences is how many lists in a row an owner must be missing from.
const absences = 2

// Look takes one list: the slices in use at now, and the owners of before it was asked for. It answers who has ended: those who were
// in use and are not in two lists in a row, and those who were in no list for unseenFor.
func (s *Sightings) Look(owners []ledger.Owner, inUse map[string]bool, now time.Time, unseenFor time.Duration) (gone []ledger.Owner) {
	next := make(map[string]sight, len(owners))
	for _, owner := range owners {
		v, ok := s.known[owner.UID]
		if !ok {
			v.since = now
		}
		if slices.ContainsFunc(slicesOf(owner), func(id string) bool { return inUse[id] }) {
			v.seen, v.absent = true, 0
		} else {
			v.absent++
		}
		if v.absent >= absences && (v.seen || now.Sub(v.since) >= unseenFor) {
			gone = append(gone, owner) // it stays known: if it cannot be dropped yet, the next list says the same
		}
		next[owner.UID] = v
	}
	s.known = next
	return gone
}

// Forget is for an owner whose slices were given out again: what was seen of it was somebody else.
func (s *Sightings) Forget(uid string) { delete(s.known, uid) }

// Doubt forgets all absences, not who was seen: a kubelet that has just started does not know its pods yet.
func (s *Sightings) Doubt() {
	for uid, v := range s.known {
		v.absent = 0
		s.known[uid] = v
	}
}
