package source

import (
	"context"
	"errors"
	"time"

	"github.com/kerf-gpu/kerf/internal/node"
)

// EventKind is what NVML reports without being asked.
type EventKind string

// The kinds.
const (
	EventXid      EventKind = "xid"
	EventRecovery EventKind = "recovery"
	EventOther    EventKind = "other" // worth a reading
)

// Event is one report of NVML.
type Event struct {
	Kind EventKind
	GPU  node.UUID // zero: NVML did not say which
	Code int       // of an Xid; 999 is one that NVML has no number for
	MIG  bool      // about one MIG instance, not the whole card
}

// Waiter waits for NVML's events.
type Waiter interface {
	// Wait returns the next event; ok is false where none came in time.
	Wait(timeout time.Duration) (e Event, ok bool, err error)
	Close() error
}

// errNoEvents ends a wait that returned at once, again and again: events that nobody could handle.
var errNoEvents = errors.New("NVML returns from its wait at once and without an event")

const (
	waitFor      = time.Second
	firstBackoff = time.Second
	lastBackoff  = time.Minute
)

// Events waits for events until the context ends. An error of the wait is an error of the source and says nothing of any GPU: it is
// told, and the watch is made anew after a pause that grows.
func Events(ctx context.Context, open func() (Waiter, error), to func(Event), up func(error)) {
	backoff := firstBackoff
	for ctx.Err() == nil {
		began := time.Now()
		err := wait(ctx, open, to, up)
		if ctx.Err() != nil {
			return
		}
		up(err)
		if time.Since(began) > lastBackoff { // it worked for a while
			backoff = firstBackoff
		}
		select {
		case <-ctx.Done():
		case <-time.After(backoff):
		}
		backoff = min(2*backoff, lastBackoff)
	}
}

func wait(ctx context.Context, open func() (Waiter, error), to func(Event), up func(error)) error {
	w, err := open()
	if err != nil {
		return err
	}
	defer func() { _ = w.Close() }() // the source is down either way
	up(nil)
	for early := 0; ctx.Err() == nil; {
		began := time.Now()
		e, ok, err := w.Wait(waitFor)
		switch {
		case err != nil:
			return err
		case ok:
			early = 0
			to(e)
		case time.Since(began) > waitFor/10:
			early = 0
		default:
			if early++; early > 100 {
				return errNoEvents
			}
		}
	}
	return nil
}
