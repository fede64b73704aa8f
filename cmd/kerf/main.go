// Command kerf is what people type: it runs programs in slices of a GPU, and shows what is on the node.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/kerf-gpu/kerf/cmd/internal/control"
)

// Exit codes. `kerf run` ends with the program's own code, or 128 and the signal's number; its own failures are
// apart from those, as with other launchers. `kerf bench --check` ends with 3 where a target is missed.
const (
	exitFailure       = 1
	exitUsage         = 64
	exitRun           = 125 // kerf run: no slice, or no view for the program
	exitNotExecutable = 126
	exitNotFound      = 127
)

// exitError ends the program with a code. An empty message prints nothing.
type exitError struct {
	code int
	err  error
}

func (e exitError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e exitError) Unwrap() error { return e.err }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := rootCommand().ExecuteContext(ctx)
	stop()
	os.Exit(report(err))
}

func report(err error) int {
	if err == nil {
		return 0
	}
	if message := err.Error(); message != "" {
		fmt.Fprintln(os.Stderr, "kerf:", message)
	}
	var exit exitError
	switch {
	case errors.As(err, &exit):
		return exit.code
	case strings.HasPrefix(err.Error(), "unknown command"): // cobra has no type for it
		return exitUsage
	}
	return exitFailure
}

// options of every verb.
type options struct{ socket string }

func (o *options) client() *control.Client { return control.Dial(o.socket) }

func rootCommand() *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:   "kerf",
		Short: "Slices of GPUs: run programs in them, and see who holds what",
		Long: "Slices of GPUs: run programs in them, and see who holds what.\n\n" +
			"Exit codes: 0 done, 1 failed, 64 wrong command line; kerf run: the program's own, 128+N for a signal,\n" +
			"125 no slice, 126 not executable, 127 not found; kerf bench --check: 3 a target was missed, or a row got worse;\n" +
			"kerf doctor: 0 well, 1 warnings, 2 critical, 3 unknown.",
		SilenceErrors:      true,
		SilenceUsage:       true,
		DisableSuggestions: true, // they would make the one line of an error several
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return exitError{exitUsage, err} })
	cmd.PersistentFlags().StringVar(&o.socket, "socket", defaultSocket(), "kerfd's control socket")
	cmd.AddCommand(runCommand(&o), enterCommand(), topCommand(&o), setCommand(&o), explainCommand(&o), xidCommand(), releaseCommand(&o), topoCommand(o.root), pageCommand(&o), volumesCommand(&o), datasetCommand(), doctorCommand(&o),
		simCommand(), benchCommand(), demoCommand(), versionCommand(&o), claimCommand())
	return cmd
}

// root is the driver root that the running kerfd serves.
func (o *options) root() (string, error) {
	n, err := o.client().Node(context.Background())
	return n.Root, err
}

// defaultSocket is the machine's kerfd, or the user's own where it runs one.
func defaultSocket() string {
	if user := os.Getenv("XDG_RUNTIME_DIR"); os.Geteuid() != 0 && user != "" {
		own := control.Socket(user + "/kerf")
		if _, err := os.Stat(own); err == nil {
			return own
		}
	}
	return control.Socket(control.DefaultRunDir)
}
