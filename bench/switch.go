package bench

import (
	"context"
	"fmt"
	"syscall"
	"time"

	"github.com/kerf-gpu/kerf/bench/rig"
)

// The rows of switch: one tenant is killed and another starts that needs its memory. Each is there natively too.
var (
	switchRow = Row{"KF-800", "model switch: SIGKILL of one to the first kernels of the next, with its memory", "ns", Added, nil, nil}
	graveRow  = Row{"KF-801", "  of it, until the next can start", "ns", Added, nil, nil}
	birthRow  = Row{"KF-802", "  of it, the next's start, memory and first kernels", "ns", Added, nil, nil}
)

func switchRows() []Row { return []Row{switchRow, graveRow, birthRow} }

// switchModel is what each tenant holds: two do not fit on any card that is simulated with more than one slice.
const (
	switchSlice = "100Gi"
	switchModel = "96Gi"
)

// runSwitch lets one model follow another on a card that has room for one.
func runSwitch(ctx context.Context, on *rig.Rig, options Options) ([]Result, string, error) {
	bed, err := openBed(on, "switch")
	if err != nil {
		return nil, "", err
	}
	defer bed.close()
	times := 15
	if options.Quick {
		times = 2
	}
	all, grave, birth := taken{row: switchRow}, taken{row: graveRow}, taken{row: birthRow}
	for i := range times {
		options.progress("switch: %d of %d", i+1, times)
		wait, start, err := bed.change(ctx, rig.Slice{})
		if err != nil {
			return nil, "", fmt.Errorf("natively: %w", err)
		}
		all.baseline, grave.baseline, birth.baseline = append(all.baseline, wait+start), append(grave.baseline, wait), append(birth.baseline, start)
		wait, start, err = bed.change(ctx, rig.Slice{Memory: switchSlice, GPU: "0"})
		if err != nil {
			return nil, "", err
		}
		all.got, grave.got, birth.got = append(all.got, wait+start), append(grave.got, wait), append(birth.got, start)
	}
	results, err := resultsOf([]taken{all, grave, birth})
	return results, bed.card(), err
}

// change kills one tenant and starts the next as soon as it can: how long it took until it could, and from then until its
// first kernels were done, in ns.
func (b *bed) change(ctx context.Context, slice rig.Slice) (wait, start float64, err error) {
	model := guest{slice, "serve", []string{"--memory", switchModel, "--touch", "64Ki", "--seconds", "0"}}
	before, err := b.start(ctx, model)
	if err != nil {
		return 0, 0, err
	}
	defer before.end()
	killed := time.Now()
	if err := syscall.Kill(before[0].pid, syscall.SIGKILL); err != nil {
		return 0, 0, fmt.Errorf("kill the first: %w", err)
	}
	_ = before[0].Wait() // killed: how it ended is no news
	for began := time.Now(); ; began = time.Now() {
		next, err := b.launch(ctx, model)
		if err != nil {
			return 0, 0, err
		}
		_, err = next.Await("holding")
		took := time.Since(began)
		next.End()
		switch {
		case err == nil:
			return float64(began.Sub(killed)), float64(took), nil
		case ctx.Err() != nil:
			return 0, 0, ctx.Err()
		case time.Since(killed) > 20*time.Second:
			return 0, 0, fmt.Errorf("the next could not start within 20 s: %w", err)
		}
	}
}
