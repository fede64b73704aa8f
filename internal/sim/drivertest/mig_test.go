package drivertest

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kerf-gpu/kerf/internal/sim"
)

// part is one of the parts of test/mig.c on a node.
func part(t *testing.T, built, root, name string, env ...string) *exec.Cmd {
	t.Helper()
	ptx, err := filepath.Abs(filepath.Join(repo, "internal/cuda/kernels.ptx"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), filepath.Join(built, "drivertest"), root, ptx, name)
	cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+filepath.Join(root, "usr/lib", triplet()), "ASAN_OPTIONS=detect_leaks=0")
	cmd.Env = append(cmd.Env, env...)
	cmd.Stderr = os.Stderr
	return cmd
}

// cutNode is a node of two A100: the first in MIG mode and cut in three, the second whole.
func cutNode(t *testing.T, built string) *sim.Node {
	t.Helper()
	p, err := sim.LoadProfile("testdata/mig.yaml")
	if err != nil {
		t.Fatal(err)
	}
	n, err := sim.Create(filepath.Join(t.TempDir(), "node"), p, filepath.Join(built, "lib/kerf/sim"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

const (
	whole = "A100 (simulated): 81225 MiB, 108 SMs gpu=<1> device=<1>\n"
	three = "A100 MIG 3g.40gb (simulated): 40192 MiB, 42 SMs gpu=<0> device=<m0>\n"
	two   = "A100 MIG 2g.20gb (simulated): 19968 MiB, 28 SMs gpu=<0> device=<m1>\n"
)

func TestMIGDevices(t *testing.T) {
	built := build(t, "gcc", "")
	n := cutNode(t, built)
	gpus := n.Status().GPUs
	short := func(text string) string { return strings.SplitN(text, "-", 3)[1] }
	mig := gpus[0].MIG
	names := strings.NewReplacer("<0>", gpus[0].UUID.Short(), "<1>", gpus[1].UUID.Short(), "<m0>", short(mig[0].String()), "<m1>", short(mig[1].String()))
	show := func(t *testing.T, want string, env ...string) {
		t.Helper()
		out, err := part(t, built, n.Root, "-mig-list", env...).Output()
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(names.Replace(want), string(out)); d != "" {
			t.Errorf("%v (-want +got):\n%s", env, d)
		}
	}
	for _, tc := range []struct{ visible, want string }{
		{mig[1].String(), "init 0\n" + two},
		{mig[1].String()[:12], "init 0\n" + two},
		{mig[1].String() + "," + mig[0].String(), "init 0\n" + two}, // one MIG device only: the first that is named
		{gpus[1].UUID.String() + "," + mig[0].String(), "init 0\n" + three},
		{gpus[0].UUID.String(), "init 0\n" + three}, // a card in MIG mode is its first instance
		{"0", "init 0\n" + three},
		{"1", "init 0\n" + whole},
		{gpus[1].UUID.String(), "init 0\n" + whole},
		{"MIG-00000000-0000-0000-0000-000000000000", "init 100\n"},
		{"MIG-", "init 100\n"},
		{"GPU-" + strings.TrimPrefix(mig[1].String(), "MIG-"), "init 100\n"},
		{"", "init 100\n"},
	} {
		show(t, tc.want, "CUDA_VISIBLE_DEVICES="+tc.visible)
	}
	show(t, "init 0\n"+three) // and no whole GPU beside a MIG device

	// A container has the capabilities of its own instance.
	hide := func(names ...string) {
		for _, name := range names {
			if err := os.Rename(filepath.Join(n.Root, "dev/nvidia-caps", name), filepath.Join(n.Root, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	hide("nvidia-cap12") // GPU instance 1, the 3g.40gb
	show(t, "init 100\n", "CUDA_VISIBLE_DEVICES="+mig[0].String())
	show(t, "init 0\n"+two)
	hide("nvidia-cap49", "nvidia-cap121") // compute instances of 5 and 13
	show(t, "init 0\n"+whole)
	show(t, "init 100\n", "CUDA_VISIBLE_DEVICES=0")
}

// TestMIGMemory: each instance has its memory, whatever the others do, and ends for good.
func TestMIGMemory(t *testing.T) {
	for _, flags := range []string{"", "-fsanitize=address,undefined -fno-sanitize-recover=all"} {
		t.Run(flags, func(t *testing.T) {
			built := build(t, "gcc", flags)
			n := cutNode(t, built)
			mig := n.Status().GPUs[0].MIG
			ends := []func(){}
			for i, want := range []string{"holds 39744 of 40192\n", "holds 19520 of 19968\n", "holds 9280 of 9728\n"} {
				_, end := hold(t, part(t, built, n.Root, "-mig-fill", "CUDA_VISIBLE_DEVICES="+mig[i].String()), want)
				ends = append(ends, end)
			}
			if st := n.Status().GPUs[0]; len(st.Processes) != 3 || st.Used != (39744+19520+9280+3*416)<<20 {
				t.Errorf("status %+v", st)
			}
			for _, end := range ends {
				end()
			}
			if out, err := part(t, built, n.Root, "-mig-gone", "CUDA_VISIBLE_DEVICES="+mig[2].String()).Output(); err != nil || string(out) != "ok\n" {
				t.Errorf("%v %s", err, out)
			}
		})
	}
}

// hold starts a part, and waits until it says want. end lets it go on to its end, and gives what more it says.
func hold(t *testing.T, cmd *exec.Cmd, want string) (*exec.Cmd, func()) {
	t.Helper()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(out)
	if line, err := lines.ReadString('\n'); line != want {
		t.Fatalf("said %q, %v; want %q", line, err, want)
	}
	return cmd, func() {
		t.Helper()
		fmt.Fprint(in, "\n")
		in.Close()
		rest, _ := io.ReadAll(lines)
		if err := cmd.Wait(); err != nil || len(rest) > 0 {
			t.Errorf("%v %s", err, rest)
		}
	}
}
