package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

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
}

// topoCommand shows the node under --root; without it the one that source names, the running daemon's.
func topoCommand(source func() (root string, err error)) *cobra.Command {
	var root string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "topo",
		Short: "Show how near GPUs and NICs are to each other and to the CPUs",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			root := topoRoot(root, source)
			n, err := readNode(root)
			if err != nil {
				return err
			}
			t := topologyOf(n)
			t.Root = root
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(t)
			}
			return writeTopo(cmd.OutOrStdout(), t)
		},
	}
	cmd.Flags().StringVar(&root, "root", "", "driver root to read (default: that of the running kerfd, else /)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON ("+topoSchema+")")
	return cmd
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
			Name: fmt.Sprintf("GPU%d", g.Index), ID: g.UUID.String(), What: g.ProductName, PCI: g.PCI, Link: g.Link, NUMA: g.NUMA, CPUs: cpus[g.NUMA],
		})
	}
	for i, nic := range n.NICs {
		t.Devices = append(t.Devices, topoDevice{
			Name: fmt.Sprintf("NIC%d", i), ID: nicName(nic), What: nic.Driver, PCI: nic.PCI, Link: nic.Link, NUMA: nic.NUMA, CPUs: cpus[nic.NUMA],
		})
	}
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
	at := func(i int) node.Place {
		if i < gpus {
			return n.GPUs[i].Place()
		}
		return n.NICs[i-gpus].Place()
	}
	return node.Affinity(at(a), at(b))
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

func writeTopo(out io.Writer, t topology) error {
	if t.Simulated {
		fmt.Fprintf(out, "simulated node at %s\n\n", t.Root)
	}
	if len(t.Devices) == 0 {
		_, err := fmt.Fprintf(out, "no GPU and no PCI NIC under %s\n", t.Root)
		return err
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, d := range t.Devices {
		fmt.Fprintf(table, "\t%s", d.Name)
	}
	fmt.Fprintln(table, "\tNUMA\tCPUS")
	for i, d := range t.Devices {
		fmt.Fprint(table, d.Name)
		for _, class := range t.Matrix[i] {
			fmt.Fprintf(table, "\t%s", class)
		}
		fmt.Fprintf(table, "\t%s\t%s\n", orUnknown(d.NUMA), d.CPUs)
	}
	fmt.Fprintln(table)
	if err := table.Flush(); err != nil {
		return err
	}
	for _, d := range t.Devices {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s%s\n", d.Name, d.PCI, d.ID, d.What, d.Link, narrow(d.Link))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprint(out, legend)
	return err
}

func orUnknown(numa int) string {
	if numa == node.UnknownNUMA {
		return "?"
	}
	return fmt.Sprint(numa)
}

func narrow(l node.PCIeLink) string {
	if l.Narrow() {
		return " DEGRADED: fewer lanes than it has"
	}
	return ""
}

const legend = `
X        itself
NVn      n bonded NVLinks
PIX      at most one PCIe switch between the two; direct DMA
PXB      several PCIe switches; direct DMA
PHB      through the root complex; from here on by way of the CPU
NODE     across root complexes of one NUMA node
SYS      across NUMA nodes
UNKNOWN  the kernel does not say on which NUMA node one of them is
`
