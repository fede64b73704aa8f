package main

import (
	"encoding/json"
	"fmt"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/kerf-gpu/kerf/cmd/internal/control"
	"github.com/kerf-gpu/kerf/cmd/internal/version"
	"github.com/kerf-gpu/kerf/vgpu/region"
)

// versions is what kerf version prints.
type versions struct {
	Schema string `json:"schema"`
	Kerf   string `json:"kerf"`
	Kerfd  string `json:"kerfd,omitempty"` // empty: none is running
	Region int    `json:"region"`          // of the pages that kerfd and the shim share
	Driver string `json:"driver,omitempty"`
	CUDA   string `json:"cuda,omitempty"`
	Go     string `json:"go"`

	Simulated bool `json:"simulated"`
}

func versionCommand(o *options) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Say which Kerf this is, and which kerfd and driver it finds",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := versions{Schema: control.VersionSchema, Kerf: version.Version, Region: region.Version, Go: runtime.Version()}
			if n, err := o.client().Node(cmd.Context()); err == nil { // no kerfd is no failure of this verb
				v.Kerfd, v.Driver, v.Simulated = n.Version, n.Driver.Version, n.Simulated
				if n.Driver.CUDAVersion != 0 {
					v.CUDA = n.Driver.CUDAVersion.String()
				}
			}
			out := cmd.OutOrStdout()
			if asJSON {
				return json.NewEncoder(out).Encode(v)
			}
			fmt.Fprintf(out, "kerf   %s (%s, region %d)\n", v.Kerf, v.Go, v.Region)
			if v.Kerfd == "" {
				fmt.Fprintf(out, "kerfd  not running at %s\n", o.socket)
				return nil
			}
			fmt.Fprintf(out, "kerfd  %s\n", v.Kerfd)
			if v.Driver != "" {
				fmt.Fprintf(out, "driver %s, CUDA %s%s\n", v.Driver, v.CUDA, simulatedMark(v.Simulated))
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON ("+control.VersionSchema+")")
	return cmd
}

func simulatedMark(simulated bool) string {
	if simulated {
		return " (simulated)"
	}
	return ""
}
