package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/kerf-gpu/kerf/bench"
)

func benchReportCommand() *cobra.Command {
	var output string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "report FILE.json… --output PAGE.html",
		Short: "Write kept results as one page, with plots",
		Long: "Write kept results as one HTML page: where each was measured, targets met and missed, plots, and every row. The\n" +
			"page needs nothing from elsewhere and has no script; it can be mailed, or opened where there is no network.",
		RunE: func(cmd *cobra.Command, paths []string) error {
			if output == "" {
				return exitError{exitUsage, errors.New("report wants --output FILE, the page to write")}
			}
			files, err := bench.ReadFiles(paths)
			if err == nil {
				err = notAmong(output, paths)
			}
			if err != nil {
				return exitError{exitUsage, err}
			}
			if err := writeFile(output, func(to io.Writer) error { return bench.WriteHTML(to, files) }); err != nil {
				return err
			}
			if asJSON {
				return writeIndented(cmd.OutOrStdout(), bench.Summarize(output, files))
			}
			for _, one := range bench.Summarize(output, files).Files {
				fmt.Fprintf(cmd.OutOrStdout(), "%s: %s, %d targets met, %d missed, in %s\n", one.Path, one.Kind, one.Met, one.Missed, output)
			}
			return nil
		},
		ValidArgsFunction: jsonFiles,
	}
	cmd.Flags().StringVar(&output, "output", "", "the page to write")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print "+bench.SummarySchema+": what the page says of each file")
	_ = cmd.MarkFlagFilename("output", "html")
	return cmd
}

// notAmong keeps a page from being written over a report, by whatever name.
func notAmong(output string, paths []string) error {
	there, err := os.Stat(output)
	if err != nil {
		return nil // not there: nothing is lost
	}
	for _, path := range paths {
		if report, err := os.Stat(path); err == nil && os.SameFile(there, report) {
			return fmt.Errorf("--output %s: is one of the reports, which would be lost; name another file", output)
		}
	}
	return nil
}
