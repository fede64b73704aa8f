package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/kerf-gpu/kerf/cmd/internal/control"
	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/internal/nvml"
	"github.com/kerf-gpu/kerf/monitor"
	"github.com/kerf-gpu/kerf/monitor/bpf"
	"github.com/kerf-gpu/kerf/vgpu/arbiter"
)

// ProbesConfig is which programs kerfd puts into the kernel. Each that cannot be there says why in kerf doctor; nothing needs them.
type ProbesConfig struct {
	Tracepoints *bool  `yaml:"tracepoints"` // OOM kills, crashes, errors of memory, PCIe and disks; the default
	Tracefs     string `yaml:"tracefs"`     // where it is mounted
	// Calls counts launches of and waits for GPUs by probes on the driver's library, which each call then takes a microsecond or 15 for.
	Calls  bool    `yaml:"calls"`
	NCCL   string  `yaml:"nccl"`   // file of a libnccl whose collectives are counted too
	Budget float64 `yaml:"budget"` // of one CPU, above which calls are no longer probed; 0.005
}

func (p ProbesConfig) complete() ProbesConfig {
	on := true
	p.Tracepoints = cmp.Or(p.Tracepoints, &on)
	p.Tracefs = cmp.Or(p.Tracefs, bpf.DefaultTracefs)
	p.Budget = cmp.Or(p.Budget, 0.005)
	return p
}

func (p ProbesConfig) validate() error {
	switch {
	case p.Budget < 0 || p.Budget > 1:
		return fmt.Errorf("config: monitor.probes.budget %g: outside 0 to 1; it is a part of one CPU, such as 0.005", p.Budget)
	case p.NCCL != "" && !p.Calls:
		return errors.New("config: monitor.probes.nccl without calls: nothing would be counted; set calls: true, or leave nccl out")
	}
	return nil
}

// probes are the programs in the kernel, and whose processes they watch.
type probes struct {
	set     *bpf.Set
	calls   *bpf.Calls
	grants  *grants
	monitor *monitor.Monitor
	log     *slog.Logger

	mu      sync.Mutex
	tenants map[int]watchedProcess // by pid
}

// watchedProcess is who has a process that has a GPU.
type watchedProcess struct {
	name  string
	share string
	over  bool // its session has ended; how the process ended may come later
}

// openProbes switches on what the configuration wants and the kernel has.
func openProbes(c ProbesConfig, g *grants, log *slog.Logger) *probes {
	var wanted []string
	if *c.Tracepoints {
		wanted = bpf.Names()
	}
	p := &probes{set: bpf.Open(bpf.Config{Tracefs: c.Tracefs, Probes: wanted}), grants: g, monitor: g.monitor, log: log, tenants: make(map[int]watchedProcess)}
	watched := bpf.CallsConfig{NCCL: c.NCCL, Budget: c.Budget}
	if c.Calls {
		watched.CUDA = libcuda(g.hardware.root)
	}
	p.calls = bpf.OpenCalls(watched)
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
		t.over, t.share = false, e.Share
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

// libcuda is the driver's library, the file that containers have too.
func libcuda(root string) string {
	path, err := nvml.FindLibrary(root, "libcuda.so.1")
	if err == nil && filepath.IsAbs(path) {
		if file, err := filepath.EvalSymlinks(path); err == nil {
			return file
		}
	}
	return cmp.Or(path, filepath.Join(root, "libcuda.so.1")) // which is not there, as the row then says
}

// checkEvery is how often the cost of calls is held to its budget, and waits are looked at.
const checkEvery = 5 * time.Second

// check looks at calls: what they cost, and who waits for which card.
func (p *probes) check() {
	if !p.calls.On() {
		return
	}
	if err := p.calls.Check(checkEvery); err != nil {
		p.log.Warn("probes on calls could not be taken off", "error", err)
	}
	if !p.calls.On() {
		p.log.Warn("probes on calls were taken off, for what they cost; kerf doctor --only monitor.probes says more")
		return
	}
	longest := make(map[node.UUID]time.Duration)
	for _, g := range p.grants.hardware.Node().GPUs {
		longest[g.UUID] = 0
	}
	for pid, waited := range p.calls.Stalls(moment().Boot) {
		p.mu.Lock()
		share := p.tenants[pid].share
		p.mu.Unlock()
		if entry, ok := p.grants.ledger.Entry(share); ok {
			for _, d := range entry.Grant.Devices {
				longest[d.UUID] = max(longest[d.UUID], waited)
			}
		}
	}
	for gpu, waited := range longest {
		p.monitor.Waiting(gpu, waited)
	}
}

// Run hands on what the kernel tells. Nothing that goes wrong with it ends kerfd.
func (p *probes) Run(ctx context.Context) error {
	var often sync.WaitGroup
	defer often.Wait()
	if p.set.On() || p.calls.On() {
		often.Go(func() { p.repeat(ctx, forgetEvery, p.sweep) })
	}
	if p.calls.On() {
		often.Go(func() { p.repeat(ctx, checkEvery, p.check) })
	}
	err := p.set.Run(ctx, p.take, func(err error) { p.log.Info("probes", "error", err) })
	if err != nil {
		p.log.Warn("what the kernel tells is no longer heard; kerfd goes on without", "error", err)
		<-ctx.Done()
	}
	return nil
}

func (p *probes) repeat(ctx context.Context, every time.Duration, do func()) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			do()
		}
	}
}

func (p *probes) close() error {
	if p == nil {
		return nil
	}
	return errors.Join(p.set.Close(), p.calls.Close())
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
	for _, r := range slices.Concat(p.set.Rows(), p.calls.Rows()) {
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
	if waits := p.calls.Waits(); waits.Below != nil {
		below, all := cumulate(waits.Below)
		to <- prometheus.MustNewConstHistogram(descSyncWait, all, waits.Sum.Seconds(), below)
	}
}

// cumulate makes counts below powers of two of a µs into those of a histogram, by seconds.
func cumulate(counts []uint64) (below map[float64]uint64, all uint64) {
	below = make(map[float64]uint64)
	for i, n := range counts {
		all += n
		below[float64(uint64(1)<<i)/1e6] = all
	}
	return below, all
}

var descSyncWait = prometheus.NewDesc("kerf_cuda_sync_wait_seconds", "How long programs waited for their GPU, of all slices together.", nil, nil)

// Describe implements prometheus.Collector: without descriptions the set may change.
func (p *probes) Describe(chan<- *prometheus.Desc) {}
