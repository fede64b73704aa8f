package shimtest

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kerf-gpu/kerf/vgpu/region"
)

// impatient waits one second for kerfd instead of ten.
var impatient = variant{"impatient", "gcc", "-DATTACH_PATIENCE_S=1"}

// TestRefusals: whatever is wrong with the share, cuInit fails with CUDA_ERROR_SYSTEM_NOT_READY and one line says
// what was found, why that is refused, and what to do. No GPU without a limit.
func TestRefusals(t *testing.T) {
	policy := func(change func(*region.Policy)) func(*testing.T, *tenantNode, *share) {
		return func(_ *testing.T, _ *tenantNode, s *share) { change(s.policy.Page) }
	}
	welcome := func(change func(*region.Welcome)) func(*testing.T, *tenantNode, *share) {
		return func(_ *testing.T, _ *tenantNode, s *share) { s.answer = change }
	}
	status := func(code uint32, reason string) func(*testing.T, *tenantNode, *share) {
		return welcome(func(w *region.Welcome) {
			w.Status = code
			w.SetReason(reason)
		})
	}
	s := simNode(t, "h200x8")
	for name, c := range map[string]struct {
		spoil func(*testing.T, *tenantNode, *share)
		want  []string
	}{
		"no shares": {func(t *testing.T, n *tenantNode, _ *share) {
			if err := os.RemoveAll(filepath.Join(n.dir, "shares")); err != nil {
				t.Fatal(err)
			}
		}, []string{"/run/kerf/shares cannot be read", "kerf run"}},
		"empty shares": {func(t *testing.T, n *tenantNode, s *share) {
			if err := os.RemoveAll(s.dir); err != nil {
				t.Fatal(err)
			}
		}, []string{"/run/kerf/shares is empty", "kerf run"}},
		"no usage": {func(t *testing.T, n *tenantNode, s *share) {
			if err := os.Remove(filepath.Join(s.dir, "usage")); err != nil {
				t.Fatal(err)
			}
		}, []string{"cannot open /run/kerf/shares/refuse/usage"}},
		"short usage": {func(t *testing.T, n *tenantNode, s *share) {
			if err := os.Truncate(filepath.Join(s.dir, "usage"), 4096); err != nil {
				t.Fatal(err)
			}
		}, []string{"usage has 4096 bytes", "restart the container"}},
		"policy of another version": {policy(func(p *region.Policy) { p.Version = 7 }), []string{"policy has version 7, this shim speaks " + strconv.Itoa(region.Version), "restart the container"}},
		"no policy at all":          {policy(func(p *region.Policy) { p.Magic = 0 }), []string{"not a page of kerf"}},
		"policy of another size":    {policy(func(p *region.Policy) { p.Size = 99 }), []string{"says 99 bytes"}},
		"kerfd is away": {func(t *testing.T, n *tenantNode, s *share) {
			s.listener.Close()
		}, []string{"kerfd does not answer on /run/kerf/shares/refuse/socket", "check that kerfd runs"}},
		"full":                     {status(region.WelcomeFull, "512 processes are attached; end some"), []string{"512 processes are attached; end some"}},
		"revoked":                  {status(region.WelcomeRevoked, "the claim was deleted"), []string{"the claim was deleted"}},
		"denied":                   {status(region.WelcomeDenied, "no such process"), []string{"no such process"}},
		"a slot that is not there": {welcome(func(w *region.Welcome) { w.Slot = 100000 }), []string{"slot 100000"}},
		"a slot of someone else":   {welcome(func(w *region.Welcome) { w.Generation += 5 }), []string{"which its usage page does not show"}},
	} {
		t.Run(name, func(t *testing.T) {
			n := tenantOn(t, s, impatient, 1)
			sh := n.share(t, "refuse", gpuGrants(s, 1, 1<<30)...)
			c.spoil(t, n, sh)
			r := n.view(program(t, "init", "init.c")).run(t, "").ok(t)
			if r.out != "802\n" {
				t.Errorf("cuInit returned %s, want 802", r.out)
			}
			if lines := strings.Split(strings.TrimSuffix(r.errs, "\n"), "\n"); len(lines) != 1 || !strings.HasPrefix(r.errs, "kerf: ") {
				t.Errorf("stderr has %d lines: %q", len(lines), r.errs)
			}
			for _, want := range c.want {
				if !strings.Contains(r.errs, want) {
					t.Errorf("%q is not in %q", want, r.errs)
				}
			}
		})
	}
}

// TestLateDaemon: kerfd may be restarting when a tenant starts.
func TestLateDaemon(t *testing.T) {
	n, s := simTenant(t, plain, "h200x8", 1)
	sh := n.share(t, "late", gpuGrants(s, 1, 1<<30)...)
	socket := filepath.Join(sh.dir, "socket")
	if err := os.Rename(socket, socket+".away"); err != nil {
		t.Fatal(err)
	}
	back := time.AfterFunc(300*time.Millisecond, func() { os.Rename(socket+".away", socket) })
	defer back.Stop()
	if r := n.view(program(t, "init", "init.c")).run(t, "").ok(t); r.out != "0\n" {
		t.Errorf("cuInit returned %s%s", r.out, r.errs)
	}
}
