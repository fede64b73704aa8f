package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kerf-gpu/kerf/cni"
	"github.com/kerf-gpu/kerf/cni/link"
	"github.com/kerf-gpu/kerf/internal/node"
)

func pci(bus, device uint8) node.PCIAddress { return node.PCIAddress{Bus: bus, Device: device} }

func TestPublishable(t *testing.T) {
	far := node.ParsePCIePath("/sys/devices/pci0000:10/0000:10:01.0/0000:11:00.0")
	near := node.ParsePCIePath("/sys/devices/pci0000:20/0000:20:01.0/0000:21:00.0")
	gpu := node.GPU{PCI: pci(0x22, 0), Path: node.ParsePCIePath("/sys/devices/pci0000:20/0000:20:01.0/0000:22:00.0")}
	whole := node.NIC{PCI: pci(0x11, 0), Path: far, NUMA: -1, Driver: "mlx5_core", NetDevs: []string{"ens1"}, RDMA: []string{"mlx5_0"}, LinkType: "ethernet"}
	parent := node.NIC{PCI: pci(0x12, 0), NUMA: -1, Driver: "igb", NetDevs: []string{"ens2"}, VFs: []node.VF{
		{Index: 0, PCI: pci(0x12, 16), Driver: "igbvf", NetDevs: []string{"ens2v0"}},
		{Index: 1, PCI: pci(0x12, 17), Driver: "vfio-pci"},
		{Index: 2, PCI: pci(0x12, 18)},
		{Index: 3, PCI: pci(0x12, 19), Driver: "igbvf"}, // in a pod: no link is in sight
	}}
	direct := whole
	direct.DataDirect = &node.Place{Path: near}
	unbound := whole
	unbound.Driver = ""
	for name, tt := range map[string]struct {
		nics      []node.NIC
		config    NICsConfig
		uplinks   []string
		simulated bool
		want      string
	}{
		"whole, and VFs":              {nics: []node.NIC{whole, parent}, want: "nic-0000-11-00-0 vf-0000-12-10-0 vf-0000-12-13-0"},
		"the node's own network":      {nics: []node.NIC{whole, parent}, uplinks: []string{"ens1"}, want: "vf-0000-12-10-0 vf-0000-12-13-0"},
		"a PF that is the uplink":     {nics: []node.NIC{parent}, uplinks: []string{"ens2"}},
		"a VF that is the uplink":     {nics: []node.NIC{parent}, uplinks: []string{"ens2v0"}, want: "vf-0000-12-13-0"},
		"selected by address":         {nics: []node.NIC{whole, parent}, config: NICsConfig{PFs: []string{"0000:11:00.0"}}, want: "nic-0000-11-00-0"},
		"selected by name":            {nics: []node.NIC{whole, parent}, config: NICsConfig{PFs: []string{"ens2"}}, want: "vf-0000-12-10-0 vf-0000-12-13-0"},
		"no driver":                   {nics: []node.NIC{unbound}},
		"simulated":                   {nics: []node.NIC{whole}, simulated: true},
		"simulated, with a stand-in":  {nics: []node.NIC{whole, parent}, config: NICsConfig{StandIn: true}, simulated: true, want: "nic-0000-11-00-0 nic-0000-12-00-0"},
		"near by its direct function": {nics: []node.NIC{direct}, want: "nic-0000-11-00-0@0000:20:01.0"},
	} {
		var got []string
		for _, d := range publishable(node.Node{GPUs: []node.GPU{gpu}, NICs: tt.nics, Simulated: tt.simulated}, tt.config, tt.uplinks) {
			text := d.Name()
			if d.Path.RootPort() == pci(0x20, 1) {
				text += "@" + d.Path.RootPort().String()
			}
			if d.Simulated && d.RDMA {
				t.Errorf("%s: %s: a stand-in has no RDMA device", name, d.Name())
			}
			got = append(got, text)
		}
		if diff := cmp.Diff(tt.want, strings.Join(got, " ")); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestUnavailable(t *testing.T) {
	record := func(device uint8, phase cni.Phase, network, note string) cni.Record {
		return cni.Record{Device: link.Device{PCI: pci(0x11, device)}, Phase: phase, Note: note,
			Spec: cni.Spec{Owner: cni.Owner{Key: cni.Key{ContainerID: "sandbox"}, Network: network, Pod: "ns/pod"}}}
	}
	got := unavailable([]cni.Record{
		record(1, cni.Attached, claimNetwork, ""),
		record(2, cni.Attached, "sriov", ""),
		record(3, cni.Dirty, claimNetwork, "its PF would not take back trust"),
		record(4, cni.Stranded, "sriov", "its link is nowhere"),
		record(5, cni.Attaching, "sriov", ""), // it takes milliseconds
		record(6, cni.Detaching, claimNetwork, ""),
	}, []string{"0000:11:07.0"})
	want := map[string]string{
		"0000:11:02.0": "network sriov has it in pod ns/pod",
		"0000:11:03.0": "its PF would not take back trust",
		"0000:11:04.0": "its link is nowhere",
		"0000:11:07.0": "the record of who has it is damaged",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestNICsConfig(t *testing.T) {
	for _, tt := range []struct {
		config         NICsConfig
		dra, simulated bool
		want           string
	}{
		{NICsConfig{}, false, false, ""},
		{NICsConfig{Enabled: true}, true, false, ""},
		{NICsConfig{Enabled: true, StandIn: true}, true, true, ""},
		{NICsConfig{Enabled: true}, false, false, "switch dra on, or use kerf-cni"},
		{NICsConfig{Enabled: true, StandIn: true}, true, false, "stand-ins are for simulated nodes"},
	} {
		err := tt.config.validate(tt.dra, tt.simulated)
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%+v: %v, want %q", tt.config, err, tt.want)
		}
	}
}
