// Package ledger is the one durable record of who holds what.
//
// Every door (kerf run, the DRA driver, the device plugin) takes its grants here, so two of them can never give away the same
// bytes. A grant is decided and written under one lock, before anything is done for it in the world: what is in the
// ledger may not have a share directory yet, but no share directory exists without its line in the ledger.
//
// A holder is the process for which a grant was made. Its start time tells it from a later process with the same pid.
package ledger

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/kerf-gpu/kerf/internal/durable"
	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

// Holder is who a grant was made for.
type Holder struct {
	Door    string `json:"door"` // run, dra, plugin
	PID     int    `json:"pid,omitempty"`
	Start   uint64 `json:"start,omitempty"` // the process's start time in clock ticks since boot
	UID     int    `json:"uid"`
	GID     int    `json:"gid"`
	Command string `json:"command,omitempty"`
}

// Entry is one grant on record.
type Entry struct {
	ID      string      `json:"id"` // the share's id: 16 hexadecimal digits, not to be guessed
	Grant   share.Grant `json:"grant"`
	Holder  Holder      `json:"holder"`
	Created time.Time   `json:"created"`
}

// Ledger is safe for use by several goroutines.
type Ledger struct {
	mu      sync.Mutex
	store   *durable.Store[Entry]
	entries map[string]Entry
}

// Open reads the ledger of a directory. Damaged records are set aside and their files named; what they granted is
// no longer held, so the caller must end those shares.
func Open(dir string) (l *Ledger, corrupt []string, err error) {
	store, err := durable.Open[Entry](dir)
	if err != nil {
		return nil, nil, fmt.Errorf("open ledger: %w", err)
	}
	entries, corrupt, err := store.Load()
	if err != nil {
		_ = store.Close()
		return nil, nil, fmt.Errorf("open ledger: %w", err)
	}
	return &Ledger{store: store, entries: entries}, corrupt, nil
}

// Close gives the directory back.
func (l *Ledger) Close() error { return l.store.Close() }

// Grant decides a request against what is already held on the GPUs, and records the answer before it is given.
// The Granted field of gpus is filled in here. Errors of the policy come back as they are.
func (l *Ledger) Grant(gpus []share.GPU, request share.Request, holder Holder, now time.Time) (Entry, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	grant, err := share.Decide(l.fill(gpus), request)
	if err != nil {
		return Entry{}, err
	}
	entry := Entry{ID: newID(), Grant: grant, Holder: holder, Created: now.UTC()}
	if err := l.store.Put(entry.ID, entry); err != nil {
		return Entry{}, fmt.Errorf("record grant: %w", err)
	}
	l.entries[entry.ID] = entry
	return entry, nil
}

// Release takes a grant off the record; it is no error that it is not there.
func (l *Ledger) Release(id string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.store.Delete(id); err != nil {
		return fmt.Errorf("release grant: %w", err)
	}
	delete(l.entries, id)
	return nil
}

// Entry is the grant with an id.
func (l *Ledger) Entry(id string) (Entry, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	entry, ok := l.entries[id]
	return entry, ok
}

// Entries are all grants, the oldest first.
func (l *Ledger) Entries() []Entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.SortedFunc(maps.Values(l.entries), func(a, b Entry) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID))
	})
}

// Fill returns the GPUs with what is granted on each.
func (l *Ledger) Fill(gpus []share.GPU) []share.GPU {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.fill(gpus)
}

func (l *Ledger) fill(gpus []share.GPU) []share.GPU {
	held := make(map[node.UUID][]share.Device)
	for _, entry := range l.entries {
		for _, d := range entry.Grant.Devices {
			held[d.UUID] = append(held[d.UUID], d)
		}
	}
	filled := slices.Clone(gpus)
	for i, g := range filled {
		filled[i].Granted = held[g.UUID]
	}
	return filled
}

// IDLength is how many characters the id of a share has.
const IDLength = 16

func newID() string {
	var id [IDLength / 2]byte
	_, _ = rand.Read(id[:]) // never fails: crypto/rand ends the program instead
	return hex.EncodeToString(id[:])
}
