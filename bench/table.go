package bench

import (
	"fmt"
	"io"
	"math"
	"text/tabwriter"
)

// WriteTable prints a report for people. The first line says whether the hardware is simulated.
func (r Report) WriteTable(w io.Writer) error {
	kind := "real GPU"
	if r.Env.Simulated {
		kind = "SIMULATED GPU"
	}
	fmt.Fprintf(w, "%s: %s, driver %s\n%s, %s, kernel %s, %s\n\n",
		kind, r.Env.Card, r.Env.Driver, r.Env.CPU, r.Env.Machine, r.Env.Kernel, r.Env.Date)

	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "id\tmetric\tnative\tkerf\tadded\tnative p99\tkerf p99\tadded p99\tratio\ttarget\tn\tok")
	for _, one := range r.Results {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\n",
			one.ID, one.Name,
			quantity(one.Baseline, one.Unit), quantity(one.Value, one.Unit), quantity(one.Value-one.Baseline, one.Unit),
			quantity(one.BaselineP99, one.Unit), quantity(one.P99, one.Unit), quantity(one.P99-one.BaselineP99, one.Unit),
			ratio(one.Ratio), one.targets(), one.N, verdict(one))
	}
	return table.Flush()
}

func (r Result) targets() string {
	if r.Target == nil && r.TargetP99 == nil {
		return "-"
	}
	text := string(r.Basis)
	if r.Target != nil {
		text += " ≤ " + quantity(*r.Target, r.Unit)
	}
	if r.TargetP99 != nil {
		text += ", p99 ≤ " + quantity(*r.TargetP99, r.Unit)
	}
	return text
}

func verdict(r Result) string {
	switch {
	case !r.OK:
		return "MISSED"
	case r.Target == nil && r.TargetP99 == nil:
		return "-"
	default:
		return "ok"
	}
}

func ratio(value float64) string {
	if value == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", value)
}

// quantity prints three digits or so, in a larger unit where that is easier to read.
func quantity(value float64, unit string) string {
	switch size := math.Abs(value); {
	case unit == "ns" && size >= 1e9:
		value, unit = value/1e9, "s"
	case unit == "ns" && size >= 1e6:
		value, unit = value/1e6, "ms"
	case unit == "ns" && size >= 1e4:
		value, unit = value/1e3, "µs"
	case unit == "B" && size >= 1<<20:
		value, unit = value/(1<<20), "MiB"
	}
	if math.Abs(value) >= 100 {
		return fmt.Sprintf("%.0f %s", value, unit)
	}
	return fmt.Sprintf("%.1f %s", value, unit)
}
