// Package ledger is the one durable record of who holds what.
//
// Every door (kerf run, the DRA driver, the device plugin) takes its grants here, so two of them can never give away the same
// bytes. A grant is decided and written under one lock, before anything is done for it in the world: what is in the
// ledger may not have a share directory yet, but no share directory exists without its line in the ledger.
//
// A holder is the process for which a grant was made, or an owner that is not of this machine: a ResourceClaim, or what the device
// plugin gave to a container. A process's start time tells it from a later one with the same pid; an owner's UID is never
// used again. An owner may hold several grants, each under a key that it gave; it asks for all of them at once, and gets all or none.
package ledger

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/kerf-gpu/kerf/internal/durable"
	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

// The doors.
const (
	DoorRun    = "run"    // kerf run
	DoorDRA    = "dra"    // a ResourceClaim
	DoorPlugin = "plugin" // the device plugin
)

// Owner is who holds grants without being a process here.
type Owner struct {
	UID       string `json:"uid"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`
}

// String is the name by which people know it.
func (o Owner) String() string {
	if o.Namespace == "" {
		return o.Name
	}
	return o.Namespace + "/" + o.Name
}

// Holder is who a grant was made for.
type Holder struct {
	Door    string `json:"door"`
	Owner   Owner  `json:"owner,omitzero"`  // doors dra and plugin
	Key     string `json:"key,omitempty"`   // likewise: the owner's name for the grant, unique within the door
	PID     int    `json:"pid,omitempty"`   // door run
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

// Ask is one grant that an owner wants.
type Ask struct {
	Key     string        `json:"key"`
	Request share.Request `json:"request"`
}

// Held is an entry in force, and the name by which a container gets it: a qualified CDI device.
type Held struct {
	Entry
	CDI string `json:"cdi"`
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
	grant, err := share.Decide(fill(gpus, slices.Collect(maps.Values(l.entries))), request)
	if err != nil {
		return Entry{}, err
	}
	entry := Entry{ID: newID(), Grant: grant, Holder: holder, Created: now.UTC()}
	return entry, l.put(entry)
}

func (l *Ledger) put(entry Entry) error {
	if err := l.store.Put(entry.ID, entry); err != nil {
		return fmt.Errorf("record grant: %w", err)
	}
	l.entries[entry.ID] = entry
	return nil
}

// Hold gives an owner all that it asks, or nothing. What it holds under a key already is the answer for that key, whatever else
// is asked: the owner asks again after a crash of either side, and its terms do not change.
func (l *Ledger) Hold(gpus []share.GPU, door string, owner Owner, asks []Ask, now time.Time) ([]Entry, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var held, fresh []Entry
	for _, ask := range asks {
		entry, known := l.find(door, ask.Key)
		switch {
		case slices.ContainsFunc(held, func(e Entry) bool { return e.Holder.Key == ask.Key }):
			return nil, fmt.Errorf("%s: asked twice at once; a key names one grant", ask.Key)
		case known && entry.Holder.Owner.UID != owner.UID:
			return nil, fmt.Errorf("%s: %s has it (uid %s); an owner's keys must be its own", ask.Key, entry.Holder.Owner, entry.Holder.Owner.UID)
		case !known:
			grant, err := share.Decide(fill(gpus, append(slices.Collect(maps.Values(l.entries)), fresh...)), ask.Request)
			if err != nil {
				return nil, err
			}
			entry = Entry{ID: newID(), Grant: grant, Holder: Holder{Door: door, Owner: owner, Key: ask.Key}, Created: now.UTC()}
			fresh = append(fresh, entry)
		}
		held = append(held, entry)
	}
	for i, entry := range fresh {
		if err := l.put(entry); err != nil {
			return nil, errors.Join(err, l.forget(fresh[:i+1]))
		}
	}
	return held, nil
}

// forget takes back what was just put. What cannot be is still the owner's, who asks again or gives it back.
func (l *Ledger) forget(entries []Entry) error {
	var errs []error
	for _, entry := range entries {
		errs = append(errs, l.release(entry.ID))
	}
	return errors.Join(errs...)
}

func (l *Ledger) find(door, key string) (Entry, bool) {
	for _, entry := range l.entries {
		if entry.Holder.Door == door && entry.Holder.Key == key {
			return entry, true
		}
	}
	return Entry{}, false
}

// Owned are the grants of an owner, the oldest first.
func (l *Ledger) Owned(door, uid string) []Entry {
	return slices.DeleteFunc(l.Entries(), func(e Entry) bool { return e.Holder.Door != door || e.Holder.Owner.UID != uid })
}

// Update writes down what was learnt of a grant since: the MIG instance that was made for it. Nothing else may change.
func (l *Ledger) Update(entry Entry) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.entries[entry.ID]; !ok {
		return fmt.Errorf("update grant %s: it has ended", entry.ID)
	}
	return l.put(entry)
}

// Release takes a grant off the record; it is no error that it is not there.
func (l *Ledger) Release(id string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.release(id)
}

func (l *Ledger) release(id string) error {
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
	return fill(gpus, slices.Collect(maps.Values(l.entries)))
}

func fill(gpus []share.GPU, entries []Entry) []share.GPU {
	held := make(map[node.UUID][]share.Device)
	for _, entry := range entries {
		if entry.Grant.Admin { // it watches, and holds nothing
			continue
		}
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
