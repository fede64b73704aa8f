package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/kerf-gpu/kerf/cni/topo"
	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/internal/nvml"
	"github.com/kerf-gpu/kerf/internal/sysfs"
)

const topoSchema = "kerf.topo/v1"

// topology is how the node's GPUs and NICs lie to each other.
type topology struct {
	Schema    string                 `json:"schema"`
	Simulated bool                   `json:"simulated"`
	Root      string                 `json:"root"`
	Devices   []topoDevice           `json:"devices"`
	Matrix    [][]node.AffinityClass `json:"matrix"` // by the order of Devices
	Assigned  []assigned             `json:"assigned,omitempty"`
	Warnings  []string               `json:"warnings,omitempty"`
}

// topoDevice is one row and column of the matrix.
type topoDevice struct {
	Name string          `json:"name"` // GPU0, NIC1
	ID   string          `json:"id"`   // a GPU's UUID, a NIC's RDMA or network device
	What string          `json:"what"`
	PCI  node.PCIAddress `json:"pci"`
	Link node.PCIeLink   `json:"link"`
	NUMA int             `json:"numa"` // -1: not known
	CPUs string          `json:"cpus,omitempty"`

	RootPort   *node.PCIAddress `json:"pcieRootPort,omitempty"` // as kerf.dev/pcieRootPort has it
	Rate       node.Bytes       `json:"rate,omitempty"`         // of the slowest link on the way to the CPU, each way in a second
	Rail       *int             `json:"rail,omitempty"`
	DataDirect *node.PCIAddress `json:"dataDirect,omitempty"`
}

// topoFlags is what the command line says of the picture.
type topoFlags struct {
	root      string
	asJSON    bool
	dot       bool
	svg       string
	assign    int
	hasAssign bool
}

// topoCommand shows the node under --root; without it the one that source names, the running daemon's.
func topoCommand(source func() (root string, err error)) *cobra.Command {
	var f topoFlags
	cmd := &cobra.Command{
		Use:   "topo",
		Short: "Show how near GPUs and NICs are to each other and to the CPUs",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f.hasAssign = cmd.Flags().Changed("assign")
			if f.asJSON && f.dot {
				return exitError{exitUsage, errors.New("--json and --dot: both write to standard output; give one of them")}
			}
			return f.run(cmd.OutOrStdout(), topoRoot(f.root, source))
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.root, "root", "", "driver root to read (default: that of the running kerfd, else /)")
	flags.BoolVar(&f.asJSON, "json", false, "print JSON ("+topoSchema+")")
	flags.BoolVar(&f.dot, "dot", false, "print the PCIe tree for Graphviz")
	flags.StringVar(&f.svg, "svg", "", "draw the PCIe tree into this file")
	flags.IntVar(&f.assign, "assign", 0, "say which NIC each of the first so many GPUs should have")
	_ = cmd.MarkFlagFilename("svg", "svg") // both fail for a flag that is not there alone
	_ = cmd.MarkFlagDirname("root")
	return cmd
}

func (f topoFlags) run(out io.Writer, root string) error {
	n, err := readNode(root)
	if err != nil {
		return err
	}
	t := topologyOf(n)
	t.Root = root
	if f.hasAssign {
		if t.Assigned, err = assignNICs(n, f.assign); err != nil {
			return exitError{exitUsage, err}
		}
	}
	if f.svg != "" {
		if err := os.WriteFile(f.svg, drawSVG(n, root), 0o644); err != nil { //nolint:gosec // a picture to show around
			return fmt.Errorf("--svg %s: %w", f.svg, err)
		}
	}
	switch {
	case f.asJSON:
		return json.NewEncoder(out).Encode(t)
	case f.dot:
		return writeDot(out, n, root)
	}
	return writeTopo(out, t)
}

// topoRoot needs no kerfd: without one the machine itself is shown.
func topoRoot(flag string, source func() (string, error)) string {
	if flag != "" {
		return flag
	}
	if root, err := source(); err == nil && root != "" {
		return root
	}
	return "/"
}

// readNode reads what topo shows. A node without a driver has NICs all the same.
func readNode(root string) (node.Node, error) {
	n, err := readGPUs(root)
	if err != nil {
		return n, err
	}
	host := sysfs.New(root)
	host.Locate(n.GPUs)
	if n.NICs, err = host.NICs(); err != nil {
		return n, err
	}
	host.Inspect(&n)
	n.NUMA, err = host.NUMA()
	return n, err
}

func readGPUs(root string) (n node.Node, err error) {
	lib, err := nvml.Open(root)
	if errors.Is(err, nvml.ErrNoDriver) {
		return n, nil
	}
	if err != nil {
		return n, err
	}
	n.Simulated = lib.Simulated()
	n.GPUs, err = lib.GPUs()
	return n, errors.Join(err, lib.Close())
}

func topologyOf(n node.Node) topology {
	t := topology{Schema: topoSchema, Simulated: n.Simulated, Devices: []topoDevice{}, Matrix: [][]node.AffinityClass{}}
	cpus := map[int]string{}
	for _, m := range n.NUMA {
		cpus[m.ID] = m.CPUs
	}
	for _, g := range n.GPUs {
		t.Devices = append(t.Devices, topoDevice{
			Name: gpuName(g), ID: g.UUID.String(), What: g.ProductName, PCI: g.PCI, Link: g.Link, NUMA: g.NUMA, CPUs: cpus[g.NUMA],
			RootPort: address(g.Path.RootPort()), Rate: topo.Rate(g.Path),
		})
	}
	for i, f := range topo.Of(n, nil) {
		nic := n.NICs[i]
		d := topoDevice{
			Name: fmt.Sprintf("NIC%d", i), ID: nicName(nic), What: nic.Driver, PCI: nic.PCI, Link: nic.Link, NUMA: nic.NUMA, CPUs: cpus[nic.NUMA],
			RootPort: address(f.RootPort), Rate: f.Rate, DataDirect: address(f.DataDirect),
		}
		if f.Rail != topo.NoRail {
			d.Rail = &f.Rail
		}
		t.Devices = append(t.Devices, d)
	}
	t.Warnings = topoWarnings(n)
	for a := range t.Devices {
		row := make([]node.AffinityClass, len(t.Devices))
		for b := range t.Devices {
			row[b] = affinity(n, a, b)
		}
		t.Matrix = append(t.Matrix, row)
	}
	return t
}

// affinity of two devices by their place in the list of all GPUs, then all NICs.
func affinity(n node.Node, a, b int) node.AffinityClass {
	if a == b {
		return node.Self
	}
	gpus := len(n.GPUs)
	if a < gpus && b < gpus {
		return node.GPUAffinity(n.GPUs[a], n.GPUs[b])
	}
	switch {
	case a < gpus:
		class, _ := topo.Between(n.GPUs[a], n.NICs[b-gpus])
		return class
	case b < gpus:
		return affinity(n, b, a)
	}
	return node.Affinity(n.NICs[a-gpus].Place(), n.NICs[b-gpus].Place())
}

func gpuName(g node.GPU) string { return fmt.Sprintf("GPU%d", g.Index) }

// address is nil for none, so that JSON leaves it out.
func address(a node.PCIAddress) *node.PCIAddress {
	if a.IsZero() {
		return nil
	}
	return &a
}

// nicName prefers the RDMA device's, which is what NCCL is told.
func nicName(nic node.NIC) string {
	switch {
	case len(nic.RDMA) > 0:
		return nic.RDMA[0]
	case len(nic.NetDevs) > 0:
		return nic.NetDevs[0]
	}
	return nic.PCI.String()
}
