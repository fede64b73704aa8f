// Command cluster runs a real Kubernetes on one machine: one node, built from Go modules, without an image registry.
//
// The control plane runs in directories of its own. The node runs in a mount namespace of its own where /etc, /var
// and /run are the cluster's: paths are the usual ones there (/var/lib/kubelet, /run/containerd, /var/run/cdi), so
// manifests apply unchanged, and the machine's own are never written. Everything that it starts is in one cgroup.
//
// Traps: pods reach the API server and each other, and nothing outside; Service addresses are not routed (there is
// no kube-proxy), except that of the API server. Webhooks work: the API server dials their pods.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

// Exit codes.
const (
	exitFailure = 1
	exitUsage   = 2
)

// usageError is a wrong command line.
type usageError struct{ error }

// verb is one command. Hidden verbs (no help) are the program's own, run by it.
type verb struct {
	name, args, help string
	run              func(ctx context.Context, args []string) error
}

func verbs() []verb {
	return []verb{
		{"up", "[--dir DIR] [--feature-gates A=true,...] [--simulated-nodes N]", "start the cluster and wait until it is ready", upVerb},
		{"down", "[--dir DIR]", "stop all that up started, and remove it", downVerb},
		{"kubectl", "[--dir DIR] ARG...", "run kubectl on the cluster", kubectlVerb},
		{"load", "[--dir DIR] FILE.tar...", "import images, from archives of docker or OCI", loadVerb},
		{"image", "[--dir DIR] [--output FILE.tar] [--entrypoint A,B] NAME PATH=FILE...", "make an image of busybox and these files, and import it", imageVerb},
		{"restart", "[--dir DIR] NAME", "kill -9 one of the daemons and start it again", restartVerb},
		{"reboot", "[--dir DIR]", "end all of the node without a word, empty its /run, and start it again; the control plane stays", rebootVerb},
		{"smoke", "[--dir DIR]", "run a pod to its end, and see that the API serves what Kerf needs", smokeVerb},
		{"build", "[--kwok]", "build the binaries into the cache, without starting anything", buildVerb},
		{"launch", "", "", launchVerb},
		{"mounts", "", "", mountsVerb},
	}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return
	}
	fmt.Fprintln(os.Stderr, "cluster:", err)
	if errors.As(err, &usageError{}) {
		os.Exit(exitUsage)
	}
	os.Exit(exitFailure)
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 || args[0] == "-h" || args[0] == "--help" || args[0] == "help" {
		usage(os.Stdout)
		return nil
	}
	for _, v := range verbs() {
		if v.name == args[0] {
			return v.run(ctx, args[1:])
		}
	}
	return usageError{fmt.Errorf("unknown verb %q; see cluster help", args[0])}
}

func usage(w io.Writer) {
	fmt.Fprintln(w, "A Kubernetes of one node on this machine, built from source.")
	for _, v := range verbs() {
		if v.help != "" {
			fmt.Fprintf(w, "\n  cluster %s\n      %s\n", strings.TrimSpace(v.name+" "+v.args), v.help)
		}
	}
}

// flags are a verb's; every one has --dir.
type flags struct {
	*flag.FlagSet
	dir string
}

func newFlags(name string) *flags {
	f := &flags{FlagSet: flag.NewFlagSet(name, flag.ContinueOnError)}
	f.SetOutput(io.Discard)
	f.StringVar(&f.dir, "dir", defaultDir, "the cluster's directory")
	return f
}

// parse reads args and checks how many operands are left; max < 0 is no limit.
func (f *flags) parse(args []string, least, most int) (layout, error) {
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			usage(os.Stdout)
			return layout{}, err
		}
		return layout{}, usageError{fmt.Errorf("%s: %w", f.Name(), err)}
	}
	if n := f.NArg(); n < least || most >= 0 && n > most {
		return layout{}, usageError{fmt.Errorf("%s: %d operands given; see cluster help", f.Name(), n)}
	}
	l, err := newLayout(f.dir)
	if err != nil {
		return layout{}, usageError{err}
	}
	return l, nil
}
