package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/kerf-gpu/kerf/cmd/internal/control"
	"github.com/kerf-gpu/kerf/monitor"
)

func releaseCommand(o *options) *cobra.Command {
	var why string
	cmd := &cobra.Command{
		Use:   "release DEVICE",
		Short: "Say that a device is well: what holds it is forgotten, and what its readings still say does not count until it changes",
		Long: "Say that a device is well. A device is named by its index, its UUID (or the beginning of it), its PCI address, or as kerf doctor\n" +
			"names it. kerfd's log, and on a node of a cluster an Event, say who did it and why.",
		Example: "  kerf release 3 --why 'cable changed, ticket 4711'",
		Args:    one("release wants one device; kerf explain shows each GPU's health"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.client().ReleaseDevice(cmd.Context(), args[0], why); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "released %s; kerf explain %s says how it is from now on\n", args[0], args[0])
			return nil
		},
	}
	cmd.Flags().StringVar(&why, "why", "", "the reason, for those who read it later")
	return cmd
}

// findDevice is the device of a name as people write them; ok is false where none has it.
func findDevice(ctx context.Context, c *control.Client, name string) (h control.Health, d monitor.DeviceReport, ok bool, err error) {
	if h, err = c.Health(ctx); err != nil {
		return h, d, false, err
	}
	i := slices.IndexFunc(h.Devices, func(d monitor.DeviceReport) bool { return d.Named(name) })
	if i < 0 {
		return h, d, false, nil
	}
	return h, h.Devices[i], true, nil
}

// explainDevice says how a device is, why, and what clears it.
func explainDevice(out io.Writer, h control.Health, d monitor.DeviceReport) {
	name := d.ID
	if d.Index >= 0 {
		name = fmt.Sprintf("GPU %d (%s, %s, %s)", d.Index, d.ID, d.PCI, d.Name)
	}
	fmt.Fprintf(out, "%s is %s, level %s%s\n", name, d.Health, d.Level, simulatedMark(h.Simulated))
	if d.Health == monitor.HealthUnknown {
		fmt.Fprintf(out, "  unknown: %s\n  clears:  %s\n", d.Reason, d.Clears)
	}
	for _, c := range d.Conditions {
		fmt.Fprintf(out, "\n  %s: %s\n", c.Level, c.Means)
		fmt.Fprintf(out, "    evidence  %s\n", c.Evidence)
		fmt.Fprintf(out, "    since     %s, seen %d times, last %s\n", c.Since.Format(time.RFC3339), c.Count, c.Last.Format(time.RFC3339))
		fmt.Fprintf(out, "    clears    %s\n", c.Clears)
	}
	if len(d.Conditions) == 0 && d.Health == monitor.HealthGood {
		fmt.Fprintln(out, "  nothing is wrong with it")
	}
	switch {
	case d.Refuse != "":
		fmt.Fprintf(out, "\n  Nothing new is granted on it: %s\n", d.Refuse)
	case d.Level >= monitor.Hold:
		fmt.Fprintf(out, "\n  Mode %s: it is said, and the card is given to pods as before. monitor.mode: hold in kerfd's configuration would keep them away.\n", h.Mode)
	}
	for _, code := range slices.Sorted(maps.Keys(d.Xids)) {
		fmt.Fprintf(out, "  Xid %d: %d times over its life (kerf xid %d)\n", code, d.Xids[code], code)
	}
	for _, t := range d.Taints {
		fmt.Fprintf(out, "  taint %s=%s:%s\n", t.Key, t.Value, t.Effect)
	}
}
