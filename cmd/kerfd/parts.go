package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// part is something that runs as long as kerfd does.
type part struct {
	name string
	run  func(context.Context) error
}

// shutdownWithin bounds how long the parts may take to end.
const shutdownWithin = 5 * time.Second

// runParts runs all parts until the context ends. A part that ends before is a failure of the whole.
func runParts(ctx context.Context, parts []part) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type end struct {
		name string
		err  error
	}
	ends := make(chan end, len(parts))
	for _, p := range parts {
		go func() { ends <- end{p.name, p.run(ctx)} }()
	}
	var errs []error
	running := len(parts)
	select {
	case <-ctx.Done():
	case e := <-ends:
		running--
		if ctx.Err() == nil {
			errs = append(errs, fmt.Errorf("%s ended: %w", e.name, errOr(e.err, errors.New("no reason given"))))
		}
	}
	cancel()
	late := time.After(shutdownWithin)
	for ; running > 0; running-- {
		select {
		case e := <-ends:
			if e.err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", e.name, e.err))
			}
		case <-late:
			return errors.Join(append(errs, fmt.Errorf("%d parts did not end within %s", running, shutdownWithin))...)
		}
	}
	return errors.Join(errs...)
}

// start runs parts beside the caller, and says how they ended.
func start(ctx context.Context, parts []part) <-chan error {
	end := make(chan error, 1)
	go func() { end <- runParts(ctx, parts) }()
	return end
}

func errOr(err, other error) error {
	if err == nil {
		return other
	}
	return err
}
