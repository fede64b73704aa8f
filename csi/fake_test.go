package csi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/kerf-gpu/kerf/csi/pool"
	"github.com/kerf-gpu/kerf/internal/node"
)

// fakePool is a back end with its state in a directory, which outlives the process: specs/ID, volumes/ID/data, open/ID. It obeys the contract
// of package pool, and enforces no size.
type fakePool struct {
	dir   string
	total node.Bytes
	at    func(string)
}

var (
	_ pool.Backend  = fakePool{}
	_ pool.Expander = fakePool{}
	_ pool.Cloner   = fakePool{}
)

func newFakePool(dir string) fakePool {
	f := fakePool{dir: dir, total: 100 * node.GiB, at: func(string) {}}
	for _, sub := range []string{"specs", "volumes", "open"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			panic(err)
		}
	}
	return f
}

func (f fakePool) path(kind, id string) string { return filepath.Join(f.dir, kind, id) }

func (f fakePool) spec(id string) (s pool.Spec, err error) {
	text, err := os.ReadFile(f.path("specs", id))
	if err == nil {
		err = json.Unmarshal(text, &s)
	}
	return s, err
}

func (f fakePool) write(id string, s pool.Spec) error {
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if err := os.WriteFile(f.path("specs", id)+".new", text, 0o600); err != nil {
		return err
	}
	return os.Rename(f.path("specs", id)+".new", f.path("specs", id))
}

func (f fakePool) Create(_ context.Context, id string, s pool.Spec) error {
	if s.Block {
		return errors.New("this back end has no block volumes")
	}
	if s.Size > f.total {
		return syscall.ENOSPC
	}
	if err := os.Mkdir(f.path("volumes", id), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	f.at("pool.half-made")
	return f.write(id, s)
}

func (f fakePool) Delete(_ context.Context, id string) error {
	err := os.RemoveAll(f.path("volumes", id))
	f.at("pool.half-gone")
	for _, name := range []string{f.path("specs", id) + ".new", f.path("open", id), f.path("specs", id)} {
		if gone := os.Remove(name); !errors.Is(gone, fs.ErrNotExist) {
			err = errors.Join(err, gone)
		}
	}
	return err
}

func (f fakePool) Open(_ context.Context, id string) (string, error) {
	if _, err := f.spec(id); err != nil {
		return "", err
	}
	return f.path("volumes", id), os.WriteFile(f.path("open", id), nil, 0o600)
}

func (f fakePool) Close(_ context.Context, id string) error {
	if err := os.Remove(f.path("open", id)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (f fakePool) Usage(_ context.Context, id string) (u pool.Usage, err error) {
	s, err := f.spec(id)
	if err != nil {
		return u, err
	}
	u.Size = s.Size
	err = filepath.WalkDir(f.path("volumes", id), func(_ string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err == nil && info.Mode().IsRegular() {
			u.Used += node.Bytes(info.Size())
		}
		return err
	})
	return u, err
}

func (f fakePool) List(context.Context) (ids []string, err error) {
	seen := make(map[string]bool)
	for _, kind := range []string{"specs", "volumes", "open"} {
		entries, err := os.ReadDir(filepath.Join(f.dir, kind))
		if err != nil {
			return nil, err
		}
		for _, entry := range entries {
			if id := strings.TrimSuffix(entry.Name(), ".new"); !seen[id] {
				seen[id] = true
				ids = append(ids, id)
			}
		}
	}
	return ids, nil
}

func (f fakePool) Capacity(context.Context) (pool.Capacity, error) {
	return pool.Capacity{Total: f.total, Free: f.total, Largest: f.total}, nil
}

func (f fakePool) Expand(_ context.Context, id string, size node.Bytes) error {
	s, err := f.spec(id)
	if err != nil {
		return err
	}
	if _, err := os.Stat(f.path("open", id)); err != nil {
		return fmt.Errorf("volume %s is not open", id)
	}
	s.Size = size
	return f.write(id, s)
}

func (f fakePool) Clone(ctx context.Context, from, id string, s pool.Spec) error {
	if err := f.Create(ctx, id, s); err != nil {
		return err
	}
	return os.CopyFS(f.path("volumes", id), os.DirFS(f.path("volumes", from)))
}

func (f fakePool) Snapshot(ctx context.Context, from, id string) error {
	s, err := f.spec(from)
	if err != nil {
		return err
	}
	return f.Clone(ctx, from, id, s)
}

// full is a back end whose disk is.
type full struct{ fakePool }

func (full) Create(context.Context, string, pool.Spec) error {
	return fmt.Errorf("write: %w", syscall.ENOSPC)
}
