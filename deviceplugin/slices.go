package deviceplugin

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/vgpu/ledger"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

// Size is what one slice is.
type Size struct {
	Memory node.Bytes
	Cores  node.Percent // 0: best effort
}

// Validate refuses a size that no card can have.
func (s Size) Validate() error {
	if s.Memory < share.MinMemory {
		return fmt.Errorf("devicePlugin.memory %s: less than the %s in which the driver takes memory; set at least that", s.Memory, share.MinMemory)
	}
	if err := s.Cores.Validate(); err != nil {
		return fmt.Errorf("devicePlugin.cores: %w", err)
	}
	return nil
}

// fit is how many slices there is room for.
func (s Size) fit(memory node.Bytes, cores node.Percent, tenants int) int {
	n := min(tenants, int(min(memory/s.Memory, share.MaxTenants)))
	if s.Cores > 0 {
		n = min(n, int(cores/s.Cores))
	}
	return n
}

// Slice is one device of kubelet's.
type Slice struct {
	ID  string // <8 hexadecimal digits of the GPU's UUID>-<number>, the same as long as the card and the size are
	GPU node.UUID
}

// Cut divides the cards that are shared by memory, in vgpu and overcommit mode, into slices.
// Slices of a lost card are still there: kubelet shall see them fail. Of two cards whose UUIDs begin alike, the second has none.
func Cut(gpus []share.GPU, size Size) (cut []Slice) {
	seen := map[string]bool{}
	for _, g := range byIndex(gpus) {
		short := g.UUID.Short()
		if seen[short] || !sharedByMemory(g) {
			continue
		}
		seen[short] = true
		for n := range size.fit(g.Capacity(), 100, share.MaxTenants) {
			cut = append(cut, Slice{ID: fmt.Sprintf("%s-%02d", short, n), GPU: g.UUID})
		}
	}
	return cut
}

func sharedByMemory(g share.GPU) bool {
	mode := cmp.Or(g.Mode, share.ModeVGPU)
	return mode == share.ModeVGPU || mode == share.ModeOvercommit
}

func byIndex(gpus []share.GPU) []share.GPU {
	return slices.SortedFunc(slices.Values(gpus), func(a, b share.GPU) int { return cmp.Compare(a.Index, b.Index) })
}

// Devices is the list that kubelet gets: every slice, and whether it can be given out. A slice that has an owner here is
// healthy as long as its card is. Of the others on a card, so many are healthy as what is free there, the lowest numbers first.
func Devices(gpus []share.GPU, size Size, owners []ledger.Owner) (devices []*pluginapi.Device) {
	owned := map[string]bool{}
	for _, owner := range owners {
		for _, id := range slicesOf(owner) {
			owned[id] = true
		}
	}
	free := make(map[node.UUID]int)
	lost := make(map[node.UUID]bool)
	for _, g := range gpus {
		lost[g.UUID] = g.Fault != ""
		if g.HeldMode() == cmp.Or(g.Mode, share.ModeVGPU) { // else the mode is being changed, and nothing new starts
			free[g.UUID] = size.fit(g.FreeMemory(), g.FreeCores(), g.FreeTenants())
		}
	}
	for _, s := range Cut(gpus, size) {
		health := pluginapi.Unhealthy
		switch {
		case lost[s.GPU]:
		case owned[s.ID]:
			health = pluginapi.Healthy
		case free[s.GPU] > 0:
			health = pluginapi.Healthy
			free[s.GPU]--
		}
		devices = append(devices, &pluginapi.Device{ID: s.ID, Health: health})
	}
	return devices
}

// sameDevices compares two lists by what kubelet would see.
func sameDevices(a, b []*pluginapi.Device) bool {
	return slices.EqualFunc(a, b, func(a, b *pluginapi.Device) bool { return a.ID == b.ID && a.Health == b.Health })
}

// cardOf is the part of a slice's name that says on which card it is.
func cardOf(id string) string {
	card, _, _ := strings.Cut(id, "-")
	return card
}

// ownerName and slicesOf put an owner's slices into its name and read them back.
func ownerName(ids []string) string { return strings.Join(ids, ",") }

func slicesOf(owner ledger.Owner) []string { return strings.Split(owner.Name, ",") }

// part is what a container asks of one GPU.
type part struct {
	gpu node.UUID
	ids []string
}

func (p part) request(size Size) share.Request {
	n := len(p.ids)
	return share.Request{Memory: size.Memory * node.Bytes(n), Cores: size.Cores * node.Percent(n), GPU: []string{p.gpu.String()}}
}

// divide sorts the slices of one container by GPU.
func divide(ids []string, cut []Slice) ([]part, error) {
	gpuOf := make(map[string]node.UUID, len(cut))
	for _, s := range cut {
		gpuOf[s.ID] = s.GPU
	}
	parts := map[string]part{}
	for _, id := range slices.Sorted(slices.Values(ids)) {
		gpu, known := gpuOf[id]
		if !known {
			return nil, fmt.Errorf("slice %q: not one of the %d of this node; "+
				"its card went away or the size of slices was changed: delete the pod, its next one gets others", id, len(cut))
		}
		p := parts[cardOf(id)]
		if slices.Contains(p.ids, id) {
			return nil, fmt.Errorf("slice %q: asked for twice in one container; this is a fault of kubelet's, restart it", id)
		}
		parts[cardOf(id)] = part{gpu, append(p.ids, id)}
	}
	var sorted []part
	for _, card := range slices.Sorted(maps.Keys(parts)) {
		sorted = append(sorted, parts[card])
	}
	return sorted, nil
}
