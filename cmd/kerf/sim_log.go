package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/kerf-gpu/kerf/internal/sim"
)

// simLog is what is printed with --json.
type simLog struct {
	Schema    string    `json:"schema"`
	Simulated bool      `json:"simulated"`
	GPU       int       `json:"gpu"`
	Runs      []sim.Run `json:"runs"`
}

func simLogCommand(o *simOptions) *cobra.Command {
	var gpu, last int
	cmd := &cobra.Command{
		Use:   "log",
		Short: "Show the last kernels that a simulated GPU ran, and for how long two ran at once",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.with(func(n *sim.Node) error {
				if gpus := len(n.Status().GPUs); gpu < 0 || gpu >= gpus {
					return fmt.Errorf("gpu %d: the simulated node has %d GPUs; name one from 0 on", gpu, gpus)
				}
				runs := n.Runs(gpu)
				if o.json {
					return json.NewEncoder(cmd.OutOrStdout()).Encode(simLog{"kerf.sim.log/v1", true, gpu, runs})
				}
				return writeSimLog(cmd.OutOrStdout(), gpu, runs, last)
			})
		},
	}
	cmd.Flags().IntVar(&gpu, "gpu", 0, "index of the GPU on the node")
	cmd.Flags().IntVar(&last, "last", 20, "how many kernels, the last ones")
	return cmd
}

// writeSimLog writes times from the first of the kernels shown.
func writeSimLog(out io.Writer, gpu int, runs []sim.Run, last int) error {
	fmt.Fprintf(out, "simulated GPU %d: %d kernels, or pieces of them, in its log\n", gpu, len(runs))
	var pids []int
	for _, r := range runs {
		if r.PID != 0 && !slices.Contains(pids, r.PID) {
			pids = append(pids, r.PID)
		}
	}
	slices.Sort(pids)
	for i, a := range pids {
		for _, b := range pids[i+1:] {
			fmt.Fprintf(out, "pids %d and %d ran at once for %s\n", a, b, sim.Overlap(runs, a, b).Round(time.Microsecond))
		}
	}
	runs = runs[len(runs)-min(len(runs), max(0, last)):]
	if len(runs) == 0 {
		return nil
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "PID\tFROM\tTO\tSPEED")
	for _, r := range runs {
		fmt.Fprintf(table, "%d\t%s\t%s\t%.0f%%\n", r.PID, (r.Start - runs[0].Start).Round(time.Microsecond), (r.End - runs[0].Start).Round(time.Microsecond), 100*r.Rate)
	}
	return table.Flush()
}
