package cni_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kerf-gpu/kerf/cni"
	"github.com/kerf-gpu/kerf/cni/link"
	"github.com/kerf-gpu/kerf/internal/node"
)

var pf0 = node.PCIAddress{Bus: 0x24}

func TestPlanVFs(t *testing.T) {
	type wish = map[node.PCIAddress]int
	has := func(n int, was *int) cni.PF {
		return cni.PF{Device: link.Device{PCI: pf0, Name: "eth2", NumVFs: n, VF: -1}, Max: 7, Was: was}
	}
	uplink, inUse, vf := has(0, nil), has(4, new(0)), has(0, nil)
	uplink.Uplink, inUse.InUse, vf.Device.PF = true, 2, node.PCIAddress{Bus: 0x23}
	for name, tt := range map[string]struct {
		want    wish
		pf      cni.PF
		change  *cni.VFChange
		refused string
	}{
		"made":               {wish{pf0: 4}, has(0, nil), &cni.VFChange{PF: pf0, To: 4}, ""},
		"there already":      {wish{pf0: 4}, has(4, nil), nil, ""},
		"another number":     {wish{pf0: 4}, has(2, new(0)), &cni.VFChange{PF: pf0, From: 2, To: 4}, ""},
		"cut off between":    {wish{pf0: 4}, has(0, new(2)), &cni.VFChange{PF: pf0, To: 4}, ""},
		"not wanted":         {nil, has(4, new(0)), &cni.VFChange{PF: pf0, From: 4, Last: true}, ""},
		"as it was, forgets": {nil, has(2, new(2)), &cni.VFChange{PF: pf0, From: 2, To: 2, Last: true}, ""},
		"never ours":         {nil, has(4, nil), nil, ""},
		"somebody else's":    {wish{pf0: 4}, has(2, nil), nil, "Kerf did not make"},
		"too many":           {wish{pf0: 8}, has(0, nil), nil, "it can have 7"},
		"uplink":             {wish{pf0: 4}, uplink, nil, "default route"},
		"in use":             {wish{pf0: 2}, inUse, nil, "pods have 2 of its 4 VFs"},
		"in use, not wanted": {nil, inUse, nil, "pods have 2"},
		"a VF":               {wish{pf0: 2}, vf, nil, "a VF itself"},
		"not there":          {wish{pf0: 2, {Bus: 1}: 3}, has(2, nil), nil, "0000:01:00.0: there is no such PCI device"},
	} {
		changes, refused := cni.PlanVFs(tt.want, []cni.PF{tt.pf})
		var want []cni.VFChange
		if tt.change != nil {
			want = []cni.VFChange{*tt.change}
		}
		if diff := cmp.Diff(want, changes); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		if text := fmt.Sprint(refused); (tt.refused == "") != (len(refused) == 0) || !strings.Contains(text, tt.refused) {
			t.Errorf("%s: refused %s, want %q", name, text, tt.refused)
		}
	}
}

// A sysfs in a directory: what is asked of it is in its files.
func TestApplyVFs(t *testing.T) {
	v := cni.VFs{Dir: filepath.Join(t.TempDir(), "vfs"), Host: link.Host{Sys: t.TempDir()}}
	file := filepath.Join(v.Host.Sys, "bus/pci/devices", pf0.String(), "sriov_numvfs")
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, f := range []struct{ name, text string }{{"sriov_numvfs", "0"}, {"sriov_totalvfs", "7"}} {
		if err := os.WriteFile(filepath.Join(filepath.Dir(file), f.name), []byte(f.text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	reach := func(want map[node.PCIAddress]int, number string) {
		t.Helper()
		for range 2 { // the second time there is nothing to do
			pfs, err := v.Look(want, nil)
			if err != nil {
				t.Fatal(err)
			}
			changes, refused := cni.PlanVFs(want, pfs)
			if len(refused) > 0 {
				t.Fatal(refused)
			}
			for _, c := range changes {
				if err := v.Apply(c); err != nil {
					t.Fatal(err)
				}
			}
		}
		if got, _ := os.ReadFile(file); string(got) != number {
			t.Errorf("numvfs %s, want %s", got, number)
		}
	}
	reach(map[node.PCIAddress]int{pf0: 4}, "4")
	reach(map[node.PCIAddress]int{pf0: 6}, "6")
	if was := v.Was(pf0); was == nil || *was != 0 {
		t.Errorf("was %v, want 0: what there was before the first change", was)
	}
	reach(nil, "0")
	if v.Was(pf0) != nil {
		t.Error("it is as it was, and a record is left")
	}
	if err := v.Apply(cni.VFChange{PF: node.PCIAddress{Bus: 9}, To: 2}); err == nil || !strings.Contains(err.Error(), "0000:09:00.0") {
		t.Errorf("a PF that is gone: %v", err)
	}
}

func TestBelow(t *testing.T) {
	all := []link.Link{{Index: 1, Name: "bond0.5", Parent: 2}, {Index: 2, Name: "bond0"}, {Index: 3, Name: "eth0", Master: 2}, {Index: 4, Name: "eth1"}}
	if diff := cmp.Diff([]int{1, 2, 3}, link.Below(all, []int{1})); diff != "" {
		t.Error(diff)
	}
}
