package shimtest

import (
	"fmt"
	"strings"
	"testing"
)

// TestNVML: a tenant with one GPU of eight, while a process of its own and one of another share use that GPU.
func TestNVML(t *testing.T) {
	s := simNode(t, "h200x8")
	gpus := s.Status().GPUs
	nvml, behave := program(t, "nvml", "nvml.c"), program(t, "behave", "behave.c")

	mine := tenantOn(t, s, plain, 8)
	own := mine.share(t, "mine", grant{uuid: gpus[3].UUID, limit: 4 << 30, context: contextBytes})
	other := tenantOn(t, s, plain, 8)
	other.share(t, "other", grant{uuid: gpus[3].UUID, limit: 8 << 30, context: contextBytes})

	pid := map[*tenantNode]int{}
	for _, n := range []*tenantNode{mine, other} {
		cmd := n.view(behave, "hold").command(t)
		in, out := pipes(t, cmd)
		expectLine(t, out, "holding")
		pid[n] = cmd.Process.Pid
		t.Cleanup(func() {
			fmt.Fprintln(in, "end")
			cmd.Wait()
		})
	}
	if own.charged(0) != contextBytes+16*mib {
		t.Errorf("%d bytes charged", own.charged(0))
	}
	out := mine.view(nvml, gpus[3].UUID.String(), gpus[2].UUID.String(), "GPU-nonsense").run(t, "").ok(t).out
	held := fmt.Sprintf("%d:%d", pid[mine], contextBytes+16*mib)
	for _, want := range []string{
		"count 0 1\n",
		fmt.Sprintf("index 0: %s 0 %d %d %d %d %d 0\n", gpus[3].UUID, 4<<30, contextBytes+16*mib, 4<<30-contextBytes-16*mib, 4<<30, contextBytes+16*mib),
		"index 1: 2\n", // no such index
		"nvmlDeviceGetComputeRunningProcesses asked 7 1 got 0 " + held + "\n",
		"nvmlDeviceGetComputeRunningProcesses_v2 asked 7 1 got 0 " + held + "\n",
		"nvmlDeviceGetComputeRunningProcesses_v3 asked 7 1 got 0 " + held + "\n",
		"nvmlDeviceGetGraphicsRunningProcesses_v3 asked 0 0 got 0\n",
		"nvmlDeviceGetMPSComputeRunningProcesses_v3 asked 0 0 got 0\n",
		"uuid " + gpus[3].UUID.String() + ": 0\n",
		"uuid " + gpus[2].UUID.String() + ": 6\n",
		"uuid GPU-nonsense: ",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}
	if strings.Contains(out, fmt.Sprint(pid[other])) {
		t.Errorf("process %d of another share shows in\n%s", pid[other], out)
	}
}

// TestVendorNVML: without a card NVIDIA's NVML does not start, through the shim as without it.
func TestVendorNVML(t *testing.T) {
	nvml := program(t, "nvml", "nvml.c")
	for _, v := range vendorDrivers {
		t.Run(v.branch, func(t *testing.T) {
			n := vendorTenant(t, v)
			got, want := n.view(nvml).run(t, ""), n.direct(t).view(nvml).run(t, "")
			if got.out != want.out || got.code != want.code || got.errs != want.errs {
				t.Errorf("through the shim: %d %s%s\ndirectly: %d %s%s", got.code, got.out, got.errs, want.code, want.out, want.errs)
			}
			names := exports(t, v.library(t, "libnvidia-ml"), "nvml")
			if len(names) < 300 {
				t.Errorf("NVIDIA's library exports %d names", len(names))
			}
			ours := intercepted(t, "nvml.def")
			resolve := program(t, "resolve", "resolve.c")
			for i, line := range lines(n.view(resolve, "nvml").run(t, strings.Join(names, "\n")).ok(t).out) {
				library := "libkerfreal-nvidia-ml.so.1"
				if ours[names[i]] {
					library = "libnvidia-ml.so.1"
				}
				if want := names[i] + "\t" + names[i] + "\t" + library; line != want {
					t.Errorf("dlsym through the shim: %q, want %q", line, want)
				}
			}
		})
	}
}
