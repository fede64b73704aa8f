package dataset

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/kerf-gpu/kerf/csi/fetch"
	"github.com/kerf-gpu/kerf/internal/durable"
	"github.com/kerf-gpu/kerf/internal/node"
)

// publish builds a tree of links beside the parts, syncs it, and renames it to where trees are served.
func (l *load) publish(src fetch.Source, entries []fetch.Entry, blobs []string) (string, error) {
	text, name, err := index(entries, blobs)
	if err != nil {
		return "", err
	}
	s := l.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.trees[name] == nil {
		at := l.path("tree")
		if err := os.RemoveAll(at); err != nil { // of a process that died here
			return "", err
		}
		if err := l.build(at, text, entries, blobs); err != nil {
			return "", err
		}
		s.c.at("built")
		if err := errors.Join(os.Rename(at, s.path("trees", name)), durable.SyncDir(s.path("trees"))); err != nil {
			return "", err
		}
		s.c.at("published")
		if s.trees[name], err = s.readTree(name); err != nil {
			return "", err
		}
	}
	t := s.trees[name]
	t.Source = src.String()
	if err := s.touch(name, t); err != nil {
		return "", err
	}
	s.c.at("recorded")
	return t.Digest, os.RemoveAll(l.path())
}

func (l *load) build(at string, text []byte, entries []fetch.Entry, blobs []string) error {
	dirs := map[string]bool{l.s.path("blobs"): true, at: true, filepath.Join(at, "files"): true}
	if err := os.MkdirAll(filepath.Join(at, "files"), 0o755); err != nil {
		return err
	}
	for i, e := range entries {
		to := filepath.Join(at, "files", filepath.FromSlash(e.Path))
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		for d := filepath.Dir(to); d != at; d = filepath.Dir(d) {
			dirs[d] = true
		}
		if err := os.Link(l.s.path("blobs", blobs[i]), to); err != nil {
			return err
		}
	}
	if err := durable.WriteSynced(filepath.Join(at, "index.json"), text, 0o644); err != nil {
		return err
	}
	for d := range dirs {
		if err := durable.SyncDir(d); err != nil {
			return err
		}
	}
	l.s.c.at("linked")
	return errors.Join(durable.WriteSynced(filepath.Join(at, "complete"), nil, 0o644), durable.SyncDir(at))
}

// readTree reads a tree's index, and says why it cannot be served. Files' bytes are Verify's to read.
func (s *Store) readTree(name string) (*Tree, error) {
	if _, err := os.Stat(s.path("trees", name, "complete")); err != nil {
		return nil, err
	}
	entries, err := s.readIndex(name)
	if err != nil {
		return nil, err
	}
	t := &Tree{Digest: "sha256:" + name, Files: len(entries)}
	for _, e := range entries {
		t.Size += e.Size
	}
	return t, nil
}

func (s *Store) readIndex(name string) ([]fetch.Entry, error) {
	text, err := os.ReadFile(s.path("trees", name, "index.json"))
	if err != nil {
		return nil, err
	}
	if key(string(text)) != name {
		return nil, fmt.Errorf("tree %s: its index is another's", name)
	}
	return fetch.ParseIndex(text)
}

// Verify reads all of a tree, and names what differs from its index. Such a tree is served no more; where it is mounted it stays, for a
// process that reads it is not helped by a file that vanishes.
func (s *Store) Verify(ctx context.Context, digest string) error {
	name := strings.TrimPrefix(digest, "sha256:")
	s.mu.Lock()
	known := s.trees[name] != nil
	s.mu.Unlock()
	if !known {
		return fmt.Errorf("verify dataset %s: %w on this node", digest, fetch.ErrNotFound)
	}
	entries, err := s.readIndex(name)
	for _, e := range entries {
		if err == nil {
			err = s.verifyFile(ctx, name, e)
		}
	}
	if err == nil || ctx.Err() != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.trees, name)
	err = fmt.Errorf("verify dataset %s: %w; it is served no more: load it again", digest, err)
	err = errors.Join(err, os.Rename(s.path("trees", name), s.path("aside", fmt.Sprintf("%s.%d", name, s.c.Now().UnixNano()))))
	return err
}

func (s *Store) verifyFile(ctx context.Context, name string, e fetch.Entry) error {
	f, err := os.Open(s.path("trees", name, "files", filepath.FromSlash(e.Path)))
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	sum := sha256.New()
	for {
		n, err := io.CopyN(sum, f, int64(16*node.MiB))
		if err := ctx.Err(); err != nil {
			return err
		}
		if errors.Is(err, io.EOF) || n == 0 {
			break
		}
		if err != nil {
			return err
		}
	}
	if got := "sha256:" + hex.EncodeToString(sum.Sum(nil)); got != e.Digest {
		// The blob is every tree's: it must not be linked again.
		blob := blobName(e, e.Digest)
		err := os.Rename(s.path("blobs", blob), s.path("aside", fmt.Sprintf("%s.%d", blob, s.c.Now().UnixNano())))
		return errors.Join(fmt.Errorf("%w: %s was %s and is %s", fetch.ErrDigest, e.Path, e.Digest, got), err)
	}
	return nil
}

// Remove takes a tree away that nobody uses.
func (s *Store) Remove(digest string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	name := strings.TrimPrefix(digest, "sha256:")
	switch t := s.trees[name]; {
	case t == nil:
		return fmt.Errorf("remove dataset %s: %w on this node", digest, fetch.ErrNotFound)
	case len(t.References) > 0:
		return fmt.Errorf("remove dataset %s: it is mounted at %s; unmount it first", digest, strings.Join(t.References, ", "))
	case t.Pinned:
		return fmt.Errorf("remove dataset %s: it is pinned; unpin it first", digest)
	}
	return errors.Join(s.remove(name), s.sweep())
}

// remove is called with the lock held. The rename decides; what follows is finished by the next Open.
func (s *Store) remove(name string) error {
	if err := os.Rename(s.path("trees", name), s.path("trash", name)); err != nil {
		return err
	}
	delete(s.trees, name)
	s.c.at("trashed")
	if err := errors.Join(durable.SyncDir(s.path("trees")), s.records.Delete(name)); err != nil {
		return err
	}
	return os.RemoveAll(s.path("trash", name))
}

// sweep removes blobs that no tree links and no load holds, nor a checkpoint of one that was cut short. It is called with the lock held.
func (s *Store) sweep() error {
	kept, err := s.resumable()
	if err != nil {
		return err
	}
	names, err := os.ReadDir(s.path("blobs"))
	if err != nil {
		return err
	}
	for _, n := range names {
		info, err := n.Info()
		if err != nil {
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Nlink == 1 && s.held[n.Name()] == 0 && !kept[n.Name()] {
			if err := os.Remove(s.path("blobs", n.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// reserve promises room to a load, and evicts for it.
func (s *Store) reserve(key string, need node.Bytes) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	total, free, err := s.c.Usage(s.c.Dir)
	if err != nil {
		return err
	}
	sp := space{total: total, free: free, high: s.c.High, low: s.c.Low}
	for _, r := range s.reserved {
		sp.reserved += r
	}
	var all []candidate
	for name, t := range s.trees {
		all = append(all, candidate{name: name, frees: s.alone(name), used: t.Used, pinned: t.Pinned, referenced: len(t.References) > 0})
	}
	evict, err := plan(need, sp, all)
	if err != nil {
		return err
	}
	for _, name := range evict {
		if err := s.remove(name); err != nil {
			return err
		}
	}
	if len(evict) > 0 {
		if err := s.sweep(); err != nil {
			return err
		}
	}
	s.reserved[key] = need
	return nil
}

// alone is the size of a tree's blobs that no other tree links.
func (s *Store) alone(name string) (size node.Bytes) {
	_ = filepath.WalkDir(s.path("trees", name, "files"), func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		if info, err := d.Info(); err == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Nlink <= 2 {
				size += node.Bytes(st.Size)
			}
		}
		return nil
	})
	return size
}

// resumable is the blobs that loads which were cut short count on. A load that runs has the lock of its checkpoints; its blobs are held.
func (s *Store) resumable() (map[string]bool, error) {
	kept := map[string]bool{}
	keys, err := os.ReadDir(s.path("incoming"))
	if err != nil {
		return nil, err
	}
	for _, k := range keys {
		saved, err := durable.Open[checkpoint](s.path("incoming", k.Name(), "state"))
		if errors.Is(err, durable.ErrLocked) {
			continue
		}
		if err != nil {
			return nil, err
		}
		all, _, err := saved.Load()
		if err := errors.Join(err, saved.Close()); err != nil {
			return nil, err
		}
		for _, c := range all {
			if c.Blob != "" {
				kept[c.Blob] = true
			}
		}
	}
	return kept, nil
}
