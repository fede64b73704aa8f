package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/kerf-gpu/kerf/cmd/internal/version"
)

// flags of the command line.
type flags struct {
	kubeconfig, namespace, listen, health string
	verbose                               bool
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := command().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "kerf-controller:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	var f flags
	cmd := &cobra.Command{
		Use:           "kerf-controller",
		Short:         "Kerf's cluster-wide part: pods written for HAMi become pods with ResourceClaims",
		Version:       version.Version,
		Args:          cobra.NoArgs,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			level := slog.LevelInfo
			if f.verbose {
				level = slog.LevelDebug
			}
			return serve(cmd.Context(), f, slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})))
		},
	}
	p := cmd.Flags()
	p.StringVar(&f.kubeconfig, "kubeconfig", "", "how to reach the API server (default: as a pod does)")
	p.StringVar(&f.namespace, "namespace", "kerf-system", "namespace of the Service and of the Secret with the certificates")
	p.StringVar(&f.listen, "listen", ":8443", "address of the webhooks, HTTPS")
	p.StringVar(&f.health, "health", ":8080", "address of /healthz, /readyz and /metrics, HTTP")
	p.BoolVar(&f.verbose, "verbose", false, "log every pod that is converted")
	return cmd
}
