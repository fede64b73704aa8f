package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/kerf-gpu/kerf/cmd/internal/control"
)

// status is the outcome of one check. The order is of weight: the worst of them decides the exit code.
type status string

const (
	statusPass    status = "PASS"
	statusInfo    status = "INFO"
	statusSkip    status = "SKIP"
	statusWarn    status = "WARN"
	statusCrit    status = "CRIT"
	statusUnknown status = "UNKNOWN"
)

var doctorExit = map[status]int{statusWarn: 1, statusUnknown: 3, statusCrit: 2}

// finding is what a check found, in a line that a person reads, and what to do if it is not well.
type finding struct {
	ID     string `json:"id"`
	Status status `json:"status"`
	Found  string `json:"found"`
	Fix    string `json:"fix,omitempty"`
}

// diagnosis is what kerf doctor prints.
type diagnosis struct {
	Schema    string    `json:"schema"`
	Simulated bool      `json:"simulated"`
	Worst     status    `json:"worst"`
	Checks    []finding `json:"checks"`
}

func doctorCommand(o *options) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Look for what is wrong on this node",
		Long: "Look for what is wrong on this node. Nothing is changed; one small slice is taken for a moment to see that the shim\n" +
			"holds its limit.\n\nExit: 0 all is well, 1 warnings, 2 critical, 3 something could not be told.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d := diagnose(cmd.Context(), newPatient(cmd.Context(), o))
			out := cmd.OutOrStdout()
			if asJSON {
				if err := json.NewEncoder(out).Encode(d); err != nil {
					return err
				}
			} else if err := writeDiagnosis(out, d); err != nil {
				return err
			}
			if code := doctorExit[d.Worst]; code != 0 {
				return exitError{code: code}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON ("+control.DoctorSchema+")")
	return cmd
}

func diagnose(ctx context.Context, p *patient) diagnosis {
	d := diagnosis{Schema: control.DoctorSchema, Simulated: p.node.Simulated, Worst: statusPass}
	for _, check := range checks {
		f := check.look(ctx, p)
		f.ID = check.id
		d.Checks = append(d.Checks, f)
		d.Worst = worse(d.Worst, f.Status)
	}
	return d
}

func worse(a, b status) status {
	weight := map[status]int{statusPass: 0, statusInfo: 0, statusSkip: 0, statusWarn: 1, statusUnknown: 2, statusCrit: 3}
	if cmp.Compare(weight[b], weight[a]) > 0 {
		return b
	}
	return a
}

func writeDiagnosis(out io.Writer, d diagnosis) error {
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, f := range d.Checks {
		fmt.Fprintf(table, "%s\t%s\t%s\n", f.Status, f.ID, f.Found)
		if f.Fix != "" {
			fmt.Fprintf(table, "\t\t→ %s\n", f.Fix)
		}
	}
	if err := table.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(out, "\n%s%s\n", d.Worst, simulatedMark(d.Simulated))
	return nil
}
