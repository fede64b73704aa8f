// Command kerfd is Kerf's daemon, one a node. It grants slices of GPUs, keeps who holds what, and runs the shares.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/kerf-gpu/kerf/cmd/internal/control"
	"github.com/kerf-gpu/kerf/cmd/internal/version"
)

// Exit codes: 0 after a stop that was asked for, 1 for a failure, 2 for a wrong command line or configuration.
const (
	exitFailure = 1
	exitUsage   = 2
)

// usageError is a wrong command line or configuration.
type usageError struct{ error }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := command().ExecuteContext(ctx)
	stop()
	if err == nil {
		return
	}
	fmt.Fprintln(os.Stderr, "kerfd:", err)
	if errors.As(err, &usageError{}) {
		os.Exit(exitUsage)
	}
	os.Exit(exitFailure)
}

// flags that override the configuration file.
type flags struct {
	config, simulate, runDir string
	zeroCost                 bool
}

func (f flags) load() (Config, error) {
	c, err := readConfig(f.config)
	if err != nil {
		return c, usageError{err}
	}
	if f.simulate != "" {
		c.Simulate.Profile = f.simulate
	}
	if f.runDir != "" {
		c.RunDir = f.runDir
	}
	c.Simulate.ZeroCost = c.Simulate.ZeroCost || f.zeroCost
	if c, err = c.complete(); err != nil {
		return c, usageError{err}
	}
	return c, nil
}

func command() *cobra.Command {
	var f flags
	cmd := &cobra.Command{
		Use:     "kerfd",
		Short:   "Kerf's node daemon: slices of GPUs for the programs on this machine",
		Version: version.Version,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("argument %q: kerfd takes flags only; see kerfd --help", args[0])}
			}
			return nil
		},
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := f.load()
			if err != nil {
				return err
			}
			level, err := c.level()
			if err != nil {
				return usageError{err}
			}
			c.mpsEnter = mpsEnter()
			return serve(cmd.Context(), c, slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})))
		},
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	p := cmd.PersistentFlags()
	p.StringVar(&f.config, "config", "", "configuration file (YAML); see kerfd config print")
	p.StringVar(&f.simulate, "simulate", "", "serve a simulated node of this profile or profile file instead of the real hardware")
	p.StringVar(&f.runDir, "run-dir", "", "directory of sockets and shares (default "+defaultRunDir()+")")
	p.BoolVar(&f.zeroCost, "sim-zero-cost", false, "the simulated driver's calls take no time (for benches)")
	cmd.AddCommand(configCommand(&f), readyCommand(&f), enterMPSCommand())
	return cmd
}

// readyCommand is the DaemonSet's probe.
func readyCommand(f *flags) *cobra.Command {
	return &cobra.Command{
		Use:   "ready",
		Short: "Ask the kerfd that runs here whether pods can get slices; exit 0 if so",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			runDir := cmp.Or(f.runDir, defaultRunDir())
			return control.Dial(control.Socket(runDir)).Ready(cmd.Context())
		},
	}
}

func configCommand(f *flags) *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "Look at the configuration"}
	cmd.AddCommand(&cobra.Command{
		Use:   "print",
		Short: "Check the configuration and print it with its defaults",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := f.load()
			if err != nil {
				return err
			}
			return yaml.NewEncoder(cmd.OutOrStdout()).Encode(c)
		},
	})
	return cmd
}
