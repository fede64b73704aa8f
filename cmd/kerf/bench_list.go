package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/kerf-gpu/kerf/bench"
)

func benchListCommand() *cobra.Command {
	var asJSON, rows, virtBench bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the scenarios, their rows, or the metrics of GPU-Virt-Bench",
		Long: "List the scenarios. --rows lists what each measures. --virt-bench lists the 56 metrics of GPU-Virt-Bench with the\n" +
			"scenario and row that measures the same here, or the reason why none does.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case rows && virtBench:
				return exitError{exitUsage, errors.New("--rows and --virt-bench are two lists; ask for one")}
			case virtBench && asJSON:
				return writeIndented(cmd.OutOrStdout(), struct {
					Schema  string             `json:"schema"`
					Metrics []bench.VirtMetric `json:"metrics"`
				}{bench.VirtSchema, bench.VirtBench})
			case virtBench:
				return listVirtBench(cmd.OutOrStdout())
			case asJSON:
				return writeIndented(cmd.OutOrStdout(), struct {
					Schema    string           `json:"schema"`
					Scenarios []bench.Scenario `json:"scenarios"`
				}{bench.ListSchema, bench.Scenarios})
			case rows:
				return listRows(cmd.OutOrStdout())
			}
			return listScenarios(cmd.OutOrStdout())
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print "+bench.ListSchema+" or, with --virt-bench, "+bench.VirtSchema)
	cmd.Flags().BoolVar(&rows, "rows", false, "what each scenario measures, and its targets")
	cmd.Flags().BoolVar(&virtBench, "virt-bench", false, "the metrics of GPU-Virt-Bench, and where they are measured here")
	return cmd
}

func scenarioWords() (names []string) {
	for _, scenario := range bench.Scenarios {
		names = append(names, scenario.Name)
	}
	return names
}

func writeIndented(to io.Writer, list any) error {
	encoder := json.NewEncoder(to)
	encoder.SetIndent("", "  ")
	return encoder.Encode(list)
}

func listScenarios(to io.Writer) error {
	table := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	for _, scenario := range bench.Scenarios {
		fmt.Fprintf(table, "%s\t%s\n", scenario.Name, scenario.About)
	}
	return table.Flush()
}

func listRows(to io.Writer) error {
	table := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "scenario\tid\tunit\ttarget\tmetric")
	for _, scenario := range bench.Scenarios {
		for _, row := range scenario.Rows {
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", scenario.Name, row.ID, row.Unit, row.Targets(), row.Name)
		}
	}
	return table.Flush()
}

func listVirtBench(to io.Writer) error {
	table := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "id\tmetric\tunit\tscenario\trow\tnote")
	for _, metric := range bench.VirtBench {
		scenario, row := metric.Scenario, metric.Row
		if scenario == "" {
			scenario, row = "-", "-"
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n", metric.ID, metric.Name, metric.Unit, scenario, row, metric.Note)
	}
	return table.Flush()
}
