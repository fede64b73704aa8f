package dataset

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kerf-gpu/kerf/csi/fetch"
	"github.com/kerf-gpu/kerf/internal/node"
)

func nowhere(string) bool { return false }

// testStore has a simulated disk of 1000 MiB, which fills as the store does.
func testStore(t *testing.T, change func(*Config)) *Store {
	t.Helper()
	c := Config{Dir: t.TempDir(), High: 90, Low: 80, Copy: fetch.Options{Part: node.MiB, Workers: 4, Attempts: 1}}
	if change != nil {
		change(&c)
	}
	s, err := Open(c, nowhere)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func mustLoad(t *testing.T, s *Store, f *fakeSource) string {
	t.Helper()
	digest, err := s.Load(t.Context(), f, nil)
	if err != nil {
		t.Fatal(err)
	}
	return digest
}

func checkTree(t *testing.T, s *Store, digest string, f *fakeSource) {
	t.Helper()
	if err := s.Verify(context.Background(), digest); err != nil {
		t.Fatal(err)
	}
	for path, want := range f.files {
		got, err := os.ReadFile(s.path("trees", strings.TrimPrefix(digest, "sha256:"), "files", path))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s differs from the source's (%v)", path, err)
		}
	}
}

func count(t *testing.T, s *Store, folder string) int {
	t.Helper()
	names, err := os.ReadDir(s.path(folder))
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

func TestOneCopy(t *testing.T) {
	s := testStore(t, nil)
	a := &fakeSource{name: "a", digests: true, files: map[string][]byte{"w/1": noise(1, 3<<20+5), "w/2": noise(2, 100), "empty": nil}}
	b := &fakeSource{name: "b", digests: true, files: map[string][]byte{"other": noise(1, 3<<20+5)}}
	da, db := mustLoad(t, s, a), mustLoad(t, s, b)
	checkTree(t, s, da, a)
	checkTree(t, s, db, b)
	if b.served.Load() != 0 {
		t.Errorf("the second dataset read %d bytes that were here", b.served.Load())
	}
	st := func(digest, path string) (x syscall.Stat_t) {
		if err := syscall.Stat(s.path("trees", strings.TrimPrefix(digest, "sha256:"), "files", path), &x); err != nil {
			t.Fatal(err)
		}
		return x
	}
	if x, y := st(da, "w/1"), st(db, "other"); x.Ino != y.Ino || x.Mode&0o777 != 0o444 {
		t.Errorf("inodes %d and %d, mode %o; want one inode, 444", x.Ino, y.Ino, x.Mode&0o777)
	}
	if again := mustLoad(t, s, a); again != da {
		t.Errorf("the same files are %s and %s", da, again)
	}
	// The tree's name is of the files, not of where they came from, nor of what the source told.
	if c := mustLoad(t, s, &fakeSource{name: "c", files: a.files}); c != da {
		t.Errorf("a source that tells no digests gives %s, want %s", c, da)
	}
	if err := s.Remove(da); err != nil {
		t.Fatal(err)
	}
	checkTree(t, s, db, b)
	if n := count(t, s, "blobs"); n != 1 {
		t.Errorf("%d blobs are left, want the one that is used", n)
	}
}

func TestDigestMismatch(t *testing.T) {
	s := testStore(t, nil)
	f := &fakeSource{name: "a", digests: true, files: map[string][]byte{"1": noise(1, 2<<20), "2": noise(2, 10)}, flip: "1"}
	if _, err := s.Load(t.Context(), f, nil); !errors.Is(err, fetch.ErrDigest) {
		t.Fatalf("wrong bytes: %v", err)
	}
	if len(s.List()) != 0 || count(t, s, "trees") != 0 || count(t, s, "aside") != 1 {
		t.Errorf("trees %d, set aside %d; want 0 and 1", count(t, s, "trees"), count(t, s, "aside"))
	}
	f.flip = ""
	checkTree(t, s, mustLoad(t, s, f), f)
}

func TestVerifyFindsRot(t *testing.T) {
	s := testStore(t, nil)
	f := &fakeSource{name: "a", digests: true, files: map[string][]byte{"1": noise(1, 2<<20)}}
	digest := mustLoad(t, s, f)
	at := s.path("trees", strings.TrimPrefix(digest, "sha256:"), "files", "1")
	if err := errors.Join(os.Chmod(at, 0o600), os.WriteFile(at, noise(9, 2<<20), 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := s.Verify(t.Context(), digest); !errors.Is(err, fetch.ErrDigest) {
		t.Fatalf("rotten bytes: %v", err)
	}
	if _, err := s.Reference(digest, "/mnt"); !errors.Is(err, fetch.ErrNotFound) {
		t.Errorf("a rotten tree is served: %v", err)
	}
	checkTree(t, s, mustLoad(t, s, f), f)
}

// TestReservations: two that fit alone and not together are not both admitted.
func TestReservations(t *testing.T) {
	s := testStore(t, func(c *Config) {
		c.Usage = func(string) (total, free node.Bytes, err error) { return 100 * node.MiB, 15 * node.MiB, nil } // 5 below the high mark
	})
	started, release := make(chan struct{}, 16), make(chan struct{})
	a := &fakeSource{name: "a", files: map[string][]byte{"1": noise(1, 3<<20)}, open: func() { started <- struct{}{}; <-release }}
	b := &fakeSource{name: "b", files: map[string][]byte{"2": noise(2, 3<<20)}}
	done := make(chan error)
	go func() { _, err := s.Load(t.Context(), a, nil); done <- err }()
	<-started
	_, err := s.Load(t.Context(), b, nil)
	var full *CapacityError
	if !errors.As(err, &full) || full.Need != 3*node.MiB || full.Free != 2*node.MiB {
		t.Errorf("the second: %v; want that 2 MiB are free", err)
	}
	if _, err := s.Load(t.Context(), a, nil); !errors.Is(err, ErrLoading) {
		t.Errorf("the same one twice: %v", err)
	}
	close(release)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	mustLoad(t, s, b)
}

func TestEviction(t *testing.T) {
	clock, used := time.Unix(0, 0), func(string) node.Bytes { return 0 }
	s := testStore(t, func(c *Config) {
		c.High, c.Low = 80, 80
		c.Now = func() time.Time { clock = clock.Add(time.Second); return clock }
		c.Usage = func(dir string) (total, free node.Bytes, err error) {
			return 10 * node.MiB, 10*node.MiB - used(dir), nil
		}
	})
	used = func(dir string) (sum node.Bytes) {
		blobs, _ := filepath.Glob(filepath.Join(dir, "blobs", "*"))
		for _, b := range blobs {
			if st, err := os.Stat(b); err == nil {
				sum += node.Bytes(st.Size())
			}
		}
		return sum
	}
	source := func(n uint64, size int) *fakeSource {
		return &fakeSource{name: string(rune('a' + n)), files: map[string][]byte{"f": noise(n, size)}}
	}
	pinned, referenced, idle := mustLoad(t, s, source(0, 2<<20)), mustLoad(t, s, source(1, 2<<20)), mustLoad(t, s, source(2, 2<<20))
	if _, err := s.Reference(referenced, "/mnt"); err != nil {
		t.Fatal(err)
	}
	if err := s.Pin(pinned, true); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{pinned, referenced} {
		if err := s.Remove(d); err == nil {
			t.Errorf("%s was removed in use", d)
		}
	}
	mustLoad(t, s, source(3, 3<<20)) // the idle one goes
	for _, x := range s.List() {
		if x.Digest == idle {
			t.Error("the idle tree is still there")
		}
	}
	_, err := s.Load(t.Context(), source(4, 7<<20), nil)
	var full *CapacityError
	if !errors.As(err, &full) || full.Pinned != 2*node.MiB || full.Referenced != 2*node.MiB {
		t.Fatalf("too large a dataset: %v", err)
	}
	if len(s.List()) != 3 {
		t.Errorf("%d trees, want 3: nothing goes for what does not fit anyway", len(s.List()))
	}
}

func TestReferencesAfterRestart(t *testing.T) {
	s := testStore(t, nil)
	digest := mustLoad(t, s, &fakeSource{name: "a", files: map[string][]byte{"f": noise(1, 10)}})
	for _, target := range []string{"/mounted", "/gone", "/gone"} {
		if _, err := s.Reference(digest, target); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s, err := Open(s.c, func(target string) bool { return target == "/mounted" })
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	if all := s.List(); len(all) != 1 || len(all[0].References) != 1 || all[0].References[0] != "/mounted" || all[0].Source != "a" {
		t.Errorf("after a restart: %+v", all)
	}
	for range 2 {
		if err := s.Release("/mounted"); err != nil {
			t.Error(err)
		}
	}
	if err := s.Remove(digest); err != nil {
		t.Error(err)
	}
}

func TestTreeWithoutMarker(t *testing.T) {
	s := testStore(t, nil)
	f := &fakeSource{name: "a", files: map[string][]byte{"f": noise(1, 10)}}
	digest := mustLoad(t, s, f)
	if err := errors.Join(s.Close(), os.Remove(s.path("trees", strings.TrimPrefix(digest, "sha256:"), "complete"))); err != nil {
		t.Fatal(err)
	}
	s, err := Open(s.c, nowhere)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	if len(s.List()) != 0 {
		t.Error("a tree without its marker is served")
	}
	checkTree(t, s, mustLoad(t, s, f), f)
}
