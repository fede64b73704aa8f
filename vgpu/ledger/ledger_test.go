package ledger

import (
	"os"
	"path/filepath"
	"sync"
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
