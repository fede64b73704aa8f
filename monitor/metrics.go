package monitor

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/monitor/xid"
)

// counts is what is counted of the monitor's own work.
type counts struct {
	sxid      map[bool]uint64 // by fatal
	actions   map[action]uint64
	host      map[hostCount]uint64
	detection prometheus.Histogram
}

type action struct {
	name string
	mode Mode
}

func newCounts() counts {
	return counts{sxid: make(map[bool]uint64), host: make(map[hostCount]uint64), actions: make(map[action]uint64), detection: prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "kerf_monitor_detection_seconds", Help: "From a record of the kernel log to the verdict, for those that are not replayed.",
		Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 5}})}
}

// replayAge is from when on a record is history: its verdict is late for another reason.
const replayAge = 30 * time.Second

func (c *counts) detected(after time.Duration) {
	if after < replayAge {
		c.detection.Observe(max(after, 0).Seconds())
	}
}

// verdict counts what was done, or would have been done, when a verdict became worse.
func (c *counts) verdict(before, after Verdict, mode Mode) {
	if after.Level >= Hold && before.Level < Hold {
		c.actions[action{"hold", mode}]++
	}
	if after.Level.drains() && !before.Level.drains() {
		c.actions[action{"drain", mode}]++
	}
	if after.Level < Hold && before.Level >= Hold {
		c.actions[action{"clear", mode}]++
	}
}

// desc is one metric.
func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("kerf_"+name, help, labels, nil)
}

// perGPU are the metrics of a GPU that are one number.
var perGPU = []struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(v node.Vitals) (n float64, ok bool)
}{
	{desc("gpu_memory_used_bytes", "Memory in use.", "uuid"), prometheus.GaugeValue, func(v node.Vitals) (float64, bool) { return float64(v.MemoryUsed), v.MemoryTotal > 0 }},
	{desc("gpu_memory_total_bytes", "Memory.", "uuid"), prometheus.GaugeValue, func(v node.Vitals) (float64, bool) { return float64(v.MemoryTotal), v.MemoryTotal > 0 }},
	{desc("gpu_utilization_ratio", "Part of the last moment in which any kernel ran.", "uuid"), prometheus.GaugeValue, func(v node.Vitals) (float64, bool) { return float64(v.Utilization) / 100, true }},
	{desc("gpu_power_watts", "Power draw.", "uuid"), prometheus.GaugeValue, func(v node.Vitals) (float64, bool) { return v.Power, v.Power > 0 }},
	{desc("gpu_energy_joules_total", "Energy since the driver was loaded.", "uuid"), prometheus.CounterValue, func(v node.Vitals) (float64, bool) { return v.Energy, v.Energy > 0 }},
	{desc("gpu_remap_pending", "1 while a row remap waits for a reset.", "uuid"), prometheus.GaugeValue, func(v node.Vitals) (float64, bool) { return number(v.RemapPending), v.Told.Has(node.ToldRemap) }},
	{desc("gpu_remap_failure", "1 once no spare rows are left.", "uuid"), prometheus.GaugeValue, func(v node.Vitals) (float64, bool) { return number(v.RemapFailure), v.Told.Has(node.ToldRemap) }},
	{desc("gpu_nvlink_links", "NVLinks that the card has.", "uuid"), prometheus.GaugeValue, func(v node.Vitals) (float64, bool) { return float64(v.NVLinks), v.NVLinks > 0 }},
	{desc("gpu_nvlink_up_links", "NVLinks that are up.", "uuid"), prometheus.GaugeValue, func(v node.Vitals) (float64, bool) { return float64(v.NVLinksUp), v.NVLinks > 0 }},
	{desc("gpu_pcie_replays_total", "PCIe transfers that had to be repeated.", "uuid"), prometheus.CounterValue, func(v node.Vitals) (float64, bool) { return float64(v.Replays), v.Told.Has(node.ToldReplays) }},
	{desc("gpu_pcie_link_width", "Lanes of the PCIe link now.", "uuid"), prometheus.GaugeValue, func(v node.Vitals) (float64, bool) { return float64(v.Link.Width), v.Link.Width > 0 }},
	{desc("gpu_pcie_link_width_max", "Lanes that card and slot can.", "uuid"), prometheus.GaugeValue, func(v node.Vitals) (float64, bool) { return float64(v.Link.MaxWidth), v.Link.MaxWidth > 0 }},
}

var (
	descInfo        = desc("gpu_info", "A GPU; always 1.", "uuid", "pci", "model", "serial", "index")
	descTemperature = desc("gpu_temperature_celsius", "Temperature.", "uuid", "sensor")
	descThrottle    = desc("gpu_throttle", "1 while clocks are lower for the reason.", "uuid", "reason")
	descECC         = desc("gpu_ecc_errors_total", "ECC errors since the driver was loaded.", "uuid", "type")
	descRemapped    = desc("gpu_remapped_rows", "Memory rows that were remapped.", "uuid", "type")
	descRecovery    = desc("gpu_recovery_action", "1 on the action that the driver asks for.", "uuid", "action")
	descXid         = desc("gpu_xid_total", "Xids over the card's life, by code; other: one that the catalogue does not have.", "uuid", "xid")
	descOrphans     = desc("gpu_orphan_xid_total", "Xids of a card that NVML does not show.", "xid")
	descSXid        = desc("nvswitch_sxid_total", "SXids of NVSwitches.", "fatal")
	descHealth      = desc("gpu_health_state", "1 on the health: healthy, unhealthy or unknown.", "uuid", "state")
	descLevel       = desc("gpu_level", "1 on the level: healthy, suspect, degraded, hold, reset, reboot or replace.", "uuid", "level")
	descTaint       = desc("gpu_taint", "Taints of the card, by effect.", "uuid", "effect")
	descLemon       = desc("gpu_resets_needed_total", "How often the card asked for a reset or more, over its life.", "uuid")
	descDevice      = desc("device_health_state", "1 on the health of a port or a disk.", "device", "state")
	descUp          = desc("monitor_source_up", "1 while a source can be read.", "source")
	descLast        = desc("monitor_source_last_success_timestamp_seconds", "When a source was last read.", "source")
	descLost        = desc("monitor_events_lost_total", "Events of a source that were lost.", "source")
	descActions     = desc("policy_actions_total", "What was done about verdicts, or would have been: mode observe.", "action", "mode")
	descHost        = desc("host_events_total", "What the kernel told of the machine around the GPUs.", "kind", "severity")
	descCorrupt     = desc("monitor_state_corrupt_files", "State files that could not be read and were set aside when kerfd started.")
)

// Collector are the metrics. A scrape reads what is known, and asks no device.
func (m *Monitor) Collector() prometheus.Collector { return collector{m} }

type collector struct{ *Monitor }

// Describe implements prometheus.Collector: without descriptions the set may change with the devices.
func (collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c collector) Collect(to chan<- prometheus.Metric) {
	c.mu.Lock()
	defer c.mu.Unlock()
	emit := func(d *prometheus.Desc, kind prometheus.ValueType, n float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, kind, n, labels...)
	}
	for _, w := range c.devices {
		if w.Index < 0 {
			for _, h := range healthNames {
				emit(descDevice, prometheus.GaugeValue, number(h == w.verdict.Health.String()), w.ID, h)
			}
			continue
		}
		w.collect(emit)
	}
	for name, s := range c.sources {
		emit(descUp, prometheus.GaugeValue, number(s.up), name)
		emit(descLost, prometheus.CounterValue, float64(s.lost), name)
		if !s.last.IsZero() {
			emit(descLast, prometheus.GaugeValue, float64(s.last.UnixMilli())/1000, name)
		}
	}
	for code, n := range known(c.orphans) {
		emit(descOrphans, prometheus.CounterValue, float64(n), code)
	}
	for fatal, n := range c.counts.sxid {
		emit(descSXid, prometheus.CounterValue, float64(n), fmt.Sprint(fatal))
	}
	for a, n := range c.counts.actions {
		emit(descActions, prometheus.CounterValue, float64(n), a.name, string(a.mode))
	}
	for h, n := range c.counts.host {
		emit(descHost, prometheus.CounterValue, float64(n), string(h.kind), string(h.severity))
	}
	emit(descCorrupt, prometheus.GaugeValue, float64(len(c.books.corrupt)))
	c.counts.detection.Collect(to)
}

func (w *watched) collect(emit func(*prometheus.Desc, prometheus.ValueType, float64, ...string)) {
	gauge := func(d *prometheus.Desc, n float64, labels ...string) {
		emit(d, prometheus.GaugeValue, n, append([]string{w.ID}, labels...)...)
	}
	gauge(descInfo, 1, w.PCI.String(), w.Name, w.Serial, fmt.Sprint(w.Index))
	for _, h := range healthNames {
		gauge(descHealth, number(h == w.verdict.Health.String()), h)
	}
	for _, l := range levelNames {
		gauge(descLevel, number(l == w.verdict.Level.String()), l)
	}
	taints := map[Effect]int{EffectNone: 0, EffectNoSchedule: 0}
	for _, t := range w.verdict.Taints {
		taints[t.Effect]++
	}
	for effect, n := range taints {
		gauge(descTaint, float64(n), string(effect))
	}
	for code, n := range known(w.state.Xids) {
		emit(descXid, prometheus.CounterValue, float64(n), w.ID, code)
	}
	needed := 0
	for _, n := range w.state.Lifetime {
		needed += n
	}
	emit(descLemon, prometheus.CounterValue, float64(needed), w.ID)
	if !w.last.ok || w.state.silent != "" || w.last.vitals.Lost { // an old number looks like a new one
		return
	}
	v := w.last.vitals
	for _, p := range perGPU {
		if n, ok := p.value(v); ok {
			emit(p.desc, p.kind, n, w.ID)
		}
	}
	w.collectVitals(v, gauge, emit)
}

func (w *watched) collectVitals(v node.Vitals, gauge func(*prometheus.Desc, float64, ...string), emit func(*prometheus.Desc, prometheus.ValueType, float64, ...string)) {
	for sensor, n := range map[string]int{"gpu": v.Temperature, "memory": v.MemoryTemperature} {
		if n > 0 {
			gauge(descTemperature, float64(n), sensor)
		}
	}
	if v.Told.Has(node.ToldThrottle) {
		for _, n := range node.ThrottleNames {
			gauge(descThrottle, number(v.Throttle&n.Bit != 0), n.Name)
		}
	}
	if v.Told.Has(node.ToldECC) {
		emit(descECC, prometheus.CounterValue, float64(v.Corrected), w.ID, "corrected")
		emit(descECC, prometheus.CounterValue, float64(v.Uncorrectable), w.ID, "uncorrected")
	}
	if v.Told.Has(node.ToldRemap) {
		gauge(descRemapped, float64(v.RemappedCorrectable), "correctable")
		gauge(descRemapped, float64(v.RemappedUncorrectable), "uncorrectable")
	}
	if v.Told.Has(node.ToldRecovery) {
		gauge(descRecovery, 1, v.Recovery.String())
	}
}

// known are counts by code with those that the catalogue lacks as one: labels must not grow without end.
func known[N int | uint64](by map[int]N) map[string]N {
	all := make(map[string]N)
	for code, n := range by {
		name := "other"
		if _, ok := xid.Lookup(code); ok {
			name = fmt.Sprint(code)
		}
		all[name] += n
	}
	return all
}

func number(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}
