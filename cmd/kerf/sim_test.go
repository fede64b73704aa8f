package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/internal/sim"
)

// libraries is a directory with files in the place of the simulated libraries, for tests that load none.
func libraries(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"libcuda.so.1", "libnvidia-ml.so.1", "nvidia-cuda-mps-control"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// kerf runs a verb and gives what it printed.
func kerf(t *testing.T, cmd *cobra.Command, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetArgs(args)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	err := cmd.Execute()
	return out.String(), err
}

func TestSim(t *testing.T) {
	root, libs := filepath.Join(t.TempDir(), "node"), libraries(t)
	for _, tc := range []struct {
		args []string
		want []string // parts of the output; of the error where it starts with !
	}{
		{[]string{"status"}, []string{"!no simulated node is there; start one with"}},
		{[]string{"start", "h900", "--libdir", libs}, []string{`!profile "h900": there is none by this name`}},
		{[]string{"start", "mixed", "--libdir", t.TempDir()}, []string{"!build it with make build"}},
		{[]string{"start", "mixed", "--libdir", libs}, []string{"simulated node at " + root, "driver 535.261.03", "NVIDIA RTX A6000 (simulated)", "healthy"}},
		{[]string{"start", "mixed", "--libdir", libs}, []string{"!is there already; stop it first"}},
		{[]string{"inject", "xid", "79"}, []string{`!required flag(s) "gpu" not set`}},
		{[]string{"inject", "xid", "--gpu", "1"}, []string{"!inject xid: it takes a value"}},
		{[]string{"inject", "xid", "-1", "--gpu", "1"}, []string{"!unknown shorthand flag"}},
		{[]string{"inject", "xid", "many", "--gpu", "1"}, []string{"!not a number"}},
		{[]string{"inject", "flood", "--gpu", "1"}, []string{`!injection "flood": unknown; use one of clear, ecc`}},
		{[]string{"inject", "lost", "--gpu", "4"}, []string{"!the simulated node has 4 GPUs"}},
		{[]string{"inject", "xid", "79", "--gpu", "3"}, []string{"injected xid 79 into simulated GPU 3"}},
		{[]string{"inject", "hang", "--gpu", "2", "--for", "1ms"}, []string{"simulated GPU 2"}},
		{[]string{"status"}, []string{"lost, needs node reboot", "hung", "simulated"}},
		{[]string{"inject", "clear", "--gpu", "3"}, []string{"simulated GPU 3"}},
		{[]string{"stop"}, []string{"simulated node " + root + " removed"}},
		{[]string{"stop"}, []string{"!no simulated node is there"}},
	} {
		out, err := kerf(t, simCommand(), append(tc.args, "--root", root)...)
		wantOutput(t, strings.Join(tc.args, " "), out, err, tc.want)
	}
	left, err := os.ReadDir(filepath.Dir(root))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func wantOutput(t *testing.T, what, out string, err error, want []string) {
	t.Helper()
	for _, part := range want {
		if reason, fails := strings.CutPrefix(part, "!"); fails {
			if err == nil || !strings.Contains(err.Error(), reason) || strings.Contains(err.Error(), "\n") {
				t.Errorf("kerf sim %s: error %v, want one line with %q", what, err, reason)
			}
			continue
		}
		if err != nil || !strings.Contains(out, part) {
			t.Errorf("kerf sim %s: %v, %q; want %q in it", what, err, out, part)
		}
	}
}

func TestSimJSON(t *testing.T) {
	root := filepath.Join(t.TempDir(), "node")
	out, err := kerf(t, simCommand(), "start", "l40sx4", "--libdir", libraries(t), "--root", root, "--json")
	if err != nil {
		t.Fatal(err)
	}
	var s sim.Status
	if err := json.Unmarshal([]byte(out), &s); err != nil || s.Schema != "kerf.sim/v1" || !s.Simulated || len(s.GPUs) != 4 {
		t.Errorf("%+v, %v", s, err)
	}
	out, err = kerf(t, simCommand(), "stop", "--root", root, "--json")
	if err != nil || !strings.Contains(out, `"schema":"kerf.sim/v1"`) {
		t.Errorf("%s, %v", out, err)
	}
}

// smallNode is two GPUs with a bridge on one switch, a third on a node whose number is not known, and a NIC.
func smallNode() node.Node {
	gpu := func(i int, path string, numa int, peer string) node.GPU {
		p := node.ParsePCIePath(path)
		g := node.GPU{Index: i, UUID: node.UUID{byte(i + 1)}, ProductName: "Model (simulated)", PCI: p.Chain[len(p.Chain)-1], Path: p, NUMA: numa}
		if peer != "" {
			at, _ := node.ParsePCIAddress(peer) // a constant of this test
			g.NVLink = []node.NVLink{{Active: true, Kind: node.NVLinkToGPU, Peer: at}, {Link: 1, Active: true, Kind: node.NVLinkToGPU, Peer: at}}
		}
		return g
	}
	nic := node.ParsePCIePath("pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:02.0/0000:05:00.0")
	return node.Node{
		Simulated: true,
		GPUs: []node.GPU{
			gpu(0, "pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:00.0/0000:03:00.0", 0, "0000:04:00.0"),
			gpu(1, "pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:01.0/0000:04:00.0", 0, "0000:03:00.0"),
			gpu(2, "pci0000:40/0000:40:01.0/0000:41:00.0", node.UnknownNUMA, ""),
		},
		NICs: []node.NIC{{PCI: nic.Chain[3], Path: nic, NUMA: 0, RDMA: []string{"mlx5_0"}, NetDevs: []string{"eth0"}, Link: node.PCIeLink{Gen: 4, Width: 8, MaxGen: 4, MaxWidth: 16}}},
		NUMA: []node.NUMA{{ID: 0, CPUs: "0-31"}},
	}
}

func TestTopology(t *testing.T) {
	top := topologyOf(smallNode())
	var rows []string
	for _, row := range top.Matrix {
		var words []string
		for _, class := range row {
			words = append(words, class.String())
		}
		rows = append(rows, strings.Join(words, " "))
	}
	want := []string{"X NV2 UNKNOWN PIX", "NV2 X UNKNOWN PIX", "UNKNOWN UNKNOWN X UNKNOWN", "PIX PIX UNKNOWN X"}
	if d := cmp.Diff(want, rows); d != "" {
		t.Errorf("matrix (-want +got):\n%s", d)
	}
	var out bytes.Buffer
	top.Root = "/r"
	if err := writeTopo(&out, top); err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"simulated node at /r", "NIC0  PIX", "mlx5_0", "DEGRADED", "?", "0-31", "NODE"} {
		if !strings.Contains(out.String(), part) {
			t.Errorf("no %q in:\n%s", part, out.String())
		}
	}
}

func TestTopoWithoutDriver(t *testing.T) {
	root := filepath.Join(t.TempDir(), "node")
	if _, err := kerf(t, simCommand(), "start", "none", "--libdir", libraries(t), "--root", root); err != nil {
		t.Fatal(err)
	}
	noDaemon := func() (string, error) { return "", errors.New("no kerfd") }
	out, err := kerf(t, topoCommand(noDaemon), "--root", root, "--json")
	if err != nil || !strings.Contains(out, `"schema":"kerf.topo/v1"`) || !strings.Contains(out, "eth0") {
		t.Errorf("%s, %v", out, err)
	}
	if got := topoRoot("", noDaemon); got != "/" {
		t.Errorf("root without kerfd: %s", got)
	}
	if got := topoRoot("", func() (string, error) { return "/daemon", nil }); got != "/daemon" {
		t.Errorf("root with kerfd: %s", got)
	}
}

func TestSimLogPicture(t *testing.T) {
	const ms = time.Millisecond
	runs := []sim.Run{{PID: 5, Start: 100 * ms, End: 104 * ms, Rate: 0.4}, {PID: 7, Start: 101 * ms, End: 103 * ms, Rate: 0.6}, {Start: 104 * ms, End: 105 * ms, Rate: 1}}
	var got strings.Builder
	if err := writeSimLog(&got, 0, runs, 2); err != nil {
		t.Fatal(err)
	}
	want := "simulated GPU 0: 3 kernels, or pieces of them, in its log\npids 5 and 7 ran at once for 2ms\nPID  FROM  TO   SPEED\n7    0s    2ms  60%\n0    3ms   4ms  100%\n"
	if diff := cmp.Diff(want, got.String()); diff != "" {
		t.Error(diff)
	}
}
