package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"time"

	"github.com/kerf-gpu/kerf/cmd/internal/control"
	"github.com/kerf-gpu/kerf/cmd/internal/version"
	"github.com/kerf-gpu/kerf/monitor"
	"github.com/kerf-gpu/kerf/vgpu/arbiter"
	"github.com/kerf-gpu/kerf/vgpu/ledger"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// serve runs kerfd until the context ends. It has two groups of parts. The core (hardware, ledger, arbiter, control socket) is one on a
// node, by the lock of the run directory. The doors for pods stay open after a successor has taken the core over, and lead to it.
func serve(ctx context.Context, c Config, log *slog.Logger) error {
	k, err := openCore(ctx, c, log)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	coreCtx, endCore := context.WithCancel(ctx)
	defer endCore()
	coreEnd, doorsEnd := start(coreCtx, k.parts()), start(ctx, k.control.kubernetes.parts())
	select {
	case <-k.control.succession:
		k.grants.retire()
		endCore()
		err := errors.Join(<-coreEnd, k.close(false))
		log.Info("another kerfd has taken over; kubelet's calls are passed on to it until this one is stopped")
		lost := watchSuccessor(ctx, c)
		cancel()
		return errors.Join(err, lost, <-doorsEnd)
	case err = <-coreEnd:
		cancel()
		err = errors.Join(err, <-doorsEnd)
	case err = <-doorsEnd:
		cancel()
		err = errors.Join(err, <-coreEnd)
	}
	return errors.Join(err, k.close(true))
}

// core is what only one kerfd on a node can have.
type core struct {
	config    Config
	lock      *os.File
	books     *ledger.Ledger
	hardware  *hardware
	grants    *grants
	control   *server
	listener  net.Listener
	page      net.Listener     // nil where there is no node page
	monitor   *monitor.Monitor // nil where nobody watches
	probes    *probes          // likewise
	condition *nodeCondition   // nil where it is not wanted
	taints    *taintTimes      // nil where nobody watches, and on a machine that is no node
}

// openCore builds the core from what an earlier kerfd left. After an error nothing is held.
func openCore(ctx context.Context, c Config, log *slog.Logger) (_ *core, err error) {
	k := &core{config: c}
	defer func() {
		if err != nil {
			err = errors.Join(err, k.close(true))
		}
	}()
	// What can fail fails before the kerfd that serves is asked to let go.
	cluster, err := newKubernetes(c, log)
	if err != nil {
		return nil, err
	}
	if k.lock, err = succeed(ctx, c, log); err != nil {
		return nil, err
	}
	var corrupt []string
	if k.books, corrupt, err = ledger.Open(c.ledgerDir()); err != nil {
		return nil, fmt.Errorf("%w; is another kerfd running?", err)
	}
	for _, file := range corrupt {
		log.Error("a grant's record is damaged and was set aside; its share ends. Was it of a MIG placement, its instance stays: nvidia-smi mig -lgi, -dgi", "file", file)
	}
	if k.hardware, err = openHardware(c, len(k.books.Entries()) > 0, log); err != nil {
		return nil, err
	}
	makeVFs(c, linkHost(k.hardware), log)
	g := newGrants(c, k.hardware, k.books, log)
	g.arbiter, err = arbiter.New(arbiter.Config{Shares: c.sharesDir(), Sessions: c.sessionsDir(), Memory: k.hardware, Notify: g.onEvent, Now: time.Now,
		Leases: *c.Leases, Hold: c.HoldGates, Drain: c.Drain, Pool: k.hardware.pool, Card: k.hardware.cardMemory})
	if err != nil {
		return nil, err
	}
	if err := g.restore(); err != nil {
		return nil, err
	}
	metrics := prometheus.NewRegistry()
	if err := k.watch(g, cluster, metrics, log); err != nil {
		return nil, err
	}
	if err := errors.Join(cluster.serve(g, metrics), noteServing(c)); err != nil {
		return nil, err
	}
	k.grants = g
	k.control = &server{
		grants: g, config: c, kubernetes: cluster, metrics: promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}),
		succession: make(chan struct{}, 1),
	}
	if k.listener, err = k.control.listen(); err != nil {
		return nil, err
	}
	k.openPage(log)
	n := k.hardware.Node()
	log.Info("kerfd is up", "version", version.Version, "gpus", len(n.GPUs), "simulated", n.Simulated, "root", k.hardware.root,
		"runDir", c.RunDir, "shares", len(k.books.Entries()))
	return k, nil
}

// watch builds the monitor, and gives its verdicts to all who ask how a card is.
func (k *core) watch(g *grants, cluster *kubernetes, metrics *prometheus.Registry, log *slog.Logger) (err error) {
	g.events = newHealthEvents(cluster)
	if g.monitor, err = newMonitor(k.config, k.hardware, g, log); err != nil || g.monitor == nil {
		return err
	}
	k.monitor = g.monitor
	k.hardware.verdicts = g.monitor
	g.probes = openProbes(k.config.Monitor.Probes, g, log)
	k.probes = g.probes
	if cluster != nil && cluster.client != nil {
		k.taints = newTaintTimes(cluster, g.monitor)
		metrics.MustRegister(k.taints.took)
		if k.config.Monitor.Condition {
			k.condition = &nodeCondition{node: cluster.config.NodeName, client: cluster.client, report: g.monitor.Report, changed: k.hardware.changed.listen(),
				failed: cluster.report("node condition")}
		}
	}
	return errors.Join(metrics.Register(g.monitor.Collector()), metrics.Register(g.probes))
}

func (k *core) parts() []part {
	// The arbiter ends after the grants, whose last act needs it.
	after, endArbiter := context.WithCancel(context.Background())
	parts := []part{
		{"hardware", k.hardware.Run},
		{"mps", k.grants.mps.Run},
		{"arbiter", func(context.Context) error { return k.grants.arbiter.Run(after) }},
		{"grants", func(ctx context.Context) error { defer endArbiter(); return k.grants.Run(ctx) }},
		{"control", func(ctx context.Context) error { return k.control.serve(ctx, k.listener) }},
	}
	if k.monitor != nil {
		parts = append(parts, part{"monitor", k.monitor.Run}, part{"probes", k.probes.Run})
	}
	if k.page != nil {
		parts = append(parts, part{"page", k.servePage})
	}
	if k.taints != nil {
		parts = append(parts, part{"taint times", k.taints.Run})
	}
	if k.condition != nil {
		parts = append(parts, part{"node condition", k.condition.Run})
	}
	if k.grants.events != nil {
		parts = append(parts, part{"events", k.grants.events.Run})
	}
	if k.grants.containers != nil {
		parts = append(parts, part{"hooks", func(ctx context.Context) error {
			return k.grants.containers.serveHooks(ctx, k.grants, k.control.kubernetes.nics)
		}})
	}
	return append(parts, k.control.kubernetes.core()...)
}

// close gives the core back; shares stay in force for the next kerfd. Where there are none, nothing is left behind, unless the next
// one waits already.
func (k *core) close(last bool) error {
	var errs []error
	if k.books != nil {
		last = last && len(k.books.Entries()) == 0
	}
	if k.control != nil {
		errs = append(errs, k.control.kubernetes.close())
	}
	if k.monitor != nil {
		errs = append(errs, k.probes.close(), k.monitor.Close())
	}
	if k.hardware != nil {
		errs = append(errs, k.hardware.close(last))
	}
	if k.books != nil && last {
		errs = append(errs, tidy(k.config))
	}
	if k.books != nil {
		errs = append(errs, k.books.Close())
	}
	if k.lock != nil {
		errs = append(errs, k.lock.Close())
	}
	return errors.Join(errs...)
}

// tidy removes what is empty once nobody holds anything.
func tidy(c Config) error {
	_ = os.Remove(control.Socket(c.RunDir)) // the listener has removed it on most ways out
	if err := os.RemoveAll(c.sessionsDir()); err != nil {
		return fmt.Errorf("tidy up: %w", err)
	}
	if strings.HasPrefix(c.StateDir, c.RunDir+"/") { // a kerfd of its own, as in a demo: the ledger is empty
		if err := os.RemoveAll(c.StateDir); err != nil {
			return fmt.Errorf("tidy up: %w", err)
		}
	}
	_ = os.Remove(c.sharesDir()) // each only if empty
	_ = os.Remove(c.mpsDir())
	_ = os.Remove(c.RunDir)
	return nil
}
