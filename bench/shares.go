package bench

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/kerf-gpu/kerf/bench/rig"
)

// load is how a tenant keeps the GPU busy.
type load struct {
	name string
	args []string // of the tenant spin
}

var (
	shortKernels = load{"kernels of 100 µs", []string{"--kernel", "100", "--ahead", "128"}}
	longKernels  = load{"kernels of 5 ms", []string{"--kernel", "5000", "--ahead", "64"}}
	mixedKernels = load{"kernels of 100 µs and 5 ms", []string{"--kernel", "100", "--other", "5000", "--every", "20", "--ahead", "128"}}
	graphKernels = load{"graphs of 20 kernels of 100 µs", []string{"--kernel", "100", "--graph", "20", "--ahead", "32"}}
)

// sharesCase is some busy tenants on one GPU.
type sharesCase struct {
	name  string
	cores []int
	loads []load // by turns
}

var sharesCases = []sharesCase{
	{"2 equal, short", []int{50, 50}, []load{shortKernels}},
	{"2 equal, long", []int{50, 50}, []load{longKernels}},
	{"2 equal, short against long", []int{50, 50}, []load{shortKernels, longKernels}},
	{"2 equal, graphs against mixed", []int{50, 50}, []load{graphKernels, mixedKernels}},
	{"2 unequal (70, 30), mixed", []int{70, 30}, []load{mixedKernels}},
	{"4 equal, short, long, mixed, graphs", []int{25, 25, 25, 25}, []load{shortKernels, longKernels, mixedKernels, graphKernels}},
	{"4 unequal (40, 30, 20, 10), graphs", []int{40, 30, 20, 10}, []load{graphKernels}},
	{"8 equal, mixed", []int{12, 12, 12, 12, 12, 12, 12, 12}, []load{mixedKernels}},
	{"8 unequal (25 to 5), short and long", []int{25, 20, 15, 15, 10, 5, 5, 5}, []load{shortKernels, longKernels}},
}

// sampleEvery is how often the engine's log is read.
const sampleEvery = 50 * time.Millisecond

// sharesPlan is how long a case is watched, after it has settled.
type sharesPlan struct{ settle, watch time.Duration }

func sharesPlanOf(options Options) sharesPlan {
	if options.Quick {
		return sharesPlan{time.Second, 3 * time.Second}
	}
	return sharesPlan{2 * time.Second, 12 * time.Second}
}

// runShares measures how GPU time is divided.
func runShares(ctx context.Context, on *rig.Rig, options Options) ([]Result, string, error) {
	bed, err := openBed(on, "shares")
	if err != nil {
		return nil, "", err
	}
	defer bed.close()
	bench := sharesBench{bed, sharesPlanOf(options)}
	var results []Result
	for i, c := range sharesCases {
		options.progress("shares: %s", c.name)
		seen, err := bench.watch(ctx, c)
		if err != nil {
			return nil, "", fmt.Errorf("%s: %w", c.name, err)
		}
		options.progress("shares: %s: in percent, got %.1f of %v", c.name, hundredfold(seen.parts(0, len(seen)-1)), c.cores)
		more, err := seen.results(i, c)
		if err != nil {
			return nil, "", fmt.Errorf("%s: %w", c.name, err)
		}
		results = append(results, more...)
	}
	options.progress("shares: one alone, native and sliced; two against one")
	more, err := bench.throughput(ctx)
	if err != nil {
		return nil, "", err
	}
	results = append(results, more...)
	options.progress("shares: a guaranteed tenant over a best-effort one")
	high := rig.Slice{Memory: "2Gi", Cores: 50, GPU: "0"}
	low := busy(rig.Slice{Memory: "2Gi", GPU: "0", Class: "besteffort"}, load{"", []string{"--kernel", "1000", "--ahead", "128"}})
	reaction, err := bed.reaction(ctx, reactionRow, high, low, bench.plan.watch)
	return append(results, reaction), bed.card(), err
}

type sharesBench struct {
	*bed
	plan sharesPlan
}

func (b sharesBench) observe(ctx context.Context, slices []rig.Slice, loads []load) (readings, error) {
	guests := make([]guest, len(slices))
	for i, slice := range slices {
		guests[i] = busy(slice, loads[i%len(loads)])
	}
	here, err := b.start(ctx, guests...)
	if err != nil {
		return nil, err
	}
	defer here.end()
	if _, err := b.bed.watch(ctx, here.pids(), sampleEvery, b.plan.settle); err != nil {
		return nil, err
	}
	return b.bed.watch(ctx, here.pids(), sampleEvery, b.plan.watch)
}

func (b sharesBench) watch(ctx context.Context, c sharesCase) (readings, error) {
	slices := make([]rig.Slice, len(c.cores))
	for i, cores := range c.cores {
		slices[i] = rig.Slice{Memory: "2Gi", Cores: cores, GPU: "0"}
	}
	return b.observe(ctx, slices, c.loads)
}

func hundredfold(parts []float64) []float64 {
	percent := make([]float64, len(parts))
	for i, part := range parts {
		percent[i] = 100 * part
	}
	return percent
}

// shareError is by how much of the GPU's time the tenant was off that was off most, in percent.
func (c sharesCase) shareError(parts []float64) (worst float64) {
	sum := 0
	for _, cores := range c.cores {
		sum += cores
	}
	for i, part := range parts {
		worst = max(worst, 100*math.Abs(part-float64(c.cores[i])/float64(sum)))
	}
	return worst
}

// jain is Jain's index of what each had against what it was due.
func (c sharesCase) jain(parts []float64) float64 {
	var sum, squares float64
	for i, part := range parts {
		x := part / float64(c.cores[i])
		sum += x
		squares += x * x
	}
	return sum * sum / (float64(len(parts)) * squares)
}

func (c sharesCase) rows(i int) (second, all, jain Row) {
	row := func(id int, name string, target float64) Row {
		return Row{fmt.Sprintf("KF-%d", id+i), c.name + ": " + name, "%", Absolute, &target, nil}
	}
	return row(100, "share error over 1 s, p95", 3), row(120, "share error over all", 1), row(140, "unfairness (1 - Jain), over all", 1)
}

func (r readings) results(i int, c sharesCase) ([]Result, error) {
	var errors []float64
	for _, parts := range r.over(time.Second) {
		errors = append(errors, c.shareError(parts))
	}
	if len(errors) == 0 {
		return nil, fmt.Errorf("the engine worked for less than a second in the %s that were watched", r[len(r)-1].at.Sub(r[0].at))
	}
	parts := r.parts(0, len(r)-1)
	over, unfair := c.shareError(parts), 100*(1-c.jain(parts))
	second, all, jain := c.rows(i)
	results := []Result{
		second.result(Percentile(errors, 95), Percentile(errors, 99), len(errors)),
		all.result(over, over, 1),
		jain.result(unfair, unfair, 1),
	}
	results[0].Spread, results[1].Shares = spread(errors), c.shares(parts)
	return results, nil
}

// shares are what each tenant had and was due.
func (c sharesCase) shares(parts []float64) (shares []Share) {
	sum := 0
	for _, cores := range c.cores {
		sum += cores
	}
	for i, part := range parts {
		due := 100 * float64(c.cores[i]) / float64(sum)
		shares = append(shares, Share{fmt.Sprintf("%d: %s", i+1, c.loads[i%len(c.loads)].name), due, 100 * part})
	}
	return shares
}

var (
	lonelyRow   = Row{"KF-160", "one alone: throughput lost against native", "%", Absolute, bound(0.5), nil}
	togetherRow = Row{"KF-161", "two: throughput lost against one alone", "%", Absolute, bound(3), nil}
	reactionRow = Row{"KF-170", "guaranteed over best effort (kernels of 1 ms): a request of 100 µs", "ns", Added, nil,
		bound((5 + 1) * millisecond)} // and the kernel that runs
)

func sharesRows() (rows []Row) {
	for i, c := range sharesCases {
		second, all, jain := c.rows(i)
		rows = append(rows, second, all, jain)
	}
	return append(rows, lonelyRow, togetherRow, reactionRow)
}

// throughput compares the engine's work in a second: of a program on the driver itself, of the same in a slice, and of two in
// slices. They run by turns, so that what else the machine does falls on all.
func (b sharesBench) throughput(ctx context.Context) ([]Result, error) {
	half := rig.Slice{Memory: "2Gi", Cores: 50, GPU: "0"}
	var lone, two []float64
	b.plan = sharesPlan{time.Second, min(b.plan.watch, 4*time.Second)}
	for range 5 {
		rates := make([]float64, 3)
		for i, slices := range [][]rig.Slice{{{}}, {half}, {half, half}} {
			log, err := b.observe(ctx, slices, []load{shortKernels})
			if err != nil {
				return nil, err
			}
			rates[i] = log.rate()
		}
		lone = append(lone, 100*(1-rates[1]/rates[0]))
		two = append(two, 100*(1-rates[2]/rates[1]))
	}
	return resultsOf([]taken{{lonelyRow, lone, nil}, {togetherRow, two, nil}})
}
