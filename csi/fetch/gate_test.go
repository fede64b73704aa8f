package fetch

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"
)

// TestTuner: given what so many workers yield, the tuner must come near the best number and stay there.
func TestTuner(t *testing.T) {
	for _, tc := range []struct {
		name     string
		rate     func(workers int) float64
		from, to int // where it may be after the climb
	}{
		{"more is better", func(n int) float64 { return float64(n) }, 15, 16},
		{"four saturate the link", func(n int) float64 { return float64(min(n, 4)) }, 3, 9},
		{"more than four hurts", func(n int) float64 { return float64(4 - max(n-4, 4-n)) }, 1, 6},
	} {
		u := tuner{limit: 8, most: 16, step: 1}
		for i := range 60 {
			u.saw(tc.rate(u.limit))
			if i > 40 && (u.limit < tc.from || u.limit > tc.to) {
				t.Errorf("%s: step %d: %d workers, want %d to %d", tc.name, i, u.limit, tc.from, tc.to)
			}
		}
		for range 10 {
			u.failed()
		}
		if u.limit != 1 {
			t.Errorf("%s: after failures %d workers", tc.name, u.limit)
		}
	}
}

// TestGate: whatever the tuner does, no token is lost or made.
func TestGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(8)
		inside := 0
		for i := range 500 {
			if inside < g.limit() && inside < cap(g.tokens) && i%3 != 0 && len(g.tokens) > 0 {
				if err := g.enter(t.Context()); err != nil {
					t.Fatal(err)
				}
				inside++
			} else if inside > 0 {
				g.leave()
				inside--
			}
			time.Sleep(window / 3)
			g.note(int64(i*7919%100), i%50 != 0)
			if sum := len(g.tokens) + inside - g.owed; sum != g.limit() {
				t.Fatalf("step %d: %d free, %d inside, %d owed: limit %d", i, len(g.tokens), inside, g.owed, g.limit())
			}
		}
	})
}

// slowReader gives a byte each so often.
type slowReader struct{ every time.Duration }

func (s slowReader) Read(b []byte) (int, error) {
	time.Sleep(s.every)
	b[0] = 1
	return 1, nil
}

// TestWatch: in a bubble of its own time, a trickle is cut, and a slow reader at our end is not.
func TestWatch(t *testing.T) {
	p := Policy{Stall: 10 * time.Second, MinRate: 2}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		start := time.Now()
		n, err := io.Copy(io.Discard, watch(slowReader{time.Second}, cancel, ctx, p))
		if passed := time.Since(start); !errors.Is(err, ErrBusy) || passed > 11*time.Second {
			t.Errorf("a byte a second: %d bytes in %s, %v", n, passed, err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		defer cancel(nil)
		r := watch(iotest.OneByteReader(bytes.NewReader(make([]byte, 100))), cancel, ctx, p)
		for range 100 {
			time.Sleep(time.Minute) // our disk
			if _, err := r.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for header, want := range map[string]time.Duration{
		"": 0, "7": 7 * time.Second, "-7": 0, "soon": 0, "99999999": maxRetryAfter,
		"Fri, 02 Jan 2026 03:04:35 GMT": 30 * time.Second, "Fri, 02 Jan 2026 03:04:00 GMT": 0,
	} {
		if got := retryAfter(header, now); got != want {
			t.Errorf("%q: %s, want %s", header, got, want)
		}
	}
}
