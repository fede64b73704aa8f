package dra

import (
	"testing"

	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

// TestForeignPlacements: where somebody else's MIG instance lies, nothing is offered.
func TestForeignPlacements(t *testing.T) {
	for _, tt := range []struct {
		name    string
		foreign []share.Placement
		want    int
	}{
		{"none", nil, 11},
		{"the first slice", []share.Placement{{Profile: "1g.10gb", Start: 0, Size: 1}}, 8}, // not 1g at 0, 2g at 0, and the whole card
		{"all of it", []share.Placement{{Profile: "7g.80gb", Start: 0, Size: 8}}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cards := made(1, func(c *Card) {
				c.Share.Mode, c.Share.Foreign = share.ModeMIG, tt.foreign
				c.MIG = node.MIG{Capable: true, Enabled: true, Profiles: []node.MIGProfile{
					{ID: 19, Name: "1g.10gb", Memory: 9728 * node.MiB, SMs: 14, Slices: 1, MaxCount: 7, Size: 1, Placements: []int{0, 1, 2, 3, 4, 5, 6}},
					{ID: 14, Name: "2g.20gb", Memory: 19968 * node.MiB, SMs: 28, Slices: 2, MaxCount: 3, Size: 2, Placements: []int{0, 2, 4}},
					{ID: 0, Name: "7g.80gb", Memory: 80640 * node.MiB, SMs: 98, Slices: 7, MaxCount: 1, Size: 8, Placements: []int{0}},
				}}
			})
			got := 0
			for _, s := range Slices("n", cards, Options{}).Pools["n"].Slices {
				got += len(s.Devices)
			}
			if got != tt.want {
				t.Errorf("%d placements are offered, want %d", got, tt.want)
			}
		})
	}
}
