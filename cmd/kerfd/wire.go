package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kerf-gpu/kerf/cmd/internal/control"
	"github.com/kerf-gpu/kerf/cmd/internal/version"
	"github.com/kerf-gpu/kerf/vgpu/arbiter"
	"github.com/kerf-gpu/kerf/vgpu/ledger"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// serve builds the parts and runs them until the context ends. Shares stay in force for the next kerfd; where there are
// none, nothing is left behind.
func serve(ctx context.Context, c Config, log *slog.Logger) (err error) {
	if err := os.MkdirAll(c.RunDir, 0o755); err != nil {
		return fmt.Errorf("run directory: %w; kerfd needs to make it: run as root, or name another with --run-dir", err)
	}
	lock, err := lockRunDir(c.RunDir)
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	books, corrupt, err := ledger.Open(c.ledgerDir())
	if err != nil {
		return fmt.Errorf("%w; is another kerfd running?", err)
	}
	defer func() { err = errors.Join(err, books.Close()) }()
	defer func() { err = errors.Join(err, tidy(c, books)) }()
	for _, file := range corrupt {
		log.Error("a grant's record is damaged and was set aside; its share ends", "file", file)
	}
	hardware, err := openHardware(c, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, hardware.close(len(books.Entries()) == 0)) }()

	g := newGrants(c, hardware, books, log)
	g.arbiter, err = arbiter.New(arbiter.Config{Shares: c.sharesDir(), Sessions: c.sessionsDir(), Memory: hardware, Notify: g.onEvent, Now: time.Now})
	if err != nil {
		return err
	}
	if err := g.restore(); err != nil {
		return err
	}
	metrics := prometheus.NewRegistry()
	cluster, err := newKubernetes(g, metrics, log)
	if err != nil {
		return err
	}
	control := &server{grants: g, config: c, kubernetes: cluster, metrics: promhttp.HandlerFor(metrics, promhttp.HandlerOpts{})}
	listener, err := control.listen()
	if err != nil {
		return err
	}
	log.Info("kerfd is up", "version", version.Version, "gpus", len(hardware.Node().GPUs), "simulated", hardware.Node().Simulated,
		"root", hardware.root, "runDir", c.RunDir, "shares", len(books.Entries()))
	// The arbiter ends after the grants, whose last act needs it.
	after, endArbiter := context.WithCancel(context.WithoutCancel(ctx))
	defer endArbiter()
	return runParts(ctx, append([]part{
		{"hardware", hardware.Run},
		{"arbiter", func(context.Context) error { return g.arbiter.Run(after) }},
		{"grants", func(ctx context.Context) error { defer endArbiter(); return g.Run(ctx) }},
		{"control", func(ctx context.Context) error { return control.serve(ctx, listener) }},
	}, cluster.parts()...))
}

// lockRunDir makes sure that this kerfd is the only one in its run directory, before anything there is touched. The kernel gives
// the lock back when the process dies.
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

// tidy removes what is empty once nobody holds anything.
func tidy(c Config, books *ledger.Ledger) error {
	_ = os.Remove(control.Socket(c.RunDir)) // the listener has removed it on most ways out
	if len(books.Entries()) > 0 {
		return nil
	}
	if err := os.RemoveAll(c.sessionsDir()); err != nil {
		return fmt.Errorf("tidy up: %w", err)
	}
	if strings.HasPrefix(c.StateDir, c.RunDir+"/") { // a kerfd of its own, as in a demo: the ledger is empty
		if err := os.RemoveAll(c.StateDir); err != nil {
			return fmt.Errorf("tidy up: %w", err)
		}
	}
	_ = os.Remove(c.sharesDir()) // each only if empty
	_ = os.Remove(c.RunDir)
	return nil
}
