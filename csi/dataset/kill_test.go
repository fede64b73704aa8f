package dataset

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/kerf-gpu/kerf/csi/fetch"
	"github.com/kerf-gpu/kerf/internal/durable"
	"github.com/kerf-gpu/kerf/internal/node"
)

// killEnv tells a child the store's directory, and at which point that it passes it dies.
const killEnv = "KERF_DATASET_KILL"

// killSources are of shared and of own files, with digests and without; the second load evicts nothing, the removal trashes the first.
func killSources() [2]*fakeSource {
	return [2]*fakeSource{
		{name: "a", digests: true, files: map[string][]byte{"d/1": noise(1, 3<<20+1), "d/2": noise(2, 7), "3": noise(3, 1<<20)}},
		{name: "b", files: map[string][]byte{"d/1": noise(1, 3<<20+1), "4": noise(4, 2<<20)}},
	}
}

func killConfig(dir string, at func(string)) Config {
	return Config{Dir: dir, High: 100, Low: 100, Copy: fetch.Options{Part: node.MiB, Workers: 2, Attempts: 1}, at: at,
		Usage: func(string) (total, free node.Bytes, err error) { return node.GiB, node.GiB, nil }}
}

// life loads both, and removes the first.
func life(s *Store, sources [2]*fakeSource) error {
	first, err := s.Load(context.Background(), sources[0], nil)
	if err != nil {
		return err
	}
	if _, err := s.Load(context.Background(), sources[1], nil); err != nil {
		return err
	}
	return s.Remove(first)
}

func TestMain(m *testing.M) {
	var dir string
	var hit int64
	if _, err := fmt.Sscanf(os.Getenv(killEnv), "%d %s", &hit, &dir); err != nil {
		os.Exit(m.Run())
	}
	var passed atomic.Int64
	at := func(string) {
		if passed.Add(1) == hit {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}
	sources := killSources()
	for _, f := range sources {
		f.open = func() { at("open") } // in the midst of parts, too
	}
	s, err := Open(killConfig(dir, at), nowhere)
	if err == nil {
		err = life(s, sources)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// child lives in a directory until it is killed; false is that it came to its end.
func child(t *testing.T, dir string, hit int) (killed bool) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d %s", killEnv, hit, dir))
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL {
		return true
	}
	if err != nil {
		t.Fatalf("child that dies at point %d: %v\n%s", hit, err, out)
	}
	return false
}

// survivor opens what a killed child left: all that is served is whole, the rest of the life succeeds, and nothing is left over.
func survivor(t *testing.T, dir string) {
	t.Helper()
	s, err := Open(killConfig(dir, nil), nowhere)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	for _, tree := range s.List() {
		if err := s.Verify(context.Background(), tree.Digest); err != nil {
			t.Fatal(err)
		}
	}
	sources := killSources()
	if err := life(s, sources); err != nil {
		t.Fatal(err)
	}
	all := s.List()
	if len(all) != 1 || all[0].Source != "b" {
		t.Fatalf("trees: %+v; want that of b", all)
	}
	checkTree(t, s, all[0].Digest, sources[1])
	for folder, want := range map[string]int{"trees": 1, "incoming": 0, "aside": 0, "trash": 0, "blobs": 2} {
		if n := count(t, s, folder); n != want {
			t.Errorf("%d things in %s, want %d", n, folder, want)
		}
	}
}

// TestKill kills a child at each point that it passes, one after another.
func TestKill(t *testing.T) {
	for hit := 1; ; hit++ {
		dir := t.TempDir()
		killed := child(t, dir, hit)
		survivor(t, dir)
		if t.Failed() {
			t.Fatalf("after a death at point %d", hit)
		}
		if !killed {
			if hit < 20 {
				t.Errorf("a life has %d points, want 20 and more", hit)
			}
			return
		}
		_ = os.RemoveAll(dir)
	}
}

// TestKillOften kills a few children in a row in one directory, at random.
func TestKillOften(t *testing.T) {
	rounds := 5
	if os.Getenv("KERF_SOAK") != "" {
		rounds = 1000
	}
	for round := range rounds {
		seed := rand.Uint64()
		r, dir := rand.New(rand.NewPCG(seed, 0)), t.TempDir()
		var hits []string
		for range 1 + r.IntN(4) {
			hit := 1 + r.IntN(30)
			hits = append(hits, fmt.Sprint(hit))
			if !child(t, dir, hit) {
				break
			}
		}
		survivor(t, dir)
		if t.Failed() {
			t.Fatalf("round %d, after deaths at points %s", round, strings.Join(hits, ", "))
		}
		_ = os.RemoveAll(dir)
		if (round+1)%50 == 0 {
			t.Logf("%d rounds", round+1)
		}
	}
}

// TestStaleCheckpoint: a checkpoint whose blob is gone does not vouch for the part that is begun anew.
func TestStaleCheckpoint(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s := testStore(t, nil)
	f := &fakeSource{name: "a", files: map[string][]byte{"f": noise(1, 8<<20)}}
	entries, _ := f.List(ctx)
	state := s.path("incoming", key(f.name), "state")
	saved, err := durable.Open[checkpoint](state)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(saved.Put(key("f"), checkpoint{Entry: entries[0], Blob: key("gone")}), saved.Close()); err != nil {
		t.Fatal(err)
	}
	f.open = func() {
		if _, err := os.Stat(filepath.Join(state, key("f")+".json")); err == nil {
			t.Error("the checkpoint is still there when the part is written")
		}
		cancel()
	}
	if _, err := s.Load(ctx, f, nil); !errors.Is(err, context.Canceled) {
		t.Fatalf("cancelled: %v", err)
	}
	f.open = nil
	checkTree(t, s, mustLoad(t, s, f), f)
}

// TestResume: a load that was cut short after a checkpoint reads only what it lost.
func TestResume(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s := testStore(t, nil)
	f := &fakeSource{name: "a", files: map[string][]byte{"f": noise(1, 80<<20)}}
	var opened atomic.Int64
	f.open = func() {
		if opened.Add(1) == 70 {
			cancel()
		}
	}
	if _, err := s.Load(ctx, f, nil); !errors.Is(err, context.Canceled) {
		t.Fatalf("cancelled: %v", err)
	}
	before := f.served.Swap(0)
	checkTree(t, s, mustLoad(t, s, f), f)
	if again := f.served.Load(); before+again > 80<<20+8<<20 {
		t.Errorf("read %d bytes, and %d more after the cancel; want 80 MiB and a few parts", before, again)
	}
}
