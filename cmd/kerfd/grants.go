package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/kerf-gpu/kerf/cmd/internal/control"
	"github.com/kerf-gpu/kerf/vgpu/arbiter"
	"github.com/kerf-gpu/kerf/vgpu/ledger"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

// grants joins the ledger (who may hold what) with the arbiter (what is in force), for the door `kerf run`.
//
// A grant of that door ends when its holder has died or given it back, and no session is left in its share: a program that
// kerf run started may outlive it in the background, and its bytes are not free before it ends.
type grants struct {
	config   Config
	hardware *hardware
	ledger   *ledger.Ledger
	arbiter  *arbiter.Server
	log      *slog.Logger

	mu       sync.Mutex
	orphaned map[string]bool   // shares without a holder, which wait for their last session
	watches  map[string]func() // of holders
}

// restore takes up the grants of the previous kerfd.
func (g *grants) restore() error {
	entries := g.ledger.Entries()
	specs := make([]arbiter.Spec, 0, len(entries))
	for _, entry := range entries {
		specs = append(specs, g.spec(entry))
	}
	if err := g.arbiter.Restore(specs); err != nil {
		return err
	}
	for _, entry := range entries {
		g.watch(entry)
	}
	return nil
}

func (g *grants) spec(entry ledger.Entry) arbiter.Spec {
	return arbiter.Spec{ID: entry.ID, Grant: entry.Grant, UID: entry.Holder.UID, Strict: g.config.Strict, Simulated: g.hardware.Node().Simulated}
}

// grant answers a request of a process on this machine.
func (g *grants) grant(request control.GrantRequest, holder ledger.Holder) (control.Granted, error) {
	entry, err := g.ledger.Grant(g.hardware.shareGPUs(), request.Request, holder, time.Now())
	if err != nil {
		return control.Granted{}, err
	}
	granted, err := g.open(entry)
	if err != nil {
		return granted, errors.Join(err, g.ledger.Release(entry.ID))
	}
	g.watch(entry)
	g.log.Info("granted", "share", entry.ID, "pid", holder.PID, "command", holder.Command, "memory", request.Memory, "gpus", len(entry.Grant.Devices))
	return granted, nil
}

// open puts a grant in force and says what its tenant's view is made from.
func (g *grants) open(entry ledger.Entry) (control.Granted, error) {
	driver, err := g.driver(entry.Grant)
	if err != nil {
		return control.Granted{}, err
	}
	if err := g.arbiter.Add(g.spec(entry)); err != nil {
		return control.Granted{}, err
	}
	return control.Granted{
		ID: entry.ID, Grant: entry.Grant, LibDir: g.config.LibDir, Driver: driver,
		ShareDir: filepath.Join(g.config.sharesDir(), entry.ID), Simulated: g.hardware.Node().Simulated,
	}, nil
}

func (g *grants) driver(grant share.Grant) (d control.Driver, err error) {
	if d.CUDA, err = g.hardware.library("libcuda.so.1"); err != nil {
		return d, err
	}
	if d.NVML, err = g.hardware.library("libnvidia-ml.so.1"); err != nil {
		return d, err
	}
	for _, gpu := range g.hardware.Node().GPUs {
		path := filepath.Join(g.hardware.root, gpu.DeviceNode)
		if slices.ContainsFunc(grant.Devices, func(d share.Device) bool { return d.UUID == gpu.UUID }) {
			d.Granted = append(d.Granted, path)
		} else {
			d.Others = append(d.Others, path)
		}
	}
	for _, name := range []string{"nvidiactl", "nvidia-uvm", "nvidia-uvm-tools"} {
		if path := filepath.Join(g.hardware.root, "dev", name); exists(path) {
			d.Control = append(d.Control, path)
		}
	}
	return d, nil
}

// watch waits for the holder's death.
func (g *grants) watch(entry ledger.Entry) {
	process := arbiter.Process{PID: entry.Holder.PID, Start: entry.Holder.Start}
	stop, err := process.Watch(func() { g.holderGone(entry.ID) })
	if err != nil { // it is dead already
		g.holderGone(entry.ID)
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.watches[entry.ID] = stop
}

// release is the holder giving its grant back.
func (g *grants) release(id string, uid int) error {
	i := slices.IndexFunc(g.ledger.Entries(), func(e ledger.Entry) bool { return e.ID == id })
	if i < 0 {
		return fmt.Errorf("share %q: not there; kerf top lists the shares", id)
	}
	if owner := g.ledger.Entries()[i].Holder.UID; uid != 0 && uid != owner {
		return fmt.Errorf("share %s: it is user %d's, not user %d's", id, owner, uid)
	}
	g.holderGone(id)
	return nil
}

func (g *grants) holderGone(id string) {
	g.mu.Lock()
	g.orphaned[id] = true
	if stop := g.watches[id]; stop != nil {
		stop()
		delete(g.watches, id)
	}
	g.mu.Unlock()
	g.endIfIdle(id)
}

// endIfIdle ends a share that has neither holder nor session. It is called when either goes.
func (g *grants) endIfIdle(id string) {
	g.mu.Lock()
	idle := g.orphaned[id] && g.arbiter.Sessions(id) == 0
	if idle {
		delete(g.orphaned, id)
	}
	g.mu.Unlock()
	if !idle {
		return
	}
	// The share goes before its line in the ledger: a kerfd that dies between the two finds a grant without a share, and ends it.
	if err := errors.Join(g.arbiter.Remove(id), g.ledger.Release(id)); err != nil {
		g.log.Error("cannot end a share", "share", id, "error", err)
		return
	}
	g.log.Info("ended", "share", id)
}

// onEvent is the arbiter's Notify.
func (g *grants) onEvent(e arbiter.Event) {
	level := slog.LevelDebug
	switch e.Kind {
	case arbiter.Tampered, arbiter.MemoryUnknown, arbiter.Refused, arbiter.Noted:
		level = slog.LevelWarn
	case arbiter.SessionEnded:
		g.endIfIdle(e.Share)
	}
	g.log.Log(context.Background(), level, string(e.Kind), "share", e.Share, "pid", e.PID, "command", e.Comm, "reason", e.Message)
}

// state is what kerf top shows.
func (g *grants) state() control.State {
	s := control.State{Schema: control.TopSchema, Time: time.Now().UTC(), Simulated: g.hardware.Node().Simulated}
	live := g.arbiter.State()
	entries := g.ledger.Entries()
	inShares := make(map[int]bool)
	for _, state := range live {
		for _, session := range state.Sessions {
			inShares[session.PID] = true
		}
		if i := slices.IndexFunc(entries, func(e ledger.Entry) bool { return e.ID == state.ID }); i >= 0 {
			e := entries[i]
			s.Shares = append(s.Shares, control.Share{ShareState: state, Class: e.Grant.Class, Holder: e.Holder, Created: e.Created})
		}
	}
	for _, gpu := range g.ledger.Fill(g.hardware.shareGPUs()) {
		s.GPUs = append(s.GPUs, g.gpuState(gpu, inShares))
	}
	return s
}

func (g *grants) gpuState(gpu share.GPU, inShares map[int]bool) control.GPU {
	out := control.GPU{Index: gpu.Index, UUID: gpu.UUID, Memory: gpu.Memory, Granted: gpu.Memory - gpu.FreeMemory(), Cores: 100 - gpu.FreeCores(), Fault: gpu.Fault}
	for _, known := range g.hardware.Node().GPUs {
		if known.UUID == gpu.UUID {
			out.Name = known.ProductName
		}
	}
	used, err := g.hardware.ProcessMemory(gpu.UUID)
	if err != nil {
		out.Error = err.Error()
		return out
	}
	for pid, bytes := range used {
		out.Used += bytes
		if !inShares[pid] {
			out.Outside += bytes
		}
	}
	if utilization, err := g.hardware.utilization(gpu.UUID); err == nil { // vGPU hosts and MIG cards have none
		out.Utilization = min(utilization.GPU, 100)
	}
	return out
}
