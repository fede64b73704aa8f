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
	"github.com/kerf-gpu/kerf/cmd/kerf-controller/evict"
)

// flags of the command line.
type flags struct {
	kubeconfig, namespace, listen, health string
	verbose, webhooks                     bool
	evictions                             evict.Policy
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
		Short:         "Kerf's cluster-wide part: pods written for HAMi become pods with ResourceClaims, and leave devices that are to be drained",
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
	p.BoolVar(&f.webhooks, "webhooks", true, "serve the admission webhooks")
	evictionFlags(cmd, &f.evictions)
	p.BoolVar(&f.verbose, "verbose", false, "log every pod that is converted")
	return cmd
}

// evictionFlags are how much may be moved, and when.
func evictionFlags(cmd *cobra.Command, e *evict.Policy) {
	p := cmd.Flags()
	*e = evict.DefaultPolicy
	p.StringVar((*string)(&e.Mode), "evictions", string(e.Mode), "pods on devices that are to be drained: off, observe, dry-run, evict")
	p.DurationVar(&e.Settle, "evictions-settle", e.Settle, "how long a device must have asked to be drained")
	p.IntVar(&e.Pods, "evictions-pods", e.Pods, "at most so many pods are moved within --evictions-per")
	p.DurationVar(&e.Per, "evictions-per", e.Per, "in any stretch of this length")
	p.IntVar(&e.Nodes, "evictions-nodes", e.Nodes, "pods of at most so many nodes are moved within --evictions-window")
	p.IntVar(&e.NodesPercent, "evictions-nodes-percent", e.NodesPercent, "and of at most so many of a hundred nodes with devices, but always of one")
	p.DurationVar(&e.Window, "evictions-window", e.Window, "in any stretch of this length")
	p.IntVar(&e.BreakerNodes, "evictions-breaker-nodes", e.BreakerNodes, "one cause on so many nodes stops everything, until a person resets it")
	p.DurationVar(&e.BreakerWithin, "evictions-breaker-within", e.BreakerWithin, "where it comes within this time")
	p.DurationVar(&e.RetryAfter, "evictions-retry", e.RetryAfter, "when to ask again after a PodDisruptionBudget has refused")
	p.DurationVar(&e.ForceAfter, "evictions-force-after", e.ForceAfter, "refused for so long, a device gets the effect NoExecute, which asks no PodDisruptionBudget; 0: never")
}
