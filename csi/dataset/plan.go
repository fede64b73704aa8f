package dataset

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/kerf-gpu/kerf/internal/node"
)

// space is what a decision about room needs to know.
type space struct {
	total, free node.Bytes   // of the file system
	reserved    node.Bytes   // promised to loads, and not written yet
	high, low   node.Percent // watermarks
}

// candidate is a tree that might go.
type candidate struct {
	name       string
	frees      node.Bytes // what no other tree shares
	used       time.Time
	pinned     bool
	referenced bool
}

// CapacityError says why a dataset does not fit.
type CapacityError struct {
	Need, Free, Pinned, Referenced node.Bytes // Free is below the high watermark, and not promised
}

func (e *CapacityError) Error() string {
	return fmt.Sprintf("no room: need %s, free %s, pinned %s, referenced %s; unpin or unmount a dataset, or give the store more room", e.Need, e.Free, e.Pinned, e.Referenced)
}

// room is what may still be promised below a watermark.
func (s space) room(mark node.Percent) node.Bytes {
	keep := s.total/100*node.Bytes(100-mark) + s.reserved
	return s.free - min(s.free, keep)
}

// plan says which trees go so that need fits, the least recently used first: none where it fits below the high watermark, else as many as
// the low one asks for, or all that may go where those bring it below the high one.
func plan(need node.Bytes, s space, trees []candidate) (evict []string, err error) {
	room := s.room(s.high)
	if need <= room {
		return nil, nil
	}
	refusal := &CapacityError{Need: need, Free: room}
	trees = slices.Clone(trees)
	slices.SortFunc(trees, func(a, b candidate) int {
		if c := a.used.Compare(b.used); c != 0 {
			return c
		}
		return strings.Compare(a.name, b.name)
	})
	var freed node.Bytes
	for _, t := range trees {
		switch after := s; {
		case t.pinned:
			refusal.Pinned += t.frees
		case t.referenced:
			refusal.Referenced += t.frees
		default:
			if after.free += freed; need <= after.room(s.low) {
				continue
			}
			evict = append(evict, t.name)
			freed += t.frees
		}
	}
	if s.free += freed; need > s.room(s.high) {
		return nil, refusal
	}
	return evict, nil
}
