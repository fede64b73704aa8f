package bench

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"time"

	"github.com/kerf-gpu/kerf/bench/rig"
	"github.com/kerf-gpu/kerf/internal/sim"
)

// bed is a simulated node with a kerfd, on which programs are watched. Truth is the simulated engine's own log: how long it
// worked for each process, in its own time, which does not run while this machine keeps it from running. No card has such a log.
type bed struct {
	on   *rig.Rig
	node *sim.Node
}

func openBed(on *rig.Rig, scenario string) (*bed, error) {
	if !on.Simulated {
		return nil, fmt.Errorf("scenario %s is measured by the simulated engine's log, which a real card does not keep; use --simulate %s", scenario, rig.DefaultProfile)
	}
	node, err := sim.Open(on.Root())
	if err != nil {
		return nil, err
	}
	return &bed{on, node}, nil
}

func (b *bed) close() { _ = b.node.Close() }

// card is the name of the GPU that is used: the first.
func (b *bed) card() string { return b.node.Status().GPUs[0].Name }

// guest is a program to start: in a slice, or on the driver itself where the slice has no memory.
type guest struct {
	slice   rig.Slice
	program string
	args    []string
}

// busy is a guest that always has work, until it is stopped.
func busy(slice rig.Slice, load load) guest {
	return guest{slice, "spin", append([]string{"--seconds", "0"}, load.args...)}
}

// visitor is a guest that runs.
type visitor struct {
	*rig.Tenant
	pid int
}

type company []visitor

func (c company) pids() (pids []int) {
	for _, v := range c {
		pids = append(pids, v.pid)
	}
	return pids
}

// end stops all and waits for them.
func (c company) end() {
	for _, v := range c {
		if v.Tenant != nil {
			v.Stop()
		}
	}
	for _, v := range c {
		if v.Tenant != nil {
			v.End()
		}
	}
}

// launch starts the program. It has begun once "holding" comes.
func (b *bed) launch(ctx context.Context, g guest) (*rig.Tenant, error) {
	args := append([]string{"--json"}, g.args...)
	cmd := b.on.Sliced(ctx, g.slice, b.on.Tenant(g.program), args...)
	if g.slice.Memory == "" {
		cmd = b.on.Native(ctx, b.on.Tenant(g.program), args...)
	}
	return rig.StartTenant(g.program, cmd)
}

// start starts programs and waits until each says that it holds its memory. On error none is left.
func (b *bed) start(ctx context.Context, guests ...guest) (here company, err error) {
	defer func() {
		if err != nil {
			here.end()
		}
	}()
	for _, g := range guests {
		t, err := b.launch(ctx, g)
		if err != nil {
			return here, err
		}
		here = append(here, visitor{Tenant: t})
	}
	for i, g := range guests {
		var ready rig.Event
		here[i].Tenant, ready, err = b.begin(ctx, g, here[i].Tenant, "holding")
		if err != nil {
			return here, err
		}
		here[i].pid = ready.Pid
	}
	return here, nil
}

// begin waits for the tenant's first event of that kind. A slice is free only when kerfd has seen that the processes in it have
// ended, which may be after `kerf run` has: a refusal so soon is not the last word.
func (b *bed) begin(ctx context.Context, g guest, t *rig.Tenant, kind string) (*rig.Tenant, rig.Event, error) {
	const soon = 5 * time.Second
	for began := time.Now(); ; {
		event, err := t.Await(kind)
		if err == nil || !refused(err) || time.Since(began) > soon || ctx.Err() != nil {
			return t, event, err
		}
		if t, err = b.launch(ctx, g); err != nil {
			return nil, event, err
		}
	}
}

// refused tells whether `kerf run` got no slice.
func refused(err error) bool {
	const noSlice = 125
	exit, ok := errors.AsType[*exec.ExitError](err)
	return ok && exit.ExitCode() == noSlice
}

// reading is the engine's log at a moment: ms of work by tenant, in the order of the pids.
type reading struct {
	at   time.Time
	busy []float64
}

type readings []reading

func (b *bed) read(pids []int) reading {
	r := reading{at: time.Now(), busy: make([]float64, len(pids))}
	for _, process := range b.node.Status().GPUs[0].Processes {
		for i, pid := range pids {
			if process.PID == pid {
				r.busy[i] = float64(process.BusyMS)
			}
		}
	}
	return r
}

// over are the parts of the engine's work that each tenant had, in every window in which it worked for so long in all.
func (r readings) over(window time.Duration) (parts [][]float64) {
	end := 0
	for start := range r {
		for end < len(r) && r.work(start, end) < float64(window.Milliseconds()) {
			end++
		}
		if end == len(r) {
			return parts
		}
		parts = append(parts, r.parts(start, end))
	}
	return parts
}

func (r readings) work(from, to int) (sum float64) {
	for i := range r[from].busy {
		sum += r[to].busy[i] - r[from].busy[i]
	}
	return sum
}

func (r readings) parts(from, to int) []float64 {
	parts := make([]float64, len(r[from].busy))
	for i := range parts {
		parts[i] = (r[to].busy[i] - r[from].busy[i]) / r.work(from, to)
	}
	return parts
}

// rate is the engine's work in a second of the wall's time.
func (r readings) rate() float64 {
	last := len(r) - 1
	return r.work(0, last) / float64(r[last].at.Sub(r[0].at).Milliseconds())
}

// watch reads the log for so long, every so often.
func (b *bed) watch(ctx context.Context, pids []int, every, during time.Duration) (readings, error) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	log := readings{b.read(pids)}
	for log[len(log)-1].at.Sub(log[0].at) < during {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-tick.C:
			log = append(log, b.read(pids))
		}
	}
	return log, nil
}

// reaction is how long a request of 100 µs takes in the high slice while the low guest is busy, against the same alone.
func (b *bed) reaction(ctx context.Context, row Row, high rig.Slice, low guest, during time.Duration) (Result, error) {
	here, err := b.start(ctx, low)
	if err != nil {
		return Result{}, err
	}
	beside, err := b.serve(ctx, high, during)
	here.end()
	if err != nil {
		return Result{}, err
	}
	alone, err := b.serve(ctx, high, during)
	if err != nil {
		return Result{}, err
	}
	return served(row, beside, alone), nil
}

// serve runs the serving tenant, and is its report: latencies of single requests of 100 µs with pauses between.
func (b *bed) serve(ctx context.Context, slice rig.Slice, during time.Duration) (rig.Event, error) {
	t, err := b.launch(ctx, guest{slice, "serve", []string{"--memory", "64Mi", "--touch", "64Ki", "--burst", "1", "--pause", "0.03",
		"--seconds", fmt.Sprint(during.Seconds())}})
	if err != nil {
		return rig.Event{}, err
	}
	defer t.End()
	return t.Await("report")
}

// served is the latencies that a serving tenant reported, against those of the same tenant undisturbed.
func served(row Row, got, baseline rig.Event) Result {
	result := row.result(got.P50*1e3, got.P99*1e3, int(got.Requests))
	result.Baseline, result.BaselineP99 = baseline.P50*1e3, baseline.P99*1e3
	return result
}
