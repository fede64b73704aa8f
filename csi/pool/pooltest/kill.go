package pooltest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/kerf-gpu/kerf/csi/pool"
)

// variable has the errand of a process that is killed on it.
const variable = "KERF_POOLTEST_ERRAND"

// errand is what a child does until it dies.
type errand struct {
	Place Place
	Do    string
	Die   int // at this point of change; 0: never
}

var errands = []string{"create", "open", "expand", "clone", "delete"}

// Main is called by TestMain. In a child it does its errand and ends.
func Main() {
	text := os.Getenv(variable)
	if text == "" {
		return
	}
	var e errand
	err := json.Unmarshal([]byte(text), &e)
	if err == nil {
		err = e.run(context.Background())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func (e errand) run(ctx context.Context) error {
	armed, hits := false, 0
	at := func(string) {
		if !armed {
			return
		}
		if hits++; hits == e.Die {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {} // it comes
		}
	}
	opened, err := pool.Open(ctx, pool.Config{Name: "child", Path: e.Place.Path, Backend: e.Place.Backend, Unlimited: e.Place.Backend == pool.KindDir, At: at})
	if err != nil {
		return err
	}
	armed = true
	return do(ctx, opened.Backend, e.Do, e.Place.Spec)
}

func do(ctx context.Context, b pool.Backend, what string, s pool.Spec) error {
	switch what {
	case "create":
		return b.Create(ctx, "one", s)
	case "open":
		_, err := b.Open(ctx, "one")
		return err
	case "expand":
		return b.(pool.Expander).Expand(ctx, "one", 2*s.Size)
	case "clone":
		return b.(pool.Cloner).Clone(ctx, "one", "two", s)
	}
	return errors.Join(b.Close(ctx, "one"), b.Delete(ctx, "one"))
}

// kills kills a process at each point of each errand, then does it again: it must end as if it had never been killed.
func kills(t *testing.T, p Place) {
	for _, what := range errands {
		if what == "clone" && !p.Clones {
			continue
		}
		t.Run(what, func(t *testing.T) {
			for die := 1; ; die++ {
				if die > 50 {
					t.Fatal("more than 50 points")
				}
				if !killed(t, errand{p, what, die}) {
					break
				}
			}
		})
	}
}

// killed runs an errand with a kill and says whether it met it.
func killed(t *testing.T, e errand) bool {
	t.Helper()
	if e.Do != "create" {
		alone(t, e.Place, func(b pool.Backend) {
			must(t, b.Create(t.Context(), "one", e.Place.Spec))
			path, err := b.Open(t.Context(), "one")
			must(t, err)
			must(t, os.WriteFile(filepath.Join(path, "file"), []byte("kept"), 0o600))
			if e.Do == "open" {
				must(t, b.Close(t.Context(), "one"))
			}
		})
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), variable+"="+encode(e))
	out, err := cmd.CombinedOutput()
	met := err != nil
	if met && !cmd.ProcessState.Sys().(syscall.WaitStatus).Signaled() {
		t.Fatalf("%s until point %d: %v: %s", e.Do, e.Die, err, out)
	}
	alone(t, e.Place, func(b pool.Backend) {
		all, err := b.List(t.Context())
		if err != nil || len(all) > 2 {
			t.Errorf("List after a kill: %v, %v", all, err)
		}
		if e.Do == "clone" && e.Die%2 == 0 { // a caller that gives up
			must(t, b.Delete(t.Context(), "two"))
		}
		must(t, do(t.Context(), b, e.Do, e.Place.Spec))
		for _, id := range map[string][]string{"open": {"one"}, "expand": {"one"}, "clone": {"one", "two"}}[e.Do] {
			path, err := b.Open(t.Context(), id)
			must(t, err)
			if got, err := os.ReadFile(filepath.Join(path, "file")); string(got) != "kept" {
				t.Errorf("%s killed at point %d: %s has %q, %v", e.Do, e.Die, id, got, err)
			}
		}
		remove(t, b, "one", "two")
		if left, err := b.List(t.Context()); err != nil || slices.Contains(left, "one") || len(left) > 0 {
			t.Errorf("%s killed at point %d left %v, %v", e.Do, e.Die, left, err)
		}
	})
	clean(t, e.Place)
	return met
}

// alone opens the pool for a moment, so that a child can.
func alone(t *testing.T, p Place, use func(pool.Backend)) {
	t.Helper()
	opened, err := pool.Open(t.Context(), pool.Config{Name: "test", Path: p.Path, Backend: p.Backend, Unlimited: p.Backend == pool.KindDir})
	must(t, err)
	defer func() {
		if err := opened.Close(); err != nil {
			t.Error(err)
		}
	}()
	use(opened.Backend)
}
