package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/kerf-gpu/kerf/cmd/internal/control"
	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

// one is the check of a command that takes one argument.
func one(wants string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) != 1 {
			return exitError{exitUsage, errors.New(wants)}
		}
		return nil
	}
}

func setCommand(o *options) *cobra.Command {
	var cores, class string
	var burst bool
	cmd := &cobra.Command{
		Use:   "set SHARE",
		Short: "Change what a share has of its GPU's time, while its programs run",
		Long: "Change what a share has of its GPU's time. Running programs see it at once. Cores are percent of each GPU's time, as\n" +
			"against the others who want it; 0 is what others of the class leave. Without burst they are a limit too.",
		Args: one("set wants one share; kerf top lists them"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var wanted control.Settings
			if cmd.Flags().Changed("cores") {
				percent, err := node.ParsePercent(cores)
				if err != nil {
					return exitError{exitUsage, fmt.Errorf("--cores: %w", err)}
				}
				wanted.Cores = &percent
			}
			if cmd.Flags().Changed("class") {
				wanted.Class = (*share.Class)(&class)
			}
			if cmd.Flags().Changed("burst") {
				capped := !burst
				wanted.Capped = &capped
			}
			if wanted == (control.Settings{}) {
				return exitError{exitUsage, errors.New("nothing to set: give --cores, --class or --burst")}
			}
			grant, err := o.client().Set(cmd.Context(), args[0], wanted)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "share %s: %s, cores %s%s\n", args[0], grant.Class, coresOf(grant.Devices[0].Cores), capMark(grant.Capped))
			return nil
		},
	}
	cmd.Flags().StringVar(&cores, "cores", "", "percent of each GPU's time")
	cmd.Flags().StringVar(&class, "class", "", "guaranteed, burstable or besteffort")
	cmd.Flags().BoolVar(&burst, "burst", true, "may use time that others leave; =false: cores are a limit")
	return cmd
}

func capMark(capped bool) string {
	if capped {
		return " at most"
	}
	return ""
}

func explainCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "explain SHARE|DEVICE",
		Short: "Say in words whether a share runs and why it waits, or how a device is and why",
		Args:  one("explain wants one share or device; kerf top lists them"),
		RunE: func(cmd *cobra.Command, args []string) error {
			state, err := o.client().State(cmd.Context())
			if err != nil {
				return err
			}
			for _, s := range state.Shares {
				if s.ID == args[0] {
					fmt.Fprintf(cmd.OutOrStdout(), "share %s (%s): %s\n", s.ID, holderOf(s), explain(s, state.GPUs))
					return nil
				}
			}
			health, device, ok, err := findDevice(cmd.Context(), o.client(), args[0])
			switch {
			case err != nil:
				return err
			case ok:
				explainDevice(cmd.OutOrStdout(), health, device)
				return nil
			}
			return fmt.Errorf("%q: no share (or another user's), and no device; kerf top lists the shares and GPUs", args[0])
		},
	}
}

func explain(s control.Share, gpus []control.GPU) string {
	if s.Tier == share.TierMPS {
		return explainMPS(s, gpus)
	}
	if s.Lease == nil {
		return "GPU time is not leased on this node (leases: false in kerfd's configuration), so its gate is always open"
	}
	owed := fmt.Sprintf("it is owed %s", s.Lease.Owed.Round(1e6))
	if s.Lease.Owed < 0 {
		owed = fmt.Sprintf("it owes %s, which it had beyond its share", (-s.Lease.Owed).Round(1e6))
	}
	return fmt.Sprintf("%s. Of the last ten seconds it had %s; %s.", s.Lease.Why, s.Lease.Got, owed)
}

// explainMPS: such a share has one GPU.
func explainMPS(s control.Share, gpus []control.GPU) string {
	text := "it is of tier mps, so it never waits for a turn: its kernels run at once with those of the card's other mps shares"
	for _, d := range s.Devices {
		if d.Cores > 0 {
			text += fmt.Sprintf(", on at most %s of the GPU's threads", d.Cores)
		}
		for _, g := range gpus {
			if g.UUID == d.UUID {
				text += daemonOf(g)
			}
		}
	}
	return text + "."
}

func daemonOf(g control.GPU) string {
	switch {
	case g.MPS == nil:
		return fmt.Sprintf("; GPU %d has no MPS daemon, so programs that start now get no GPU (kerfd's log says why)", g.Index)
	case g.MPS.Trouble != "":
		return fmt.Sprintf("; GPU %d's MPS daemon: %s; programs that start now get no GPU", g.Index, g.MPS.Trouble)
	case g.MPS.Deaths > 0:
		return fmt.Sprintf("; GPU %d's MPS daemon (pid %d) died %d times, and each time all its programs lost their contexts", g.Index, g.MPS.PID, g.MPS.Deaths)
	}
	return fmt.Sprintf("; GPU %d's MPS daemon is pid %d", g.Index, g.MPS.PID)
}
