package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/vgpu/ledger"
	"github.com/kerf-gpu/kerf/vgpu/mps"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

func (c Config) mpsDir() string { return filepath.Join(c.RunDir, "mps") }

// mpsWanted is what the server of each card with shares of tier mps must let its clients have at least: what the largest of them has.
// That of each share is its shim's to hold.
func mpsWanted(entries []ledger.Entry) map[node.UUID]mps.Limits {
	want := make(map[node.UUID]mps.Limits)
	for _, entry := range entries {
		for _, d := range entry.Grant.Devices {
			if d.Tier != share.TierMPS || entry.Grant.Admin {
				continue
			}
			percent := d.Cores
			if percent == 0 { // no guarantee, and no limit
				percent = 100
			}
			l := want[d.UUID]
			want[d.UUID] = mps.Limits{Percent: max(l.Percent, percent), Memory: max(l.Memory, d.HardLimit())}
		}
	}
	return want
}

// settleMPS has the daemon of a card run as its shares want it, or ends it with the last of them.
func (g *grants) settleMPS(gpu node.UUID) (mps.Place, error) {
	defer g.mpsLocks.lock(gpu.String())() // what is wanted is read and made true as one
	limits, wanted := mpsWanted(g.ledger.Entries())[gpu]
	if !wanted {
		return mps.Place{}, g.mps.Drop(gpu)
	}
	return g.mps.Ensure(context.Background(), gpu, limits)
}

// serveMPS is where the programs of a grant find their MPS server, which runs then; zero for grants of another tier.
func (g *grants) serveMPS(grant share.Grant) (mps.Place, error) {
	for _, d := range grant.Devices {
		if d.Tier == share.TierMPS {
			return g.settleMPS(d.UUID) // such a grant has one device
		}
	}
	return mps.Place{}, nil
}

// endMPS ends, or narrows, what a grant that is off the record needed.
func (g *grants) endMPS(grant share.Grant) {
	if _, err := g.serveMPS(grant); err != nil { // sweepMPS tries again
		g.log.Error("cannot settle MPS after the end of a share", "error", err)
	}
}

// sweepMPS ends daemons that could not be ended before.
func (g *grants) sweepMPS() {
	want := mpsWanted(g.ledger.Entries())
	for _, gpu := range g.mps.Cards() {
		if _, wanted := want[gpu]; wanted {
			continue
		}
		if _, err := g.settleMPS(gpu); err != nil {
			g.log.Error("cannot stop MPS", "error", err)
		}
	}
}

func (g *grants) restoreMPS(entries []ledger.Entry) {
	if err := g.mps.Restore(context.Background(), mpsWanted(entries)); err != nil {
		g.log.Error("cannot take up MPS", "error", err)
	}
}

// onMPS is the supervisor's Notify.
func (g *grants) onMPS(e mps.Event) {
	level := slog.LevelInfo
	switch e.Kind {
	case mps.Died, mps.Failed, mps.Stray, mps.Lost:
		level = slog.LevelWarn
	}
	g.log.Log(context.Background(), level, string(e.Kind), "gpu", e.GPU, "reason", e.Message)
	g.changed.tell()
}

// mpsState is the card's daemon for kerf top; nil where it has none.
func (g *grants) mpsState(gpu node.UUID) *mps.State {
	state, ok := g.mps.State(gpu)
	if !ok {
		return nil
	}
	return &state
}

// noMPS is why the tier is not to be had on this node; "" if it is.
func (h *hardware) noMPS() string {
	_, err := mps.Find(h.root)
	if err == nil {
		return ""
	}
	return err.Error()
}

// noMPSOn is why a card cannot have shares of the tier: what the node lacks, or what the card does.
func noMPSOn(g node.GPU, absent string) string {
	if volta := (node.ComputeCapability{Major: 7}); absent == "" && g.Compute.Major < volta.Major {
		return fmt.Sprintf("its compute capability is %s, and MPS has limits from %s on (Volta); use tier time", g.Compute, volta)
	}
	return absent
}

// errMPSFixed is the answer to a change of what only a connection to the server decides.
var errMPSFixed = errors.New("it is of tier mps, where a program gets its cores when it connects to the MPS server, and nobody waits for a turn by class; end it, and ask for another")

// enterVerb is the command by which kerfd starts a daemon with a /dev/shm of its own.
const enterVerb = "enter-mps"

// mpsEnter is that command, where kerfd may mount.
func mpsEnter() []string {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil || data[0].Effective&(1<<unix.CAP_SYS_ADMIN) == 0 {
		return nil
	}
	return []string{"/proc/self/exe", enterVerb}
}

// enterMPSCommand is the first stage of a daemon. It is not for people.
func enterMPSCommand() *cobra.Command {
	return &cobra.Command{
		Use: enterVerb + " DIRECTORY PROGRAM [ARG…]", Hidden: true, DisableFlagParsing: true, Args: cobra.MinimumNArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			runtime.LockOSThread() // exec keeps this thread's mount namespace, which is the process's own already
			if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
				return fmt.Errorf("make the mount namespace of an MPS daemon private: %w", err)
			}
			if err := unix.Mount(args[0], "/dev/shm", "", unix.MS_BIND, ""); err != nil {
				return fmt.Errorf("mount %s on /dev/shm for an MPS daemon: %w", args[0], err)
			}
			return fmt.Errorf("%s: %w", args[1], syscall.Exec(args[1], args[1:], os.Environ()))
		},
	}
}
