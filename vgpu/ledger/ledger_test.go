package ledger

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

var card = []share.GPU{{UUID: node.UUID{1}, Memory: 80 * node.GiB}}

func open(t *testing.T, dir string) *Ledger {
	t.Helper()
	l, corrupt, err := Open(dir)
	if err != nil || len(corrupt) > 0 {
		t.Fatal(corrupt, err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func TestGrantsSurviveRestart(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	entry, err := l.Grant(card, share.Request{Memory: 50 * node.GiB}, Holder{Door: "run", PID: 42}, time.Unix(1, 0))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	again := open(t, dir)
	if diff := cmp.Diff([]Entry{entry}, again.Entries()); diff != "" {
		t.Error(diff)
	}
	if _, err := again.Grant(card, share.Request{Memory: 50 * node.GiB}, Holder{}, time.Unix(2, 0)); err == nil {
		t.Error("the same bytes were granted twice")
	}
	if err := again.Release(entry.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := again.Grant(card, share.Request{Memory: 80 * node.GiB}, Holder{}, time.Unix(3, 0)); err != nil {
		t.Errorf("released memory was not free: %v", err)
	}
}

func TestManyDoorsAtOnce(t *testing.T) {
	l := open(t, t.TempDir())
	var wait sync.WaitGroup
	for range 20 { // 20 asks of 10Gi for 80Gi
		wait.Go(func() { _, _ = l.Grant(card, share.Request{Memory: 10 * node.GiB}, Holder{}, time.Unix(1, 0)) })
	}
	wait.Wait()
	if n := len(l.Entries()); n != 8 {
		t.Errorf("%d grants of 10Gi on 80Gi, want 8", n)
	}
}

func TestDamagedRecordIsNamedAndNotHeld(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	entry, err := l.Grant(card, share.Request{Memory: node.GiB}, Holder{}, time.Unix(1, 0))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, entry.ID+".json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	again, corrupt, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = again.Close() }()
	if len(corrupt) != 1 || len(again.Entries()) != 0 {
		t.Errorf("corrupt %v, entries %v", corrupt, again.Entries())
	}
}

func TestOwnerGetsAllOrNothing(t *testing.T) {
	l := open(t, t.TempDir())
	ask := func(key string, memory node.Bytes) Ask { return Ask{key, share.Request{Memory: memory}} }
	claim, other := Owner{UID: "u1", Namespace: "ns", Name: "llm"}, Owner{UID: "u2", Name: "other"}
	for _, tt := range []struct {
		name  string
		owner Owner
		asks  []Ask
		held  int // grants that the owner has afterwards
		err   string
	}{
		{"the second does not fit", claim, []Ask{ask("a", 50*node.GiB), ask("b", 50*node.GiB)}, 0, "the most free memory is 30Gi"},
		{"both fit", claim, []Ask{ask("a", 50*node.GiB), ask("b", 10*node.GiB)}, 2, ""},
		{"asked again", claim, []Ask{ask("a", 50*node.GiB), ask("b", 10*node.GiB)}, 2, ""},
		{"asked again with one more", claim, []Ask{ask("b", 10*node.GiB), ask("c", 10*node.GiB)}, 3, ""},
		{"one more that does not fit", claim, []Ask{ask("a", 50*node.GiB), ask("d", 30*node.GiB)}, 3, "the most free memory is 10Gi"},
		{"another's key", other, []Ask{ask("e", node.GiB), ask("a", node.GiB)}, 0, "a: ns/llm has it (uid u1)"},
		{"one key twice", other, []Ask{ask("e", node.GiB), ask("e", node.GiB)}, 0, "e: asked twice"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			entries, err := l.Hold(card, DoorDRA, tt.owner, tt.asks, time.Unix(1, 0))
			if got := fmt.Sprint(err); (err != nil) != (tt.err != "") || !strings.Contains(got, tt.err) {
				t.Fatalf("error %v, want %q", err, tt.err)
			}
			if owned := l.Owned(DoorDRA, tt.owner.UID); len(owned) != tt.held {
				t.Errorf("holds %d, want %d", len(owned), tt.held)
			}
			for i, entry := range entries {
				if known, ok := l.Entry(entry.ID); !ok || known.Holder.Key != tt.asks[i].Key {
					t.Errorf("answer %d: %+v", i, known)
				}
			}
		})
	}
}

func TestWhoWatchesHoldsNothing(t *testing.T) {
	l := open(t, t.TempDir())
	watch := []Ask{{"watch", share.Request{Admin: true}}}
	if _, err := l.Hold(card, DoorDRA, Owner{UID: "u"}, watch, time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Grant(card, share.Request{Memory: 80 * node.GiB, Tenants: share.MaxTenants}, Holder{}, time.Unix(1, 0)); err != nil {
		t.Errorf("the whole card beside one who watches: %v", err)
	}
}

func BenchmarkHold(b *testing.B) {
	l, _, err := Open(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	b.SetParallelism(16)
	var n atomic.Int64
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			owner := Owner{UID: fmt.Sprint(n.Add(1))}
			entries, err := l.Hold(card, DoorDRA, owner, []Ask{{owner.UID, share.Request{Memory: 16 * node.MiB}}}, time.Unix(1, 0))
			if err != nil {
				b.Error(err)
				return
			}
			if err := l.Release(entries[0].ID); err != nil {
				b.Error(err)
			}
		}
	})
}
