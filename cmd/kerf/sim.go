package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/kerf-gpu/kerf/cmd/internal/control"
	"github.com/kerf-gpu/kerf/internal/sim"
)

// simOptions of every `kerf sim` verb.
type simOptions struct {
	root string
	json bool
}

func simCommand() *cobra.Command {
	var o simOptions
	cmd := &cobra.Command{
		Use:   "sim",
		Short: "Simulated nodes: start, look at, break and stop one",
		Long: "Simulated nodes: a directory that looks like the root of a machine with NVIDIA GPUs. The default root is that\n" +
			"of `kerfd --simulate`, so that status and inject speak of the running daemon's node.",
	}
	cmd.PersistentFlags().StringVar(&o.root, "root", defaultSimRoot(), "directory of the simulated node")
	cmd.PersistentFlags().BoolVar(&o.json, "json", false, "print JSON (kerf.sim/v1)")
	cmd.AddCommand(simStartCommand(&o), simStatusCommand(&o), simInjectCommand(&o), simLogCommand(&o), simStopCommand(&o))
	return cmd
}

// defaultSimRoot is where kerfd --simulate has its node: below the machine's run directory, or the user's own.
func defaultSimRoot() string {
	if user := os.Getenv("XDG_RUNTIME_DIR"); os.Geteuid() != 0 && user != "" {
		return filepath.Join(user, "kerf", "sim")
	}
	return filepath.Join(control.DefaultRunDir, "sim")
}

// defaultSimLibDir is where make build puts the simulated libraries, beside the program.
func defaultSimLibDir() string {
	exe, err := os.Executable()
	if err != nil {
		return "build/lib/kerf/sim"
	}
	return filepath.Join(filepath.Dir(exe), "../lib/kerf/sim")
}

func simStartCommand(o *simOptions) *cobra.Command {
	var libDir string
	cmd := &cobra.Command{
		Use:   "start PROFILE|FILE",
		Short: "Make a simulated node: " + strings.Join(sim.Profiles(), ", ") + ", or a YAML file of your own",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			profile, err := sim.LoadProfile(args[0])
			if err != nil {
				return err
			}
			n, err := sim.Create(o.root, profile, libDir)
			if err != nil {
				return err
			}
			return errors.Join(o.print(cmd.OutOrStdout(), n.Status()), n.Close())
		},
		ValidArgsFunction: cobra.FixedCompletions(sim.Profiles(), cobra.ShellCompDirectiveDefault),
	}
	cmd.Flags().StringVar(&libDir, "libdir", defaultSimLibDir(), "directory of the simulated driver's libraries")
	return cmd
}

func simStatusCommand(o *simOptions) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show the simulated GPUs, their faults and the processes on them",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.with(func(n *sim.Node) error { return o.print(cmd.OutOrStdout(), n.Status()) })
		},
	}
}

func simInjectCommand(o *simOptions) *cobra.Command {
	var gpu int
	var in sim.Injection
	cmd := &cobra.Command{
		Use:     "inject KIND [VALUE] --gpu N",
		Short:   "Put a fault into a simulated GPU, or take it out (clear)",
		Long:    "Put a fault into a simulated GPU, or take it out (clear). Kinds, and the value that each takes:\n\n" + sim.InjectionHelp(),
		Example: "  kerf sim inject xid 79 --gpu 3\n  kerf sim inject hang --gpu 0 --for 30s\n  kerf sim inject clear --gpu 3",
		Args:    cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := parseInjection(args, &in); err != nil {
				return err
			}
			return o.with(func(n *sim.Node) error {
				if err := n.Inject(gpu, in); err != nil {
					return err
				}
				if o.json {
					return o.print(cmd.OutOrStdout(), n.Status())
				}
				fmt.Fprintf(cmd.OutOrStdout(), "injected %s into simulated GPU %d\n", strings.Join(args, " "), gpu)
				return nil
			})
		},
	}
	cmd.Flags().IntVar(&gpu, "gpu", 0, "index of the GPU on the node")
	cmd.Flags().IntVar(&in.PID, "pid", 0, "process that the event names")
	cmd.Flags().DurationVar(&in.Hang, "for", 10*time.Second, "with hang: how long NVML's calls on the GPU block")
	_ = cmd.MarkFlagRequired("gpu") // the flag exists, two lines above
	return cmd
}

// parseInjection reads KIND [VALUE].
func parseInjection(args []string, in *sim.Injection) error {
	in.Kind = args[0]
	if len(args) == 1 {
		if sim.TakesValue(in.Kind) {
			return fmt.Errorf("inject %s: it takes a value; write for example: kerf sim inject %s 79 --gpu 0", in.Kind, in.Kind)
		}
		return nil
	}
	value, err := strconv.ParseUint(args[1], 0, 32)
	if err != nil {
		return fmt.Errorf("inject %s %q: not a number from 0 on; write for example: kerf sim inject xid 79 --gpu 3", in.Kind, args[1])
	}
	in.Value = value
	return nil
}

func simStopCommand(o *simOptions) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "stop",
		Short: "Delete the simulated node",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			n, err := sim.Open(o.root)
			if err != nil {
				return err
			}
			if err := n.Remove(force); err != nil {
				_ = n.Close() // the first error is the one that counts
				return err
			}
			if o.json {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(map[string]string{"schema": "kerf.sim/v1", "removed": o.root})
			}
			fmt.Fprintf(cmd.OutOrStdout(), "simulated node %s removed\n", o.root)
			return nil
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "even while processes use it")
	return cmd
}

// with runs f on the open node.
func (o *simOptions) with(f func(*sim.Node) error) error {
	n, err := sim.Open(o.root)
	if err != nil {
		return err
	}
	return errors.Join(f(n), n.Close())
}

func (o *simOptions) print(out io.Writer, s sim.Status) error {
	if o.json {
		return json.NewEncoder(out).Encode(s)
	}
	return writeSim(out, s)
}

func writeSim(out io.Writer, s sim.Status) error {
	driver := "no driver"
	if s.Driver != "" {
		driver = "driver " + s.Driver
	}
	if s.ZeroCost {
		driver += ", zero cost"
	}
	fmt.Fprintf(out, "simulated node at %s (%s), %d simulated GPUs\n", s.Root, driver, len(s.GPUs))
	if len(s.GPUs) == 0 {
		return nil
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "GPU\tUUID\tNAME\tMEMORY\tUSED\tEVENTS\tSTATE")
	for _, g := range s.GPUs {
		fmt.Fprintf(table, "%d\t%s\t%s\t%s\t%s\t%d\t%s\n", g.Index, g.UUID, g.Name, g.Memory, g.Used, g.Events, simState(g))
		for _, p := range g.Processes {
			fmt.Fprintf(table, "\t  pid %d\t%s\t\t%s\t\tbusy %s\n", p.PID, p.Name, p.Used, time.Duration(p.BusyMS)*time.Millisecond)
		}
	}
	return table.Flush()
}

func simState(g sim.GPUStatus) string {
	var words []string
	if g.Lost {
		words = append(words, "lost")
	}
	if g.Hung {
		words = append(words, "hung")
	}
	if g.Recovery != "" {
		words = append(words, "needs "+g.Recovery)
	}
	if words == nil {
		return "healthy"
	}
	return strings.Join(words, ", ")
}
