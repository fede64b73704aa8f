package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/kerf-gpu/kerf/cmd/internal/control"
	"github.com/kerf-gpu/kerf/vgpu/arbiter"
	"github.com/kerf-gpu/kerf/vgpu/ledger"
)

// grant answers a request of a process on this machine.
func (g *grants) grant(request control.GrantRequest, holder ledger.Holder) (control.Granted, error) {
	entry, err := g.ledger.Grant(g.gpus(), request.Request, holder, time.Now())
	if err != nil {
		return control.Granted{}, err
	}
	granted, err := g.open(entry)
	if err != nil {
		err = errors.Join(err, g.ledger.Release(entry.ID))
		g.endMPS(entry.Grant)
		return granted, err
	}
	g.watch(entry)
	g.changed.tell()
	g.log.Info("granted", "share", entry.ID, "pid", holder.PID, "command", holder.Command, "memory", request.Memory, "gpus", len(entry.Grant.Devices))
	return granted, nil
}

// open puts a grant in force and says what its tenant's view is made from.
func (g *grants) open(entry ledger.Entry) (control.Granted, error) {
	driver, err := g.hardware.driver(entry.Grant)
	if err != nil {
		return control.Granted{}, err
	}
	place, err := g.serveMPS(entry.Grant)
	if err != nil {
		return control.Granted{}, err
	}
	if err := g.arbiter.Add(g.spec(entry)); err != nil {
		return control.Granted{}, err
	}
	return control.Granted{
		ID: entry.ID, Grant: entry.Grant, LibDir: g.config.LibDir, Driver: driver, MPS: place,
		ShareDir: arbiter.Directory(g.config.sharesDir(), entry.ID), Simulated: g.hardware.Node().Simulated,
	}, nil
}

// watch waits for the holder's death.
func (g *grants) watch(entry ledger.Entry) {
	process := arbiter.Process{PID: entry.Holder.PID, Start: entry.Holder.Start}
	stop, err := process.Watch(func() { g.holderGone(entry.ID) })
	if err != nil { // dead already, or not to be watched: then sweep looks
		stop = func() {}
	}
	g.mu.Lock()
	g.watches[entry.ID] = stop
	g.mu.Unlock()
	if process.Gone() {
		g.holderGone(entry.ID)
	}
}

// releaseWithin is how long who gives a grant back waits for its end: sessions of a program that has ended are found to be over
// a moment after it. What the program left running in the background keeps the share, and is not waited for.
const releaseWithin = time.Second

// release is the holder giving its grant back. It returns when what was granted is free for the next.
func (g *grants) release(id string, uid int) error {
	entry, ok := g.ledger.Entry(id)
	if !ok {
		return fmt.Errorf("share %q: not there; kerf top lists the shares", id)
	}
	if owner := entry.Holder.UID; uid != 0 && uid != owner {
		return fmt.Errorf("share %s: it is user %d's, not user %d's", id, owner, uid)
	}
	select {
	case <-g.holderGone(id):
	case <-time.After(releaseWithin):
	}
	return nil
}
