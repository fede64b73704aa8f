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

func priorityRows() (rows []Row) {
	for i, c := range priorityCases {
		rows = append(rows, c.row(i))
	}
	return rows
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
	return results, bed.card(), nil
}
