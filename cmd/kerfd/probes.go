package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/kerf-gpu/kerf/cmd/internal/control"
	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/monitor"
	"github.com/kerf-gpu/kerf/monitor/bpf"
	"github.com/kerf-gpu/kerf/vgpu/arbiter"
)

// ProbesConfig is which programs kerfd puts into the kernel. Each that cannot be there says why in kerf doctor; nothing needs them.
type ProbesConfig struct {
	Tracepoints *bool  `yaml:"tracepoints"` // OOM kills, crashes, errors of memory, PCIe and disks; the default
	Tracefs     string `yaml:"tracefs"`     // where it is mounted
}

func (p ProbesConfig) complete() ProbesConfig {
	on := true
	p.Tracepoints = cmp.Or(p.Tracepoints, &on)
	p.Tracefs = cmp.Or(p.Tracefs, bpf.DefaultTracefs)
	return p
}

// probes are the programs in the kernel, and whose processes they watch.
type probes struct {
	set     *bpf.Set
	grants  *grants
	monitor *monitor.Monitor
	log     *slog.Logger

	mu      sync.Mutex
	tenants map[int]watchedProcess // by pid
}

// watchedProcess is who has a process that has a GPU.
type watchedProcess struct {
	name string
	over bool // its session has ended; how the process ended may come later
}

// openProbes switches on what the configuration wants and the kernel has.
func openProbes(c ProbesConfig, g *grants, log *slog.Logger) *probes {
	var wanted []string
	if *c.Tracepoints {
		wanted = bpf.Names()
	}
	p := &probes{set: bpf.Open(bpf.Config{Tracefs: c.Tracefs, Probes: wanted}), grants: g, monitor: g.monitor, log: log, tenants: make(map[int]watchedProcess)}
	for _, state := range g.arbiter.State() { // sessions that an earlier kerfd began
		for _, session := range state.Sessions {
			p.session(arbiter.Event{Kind: arbiter.SessionStarted, Share: state.ID, PID: session.PID})
		}
	}
	return p
}

// session takes in that a process has a GPU now, or no longer. Who has it is looked up now: once it has ended nobody can tell.
func (p *probes) session(e arbiter.Event) {
	if p == nil || e.PID <= 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch t, known := p.tenants[e.PID]; {
	case e.Kind == arbiter.SessionStarted:
		t.over = false
		p.tenants[e.PID] = t
		if !known {
			if err := p.set.Watch(e.PID); err != nil {
				p.log.Debug("a crash of this process will not be told", "pid", e.PID, "error", err)
			}
		}
		if t.name == "" {
			go p.name(e.PID, e.Share) // it reads files, and the arbiter does not wait
		}
	case e.Kind == arbiter.SessionEnded && known:
		t.over = true
		p.tenants[e.PID] = t
	}
}

func (p *probes) name(pid int, share string) {
	entry, ok := p.grants.ledger.Entry(share)
	if !ok {
		return
	}
	name := tenantName(entry, p.grants.inside(entry))
	p.mu.Lock()
	defer p.mu.Unlock()
	if t, known := p.tenants[pid]; known {
		t.name = name
		p.tenants[pid] = t
	}
}

// tenantOf is whose process that is, or was until just now; empty if nobody's.
func (p *probes) tenantOf(pid int) string {
	p.mu.Lock()
	t := p.tenants[pid]
	p.mu.Unlock()
	return cmp.Or(t.name, p.grants.tenantOf(pid))
}

// forgetEvery is how often processes that have ended are forgotten. A pid comes again much later.
const forgetEvery = 10 * time.Second

func (p *probes) sweep() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for pid, t := range p.tenants {
		if t.over && errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
			delete(p.tenants, pid)
			if err := p.set.Forget(pid); err != nil {
				p.log.Debug("cannot forget a process", "pid", pid, "error", err)
			}
		}
	}
}

// Run hands on what the kernel tells. Nothing that goes wrong with it ends kerfd.
func (p *probes) Run(ctx context.Context) error {
	if !p.set.On() {
		<-ctx.Done()
		return nil
	}
	var sweeping sync.WaitGroup
	defer sweeping.Wait()
	sweeping.Go(func() {
		tick := time.NewTicker(forgetEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				p.sweep()
			}
		}
	})
	err := p.set.Run(ctx, p.take, func(err error) { p.log.Info("probes", "error", err) })
	if err != nil {
		p.log.Warn("what the kernel tells is no longer heard; kerfd goes on without", "error", err)
		<-ctx.Done()
	}
	return nil
}

func (p *probes) close() error {
	if p == nil {
		return nil
	}
	return p.set.Close()
}

// take gives the monitor an event in its words.
func (p *probes) take(e bpf.Event) {
	f := hostFact(e, p.tenantOf, diskName)
	p.log.Debug("the kernel tells", "kind", f.Kind, "severity", f.Severity, "pid", f.PID, "tenant", f.Tenant, "device", cmp.Or(f.Device, f.PCI.String()), "text", f.Text)
	p.monitor.Host(f)
}

var severityOf = map[bpf.Severity]monitor.Severity{
	bpf.Corrected: monitor.SeverityCorrected, bpf.Uncorrected: monitor.SeverityUncorrected, bpf.Fatal: monitor.SeverityFatal,
}

// hostFact is an event in the monitor's words.
func hostFact(e bpf.Event, tenantOf func(pid int) string, diskName func(number string) string) monitor.HostFact {
	f := monitor.HostFact{PID: e.PID}
	switch e.Kind {
	case bpf.OOM:
		f.Kind, f.Tenant = monitor.HostOOM, tenantOf(e.PID)
		f.Text = "the kernel killed it for lack of host memory: its container's limit, or the machine's"
	case bpf.Crash:
		f.Kind, f.Tenant = monitor.HostCrash, tenantOf(e.PID)
		f.Text = fmt.Sprintf("it crashed: %s (%s)", unix.SignalName(e.Sig), e.Sig)
	case bpf.Memory:
		f.Kind, f.Severity, f.Device = monitor.HostMemory, severityOf[e.Level], fmt.Sprintf("mc%d", e.MC)
		f.Text = fmt.Sprintf("%s error of %s", f.Severity, cmp.Or(e.Label, "a module that the board does not name"))
	case bpf.AER:
		f.Kind, f.Severity = monitor.HostPCIe, severityOf[e.Level]
		f.PCI, _ = node.ParsePCIAddress(e.PCI) // of a device that is no GPU's if it is none
		f.Text = fmt.Sprintf("%s error, status %#x", f.Severity, e.Bits)
	case bpf.Block:
		f.Kind, f.Severity, f.Device = monitor.HostDisk, monitor.SeverityUncorrected, diskName(e.Disk)
		f.Text = unix.ErrnoName(e.Errno)
	}
	return f
}

// diskName is the name of a disk, from its number.
func diskName(number string) string {
	target, err := os.Readlink(filepath.Join("/sys/dev/block", number))
	if err != nil {
		return number // it is gone
	}
	return filepath.Base(target)
}

// rows is the table for those who ask.
func (p *probes) rows() (rows []control.Probe) {
	if p == nil {
		return nil
	}
	for _, r := range p.set.Rows() {
		rows = append(rows, control.Probe(r))
	}
	return rows
}

var (
	descProbeUp   = prometheus.NewDesc("kerf_bpf_probe_up", "1 while a program in the kernel watches.", []string{"probe"}, nil)
	descProbeHits = prometheus.NewDesc("kerf_bpf_probe_hits_total", "Events that a probe saw.", []string{"probe"}, nil)
	descProbeLost = prometheus.NewDesc("kerf_bpf_probe_lost_total", "Events that had no room on their way to kerfd.", []string{"probe"}, nil)
	descProbeCost = prometheus.NewDesc("kerf_bpf_probe_cost_ratio", "Part of one CPU that a probe takes, as the kernel measured it.", []string{"probe"}, nil)
)

// Describe implements prometheus.Collector: without descriptions the set may change.
func (p *probes) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (p *probes) Collect(to chan<- prometheus.Metric) {
	for _, r := range p.rows() {
		up := 0.0
		if r.On {
			up = 1
		}
		to <- prometheus.MustNewConstMetric(descProbeUp, prometheus.GaugeValue, up, r.Name)
		if !r.On {
			continue
		}
		to <- prometheus.MustNewConstMetric(descProbeHits, prometheus.CounterValue, float64(r.Hits), r.Name)
		to <- prometheus.MustNewConstMetric(descProbeLost, prometheus.CounterValue, float64(r.Lost), r.Name)
		to <- prometheus.MustNewConstMetric(descProbeCost, prometheus.GaugeValue, r.Cost, r.Name)
	}
}
