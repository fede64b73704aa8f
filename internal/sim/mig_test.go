package sim

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestMIGTables holds every model with MIG to what nvidia-smi mig -lgip and -lgipp say of A100, H100 and H200, which differ in
// memory and in the number of SMs only.
func TestMIGTables(t *testing.T) {
	type row struct {
		Name              string
		Slices, Size, Max int
		Placements        []int
	}
	layout := map[int]row{
		19: {"1g.%dgb", 1, 1, 7, []int{0, 1, 2, 3, 4, 5, 6}},
		20: {"1g.%dgb+me", 1, 1, 1, []int{0, 1, 2, 3, 4, 5, 6}},
		15: {"1g.%dgb", 1, 2, 4, []int{0, 2, 4, 6}},
		14: {"2g.%dgb", 2, 2, 3, []int{0, 2, 4}},
		9:  {"3g.%dgb", 3, 4, 2, []int{0, 4}},
		5:  {"4g.%dgb", 4, 4, 1, []int{0}},
		0:  {"7g.%dgb", 7, 8, 1, []int{0}},
	}
	gigabytes := map[string]map[int]int{ // of the card: by memory slices, as in the names
		"NVIDIA A100-SXM4-80GB": {1: 10, 2: 20, 4: 40, 8: 80},
		"NVIDIA A100 80GB PCIe": {1: 10, 2: 20, 4: 40, 8: 80},
		"NVIDIA H200":           {1: 18, 2: 35, 4: 71, 8: 141},
	}
	for _, name := range Profiles() {
		p, err := LoadProfile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range p.Models {
			if !m.MIG.Capable {
				continue
			}
			want, got := map[int]row{}, map[int]row{}
			for id, r := range layout {
				r.Name = fmt.Sprintf(r.Name, gigabytes[m.Name][r.Size])
				want[id] = r
			}
			for _, q := range m.MIG.Profiles {
				got[q.ID] = row{q.Name, q.Slices, q.Size, q.Max, q.Placements}
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("%s, %s (-want +got):\n%s", name, m.Name, d)
			}
		}
	}
}
