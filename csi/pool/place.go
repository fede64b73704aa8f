package pool

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/kerf-gpu/kerf/internal/durable"
	"github.com/kerf-gpu/kerf/internal/node"
)

// ErrExists says that a volume is there with another spec.
var ErrExists = errors.New("a volume with this id and another spec is there")

var ids = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,63}$`)

func check(id string) error {
	if !ids.MatchString(id) {
		return fmt.Errorf("volume id %q: use up to 64 small letters, digits and '-', and no '-' first", id)
	}
	return nil
}

// The directories of a pool. A volume is volumes/ID from the moment it is whole to the moment it is condemned.
const (
	volumesDir = "volumes"
	newDir     = "new"  // being made
	goneDir    = "gone" // being removed, so that no half of it is ever found again
	mountsDir  = "mnt"
	recordsDir = "records"
)

// record is written before the first change for a volume, and removed after the last.
type record struct {
	Spec     Spec   `json:"spec"`
	Snapshot bool   `json:"snapshot,omitempty"`
	Project  uint32 `json:"project,omitempty"` // of project quotas
	Grow     bool   `json:"grow,omitempty"`    // the file system inside is smaller than the volume
}

// place is the directory of a pool, with a record for each volume.
type place struct {
	path string
	root *os.Root
	at   func(point string) // tests die there

	store   *durable.Store[record]
	mu      sync.Mutex // of records
	records map[string]record
}

func openPlace(path string, at func(string)) (*place, error) {
	if at == nil {
		at = func(string) {}
	}
	for _, dir := range []string{volumesDir, newDir, goneDir, mountsDir} {
		if err := os.MkdirAll(filepath.Join(path, dir), 0o711); err != nil {
			return nil, fmt.Errorf("open pool %s: %w", path, err)
		}
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, fmt.Errorf("open pool %s: %w", path, err)
	}
	store, err := durable.Open[record](filepath.Join(path, recordsDir))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("pool %s: %w", path, err), root.Close())
	}
	p := &place{path: path, root: root, at: at, store: store}
	records, corrupt, err := store.Load()
	if err == nil && len(corrupt) > 0 {
		err = fmt.Errorf("pool %s: damaged records were set aside in %s: %v; remove them when their volumes are no longer needed", path, recordsDir, corrupt)
	}
	if err != nil {
		return nil, errors.Join(err, p.close())
	}
	p.records = records
	return p, nil
}

func (p *place) close() error { return errors.Join(p.store.Close(), p.root.Close()) }

func (p *place) record(id string) (record, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	r, ok := p.records[id]
	return r, ok
}

func (p *place) put(id string, r record) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.store.Put(id, r); err != nil {
		return err
	}
	p.records[id] = r
	return nil
}

func (p *place) forget(id string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.store.Delete(id); err != nil {
		return err
	}
	delete(p.records, id)
	return nil
}

func (p *place) has(dir, id string) bool {
	_, err := p.root.Lstat(filepath.Join(dir, id))
	return err == nil
}

// whole is the record of a volume that is all there.
func (p *place) whole(id string) (record, error) {
	if err := check(id); err != nil {
		return record{}, err
	}
	r, ok := p.record(id)
	if !ok || !p.has(volumesDir, id) {
		return r, fmt.Errorf("volume %s: %w", id, fs.ErrNotExist)
	}
	return r, nil
}

func (p *place) file(dir, id string) string { return filepath.Join(p.path, dir, id) }

func (p *place) sync(dir string) error { return syncIn(p.root, dir) }

// syncIn makes the names in a directory last.
func syncIn(root *os.Root, dir string) error {
	f, err := root.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// create makes new/ID by what is given and moves it to volumes/ID; remove takes away what was left of it.
func (p *place) create(id string, r record, build func(path string) error, remove func(path string) error) error {
	if err := check(id); err != nil {
		return err
	}
	if old, ok := p.record(id); ok && p.has(volumesDir, id) {
		old.Project, old.Grow, r.Project, r.Grow = 0, false, 0, false
		if old != r {
			return fmt.Errorf("volume %s: %w", id, ErrExists)
		}
		return p.sync(volumesDir)
	}
	if err := errors.Join(p.clear(newDir, id, remove), p.clear(goneDir, id, remove)); err != nil {
		return err
	}
	if err := p.put(id, r); err != nil {
		return err
	}
	p.at("recorded")
	path := p.file(newDir, id)
	if err := build(path); err != nil {
		return errors.Join(fmt.Errorf("make volume %s: %w", id, err), p.drop(id, remove))
	}
	p.at("made")
	if err := p.root.Rename(filepath.Join(newDir, id), filepath.Join(volumesDir, id)); err != nil {
		return err
	}
	p.at("moved")
	return errors.Join(p.sync(volumesDir), p.sync(newDir))
}

// delete condemns a volume and removes it.
func (p *place) delete(id string, remove func(path string) error) error {
	if err := check(id); err != nil {
		return err
	}
	if p.has(volumesDir, id) {
		if err := p.clear(goneDir, id, remove); err != nil {
			return err
		}
		if err := p.root.Rename(filepath.Join(volumesDir, id), filepath.Join(goneDir, id)); err != nil {
			return err
		}
		p.at("condemned")
		if err := errors.Join(p.sync(goneDir), p.sync(volumesDir)); err != nil {
			return err
		}
	}
	return p.drop(id, remove)
}

// drop removes all that is not whole, and the record last.
func (p *place) drop(id string, remove func(path string) error) error {
	if err := errors.Join(p.clear(newDir, id, remove), p.clear(goneDir, id, remove)); err != nil {
		return err
	}
	p.at("removed")
	return errors.Join(p.sync(goneDir), p.sync(newDir), p.forget(id))
}

func (p *place) clear(dir, id string, remove func(path string) error) error {
	if !p.has(dir, id) {
		return nil
	}
	if err := remove(p.file(dir, id)); err != nil {
		return fmt.Errorf("remove what is left of volume %s: %w", id, err)
	}
	return nil
}

// List implements Backend for all that keep their volumes in a place.
func (p *place) list() (all []string, err error) {
	seen := make(map[string]bool)
	p.mu.Lock()
	for id := range p.records {
		if ids.MatchString(id) {
			seen[id] = true
		}
	}
	p.mu.Unlock()
	for _, dir := range []string{volumesDir, newDir, goneDir} {
		entries, err := fs.ReadDir(p.root.FS(), dir)
		if err != nil {
			return nil, err
		}
		for _, entry := range entries {
			if ids.MatchString(entry.Name()) {
				seen[entry.Name()] = true
			}
		}
	}
	for id := range seen {
		all = append(all, id)
	}
	return all, nil
}

func capacity(path string) (Capacity, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return Capacity{}, fmt.Errorf("statfs %s: %w", path, err)
	}
	free := node.Bytes(st.Bavail) * node.Bytes(st.Bsize)
	return Capacity{Total: node.Bytes(st.Blocks) * node.Bytes(st.Bsize), Free: free, Largest: free}, nil
}
