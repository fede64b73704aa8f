package bench

import (
	"context"
	"fmt"
	"time"

	"github.com/kerf-gpu/kerf/bench/rig"
)

// overheadMetric is a call that the probe can time, and what is promised of it.
type overheadMetric struct {
	id, name string
	probe    string // the probe's word for it
	batch    int    // calls timed as one for the median, and one by one for the percentile
	batches  int    // of each, in one round
	basis    Basis
	target   float64 // ns, for the median; 0: none
	p99      float64 // ns, for the 99th percentile; 0: none
}

// overheadMetrics holds for the simulated driver in zero-cost mode, where the added time is Kerf's alone; on a
// real card the targets are the same, since the card's own time is in the baseline too.
var overheadMetrics = []overheadMetric{
	{id: "OH-001", name: "kernel launch", probe: "launch", batch: 256, batches: 8, basis: Added, target: 20, p99: 100},
	{id: "KF-001", name: "graph launch", probe: "graph", batch: 64, batches: 8, basis: Added, target: 50},
	{id: "OH-002", name: "cuMemAlloc, 2 MiB", probe: "alloc", batch: 64, batches: 4, basis: Added},
	{id: "OH-003", name: "cuMemFree, 2 MiB", probe: "free", batch: 64, batches: 4, basis: Added},
	{id: "OH-007", name: "alloc + free, 2 MiB", probe: "alloc-free", batch: 64, batches: 4, basis: Added, target: 400},
	{id: "KF-003", name: "alloc + free of a pool's, 2 MiB", probe: "async", batch: 64, batches: 4, basis: Added},
	{id: "KF-002", name: "cuMemGetInfo", probe: "mem-info", batch: 256, batches: 8, basis: Absolute, target: 100},
	{id: "OH-005", name: "cuGetProcAddress", probe: "resolve", batch: 64, batches: 4, basis: Added},
	{id: "OH-004", name: "context create + destroy", probe: "context", batch: 1, batches: 2, basis: Added},
}

// initMetric is the time of cuInit in a fresh process, with others there.
type initMetric struct {
	id, name string
	mode     string // the probe's word
	others   int
	target   float64
}

const millisecond = 1e6 // in ns

var initMetrics = []initMetric{
	{"KF-010", "process init, alone", "beside", 0, millisecond},
	{"KF-011", "process init, 15 others attached", "beside", 15, millisecond},
	{"KF-012", "process init, 63 others attached", "beside", 63, millisecond},
	{"KF-013", "process init, 64 at once", "together", 63, 0},
}

// overheadSlice holds the 64 allocations that are there at once, a few contexts, and fits any card.
var overheadSlice = rig.Slice{Memory: "6Gi"}

// plan is how often things are repeated. Processes differ among themselves (where the loader and the
// allocator put things), rounds differ by what else the machine does: both need repeating.
//
// A real card's contexts and process starts take a thousand times as long as a simulated one's, so a metric
// ends early when its time is up, but not before it has leastRepeats.
type plan struct {
	pairs, rounds, inits int
	perMetric            time.Duration // for a metric of one pair, or for all starts of an init metric
}

const leastRepeats = 2

func planOf(options Options) plan {
	if options.Quick {
		return plan{pairs: 1, rounds: 4, inits: 2, perMetric: 3 * time.Second}
	}
	return plan{pairs: 5, rounds: 20, inits: 15, perMetric: 10 * time.Second}
}

// repeats counts up to most, and stops early when the time is up.
func (p plan) repeats(most int) func(yield func(int) bool) {
	return func(yield func(int) bool) {
		end := time.Now().Add(p.perMetric)
		for i := range most {
			if i >= leastRepeats && time.Now().After(end) {
				return
			}
			if !yield(i) {
				return
			}
		}
	}
}

func runOverhead(ctx context.Context, on *rig.Rig, options Options) ([]Result, string, error) {
	var (
		how  = planOf(options)
		both = map[string]*sides{}
		card string
	)
	for pair := range how.pairs {
		options.progress("calls: process pair %d of %d", pair+1, how.pairs)
		var err error
		if card, err = measurePair(ctx, on, how, overheadMetrics, both); err != nil {
			return nil, "", err
		}
	}
	var results []Result
	for _, metric := range overheadMetrics {
		results = append(results, metric.result(both[metric.probe]))
	}
	for _, metric := range initMetrics {
		options.progress("%s", metric.name)
		got, err := measureInit(ctx, on, metric, how)
		if err != nil {
			return nil, "", fmt.Errorf("%s: %w", metric.name, err)
		}
		result, err := metric.row().of(got.sliced.calls, got.native.calls)
		if err != nil {
			return nil, "", err
		}
		results = append(results, result)
	}
	return results, card, nil
}

func (o Options) progress(format string, args ...any) {
	if o.Progress != nil {
		o.Progress(fmt.Sprintf(format, args...))
	}
}

// measurePair starts one native and one sliced probe, both pinned to the same CPU, and has them measure each
// metric in turn. Only the one that measures runs; who goes first alternates too.
func measurePair(ctx context.Context, on *rig.Rig, how plan, metrics []overheadMetric, both map[string]*sides) (card string, err error) {
	native, err := startProbe(on.Native(ctx, on.Tenant(probeProgram), "serve"))
	if err != nil {
		return "", fmt.Errorf("native probe: %w", err)
	}
	defer native.stop(&err)
	sliced, err := startProbe(on.Sliced(ctx, overheadSlice, on.Tenant(probeProgram), "serve"))
	if err != nil {
		return "", fmt.Errorf("probe under kerf run: %w", err)
	}
	defer sliced.stop(&err)

	for _, metric := range metrics {
		got := both[metric.probe]
		if got == nil {
			got = &sides{}
			both[metric.probe] = got
		}
		for round := range how.repeats(how.rounds) {
			turns := []turn{{native, &got.native}, {sliced, &got.sliced}}
			if round%2 == 1 {
				turns[0], turns[1] = turns[1], turns[0]
			}
			for _, turn := range turns {
				if err := turn.probe.measure(metric, turn.into); err != nil {
					return "", fmt.Errorf("%s: %w", metric.name, err)
				}
			}
		}
	}
	return native.card, nil
}

type turn struct {
	probe *probe
	into  *samples
}

// measureInit times cuInit of fresh processes, native and sliced by turns.
func measureInit(ctx context.Context, on *rig.Rig, metric initMetric, how plan) (*sides, error) {
	got := &sides{}
	args := []string{metric.mode, fmt.Sprint(metric.others)}
	for range how.repeats(how.inits) {
		native, err := runInit(on.Native(ctx, on.Tenant(probeProgram), args...))
		if err != nil {
			return nil, fmt.Errorf("native probe: %w", err)
		}
		sliced, err := runInit(on.Sliced(ctx, overheadSlice, on.Tenant(probeProgram), args...))
		if err != nil {
			return nil, fmt.Errorf("probe under kerf run: %w", err)
		}
		got.native.calls = append(got.native.calls, native...)
		got.sliced.calls = append(got.sliced.calls, sliced...)
	}
	return got, nil
}

func overheadRows() (rows []Row) {
	for _, metric := range overheadMetrics {
		rows = append(rows, metric.row())
	}
	for _, metric := range initMetrics {
		rows = append(rows, metric.row())
	}
	return rows
}

func (m overheadMetric) row() Row {
	return Row{m.id, m.name, "ns", m.basis, optional(m.target), optional(m.p99)}
}

func (m overheadMetric) result(got *sides) Result {
	// Medians from batches: a clock read costs as much as a launch. Tails from single calls, less
	// the clock's own time: a batch would hide them.
	result := m.row().result(Median(got.sliced.batches), Percentile(got.sliced.calls, 99), len(got.sliced.calls))
	result.Baseline, result.BaselineP99 = Median(got.native.batches), Percentile(got.native.calls, 99)
	result.Spread, result.BaselineSpread = spread(got.sliced.batches), spread(got.native.batches)
	return result
}

func (m initMetric) row() Row {
	return Row{m.id, m.name, "ns", Added, optional(m.target), nil}
}

func optional(target float64) *float64 {
	if target == 0 {
		return nil
	}
	return &target
}
