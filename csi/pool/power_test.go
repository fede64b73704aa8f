package pool_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kerf-gpu/kerf/csi/pool"
	"github.com/kerf-gpu/kerf/internal/node"
)

// TestPowerCut copies a pool's disk by reflink at a random point of change, and mounts the copy, as after a power cut: what was acknowledged is there, what was deleted is not, and what is neither can be made or deleted.
func TestPowerCut(t *testing.T) {
	outer := inside(t, "btrfs", "4G", "")
	disks := filepath.Dir(outer)
	rounds := 3
	if os.Getenv("KERF_SOAK") == "1" {
		rounds = 60
	}
	disk := filepath.Join(disks, "disk")
	say(t, "truncate", "-s", "512M", disk)
	say(t, "mkfs.btrfs", "-q", disk)
	mounted := mount(t, disk, filepath.Join(disks, "live"))
	for round := range rounds {
		cut(t, round, disk, mounted)
	}
}

// truth is what callers were told, and the copy's disk.
type truth struct {
	Acknowledged, Deleted []string
	Copy                  string
}

func cut(t *testing.T, round int, disk, live string) {
	t.Helper()
	var known, atCut truth
	die, hits := 1+rand.IntN(24), 0
	copied := fmt.Sprintf("%s.%d", disk, round)
	at := func(string) {
		if hits++; hits == die {
			reflink(t, disk, copied)
			text, _ := json.Marshal(known)
			_ = json.Unmarshal(text, &atCut)
		}
	}
	path := filepath.Join(live, "pool")
	opened, err := pool.Open(t.Context(), pool.Config{Name: "live", Path: path, Backend: pool.KindBtrfs})
	if err != nil {
		t.Fatal(err)
	}
	if err := opened.Close(); err != nil { // its probe is not what is cut
		t.Fatal(err)
	}
	if opened, err = pool.Open(t.Context(), pool.Config{Name: "live", Path: path, Backend: pool.KindBtrfs, At: at}); err != nil {
		t.Fatal(err)
	}
	hits = 0
	for i := range 4 {
		id := fmt.Sprintf("v%d-%d", round, i)
		if err := opened.Backend.Create(t.Context(), id, pool.Spec{Size: 4 * node.MiB}); err != nil {
			t.Fatal(err)
		}
		known.Acknowledged = append(known.Acknowledged, id)
		if i%2 == 0 {
			known.Acknowledged = slices.DeleteFunc(known.Acknowledged, func(other string) bool { return other == id })
			if err := opened.Backend.Delete(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			known.Deleted = append(known.Deleted, id)
		}
	}
	for hits < die { // at the end
		at("")
	}
	for _, id := range known.Acknowledged {
		if err := opened.Backend.Delete(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	if err := opened.Close(); err != nil {
		t.Fatal(err)
	}
	afterwards(t, live, copied, atCut)
}

// afterwards mounts the copy beside its origin: the kernel (6.7) gives it another id for that time.
func afterwards(t *testing.T, live, copied string, told truth) {
	t.Helper()
	defer func() { _ = os.Remove(copied) }()
	target := live + "-copy"
	if err := os.MkdirAll(target, 0o755); err != nil {
		t.Fatal(err)
	}
	say(t, "mount", "-o", "loop", copied, target)
	defer func() {
		if err := unix.Unmount(target, 0); err != nil {
			t.Error(err)
		}
	}()
	opened, err := pool.Open(t.Context(), pool.Config{Name: "copy", Path: filepath.Join(target, "pool"), Backend: pool.KindBtrfs})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = opened.Close() }()
	for _, id := range told.Acknowledged {
		if _, err := opened.Backend.Open(t.Context(), id); err != nil {
			t.Errorf("acknowledged, and lost: %v", err)
		}
	}
	left, err := opened.Backend.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range left {
		if slices.Contains(told.Deleted, id) {
			t.Errorf("deleted, and back: %s", id)
		}
		if err := opened.Backend.Create(t.Context(), id, pool.Spec{Size: 4 * node.MiB}); err != nil {
			t.Errorf("make again: %v", err)
		}
		if err := opened.Backend.Delete(t.Context(), id); err != nil {
			t.Errorf("delete: %v", err)
		}
	}
	for _, dir := range []string{"volumes", "new", "gone"} {
		if entries, err := os.ReadDir(filepath.Join(target, "pool", dir)); err != nil || len(entries) > 0 {
			t.Errorf("left in %s: %v, %v", dir, entries, err)
		}
	}
}

func mount(t *testing.T, disk, target string) string {
	t.Helper()
	if err := os.MkdirAll(target, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "mount", "-o", "loop", disk, target).CombinedOutput(); err != nil {
		t.Skipf("mount %s: %s", disk, out)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(target, 0); err != nil {
			t.Error(err)
		}
	})
	return target
}

func reflink(t *testing.T, from, to string) {
	t.Helper()
	source, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = source.Close() }()
	f, err := os.Create(to)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := unix.IoctlFileClone(int(f.Fd()), int(source.Fd())); err != nil {
		t.Fatal(err)
	}
}
