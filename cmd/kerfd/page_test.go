package main

import (
	"encoding/json"
	"log/slog"
	"net"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kerf-gpu/kerf/cmd/internal/control"
	"github.com/kerf-gpu/kerf/cmd/internal/page"
	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/monitor"
	"github.com/kerf-gpu/kerf/vgpu/arbiter"
	"github.com/kerf-gpu/kerf/vgpu/ledger"
)

func TestPageState(t *testing.T) {
	one, other := node.UUID{1}, node.UUID{2}
	root := func(bus string) node.PCIePath { return node.PCIePath{Root: "pci0000:" + bus} }
	n := node.Node{
		GPUs: []node.GPU{{Index: 0, UUID: one, NUMA: 0, Path: root("10")}, {Index: 1, UUID: other, NUMA: 1, Path: root("20")}},
		NICs: []node.NIC{{RDMA: []string{"mlx5_0"}, NUMA: 0, Path: root("11")}, {NetDevs: []string{"eth0"}, NUMA: 1, Path: root("21")}},
	}
	top := control.State{Simulated: true, GPUs: []control.GPU{{Index: 0, UUID: one, Memory: 80 * node.GiB}, {Index: 1, UUID: other, Error: "no answer"}},
		Shares: []control.Share{
			{ShareState: arbiter.ShareState{ID: "secret-id", Devices: []arbiter.DeviceState{{UUID: one, Limit: node.GiB, Charged: 3, Implicit: 4}}, Lease: &arbiter.LeaseState{Lease: "runs", Got: 40}},
				Holder: ledger.Holder{Door: ledger.DoorRun, UID: 7, PID: 4711, Command: "/opt/bin/train --token=hunter2"}},
			{ShareState: arbiter.ShareState{ID: "secret-id", Devices: []arbiter.DeviceState{{UUID: other, Swap: &arbiter.SwapState{Out: 5}}}},
				Inside: []control.Container{{Namespace: "team", Pod: "job", Name: "main", ID: "secret-id"}}},
		}}
	health := control.Health{Report: monitor.Report{Devices: []monitor.DeviceReport{
		{Device: monitor.Device{ID: one.String(), Index: 0}, Verdict: monitor.Verdict{Level: monitor.Healthy, Health: monitor.HealthGood}},
		{Device: monitor.Device{ID: other.String(), Index: 1}, Verdict: monitor.Verdict{Level: monitor.Reset, Health: monitor.HealthBad, Reason: "Xid 79", Clears: "a reset"}},
	}}}
	p := pageOf("n1", top, n, health, []control.Pool{{Name: "fast", Kind: "xfs", Total: 10}})

	var tenants []string
	for _, g := range p.GPUs {
		for _, tenant := range g.Tenants {
			tenants = append(tenants, tenant.Name)
		}
	}
	for _, check := range []struct{ what, diff string }{
		{"tenants", cmp.Diff([]string{"user 7: train", "pod team/job (main)"}, tenants)},
		{"links", cmp.Diff([]page.Link{{GPU: 0, NIC: "mlx5_0", Class: "NODE"}, {GPU: 1, NIC: "eth0", Class: "NODE"}}, p.Links)},
		{"faults", cmp.Diff([]page.Fault{{Device: other.String(), GPU: 1, Level: "reset", Health: health.Devices[1].Health.String(), Reason: "Xid 79", Clears: "a reset"}}, p.Faults)},
		{"pools", cmp.Diff([]page.Pool{{Name: "fast", Backend: "xfs", Total: 10}}, p.Pools)},
		{"GPU 1", cmp.Diff("reset, no answer", p.GPUs[1].Level+", "+p.GPUs[1].Unknown)},
		{"memory", cmp.Diff([]node.Bytes{7, 5}, []node.Bytes{p.GPUs[0].Tenants[0].Used, p.GPUs[1].Tenants[0].Swapped})},
	} {
		if check.diff != "" {
			t.Errorf("%s (-want +got):\n%s", check.what, check.diff)
		}
	}
	text, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"hunter2", "4711", "secret-id"} {
		if strings.Contains(string(text), secret) {
			t.Errorf("the page tells %s", secret)
		}
	}
}

// TestPageTaken: another program's port costs the page, not the node.
func TestPageTaken(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	k := &core{config: Config{Page: PageConfig{Listen: taken.Addr().String()}}, control: &server{}}
	k.openPage(slog.New(slog.DiscardHandler))
	if k.page != nil || k.control.page != "" {
		t.Errorf("a page at %s, where another listens", k.control.page)
	}
}
