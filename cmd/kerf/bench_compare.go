package main

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/kerf-gpu/kerf/bench"
)

func benchCompareCommand() *cobra.Command {
	var asJSON, check bool
	var tolerance float64
	cmd := &cobra.Command{
		Use:   "compare FIRST.json OTHER.json…",
		Short: "Lay kept results beside the first of them",
		Long: "Lay kept results beside the first of them: each row with its ratio, and whether that is better or worse. What\n" +
			"cannot be compared (a simulated card with a real one, other cards, other scenarios) is refused.\n" +
			"Exit: 0 compared, 3 a row is worse beyond the tolerance or missing under --check, 64 nothing to compare.",
		Args: func(_ *cobra.Command, paths []string) error {
			if len(paths) < 2 {
				return exitError{exitUsage, errors.New("compare wants two files or more; name files that `kerf bench run --out` wrote")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, paths []string) error {
			files, err := bench.ReadFiles(paths)
			if err != nil {
				return exitError{exitUsage, err}
			}
			all, err := bench.Compare(files, tolerance)
			if err != nil {
				return exitError{exitUsage, err}
			}
			print := all.WriteTable
			if asJSON {
				print = all.WriteJSON
			}
			if err := print(cmd.OutOrStdout()); err != nil {
				return err
			}
			if err := all.Check(); check && err != nil {
				return exitError{exitMissed, err}
			}
			return nil
		},
		ValidArgsFunction: jsonFiles,
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print "+bench.CompareSchema)
	cmd.Flags().BoolVar(&check, "check", false, "exit 3 when a row is worse beyond the tolerance, or missing")
	cmd.Flags().Float64Var(&tolerance, "tolerance", 10, "percent by which a value may differ and count as the same")
	return cmd
}

// jsonFiles completes the names of kept results.
func jsonFiles(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return []string{"json"}, cobra.ShellCompDirectiveFilterFileExt
}
