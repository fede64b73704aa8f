package dataset

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kerf-gpu/kerf/csi/fetch"
	"github.com/kerf-gpu/kerf/internal/node"
)

// fakeLoads takes a while for each load, and fails as long as it is told to.
type fakeLoads struct {
	takes         time.Duration
	err           error
	begun, killed int
}

func (f *fakeLoads) load(ctx context.Context, _ fetch.Source, report func(done, total node.Bytes, p fetch.Progress)) (string, error) {
	f.begun++
	select {
	case <-time.After(f.takes / 2):
	case <-ctx.Done():
		f.killed++
		return "", context.Cause(ctx)
	}
	report(50, 100, fetch.Progress{Reading: 1})
	select {
	case <-time.After(f.takes / 2):
		return "sha256:x", f.err
	case <-ctx.Done():
		f.killed++
		return "", context.Cause(ctx)
	}
}

func testJobs(t *testing.T, f *fakeLoads) *Jobs {
	ctx, cancel := context.WithCancel(t.Context())
	j := &Jobs{ctx: ctx, load: f.load, jobs: map[string]*job{}}
	t.Cleanup(func() { cancel(); j.Wait() })
	return j
}

func get(j *Jobs, patience time.Duration) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return j.Get(ctx, &fakeSource{name: "fake"})
}

func TestJobOutlivesCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeLoads{takes: 10 * time.Minute}
		j := testJobs(t, f)
		for i := range 5 {
			_, err := get(j, 110*time.Second)
			var pending *PendingError
			if !errors.As(err, &pending) {
				t.Fatalf("call %d: %v; want that it is pending", i, err)
			}
			if i == 4 && (pending.Progress.Done != 50 || pending.Progress.LimitedBy != "source") {
				t.Errorf("progress is %+v", pending.Progress)
			}
		}
		began := time.Now()
		if digest, err := get(j, 110*time.Second); digest != "sha256:x" || err != nil {
			t.Fatalf("the last call: %q, %v", digest, err)
		}
		if held := time.Since(began); held != 50*time.Second || f.begun != 1 {
			t.Errorf("held for %s by %d loads; want 50s, the moment that it is there, by 1", held, f.begun)
		}
	})
}

func TestJobEndsUnasked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeLoads{takes: time.Hour}
		j := testJobs(t, f)
		_, _ = get(j, time.Minute)
		time.Sleep(4 * time.Minute)
		_, _ = get(j, time.Minute)
		time.Sleep(4 * time.Minute)
		if len(j.Progress()) != 1 {
			t.Fatal("it ended 4 minutes after somebody asked")
		}
		time.Sleep(2 * time.Minute)
		if len(j.Progress()) != 0 || f.killed != 1 {
			t.Fatalf("it goes on though nobody asked for 6 minutes (%d ended)", f.killed)
		}
		if _, err := get(j, time.Second); f.begun != 2 || !strings.Contains(err.Error(), "listing") {
			t.Errorf("who asks again: %v, %d loads; want a second load at once", err, f.begun)
		}
	})
}

func TestJobBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeLoads{err: fetch.ErrDenied}
		j := testJobs(t, f)
		for i, wait := range []time.Duration{1, 2, 4, 8, 16, 32, 60, 60} {
			if _, err := get(j, time.Second); !errors.Is(err, fetch.ErrDenied) || f.begun != i+1 {
				t.Fatalf("try %d: %v, %d loads", i, err, f.begun)
			}
			time.Sleep(wait*time.Minute - time.Second)
			if _, err := get(j, time.Second); !strings.Contains(err.Error(), "next try in 1s") || f.begun != i+1 {
				t.Fatalf("before try %d: %v, %d loads", i+1, err, f.begun)
			}
			time.Sleep(time.Second)
		}
		f.err = nil
		if _, err := get(j, time.Second); err != nil {
			t.Errorf("a source that recovered: %v", err)
		}
	})
}
