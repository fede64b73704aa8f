// Package ledger is the one durable record of who holds what.
//
// Every door (kerf run, the DRA driver, the device plugin) takes its grants here, so two of them can never give away the same
// bytes. A grant is decided under one lock and counts from then on, and it is written before anything is done for it in the world:
// what is in the ledger may not have a share directory yet, but no share directory exists without its line in the ledger.
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
	"iter"
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
	// unwritten are entries that are decided, and count, and whose record is on its way: nobody else sees them before.
	unwritten map[string]bool
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
	return &Ledger{store: store, entries: entries, unwritten: make(map[string]bool)}, corrupt, nil
}

// Close gives the directory back.
func (l *Ledger) Close() error { return l.store.Close() }

// Grant decides a request against what is already held on the GPUs, and records the answer before it is given.
// The Granted field of gpus is filled in here. Errors of the policy come back as they are.
func (l *Ledger) Grant(gpus []share.GPU, request share.Request, holder Holder, now time.Time) (Entry, error) {
	l.mu.Lock()
	entry, err := l.decide(gpus, request, holder, now)
	l.mu.Unlock()
	if err != nil {
		return Entry{}, err
	}
	return entry, l.write(entry)
}

// decide makes an entry that counts from now on, though it is not written yet: disks are slow, and others need not wait for ours.
func (l *Ledger) decide(gpus []share.GPU, request share.Request, holder Holder, now time.Time) (Entry, error) {
	grant, err := share.Decide(fill(gpus, maps.Values(l.entries)), request)
	if err != nil {
		return Entry{}, err
	}
	entry := Entry{ID: newID(), Grant: grant, Holder: holder, Created: now.UTC()}
	l.entries[entry.ID], l.unwritten[entry.ID] = entry, true
	return entry, nil
}

// write records decided entries, or none of them. What cannot be taken back is still the owner's, who asks again or gives it back.
func (l *Ledger) write(entries ...Entry) error {
	for _, entry := range entries {
		if err := l.store.Put(entry.ID, entry); err != nil {
			return errors.Join(fmt.Errorf("record grant: %w", err), l.forget(entries))
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, entry := range entries {
		delete(l.unwritten, entry.ID)
	}
	return nil
}

// forget takes entries back.
func (l *Ledger) forget(entries []Entry) error {
	var errs []error
	for _, entry := range entries {
		errs = append(errs, l.Release(entry.ID))
	}
	return errors.Join(errs...)
}

// Hold gives an owner all that it asks, or nothing. What it holds under a key already is the answer for that key, whatever else
// is asked: the owner asks again after a crash of either side, and its terms do not change. Calls for one owner must follow each other.
func (l *Ledger) Hold(gpus []share.GPU, door string, owner Owner, asks []Ask, now time.Time) ([]Entry, error) {
	held, fresh, err := l.decideAll(gpus, door, owner, asks, now)
	if err != nil {
		return nil, err
	}
	return held, l.write(fresh...)
}

func (l *Ledger) decideAll(gpus []share.GPU, door string, owner Owner, asks []Ask, now time.Time) (held, fresh []Entry, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer func() {
		if err != nil { // nothing of it is written yet
			for _, entry := range fresh {
				delete(l.entries, entry.ID)
				delete(l.unwritten, entry.ID)
			}
		}
	}()
	for _, ask := range asks {
		entry, known := l.find(door, ask.Key)
		switch {
		case slices.ContainsFunc(held, func(e Entry) bool { return e.Holder.Key == ask.Key }):
			return nil, fresh, fmt.Errorf("%s: asked twice at once; a key names one grant", ask.Key)
		case known && entry.Holder.Owner.UID != owner.UID:
			return nil, fresh, fmt.Errorf("%s: %s has it (uid %s); an owner's keys must be its own", ask.Key, entry.Holder.Owner, entry.Holder.Owner.UID)
		case !known:
			if entry, err = l.decide(gpus, ask.Request, Holder{Door: door, Owner: owner, Key: ask.Key}, now); err != nil {
				return nil, fresh, err
			}
			fresh = append(fresh, entry)
		}
		held = append(held, entry)
	}
	return held, fresh, nil
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
	return l.where(func(e Entry) bool { return e.Holder.Door == door && e.Holder.Owner.UID == uid })
}

func (l *Ledger) where(wanted func(Entry) bool) (entries []Entry) {
	l.mu.Lock()
	for _, entry := range l.entries {
		if wanted(entry) && !l.unwritten[entry.ID] {
			entries = append(entries, entry)
		}
	}
	l.mu.Unlock()
	slices.SortFunc(entries, func(a, b Entry) int { return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID)) })
	return entries
}

// Update writes down what was learnt of a grant since: the MIG instance that was made for it. Nothing else may change.
func (l *Ledger) Update(entry Entry) error {
	if _, ok := l.Entry(entry.ID); !ok {
		return fmt.Errorf("update grant %s: it has ended", entry.ID)
	}
	if err := l.store.Put(entry.ID, entry); err != nil {
		return fmt.Errorf("update grant %s: %w", entry.ID, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.entries[entry.ID] = entry
	return nil
}

// Release takes a grant off the record, and only then counts it no more; it is no error that it is not there.
func (l *Ledger) Release(id string) error {
	if err := l.store.Delete(id); err != nil {
		return fmt.Errorf("release grant: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.entries, id)
	delete(l.unwritten, id)
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
func (l *Ledger) Entries() []Entry { return l.where(func(Entry) bool { return true }) }

// Fill returns the GPUs with what is granted on each.
func (l *Ledger) Fill(gpus []share.GPU) []share.GPU {
	l.mu.Lock()
	defer l.mu.Unlock()
	return fill(gpus, maps.Values(l.entries))
}

func fill(gpus []share.GPU, entries iter.Seq[Entry]) []share.GPU {
	held := make(map[node.UUID][]share.Device)
	for entry := range entries {
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
