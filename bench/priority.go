package bench

import (
	"context"
	"fmt"
	"time"

	"github.com/kerf-gpu/kerf/bench/rig"
)

// priorityCase is a class that asks now and then, above one that is always busy.
type priorityCase struct {
	name      string
	high, low rig.Slice
	load      load
	longest   float64 // ns of the longest thing that may run when the request comes
}

var priorityCases = []priorityCase{
	{"guaranteed over burstable, kernels of 1 ms", rig.Slice{Cores: 40}, rig.Slice{Cores: 40, Class: "burstable"},
		load{"", []string{"--kernel", "1000", "--ahead", "128"}}, millisecond},
	{"burstable over best effort, kernels of 1 ms", rig.Slice{Cores: 40, Class: "burstable"}, rig.Slice{Class: "besteffort"},
		load{"", []string{"--kernel", "1000", "--ahead", "128"}}, millisecond},
	{"guaranteed over best effort, kernels of 100 µs", rig.Slice{Cores: 40}, rig.Slice{Class: "besteffort"},
		shortKernels, millisecond / 10},
	{"guaranteed over best effort, kernels of 5 ms", rig.Slice{Cores: 40}, rig.Slice{Class: "besteffort"},
		longKernels, 5 * millisecond},
	{"guaranteed over best effort, graphs of 2 ms", rig.Slice{Cores: 40}, rig.Slice{Class: "besteffort"},
		graphKernels, 2 * millisecond},
}

func (c priorityCase) row(i int) Row {
	return Row{fmt.Sprintf("KF-%d", 600+i), c.name + ": a request of 100 µs", "ns", Added, nil, bound(5*millisecond + c.longest)}
}

// setRow is how soon a change is felt: the other tenant is busy, and the first stood still below it.
var setRow = Row{"KF-610", "kerf set --class guaranteed: until a best-effort tenant has the GPU; baseline: the command itself", "ns", Absolute,
	bound(100 * millisecond), nil}

func priorityRows() (rows []Row) {
	for i, c := range priorityCases {
		rows = append(rows, c.row(i))
	}
	return append(rows, setRow)
}

// runPriority measures how long a class waits for the GPU while one below it is busy.
func runPriority(ctx context.Context, on *rig.Rig, options Options) ([]Result, string, error) {
	bed, err := openBed(on, "priority")
	if err != nil {
		return nil, "", err
	}
	defer bed.close()
	during := 15 * time.Second // 500 requests: a p99 of five
	if options.Quick {
		during = time.Second
	}
	var results []Result
	for i, c := range priorityCases {
		options.progress("priority: %s", c.name)
		c.high.Memory, c.high.GPU = "2Gi", "0"
		c.low.Memory, c.low.GPU = "2Gi", "0"
		result, err := bed.reaction(ctx, c.row(i), c.high, busy(c.low, c.load), during)
		if err != nil {
			return nil, "", fmt.Errorf("%s: %w", c.name, err)
		}
		results = append(results, result)
	}
	options.progress("priority: kerf set")
	changes := 20
	if options.Quick {
		changes = 2
	}
	change, err := bed.changes(ctx, changes)
	return append(results, change), bed.card(), err
}

// changes raises a tenant's class over and over.
func (b *bed) changes(ctx context.Context, times int) (Result, error) {
	third := rig.Slice{Memory: "2Gi", Cores: 30, GPU: "0"}
	load := load{"", []string{"--kernel", "1000"}}
	here, err := b.start(ctx, busy(third, load), busy(third, load))
	if err != nil {
		return Result{}, err
	}
	defer here.end()
	top, err := b.on.Top(ctx)
	if err != nil {
		return Result{}, err
	}
	share, there := top.ShareOf(here[0].pid)
	if !there {
		return Result{}, fmt.Errorf("kerf top names no share of process %d", here[0].pid)
	}
	one := taken{row: setRow}
	for range times {
		if err := b.on.Set(ctx, share.ID, "--class", "besteffort"); err != nil {
			return Result{}, err
		}
		if err := b.awaitStill(ctx, here[0].pid); err != nil {
			return Result{}, err
		}
		took, command, err := b.raise(ctx, share.ID, here[0].pid)
		if err != nil {
			return Result{}, err
		}
		one.got, one.baseline = append(one.got, took), append(one.baseline, command)
	}
	return one.row.of(one.got, one.baseline)
}

// raise makes a share guaranteed: in ns, until its process has the GPU, and until the command has ended, which may be later.
func (b *bed) raise(ctx context.Context, share string, pid int) (took, command float64, err error) {
	began := time.Now()
	ended := make(chan error, 1)
	go func() {
		err := b.on.Set(ctx, share, "--class", "guaranteed")
		command = float64(time.Since(began))
		ended <- err
	}()
	err = b.awaitTurn(ctx, pid)
	took = float64(time.Since(began))
	if failed := <-ended; failed != nil {
		err = failed
	}
	return took, command, err
}

// awaitStill returns when the engine has done nothing for the process for a while.
func (b *bed) awaitStill(ctx context.Context, pid int) error {
	const still, patience = 60 * time.Millisecond, 20 * time.Second
	for began := time.Now(); time.Since(began) < patience; {
		log, err := b.watch(ctx, []int{pid}, 5*time.Millisecond, still)
		if err != nil || log.work(0, len(log)-1) == 0 {
			return err
		}
	}
	return fmt.Errorf("a best-effort tenant still had the GPU after %s beside one that is guaranteed and busy", patience)
}
