package dataset

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/kerf-gpu/kerf/csi/fetch"
	"github.com/kerf-gpu/kerf/internal/node"
)

// How long a source that failed is left alone, and a job goes on that nobody asks for.
const (
	firstBackoff = time.Minute
	lastBackoff  = time.Hour
	unasked      = 5 * time.Minute
)

// Progress of a job.
type Progress struct {
	Done, Total node.Bytes // of this try
	Rate        node.Bytes // a second, since its first byte
	ETA         time.Duration
	LimitedBy   string // "source" or "disk"; "" before the first byte
}

func (p Progress) String() string {
	if p.LimitedBy == "" {
		return "listing files"
	}
	return fmt.Sprintf("%s of %s, %s/s, ETA %s, limited by %s", p.Done, p.Total, p.Rate, p.ETA.Round(time.Second), p.LimitedBy)
}

// Jobs loads datasets for callers that come and go: a load is no caller's own.
type Jobs struct {
	ctx  context.Context // of all jobs
	load func(ctx context.Context, src fetch.Source, report func(done, total node.Bytes, p fetch.Progress)) (string, error)

	mu   sync.Mutex
	jobs map[string]*job
	work sync.WaitGroup
}

type job struct {
	done    chan struct{} // closed when a try ended
	running bool
	digest  string
	err     error
	began   time.Time
	p       Progress
	retry   time.Time // not before
	backoff time.Duration
	waiters int
	idle    *time.Timer // runs while nobody waits
}

// NewJobs makes one over a store. Jobs end when the context does.
func NewJobs(ctx context.Context, s *Store) *Jobs {
	return &Jobs{ctx: ctx, load: s.Load, jobs: map[string]*job{}}
}

// Wait waits until all jobs ended; the context must be done.
func (j *Jobs) Wait() { j.work.Wait() }

// PendingError says that a dataset is not there yet. Who asks again joins the same job.
type PendingError struct {
	Source   string
	Progress Progress
}

func (e *PendingError) Error() string { return fmt.Sprintf("dataset %s: %s", e.Source, e.Progress) }

// Get joins the job of a source, or starts one, and waits for the tree's digest as long as the context allows: then the error is PendingError, and
// the job goes on. A source that failed answers with its failure until its back-off is over.
func (j *Jobs) Get(ctx context.Context, src fetch.Source) (digest string, err error) {
	j.mu.Lock()
	b := j.jobs[src.String()]
	switch now := time.Now(); {
	case b == nil:
		b = &job{}
		j.jobs[src.String()] = b
		j.start(b, src)
	case !b.running && b.err != nil && now.Before(b.retry):
		defer j.mu.Unlock()
		return "", fmt.Errorf("%w; next try in %s", b.err, b.retry.Sub(now).Round(time.Second))
	case !b.running:
		j.start(b, src)
	}
	b.waiters++
	if b.idle != nil {
		b.idle.Stop()
	}
	done, cancelled := b.done, false
	j.mu.Unlock()
	select {
	case <-done:
	case <-ctx.Done():
		cancelled = true
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if b.waiters--; b.waiters == 0 && b.running {
		b.idle.Reset(unasked)
	}
	if cancelled && b.running {
		return "", &PendingError{src.String(), b.p}
	}
	return b.digest, b.err
}

// Progress is how far each running job is, by source.
func (j *Jobs) Progress() map[string]Progress {
	j.mu.Lock()
	defer j.mu.Unlock()
	all := map[string]Progress{}
	for name, b := range j.jobs {
		if b.running {
			all[name] = b.p
		}
	}
	return all
}

// start is called with the lock held.
func (j *Jobs) start(b *job, src fetch.Source) {
	ctx, cancel := context.WithCancelCause(j.ctx)
	b.done, b.running, b.began, b.p, b.digest, b.err = make(chan struct{}), true, time.Now(), Progress{}, "", nil
	done := b.done
	b.idle = time.AfterFunc(unasked, func() { j.abandon(b, done, cancel) })
	j.work.Go(func() {
		digest, err := j.load(ctx, src, func(d, total node.Bytes, p fetch.Progress) { j.report(b, d, total, p) })
		left := errors.Is(context.Cause(ctx), errUnasked)
		cancel(nil)
		j.mu.Lock()
		defer j.mu.Unlock()
		b.idle.Stop()
		b.running, b.digest, b.err = false, digest, err
		switch {
		case err == nil || left: // the next who asks begins anew, where this one ended
			delete(j.jobs, src.String())
		default:
			b.backoff = min(max(2*b.backoff, firstBackoff), lastBackoff)
			b.retry = time.Now().Add(b.backoff)
		}
		close(done)
	})
}

var errUnasked = fmt.Errorf("nobody asked for it in %s", unasked)

// abandon ends a try, unless somebody came meanwhile or it is another one by now.
func (j *Jobs) abandon(b *job, done chan struct{}, cancel context.CancelCauseFunc) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if b.waiters == 0 && b.running && b.done == done {
		cancel(errUnasked)
	}
}

func (j *Jobs) report(b *job, done, total node.Bytes, p fetch.Progress) {
	j.mu.Lock()
	defer j.mu.Unlock()
	b.p = Progress{Done: done, Total: total, LimitedBy: p.LimitedBy()}
	if s := time.Since(b.began).Seconds(); s > 0 && done > 0 {
		b.p.Rate = node.Bytes(float64(done) / s)
		b.p.ETA = time.Duration(float64(total-done) / float64(done) * s * float64(time.Second))
	}
}
