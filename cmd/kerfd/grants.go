package main

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/kerf-gpu/kerf/cmd/internal/control"
	"github.com/kerf-gpu/kerf/monitor"
	"github.com/kerf-gpu/kerf/vgpu/arbiter"
	"github.com/kerf-gpu/kerf/vgpu/ledger"
	"github.com/kerf-gpu/kerf/vgpu/mps"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

// grants joins the ledger (who may hold what) with the arbiter (what is in force), for every door.
//
// A grant ends when its holder has gone or given it back, and no session is left in its share: a program that kerf run started
// may outlive it in the background, and its bytes are not free before it ends.
type grants struct {
	config     Config
	hardware   *hardware
	ledger     *ledger.Ledger
	arbiter    *arbiter.Server
	mps        *mps.Supervisor
	containers *containers      // nil without Kubernetes
	monitor    *monitor.Monitor // nil where nobody watches
	events     *healthEvents    // nil without Kubernetes
	probes     *probes          // nil where nobody watches
	log        *slog.Logger
	changed    *notice // the hardware's too: what the GPUs are, and what is granted where
	owners     keyedLocks
	mpsLocks   keyedLocks
	quiet      quiet

	life      sync.RWMutex    // held by every call of an owner; taken to retire
	successor *control.Client // who serves owners now; nil: we do

	mu       sync.Mutex
	orphaned map[string]chan struct{} // shares without a holder, which wait for their last session; closed when that is over
	ending   map[string]*ending       // those of them that are being ended
	watches  map[string]func()        // of holders that are processes
}

func newGrants(c Config, h *hardware, books *ledger.Ledger, log *slog.Logger) *grants {
	g := &grants{config: c, hardware: h, ledger: books, log: log, changed: &h.changed, orphaned: make(map[string]chan struct{}), ending: make(map[string]*ending), watches: make(map[string]func())}
	g.mps = mps.New(mps.Config{Dir: c.mpsDir(), Root: h.root, Enter: c.mpsEnter, Notify: g.onMPS, Now: time.Now})
	return g
}

// restore takes up the grants of the previous kerfd.
func (g *grants) restore() error {
	entries := g.ledger.Entries()
	specs := make([]arbiter.Spec, 0, len(entries))
	for i, entry := range entries {
		var err error
		if entries[i], _, err = g.divideCard(entry); err != nil { // MIG instances do not outlive a reboot
			g.log.Error("cannot make the MIG instance of a share again; it is tried when its claim is prepared", "share", entry.ID, "error", err)
		}
		if entry = entries[i]; !entry.Grant.Admin {
			specs = append(specs, g.spec(entry))
		}
	}
	if err := g.arbiter.Restore(specs); err != nil {
		return err
	}
	g.restoreMPS(entries)
	for _, entry := range entries {
		if entry.Holder.Door == ledger.DoorRun {
			g.watch(entry)
		}
	}
	return nil
}

// gpus are the cards as the policy sees them, with what is granted on each.
func (g *grants) gpus() []share.GPU {
	gpus := g.ledger.Fill(g.hardware.shareGPUs())
	for i, gpu := range gpus {
		gpus[i].Foreign = foreign(gpu.Foreign, gpu.Granted)
	}
	return gpus
}

func (g *grants) spec(entry ledger.Entry) arbiter.Spec {
	return arbiter.Spec{ID: entry.ID, Grant: entry.Grant, GID: entry.Holder.GID, Strict: g.config.Strict, Simulated: g.hardware.Node().Simulated}
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
			g.awaitEndings()
			return nil
		case <-tick.C:
			g.sweep()
		}
	}
}

// awaitEndings waits for the ends under way.
func (g *grants) awaitEndings() {
	g.mu.Lock()
	var under []chan struct{}
	for _, e := range g.ending {
		under = append(under, e.done)
	}
	g.mu.Unlock()
	for _, done := range under {
		<-done
	}
}

func (g *grants) sweep() {
	for _, entry := range g.ledger.Entries() {
		if g.abandoned(entry) {
			g.holderGone(entry.ID)
		}
		g.inside(entry) // forgets containers that have ended
	}
	g.sweepMPS()
}

// abandoned says whether a grant has lost its holder. Owners give theirs back by a call; one that was, and could not end, is
// tried again.
func (g *grants) abandoned(entry ledger.Entry) bool {
	if entry.Holder.Door == ledger.DoorRun {
		return arbiter.Process{PID: entry.Holder.PID, Start: entry.Holder.Start}.Gone()
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.orphaned[entry.ID] != nil
}

// holderGone ends a share once its last session has ended. The channel is closed then, or when it has a holder again.
func (g *grants) holderGone(id string) (over <-chan struct{}) {
	g.mu.Lock()
	waits := g.orphaned[id]
	if waits == nil {
		waits = make(chan struct{})
		g.orphaned[id] = waits
	}
	if stop := g.watches[id]; stop != nil {
		stop()
		delete(g.watches, id)
	}
	g.mu.Unlock()
	g.endIfIdle(id)
	return waits
}

// over forgets that a share has no holder. g.mu is held.
func (g *grants) over(id string) {
	if waits := g.orphaned[id]; waits != nil {
		close(waits)
		delete(g.orphaned, id)
	}
}

// ending is the end of one share under way.
type ending struct {
	done  chan struct{} // closed when it is over, however
	again bool          // another reason to end the share came meanwhile
}

// endIfIdle ends a share that has neither holder nor session. It is called when either goes.
func (g *grants) endIfIdle(id string) {
	for again := true; again; {
		g.mu.Lock()
		if e := g.ending[id]; e != nil || g.orphaned[id] == nil {
			if e != nil {
				e.again = true
			}
			g.mu.Unlock()
			return
		}
		e := &ending{done: make(chan struct{})}
		g.ending[id] = e
		g.mu.Unlock()
		done, err := g.end(id)
		if err != nil { // sweep tries again
			g.log.Error("cannot end a share", "share", id, "error", err)
		}
		g.mu.Lock()
		delete(g.ending, id)
		if done {
			g.over(id)
		}
		again = e.again && !done
		g.mu.Unlock()
		close(e.done)
		if done {
			g.changed.tell()
			g.log.Info("ended", "share", id)
		}
	}
}

// end takes a share out of the world if no session is in it, and then off the record: a kerfd that dies between the two finds a grant
// without a share, and ends it.
func (g *grants) end(id string) (done bool, err error) {
	if idle, err := g.arbiter.RemoveIdle(id); !idle || err != nil {
		return false, err
	}
	if err := g.dissolve(id); err != nil {
		return false, err
	}
	entry, _ := g.ledger.Entry(id)
	if err := g.ledger.Release(id); err != nil {
		return true, err
	}
	g.endMPS(entry.Grant)
	return true, nil
}

// adopt gives a share a holder again that was given back and had not ended yet; one that is ending is waited for.
func (g *grants) adopt(id string) {
	for {
		g.mu.Lock()
		e := g.ending[id]
		if e == nil {
			g.over(id)
			g.mu.Unlock()
			return
		}
		g.mu.Unlock()
		<-e.done
	}
}

// dissolve takes back the MIG instances that were made for a grant. Nobody else's are in their place: the ledger refuses that.
func (g *grants) dissolve(id string) error {
	entry, _ := g.ledger.Entry(id)
	for _, d := range entry.Grant.Devices {
		if d.Placement == nil {
			continue
		}
		if err := g.hardware.destroyMIG(d); err != nil {
			return err
		}
	}
	return nil
}

// onEvent is the arbiter's Notify.
func (g *grants) onEvent(e arbiter.Event) {
	g.probes.session(e)
	level := slog.LevelDebug
	switch e.Kind {
	case arbiter.Tampered, arbiter.MemoryUnknown, arbiter.MemoryKnown, arbiter.Refused, arbiter.Noted, arbiter.Lost, arbiter.LeaseOverrun, arbiter.PoolShort:
		level = slog.LevelWarn
	case arbiter.SessionEnded:
		go g.endIfIdle(e.Share) // it may ask NVML, and the arbiter does not wait
	}
	held, log := g.quiet.pass(e.Share+string(e.Kind), time.Now())
	if level == slog.LevelDebug || log {
		g.log.Log(context.Background(), level, string(e.Kind), "share", e.Share, "pid", e.PID, "command", e.Comm, "reason", e.Message, "notLoggedBefore", held)
	}
}
