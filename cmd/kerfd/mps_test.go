package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kerf-gpu/kerf/hook/cdi"
	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/vgpu/ledger"
	"github.com/kerf-gpu/kerf/vgpu/mps"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

func TestMPSWanted(t *testing.T) {
	a, b, c := node.UUID{1}, node.UUID{2}, node.UUID{3}
	entry := func(d ...share.Device) ledger.Entry { return ledger.Entry{Grant: share.Grant{Devices: d}} }
	part := func(gpu node.UUID, tier share.Tier, cores node.Percent, memory node.Bytes) share.Device {
		return share.Device{UUID: gpu, Tier: tier, Cores: cores, Memory: memory}
	}
	watches := entry(part(c, share.TierMPS, 10, 1))
	watches.Grant.Admin = true
	got := mpsWanted([]ledger.Entry{
		entry(part(a, share.TierMPS, 30, 2*node.GiB)), entry(part(a, share.TierMPS, 60, node.GiB)), // the largest of each
		entry(part(b, share.TierMPS, 20, node.GiB)), entry(part(b, share.TierMPS, 0, node.GiB)), // 0 is no limit
		entry(part(c, share.TierTime, 50, node.GiB)), entry(part(c, "", 50, node.GiB)), watches,
	})
	want := map[node.UUID]mps.Limits{a: {Percent: 60, Memory: 2 * node.GiB}, b: {Percent: 100, Memory: node.GiB}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestNoMPSOn(t *testing.T) {
	for _, tt := range []struct {
		major  int
		absent string
		want   string
	}{{9, "", ""}, {7, "", ""}, {6, "", "its compute capability is 6.1, and MPS has limits from 7.0 on (Volta); use tier time"}, {9, "not there", "not there"}, {6, "not there", "not there"}} {
		g := node.GPU{Compute: node.ComputeCapability{Major: tt.major, Minor: 1}}
		if got := noMPSOn(g, tt.absent); got != tt.want {
			t.Errorf("%s, %q: %q, want %q", g.Compute, tt.absent, got, tt.want)
		}
	}
}

// A claim of tier mps has its card's daemon until it is given back, through the deaths of kerfd, and its container gets the pipes.
func TestMPSClaim(t *testing.T) {
	s := newSite(t)
	claim := ledger.Owner{UID: "uid-mps", Namespace: "team", Name: "mps"}
	ask := func(key string, tier share.Tier) []ledger.Ask {
		return []ledger.Ask{{Key: key, Request: share.Request{Memory: node.GiB, Cores: 40, Tier: tier, GPU: []string{"0"}}}}
	}
	held, err := s.dra().hold(claim, ask("key-mps", share.TierMPS))
	if err != nil {
		t.Fatal(err)
	}
	gpu := held[0].Grant.Devices[0].UUID
	state, _ := s.mps.State(gpu)
	pipe := s.mps.Place(gpu).Pipe
	spec := func() string {
		text, err := os.ReadFile(cdi.Shares.File(s.config.Kubernetes.CDIDir, "key-mps"))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	if state.PID == 0 || !strings.Contains(spec(), `"hostPath": "`+pipe+`"`) || strings.Contains(spec(), "CUDA_MPS") {
		t.Errorf("daemon %+v, pipe %s, spec:\n%s", state, pipe, spec())
	}
	other := ledger.Owner{UID: "uid-time", Namespace: "team", Name: "time"}
	if _, err := s.dra().hold(other, ask("key-time", share.TierTime)); err == nil || !strings.Contains(err.Error(), "has shares of tier mps") {
		t.Errorf("a turn in time beside mps: %v", err)
	}
	s.restart()
	if again, _ := s.mps.State(gpu); again.PID != state.PID || s.mps.Place(gpu).Pipe != pipe {
		t.Errorf("after a restart the daemon is pid %d at %s, want %d at %s", again.PID, s.mps.Place(gpu).Pipe, state.PID, pipe)
	}
	if err := s.dra().drop(t.Context(), claim.UID); err != nil {
		t.Fatal(err)
	}
	if left, ok := s.mps.State(gpu); ok {
		t.Errorf("after the last share: %+v", left)
	}
	if exists(s.config.mpsDir()) {
		t.Errorf("%s is left", s.config.mpsDir())
	}
	if _, err := s.dra().hold(other, ask("key-time", share.TierTime)); err != nil {
		t.Errorf("time, once mps is over: %v", err)
	}
	if err := s.dra().drop(t.Context(), other.UID); err != nil {
		t.Fatal(err)
	}
}

// Without the control program the tier is refused, in one line that says where it was looked for.
func TestMPSAbsent(t *testing.T) {
	s := newSite(t)
	program := filepath.Join(s.hardware.root, "usr/bin/nvidia-cuda-mps-control")
	if err := os.Rename(program, program+".away"); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.Rename(program+".away", program) }()
	_, err := s.dra().hold(ledger.Owner{UID: "u"}, []ledger.Ask{{Key: "k", Request: share.Request{Memory: node.GiB, Tier: share.TierMPS}}})
	for _, word := range []string{"tier mps", "nvidia-cuda-mps-control is not below " + s.hardware.root, "usr/bin", "install", "use tier time"} {
		if err == nil || !strings.Contains(err.Error(), word) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v: not one line with %q", err, word)
		}
	}
	if n := len(s.ledger.Entries()); n != 0 {
		t.Errorf("%d grants", n)
	}
}
