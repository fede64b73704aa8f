package main

import (
	"github.com/spf13/cobra"

	"github.com/kerf-gpu/kerf/bench/demo"
)

func demoCommand() *cobra.Command {
	var options demo.Options
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show four programs sharing one GPU, each within its slice",
		Long: "Show four programs sharing one GPU: each holds its slice, one is refused at its limit, one is killed and its\n" +
			"memory comes back, the others notice neither. On the real GPU where there is one, else on a simulated one. It\n" +
			"starts a kerfd of its own and leaves nothing behind.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			options.Out = cmd.OutOrStdout()
			return demo.Run(cmd.Context(), options)
		},
	}
	cmd.Flags().StringVar(&options.Profile, "simulate", "", "simulate this profile even where a GPU is there")
	return cmd
}
