// Package dataset keeps verified copies of datasets on a node, one of each, for any number of readers.
//
// Vocabulary: a blob is a file's bytes, named by their digest. A tree is a dataset as it is mounted: hard links to blobs, an index
// (fetch.Index, sorted by path) and a marker. The index's digest names the tree. What is on its way lies in incoming/KEY, where KEY stands for
// the source. A reference is a place where a tree is mounted; a pin is a person's wish to keep it.
//
// Traps
//
//   - A tree is built and synced in incoming and renamed into trees: there it is whole, or it is not there. One without its marker is not
//     served all the same, for a disk may lose what it said it had.
//   - All trees share blobs' inodes: whoever could write to one would write to all. Blobs are read-only, and so must every mount be.
//   - A digest is a name, and no permission: who may have a tree is decided before this package is asked.
package dataset

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/kerf-gpu/kerf/csi/fetch"
	"github.com/kerf-gpu/kerf/internal/durable"
	"github.com/kerf-gpu/kerf/internal/node"
)

// Config of a store. Dir alone must be set.
type Config struct {
	Dir    string
	High   node.Percent                                         // of the file system, which a load must not pass; 85
	Low    node.Percent                                         // to which a load that would pass High evicts; 75
	Policy fetch.Policy                                         // limits of a listing
	Copy   fetch.Options                                        // how a source is read; its callbacks are the store's
	Usage  func(dir string) (total, free node.Bytes, err error) // of the file system; nil asks the kernel
	Now    func() time.Time                                     // nil is time.Now

	at func(point string) // tests die here
}

// Record is what is known of a tree beside its files.
type Record struct {
	Source string    `json:"source"` // without secrets
	Pinned bool      `json:"pinned,omitempty"`
	Used   time.Time `json:"used"` // when it was last loaded, mounted or unmounted
}

// reference is a mount of a tree; it is recorded before the mount is made.
type reference struct {
	Tree   string `json:"tree"`
	Target string `json:"target"`
}

// Tree is a dataset that is here, whole.
type Tree struct {
	Digest string // "sha256:…" of the index
	Size   node.Bytes
	Files  int
	Record
	References []string // targets
}

// Store is a directory of datasets. One process at a time owns it.
type Store struct {
	c       Config
	records *durable.Store[Record]
	refs    *durable.Store[reference]

	mu       sync.Mutex
	trees    map[string]*Tree // by hexadecimal digest
	held     map[string]int   // blobs that loads need, though no tree has them yet
	reserved map[string]node.Bytes
	loading  map[string]bool
}

// ErrLoading says that the dataset is being loaded by another call.
var ErrLoading = errors.New("is being loaded")

var folders = []string{"blobs", "trees", "incoming", "aside", "trash"}

// Open takes the store, finishes what a dead process began to remove, and forgets references to places where nothing is mounted.
func Open(c Config, mounted func(target string) bool) (*Store, error) {
	if c.High == 0 {
		c.High, c.Low = 85, 75
	}
	if c.Low > c.High || c.High > 100 {
		return nil, fmt.Errorf("open datasets in %s: watermarks are %d (low) and %d (high); want low <= high <= 100", c.Dir, c.Low, c.High)
	}
	if c.Usage == nil {
		c.Usage = usage
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.at == nil {
		c.at = func(string) {}
	}
	s := &Store{c: c, trees: map[string]*Tree{}, held: map[string]int{}, reserved: map[string]node.Bytes{}, loading: map[string]bool{}}
	for _, f := range folders {
		if err := os.MkdirAll(s.path(f), 0o755); err != nil {
			return nil, fmt.Errorf("open datasets: %w", err)
		}
	}
	var err error
	if s.records, err = durable.Open[Record](s.path("records")); err != nil {
		return nil, fmt.Errorf("open datasets: %w", err)
	}
	if s.refs, err = durable.Open[reference](s.path("references")); err != nil {
		return nil, errors.Join(fmt.Errorf("open datasets: %w", err), s.records.Close())
	}
	if err := s.recover(mounted); err != nil {
		return nil, errors.Join(fmt.Errorf("open datasets: %w", err), s.Close())
	}
	return s, nil
}

// Close gives the store back. No load may be running.
func (s *Store) Close() error { return errors.Join(s.refs.Close(), s.records.Close()) }

func (s *Store) recover(mounted func(string) bool) error {
	records, _, err := s.records.Load() // a damaged record costs a pin and a time, not the data
	if err != nil {
		return err
	}
	names, err := os.ReadDir(s.path("trees"))
	if err != nil {
		return err
	}
	for _, n := range names {
		t, err := s.readTree(n.Name())
		if err != nil { // never served
			if err := os.Rename(s.path("trees", n.Name()), s.path("aside", fmt.Sprintf("%s.%d", n.Name(), s.c.Now().UnixNano()))); err != nil {
				return err
			}
			continue
		}
		t.Record = records[n.Name()]
		s.trees[n.Name()] = t
	}
	refs, _, err := s.refs.Load()
	if err != nil {
		return err
	}
	for key, r := range refs {
		if t := s.trees[r.Tree]; t != nil && mounted(r.Target) {
			t.References = append(t.References, r.Target)
		} else if err := s.refs.Delete(key); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(s.path("trash")); err != nil {
		return err
	}
	return errors.Join(os.Mkdir(s.path("trash"), 0o755), s.sweep())
}

func (s *Store) path(p ...string) string { return filepath.Join(append([]string{s.c.Dir}, p...)...) }

// List is every tree, in no order.
func (s *Store) List() []Tree {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []Tree
	for _, t := range s.trees {
		c := *t
		c.References = slices.Clone(t.References)
		all = append(all, c)
	}
	return all
}

// Reference records that a tree is about to be mounted, and gives the directory to mount, read-only. It is idempotent.
func (s *Store) Reference(digest, target string) (dir string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	name := strings.TrimPrefix(digest, "sha256:")
	t := s.trees[name]
	if t == nil {
		return "", fmt.Errorf("dataset %s: %w on this node; load it first", digest, fetch.ErrNotFound)
	}
	for other, o := range s.trees {
		if at := slices.Index(o.References, target); at >= 0 && other != name {
			return "", fmt.Errorf("dataset %s: sha256:%s is mounted at %s; unmount it first", digest, other, target)
		} else if at >= 0 {
			return s.path("trees", name, "files"), nil
		}
	}
	if err := s.refs.Put(key(target), reference{name, target}); err != nil {
		return "", err
	}
	t.References = append(t.References, target)
	return s.path("trees", name, "files"), s.touch(name, t)
}

// Release forgets a reference, after the unmount. It is no error that there is none.
func (s *Store) Release(target string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.refs.Delete(key(target)); err != nil {
		return err
	}
	for name, t := range s.trees {
		if i := slices.Index(t.References, target); i >= 0 {
			t.References = slices.Delete(t.References, i, i+1)
			return s.touch(name, t)
		}
	}
	return nil
}

// Pin keeps a tree from eviction, or lets it go.
func (s *Store) Pin(digest string, pinned bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	name := strings.TrimPrefix(digest, "sha256:")
	t := s.trees[name]
	if t == nil {
		return fmt.Errorf("pin dataset %s: %w on this node", digest, fetch.ErrNotFound)
	}
	r := t.Record
	r.Pinned = pinned
	if err := s.records.Put(name, r); err != nil {
		return err
	}
	t.Record = r
	return nil
}

// touch is called with the lock held.
func (s *Store) touch(name string, t *Tree) error {
	t.Used = s.c.Now()
	return s.records.Put(name, t.Record)
}

// key makes a record's key of any text.
func key(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

func usage(dir string) (total, free node.Bytes, err error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return 0, 0, fmt.Errorf("statfs %s: %w", dir, err)
	}
	return node.Bytes(st.Blocks) * node.Bytes(st.Bsize), node.Bytes(st.Bavail) * node.Bytes(st.Bsize), nil
}
