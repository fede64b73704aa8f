package main

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kerf-gpu/kerf/internal/node"
)

// troubledNode is smallNode with a NIC by Data Direct, a slow uplink, ACS on, a GPU in a flat tree and names to escape.
func troubledNode() node.Node {
	n := smallNode()
	good := node.PCIeLink{Gen: 4, Width: 16, MaxGen: 4, MaxWidth: 16}
	for i := range n.GPUs[:2] {
		n.GPUs[i].Path.Hops = []node.Hop{{Link: good}, {Link: good}, {Link: good, ACS: node.ACSRedirect}, {Link: good}}
	}
	n.GPUs[0].Path.Hops[3].Link.Gen = 1 // it idles
	n.NICs[0].Path.Hops = []node.Hop{{Link: good}, {Link: good}, {Link: good}, {Link: n.NICs[0].Link}}
	flat := node.ParsePCIePath("pci0000:70/0000:70:03.0")
	n.GPUs = append(n.GPUs, node.GPU{Index: 3, UUID: node.UUID{9}, ProductName: "<b>", PCI: flat.Device(), Path: flat, NUMA: 1})
	own := node.ParsePCIePath("pci0000:80/0000:80:01.0/0000:81:00.0")
	second := node.Place{Path: node.ParsePCIePath("pci0000:40/0000:40:01.0/0000:42:00.0"), NUMA: 1}
	n.NICs = append(n.NICs, node.NIC{PCI: own.Device(), Path: own, NUMA: 1, RDMA: []string{"<mlx5_1>"}, DataDirect: &second})
	return n
}

func TestTopoWarnings(t *testing.T) {
	want := []string{
		"NIC0: degraded link at 0000:05:00.0: gen4 x8 of gen4 x16; reseat the card or look for AER errors",
		"GPU0 and NIC0: ACS at [0000:02:00.0] sends their traffic up to the CPU; switch it off for direct DMA (the firmware, or setpci at boot)",
		"GPU1 and NIC0: ACS at [0000:02:01.0] sends their traffic up to the CPU; switch it off for direct DMA (the firmware, or setpci at boot)",
		"GPU2: the kernel does not say on which NUMA node it is",
		"GPU3: on the root complex itself, as in a VM with a flat tree; it has no kerf.dev/pcieRootPort, so no NIC can be matched with it by that",
		"GPU3: no NIC is PXB or better, so NCCL uses no GPUDirect RDMA with it by default",
	}
	if d := cmp.Diff(want, topoWarnings(troubledNode())); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if got := topoWarnings(node.Node{}); got != nil {
		t.Errorf("of an empty node: %q", got)
	}
}

func TestTopoAssign(t *testing.T) {
	got, err := assignNICs(troubledNode(), 4)
	want := []assigned{
		{"GPU0", "NIC0", "mlx5_0", node.PIX, "behind the same PCIe switch: direct DMA; the GPU's rail, 0"},
		{"GPU1", "", "", node.UnknownAffinity, "all NICs are taken by other GPUs"},
		{"GPU2", "NIC1", "<mlx5_1>", node.PIX, "behind the same PCIe switch: direct DMA, by its Data Direct function; the GPU's rail, 1"},
		{"GPU3", "", "", node.UnknownAffinity, "all NICs are taken by other GPUs"},
	}
	if d := cmp.Diff(want, got); d != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
	for count, want := range map[int]string{0: "--assign 0: not a number of GPUs; give 1 to 4", -1: "--assign -1", 5: "--assign 5: this node has 4 GPUs"} {
		if _, err := assignNICs(troubledNode(), count); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%d GPUs: %v", count, err)
		}
	}
	lonely := smallNode()
	lonely.NICs = nil
	if _, err := assignNICs(lonely, 1); err == nil || !strings.Contains(err.Error(), "no PCI NIC") {
		t.Errorf("without NICs: %v", err)
	}
}

// TestTopoPictures: the pictures as they were looked at once; well formed whatever names are in them.
func TestTopoPictures(t *testing.T) {
	n := troubledNode()
	svg := drawSVG(n, "/r")
	golden(t, "topo.svg", string(svg))
	decoder := xml.NewDecoder(bytes.NewReader(svg))
	for {
		if _, err := decoder.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("no XML: %v", err)
		}
	}
	var dot bytes.Buffer
	if err := writeDot(&dot, n, "/r"); err != nil {
		t.Fatal(err)
	}
	golden(t, "topo.dot", dot.String())
	if got := string(drawSVG(node.Node{}, "/")); !strings.Contains(got, "no GPU and no PCI NIC") {
		t.Errorf("of an empty node:\n%s", got)
	}
	if graphviz, err := exec.LookPath("dot"); err == nil {
		cmd := exec.Command(graphviz, "-Tsvg")
		cmd.Stdin = &dot
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("Graphviz: %v\n%s", err, out)
		}
	}
}

func TestTopoText(t *testing.T) {
	n := troubledNode()
	top := topologyOf(n)
	top.Root = "/r"
	top.Assigned, _ = assignNICs(n, 2)
	var out bytes.Buffer
	if err := writeTopo(&out, top); err != nil {
		t.Fatal(err)
	}
	golden(t, "topo.txt", out.String())
	text, err := json.Marshal(top)
	var back topology
	if err == nil {
		err = json.Unmarshal(text, &struct {
			*topology
			Matrix [][]string `json:"matrix"`
			Assign any        `json:"assigned"`
		}{topology: &back})
	}
	if err != nil || len(back.Devices) != 6 || back.Devices[5].DataDirect == nil || *back.Devices[5].Rail != 1 || len(back.Warnings) != 6 {
		t.Errorf("%v in %s", err, text)
	}
}

func TestTopoErrors(t *testing.T) {
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "sys"), 0o755); err != nil {
		t.Fatal(err)
	}
	noDaemon := func() (string, error) { return "", errors.New("no kerfd") }
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"--json", "--dot"}, "--json and --dot: both write to standard output"},
		{[]string{"--svg", "/not/there/x.svg"}, "--svg /not/there/x.svg"},
		{[]string{"--assign", "2"}, "--assign 2: this node has 0 GPUs"},
		{[]string{"--assign", "many"}, `invalid argument "many"`},
	} {
		_, err := kerf(t, topoCommand(noDaemon), append(tt.args, "--root", root)...)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v: %v, want %q", tt.args, err, tt.want)
		}
	}
}
