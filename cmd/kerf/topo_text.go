package main

import (
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/kerf-gpu/kerf/internal/node"
)

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
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s%s%s\n", d.Name, d.PCI, d.ID, d.What, d.Link, narrow(d.Link), extra(d))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	writeAssigned(out, t)
	fmt.Fprint(out, legend)
	if len(t.Warnings) > 0 {
		fmt.Fprintln(out, "\nWarnings")
	}
	for _, w := range t.Warnings {
		fmt.Fprintf(out, "  %s\n", w)
	}
	return nil
}

func writeAssigned(out io.Writer, t topology) {
	if len(t.Assigned) == 0 {
		return
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "\nASSIGNED\tNIC\tCLASS\tWHY")
	for _, a := range t.Assigned {
		nic, class := "none", "-"
		if a.NIC != "" {
			nic, class = fmt.Sprintf("%s (%s)", a.NIC, a.ID), a.Class.String()
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", a.GPU, nic, class, a.Why)
	}
	table.Flush()
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

// extra is what only some devices have.
func extra(d topoDevice) (text string) {
	if d.Rate > 0 {
		text += fmt.Sprintf(", %s on the way", rateText(d.Rate))
	}
	if d.Rail != nil {
		text += fmt.Sprintf(", rail %d", *d.Rail)
	}
	if d.DataDirect != nil {
		text += fmt.Sprintf(", Data Direct %s", d.DataDirect)
	}
	return text
}

// rateText is bytes a second in the units of data sheets.
func rateText(r node.Bytes) string { return fmt.Sprintf("%.1f GB/s", float64(r)/1e9) }

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
