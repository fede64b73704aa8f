package fetch

import (
	"context"
	"runtime"
	"sync"
	"time"
)

// defaultWorkers: more than twice the cores made loading slower on small machines, where both ends shared them.
func defaultWorkers() int { return min(max(2*runtime.GOMAXPROCS(0), 4), 64) }

// gate lets so many parts in as the tuner finds useful.
type gate struct {
	tokens chan struct{}

	mu    sync.Mutex
	owed  int // tokens to keep when they come back
	tuner tuner
	begin time.Time // of the tuner's window
	bytes int64
}

func newGate(most int) *gate {
	g := &gate{tokens: make(chan struct{}, most), tuner: tuner{limit: min(max(most/2, 1), most), most: most, step: 1}}
	for range g.tuner.limit {
		g.tokens <- struct{}{}
	}
	return g
}

func (g *gate) enter(ctx context.Context) error {
	select {
	case <-g.tokens:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.owed > 0 {
		g.owed--
		return
	}
	g.tokens <- struct{}{}
}

func (g *gate) limit() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.tuner.limit
}

// window is how long a limit is watched before the next: long enough that a part or two of each worker ends.
const window = time.Second

// note tells of an answer: its bytes, and whether it was whole.
func (g *gate) note(bytes int64, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	if g.begin.IsZero() {
		g.begin = now
	}
	g.bytes += bytes
	before := g.tuner.limit
	switch passed := now.Sub(g.begin); {
	case !ok:
		g.tuner.failed()
	case passed >= window:
		g.tuner.saw(float64(g.bytes) / passed.Seconds())
	default:
		return
	}
	g.begin, g.bytes = now, 0
	for ; before < g.tuner.limit; before++ {
		if g.owed > 0 {
			g.owed--
			continue
		}
		g.tokens <- struct{}{}
	}
	for ; before > g.tuner.limit; before-- {
		select {
		case <-g.tokens:
		default:
			g.owed++
		}
	}
}

// tuner climbs towards the number of workers that gives most: it goes on in one direction while that helps, and turns when
// it hurts. Noise of 5 % is no reason.
type tuner struct {
	limit, most int
	step        int // +1 or -1
	rate        float64
}

func (t *tuner) saw(rate float64) {
	switch {
	case rate > t.rate*1.05:
	case rate < t.rate*0.95:
		t.step = -t.step
	default: // as fast with fewer is better
		t.step = -1
		if t.limit <= t.most/2 {
			t.step = 1
		}
	}
	t.rate = rate
	t.limit = min(max(t.limit+t.step, 1), t.most)
}

// failed halves: a source that refuses or breaks has too much to do.
func (t *tuner) failed() {
	t.limit, t.rate, t.step = max(t.limit/2, 1), 0, 1
}
