package bench

import (
	"context"
	"fmt"
	"time"

	"github.com/kerf-gpu/kerf/bench/rig"
	"github.com/kerf-gpu/kerf/internal/node"
)

// The rows of overcommit. The card is small, so that every byte of it is written, moved and checked.
var (
	overFactor = []overcommitment{
		{Row{"KF-900", "2 busy tenants, in sum 1.2 × the card: time over one after the other", "ratio", Absolute, bound(1.25), nil}, 2, 1.2},
		{Row{"KF-901", "2 busy tenants, in sum 1.5 × the card: time over one after the other", "ratio", Absolute, bound(1.25), nil}, 2, 1.5},
		{Row{"KF-902", "3 busy tenants, in sum 2 × the card: time over one after the other", "ratio", Absolute, nil, nil}, 3, 2},
		{Row{"KF-903", "5 busy tenants, in sum 4 × the card: time over one after the other", "ratio", Absolute, nil, nil}, 5, 4},
	}
	overIdle  = Row{"KF-904", "an idle tenant's memory leaves for another's: time added, over bytes at the link's rate", "ratio", Absolute, bound(1.15), nil}
	overBytes = Row{"KF-905", "regions of all tenants that were not as written", "regions", Absolute, bound(0), bound(0)}
)

// overcommitment is so many tenants whose memory is in sum so many times the card's.
type overcommitment struct {
	row     Row
	tenants int
	factor  float64
}

func overcommitRows() (rows []Row) {
	for _, o := range overFactor {
		rows = append(rows, o.row)
	}
	return append(rows, overIdle, overBytes)
}

// overcommitPercent is what the cards of the scenario promise.
const overcommitPercent = 500

// runOvercommit compares the steps of tenants that share a card that is too small for them with those of one that has it alone.
func runOvercommit(ctx context.Context, on *rig.Rig, options Options) ([]Result, string, error) {
	bed, err := openBed(on, "overcommit")
	if err != nil {
		return nil, "", err
	}
	defer bed.close()
	during, factors := 30*time.Second, overFactor
	if options.Quick {
		during, factors = 4*time.Second, overFactor[1:2]
	}
	var all []taken
	wrong := 0.0
	for _, o := range factors {
		options.progress("overcommit: %d tenants, %.1f × the card", o.tenants, o.factor)
		ratio, bad, err := bed.crowd(ctx, o, during)
		if err != nil {
			return nil, "", err
		}
		wrong += bad
		all = append(all, taken{row: o.row, got: []float64{ratio}})
	}
	options.progress("overcommit: an idle tenant gives way")
	idle, err := bed.displace(ctx)
	if err != nil {
		return nil, "", err
	}
	results, err := resultsOf(append(all, taken{row: overIdle, got: []float64{idle}}))
	return append(results, overBytes.result(wrong, wrong, 1)), bed.card(), err
}

// trainer computes all the time, with so much memory, all of it written.
func trainer(memory node.Bytes, during time.Duration) guest {
	return guest{rig.Slice{Memory: (memory * 21 / 20).Exact(), Cores: 15, GPU: "0"}, "train",
		[]string{"--memory", memory.Exact(), "--touch", "64Mi", "--step", "1000", "--seconds", fmt.Sprint(during.Seconds())}}
}

// crowd is how much longer the work of several tenants takes at the same time than one after the other, and how many regions were wrong.
func (b *bed) crowd(ctx context.Context, o overcommitment, during time.Duration) (ratio, wrong float64, err error) {
	card := float64(b.node.Status().GPUs[0].Memory)
	memory := node.Bytes(card*o.factor/float64(o.tenants)) / (64 * node.MiB) * (64 * node.MiB)
	guests := make([]guest, o.tenants)
	for i := range guests {
		guests[i] = trainer(memory, 0)
	}
	alone, bad, err := b.work(ctx, during, guests[0])
	if err != nil {
		return 0, 0, fmt.Errorf("one alone: %w", err)
	}
	together, worse, err := b.work(ctx, during, guests...)
	if err != nil {
		return 0, 0, err
	}
	if together == 0 {
		return 0, 0, fmt.Errorf("%d tenants did nothing in %s", o.tenants, during)
	}
	return alone / together, bad + worse, nil
}

// work is how much GPU time the guests have in a second, and how many of their regions were wrong in the end.
func (b *bed) work(ctx context.Context, during time.Duration, guests ...guest) (rate, wrong float64, err error) {
	here, err := b.start(ctx, guests...)
	if err != nil {
		return 0, 0, err
	}
	defer here.end()
	log, err := b.watch(ctx, here.pids(), 50*time.Millisecond, during)
	if err != nil {
		return 0, 0, err
	}
	for _, v := range here {
		v.Stop()
	}
	for _, v := range here {
		report, err := v.Await("report")
		if err != nil {
			return 0, 0, err
		}
		wrong += float64(report.Wrong)
	}
	return log.rate(), wrong, nil
}

// displace is how much longer a tenant takes to have its memory where an idle one has three quarters of the card, over the time in
// which the link moves the bytes that must go.
func (b *bed) displace(ctx context.Context) (float64, error) {
	gpu := b.node.Status().GPUs[0]
	memory := gpu.Memory / 4 * 3 / (64 * node.MiB) * (64 * node.MiB)
	wants := trainer(memory, time.Millisecond)
	begin := time.Now()
	here, err := b.start(ctx, wants)
	alone := time.Since(begin)
	here.end()
	if err != nil {
		return 0, err
	}
	idle, err := b.start(ctx, guest{wants.slice, "notebook", []string{"--memory", memory.Exact(), "--touch", "64Mi", "--idle", "3600", "--seconds", "0"}})
	if err != nil {
		return 0, err
	}
	defer idle.end()
	begin = time.Now()
	here, err = b.start(ctx, wants)
	beside := time.Since(begin)
	here.end()
	if err != nil {
		return 0, err
	}
	link := time.Duration(float64(2*memory-gpu.Memory) / smallLink * float64(time.Second))
	return float64(beside-alone) / float64(link), nil
}

// smallLink is the rate of the simulated small card's link, in bytes a second, as its profile says.
const smallLink = 2e9
