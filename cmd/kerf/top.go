package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/kerf-gpu/kerf/cmd/internal/control"
	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/vgpu/arbiter"
	"github.com/kerf-gpu/kerf/vgpu/ledger"
)

func topCommand(o *options) *cobra.Command {
	var once, asJSON bool
	interval := time.Second
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Show the GPUs, the shares and what they hold",
		Long: "Show the GPUs, the shares and what they hold, live until Ctrl-C. USED is what counts against LIMIT: what the\n" +
			"programs allocated, and what the driver took for them besides (contexts, modules). GOT is the part of the GPU's time\n" +
			"that a share had over the last ten seconds, where it is counted; OWED is what it should have had more, or less. Under tier\n" +
			"mps nothing is: kernels of all its shares run at once, each on at most its CORES.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			out := cmd.OutOrStdout()
			if asJSON || once {
				state, err := o.client().State(cmd.Context())
				if err != nil {
					return err
				}
				if asJSON {
					return json.NewEncoder(out).Encode(state)
				}
				return writeTop(out, state)
			}
			return live(cmd.Context(), o.client(), out, max(interval, 100*time.Millisecond))
		},
	}
	cmd.Flags().BoolVar(&once, "once", false, "print once and end")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print once as JSON ("+control.TopSchema+")")
	cmd.Flags().DurationVar(&interval, "interval", interval, "time between two pictures")
	return cmd
}

// live redraws until the context ends.
func live(ctx context.Context, client *control.Client, out io.Writer, interval time.Duration) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		state, err := client.State(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		var picture strings.Builder
		if err := writeTop(&picture, state); err != nil {
			return err
		}
		// Home, then each line cleared to its end, then the rest of the screen: no flicker.
		fmt.Fprint(out, "\x1b[H"+strings.ReplaceAll(picture.String(), "\n", "\x1b[K\n")+"\x1b[J")
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func writeTop(out io.Writer, s control.State) error {
	fmt.Fprintf(out, "kerf top  %s  %d GPUs, %d shares%s\n\n", s.Time.Local().Format(time.DateTime), len(s.GPUs), len(s.Shares), simulatedMark(s.Simulated))
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "GPU\tNAME\tMEMORY\tGRANTED\tUSED\tOUTSIDE\tCORES\tUTIL\tSTATE")
	for _, g := range s.GPUs {
		fmt.Fprintf(table, "%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", g.Index, g.Name, g.Memory, g.Granted, known(g, g.Used.String()), known(g, g.Outside.String()),
			g.Cores, known(g, g.Utilization.String()), stateOf(g))
	}
	if err := table.Flush(); err != nil || len(s.Shares) == 0 {
		return err
	}
	fmt.Fprintln(out)
	table = tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "SHARE\tGPU\tTIER\tCLASS\tLIMIT\tUSED\tPEAK\tOUT\tSWAP/S\tCORES\tGOT\tOWED\tLEASE\tREFUSED\tPROCS\tHOLDER")
	for _, sh := range s.Shares {
		for _, d := range sh.Devices {
			fmt.Fprintf(table, "%s\t%d\t%s\t%s\t%s\t%s %s\t%s\t%s\t%s\t%s\t%d\t%d\t%s\n", sh.ID, d.Index, sh.Tier, sh.Class, d.Limit, d.Used(), bar(d.Used(), d.Limit), d.Peak, swapOf(d),
				coresOf(d.Cores), leaseOf(sh), sh.Refused, len(sh.Sessions), holderOf(sh))
		}
	}
	return table.Flush()
}

func known(g control.GPU, text string) string {
	if g.Error != "" {
		return "?"
	}
	return text
}

func stateOf(g control.GPU) string {
	switch {
	case g.Fault != "":
		return g.Fault
	case g.Error != "":
		return "unknown: " + g.Error
	case g.MPS != nil && g.MPS.Trouble != "":
		return "mps: " + g.MPS.Trouble
	}
	return "ok"
}

// leaseOf is three columns: the part of the GPU's time that a share had, what it is owed, and where its lease is.
func leaseOf(s control.Share) string {
	if s.Lease == nil {
		return "-\t-\t-"
	}
	return fmt.Sprintf("%s\t%s\t%s", s.Lease.Got, s.Lease.Owed.Round(time.Millisecond), s.Lease.Lease)
}

// swapOf is two columns: how much of a share's memory is not on the card, and how much moved in the last second.
func swapOf(d arbiter.DeviceState) string {
	if d.Swap == nil {
		return "-\t-"
	}
	return fmt.Sprintf("%s\t%s", d.Swap.Out, d.Swap.Rate)
}

func coresOf(p node.Percent) string {
	if p == 0 {
		return "rest" // best effort: what the others leave
	}
	return p.String()
}

// holderOf is who has the share, and what is wrong with it.
func holderOf(s control.Share) string {
	text := claimOf(s)
	if s.Holder.Door == ledger.DoorRun {
		text = commandOf(s.Holder)
	}
	if s.Tampered != "" {
		text += "  TAMPERED: " + s.Tampered
	}
	return text
}

// claimOf is the pods that use a claim's share, or the claim where none does yet.
func claimOf(s control.Share) string {
	var pods []string
	for _, c := range s.Inside {
		if pod := c.Namespace + "/" + c.Pod + " (" + c.Name + ")"; !slices.Contains(pods, pod) {
			pods = append(pods, pod)
		}
	}
	switch {
	case len(pods) > 0:
		return "pod " + strings.Join(pods, ", ")
	case s.Holder.Door == ledger.DoorPlugin:
		return "device plugin " + s.Holder.Owner.Name
	}
	return "claim " + s.Holder.Owner.String()
}

// commandOf is the process and its program without the directory.
func commandOf(h ledger.Holder) string {
	program, args, _ := strings.Cut(h.Command, " ")
	text := fmt.Sprintf("%d %s", h.PID, strings.TrimSpace(filepath.Base(program)+" "+args))
	if runes := []rune(text); len(runes) > 46 {
		text = string(runes[:45]) + "…"
	}
	return text
}

// bar is a tenth of the limit a mark.
func bar(used, limit node.Bytes) string {
	marks := 0
	if limit > 0 {
		marks = int(min(10, (used*10+limit/2)/limit))
	}
	return strings.Repeat("▮", marks) + strings.Repeat("▯", 10-marks)
}
