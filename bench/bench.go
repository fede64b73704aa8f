// Package bench measures what Kerf costs, and keeps the one format in which it says so.
//
// A scenario measures native (the driver library directly) and sliced (the same program under `kerf run`)
// in alternation within one run, so that whatever else the machine does falls on both. Baselines are
// measured, never quoted. Ids are GPU-Virt-Bench's where that suite has the metric, so that numbers can be
// laid beside others', but what is measured and how is said here; ids of Kerf's own start with KF-.
//
// Every report says whether the GPU was simulated. On a simulated one with a driver that costs nothing the
// added time is Kerf's own and exact; on a real one the ratio is what a program feels.
package bench

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/kerf-gpu/kerf/bench/rig"
)

// ListSchema names the format of `kerf bench list --json`, VirtSchema that with --virt-bench.
const (
	ListSchema = "kerf.bench.list/v1"
	VirtSchema = "kerf.bench.virt/v1"
)

// Scenario is a set of metrics that are measured together.
type Scenario struct {
	Name  string
	About string
	Rows  []Row                                                                             // every result that it can have
	with  rig.Options                                                                       // how that kerfd is started
	run   func(ctx context.Context, on *rig.Rig, options Options) ([]Result, string, error) // with a kerfd of its own
	visit func(ctx context.Context, options Options) (measured, error)                      // on what is there: a cluster, this kernel
}

// measured is what a scenario brings from a cluster.
type measured struct {
	results      []Result
	card, driver string
	simulated    bool
}

// Scenarios is every scenario there is.
var Scenarios = []Scenario{
	{
		Name: "overhead", About: "what one call costs through the shim: launch, alloc, free, queries, contexts, process start",
		Rows: overheadRows(), with: rig.Options{ZeroCost: true, Leases: true}, run: runOverhead,
	},
	{
		Name: "shares", About: "how GPU time is divided among 2, 4 and 8 busy tenants; what it costs one alone and two; who is guaranteed, over who is not",
		Rows: sharesRows(), with: rig.Options{Leases: true}, run: runShares,
	},
	{
		Name: "memory", About: "where each class of allocation is refused, to the byte; how long a refusal takes",
		Rows: memoryRows(), with: rig.Options{Leases: true}, run: runMemory,
	},
	{
		Name: "neighbour", About: "a victim's latency and GPU time, alone and beside a memory hog, a launch flood, a churn of allocations",
		Rows: neighbourRows(), with: rig.Options{Leases: true}, run: runNeighbour,
	},
	{
		Name: "priority", About: "how long a class waits for the GPU while one below it is busy",
		Rows: priorityRows(), with: rig.Options{Leases: true}, run: runPriority,
	},
	{
		Name: "crash", About: "SIGKILL of who has the GPU, and of kerfd: how long the others stand still; when memory is back; whose bytes are wrong",
		Rows: crashRows(), with: rig.Options{Leases: true}, run: runCrash,
	},
	{
		Name: "switch", About: "one model after another on a card with room for one: from the kill to the next's first kernels",
		Rows: switchRows(), with: rig.Options{Leases: true}, run: runSwitch,
	},
	{
		Name: "overcommit", About: "tenants whose memory is in sum more than the card's: all busy, or one idle; every byte checked",
		Rows: overcommitRows(), with: rig.Options{Profile: "smallx2", Overcommit: overcommitPercent}, run: runOvercommit,
	},
	{
		Name: "footprint", About: "what kerfd takes with 8 GPUs: CPU idle and under 10,000 lines a second of the kernel log, memory, what it lost",
		Rows: footprintRows(), with: rig.Options{Leases: true}, run: runFootprint,
	},
	{
		Name: "kubernetes", About: "200 pods on one node of a cluster, without claims and with a slice each, by step; 32 claims at once in the driver",
		Rows: kubernetesRows(), visit: runKubernetes,
	},
	{
		Name: "kubernetes-scale", About: "simulated nodes with our slices: bytes in etcd, pods scheduled a second without claims and with slices",
		Rows: scaleRows(), visit: runScale,
	},
	{
		Name: "cni", About: "32 NICs attached at once on this kernel, by kerf-cni and by host-device: until all are, each, moves between namespaces",
		Rows: cniRows(), visit: runCNI,
	},
	{
		Name: "storage", About: "1000 scratch volumes made, published and taken up again by the CSI driver, and written to; beside the bare kernel",
		Rows: storageRows(), visit: runStorage,
	},
	{
		Name: "fault", About: "Xid 79 on one simulated card after the other: until kerfd knows, until kerf release has given it back",
		Rows: faultRows(), with: rig.Options{Leases: true}, run: runFault,
	},
}

// Options of Run.
type Options struct {
	Kubeconfig string // of the cluster that the scenarios for one visit; "": that of make cluster
	Bin        string // directory of kerf and kerfd; "": beside the running binary
	Profile    string // simulate this profile even where a GPU is there
	Quick      bool   // a tenth of the samples: shows that all works, too few for a p99
	Progress   func(line string)
}

// Run measures the named scenarios, each with a kerfd of its own.
func Run(ctx context.Context, names []string, options Options) (Report, error) {
	report := Report{Schema: Schema, Env: hostEnv(time.Now())}
	for _, name := range names {
		scenario, err := Find(name)
		if err != nil {
			return Report{}, err
		}
		if err := report.add(ctx, scenario, options); err != nil {
			return Report{}, fmt.Errorf("scenario %s: %w", name, err)
		}
	}
	return report, nil
}

// Find is the scenario of that name; its error lists those that there are.
func Find(name string) (Scenario, error) {
	var known []string
	for _, scenario := range Scenarios {
		if scenario.Name == name {
			return scenario, nil
		}
		known = append(known, scenario.Name)
	}
	return Scenario{}, fmt.Errorf("no scenario '%s': there is %s", name, strings.Join(known, ", "))
}

func (r *Report) add(ctx context.Context, scenario Scenario, options Options) (err error) {
	if scenario.visit != nil {
		got, err := scenario.visit(ctx, options)
		if err != nil {
			return err
		}
		return r.take(scenario, got)
	}
	how := scenario.with
	how.Bin = options.Bin
	if how.Profile == "" || options.Profile != "" { // a scenario may need a card of a kind
		how.Profile = options.Profile
	}
	on, err := rig.Start(ctx, how)
	if err != nil {
		return err
	}
	defer func() {
		if closed := on.Close(); err == nil {
			err = closed
		}
	}()
	results, card, err := scenario.run(ctx, on, options)
	if err != nil {
		return err
	}
	return r.take(scenario, measured{results, card, on.DriverVersion(), on.Simulated})
}

// take puts a scenario's results into the report.
func (r *Report) take(scenario Scenario, got measured) error {
	r.Env.Card, r.Env.Driver, r.Env.Simulated = got.card, got.driver, got.simulated
	for _, one := range got.results {
		if !scenario.has(one.ID) {
			return fmt.Errorf("measured %s (%s), which is not in its list of rows; add it there", one.ID, one.Name)
		}
		one.Scenario, one.Simulated = scenario.Name, got.simulated
		one.Judge()
		r.Results = append(r.Results, one)
	}
	return nil
}

func (s Scenario) has(id string) bool {
	return slices.ContainsFunc(s.Rows, func(row Row) bool { return row.ID == id })
}

// MissedError says which targets a run missed.
type MissedError struct{ Missed []Result }

func (e MissedError) Error() string {
	var lines []string
	for _, one := range e.Missed {
		lines = append(lines, fmt.Sprintf("%s %s: %s %s, p99 %s; target %s", one.ID, one.Name, one.Basis,
			quantity(one.Bounded(), one.Unit), quantity(one.BoundedP99(), one.Unit), one.targets()))
	}
	return "targets missed: " + strings.Join(lines, "; ")
}

// Check is nil where every target was met, else a MissedError.
func (r Report) Check() error {
	if missed := r.Missed(); len(missed) > 0 {
		return MissedError{missed}
	}
	return nil
}
