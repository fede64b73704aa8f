package source

import (
	"context"
	"fmt"
	"time"

	"github.com/kerf-gpu/kerf/internal/node"
)

// Prober reads one GPU. It may block for ever.
type Prober interface {
	Vitals(gpu node.UUID) (node.Vitals, error)
}

// Poll is how a GPU is read over and over.
type Poll struct {
	Every    time.Duration // between two readings
	Again    time.Duration // after a bad one, or after Wake
	Deadline time.Duration // after which a reading counts as unanswered
}

// Reading is a GPU's answer, or why there is none.
type Reading struct {
	GPU    node.UUID
	Vitals node.Vitals
	Err    error
}

// Run reads one GPU until the context ends. A reading that takes too long is told as an error; nothing else is asked of the GPU before
// it returns, so that at most one goroutine is stuck in it. to is called from one goroutine, and says whether to read again soon. wake
// asks for a reading now.
func (p Poll) Run(ctx context.Context, gpu node.UUID, prober Prober, wake <-chan struct{}, to func(Reading) (soon bool)) {
	answers := make(chan Reading, 1)
	ask := func() {
		v, err := prober.Vitals(gpu)
		answers <- Reading{gpu, v, err}
	}
	for {
		go ask()
		var r Reading
		deadline := time.NewTimer(p.Deadline)
		select {
		case <-ctx.Done():
			deadline.Stop()
			return
		case r = <-answers:
			deadline.Stop()
		case <-deadline.C:
			to(Reading{GPU: gpu, Err: fmt.Errorf("NVML has not answered for %s; the GPU hangs, or the driver does", p.Deadline)})
			select {
			case <-ctx.Done():
				return
			case r = <-answers:
			}
		}
		pause := p.Every
		if to(r) {
			pause = p.Again
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		case <-wake:
			timer.Stop()
		}
	}
}
