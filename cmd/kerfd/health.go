package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/dynamic-resource-allocation/kubeletplugin"

	"github.com/kerf-gpu/kerf/cmd/internal/control"
	dra "github.com/kerf-gpu/kerf/dra-driver"
	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/internal/nvml"
	"github.com/kerf-gpu/kerf/monitor"
	"github.com/kerf-gpu/kerf/monitor/source"
	"github.com/kerf-gpu/kerf/vgpu/ledger"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

// MonitorConfig is how the health of devices is judged, and what is done about it.
type MonitorConfig struct {
	Enabled    *bool              `yaml:"enabled"`       // the default
	Profile    string             `yaml:"profile"`       // nvidia, conservative or shared; kerf xid CODE --profile shows what each makes of a code
	Mode       monitor.Mode       `yaml:"mode"`          // observe (the default), hold or evict
	Kmsg       string             `yaml:"kmsg"`          // the kernel log; a simulated node has its own
	Interval   time.Duration      `yaml:"interval"`      // between two readings of a GPU; 15s
	Thresholds monitor.Thresholds `yaml:"thresholds"`    // zero: the default
	Condition  bool               `yaml:"nodeCondition"` // the node has one of this
	Probes     ProbesConfig       `yaml:"probes"`
}

func (m MonitorConfig) complete() MonitorConfig {
	on := true
	m.Enabled = cmp.Or(m.Enabled, &on)
	m.Profile = cmp.Or(m.Profile, "nvidia")
	m.Mode = cmp.Or(m.Mode, monitor.ModeObserve)
	m.Interval = cmp.Or(m.Interval, monitor.DefaultPoll.Every)
	m.Probes = m.Probes.complete()
	standard := monitor.DefaultThresholds()
	m.Thresholds.PCIeReplays = cmp.Or(m.Thresholds.PCIeReplays, standard.PCIeReplays)
	m.Thresholds.PortErrors = cmp.Or(m.Thresholds.PortErrors, standard.PortErrors)
	m.Thresholds.BusyPercent = cmp.Or(m.Thresholds.BusyPercent, standard.BusyPercent)
	return m
}

func (m MonitorConfig) validate() error {
	_, err := monitor.FindProfile(m.Profile)
	switch t := m.Thresholds; {
	case err != nil:
		return fmt.Errorf("config: monitor.%w", err)
	case !slices.Contains(monitor.Modes, m.Mode):
		return fmt.Errorf("config: monitor.mode %q: not known; use observe, hold or evict", m.Mode)
	case m.Interval < time.Second || m.Interval > 5*time.Minute:
		return fmt.Errorf("config: monitor.interval %s: outside 1s to 5m; a GPU answers in milliseconds, and 15s find what events miss", m.Interval)
	case t.PCIeReplays < 0 || t.PortErrors < 0:
		return errors.New("config: monitor.thresholds: a rate is below 0; leave it out for the default")
	case t.BusyPercent < 1 || t.BusyPercent > 100:
		return fmt.Errorf("config: monitor.thresholds.busyPercent %d: outside 1 to 100", t.BusyPercent)
	}
	return m.Probes.validate()
}

// newMonitor builds the monitor of this node's devices; nil where it is switched off.
func newMonitor(c Config, h *hardware, g *grants, log *slog.Logger) (*monitor.Monitor, error) {
	if !*c.Monitor.Enabled {
		return nil, nil //nolint:nilnil // nobody watches
	}
	profile, err := monitor.FindProfile(c.Monitor.Profile)
	if err != nil {
		return nil, err
	}
	kernel := "/" // of the machine, wherever its driver is
	if h.sim != nil {
		kernel = h.root
	}
	boot, err := os.ReadFile(filepath.Join(kernel, "proc/sys/kernel/random/boot_id"))
	if err != nil {
		return nil, fmt.Errorf("monitor: %w; without it what an earlier boot left cannot be told from now", err)
	}
	n := h.Node()
	config := monitor.Config{Profile: profile, Mode: c.Monitor.Mode, Thresholds: c.Monitor.Thresholds, Dir: filepath.Join(c.StateDir, "monitor"),
		Boot: strings.TrimSpace(string(boot)), Branch: branch(n.Driver.Version), Now: moment, Kmsg: cmp.Or(c.Monitor.Kmsg, filepath.Join(kernel, "dev/kmsg")),
		Poll: source.Poll{Every: c.Monitor.Interval, Again: monitor.DefaultPoll.Again, Deadline: monitor.DefaultPoll.Deadline},
		Root: kernel, Tenant: g.tenantOf, Changed: h.changed.tell,
		Report: func(err error) { log.Warn("monitor", "error", err) }, Notify: g.onHealth}
	for _, gpu := range n.GPUs {
		if !gpu.UUID.IsZero() { // one that was lost before kerfd started has no name; kerf doctor counts it
			config.GPUs = append(config.GPUs, monitor.Device{ID: gpu.UUID.String(), Serial: gpu.Serial, PCI: gpu.PCI, Index: gpu.Index, Name: gpu.ProductName})
		}
	}
	if h.lib != nil {
		config.Prober = h.lib
		config.Events = func() (source.Waiter, error) {
			w, err := h.lib.Watch()
			if err != nil {
				return nil, err
			}
			return events{w}, nil
		}
	}
	return monitor.New(config)
}

func moment() monitor.Moment {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) // cannot fail for this clock
	return monitor.Moment{Boot: time.Duration(ts.Nano()), Wall: time.Now()}
}

// branch is the first number of a driver's version.
func branch(version string) int {
	first, _, _ := strings.Cut(version, ".")
	n, _ := strconv.Atoi(first) // 0: not known
	return n
}

// events is NVML's watch in the monitor's words.
type events struct{ *nvml.Watcher }

func (e events) Wait(timeout time.Duration) (source.Event, bool, error) {
	event, ok, err := e.Watcher.Wait(timeout)
	out := source.Event{Kind: source.EventOther, GPU: event.GPU, MIG: event.GPUInstance != nvml.WholeGPU}
	switch event.Kind {
	case nvml.EventXid:
		out.Kind, out.Code = source.EventXid, int(event.Data)
	case nvml.EventRecoveryAction:
		out.Kind = source.EventRecovery
	}
	return out, ok, err
}

// verdicts is who knows how a card is.
type verdicts interface {
	Verdict(gpu node.UUID) (v monitor.Verdict, ok bool)
}

// judged is a card's fault as the monitor has established it: one reading of the card itself is no fault. Until the card has been
// watched, its own word counts.
func (h *hardware) judged(g node.GPU) (node.GPU, string) {
	if h.verdicts == nil {
		return g, ""
	}
	v, ok := h.verdicts.Verdict(g.UUID)
	if ok && v.Health != monitor.HealthUnknown {
		g.Fault = node.Fault{}
	}
	return g, v.Refuse
}

// isSilent reports whether what is wrong with a card is that it did not answer.
func (h *hardware) isSilent(g share.GPU) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return g.Fault != "" && g.Fault == h.silent[g.Index]
}

// judge tells the DRA driver what the monitor says.
type judge struct{ verdicts }

var healthStatus = map[monitor.Health]kubeletplugin.HealthStatus{
	monitor.HealthUnknown: kubeletplugin.HealthStatusUnknown,
	monitor.HealthGood:    kubeletplugin.HealthStatusHealthy,
	monitor.HealthBad:     kubeletplugin.HealthStatusUnhealthy,
}

func (j judge) Health(gpu node.UUID) (h dra.Health, ok bool) {
	v, ok := j.Verdict(gpu)
	if !ok {
		return h, false
	}
	h.Status, h.Message = healthStatus[v.Health], v.Reason
	if v.Clears != "" {
		h.Message += "; clears with: " + v.Clears
	}
	for _, t := range v.Taints {
		h.Taints = append(h.Taints, resourceapi.DeviceTaint{Key: t.Key, Value: t.Value, Effect: resourceapi.DeviceTaintEffect(t.Effect)})
	}
	return h, true
}

// tenantOf is whose process that is, as kerf top shows its share; empty if nobody's.
func (g *grants) tenantOf(pid int) string {
	for _, state := range g.arbiter.State() {
		for _, session := range state.Sessions {
			if session.PID != pid {
				continue
			}
			if e, ok := g.ledger.Entry(state.ID); ok {
				return tenantName(e, g.inside(e))
			}
		}
	}
	return g.tenantByCgroup(pid)
}

// tenantByCgroup is for a process whose session has ended, or that never had one: the container's name is in its cgroup.
func (g *grants) tenantByCgroup(pid int) string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return "" // it has ended
	}
	for _, e := range g.ledger.Entries() {
		for _, c := range g.inside(e) {
			if c.ID != "" && strings.Contains(string(text), c.ID) {
				return tenantName(e, []control.Container{c})
			}
		}
	}
	return ""
}

func tenantName(e ledger.Entry, inside []control.Container) string {
	if e.Holder.Door == ledger.DoorRun {
		return fmt.Sprintf("user %d, %d %s", e.Holder.UID, e.Holder.PID, e.Holder.Command)
	}
	if len(inside) > 0 {
		return fmt.Sprintf("pod %s/%s (%s)", inside[0].Namespace, inside[0].Pod, inside[0].Name)
	}
	return "claim " + e.Holder.Owner.String()
}

// onHealth is the monitor's Notify.
func (g *grants) onHealth(d monitor.Device, n monitor.Notice) {
	level := slog.LevelInfo
	if n.Kind == monitor.NoticeRaised && n.Level >= monitor.Hold || n.Kind == monitor.NoticeUnknown {
		level = slog.LevelWarn
	}
	held, log := g.quiet.pass(d.ID+string(n.Kind)+strconv.Itoa(n.Code), time.Now())
	if !log {
		return
	}
	g.log.Log(context.Background(), level, "health: "+string(n.Kind), "device", cmp.Or(d.ID, d.PCI.String()), "gpu", d.Index, "xid", n.Code, "level", n.Level,
		"tenant", n.Tenant, "pid", n.PID, "reason", n.Text, "notLoggedBefore", held)
	g.events.tell(d, n)
}

// health is what the monitor knows. No verdict names a process or a command, which are others' business.
func (g *grants) health() control.Health {
	h := control.Health{Schema: control.HealthSchema, Simulated: g.hardware.Node().Simulated, Off: g.monitor == nil}
	if g.monitor != nil {
		h.Report = g.monitor.Report()
		h.Probes = g.probes.rows()
	}
	return h
}

func (s *server) postRelease(w http.ResponseWriter, r *http.Request) {
	var release control.Release
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest)).Decode(&release); err != nil {
		answer(w, nil, fmt.Errorf("release: %w", err))
		return
	}
	if s.grants.monitor == nil {
		answer(w, nil, errors.New("release: nothing is watched here (monitor.enabled is false in kerfd's configuration)"))
		return
	}
	by := fmt.Sprintf("user %d", uidOf(r.Context()))
	answer(w, struct{}{}, s.grants.monitor.Release(r.PathValue("device"), by, printable(release.Why)))
}
