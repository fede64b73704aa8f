package bench

import (
	"context"
	"fmt"
	"syscall"
	"time"

	"github.com/kerf-gpu/kerf/bench/rig"
	"github.com/kerf-gpu/kerf/internal/node"
)

// goOnWithin is how soon after a death those who live go on.
const goOnWithin = 50 * millisecond

// The rows of crash. A gap is the longest time in which the engine does nothing for any of those who live and have work.
var (
	holderRow = Row{"KF-700", "SIGKILL of the tenant that has the GPU: gap; baseline: nobody killed", "ns", Absolute, bound(goOnWithin), bound(goOnWithin)}
	daemonGap = Row{"KF-701", "SIGKILL of kerfd: gap; baseline: nobody killed", "ns", Absolute, bound(goOnWithin), bound(goOnWithin)}
	returnGap = Row{"KF-702", "kerfd starts again: gap; baseline: nobody killed", "ns", Absolute, bound(goOnWithin), bound(goOnWithin)}
	booksRow  = Row{"KF-703", "SIGKILL of a tenant: until its memory can be granted; baseline: native, until the driver has it", "ns", Absolute, nil, nil}
	bytesRow  = Row{"KF-704", "regions of a survivor that were not as written, after all deaths", "regions", Absolute, bound(0), bound(0)}
)

func crashRows() []Row { return []Row{holderRow, daemonGap, returnGap, booksRow, bytesRow} }

type crashPlan struct {
	deaths int           // of each kind
	watch  time.Duration // after a death, and before it
}

// runCrash kills who has the GPU, and kerfd, and watches those who live.
func runCrash(ctx context.Context, on *rig.Rig, options Options) ([]Result, string, error) {
	bed, err := openBed(on, "crash")
	if err != nil {
		return nil, "", err
	}
	defer bed.close()
	plan := crashPlan{25, 500 * time.Millisecond}
	if options.Quick {
		plan = crashPlan{2, 200 * time.Millisecond}
	}
	options.progress("crash: memory of the dead, %d times", plan.deaths)
	books, native, err := bed.bury(ctx, plan)
	if err != nil {
		return nil, "", err
	}
	deaths, wrong, err := bed.deaths(ctx, plan, options)
	if err != nil {
		return nil, "", err
	}
	results, err := resultsOf(append(deaths, taken{booksRow, books, native}))
	return append(results, bytesRow.result(wrong, wrong, 1)), bed.card(), err
}

// deaths kills the holder and kerfd by turns, beside a tenant that verifies its bytes and one that is always busy.
func (b *bed) deaths(ctx context.Context, plan crashPlan, options Options) ([]taken, float64, error) {
	third := rig.Slice{Memory: "2Gi", Cores: 30, GPU: "0"}
	spin := busy(third, load{"", []string{"--kernel", "1000"}})
	survivors, err := b.start(ctx, spin, guest{third, "train", []string{"--memory", "256Mi", "--seconds", "0"}})
	if err != nil {
		return nil, 0, err
	}
	defer survivors.end()
	holder, daemon, again := taken{row: holderRow}, taken{row: daemonGap}, taken{row: returnGap}
	for i := range plan.deaths {
		options.progress("crash: death %d of %d", i+1, plan.deaths)
		calm, err := b.gap(ctx, survivors.pids(), plan.watch)
		if err != nil {
			return nil, 0, err
		}
		gap, err := b.killHolder(ctx, spin, survivors, plan)
		if err != nil {
			return nil, 0, err
		}
		holder.got, holder.baseline = append(holder.got, gap), append(holder.baseline, calm)
		gone, back, err := b.killDaemon(ctx, survivors, plan)
		if err != nil {
			return nil, 0, err
		}
		daemon.got, daemon.baseline = append(daemon.got, gone), append(daemon.baseline, calm)
		again.got, again.baseline = append(again.got, back), append(again.baseline, calm)
	}
	wrong := 0.0
	for _, survivor := range survivors {
		survivor.Stop()
		report, err := survivor.Await("report")
		if err != nil {
			return nil, 0, fmt.Errorf("a survivor: %w", err)
		}
		wrong += float64(report.Wrong)
	}
	return []taken{holder, daemon, again}, wrong, nil
}

// gap is the longest time, in ns, in which the engine did nothing for these.
func (b *bed) gap(ctx context.Context, pids []int, during time.Duration) (float64, error) {
	log, err := b.watch(ctx, pids, time.Millisecond, during)
	if err != nil {
		return 0, err
	}
	return float64(log.gap()), nil
}

// gap is the longest time between two moments at which more had been done than before. The first is the log's begin.
func (r readings) gap() (longest time.Duration) {
	worked := 0
	for i := range r {
		longest = max(longest, r[i].at.Sub(r[worked].at))
		if r.work(worked, i) > 0 {
			worked = i
		}
	}
	return longest
}

// killHolder adds a tenant, kills it while it has the GPU, and is the gap for the survivors from then on.
func (b *bed) killHolder(ctx context.Context, spin guest, survivors company, plan crashPlan) (float64, error) {
	victim, err := b.start(ctx, spin)
	if err != nil {
		return 0, err
	}
	defer victim.end()
	if err := b.awaitTurn(ctx, victim[0].pid); err != nil {
		return 0, err
	}
	if err := syscall.Kill(victim[0].pid, syscall.SIGKILL); err != nil {
		return 0, fmt.Errorf("kill the tenant that has the GPU: %w", err)
	}
	return b.gap(ctx, survivors.pids(), plan.watch)
}

// awaitTurn returns when the engine works for the process.
func (b *bed) awaitTurn(ctx context.Context, pid int) error {
	const patience = 20 * time.Second
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for before := b.read([]int{pid}); ; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		now := b.read([]int{pid})
		if now.busy[0] > before.busy[0] {
			return nil
		}
		if now.at.Sub(before.at) > patience {
			return fmt.Errorf("the engine did nothing in %s for a tenant with work", patience)
		}
	}
}

// killDaemon is the gap for the survivors when kerfd is killed, and when the next one starts.
func (b *bed) killDaemon(ctx context.Context, survivors company, plan crashPlan) (gone, back float64, err error) {
	b.on.KillKerfd()
	gone, err = b.gap(ctx, survivors.pids(), plan.watch)
	if err != nil {
		return 0, 0, err
	}
	revived := make(chan error, 1)
	go func() { revived <- b.on.Revive(ctx) }()
	back, err = b.gap(ctx, survivors.pids(), plan.watch)
	if failed := <-revived; failed != nil {
		return 0, 0, failed
	}
	return gone, back, err
}

// bury kills tenants that hold memory: how long, in ns, until kerfd can grant it again, and natively until the driver has it.
func (b *bed) bury(ctx context.Context, plan crashPlan) (books, native []float64, err error) {
	const held = "8Gi"
	for range plan.deaths {
		for _, slice := range []rig.Slice{{}, {Memory: "9Gi", GPU: "0"}} {
			took, err := b.reclaim(ctx, guest{slice, "notebook", []string{"--memory", held, "--touch", "64Ki", "--seconds", "0"}})
			if err != nil {
				return nil, nil, err
			}
			if slice.Memory == "" {
				native = append(native, took)
			} else {
				books = append(books, took)
			}
		}
	}
	return books, native, nil
}

func (b *bed) reclaim(ctx context.Context, g guest) (float64, error) {
	here, err := b.start(ctx, g)
	if err != nil {
		return 0, err
	}
	defer here.end()
	if err := syscall.Kill(here[0].pid, syscall.SIGKILL); err != nil {
		return 0, fmt.Errorf("kill a tenant: %w", err)
	}
	return b.until(ctx, "the memory of a dead tenant is free", func() (bool, error) {
		if g.slice.Memory == "" {
			return b.node.Status().GPUs[0].Used == 0, nil
		}
		top, err := b.on.Top(ctx)
		return err == nil && granted(top) == 0, err
	})
}

func granted(top rig.Top) (sum node.Bytes) {
	for _, gpu := range top.GPUs {
		sum += gpu.Granted
	}
	return sum
}

// until is how long it takes, in ns, until something is so. To ask kerfd takes some 20 ms, which is in it.
func (b *bed) until(ctx context.Context, what string, so func() (bool, error)) (float64, error) {
	const patience = 20 * time.Second
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for began := time.Now(); ; {
		if yes, err := so(); err != nil || yes {
			return float64(time.Since(began)), err
		}
		if time.Since(began) > patience {
			return 0, fmt.Errorf("%s: not within %s", what, patience)
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-tick.C:
		}
	}
}
