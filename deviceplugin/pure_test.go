package deviceplugin

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/vgpu/ledger"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

const gi = node.GiB

// card is the n-th GPU of a test: its short name is n in eight digits, aaaaaaaa for 10.
func card(n int, memory node.Bytes) share.GPU {
	g := share.GPU{Index: n, Memory: memory}
	for i := range 4 {
		g.UUID[i] = byte(n<<4 | n)
	}
	g.UUID[15] = byte(n)
	return g
}

func inMode(g share.GPU, mode share.Mode, overcommit node.Percent) share.GPU {
	g.Mode, g.Overcommit = mode, overcommit
	return g
}

func lost(g share.GPU) share.GPU { g.Fault = "it fell off the bus"; return g }

func granted(g share.GPU, devices ...share.Device) share.GPU { g.Granted = devices; return g }

func TestSize(t *testing.T) {
	for _, tt := range []struct {
		size Size
		want string
	}{
		{Size{Memory: 10 * gi}, ""},
		{Size{Memory: share.MinMemory, Cores: 100}, ""},
		{Size{}, "devicePlugin.memory 0: less than the 2Mi"},
		{Size{Memory: gi, Cores: 101}, "devicePlugin.cores: percent 101: outside 0 to 100"},
		{Size{Memory: gi, Cores: -1}, "devicePlugin.cores: percent -1"},
	} {
		if err := tt.size.Validate(); (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v: %v, want %q", tt.size, err, tt.want)
		}
	}
}

func TestCut(t *testing.T) {
	twin := card(1, 40*gi)
	twin.Index, twin.UUID[15] = 2, 99
	for _, tt := range []struct {
		name string
		gpus []share.GPU
		size Size
		want string // card×slices
	}{
		{"no card", nil, Size{Memory: gi}, ""},
		{"by memory, what is over is lost", []share.GPU{card(1, 45*gi)}, Size{Memory: 10 * gi}, "11111111×4"},
		{"by cores", []share.GPU{card(1, 80*gi)}, Size{Memory: gi, Cores: 30}, "11111111×3"},
		{"never more than a card can have shares", []share.GPU{card(1, 80*gi)}, Size{Memory: gi}, "11111111×32"},
		{"a slice larger than a card", []share.GPU{card(1, 80*gi), card(2, 8*gi)}, Size{Memory: 10 * gi}, "11111111×8"},
		{"in the order of the cards", []share.GPU{card(2, 20*gi), card(1, 10*gi)}, Size{Memory: 10 * gi}, "11111111×1 22222222×2"},
		{"over-commit", []share.GPU{inMode(card(1, 80*gi), share.ModeOvercommit, 150)}, Size{Memory: 10 * gi}, "11111111×12"},
		{"mig and exclusive cards have none", []share.GPU{inMode(card(1, 80*gi), share.ModeMIG, 0), inMode(card(2, 80*gi), share.ModeExclusive, 0)}, Size{Memory: 10 * gi}, ""},
		{"a lost card has its slices", []share.GPU{lost(card(1, 20*gi))}, Size{Memory: 10 * gi}, "11111111×2"},
		{"two UUIDs that begin alike", []share.GPU{card(1, 20*gi), twin}, Size{Memory: 10 * gi}, "11111111×2"},
	} {
		counts := map[string]int{}
		var order []string
		for _, s := range Cut(tt.gpus, tt.size) {
			if want := fmt.Sprintf("%s-%02d", s.GPU.Short(), counts[s.GPU.Short()]); s.ID != want {
				t.Errorf("%s: slice %q, want %q", tt.name, s.ID, want)
			}
			if counts[s.GPU.Short()]++; counts[s.GPU.Short()] == 1 {
				order = append(order, s.GPU.Short())
			}
		}
		for i, short := range order {
			order[i] = fmt.Sprintf("%s×%d", short, counts[short])
		}
		if got := strings.Join(order, " "); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestDevices(t *testing.T) {
	size := Size{Memory: 10 * gi, Cores: 20}
	mine := func(names ...string) (owners []ledger.Owner) {
		for _, name := range names {
			owners = append(owners, ledger.Owner{UID: name, Name: name})
		}
		return owners
	}
	for _, tt := range []struct {
		name   string
		gpu    share.GPU
		owners []ledger.Owner
		want   string // H or U for each slice
	}{
		{"all free", card(1, 40*gi), nil, "HHHH"},
		{"lost", lost(card(1, 40*gi)), nil, "UUUU"},
		{"lost, with a container", lost(granted(card(1, 40*gi), share.Device{Memory: 10 * gi, Cores: 20})), mine("11111111-00"), "UUUU"},
		{"another door has some bytes", granted(card(1, 40*gi), share.Device{Memory: 11 * gi}), nil, "HHUU"},
		{"another door has the time", granted(card(1, 40*gi), share.Device{Memory: gi, Cores: 50}), nil, "HHUU"},
		{"another door is alone on it", granted(card(1, 40*gi), share.Device{Memory: gi, Tenants: share.MaxTenants}), nil, "UUUU"},
		{"a container here", granted(card(1, 40*gi), share.Device{Memory: 20 * gi, Cores: 40}), mine("11111111-01,11111111-03"), "HHHH"},
		{"both", granted(card(1, 40*gi), share.Device{Memory: 10 * gi, Cores: 20}, share.Device{Memory: 15 * gi}), mine("11111111-03"), "HUUH"},
		{"what is allocated here never flips", granted(card(1, 40*gi), share.Device{Memory: 10 * gi, Cores: 20}, share.Device{Memory: 30 * gi}), mine("11111111-02"), "UUHU"},
		{"slices had another size when they were given", granted(card(1, 40*gi), share.Device{Memory: 25 * gi}), mine("11111111-00"), "HHUU"},
		{"the mode is being changed", granted(card(1, 40*gi), share.Device{Memory: gi, Mode: share.ModeExclusive}), nil, "UUUU"},
	} {
		got := ""
		for _, d := range Devices([]share.GPU{tt.gpu}, size, tt.owners) {
			got += d.Health[:1]
		}
		if got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}

func TestDivide(t *testing.T) {
	gpus := []share.GPU{card(1, 40*gi), card(2, 40*gi)}
	cut := Cut(gpus, Size{Memory: 10 * gi})
	for _, tt := range []struct {
		name, ids, want, err string
	}{
		{"nothing", "", "", ""},
		{"one GPU adds up", "11111111-03 11111111-00", "GPU-11111111:20Gi", ""},
		{"two GPUs are two shares", "22222222-01 11111111-00 22222222-02", "GPU-11111111:10Gi GPU-22222222:20Gi", ""},
		{"unknown number", "11111111-07", "", `slice "11111111-07": not one of the 8 of this node`},
		{"unknown card", "33333333-00", "", `slice "33333333-00"`},
		{"not ours", "nvidia0", "", `slice "nvidia0"`},
		{"twice", "11111111-00 11111111-00", "", "asked for twice"},
	} {
		parts, err := divide(strings.Fields(tt.ids), cut)
		var got []string
		for _, p := range parts {
			r := p.request(Size{Memory: 10 * gi, Cores: 10})
			got = append(got, r.GPU[0][:12]+":"+r.Memory.String())
			if int(r.Cores) != 10*len(p.ids) {
				t.Errorf("%s: cores %d of %d slices", tt.name, r.Cores, len(p.ids))
			}
		}
		if text := strings.Join(got, " "); text != tt.want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: %q, %v; want %q, %q", tt.name, text, err, tt.want, tt.err)
		}
	}
}

func TestPack(t *testing.T) {
	for _, tt := range []struct {
		name, available, must string
		size                  int
		want                  string
	}{
		{"nothing", "", "", 0, ""},
		{"none asked", "a-0 a-1", "", 0, ""},
		{"the fullest that has room", "a-0 a-1 a-2 b-0 c-0 c-1", "", 2, "c-0 c-1"},
		{"one from the fullest", "a-0 a-1 b-3 c-0 c-1", "", 1, "b-3"},
		{"equally full: by name", "b-0 a-0", "", 1, "a-0"},
		{"the GPU of those that must be in", "a-0 b-0 b-1 b-2", "b-1", 2, "b-0 b-1"},
		{"must be in, though not available", "a-0 b-0", "b-7", 2, "b-0 b-7"},
		{"then others", "a-0 a-1 b-1 c-0 c-1 c-2", "b-1", 3, "a-0 a-1 b-1"},
		{"must be in on two", "a-0 a-1 b-0 b-1", "a-1 b-1", 3, "a-0 a-1 b-1"},
		{"no GPU has all: the fewest", "a-0 b-0 b-1 c-0 c-1 c-2", "", 4, "a-0 c-0 c-1 c-2"},
		{"too few", "a-0 b-0", "", 5, "a-0 b-0"},
		{"more must be in than asked", "a-0", "a-1 a-2", 1, "a-1"},
		{"repeated", "a-0 a-0 a-0", "", 2, "a-0"},
		{"negative", "a-0", "a-0", -1, ""},
	} {
		got := Pack(strings.Fields(tt.available), strings.Fields(tt.must), tt.size)
		slices.Sort(got)
		if text := strings.Join(got, " "); text != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, text, tt.want)
		}
	}
}

func FuzzPack(f *testing.F) {
	f.Add("a-0 a-1 b-0", "a-1", 2)
	f.Fuzz(func(t *testing.T, available, must string, size int) {
		a, m := strings.Fields(available), strings.Fields(must)
		got := Pack(a, m, size)
		all := append(slices.Clone(a), m...)
		seen := map[string]bool{}
		for _, id := range got {
			if seen[id] || !slices.Contains(all, id) {
				t.Fatalf("%q is in twice, or was not offered", id)
			}
			seen[id] = true
		}
		if len(got) > max(size, 0) {
			t.Fatalf("%d for %d", len(got), size)
		}
		for _, id := range m {
			if len(got) > len(m) && !seen[id] {
				t.Fatalf("%q must be in it", id)
			}
		}
	})
}

func TestSightings(t *testing.T) {
	a, b := ledger.Owner{UID: "a", Name: "1-00,1-01"}, ledger.Owner{UID: "b", Name: "2-00"}
	type look struct {
		owners []ledger.Owner
		inUse  string
		at     time.Duration
		gone   string
	}
	both := []ledger.Owner{a, b}
	for name, looks := range map[string][]look{
		"in use":               {{both, "1-00 2-00", 0, ""}, {both, "1-01 2-00", 1, ""}, {both, "1-00 2-00", 2, ""}},
		"absent once":          {{both, "1-00 2-00", 0, ""}, {both, "2-00", 1, ""}, {both, "1-00 2-00", 2, ""}, {both, "2-00", 3, ""}},
		"absent twice":         {{both, "1-00 2-00", 0, ""}, {both, "2-00", 1, ""}, {both, "2-00", 2, "a"}},
		"said again until":     {{both, "1-00 2-00", 0, ""}, {both, "", 1, ""}, {both, "", 2, "a b"}, {[]ledger.Owner{b}, "", 3, "b"}},
		"never seen":           {{both, "2-00", 0, ""}, {both, "2-00", 1, ""}, {both, "2-00", 2, ""}, {both, "2-00", 10, "a"}},
		"never seen, but late": {{both, "2-00", 0, ""}, {both, "1-00 2-00", 9, ""}, {both, "2-00", 10, ""}, {both, "2-00", 11, "a"}},
		"somebody else's IDs":  {{both, "1-02 2-00", 0, ""}, {both, "2-00 nvidia0", 10, "a"}},
	} {
		var s Sightings
		for i, l := range looks {
			inUse := map[string]bool{}
			for _, id := range strings.Fields(l.inUse) {
				inUse[id] = true
			}
			var gone []string
			for _, owner := range s.Look(l.owners, inUse, time.Unix(0, 0).Add(l.at*time.Minute), 10*time.Minute) {
				gone = append(gone, owner.UID)
			}
			if got := strings.Join(gone, " "); got != l.gone {
				t.Errorf("%s: list %d: gone %q, want %q", name, i, got, l.gone)
			}
		}
	}
	t.Run("doubt", func(t *testing.T) {
		var s Sightings
		at := func(inUse map[string]bool) int { return len(s.Look(both, inUse, time.Unix(0, 0), time.Hour)) }
		got := []int{at(map[string]bool{"1-00": true, "2-00": true}), at(nil)}
		s.Doubt()
		got = append(got, at(nil), at(nil))
		if diff := cmp.Diff([]int{0, 0, 0, 2}, got); diff != "" {
			t.Errorf("absences before kubelet's start counted: %s", diff)
		}
	})
}
