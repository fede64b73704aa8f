package node

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A node goes from kerfd to kerf as JSON: nothing may be lost on the way.
func TestNodeSurvivesJSON(t *testing.T) {
	for action := RecoveryNone; action <= RecoverySystemReboot+2; action++ {
		want := Node{Simulated: true, GPUs: []GPU{{
			UUID: UUID{1, 2, 3}, Memory: 141 * GiB, PCI: PCIAddress{Domain: 1, Bus: 2}, Fault: Fault{Recovery: action},
			MIG: MIG{
				Enabled: true, Profiles: []MIGProfile{{Name: "3g.40gb", Slices: 3, Placements: []int{0, 4}, Size: 4}},
				Instances: []MIGInstance{{Profile: "3g.40gb", Start: 4, Slices: 4}},
			},
		}}}
		text, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		var got Node
		if err := json.Unmarshal(text, &got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%v: %s", action, diff)
		}
	}
}
