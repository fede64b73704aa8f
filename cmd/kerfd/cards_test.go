package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

func TestDivide(t *testing.T) {
	third := 3
	cards := []CardConfig{
		{Match: CardMatch{Index: &third}, Mode: share.ModeExclusive},
		{Match: CardMatch{Product: "a100"}, Mode: share.ModeMIG},
		{Match: CardMatch{UUID: "gpu-01000000-0000-0000-0000-000000000000"}, Mode: share.ModeVGPU},
		{Mode: share.ModeOvercommit, OvercommitPercent: 150},
	}
	mig := node.MIG{Capable: true, Enabled: true}
	for _, tt := range []struct {
		name  string
		cards []CardConfig
		gpu   node.GPU
		mode  share.Mode
		fault string
	}{
		{"by default", nil, node.GPU{}, share.ModeVGPU, ""},
		{"MIG is on, nothing is configured", nil, node.GPU{MIG: mig}, share.ModeMIG, ""},
		{"by index", cards, node.GPU{Index: 3, ProductName: "NVIDIA A100"}, share.ModeExclusive, ""},
		{"by product", cards, node.GPU{ProductName: "NVIDIA A100-SXM4-80GB", MIG: mig}, share.ModeMIG, ""},
		{"by UUID", cards, node.GPU{UUID: node.UUID{1}}, share.ModeVGPU, ""},
		{"the rest", cards, node.GPU{ProductName: "NVIDIA H200"}, share.ModeOvercommit, ""},
		{"MIG is off", cards, node.GPU{ProductName: "NVIDIA A100"}, share.ModeMIG, "nvidia-smi -i 0 -mig 1"},
		{"MIG is on and not wanted", cards, node.GPU{ProductName: "NVIDIA H200", MIG: mig}, share.ModeOvercommit, "nvidia-smi -i 0 -mig 0"},
		{"lost", nil, node.GPU{Fault: node.Fault{Lost: true}}, share.ModeVGPU, "lost"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := divide(tt.cards, tt.gpu, 80*node.GiB)
			if got.Mode != tt.mode || (got.Fault == "") != (tt.fault == "") || !strings.Contains(got.Fault, tt.fault) {
				t.Errorf("mode %s, fault %q; want %s and %q", got.Mode, got.Fault, tt.mode, tt.fault)
			}
		})
	}
}

func TestForeignInstances(t *testing.T) {
	m := node.MIG{
		Profiles:  []node.MIGProfile{{Name: "3g.40gb", Size: 4}, {Name: "1g.10gb", Size: 1}},
		Instances: []node.MIGInstance{{Profile: "3g.40gb"}, {Profile: "1g.10gb", Start: 4}, {Profile: "1g.10gb", Start: 5}},
	}
	ours := []share.Device{{Placement: &share.Placement{Profile: "1g.10gb", Start: 4, Size: 1}}, {}}
	want := []share.Placement{{Profile: "3g.40gb", Size: 4}, {Profile: "1g.10gb", Start: 5, Size: 1}}
	if diff := cmp.Diff(want, foreign(placements(m), ours)); diff != "" {
		t.Error(diff)
	}
}
