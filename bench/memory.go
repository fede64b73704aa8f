package bench

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/kerf-gpu/kerf/bench/rig"
	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/internal/sim"
)

// A class of allocation is refused where less is left than it can give. Pools and graphs take memory in blocks of tens of MiB.
const (
	granule = 2 * node.MiB
	pooled  = 64 * node.MiB
)

// memoryClasses are the tenant hog's, with what may be left at a refusal.
var memoryClasses = []struct {
	name  string
	slack node.Bytes
}{
	{"linear", granule}, {"pitched", granule}, {"managed", granule}, {"async", pooled}, {"pool", pooled},
	{"vmm", granule}, {"array", granule}, {"array3d", granule}, {"mipmap", granule}, {"graph", pooled},
}

// memoryRoutes are the ways in which the tenant routes finds cuMemAlloc.
var memoryRoutes = []struct{ name, way string }{
	{"linked", "linked"}, {"dlsym", "dlsym(RTLD_DEFAULT)"}, {"next", "dlsym(RTLD_NEXT)"}, {"dlopen", "dlopen, dlsym"},
	{"resolved", "cuGetProcAddress"}, {"resolved-by-found", "cuGetProcAddress of dlsym, per-thread streams"},
}

func routeRow(i int) Row {
	return Row{fmt.Sprintf("KF-%d", 420+i), "cuMemAlloc by " + memoryRoutes[i].way + ": bytes left when the next were refused", "B", Absolute,
		bound(float64(granule)), bound(float64(granule))}
}

var (
	overLimitRow = Row{"KF-410", "bytes that the card's books had over the slice's limit, at most", "B", Absolute, bound(0), bound(0)}
	wrongDataRow = Row{"KF-411", "pieces that were not as written when the slice was full", "pieces", Absolute, bound(0), bound(0)}
	refusalRow   = Row{"IS-002", "time to refuse cuMemAlloc of more than there is", "ns", Absolute, nil, nil}
)

func leftRow(i int) Row {
	class := memoryClasses[i]
	return Row{fmt.Sprintf("KF-%d", 400+i), class.name + ": bytes left when the next were refused", "B", Absolute,
		bound(float64(class.slack)), bound(float64(class.slack))}
}

func memoryRows() (rows []Row) {
	for i := range memoryClasses {
		rows = append(rows, leftRow(i))
	}
	for i := range memoryRoutes {
		rows = append(rows, routeRow(i))
	}
	return append(rows, overLimitRow, wrongDataRow, refusalRow)
}

// memoryLimits are the slices that are filled.
var memoryLimits = []string{"1Gi", "2Gi", "4Gi", "7Gi"}

// filling is what the program saw, by class, and what the card's own books had meanwhile.
type filling struct {
	left  map[string][]float64
	wrong float64
	peak  node.Bytes
}

// runMemory fills slices by every class of allocation, and by every way to cuMemAlloc, until each is refused; and the whole card.
func runMemory(ctx context.Context, on *rig.Rig, options Options) ([]Result, string, error) {
	bed, err := openBed(on, "memory")
	if err != nil {
		return nil, "", err
	}
	defer bed.close()
	limits := memoryLimits
	if options.Quick {
		limits = limits[:1]
	}
	var all []taken
	var over, wrong []float64
	for _, program := range []struct {
		name string
		rows map[string]Row
	}{{"hog", classRows()}, {"routes", routeRows()}} {
		options.progress("memory: %s on the whole card, natively", program.name)
		native, err := bed.fill(ctx, program.name, rig.Slice{})
		if err != nil {
			return nil, "", err
		}
		left := map[string][]float64{}
		for _, limit := range limits {
			options.progress("memory: %s in a slice of %s", program.name, limit)
			got, err := bed.fill(ctx, program.name, rig.Slice{Memory: limit, GPU: "0"})
			if err != nil {
				return nil, "", err
			}
			most, err := node.ParseBytes(limit)
			if err != nil {
				return nil, "", err
			}
			over, wrong = append(over, max(0, float64(got.peak)-float64(most))), append(wrong, got.wrong)
			for name, bytes := range got.left {
				left[name] = append(left[name], bytes...)
			}
		}
		for name, row := range program.rows {
			all = append(all, taken{row, left[name], native.left[name]})
		}
	}
	slices.SortFunc(all, func(a, b taken) int { return cmp.Compare(a.row.ID, b.row.ID) })
	all = append(all, taken{overLimitRow, over, nil}, taken{wrongDataRow, wrong, nil})
	options.progress("memory: time to refuse")
	refused, err := refusals(ctx, on, options)
	if err != nil {
		return nil, "", err
	}
	results, err := resultsOf(all)
	return append(results, refused), bed.card(), err
}

func classRows() map[string]Row {
	rows := map[string]Row{}
	for i, class := range memoryClasses {
		rows[class.name] = leftRow(i)
	}
	return rows
}

func routeRows() map[string]Row {
	rows := map[string]Row{}
	for i, route := range memoryRoutes {
		rows[route.name] = routeRow(i)
	}
	return rows
}

// fill runs a program that fills the slice, or the whole card where that has no memory, and reads the card's own books meanwhile.
func (b *bed) fill(ctx context.Context, program string, slice rig.Slice) (filling, error) {
	var args []string
	if slice.Memory != "" && program == "hog" {
		args = []string{"--limit", slice.Memory}
	}
	tenant, err := b.launch(ctx, guest{slice, program, args})
	if err != nil {
		return filling{}, err
	}
	ended, peak := make(chan struct{}), make(chan node.Bytes, 1)
	go func() { peak <- most(b.node, ended) }()
	got := filling{left: map[string][]float64{}}
	for event, more := tenant.Next(); more; event, more = tenant.Next() {
		if event.Event == "class" {
			got.left[event.Class] = append(got.left[event.Class], float64(event.Left))
			got.wrong += float64(event.Wrong)
		}
	}
	close(ended)
	got.peak = <-peak
	return got, tenant.Wait()
}

// most is what was in use on the first GPU, at most, by its own books.
func most(n *sim.Node, ended <-chan struct{}) (peak node.Bytes) {
	const often = 200 * time.Microsecond // what is over the limit may be so for less than a millisecond
	tick := time.NewTicker(often)
	defer tick.Stop()
	for {
		peak = max(peak, n.Status().GPUs[0].Used)
		select {
		case <-ended:
			return peak
		case <-tick.C:
		}
	}
}

// refusals times what is refused, natively and in a slice by turns.
func refusals(ctx context.Context, on *rig.Rig, options Options) (Result, error) {
	metric := overheadMetric{id: refusalRow.ID, name: refusalRow.Name, probe: "refuse", batch: 64, batches: 4}
	how, both := planOf(options), map[string]*sides{}
	for range how.pairs {
		if _, err := measurePair(ctx, on, how, []overheadMetric{metric}, both); err != nil {
			return Result{}, err
		}
	}
	got := both[metric.probe]
	result, err := refusalRow.of(got.sliced.batches, got.native.batches)
	result.P99, result.BaselineP99 = Percentile(got.sliced.calls, 99), Percentile(got.native.calls, 99)
	result.N = len(got.sliced.calls)
	return result, err
}
