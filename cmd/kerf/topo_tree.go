package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"

	"github.com/kerf-gpu/kerf/cni/topo"
	"github.com/kerf-gpu/kerf/internal/node"
)

// branch is one thing of a drawn PCIe tree, with what hangs below it. What has one thing below it and is no root port is left out:
// the ports of switches are their lines.
type branch struct {
	kind  branchKind
	id    string // unique in the tree
	label []string
	up    topo.Link // to what is above; zero: not known
	below []*branch
}

type branchKind int

const (
	rootBranch branchKind = iota
	portBranch
	switchBranch
	gpuBranch
	nicBranch
)

// numaTree is the root complexes of one NUMA node.
type numaTree struct {
	numa  int
	cpus  string
	roots []*branch
}

func (t numaTree) title() string {
	switch {
	case t.numa == node.UnknownNUMA:
		return "NUMA node not known"
	case t.cpus == "":
		return fmt.Sprintf("NUMA node %d", t.numa)
	}
	return fmt.Sprintf("NUMA node %d, CPUs %s", t.numa, t.cpus)
}

// growTrees places every GPU and NIC, and NICs' Data Direct functions, below their root complexes.
func growTrees(n node.Node) []numaTree {
	g := grower{node: n, roots: map[string]*branch{}, numa: map[string]int{}}
	for _, at := range places(n) {
		if known, ok := g.numa[at.Path.Root]; !ok || known < 0 {
			g.numa[at.Path.Root] = at.NUMA
		}
	}
	for _, gpu := range n.GPUs {
		g.add(gpu.Place(), branch{kind: gpuBranch, label: []string{gpuName(gpu), gpu.PCI.String()}})
	}
	for i, nic := range n.NICs {
		name := fmt.Sprintf("NIC%d", i)
		label := []string{name, nicName(nic)}
		if label[1] != nic.PCI.String() {
			label = append(label, nic.PCI.String())
		}
		g.add(nic.Place(), branch{kind: nicBranch, label: label})
		if nic.DataDirect != nil {
			g.add(*nic.DataDirect, branch{kind: nicBranch, label: []string{name, "Data Direct", nic.DataDirect.Path.Device().String()}})
		}
	}
	for _, t := range g.trees {
		for _, root := range t.roots {
			prune(root)
		}
	}
	slices.SortStableFunc(g.trees, func(a, b numaTree) int { return cmp.Compare(uint32(a.numa), uint32(b.numa)) }) // −1, not known, is last
	return g.trees
}

// places of all that is drawn.
func places(n node.Node) (all []node.Place) {
	for _, gpu := range n.GPUs {
		all = append(all, gpu.Place())
	}
	for _, nic := range n.NICs {
		all = append(all, nic.Place())
		if nic.DataDirect != nil {
			all = append(all, *nic.DataDirect)
		}
	}
	return all
}

type grower struct {
	node  node.Node
	roots map[string]*branch // by name
	numa  map[string]int     // of each root: that of any device below it whose is known
	trees []numaTree
}

func (g *grower) root(at node.Place) *branch {
	name := at.Path.Root
	if name == "" {
		name = "place not known"
	}
	if r := g.roots[name]; r != nil {
		return r
	}
	r := &branch{kind: rootBranch, id: name, label: []string{name}}
	g.roots[name] = r
	numa := g.numa[at.Path.Root]
	i := slices.IndexFunc(g.trees, func(t numaTree) bool { return t.numa == numa })
	if i < 0 {
		i = len(g.trees)
		t := numaTree{numa: numa}
		for _, m := range g.node.NUMA {
			if m.ID == numa {
				t.cpus = m.CPUs
			}
		}
		g.trees = append(g.trees, t)
	}
	g.trees[i].roots = append(g.trees[i].roots, r)
	return r
}

func (g *grower) add(at node.Place, device branch) {
	links := map[node.PCIAddress]topo.Link{}
	for _, l := range topo.Links(at.Path) {
		links[l.Lower] = l
	}
	above := g.root(at)
	for i := range max(0, len(at.Path.Chain)-1) {
		bridge := at.Path.Chain[i]
		id := above.id + "/" + bridge.String()
		k := slices.IndexFunc(above.below, func(b *branch) bool { return b.id == id })
		if k < 0 {
			k = len(above.below)
			kind, what := switchBranch, "switch"
			if i == 0 {
				kind, what = portBranch, "root port"
			}
			above.below = append(above.below, &branch{kind: kind, id: id, label: []string{what, bridge.String()}, up: links[bridge]})
		}
		above = above.below[k]
	}
	device.id, device.up = above.id+"/"+device.label[len(device.label)-1], links[at.Path.Device()]
	above.below = append(above.below, &device)
}

// prune takes out the bridges with one thing below them. The slower of the two links is the line's.
func prune(b *branch) {
	for i, child := range b.below {
		prune(child)
		if child.kind == switchBranch && len(child.below) == 1 {
			only := child.below[0]
			if r := child.up.Now.Rate(); r != 0 && (only.up.Now.Rate() == 0 || r < only.up.Now.Rate()) {
				only.up = child.up
			}
			b.below[i] = only
		}
	}
}

// lineText is what a link carries, and what it should.
func (b *branch) lineText() string {
	now := b.up.Now.Rate()
	switch {
	case now == 0:
		return ""
	case b.slow():
		return fmt.Sprintf("%s of %s", rateText(now), rateText(b.up.Best.MaxRate()))
	}
	return rateText(now)
}

// slow: a GPU's own link is told by its lanes, since it slows down when the GPU idles.
func (b *branch) slow() bool { return b.up.Slow(b.kind == gpuBranch) }

var dotShapes = [...]string{"shape=plaintext", "shape=box", "shape=box, style=rounded", "shape=box, style=filled, fillcolor=\"#cfe8cf\"", "shape=box, style=filled, fillcolor=\"#cfdff5\""}

// writeDot writes the tree for Graphviz.
func writeDot(out io.Writer, n node.Node, root string) error {
	fmt.Fprintf(out, "graph topology {\n  label=%q\n  node [fontname=\"sans-serif\", fontsize=10]\n", caption(n, root))
	for i, t := range growTrees(n) {
		fmt.Fprintf(out, "  subgraph cluster_%d {\n    label=%q\n", i, t.title())
		for _, r := range t.roots {
			dotBranch(out, r)
		}
		fmt.Fprintln(out, "  }")
	}
	_, err := fmt.Fprintln(out, "}")
	return err
}

func dotBranch(out io.Writer, b *branch) {
	text := b.label[0]
	for _, l := range b.label[1:] {
		text += "\n" + l
	}
	fmt.Fprintf(out, "    %q [label=%q, %s]\n", b.id, text, dotShapes[b.kind])
	for _, child := range b.below {
		dotBranch(out, child)
		color := ""
		if child.slow() {
			color = ", color=red, style=dashed"
		}
		fmt.Fprintf(out, "    %q -- %q [label=%q%s]\n", b.id, child.id, child.lineText(), color)
	}
}

func caption(n node.Node, root string) string {
	if n.Simulated {
		return "simulated node at " + root
	}
	return "PCIe topology of " + root
}
