package dra

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/dynamic-resource-allocation/resourceslice"

	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

var update = flag.Bool("update", false, "write the goldens in testdata")

// simulated is the cards of a simulated node, from the inventory that internal/nodetest holds it to.
func simulated(t testing.TB, profile string) (cards []Card) {
	t.Helper()
	file, err := os.Open(filepath.Join("..", "internal", "nodetest", "testdata", profile+".jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var g node.GPU
		if strings.Contains(lines.Text(), `"computeCapability"`) {
			if err := json.Unmarshal(lines.Bytes(), &g); err != nil {
				t.Fatal(err)
			}
			cards = append(cards, card(g))
		}
	}
	return cards
}

func card(g node.GPU) Card {
	c := Card{GPU: g, Share: share.GPU{UUID: g.UUID, Index: g.Index, Memory: g.Memory, Mode: share.ModeVGPU}}
	if g.MIG.Enabled {
		c.Share.Mode = share.ModeMIG
	}
	return c
}

// made is a made-up node of n cards with 80Gi each, changed by with.
func made(n int, with func(*Card)) (cards []Card) {
	for i := range n {
		g := node.GPU{Index: i, UUID: node.UUID{0xca, byte(i), 0x0d}, ProductName: "NVIDIA Made-Up", Architecture: "Ampere",
			Compute: node.ComputeCapability{Major: 8}, Memory: 80 * node.GiB, NUMA: -1, DriverVersion: "580.95.05", CUDAVersion: 13000,
			PCI: node.PCIAddress{Bus: byte(0x10 + i)}, Path: node.PCIePath{Root: "pci0000:00"}, Simulated: true}
		c := card(g)
		if with != nil {
			with(&c)
		}
		cards = append(cards, c)
	}
	return cards
}

func mode(m share.Mode, overcommit node.Percent) func(*Card) {
	return func(c *Card) { c.Share.Mode, c.Share.Overcommit = m, overcommit }
}

// a100MIG is the profiles of an A100 80GB, as the driver tells them of a card in MIG mode.
var a100MIG = []node.MIGProfile{
	{ID: 19, Name: "1g.10gb", Memory: 9728 * node.MiB, SMs: 14, Slices: 1, MaxCount: 7, Size: 1, Placements: []int{0, 1, 2, 3, 4, 5, 6}},
	{ID: 14, Name: "2g.20gb", Memory: 19968 * node.MiB, SMs: 28, Slices: 2, MaxCount: 3, Size: 2, Placements: []int{0, 2, 4}},
	{ID: 9, Name: "3g.40gb", Memory: 40192 * node.MiB, SMs: 42, Slices: 3, MaxCount: 2, Size: 4, Placements: []int{0, 4}},
	{ID: 5, Name: "4g.40gb", Memory: 40192 * node.MiB, SMs: 56, Slices: 4, MaxCount: 1, Size: 4, Placements: []int{0}},
	{ID: 0, Name: "7g.80gb", Memory: 80640 * node.MiB, SMs: 98, Slices: 7, MaxCount: 1, Size: 8, Placements: []int{0}},
	{ID: 20, Name: "1g.10gb+me", Memory: 9728 * node.MiB, SMs: 14, Slices: 1, MaxCount: 1, Size: 1, Placements: []int{0, 1, 2, 3, 4, 5, 6}},
}

// nodes is every node that has a golden. The allocator's cases name them.
func nodes(t testing.TB) map[string][]Card {
	all := map[string][]Card{
		"none":       nil,
		"one":        made(1, nil),
		"sixteen":    made(16, nil),
		"overcommit": made(1, mode(share.ModeOvercommit, 200)),
		"exclusive":  made(2, mode(share.ModeExclusive, 0)),
		"odd":        made(1, func(c *Card) { c.Share.Memory = 80*node.GiB - 12345; mode(share.ModeOvercommit, 133)(c) }),
		"onemig":     made(1, func(c *Card) { c.MIG.Profiles = a100MIG; mode(share.ModeMIG, 0)(c) }),
		"tainted":    made(3, nil),
	}
	all["tainted"][0].Pending = share.ModeMIG
	all["tainted"][1].Share.Fault = "lost: it has fallen off the bus (kerf doctor)"
	all["tainted"][2].Share.Fault, all["tainted"][2].Share.Memory = "lost", 0
	for _, profile := range []string{"h200x8", "a100x8", "l40sx4", "mixed"} {
		all[profile] = simulated(t, profile)
	}
	return all
}

func TestSlices(t *testing.T) {
	for name, cards := range nodes(t) {
		t.Run(name, func(t *testing.T) {
			published := objectsOf(name, Slices(name, cards, Options{Backend: "shim"}))
			checkSlices(t, published)
			golden(t, filepath.Join("testdata", "slices", name+".yaml"), written(t, published))
		})
	}
}

// objectsOf is the objects that the publishing library makes of a pool.
func objectsOf(nodeName string, r resourceslice.DriverResources) (objects []*resourceapi.ResourceSlice) {
	pool := r.Pools[nodeName]
	for i, s := range pool.Slices {
		objects = append(objects, &resourceapi.ResourceSlice{
			TypeMeta:   metav1.TypeMeta{APIVersion: "resource.k8s.io/v1", Kind: "ResourceSlice"},
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%05x-%s-%s-", i, DriverName, nodeName)},
			Spec: resourceapi.ResourceSliceSpec{Driver: DriverName, NodeName: &nodeName, Devices: s.Devices, SharedCounters: s.SharedCounters,
				Pool: resourceapi.ResourcePool{Name: nodeName, Generation: 1, ResourceSliceCount: int64(len(pool.Slices))}},
		})
	}
	return objects
}

// written is YAML with a line for each device, so that a difference shows which one.
func written(t *testing.T, objects []*resourceapi.ResourceSlice) string {
	t.Helper()
	var b strings.Builder
	for _, s := range objects {
		fmt.Fprintf(&b, "---\napiVersion: %s\nkind: %s\nmetadata: {name: %s}\nspec:\n  driver: %s\n  nodeName: %s\n  pool: %s\n",
			s.APIVersion, s.Kind, s.Name, s.Spec.Driver, *s.Spec.NodeName, mustJSON(s.Spec.Pool))
		list(&b, "sharedCounters", s.Spec.SharedCounters)
		list(&b, "devices", s.Spec.Devices)
	}
	return b.String()
}

func list[T any](b *strings.Builder, name string, items []T) {
	if len(items) > 0 {
		fmt.Fprintf(b, "  %s:\n", name)
	}
	for _, item := range items {
		fmt.Fprintf(b, "  - %s\n", mustJSON(item))
	}
}

func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got, "\n")); d != "" {
		t.Errorf("%s (-want +got):\n%s", path, d)
	}
}

// Sixteen cards in MIG mode are more than eight counter sets and 64 devices, the most that a slice has.
func TestManyMIGCards(t *testing.T) {
	cards := made(16, func(c *Card) { c.MIG.Profiles = a100MIG; mode(share.ModeMIG, 0)(c) })
	published := objectsOf("n", Slices("n", cards, Options{}))
	checkSlices(t, published)
	var shape []string
	for _, s := range published {
		shape = append(shape, fmt.Sprintf("%d sets, %d devices", len(s.Spec.SharedCounters), len(s.Spec.Devices)))
	}
	want := []string{"8 sets, 0 devices", "8 sets, 0 devices", "0 sets, 64 devices", "0 sets, 64 devices", "0 sets, 64 devices", "0 sets, 64 devices", "0 sets, 64 devices", "0 sets, 16 devices"}
	if d := cmp.Diff(want, shape); d != "" {
		t.Error(d)
	}
}

// The allocator takes the pool's many slices for one, and gives each card once.
func TestManyMIGCardsAllocate(t *testing.T) {
	o := newOracle(t, "none", classLister{{ObjectMeta: metav1.ObjectMeta{Name: "gpu-mig"}}})
	o.node.Name = "n"
	o.slices = objectsOf("n", Slices("n", made(16, func(c *Card) { c.MIG.Profiles = a100MIG; mode(share.ModeMIG, 0)(c) }), Options{}))
	claim := oracleClaim{Class: "gpu-mig", Profile: "7g.80gb"}
	for i := range 16 {
		want := []string{fmt.Sprintf("gpu-ca%02x0d00-mig-7g-80gb-0", i)}
		if d := cmp.Diff(want, o.allocate(t, claim.claim(i))); d != "" {
			t.Fatal(d)
		}
	}
	if got := o.allocate(t, claim.claim(16)); got != nil {
		t.Errorf("a seventeenth card: %v", got)
	}
}

func TestSpread(t *testing.T) {
	cards := made(3, nil)
	cards[0].Share.Granted = []share.Device{{Memory: 20 * node.GiB}}
	cards[1].Share.Granted = []share.Device{{Memory: 10 * node.GiB}}
	for _, tt := range []struct {
		order Order
		want  []int
	}{{"", []int{0, 1, 2}}, {Binpack, []int{0, 1, 2}}, {Spread, []int{2, 1, 0}}} {
		var got []int
		for _, d := range Slices("n", cards, Options{Order: tt.order}).Pools["n"].Slices[0].Devices {
			for i, c := range cards {
				if d.Name == deviceName(c) {
					got = append(got, i)
				}
			}
		}
		if d := cmp.Diff(tt.want, got); d != "" {
			t.Errorf("order %q: %s", tt.order, d)
		}
	}
}

// Two cards whose UUIDs begin with the same digits are two devices, whose names do not depend on their order.
func TestTwins(t *testing.T) {
	for _, mode := range []share.Mode{share.ModeVGPU, share.ModeExclusive, share.ModeMIG} {
		cards := made(3, func(c *Card) {
			c.Share.Mode, c.MIG.Profiles = mode, a100MIG
			c.UUID[1], c.UUID[15] = byte(c.Index/2), byte(c.Index) // the first two begin alike
			c.Share.UUID = c.UUID
		})
		for _, order := range []func(){func() {}, func() { slices.Reverse(cards) }} {
			order()
			seen := map[string]bool{}
			for _, s := range Slices("n", cards, Options{}).Pools["n"].Slices {
				for _, d := range s.Devices {
					c, _, err := find(cards, d.Name)
					if err != nil || c.UUID.String() != *d.Attributes["uuid"].StringValue || seen[d.Name] || len(d.Name) > 63 {
						t.Errorf("%s: %s is card %d, twice: %v, %v", mode, d.Name, c.Index, seen[d.Name], err)
					}
					if alone, _, err := find([]Card{c}, d.Name); err != nil || alone.UUID != c.UUID {
						t.Errorf("%s: %s when the other card is lost: %v", mode, d.Name, err)
					}
					seen[d.Name] = true
				}
			}
			if len(seen) == 0 {
				t.Error(mode)
			}
		}
	}
}

func TestSemver(t *testing.T) {
	for vendor, want := range map[string]string{
		"580.95.05": "580.95.5", "535.261.03": "535.261.3", "13.0": "13.0.0", "9.0": "9.0.0", "550": "550.0.0",
		"": "", "unknown": "", "1.2.3.4": "", "1.-2.3": "", "0.0": "", "99999999999.1": "",
	} {
		if got, ok := semver(vendor); ok != (want != "") || ok && got != want {
			t.Errorf("%q: %q, %v, want %q", vendor, got, ok, want)
		}
	}
}
