// Package pooltest holds a back end of package pool to its contract. A test binary that calls Run calls Main first, for the processes
// that are killed.
package pooltest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/kerf-gpu/kerf/csi/pool"
	"github.com/kerf-gpu/kerf/internal/node"
)

// Place is an empty directory that the suite may fill, and the back end that must work there.
type Place struct {
	Path    string
	Backend string
	Spec    pool.Spec // of the volumes that are made; as small as the back end makes them
	Clones  bool      // it must be a Cloner
	Blocks  bool      // it must make block volumes
	Reserve bool      // it must set space aside
}

// Run holds the back end to the contract.
func Run(t *testing.T, p Place) {
	t.Helper()
	t.Run("Contract", func(t *testing.T) { contract(t, p) })
	t.Run("Ids", func(t *testing.T) { badIDs(t, p) })
	if p.Spec.Size > 0 && p.Backend != pool.KindDir {
		t.Run("Limit", func(t *testing.T) { limit(t, p) })
	}
	if p.Clones {
		t.Run("Clone", func(t *testing.T) { clones(t, p) })
	}
	if p.Blocks {
		t.Run("Block", func(t *testing.T) { blocks(t, p) })
	}
	if p.Reserve {
		t.Run("Reserve", func(t *testing.T) { reserve(t, p) })
	}
	t.Run("Kill", func(t *testing.T) { kills(t, p) })
	clean(t, p)
}

// open opens the pool for one test; volumes that the test leaves are an error.
func open(t *testing.T, p Place) pool.Backend {
	t.Helper()
	opened, err := pool.Open(t.Context(), pool.Config{Name: "test", Path: p.Path, Backend: p.Backend, Unlimited: p.Backend == pool.KindDir})
	must(t, err)
	t.Cleanup(func() {
		left, err := opened.Backend.List(context.Background())
		if err != nil || len(left) > 0 {
			t.Errorf("left: %v, %v", left, err)
		}
		for _, id := range left {
			_ = opened.Backend.Close(context.Background(), id)
			_ = opened.Backend.Delete(context.Background(), id)
		}
		if err := opened.Close(); err != nil {
			t.Error(err)
		}
	})
	return opened.Backend
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func contract(t *testing.T, p Place) {
	ctx, b := t.Context(), open(t, p)
	must(t, b.Create(ctx, "one", p.Spec))
	must(t, b.Create(ctx, "one", p.Spec))
	if other := p.Spec; other.Size > 0 && p.Backend != pool.KindDir {
		other.Size *= 2
		if err := b.Create(ctx, "one", other); !errors.Is(err, pool.ErrExists) {
			t.Errorf("Create with another spec: %v", err)
		}
	}
	path, err := b.Open(ctx, "one")
	must(t, err)
	must(t, os.WriteFile(filepath.Join(path, "file"), []byte("kept"), 0o600))
	if again, err := b.Open(ctx, "one"); err != nil || again != path {
		t.Errorf("Open again: %s, %v; want %s", again, err, path)
	}
	if u, err := b.Usage(ctx, "one"); err != nil || u.Size > p.Spec.Size || u.Used > p.Spec.Size {
		t.Errorf("Usage: %+v, %v", u, err)
	}
	if c, err := b.Capacity(ctx); err != nil || c.Total <= 0 || c.Free > c.Total || c.Largest > c.Free {
		t.Errorf("Capacity: %+v, %v", c, err)
	}
	if ids, err := b.List(ctx); err != nil || !slices.Equal(ids, []string{"one"}) {
		t.Errorf("List: %v, %v", ids, err)
	}
	must(t, b.Close(ctx, "one"))
	must(t, b.Close(ctx, "one"))
	path, err = b.Open(ctx, "one")
	must(t, err)
	if got, err := os.ReadFile(filepath.Join(path, "file")); string(got) != "kept" {
		t.Errorf("after Close and Open: %q, %v", got, err)
	}
	must(t, b.Close(ctx, "one"))
	must(t, b.Delete(ctx, "one"))
	must(t, b.Delete(ctx, "one"))
	if _, err := b.Open(ctx, "one"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open of one that is deleted: %v", err)
	}
}

func badIDs(t *testing.T, p Place) {
	ctx, b := t.Context(), open(t, p)
	for _, id := range []string{"", ".", "..", "../one", "a/b", "/etc", "-a", "A", "a\x00", "ü", strings.Repeat("a", 65), "records"[:0]} {
		if err := b.Create(ctx, id, p.Spec); err == nil {
			t.Errorf("Create(%q) is no error", id)
		}
		if err := b.Delete(ctx, id); err == nil {
			t.Errorf("Delete(%q) is no error", id)
		}
		if _, err := b.Open(ctx, id); err == nil {
			t.Errorf("Open(%q) is no error", id)
		}
	}
}

// fill writes until it may not, and answers how much was taken.
func fill(path string, most node.Bytes) (written node.Bytes, err error) {
	return written, errors.Join(pool.AsTenant(func() error {
		written, err = write(path, most)
		return nil
	}), err)
}

func write(path string, most node.Bytes) (written node.Bytes, err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }()
	chunk := make([]byte, 4*node.MiB)
	for written < most {
		if _, err = f.Write(chunk); err == nil {
			err = f.Sync()
		}
		if err != nil {
			return written, err
		}
		written += 4 * node.MiB
	}
	return written, nil
}

func full(err error) bool { return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) }

func limit(t *testing.T, p Place) {
	ctx, b := t.Context(), open(t, p)
	paths := make(map[string]string)
	for _, id := range []string{"greedy", "neighbour"} {
		must(t, b.Create(ctx, id, p.Spec))
		path, err := b.Open(ctx, id)
		must(t, err)
		paths[id] = path
	}
	got, err := fill(filepath.Join(paths["greedy"], "a"), 2*p.Spec.Size)
	if !full(err) || got > p.Spec.Size || got < p.Spec.Size/2 {
		t.Errorf("a volume of %s took %s, then: %v", p.Spec.Size, got, err)
	}
	if _, err := fill(filepath.Join(paths["neighbour"], "a"), 2*node.MiB); err != nil {
		t.Errorf("the neighbour of a full volume: %v", err)
	}
	if e, ok := b.(pool.Expander); ok {
		must(t, e.Expand(ctx, "greedy", 2*p.Spec.Size))
		must(t, e.Expand(ctx, "greedy", 2*p.Spec.Size))
		more, err := fill(filepath.Join(paths["greedy"], "b"), 3*p.Spec.Size)
		if !full(err) || got+more > 2*p.Spec.Size || more < p.Spec.Size/2 {
			t.Errorf("expanded to %s, it took %s and %s, then: %v", 2*p.Spec.Size, got, more, err)
		}
		if u, err := b.Usage(ctx, "greedy"); err != nil || u.Size > 2*p.Spec.Size || u.Size < p.Spec.Size*3/2 {
			t.Errorf("Usage: %+v, %v", u, err)
		}
	} else {
		t.Error("it does not expand")
	}
	remove(t, b, "greedy", "neighbour")
}

func remove(t *testing.T, b pool.Backend, ids ...string) {
	t.Helper()
	for _, id := range ids {
		must(t, b.Close(t.Context(), id))
		must(t, b.Delete(t.Context(), id))
	}
}

func clones(t *testing.T, p Place) {
	ctx, b := t.Context(), open(t, p)
	c, ok := b.(pool.Cloner)
	if !ok {
		t.Fatal("it is no Cloner")
	}
	must(t, b.Create(ctx, "origin", p.Spec))
	path, err := b.Open(ctx, "origin")
	must(t, err)
	file := filepath.Join(path, "file")
	must(t, os.WriteFile(file, []byte("old"), 0o600))
	must(t, c.Snapshot(ctx, "origin", "snapshot"))
	must(t, c.Snapshot(ctx, "origin", "snapshot"))
	must(t, os.WriteFile(file, []byte("new"), 0o600))
	larger := p.Spec
	larger.Size *= 2
	must(t, c.Clone(ctx, "snapshot", "clone", larger))
	smaller := p.Spec
	smaller.Size--
	if err := c.Clone(ctx, "origin", "small", smaller); err == nil {
		t.Error("a clone smaller than its origin is no error")
	}
	must(t, b.Close(ctx, "origin"))
	must(t, b.Delete(ctx, "origin"))
	for _, id := range []string{"snapshot", "clone"} {
		path, err := b.Open(ctx, id)
		must(t, err)
		if got, err := os.ReadFile(filepath.Join(path, "file")); string(got) != "old" {
			t.Errorf("%s: %q, %v", id, got, err)
		}
	}
	path, err = b.Open(ctx, "clone")
	must(t, err)
	must(t, os.WriteFile(filepath.Join(path, "file"), []byte("own"), 0o600))
	if got, err := fill(filepath.Join(path, "fill"), 3*p.Spec.Size); !full(err) || got > 2*p.Spec.Size || got < p.Spec.Size {
		t.Errorf("a clone of %s took %s, then: %v", 2*p.Spec.Size, got, err)
	}
	remove(t, b, "snapshot", "clone")
}

func blocks(t *testing.T, p Place) {
	ctx, b := t.Context(), open(t, p)
	must(t, b.Create(ctx, "disk", pool.Spec{Size: 32 * node.MiB, Block: true}))
	path, err := b.Open(ctx, "disk")
	must(t, err)
	size := func() int64 {
		f, err := os.Open(path)
		must(t, err)
		defer func() { _ = f.Close() }()
		end, err := f.Seek(0, 2)
		must(t, err)
		return end
	}
	if got := size(); got != int64(32*node.MiB) {
		t.Errorf("%d bytes", got)
	}
	if again, err := b.Open(ctx, "disk"); err != nil || again != path {
		t.Errorf("Open again: %s, %v; want %s", again, err, path)
	}
	if e, ok := b.(pool.Expander); ok {
		must(t, e.Expand(ctx, "disk", 48*node.MiB))
		if got := size(); got != int64(48*node.MiB) {
			t.Errorf("expanded: %d bytes", got)
		}
	}
	remove(t, b, "disk")
}

func reserve(t *testing.T, p Place) {
	ctx, b := t.Context(), open(t, p)
	s := p.Spec
	s.Guaranteed = true
	must(t, b.Create(ctx, "sure", s))
	var allocated node.Bytes
	must(t, filepath.WalkDir(filepath.Join(p.Path, "volumes/sure"), func(path string, _ fs.DirEntry, err error) error {
		if info, e := os.Stat(path); e == nil {
			allocated += node.Bytes(info.Sys().(*syscall.Stat_t).Blocks) * 512
		}
		return err
	}))
	if allocated < s.Size {
		t.Errorf("%s of %s set aside", allocated, s.Size)
	}
	s.Size = 1 << 50
	if err := b.Create(ctx, "much", s); !full(err) && !errors.Is(err, syscall.EFBIG) {
		t.Errorf("more than there is: %v", err)
	}
	remove(t, b, "sure")
}

// clean sees that nothing of the suite is left: no mount, no loop device, no half of a volume.
func clean(t *testing.T, p Place) {
	t.Helper()
	for _, dir := range []string{"volumes", "new", "gone", "mnt"} {
		left, err := os.ReadDir(filepath.Join(p.Path, dir))
		if err != nil || len(left) > 0 {
			t.Errorf("left in %s: %v, %v", dir, left, err)
		}
	}
	found, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, path := range found {
		if name, err := os.ReadFile(path); err == nil && strings.Contains(string(name), p.Path+"/") {
			t.Errorf("left: %s is %s", path, name)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), " "+p.Path+"/") {
		t.Errorf("a mount is left (%v)", err)
	}
}

func encode(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprint("encode: ", err)) // strings and numbers
	}
	return string(text)
}
