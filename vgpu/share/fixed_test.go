package share

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/kerf-gpu/kerf/internal/node"
)

func TestFixedLimits(t *testing.T) {
	const gi = node.GiB
	for name, tt := range map[string]struct {
		room     node.Bytes
		promised []Promise
		want     []node.Bytes
	}{
		"nobody":                           {140 * gi, nil, []node.Bytes{}},
		"alone":                            {140 * gi, []Promise{{100 * gi, 0}}, []node.Bytes{140 * gi}},
		"two alike":                        {140 * gi, []Promise{{100 * gi, 0}, {100 * gi, 0}}, []node.Bytes{40 * gi, 40 * gi}},
		"two: each what the other leaves":  {140 * gi, []Promise{{120 * gi, 0}, {40 * gi, 0}}, []node.Bytes{100 * gi, 20 * gi}},
		"not over-committed":               {140 * gi, []Promise{{70 * gi, 0}, {70 * gi, 0}}, []node.Bytes{70 * gi, 70 * gi}},
		"three share what each leaves":     {100 * gi, []Promise{{40 * gi, 0}, {40 * gi, 0}, {40 * gi, 0}}, []node.Bytes{30 * gi, 30 * gi, 30 * gi}},
		"by memory":                        {100 * gi, []Promise{{60 * gi, 0}, {60 * gi, 0}, {20 * gi, 0}}, []node.Bytes{30 * gi, 30 * gi, 10 * gi}},
		"minResident stays anyhow":         {140 * gi, []Promise{{100 * gi, 30 * gi}, {100 * gi, 0}}, []node.Bytes{40 * gi, 40 * gi}},
		"minResident counts before memory": {100 * gi, []Promise{{40 * gi, 40 * gi}, {40 * gi, 0}, {40 * gi, 0}}, []node.Bytes{50 * gi, 10 * gi, 10 * gi}},
		"the whole card promised to both":  {128 * gi, []Promise{{140 * gi, 0}, {140 * gi, 0}}, []node.Bytes{4 * gi, 4 * gi}},
		"less room than anybody's":         {0, []Promise{{gi, 0}, {gi, 0}}, []node.Bytes{0, 0}},
	} {
		if got := FixedLimits(tt.room, tt.promised); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}
}

// Whoever comes in finds room for all that it was promised, whatever the others have fixed, unless that is less than the floor.
func TestFixedLimitsKeepPromises(t *testing.T) {
	random := rand.New(rand.NewPCG(4, 8))
	for range 20000 {
		room := node.Bytes(1+random.IntN(1<<10)) * node.MiB
		promised := make([]Promise, 1+random.IntN(6))
		for i := range promised {
			promised[i].Memory = node.Bytes(1+random.IntN(1<<10)) * node.MiB
			promised[i].MinResident = node.Bytes(random.IntN(int(promised[i].Memory/node.MiB/4+1))) * node.MiB
		}
		limits := FixedLimits(room, promised)
		floor := room / fixedFloor / node.Bytes(len(promised))
		for i, own := range promised {
			var fixed, kept, floors node.Bytes
			for j := range promised {
				if j != i {
					fixed, kept = fixed+limits[j], kept+promised[j].MinResident
					floors += floor
				}
			}
			if fixed > max(room-min(room, own.Memory), kept)+floors {
				t.Fatalf("room %s, %+v: %s fixed beside %d", room, promised, fixed, i)
			}
		}
	}
}
