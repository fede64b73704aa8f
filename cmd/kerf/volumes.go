package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/kerf-gpu/kerf/cmd/internal/control"
)

func volumesCommand(o *options) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "volumes",
		Short:   "Show the scratch volumes of this node and the pools that they are in",
		Example: "  kerf volumes\n  kerf volumes --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := control.Dial(o.socket).Storage(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				encoder := json.NewEncoder(cmd.OutOrStdout())
				encoder.SetIndent("", "  ")
				return encoder.Encode(s)
			}
			return writeVolumes(cmd.OutOrStdout(), s)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func writeVolumes(w io.Writer, s control.Storage) error {
	if !s.Enabled {
		_, err := fmt.Fprintln(w, "kerfd serves no volumes here: storage is not enabled in its configuration")
		return err
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "POOL\tBACKEND\tTOTAL\tPROMISED\tFREE\tLARGEST\tVOLUMES\tPROBLEM")
	for _, p := range s.Pools {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\n", p.Name, p.Kind, p.Total, p.Promised, p.Free, p.Largest, p.Volumes, cmp.Or(p.Error, "-"))
	}
	if len(s.Volumes) > 0 {
		fmt.Fprintln(t, "\nVOLUME\tKIND\tPOOL\tSIZE\tSTATE\tMOUNTS\tNAME")
	}
	for _, v := range s.Volumes {
		kind := v.Kind
		if v.Block {
			kind += " (block)"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%d\t%s\n", v.ID, kind, v.Pool, v.Size, v.State, len(v.Targets), v.Name)
	}
	for _, stranger := range s.Strangers {
		fmt.Fprintf(t, "\n%s is in the pool and on no record: nothing removes it but you", stranger)
	}
	if len(s.Strangers) > 0 {
		fmt.Fprintln(t)
	}
	return t.Flush()
}
