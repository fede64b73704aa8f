package main

import (
	"sync"
	"time"
)

// quietFor is how long a thing that was logged is not logged again: tenants can cause such lines as often as they like.
const quietFor = 10 * time.Second

// maxQuiet bounds what is remembered.
const maxQuiet = 4096

// quiet lets one line of a kind pass in so much time, and counts the others.
type quiet struct {
	mu   sync.Mutex
	last map[string]*held
}

// held is what was kept back of a kind since its last line.
type held struct {
	at    time.Time
	count int
}

// pass says whether a line of this kind is due, and how many of it were kept back before.
func (q *quiet) pass(kind string, now time.Time) (before int, due bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.last == nil || len(q.last) >= maxQuiet { // then some lines come early
		q.last = make(map[string]*held)
	}
	h := q.last[kind]
	switch {
	case h == nil:
		q.last[kind] = &held{at: now}
		return 0, true
	case now.Sub(h.at) < quietFor:
		h.count++
		return 0, false
	}
	before = h.count
	*h = held{at: now}
	return before, true
}
