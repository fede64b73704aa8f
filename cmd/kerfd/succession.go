package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kerf-gpu/kerf/cmd/internal/control"
	"github.com/kerf-gpu/kerf/internal/durable"
	"github.com/kerf-gpu/kerf/vgpu/ledger"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

// An update of the DaemonSet starts the new kerfd before it stops the old one. The new one asks for the core; the old one finishes the
// calls under way, lets go, and from then on passes kubelet's calls to its successor, until kubelet knows that one and
// the old one is stopped. No call fails for the update, and at no time do two kerfds hold the ledger.

// lockAgain is how often a successor looks whether the core is free.
const lockAgain = 20 * time.Millisecond

// succeed takes the run directory's lock. On a node of a cluster a kerfd that has it is asked to let go; elsewhere it is an error: two
// kerfds in one place are a mistake there. The kernel gives the lock back when a process dies.
//
// A pod that was succeeded, and whose kerfd was started again since, does not ask: it is the one that is going to be stopped. It waits.
func succeed(ctx context.Context, c Config, log *slog.Logger) (*os.File, error) {
	lock, err := lockRunDir(c.RunDir)
	if err == nil || !c.Kubernetes.Enabled || !errors.Is(err, unix.EWOULDBLOCK) {
		return lock, err
	}
	client := control.Dial(control.Socket(c.RunDir))
	tick := time.NewTicker(lockAgain)
	defer tick.Stop()
	asked, said := time.Time{}, ""
	for {
		if time.Since(asked) > 5*time.Second && !wasSucceeded(c) { // again, for one that was just starting itself
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
		if !errors.Is(err, unix.EWOULDBLOCK) && err.Error() != said {
			said = err.Error()
			log.Warn("cannot take the run directory; trying again", "error", err)
		}
	}
}

// servedFile has the UIDs of the pods whose kerfd had the core, the last one last.
func (c Config) servedFile() string { return filepath.Join(c.RunDir, "served") }

// maxServed bounds it.
const maxServed = 16

func served(c Config) []string {
	text, _ := os.ReadFile(c.servedFile()) // none: nobody did
	return strings.Fields(string(text))
}

// wasSucceeded says whether another pod has taken the core over from ours.
func wasSucceeded(c Config) bool {
	pods := served(c)
	i := slices.Index(pods, c.Kubernetes.PodUID)
	return i >= 0 && i < len(pods)-1
}

// noteServing writes down that our pod has the core.
func noteServing(c Config) error {
	if !c.Kubernetes.Enabled || c.Kubernetes.PodUID == "" {
		return nil
	}
	pods := slices.DeleteFunc(served(c), func(pod string) bool { return pod == c.Kubernetes.PodUID })
	pods = append(pods, c.Kubernetes.PodUID)
	text := strings.Join(pods[max(0, len(pods)-maxServed):], "\n") + "\n"
	if err := durable.Replace(c.servedFile(), []byte(text), 0o644); err != nil {
		return fmt.Errorf("note who serves: %w", err)
	}
	return nil
}

// watchSuccessor waits for a successor's death. A kerfd that has retired and finds the core free ends, so that it is started again and
// serves: an update that fails must not leave the node without one.
func watchSuccessor(ctx context.Context, c Config) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if lock, err := lockRunDir(c.RunDir); err == nil {
			_ = lock.Close()
			return errors.New("the kerfd that took over has gone; this one ends, to be started again and serve")
		}
	}
}

// lockRunDir makes sure that this kerfd is the only one in its run directory, before anything there is touched.
func lockRunDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("run directory: %w; kerfd needs to make it: run as root, or name another with --run-dir", err)
	}
	lock, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("run directory: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("run directory %s: another kerfd serves it (%w); stop that one, or name another directory with --run-dir", dir, err)
	}
	mine, err1 := lock.Stat()
	there, err2 := os.Stat(dir)
	if err := errors.Join(err1, err2); err != nil || !os.SameFile(mine, there) { // the last one removed it while we opened it
		_ = lock.Close()
		return nil, fmt.Errorf("run directory %s was made anew meanwhile: %w", dir, errOr(err, unix.EWOULDBLOCK))
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

// roomWithin is how long a claim waits for room that a scheduler saw and the ledger does not see yet: a pod that was deleted by force
// is gone for the scheduler before kubelet has given its claim back, and kubelet asks again only after a minute or more.
const roomWithin = 5 * time.Second

// Hold takes all that an owner asks or nothing, and puts it in force. It is convergent: asked again it gives the same shares, and
// makes again what was lost, since /run does not outlive a boot. While there is no room it waits a little, with no lock.
func (d door) Hold(ctx context.Context, owner ledger.Owner, asks []ledger.Ask) (held []ledger.Held, err error) {
	late := time.After(roomWithin)
	changed, end := d.grants.changed.listenFor()
	defer end()
	for {
		held, err = d.serve(func() ([]ledger.Held, error) { return d.hold(owner, asks) })
		if errors.Is(err, errRetired) {
			err = passOn(ctx, func(ctx context.Context) (err error) {
				held, err = d.grants.successor.Hold(ctx, d.name, owner, asks)
				return err
			})
			return held, err
		}
		if !errors.As(err, new(*share.NoRoomError)) {
			return held, err
		}
		select {
		case <-changed:
		case <-late:
			return nil, err
		case <-ctx.Done():
			return nil, err
		}
	}
}

// Drop ends all shares of an owner; nil where there are none. It is an error that a process is still in one.
func (d door) Drop(ctx context.Context, uid string) error {
	_, err := d.serve(func() ([]ledger.Held, error) { return nil, d.drop(ctx, uid) })
	if errors.Is(err, errRetired) {
		return passOn(ctx, func(ctx context.Context) error { return d.grants.successor.Drop(ctx, d.name, uid) })
	}
	return err
}

// Owners are all that hold anything through this door; none where a successor that should know does not answer.
func (d door) Owners() (owners []ledger.Owner) {
	_, err := d.serve(func() ([]ledger.Held, error) { owners = d.owners(); return nil, nil })
	if errors.Is(err, errRetired) {
		_ = passOn(context.Background(), func(ctx context.Context) (err error) {
			owners, err = d.grants.successor.Owners(ctx, d.name)
			return err
		})
	}
	return owners
}

// errRetired says that a successor serves.
var errRetired = errors.New("another kerfd has taken over; ask again")

// serve makes a call unless this kerfd has retired, and keeps it from retiring meanwhile.
func (d door) serve(call func() ([]ledger.Held, error)) ([]ledger.Held, error) {
	if !d.grants.stay() {
		return nil, errRetired
	}
	defer d.grants.life.RUnlock()
	return call()
}

// stay keeps kerfd from retiring until life is given back with RUnlock; false: it has retired.
func (g *grants) stay() bool {
	g.life.RLock()
	if g.successor != nil {
		g.life.RUnlock()
		return false
	}
	return true
}
