package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
)

func pageCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "page",
		Short: "Print where the node page is: the GPUs, tenants and faults, live in a browser",
		Long: "Print where the node page is. kerfd serves it on the loopback of its node; from elsewhere, kubectl port-forward\n" +
			"to its pod. The same as JSON is at /v1/node.json there.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			n, err := o.client().Node(cmd.Context())
			if err != nil {
				return err
			}
			if n.Page == "" {
				return errors.New("kerfd serves no page; set page.listen in its configuration to an address such as 127.0.0.1:9475, and see its log")
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), n.Page)
			return err
		},
	}
}
