package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kerf-gpu/kerf/hook/cdi"
	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/vgpu/arbiter"
	"github.com/kerf-gpu/kerf/vgpu/ledger"
	"github.com/kerf-gpu/kerf/vgpu/region"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

// site is a directory in which the doors of one kerfd after the other work, on a simulated node.
type site struct {
	t      testing.TB
	config Config
	*grants
	end func()
}

// siteDir is one for all sites: a process can bind NVML under one root only. t.TempDir is too long for a socket's path.
var siteDir = filepath.Join(os.TempDir(), fmt.Sprintf("kerfd-site-%d", os.Getpid()))

// siteRun is on a tmpfs where there is one, as /run is.
func siteRun() string {
	if exists("/dev/shm") {
		return filepath.Join("/dev/shm", filepath.Base(siteDir))
	}
	return filepath.Join(siteDir, "run")
}

func newSite(t testing.TB) *site {
	t.Helper()
	dir := siteDir
	t.Cleanup(func() { _, _ = os.RemoveAll(dir), os.RemoveAll(siteRun()) })
	c, err := Config{
		RunDir: filepath.Join(siteRun(), "run"), StateDir: filepath.Join(dir, "state"), LibDir: filepath.Join(build, "lib/kerf"),
		Simulate:   SimulateConfig{Profile: "a100x8"}, // the same for all: the simulated NVML reads it once a process
		Kubernetes: KubernetesConfig{Enabled: true, NodeName: "n", CDIDir: filepath.Join(siteRun(), "cdi"), HostDir: filepath.Join(dir, "host")},
	}.complete()
	if err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, config: c}
	s.start()
	t.Cleanup(func() { s.end() })
	return s
}

// start is what serve does, less the network.
func (s *site) start() {
	s.t.Helper()
	log := slog.New(slog.DiscardHandler)
	must := func(err error) {
		s.t.Helper()
		if err != nil {
			s.t.Fatal(err)
		}
	}
	must(os.MkdirAll(s.config.RunDir, 0o755))
	books, _, err := ledger.Open(s.config.ledgerDir())
	must(err)
	h, err := openHardware(s.config, len(books.Entries()) > 0, log)
	must(err)
	s.grants = newGrants(s.config, h, books, log)
	s.arbiter, err = arbiter.New(arbiter.Config{Shares: s.config.sharesDir(), Sessions: s.config.sessionsDir(), Memory: h, Notify: s.onEvent, Now: time.Now})
	must(err)
	must(s.restore())
	program := filepath.Join(filepath.Dir(os.Args[0]), "kerf-hook") // install takes it from beside the program
	must(os.WriteFile(program, []byte("#!/bin/sh\n"), 0o755))
	in, err := install(s.config.LibDir, s.config.Kubernetes.HostDir)
	must(err)
	s.containers, err = newContainers(s.config, h, in)
	must(err)
	(&kubernetes{config: s.config.Kubernetes, grants: s.grants, log: log, in: in}).takeUp()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { _ = s.arbiter.Run(ctx); close(ended) }()
	s.end = func() {
		cancel()
		<-ended
		_ = books.Close()
		_ = h.close(false)
	}
}

func (s *site) restart() {
	s.end()
	s.start()
}

func (s *site) dra() door { return door{ledger.DoorDRA, s.grants} }

// shares and specs are what there is in the world.
func (s *site) world() (shares, specs int) {
	s.t.Helper()
	dirs, err := os.ReadDir(s.config.sharesDir())
	if err != nil {
		s.t.Fatal(err)
	}
	names, err := cdi.Shares.List(s.config.Kubernetes.CDIDir)
	if err != nil {
		s.t.Fatal(err)
	}
	return len(dirs), len(names)
}

func (s *site) want(shares, specs, entries int) {
	s.t.Helper()
	gotShares, gotSpecs := s.world()
	got := []int{gotShares, gotSpecs, len(s.ledger.Entries())}
	if diff := cmp.Diff([]int{shares, specs, entries}, got); diff != "" {
		s.t.Errorf("shares, CDI specs, entries:\n%s", diff)
	}
}

var claim = ledger.Owner{UID: "5f0c", Namespace: "team", Name: "llm"}

func slice(key string, memory node.Bytes) ledger.Ask {
	return ledger.Ask{Key: key, Request: share.Request{Memory: memory, Cores: 40}}
}

func TestHoldAndDrop(t *testing.T) {
	s := newSite(t)
	asks := []ledger.Ask{slice("5f0c-a", 30*node.GiB), slice("5f0c-b", 60*node.GiB)}
	first, err := s.dra().Hold(t.Context(), claim, asks)
	if err != nil {
		t.Fatal(err)
	}
	s.want(2, 2, 2)
	if first[1].CDI != "kerf.dev/share=5f0c-b" {
		t.Errorf("CDI device %q", first[1].CDI)
	}
	again, err := s.dra().Hold(t.Context(), claim, asks)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(first, again); diff != "" {
		t.Errorf("asked again:\n%s", diff)
	}
	s.want(2, 2, 2)
	if diff := cmp.Diff([]ledger.Owner{claim}, s.dra().Owners()); diff != "" {
		t.Error(diff)
	}
	if _, err := s.dra().Hold(t.Context(), ledger.Owner{UID: "x"}, []ledger.Ask{slice("x", node.GiB), slice("x2", 200*node.GiB)}); err == nil ||
		!strings.Contains(err.Error(), "memory 200Gi: the largest GPU here has") {
		t.Errorf("a claim that does not fit: %v", err)
	}
	s.want(2, 2, 2)
	for range 2 { // the second time there is nothing left
		if err := s.dra().Drop(t.Context(), claim.UID); err != nil {
			t.Fatal(err)
		}
		s.want(0, 0, 0)
	}
}

// After a reboot, /run is empty and claims live on.
func TestReboot(t *testing.T) {
	s := newSite(t)
	first, err := s.dra().Hold(t.Context(), claim, []ledger.Ask{slice("5f0c-a", 30*node.GiB)})
	if err != nil {
		t.Fatal(err)
	}
	s.end()
	for _, dir := range []string{s.config.RunDir, s.config.Kubernetes.CDIDir} {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	s.start()
	s.want(1, 1, 1)
	again, err := s.dra().Hold(t.Context(), claim, []ledger.Ask{slice("5f0c-a", 30*node.GiB)})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(first, again); diff != "" {
		t.Error(diff)
	}
}

// What a kerfd leaves that was killed between two steps, the next one puts right.
func TestTakeUp(t *testing.T) {
	s := newSite(t)
	if _, err := s.ledger.Hold(s.gpus(), ledger.DoorDRA, claim, []ledger.Ask{slice("5f0c-a", node.GiB)}, time.Now()); err != nil { // and died
		t.Fatal(err)
	}
	stray := filepath.Join(s.config.Kubernetes.CDIDir, "kerf.dev-share_gone.json")
	foreign := filepath.Join(s.config.Kubernetes.CDIDir, "nvidia.yaml")
	for _, file := range []string{stray, foreign} {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte("{}"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	s.restart()
	s.want(1, 1, 1)
	if !exists(foreign) || exists(stray) {
		t.Errorf("another's spec is there: %v; the one that nobody holds: %v", exists(foreign), exists(stray))
	}
}

func TestAdminHoldsNothing(t *testing.T) {
	s := newSite(t)
	ask := ledger.Ask{Key: "5f0c-w", Request: share.Request{Admin: true, GPU: []string{"0"}}}
	if _, err := s.dra().Hold(t.Context(), claim, []ledger.Ask{ask}); err != nil {
		t.Fatal(err)
	}
	s.want(0, 1, 1)
	if err := s.dra().Drop(t.Context(), claim.UID); err != nil {
		t.Fatal(err)
	}
	s.want(0, 0, 0)
}

func TestNoDirectoryForSpecs(t *testing.T) {
	s := newSite(t)
	if err := os.WriteFile(s.config.Kubernetes.CDIDir, nil, 0o644); err != nil { // root writes through any mode
		t.Fatal(err)
	}
	ask := []ledger.Ask{slice("5f0c-a", node.GiB)}
	if _, err := s.dra().Hold(t.Context(), claim, ask); err == nil || !strings.Contains(err.Error(), s.config.Kubernetes.CDIDir) {
		t.Errorf("error %v, want one that names the directory", err)
	}
	if err := os.Remove(s.config.Kubernetes.CDIDir); err != nil {
		t.Fatal(err)
	}
	if _, err := s.dra().Hold(t.Context(), claim, ask); err != nil {
		t.Errorf("tried again: %v", err)
	}
	s.want(1, 1, 1)
}

// A placement is made when its claim is prepared, and goes with it; a stranger's instances are left alone.
func TestPlacement(t *testing.T) {
	s := newSite(t) // GPU 6 is in MIG mode and empty, GPU 7 has instances that nobody at Kerf made
	instances := func(gpu int) int { return len(s.hardware.Node().GPUs[gpu].MIG.Instances) }
	place := func(key, gpu, profile string, start, size int) []ledger.Ask {
		return []ledger.Ask{{Key: key, Request: share.Request{Memory: 9 * node.GiB, GPU: []string{gpu}, Placement: &share.Placement{Profile: profile, Start: start, Size: size}}}}
	}
	held, err := s.dra().Hold(t.Context(), claim, place("5f0c-m", "6", "2g.20gb", 2, 2))
	if err != nil {
		t.Fatal(err)
	}
	if held[0].Grant.Devices[0].MIG == (node.MIGUUID{}) || instances(6) != 1 {
		t.Errorf("granted %+v; GPU 6 has %d instances", held[0].Grant.Devices, instances(6))
	}
	for key, want := range map[string]struct {
		asks []ledger.Ask
		err  string
	}{
		"overlap": {place("x-1", "6", "3g.40gb", 0, 4), "GPU 6 has 2g.20gb at slice 2 in its place"},
		"foreign": {place("x-2", "7", "1g.10gb", 0, 1), "which Kerf did not make"},
	} {
		if _, err := s.dra().Hold(t.Context(), ledger.Owner{UID: "x"}, want.asks); err == nil || !strings.Contains(err.Error(), want.err) {
			t.Errorf("%s: %v, want %q", key, err, want.err)
		}
	}
	s.restart()
	again, err := s.dra().Hold(t.Context(), claim, place("5f0c-m", "6", "2g.20gb", 2, 2))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(held, again); diff != "" || instances(6) != 1 {
		t.Errorf("%d instances; prepared again after a restart:\n%s", instances(6), diff)
	}
	if err := s.dra().Drop(t.Context(), claim.UID); err != nil {
		t.Fatal(err)
	}
	if instances(6) != 0 || instances(7) != 3 {
		t.Errorf("GPU 6 has %d instances, GPU 7 %d of 3", instances(6), instances(7))
	}
	s.want(0, 0, 0)
}

// A claim whose room is about to be given back waits for it.
func TestRoomSoon(t *testing.T) {
	s := newSite(t)
	whole := []ledger.Ask{{Key: "old-a", Request: share.Request{Memory: 79 * node.GiB, GPU: []string{"0"}}}}
	if _, err := s.dra().Hold(t.Context(), ledger.Owner{UID: "old"}, whole); err != nil {
		t.Fatal(err)
	}
	held := make(chan error, 1)
	go func() {
		_, err := s.dra().Hold(t.Context(), claim, []ledger.Ask{{Key: "5f0c-a", Request: whole[0].Request}})
		held <- err
	}()
	select {
	case err := <-held:
		t.Fatalf("answered while there was no room: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	if err := s.dra().Drop(t.Context(), "old"); err != nil {
		t.Fatal(err)
	}
	if err := <-held; err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := s.dra().Hold(ctx, ledger.Owner{UID: "late"}, []ledger.Ask{{Key: "late-a", Request: whole[0].Request}}); err == nil || !strings.Contains(err.Error(), "the most free memory is") {
		t.Errorf("nobody gives it back: %v", err)
	}
}

// BenchmarkHold32 is what 32 claims wait that kubelet prepares at once, in kerfd: ledger, share, CDI spec.
func BenchmarkHold32(b *testing.B) {
	s := newSite(b)
	var times []time.Duration
	var mu sync.Mutex
	for i := range b.N {
		var wait sync.WaitGroup
		for j := range 32 {
			wait.Go(func() {
				owner := ledger.Owner{UID: fmt.Sprint("b", i, "-", j)}
				began := time.Now()
				_, err := s.dra().Hold(b.Context(), owner, []ledger.Ask{{Key: owner.UID, Request: share.Request{Memory: node.GiB}}})
				took := time.Since(began)
				if err != nil {
					b.Error(err)
				}
				mu.Lock()
				times = append(times, took)
				mu.Unlock()
			})
		}
		wait.Wait()
		b.StopTimer()
		for j := range 32 {
			if err := s.dra().Drop(b.Context(), fmt.Sprint("b", i, "-", j)); err != nil {
				b.Fatal(err)
			}
		}
		b.StartTimer()
	}
	slices.Sort(times)
	b.ReportMetric(float64(times[len(times)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(times[len(times)*99/100].Microseconds())/1000, "p99-ms")
}

// After a reboot the instance of a placement is another one, and the share's page says so.
func TestRebootOfMIG(t *testing.T) {
	s := newSite(t)
	ask := []ledger.Ask{{Key: "5f0c-m", Request: share.Request{Memory: 9 * node.GiB, GPU: []string{"6"}, Placement: &share.Placement{Profile: "2g.20gb", Start: 2, Size: 2}}}}
	named := func() node.MIGUUID {
		t.Helper()
		entry := s.ledger.Entries()[0]
		policy, err := region.Open[region.Policy](filepath.Join(arbiter.Directory(s.config.sharesDir(), entry.ID), "policy"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = policy.Close() }()
		if named := node.MIGUUID(policy.Page.Device[0].UUID); named != entry.Grant.Devices[0].MIG {
			t.Errorf("the page names %s, the ledger %s", named, entry.Grant.Devices[0].MIG)
		}
		return entry.Grant.Devices[0].MIG
	}
	if _, err := s.dra().Hold(t.Context(), claim, ask); err != nil {
		t.Fatal(err)
	}
	first := named()
	s.restart()
	if again := named(); again != first {
		t.Errorf("a restart made %s of %s", again, first)
	}
	if err := s.hardware.destroyMIG(s.ledger.Entries()[0].Grant.Devices[0]); err != nil { // as a reboot, or a hand
		t.Fatal(err)
	}
	if _, err := s.dra().Hold(t.Context(), claim, ask); err != nil {
		t.Fatal(err)
	}
	if second := named(); second == first {
		t.Error("the instance is still the one that went")
	}
}

// What others keep below the host directory is theirs.
func TestInstallLeavesOthersAlone(t *testing.T) {
	s := newSite(t)
	host := s.config.Kubernetes.HostDir
	stranger, old, used := filepath.Join(host, "photos", "cat.jpg"), filepath.Join(host, "kerf-v1"), filepath.Join(host, "kerf-v2")
	for _, file := range []string{stranger, filepath.Join(old, marker), filepath.Join(used, marker), filepath.Join(used, "bin/kerf-hook")} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, nil, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	spec := cdi.Shares.File(s.config.Kubernetes.CDIDir, "of-v2")
	if err := errors.Join(os.MkdirAll(filepath.Dir(spec), 0o755), os.WriteFile(spec, []byte(`{"path": "`+used+`/bin/kerf-hook"}`), 0o644)); err != nil {
		t.Fatal(err)
	}
	if err := s.containers.in.removeOthers(s.config.Kubernetes.CDIDir); err != nil {
		t.Fatal(err)
	}
	if !exists(stranger) || exists(old) || !exists(used) {
		t.Errorf("a stranger's file is there: %v; a version that nobody names: %v; one that a spec names: %v", exists(stranger), exists(old), exists(used))
	}
}
