package shimtest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/kerf-gpu/kerf/internal/sim"
	"github.com/kerf-gpu/kerf/vgpu/region"
)

// The door lets a program evict itself, and small pieces let a test have many.
const doorFlags = "-DKERF_SWAP_DOOR -DPIECE_SMALL=4194304"

var (
	door          = variant{"door", "gcc", doorFlags}
	sanitizedDoor = variant{"door-asan", "gcc", doorFlags + " " + sanitized.flags}
)

// smallCard is a node with one card of 512 MiB.
func smallCard(t *testing.T) *sim.Node {
	t.Helper()
	p, err := sim.LoadProfile("h200x8")
	if err != nil {
		t.Fatal(err)
	}
	m := p.Models["h200"]
	m.Memory, m.Reserved, m.ContextBytes = 512*mib, 32*mib, 32*mib
	m.MIG.Capable, m.MIG.Profiles = false, nil
	p.Models["h200"] = m
	libs := libraries(t, plain, "simdriver", "simnvml")
	s, err := sim.Create(filepath.Join(t.TempDir(), "sim"), p, filepath.Join(libs, "sim"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// swapper is a tenant of an over-committed share, and the program that tries it.
type swapper struct {
	*tenantNode
	share *share
	bin   string
	env   []string
}

func newSwapper(t *testing.T, s *sim.Node, v variant, gpus int, limit uint64) *swapper {
	t.Helper()
	libs := libraries(t, plain, "simdriver", "simnvml")
	shims := libraries(t, v, "shim", "SHIM_MAP=vgpu/shim/test/door.map")
	w := &swapper{tenantNode: newTenant(t, shims, filepath.Join(libs, "sim/libcuda.so.1"), filepath.Join(libs, "sim/libnvidia-ml.so.1"))}
	w.sim = s.Root
	for i := range gpus {
		w.gpus = append(w.gpus, i)
	}
	var grants []grant
	for _, gpu := range s.Status().GPUs[:gpus] {
		grants = append(grants, grant{uuid: gpu.UUID, limit: limit, context: uint64(contextBytes)})
	}
	w.share = w.tenantNode.share(t, "overcommitted", grants...)
	w.share.policy.Page.Flags |= region.FlagOvercommit
	args := []string{filepath.Join(libs, "sim/libcuda.so.1")}
	name := "swap"
	if v.name == sanitizedDoor.name {
		args, name = append(args, strings.Fields(sanitized.flags)...), "swap-sanitized"
		w.env = []string{"ASAN_OPTIONS=detect_leaks=0"}
	}
	w.bin = program(t, name, "swap.c", args...)
	return w
}

func (w *swapper) try(t *testing.T, scenario string, args ...string) result {
	t.Helper()
	w.share.reset()
	argv := append([]string{w.bin, scenario, filepath.Join(repoRoot(t), "internal/cuda/kernels.ptx")}, args...)
	return w.view(argv...).run(t, "", w.env...)
}

// TestSwap runs tenants that leave the card and come back, also with a shim that watches itself.
func TestSwap(t *testing.T) {
	s := simNode(t, "h200x8")
	for _, v := range []variant{door, sanitizedDoor} {
		w := newSwapper(t, s, v, 2, 2<<30)
		for _, scenario := range []string{"basic", "contexts", "steps", "threads", "capture", "arbiter", "given", "locks", "peers", "waits"} {
			t.Run(v.name+"/"+scenario, func(t *testing.T) {
				if r := w.try(t, scenario).ok(t); !strings.HasSuffix(r.out, "ok\n") {
					t.Error(r.out, r.errs)
				}
			})
		}
		for _, class := range classes {
			if v.name != door.name {
				break // once is enough
			}
			t.Run(v.name+"/to the limit/"+class, func(t *testing.T) {
				w.share.reset()
				w.view(program(t, "mem", "mem.c"), "dlopen", class).run(t, "").ok(t)
			})
		}
		t.Run(v.name+"/random", func(t *testing.T) {
			cycles, seeds := 150, 1
			if v.name == door.name {
				cycles = 1000
			}
			if os.Getenv("KERF_SOAK") != "" {
				seeds = 20
			}
			for seed := range seeds {
				w.try(t, "random", fmt.Sprint(cycles), fmt.Sprint(seed)).ok(t)
			}
		})
	}
	cardIsEmpty(t, s)
}

// TestSwapKeeps has a share say what must stay on the card, and how much host memory there is.
func TestSwapKeeps(t *testing.T) {
	s := simNode(t, "h200x8")
	w := newSwapper(t, s, door, 1, 2<<30)
	w.share.policy.Page.Device[0].MinResident = contextBytes + 30*mib
	w.try(t, "partial").ok(t)
	w.share.policy.Page.Device[0].MinResident = 0
	w.share.policy.Page.Device[0].HostLimit = 40 * mib
	w.try(t, "poor").ok(t)
	cardIsEmpty(t, s)
}

// TestSwapKilled kills a process at steps of a move, in the long form at each: the card is empty afterwards.
func TestSwapKilled(t *testing.T) {
	s := simNode(t, "h200x8")
	w := newSwapper(t, s, door, 1, 2<<30)
	stride := 5
	if os.Getenv("KERF_SOAK") != "" {
		stride = 1
	}
	for step := 1; ; step += stride {
		r := w.try(t, "killed", fmt.Sprint(step))
		cardIsEmpty(t, s)
		if r.code == 0 {
			if step < 30 {
				t.Errorf("a move has only %d steps", step)
			}
			return
		}
		if r.code != -1 {
			t.Fatalf("step %d: exit status %d\n%s%s", step, r.code, r.out, r.errs)
		}
	}
}

// TestSwapTwo gives two processes three quarters each of what a card has, and they take turns on it.
func TestSwapTwo(t *testing.T) {
	s := smallCard(t)
	var done sync.WaitGroup
	turn := filepath.Join(t.TempDir(), "turn")
	for range 2 {
		w := newSwapper(t, s, door, 1, 512*mib)
		w.share.policy.Page.Device[0].ContextBytes = 32 * mib
		done.Go(func() {
			r := w.try(t, "turns", turn, "304", "8")
			if r.code != 0 {
				t.Errorf("exit status %d\n%s%s", r.code, r.out, r.errs)
			}
			t.Log(strings.TrimSpace(r.out))
		})
	}
	done.Wait()
	cardIsEmpty(t, s)
}

// TestSwapWithoutThreads has a process that cannot make the thread by which its memory would be moved: it gets no context, and says why.
func TestSwapWithoutThreads(t *testing.T) {
	s := simNode(t, "h200x8")
	w := newSwapper(t, s, door, 1, 2<<30)
	w.share.policy.Page.Flags |= region.FlagLeases
	preload := "LD_PRELOAD=" + program(t, "nothreads.so", "nothreads.c", "-shared", "-fPIC")
	r := w.view("/usr/bin/env", preload, w.bin, "threadless", "").run(t, "").ok(t)
	if r.out != "ok\n" || strings.Count(r.errs, "\n") != 1 || !strings.Contains(r.errs, "needs one thread") {
		t.Error(r.out, r.errs)
	}
	cardIsEmpty(t, s)
}
