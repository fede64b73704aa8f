package bench

import (
	"context"
	"fmt"
	"time"

	"github.com/kerf-gpu/kerf/bench/rig"
)

// pest is a neighbour that takes what it can get. Where its program ends it is started again.
type pest struct {
	name    string
	program string
	begins  string // the event that says that it has the GPU
	args    []string
}

var pests = []pest{
	{"a launch flood", "spin", "holding", []string{"--kernel", "1", "--ahead", "256", "--seconds", "0"}},
	{"a memory hog", "hog", "class", []string{"--settle", "0"}},
	{"churn of allocations", "crasher", "holding", []string{"--how", "kill", "--memory", "1Gi", "--after", "2"}},
}

// half is what the victim has, and what the pest has beside it.
var half = rig.Slice{Memory: "2Gi", Cores: 50, GPU: "0"}

// promisedImpact is by how many percent a victim may have less GPU time than it is due beside a pest.
const promisedImpact = 5

func (p pest) rows(i int) (latency, due, lost Row) {
	row := func(id int, name, unit string, basis Basis, target *float64) Row {
		return Row{fmt.Sprintf("KF-%d", 500+10*i+id), "beside " + p.name + ": " + name, unit, basis, target, nil}
	}
	return row(0, "a request of 100 µs", "ns", Added, nil),
		row(1, "GPU time that the victim lacks of its half", "%", Absolute, bound(promisedImpact)),
		row(2, "GPU time lost against alone", "%", Absolute, nil)
}

// daemonRow is what kerfd itself takes of the machine meanwhile.
var daemonRow = Row{"KF-530", "CPU time of kerfd beside a launch flood, of one CPU; baseline: nobody there", "%", Absolute, nil, nil}

func neighbourRows() (rows []Row) {
	for i, p := range pests {
		latency, due, lost := p.rows(i)
		rows = append(rows, latency, due, lost)
	}
	return append(rows, daemonRow)
}

type neighbourPlan struct {
	rounds int
	watch  time.Duration // in each round, and for each kind of victim
}

// runNeighbour measures a victim alone and beside each pest, by turns.
func runNeighbour(ctx context.Context, on *rig.Rig, options Options) ([]Result, string, error) {
	bed, err := openBed(on, "neighbour")
	if err != nil {
		return nil, "", err
	}
	defer bed.close()
	plan := neighbourPlan{3, 5 * time.Second}
	if options.Quick {
		plan = neighbourPlan{1, time.Second}
	}
	var results []Result
	for i, p := range pests {
		options.progress("neighbour: %s", p.name)
		more, err := bed.suffer(ctx, i, p, plan)
		if err != nil {
			return nil, "", fmt.Errorf("beside %s: %w", p.name, err)
		}
		results = append(results, more...)
	}
	options.progress("neighbour: what kerfd takes")
	daemon, err := bed.daemon(ctx, pests[0], plan)
	return append(results, daemon), bed.card(), err
}

// suffer measures the latency of a serving victim and the GPU time of a busy one.
func (b *bed) suffer(ctx context.Context, i int, p pest, plan neighbourPlan) ([]Result, error) {
	latency, due, lost := p.rows(i)
	alone, err := b.serve(ctx, half, time.Duration(plan.rounds)*plan.watch)
	if err != nil {
		return nil, err
	}
	var beside rig.Event
	err = b.beside(ctx, p, func() (err error) {
		beside, err = b.serve(ctx, half, time.Duration(plan.rounds)*plan.watch)
		return err
	})
	if err != nil {
		return nil, err
	}
	var lacks, loses []float64
	for range plan.rounds {
		free, err := b.rate(ctx, plan.watch)
		if err != nil {
			return nil, err
		}
		var shared float64
		err = b.beside(ctx, p, func() (err error) {
			shared, err = b.rate(ctx, plan.watch)
			return err
		})
		if err != nil {
			return nil, err
		}
		lacks, loses = append(lacks, max(0, 100*(1-shared/(free/2)))), append(loses, max(0, 100*(1-shared/free)))
	}
	results, err := resultsOf([]taken{{due, lacks, nil}, {lost, loses, nil}})
	return append([]Result{served(latency, beside, alone)}, results...), err
}

// rate is how much the engine works for a busy victim in a second of the wall's time.
func (b *bed) rate(ctx context.Context, during time.Duration) (float64, error) {
	here, err := b.start(ctx, busy(half, shortKernels))
	if err != nil {
		return 0, err
	}
	defer here.end()
	log, err := b.watch(ctx, here.pids(), sampleEvery, during)
	if err != nil {
		return 0, err
	}
	if log.work(0, len(log)-1) == 0 {
		return 0, fmt.Errorf("the engine did nothing for a busy tenant in %s", during)
	}
	return log.rate(), nil
}

// beside does something while the pest is there: it is started again and again.
func (b *bed) beside(ctx context.Context, p pest, do func() error) error {
	ctx, stop := context.WithCancel(ctx)
	gone := make(chan error, 1)
	begun := make(chan struct{})
	go func() { gone <- b.pester(ctx, p, begun) }()
	select {
	case <-begun:
	case err := <-gone:
		stop()
		return err
	}
	err := do()
	stop()
	if ended := <-gone; err == nil {
		err = ended
	}
	return err
}

// pester keeps a pest running until ctx is done. begun is closed when the first one is there.
func (b *bed) pester(ctx context.Context, p pest, begun chan<- struct{}) error {
	for first := true; ctx.Err() == nil; first = false {
		// Of its own: the end of ctx is no reason to leave a tenant half started.
		whole, g := context.WithoutCancel(ctx), guest{half, p.program, p.args}
		t, err := b.launch(whole, g)
		if err != nil {
			return err
		}
		if t, _, err = b.begin(whole, g, t, p.begins); err != nil {
			return fmt.Errorf("the neighbour did not begin: %w", err)
		}
		if first {
			close(begun)
		}
		ended := make(chan struct{})
		go func() { _ = t.Wait(); close(ended) }() // some pests kill themselves: how it ended is no news
		select {
		case <-ended:
		case <-ctx.Done():
			t.End() // not killed: kerf run gives its slice back before it ends, and the next one needs it
			<-ended
		}
	}
	return nil
}

// daemon is how much CPU time kerfd takes, as against when nobody is there.
func (b *bed) daemon(ctx context.Context, p pest, plan neighbourPlan) (Result, error) {
	measure := func() (percents []float64, err error) {
		for range plan.rounds {
			percent, err := b.on.CPU(ctx, plan.watch)
			if err != nil {
				return nil, err
			}
			percents = append(percents, percent)
		}
		return percents, nil
	}
	idle, err := measure()
	if err != nil {
		return Result{}, err
	}
	var beside []float64
	err = b.beside(ctx, p, func() error {
		return b.beside(ctx, p, func() (err error) {
			beside, err = measure()
			return err
		})
	})
	if err != nil {
		return Result{}, err
	}
	return daemonRow.of(beside, idle)
}
