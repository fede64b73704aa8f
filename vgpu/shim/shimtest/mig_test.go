package shimtest

import (
	"encoding/hex"
	"fmt"
	"strings"
	"testing"

	"github.com/kerf-gpu/kerf/internal/sim"
	"github.com/kerf-gpu/kerf/vgpu/region"
)

// migCard is the GPU of profile a100x8 that is cut into 3g.40gb, 2g.20gb and 1g.10gb.
const migCard = 7

const (
	migContext = 416 * mib
	migMemory  = 19968 * mib // of the 2g.20gb
)

// capabilities are those of a GPU instance and its compute instance, by the driver's numbers.
func capabilities(gpu, gi int) []int {
	first := 3 + gpu*135 + gi*9
	return []int{first, first + 1}
}

// migTenant has the 2g.20gb of the card; all says that its container shows the other instances too.
func migTenant(t *testing.T, s *sim.Node, v variant, all bool) (*tenantNode, *share) {
	t.Helper()
	n := tenantOn(t, s, v, 0)
	n.gpus, n.caps = []int{migCard}, capabilities(migCard, 5)
	if all {
		n.gpus = []int{0, 6, migCard}
		n.caps = append(n.caps, append(capabilities(migCard, 1), capabilities(migCard, 13)...)...)
	}
	mig := s.Status().GPUs[migCard].MIG[1]
	return n, n.share(t, "mig", grant{uuid: mig, limit: migMemory, context: migContext, flags: region.DeviceMIG})
}

// TestMIGDevice: a share of a MIG device shows that one device, whatever else is in the container, and the tenant's own choice is
// read within it.
func TestMIGDevice(t *testing.T) {
	s := simNode(t, "a100x8")
	gpus := s.Status().GPUs
	mig := gpus[migCard].MIG
	bin := program(t, "behave", "behave.c")
	own := fmt.Sprintf("%s %d\n", hex.EncodeToString(mig[1][:]), migMemory)
	for _, all := range []bool{false, true} {
		n, _ := migTenant(t, s, plain, all)
		for _, c := range []struct{ visible, want string }{
			{"-", own},
			{"0", own},
			{mig[1].String(), own},
			{mig[1].String()[:13], own},
			{"1", "FAIL cuInit: 100\n"},
			{mig[0].String(), "FAIL cuInit: 100\n"},
			{gpus[migCard].UUID.String(), "FAIL cuInit: 100\n"},
		} {
			var env []string
			if c.visible != "-" {
				env = []string{"CUDA_VISIBLE_DEVICES=" + c.visible}
			}
			want := c.want
			if want == own {
				want += "env " + c.visible + "\nok\n"
			}
			if got := n.view(bin, "devices").run(t, "", env...).out; got != want {
				t.Errorf("all %v, %s: got\n%swant\n%s", all, c.visible, got, want)
			}
		}
	}
}

// TestMIGInstanceGone: a share whose instance is not there, or whose page does not say that it is MIG's, gives no GPU.
func TestMIGInstanceGone(t *testing.T) {
	s := simNode(t, "a100x8")
	bin := program(t, "behave", "behave.c")
	hidden, _ := migTenant(t, s, plain, false)
	hidden.caps = nil
	unsaid, sh := migTenant(t, s, plain, false)
	sh.policy.Page.Device[0].Flags = 0
	for what, n := range map[string]*tenantNode{"capabilities hidden": hidden, "flag not set": unsaid} {
		if got := n.view(bin, "devices").run(t, "").out; got != "FAIL cuInit: 100\n" {
			t.Errorf("%s: %q", what, got)
		}
	}
}

// TestMIGLimit: the accounts of a MIG device reach the instance's memory and no further, beside a neighbour on the same card.
func TestMIGLimit(t *testing.T) {
	s := simNode(t, "a100x8")
	n, sh := migTenant(t, s, plain, false)
	bin := program(t, "mem", "mem.c")
	for _, class := range []string{"linear", "managed", "async", "vmm", "array", "graph"} {
		t.Run(class, func(t *testing.T) {
			if r := n.view(bin, "dlopen", class).run(t, "").ok(t); r.out != "ok\n" {
				t.Errorf("%s%s", r.out, r.errs)
			}
			if left := sh.charged(0); left != 0 {
				t.Errorf("%d bytes are charged after the process ended in order", left)
			}
		})
	}
	cardIsEmpty(t, s)
}

// TestMIGSanitized: the same under sanitizers.
func TestMIGSanitized(t *testing.T) {
	flags := strings.Fields(sanitized.flags)
	n, _ := migTenant(t, simNode(t, "a100x8"), sanitized, false)
	for _, argv := range [][]string{
		{program(t, "behave-sanitized", "behave.c", flags...), "devices"},
		{program(t, "mem-sanitized", "mem.c", flags...), "dlopen", "linear"},
		{program(t, "nvml-sanitized", "nvml.c", flags...), "MIG-nonsense", "MIG-00000000-0000-0000-0000-000000000000"},
	} {
		n.view(argv...).run(t, "", "ASAN_OPTIONS=detect_leaks=0").ok(t)
	}
}

// TestMIGNVML: NVML shows the card, with the memory of the instance and the one MIG device; the processes of others are not there.
func TestMIGNVML(t *testing.T) {
	s := simNode(t, "a100x8")
	gpus := s.Status().GPUs
	mig := gpus[migCard].MIG
	nvml, behave := program(t, "nvml", "nvml.c"), program(t, "behave", "behave.c")
	mine, _ := migTenant(t, s, plain, true)
	other := tenantOn(t, s, plain, 0)
	other.gpus, other.caps = []int{migCard}, capabilities(migCard, 1)
	other.share(t, "other", grant{uuid: mig[0], limit: 1 << 30, context: migContext, flags: region.DeviceMIG})
	pids := map[*tenantNode]int{}
	for _, n := range []*tenantNode{mine, other} {
		cmd := n.view(behave, "hold").command(t)
		in, out := pipes(t, cmd)
		expectLine(t, out, "holding")
		pids[n] = cmd.Process.Pid
		t.Cleanup(func() {
			fmt.Fprintln(in, "end")
			cmd.Wait()
		})
	}
	const held = migContext + 16*mib
	list := fmt.Sprintf("%d:%d\n", pids[mine], held)
	out := mine.view(nvml, mig[1].String(), mig[0].String(), gpus[migCard].UUID.String(), gpus[0].UUID.String()).run(t, "").ok(t).out
	for _, want := range []string{
		"count 0 1\n",
		fmt.Sprintf("index 0: %s 0 %d %d %d %d %d 0\n", gpus[migCard].UUID, migMemory, held, migMemory-held, migMemory, held),
		"\nnvmlDeviceGetComputeRunningProcesses_v3 asked 7 1 got 0 " + list,
		fmt.Sprintf("mig 0: %s 0 %d %d of it\n", mig[1], migMemory, held),
		"mig nvmlDeviceGetComputeRunningProcesses_v3 asked 7 1 got 0 " + list,
		"uuid " + mig[1].String() + ": 0\n",
		"uuid " + mig[0].String() + ": 6\n",
		"uuid " + gpus[migCard].UUID.String() + ": 0\n",
		"uuid " + gpus[0].UUID.String() + ": 6\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}
	if strings.Contains(out, "mig 1") || strings.Contains(out, fmt.Sprint(pids[other])) {
		t.Errorf("another's instance or process shows in\n%s", out)
	}
}
