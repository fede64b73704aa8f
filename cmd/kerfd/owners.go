package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kerf-gpu/kerf/vgpu/arbiter"
	"github.com/kerf-gpu/kerf/vgpu/ledger"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

// door is a way by which owners get shares: ResourceClaims through one, the device plugin through another. The adapters declare
// what they need of it; see succession.go for what they call.
type door struct {
	name   string
	grants *grants
}

// hold asks the ledger once, and puts in force what it grants.
func (d door) hold(owner ledger.Owner, asks []ledger.Ask) ([]ledger.Held, error) {
	g := d.grants
	for _, ask := range asks {
		if ask.Request.Backend == share.BackendNative && !g.hardware.limitsMemory() {
			return nil, fmt.Errorf("backend native: driver %s has no memory limits of its own (R615 and later do); use auto or shim", g.hardware.Node().Driver.Version)
		}
	}
	defer g.owners.lock(owner.UID)()
	for _, entry := range g.ledger.Owned(d.name, owner.UID) {
		g.adopt(entry.ID)
	}
	entries, err := g.ledger.Hold(g.gpus(), d.name, owner, asks, time.Now())
	if !errors.As(err, new(*share.NoRoomError)) {
		g.changed.tell() // granted, or given back after a failed write
	}
	if err != nil {
		return nil, err
	}
	held := make([]ledger.Held, 0, len(entries))
	for _, entry := range entries {
		one, err := g.enforce(entry)
		if err != nil { // the grant stays the owner's, who asks again or gives it back
			return nil, err
		}
		held = append(held, one)
	}
	return held, nil
}

// enforce makes true in the world what the ledger says.
func (g *grants) enforce(entry ledger.Entry) (ledger.Held, error) {
	entry, made, err := g.divideCard(entry)
	if err != nil {
		return ledger.Held{}, err
	}
	if made { // the share's page names an instance that is gone
		if idle, err := g.arbiter.RemoveIdle(entry.ID); err != nil || !idle {
			return ledger.Held{}, errors.Join(fmt.Errorf("share %s: its MIG instance is gone, and processes are still in it; delete the pod", entry.ID), err)
		}
	}
	if !entry.Grant.Admin {
		if err := g.arbiter.Add(g.spec(entry)); err != nil {
			return ledger.Held{}, err
		}
	}
	place, err := g.serveMPS(entry.Grant)
	if err != nil {
		return ledger.Held{}, err
	}
	name, err := g.containers.publish(arbiter.Directory(g.config.sharesDir(), entry.ID), place, entry)
	return ledger.Held{Entry: entry, CDI: name}, err
}

// divideCard makes the MIG instances of a grant, and says whether it made any. One that a kerfd made which died before it wrote that
// down is found again by its placement.
func (g *grants) divideCard(entry ledger.Entry) (_ ledger.Entry, made bool, err error) {
	devices := slices.Clone(entry.Grant.Devices)
	for i, d := range devices {
		if d.Placement == nil {
			continue
		}
		uuid, err := g.hardware.createMIG(d)
		if err != nil {
			return entry, false, err
		}
		made = made || uuid != d.MIG
		devices[i].MIG = uuid
	}
	if !made {
		return entry, false, nil
	}
	entry.Grant.Devices = devices
	return entry, true, g.ledger.Update(entry)
}

// dropWithin is how long Drop waits for the last session of a share to be seen to end.
const dropWithin = 3 * time.Second

func (d door) drop(ctx context.Context, uid string) error {
	g := d.grants
	defer g.owners.lock(uid)()
	entries := g.ledger.Owned(d.name, uid)
	for _, entry := range entries {
		if err := g.containers.withdraw(entry); err != nil { // first: no container may begin in what ends
			return err
		}
		g.holderGone(entry.ID)
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	late := time.After(dropWithin)
	for {
		left := g.ledger.Owned(d.name, uid)
		if len(left) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("end share %s: %w", left[0].ID, context.Cause(ctx))
		case <-late:
			return g.stillHeld(left[0])
		case <-tick.C:
		}
	}
}

func (g *grants) stillHeld(entry ledger.Entry) error {
	var inside []string
	for _, state := range g.arbiter.State() {
		for _, session := range state.Sessions {
			if state.ID == entry.ID {
				inside = append(inside, fmt.Sprintf("%d (%s)", session.PID, session.Command))
			}
		}
	}
	if len(inside) == 0 {
		return fmt.Errorf("share %s: cannot end it yet; kerfd's log says why, and it tries again", entry.ID)
	}
	return fmt.Errorf("share %s: still used by process %s; it ends with the last of them", entry.ID, strings.Join(inside, ", "))
}

func (d door) owners() (owners []ledger.Owner) {
	for _, entry := range d.grants.ledger.Entries() {
		if entry.Holder.Door == d.name && !slices.Contains(owners, entry.Holder.Owner) {
			owners = append(owners, entry.Holder.Owner)
		}
	}
	return owners
}

// keyedLocks keep calls for one owner apart.
type keyedLocks struct {
	mu    sync.Mutex
	locks map[string]*keyedLock
}

type keyedLock struct {
	held  chan struct{} // full: somebody has it
	users int           // who has it or waits
}

// lock waits for as long as it takes.
func (l *keyedLocks) lock(key string) (unlock func()) {
	unlock, _ = l.lockWithin(context.Background(), key)
	return unlock
}

// lockWithin gives up when ctx ends.
func (l *keyedLocks) lockWithin(ctx context.Context, key string) (unlock func(), err error) {
	k := l.enter(key)
	select {
	case k.held <- struct{}{}:
		return func() { <-k.held; l.leave(key, k) }, nil
	case <-ctx.Done():
		l.leave(key, k)
		return nil, fmt.Errorf("%s is being worked on: %w", key, ctx.Err())
	}
}

func (l *keyedLocks) enter(key string) *keyedLock {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.locks == nil {
		l.locks = make(map[string]*keyedLock)
	}
	k := l.locks[key]
	if k == nil {
		k = &keyedLock{held: make(chan struct{}, 1)}
		l.locks[key] = k
	}
	k.users++
	return k
}

func (l *keyedLocks) leave(key string, k *keyedLock) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if k.users--; k.users == 0 {
		delete(l.locks, key)
	}
}

// notice tells those who listen that something has changed. It is for state that they read anew: two changes may be one notice.
type notice struct {
	mu        sync.Mutex
	listeners []chan struct{}
}

func (n *notice) listen() <-chan struct{} {
	c := make(chan struct{}, 1)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.listeners = append(n.listeners, c)
	return c
}

// listenFor is listen with an end.
func (n *notice) listenFor() (changed <-chan struct{}, end func()) {
	changed = n.listen()
	return changed, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.listeners = slices.DeleteFunc(n.listeners, func(c chan struct{}) bool { return c == changed })
	}
}

func (n *notice) tell() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range n.listeners {
		select {
		case c <- struct{}{}:
		default: // one waits there already
		}
	}
}
