package monitor

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// What the kernel tells of the machine never taints, holds or moves a card, in any profile and mode.
func TestHostNeverTaintsCards(t *testing.T) {
	for name, p := range Profiles() {
		for _, kind := range HostKinds {
			for _, severity := range []Severity{SeverityCorrected, SeverityUncorrected, SeverityFatal} {
				d := newDevice(p)
				d.pass(hour)
				d.good()
				for range 10 {
					d.take(Fact{Kind: KindHost, Host: HostFact{Kind: kind, Severity: severity, PID: 7, Tenant: "pod a/b (c)", Text: "x"}})
					d.pass(time.Second)
				}
				v := d.verdict(ModeEvict)
				onCard := kind == HostOOM || kind == HostCrash || kind == HostPCIe
				if v.Level >= Hold || v.Refuse != "" || onCard && len(v.Taints) > 0 || v.Health != HealthGood {
					t.Errorf("%s: %s %s: %+v", name, severity, kind, v)
				}
			}
		}
	}
}

func TestHost(t *testing.T) {
	pod := "pod ns/p (main)"
	for _, tt := range []struct {
		name   string
		fact   HostFact
		device string // that a condition is on; empty: none
		level  Level
		notice NoticeKind // empty: none
	}{
		{"a tenant is killed", HostFact{Kind: HostOOM, PID: 7, Tenant: pod}, "", Healthy, NoticeOOM},
		{"somebody else is", HostFact{Kind: HostOOM, PID: 7}, "", Healthy, ""},
		{"a tenant crashes", HostFact{Kind: HostCrash, PID: 7, Tenant: pod}, "", Healthy, NoticeCrash},
		{"memory, corrected", HostFact{Kind: HostMemory, Severity: SeverityCorrected, Device: "mc0"}, "", Healthy, ""},
		{"memory, lost", HostFact{Kind: HostMemory, Severity: SeverityUncorrected, Device: "mc0", Text: "DIMM_A1"}, "memory:mc0", Degraded, NoticeRaised},
		{"link, corrected", HostFact{Kind: HostPCIe, Severity: SeverityCorrected, PCI: pci(1)}, "", Healthy, ""},
		{"link, lost", HostFact{Kind: HostPCIe, Severity: SeverityUncorrected, PCI: pci(1), Text: "x"}, uuid(1).String(), Suspect, NoticeRaised},
		{"link, fatal", HostFact{Kind: HostPCIe, Severity: SeverityFatal, PCI: pci(1), Text: "x"}, uuid(1).String(), Suspect, NoticeRaised},
		{"link of another device", HostFact{Kind: HostPCIe, Severity: SeverityFatal, PCI: pci(9)}, "", Healthy, ""},
		{"disk", HostFact{Kind: HostDisk, Severity: SeverityUncorrected, Device: "nvme0n1", Text: "EIO"}, "disk:nvme0n1", Degraded, NoticeRaised},
		{"disk of software", HostFact{Kind: HostDisk, Severity: SeverityUncorrected, Device: "loop7"}, "", Healthy, ""},
	} {
		m := newMachine(t, "nvidia", ModeEvict)
		for i := range 2 {
			m.take(m.devices[uuid(i).String()], Fact{Kind: KindSample}, m.moment())
		}
		m.Host(tt.fact)
		for _, d := range m.Report().Devices {
			want := Healthy
			if d.ID == tt.device {
				want = tt.level
			}
			if d.Level != want || d.Health != HealthGood {
				t.Errorf("%s: %s is %s, level %s, want %s", tt.name, d.ID, d.Health, d.Level, want)
			}
		}
		kinds := ""
		for _, n := range m.notices {
			kinds += string(n.Kind)
		}
		if kinds != string(tt.notice) {
			t.Errorf("%s: notices %q, want %q", tt.name, kinds, tt.notice)
		}
		if m.counts.host[hostCount{tt.fact.Kind, tt.fact.Severity}] != 1 {
			t.Errorf("%s: counted %v", tt.name, m.counts.host)
		}
	}
}

// A disk that stays without another error is well again, and one that goes on is not; nothing of it outlives a reboot as a hold.
func TestHostDiskClears(t *testing.T) {
	m := newMachine(t, "nvidia", ModeHold)
	fail := HostFact{Kind: HostDisk, Severity: SeverityUncorrected, Device: "sda", Text: "EIO"}
	disk := func() DeviceReport {
		all := m.Report().Devices
		return all[slices.IndexFunc(all, func(d DeviceReport) bool { return d.ID == "disk:sda" })]
	}
	for range 20 { // every 10 s for longer than the evidence must last
		m.Host(fail)
		m.pass(10 * time.Second)
		m.calm()
	}
	if d := disk(); d.Level != Degraded || d.Refuse != "" || d.Conditions[0].Count != 20 || !strings.Contains(d.Clears, "without another") {
		t.Fatalf("failing: %+v", d)
	}
	for range 6 {
		m.pass(10 * time.Second)
		m.calm()
	}
	if d := disk(); d.Level != Healthy {
		t.Errorf("a minute without an error: %+v", d)
	}
}
