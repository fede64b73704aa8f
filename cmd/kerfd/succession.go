package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kerf-gpu/kerf/cmd/internal/control"
	"github.com/kerf-gpu/kerf/vgpu/ledger"
)

// An update of the DaemonSet starts the new kerfd before it stops the old one. The new one asks for the core; the old one finishes the
// calls under way, lets go, and from then on passes kubelet's calls to its successor, until kubelet knows that one and
// the old one is stopped. No call fails for the update, and at no time do two kerfds hold the ledger.

// lockAgain is how often a successor looks whether the core is free.
const lockAgain = 20 * time.Millisecond

// succeed takes the run directory's lock. On a node of a cluster a kerfd that has it is asked to let go; elsewhere it is an error: two
// kerfds in one place are a mistake there. The kernel gives the lock back when a process dies.
func succeed(ctx context.Context, c Config, log *slog.Logger) (*os.File, error) {
	lock, err := lockRunDir(c.RunDir)
	if err == nil || !c.Kubernetes.Enabled || !errors.Is(err, unix.EWOULDBLOCK) {
		return lock, err
	}
	client := control.Dial(control.Socket(c.RunDir))
	tick := time.NewTicker(lockAgain)
	defer tick.Stop()
	asked := time.Time{}
	for {
		if time.Since(asked) > 5*time.Second { // again, for one that was just starting itself
			asked = time.Now()
			if err := client.Succeed(ctx); err != nil {
				log.Warn("the kerfd that serves this node does not let go; it is waited for", "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-tick.C:
		}
		if lock, err = lockRunDir(c.RunDir); err == nil {
			return lock, nil
		}
	}
}

// lockRunDir makes sure that this kerfd is the only one in its run directory, before anything there is touched.
func lockRunDir(dir string) (*os.File, error) {
	lock, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("run directory: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("run directory %s: another kerfd serves it (%w); stop that one, or name another directory with --run-dir", dir, err)
	}
	return lock, nil
}

// retire waits for the calls under way, and sends those that follow to the successor.
func (g *grants) retire() {
	g.life.Lock()
	defer g.life.Unlock()
	g.successor = control.Dial(control.Socket(g.config.RunDir))
}

// passOnWithin is how long a call waits for a successor that is starting. kubelet waits 45 s.
const passOnWithin = 20 * time.Second

// passOn makes a call at the successor; while that is not up, it tries again.
func passOn(ctx context.Context, call func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, passOnWithin)
	defer cancel()
	for {
		err := call(ctx)
		if err == nil || errors.Is(err, control.ErrRefused) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("kerfd is being updated, and the new one does not answer: %w", err)
		case <-time.After(lockAgain):
		}
	}
}

// Hold takes all that an owner asks or nothing, and puts it in force. It is convergent: asked again it gives the same shares, and
// makes again what was lost, since /run does not outlive a boot.
func (d door) Hold(ctx context.Context, owner ledger.Owner, asks []ledger.Ask) (held []ledger.Held, err error) {
	d.grants.life.RLock()
	defer d.grants.life.RUnlock()
	if next := d.grants.successor; next != nil {
		err = passOn(ctx, func(ctx context.Context) (err error) { held, err = next.Hold(ctx, d.name, owner, asks); return err })
		return held, err
	}
	return d.hold(ctx, owner, asks)
}

// Drop ends all shares of an owner; nil where there are none. It is an error that a process is still in one.
func (d door) Drop(ctx context.Context, uid string) error {
	d.grants.life.RLock()
	defer d.grants.life.RUnlock()
	if next := d.grants.successor; next != nil {
		return passOn(ctx, func(ctx context.Context) error { return next.Drop(ctx, d.name, uid) })
	}
	return d.drop(ctx, uid)
}

// Owners are all that hold anything through this door. One that has a successor knows of none: to look after them is the other's.
func (d door) Owners() []ledger.Owner {
	d.grants.life.RLock()
	defer d.grants.life.RUnlock()
	if d.grants.successor != nil {
		return nil
	}
	return d.owners()
}
