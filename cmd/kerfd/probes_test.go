package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/kerf-gpu/kerf/cmd/internal/control"
	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/monitor"
	"github.com/kerf-gpu/kerf/monitor/bpf"
)

func TestHostFact(t *testing.T) {
	tenantOf := func(pid int) string { return map[int]string{7: "pod a/b (c)"}[pid] }
	name := func(number string) string { return map[string]string{"259:0": "nvme0n1"}[number] }
	for _, tt := range []struct {
		name  string
		event bpf.Event
		want  monitor.HostFact
	}{
		{"oom", bpf.Event{Kind: bpf.OOM, PID: 7}, monitor.HostFact{Kind: monitor.HostOOM, PID: 7, Tenant: "pod a/b (c)",
			Text: "the kernel killed it for lack of host memory: its container's limit, or the machine's"}},
		{"crash of nobody's", bpf.Event{Kind: bpf.Crash, PID: 8, Sig: syscall.SIGSEGV}, monitor.HostFact{Kind: monitor.HostCrash, PID: 8, Text: "it crashed: SIGSEGV (segmentation fault)"}},
		{"memory", bpf.Event{Kind: bpf.Memory, MC: 1, Level: bpf.Uncorrected, Label: "DIMM_A1"}, monitor.HostFact{Kind: monitor.HostMemory,
			Severity: monitor.SeverityUncorrected, Device: "mc1", Text: "uncorrected error of DIMM_A1"}},
		{"memory without a name", bpf.Event{Kind: bpf.Memory}, monitor.HostFact{Kind: monitor.HostMemory,
			Severity: monitor.SeverityCorrected, Device: "mc0", Text: "corrected error of a module that the board does not name"}},
		{"pcie", bpf.Event{Kind: bpf.AER, PCI: "0000:b3:00.0", Level: bpf.Fatal, Bits: 0x10}, monitor.HostFact{Kind: monitor.HostPCIe,
			Severity: monitor.SeverityFatal, PCI: node.PCIAddress{Bus: 0xb3}, Text: "fatal error, status 0x10"}},
		{"pcie, no address", bpf.Event{Kind: bpf.AER, PCI: "acpi", Bits: 1}, monitor.HostFact{Kind: monitor.HostPCIe, Severity: monitor.SeverityCorrected, Text: "corrected error, status 0x1"}},
		{"disk", bpf.Event{Kind: bpf.Block, Disk: "259:0", Errno: unix.EIO}, monitor.HostFact{Kind: monitor.HostDisk, Severity: monitor.SeverityUncorrected, Device: "nvme0n1", Text: "EIO"}},
	} {
		if diff := cmp.Diff(tt.want, hostFact(tt.event, tenantOf, name)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

func TestCumulate(t *testing.T) {
	below, all := cumulate([]uint64{1, 0, 2})
	if diff := cmp.Diff(map[float64]uint64{1e-6: 1, 2e-6: 1, 4e-6: 3}, below); diff != "" || all != 3 {
		t.Errorf("all %d (-want +got):\n%s", all, diff)
	}
}

// A process in a slice that crashes is told with its tenant, one that is killed or ends is not; kerfd's cards are what they were.
func TestProbesTellOfCrash(t *testing.T) {
	tracefs := t.TempDir()
	if err := unix.Mount("tracefs", tracefs, "tracefs", 0, ""); err != nil {
		t.Skipf("tracefs cannot be mounted: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(tracefs, 0); err != nil {
			t.Error(err)
		}
	})
	config := filepath.Join(t.TempDir(), "kerfd.yaml")
	if err := os.WriteFile(config, []byte("logLevel: debug\nmonitor: {probes: {tracefs: "+tracefs+"}}"), 0o600); err != nil {
		t.Fatal(err)
	}
	d := startDaemon(t, "--config", config)
	health := d.health()
	i := slices.IndexFunc(health.Probes, func(p control.Probe) bool { return p.Name == "crash" })
	if len(health.Probes) <= len(bpf.Names()) || i < 0 {
		t.Fatalf("probes %+v", health.Probes)
	}
	if !health.Probes[i].On {
		t.Skipf("this kernel has no probe for crashes: %s", health.Probes[i].Reason)
	}
	for _, end := range []syscall.Signal{syscall.SIGKILL, syscall.SIGSEGV} {
		program := d.sliced(spin, "--kernel", "1000", "--seconds", "0")
		if err := program.Start(); err != nil {
			t.Fatal(err)
		}
		pid := 0
		d.eventually("the program has a session", func() bool {
			for _, s := range d.state().Shares {
				for _, session := range s.Sessions {
					pid = session.PID
				}
			}
			return pid != 0
		})
		if err := syscall.Kill(pid, end); err != nil {
			t.Fatal(err)
		}
		_ = program.Wait() // by that signal
		d.eventually("its share ends", func() bool { return len(d.state().Shares) == 0 })
		if end == syscall.SIGSEGV {
			d.eventually("the crash is told", func() bool {
				return d.health().Probes[i].Hits == 1 && strings.Contains(d.log.String(), "health: crash")
			})
			for _, want := range []string{fmt.Sprintf("pid=%d", pid), "SIGSEGV", "tenant=\"user 0, "} {
				if !strings.Contains(d.log.String(), want) {
					t.Errorf("kerfd's log has no %s", want)
				}
			}
		}
	}
	for _, v := range d.health().Devices {
		if v.Level != monitor.Healthy || len(v.Taints) != 0 {
			t.Errorf("%s: %+v", v.ID, v.Verdict)
		}
	}
}

// Each launch of a program in a slice is counted once, as often as the program says that it launched (simulated driver).
func TestProbesCountCalls(t *testing.T) {
	config := filepath.Join(t.TempDir(), "kerfd.yaml")
	if err := os.WriteFile(config, []byte("monitor: {probes: {calls: true, budget: 1}}"), 0o600); err != nil {
		t.Fatal(err)
	}
	d := startDaemon(t, "--config", config)
	row := func(name string) control.Probe {
		probes := d.health().Probes
		return probes[slices.IndexFunc(probes, func(p control.Probe) bool { return p.Name == name })]
	}
	if r := row("cuda-launch"); !r.On {
		t.Skipf("no uprobes here: %s", r.Reason)
	}
	out, err := d.sliced(spin, "--kernel", "1000", "--seconds", "1").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	_, report, _ := strings.Cut(string(out), "spin: ready")
	_, report, _ = strings.Cut(report, "spin: ")
	var launches uint64
	if _, err := fmt.Sscanf(report, "%d launches", &launches); err != nil || launches == 0 {
		t.Fatalf("%v: %s", err, out)
	}
	if r := row("cuda-launch"); r.Hits != launches || r.PerRun <= 0 {
		t.Errorf("%+v, want %d hits", r, launches)
	}
	if r := row("cuda-sync"); r.Hits == 0 {
		t.Errorf("%+v, want hits: the program waits for its kernels", r)
	}
	d.eventually("its share ends", func() bool { return len(d.state().Shares) == 0 })
}

func (d *daemon) health() control.Health {
	d.t.Helper()
	h, err := control.Dial(control.Socket(d.dir)).Health(context.Background())
	if err != nil {
		d.t.Fatal(err)
	}
	return h
}
