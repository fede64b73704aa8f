package csi

import (
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kerf-gpu/kerf/csi/pool"
	"github.com/kerf-gpu/kerf/internal/durable"
	"github.com/kerf-gpu/kerf/internal/node"
)

// Kind is what a record is of.
type Kind string

// The kinds of records.
const (
	KindVolume    Kind = "volume"
	KindSnapshot  Kind = "snapshot"
	KindEphemeral Kind = "ephemeral" // made for one pod, by its publishing
)

// State is how far a volume is. Creating and deleting are intents: whoever starts next undoes the one and finishes the other.
type State string

// The states of volumes.
const (
	StateCreating State = "creating"
	StateReady    State = "ready"
	StateDeleting State = "deleting"
)

// Volume is a record of a volume or a snapshot.
type Volume struct {
	ID         string            `json:"id"`
	Kind       Kind              `json:"kind"`
	Name       string            `json:"name"` // the cluster's: of the request, or of an ephemeral volume the handle
	State      State             `json:"state"`
	Pool       string            `json:"pool"`
	Spec       pool.Spec         `json:"spec"`
	Growing    node.Bytes        `json:"growing,omitzero"` // intent: the size that it is about to have
	Source     string            `json:"source,omitempty"` // the id of what its bytes came from
	Parameters map[string]string `json:"parameters,omitempty"`
	Created    time.Time         `json:"created"`
}

// newID is a token that nobody guesses, and a file name.
func newID(kind Kind) string {
	prefix := "v1-"
	if kind == KindSnapshot {
		prefix = "s1-"
	}
	return prefix + strings.ToLower(rand.Text())
}

// books are the records.
type books struct {
	store *durable.Store[Volume]

	mu     sync.Mutex
	byID   map[string]Volume
	byName map[string]string
}

func nameKey(kind Kind, name string) string { return string(kind) + "/" + name }

func openBooks(dir string) (*books, []string, error) {
	store, err := durable.Open[Volume](dir)
	if err != nil {
		return nil, nil, fmt.Errorf("volumes' records: %w", err)
	}
	b := &books{store: store, byName: make(map[string]string)}
	records, corrupt, err := store.Load()
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("volumes' records: %w", err), store.Close())
	}
	b.byID = records
	for id, v := range records {
		b.byName[nameKey(v.Kind, v.Name)] = id
	}
	return b, corrupt, nil
}

func (b *books) close() error { return b.store.Close() }

// add writes a first record if allowed, which is asked with what the volume's pool has promised so far.
func (b *books) add(v Volume, allowed func(promised node.Bytes) error) error {
	b.mu.Lock()
	err := allowed(b.promised(v.Pool))
	if err == nil {
		b.byID[v.ID], b.byName[nameKey(v.Kind, v.Name)] = v, v.ID
	}
	b.mu.Unlock()
	if err != nil {
		return err
	}
	if err := b.store.Put(v.ID, v); err != nil {
		b.forget(v)
		return err
	}
	return nil
}

// grow notes that a volume is about to grow, if allowed.
func (b *books) grow(v Volume, allowed func(promised node.Bytes) error) error {
	b.mu.Lock()
	before := b.byID[v.ID]
	err := allowed(b.promised(v.Pool))
	if err == nil {
		b.byID[v.ID] = v
	}
	b.mu.Unlock()
	if err != nil {
		return err
	}
	if err := b.store.Put(v.ID, v); err != nil {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.byID[v.ID] = before
		return err
	}
	return nil
}

// promised is what volumes of a pool may come to hold; b.mu is held. Snapshots hold what their volume writes anew: that is in no promise.
func (b *books) promised(name string) (sum node.Bytes) {
	for _, v := range b.byID {
		if v.Pool == name && v.Kind != KindSnapshot {
			sum += max(v.Spec.Size, v.Growing)
		}
	}
	return sum
}

func (b *books) promisedOf(name string) node.Bytes {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.promised(name)
}

// put changes a record.
func (b *books) put(v Volume) error {
	if err := b.store.Put(v.ID, v); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.byID[v.ID] = v
	return nil
}

func (b *books) remove(v Volume) error {
	if err := b.store.Delete(v.ID); err != nil {
		return err
	}
	b.forget(v)
	return nil
}

func (b *books) forget(v Volume) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.byID, v.ID)
	if b.byName[nameKey(v.Kind, v.Name)] == v.ID {
		delete(b.byName, nameKey(v.Kind, v.Name))
	}
}

func (b *books) get(id string) (Volume, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	v, ok := b.byID[id]
	return v, ok
}

func (b *books) named(kind Kind, name string) (Volume, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	v, ok := b.byID[b.byName[nameKey(kind, name)]]
	return v, ok
}

// all are the records, by id.
func (b *books) all() []Volume {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.SortedFunc(maps.Values(b.byID), func(x, y Volume) int { return cmp.Compare(x.ID, y.ID) })
}

// Target is where a volume is published.
type Target struct {
	Volume   string `json:"volume"`
	Path     string `json:"path"`
	Block    bool   `json:"block,omitempty"`
	ReadOnly bool   `json:"readOnly,omitempty"`
	Mode     string `json:"mode"` // the access mode, as CSI spells it
	Flags    string `json:"flags,omitempty"`
	Group    string `json:"group,omitempty"`
}

// targets are the records of what is published. They are not synced: a reboot ends the mounts, too.
type targets struct {
	dir string

	mu     sync.Mutex
	byPath map[string]Target
}

func openTargets(dir string) (*targets, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("targets' records: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("targets' records: %w", err)
	}
	t := &targets{dir: dir, byPath: make(map[string]Target)}
	for _, entry := range entries {
		path := filepath.Join(dir, entry.Name())
		target, err := durable.GetFile[Target](path)
		if err != nil { // a writer was killed, or the disk is broken; the kernel knows what is mounted
			_ = os.Remove(path)
			continue
		}
		t.byPath[target.Path] = target
	}
	return t, nil
}

func (t *targets) file(path string) string {
	sum := sha256.Sum256([]byte(path))
	return filepath.Join(t.dir, hex.EncodeToString(sum[:16])+".json")
}

func (t *targets) put(target Target) error {
	if err := durable.PutFile(t.file(target.Path), target); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.byPath[target.Path] = target
	return nil
}

func (t *targets) remove(path string) error {
	if err := os.Remove(t.file(path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete the record of target %s: %w", path, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.byPath, path)
	return nil
}

func (t *targets) get(path string) (Target, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	target, ok := t.byPath[path]
	return target, ok
}

// of are the targets of a volume, and of all where the id is "".
func (t *targets) of(volume string) (found []Target) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, target := range t.byPath {
		if volume == "" || target.Volume == volume {
			found = append(found, target)
		}
	}
	slices.SortFunc(found, func(x, y Target) int { return cmp.Compare(x.Path, y.Path) })
	return found
}

// busy are the things that calls work on.
type busy struct {
	mu   sync.Mutex
	held map[string]int // -1: one works on it alone
}

// hold takes all of the keys, or none: it does not wait.
func (b *busy) hold(alone ...string) (release func(), ok bool) { return b.take(alone, nil) }

// take holds some keys alone and others together with those who hold them so.
func (b *busy) take(alone, shared []string) (release func(), ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.held == nil {
		b.held = make(map[string]int)
	}
	for _, key := range alone {
		if b.held[key] != 0 {
			return nil, false
		}
	}
	for _, key := range shared {
		if b.held[key] < 0 {
			return nil, false
		}
	}
	for _, key := range alone {
		b.held[key] = -1
	}
	for _, key := range shared {
		b.held[key]++
	}
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, key := range alone {
			delete(b.held, key)
		}
		for _, key := range shared {
			if b.held[key]--; b.held[key] == 0 {
				delete(b.held, key)
			}
		}
	}, true
}
