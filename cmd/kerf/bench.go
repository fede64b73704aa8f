package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"github.com/kerf-gpu/kerf/bench"
	"github.com/kerf-gpu/kerf/cmd/internal/version"
)

// exitMissed tells a missed target from a bench that could not run.
const exitMissed = 3

func benchCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure what Kerf costs",
		Long: "Measure what Kerf costs. A scenario starts a kerfd of its own, on the real GPU where there is one, else on a\n" +
			"simulated one that costs nothing, and measures native and sliced programs in alternation.\n" +
			"Those for Kubernetes visit a cluster that is there and has Kerf, and remove what they make.",
	}
	cmd.AddCommand(benchListCommand(), benchRunCommand(), benchCompareCommand(), benchReportCommand())
	return cmd
}

// benchFlags are the flags of bench run.
type benchFlags struct {
	json, check bool
	out         string
	options     bench.Options
}

func benchRunCommand() *cobra.Command {
	var flags benchFlags
	cmd := &cobra.Command{
		Use:   "run SCENARIO…",
		Short: "Run scenarios and print their results",
		Long: "Run scenarios and print their results (format " + bench.Schema + " with --json).\n" +
			"Exit: 0 measured, 1 could not measure, 3 a target was missed under --check.",
		Args: scenarioNames,
		RunE: func(cmd *cobra.Command, names []string) error { return runBench(cmd, names, flags) },
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return scenarioWords(), cobra.ShellCompDirectiveNoFileComp
		},
	}
	cmd.Flags().BoolVar(&flags.json, "json", false, "print "+bench.Schema)
	cmd.Flags().BoolVar(&flags.check, "check", false, "exit 3 when a target is missed")
	cmd.Flags().StringVar(&flags.out, "out", "", "write "+bench.Schema+" to this file too")
	cmd.Flags().StringVar(&flags.options.Profile, "simulate", "", "simulate this profile even where a GPU is there")
	cmd.Flags().StringVar(&flags.options.Kubeconfig, "kubeconfig", "", "cluster of the scenarios for one (that of make cluster)")
	cmd.Flags().BoolVar(&flags.options.Quick, "quick", false, "few samples: shows that all works, too few for a p99")
	return cmd
}

// scenarioNames refuses an unknown name before anything is started.
func scenarioNames(_ *cobra.Command, names []string) error {
	if len(names) == 0 {
		return exitError{exitUsage, errors.New("no scenario named; `kerf bench list` shows them")}
	}
	for i, name := range names {
		if _, err := bench.Find(name); err != nil {
			return exitError{exitUsage, err}
		}
		if slices.Contains(names[:i], name) {
			return exitError{exitUsage, fmt.Errorf("scenario '%s' is named twice; once is enough", name)}
		}
	}
	return nil
}

func runBench(cmd *cobra.Command, names []string, flags benchFlags) error {
	flags.options.Progress = func(line string) { fmt.Fprintln(cmd.ErrOrStderr(), "bench:", line) }
	report, err := bench.Run(cmd.Context(), names, flags.options)
	if err != nil {
		return err
	}
	report.Env.Kerf = version.Version
	if flags.out != "" {
		if err := writeFile(flags.out, report.WriteJSON); err != nil {
			return err
		}
	}
	print := report.WriteTable
	if flags.json {
		print = report.WriteJSON
	}
	if err := print(cmd.OutOrStdout()); err != nil {
		return err
	}
	if !flags.check {
		return nil
	}
	if err := report.Check(); err != nil {
		return exitError{exitMissed, err}
	}
	return nil
}

func writeFile(path string, write func(io.Writer) error) (err error) {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	return write(file)
}
