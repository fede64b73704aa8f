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

// hiddenID stands for the id of another user's share.
const hiddenID = "(other user)"

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
	return arbiter.Spec{ID: entry.ID, Grant: entry.Grant, GID: entry.Holder.GID, Strict: g.config.Strict, Simulated: g.hardware.Node().Simulated}
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
		ShareDir: arbiter.Directory(g.config.sharesDir(), entry.ID), Simulated: g.hardware.Node().Simulated,
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

// sweepEvery is how often what no event told is looked for.
const sweepEvery = 5 * time.Second

// Run ends grants whose holder's death nobody saw, and tries again what failed, until the context ends; and once more then, so
// that a kerfd that stops does not leave to the next one what it could have ended.
func (g *grants) Run(ctx context.Context) error {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			g.sweep()
			return nil
		case <-tick.C:
			g.sweep()
		}
	}
}

func (g *grants) sweep() {
	for _, entry := range g.ledger.Entries() {
		if (arbiter.Process{PID: entry.Holder.PID, Start: entry.Holder.Start}).Gone() {
			g.holderGone(entry.ID)
		}
	}
}

// release is the holder giving its grant back.
func (g *grants) release(id string, uid int) error {
	entry, ok := g.ledger.Entry(id)
	if !ok {
		return fmt.Errorf("share %q: not there; kerf top lists the shares", id)
	}
	if owner := entry.Holder.UID; uid != 0 && uid != owner {
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
	defer g.mu.Unlock()
	if !g.orphaned[id] {
		return
	}
	// The share goes before its line in the ledger: a kerfd that dies between the two finds a grant without a share, and ends it.
	idle, err := g.arbiter.RemoveIdle(id)
	if !idle && err == nil {
		return
	}
	if err == nil {
		err = g.ledger.Release(id)
	}
	if err != nil { // sweep tries again
		g.log.Error("cannot end a share", "share", id, "error", err)
		return
	}
	delete(g.orphaned, id)
	g.log.Info("ended", "share", id)
}

// onEvent is the arbiter's Notify.
func (g *grants) onEvent(e arbiter.Event) {
	level := slog.LevelDebug
	switch e.Kind {
	case arbiter.Tampered, arbiter.MemoryUnknown, arbiter.MemoryKnown, arbiter.Refused, arbiter.Noted, arbiter.Lost:
		level = slog.LevelWarn
	case arbiter.SessionEnded:
		g.endIfIdle(e.Share)
	}
	g.log.Log(context.Background(), level, string(e.Kind), "share", e.Share, "pid", e.PID, "command", e.Comm, "reason", e.Message)
}

// state is what kerf top shows to a user: the id of a share, by which its directory is found, to its holder and to root only.
func (g *grants) state(uid int) control.State {
	s := control.State{Schema: control.TopSchema, Time: time.Now().UTC(), Simulated: g.hardware.Node().Simulated, GPUs: []control.GPU{}, Shares: []control.Share{}}
	live := g.arbiter.State()
	inShares := make(map[int]bool)
	for _, state := range live {
		for _, session := range state.Sessions {
			inShares[session.PID] = true
		}
		if e, ok := g.ledger.Entry(state.ID); ok {
			if uid != 0 && uid != e.Holder.UID {
				state.ID = hiddenID
			}
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
		if bytes == arbiter.UnknownBytes {
			out.Error = fmt.Sprintf("the driver does not say how much process %d has", pid)
			continue
		}
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
