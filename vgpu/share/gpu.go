package share

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/kerf-gpu/kerf/internal/node"
)

// Mode is how a card is divided. It is configuration, one for each card; while shares of another mode are on a card, it keeps
// that mode and takes no new ones.
type Mode string

// The modes.
const (
	ModeVGPU       Mode = "vgpu"       // slices whose guarantees fit the card; the default
	ModeOvercommit Mode = "overcommit" // slices whose guarantees together may exceed the card
	ModeMIG        Mode = "mig"        // the hardware's own slices
	ModeExclusive  Mode = "exclusive"  // one tenant has the whole card
)

// Modes lists every mode.
var Modes = []Mode{ModeVGPU, ModeOvercommit, ModeMIG, ModeExclusive}

// MIGSlices is into how many memory slices MIG divides a card.
const MIGSlices = 8

// GPU is one GPU as the policy sees it: what can be granted there, and what is.
type GPU struct {
	UUID       node.UUID
	Index      int
	Memory     node.Bytes   // that exists and can be granted: the card's, less what the driver keeps
	Mode       Mode         // empty is vgpu
	Overcommit node.Percent // of Memory that guarantees may add up to, in overcommit mode; 0 is 100
	Fault      string       // why nothing may be granted here; empty: nothing is wrong
	NoMPS      string       // why the tier mps is not to be had here, and what to do; empty: it is
	Foreign    []Placement  // MIG instances that Kerf did not make, and leaves alone
	Granted    []Device
}

// Capacity is what the guarantees on the card may add up to, in bytes: whole MiB where it is not the memory itself.
func (g GPU) Capacity() node.Bytes {
	if g.Mode != ModeOvercommit || g.Overcommit <= 100 {
		return g.Memory
	}
	return g.Memory / node.MiB * node.Bytes(g.Overcommit) / 100 * node.MiB
}

// FreeMemory is what is left to grant, in bytes.
func (g GPU) FreeMemory() node.Bytes {
	used := node.Bytes(0)
	for _, d := range g.Granted {
		used += d.Memory
	}
	return g.Capacity() - min(used, g.Capacity())
}

// FreeCores is what is left to guarantee, in percent.
func (g GPU) FreeCores() node.Percent {
	used := node.Percent(0)
	for _, d := range g.Granted {
		used += d.Cores
	}
	return 100 - min(used, 100)
}

// FreeTenants is how many more shares may be on the card.
func (g GPU) FreeTenants() int {
	used := 0
	for _, d := range g.Granted {
		used += max(1, d.Tenants)
	}
	return max(0, MaxTenants-used)
}

// HeldMode is the mode of the shares on the card, and the configured one where there are none.
func (g GPU) HeldMode() Mode {
	for _, d := range g.Granted {
		return cmp.Or(d.Mode, ModeVGPU)
	}
	return cmp.Or(g.Mode, ModeVGPU)
}

// HeldTier is the tier of the shares on the card; empty where there are none.
func (g GPU) HeldTier() Tier {
	for _, d := range g.Granted {
		return cmp.Or(d.Tier, TierTime)
	}
	return ""
}

// refuses says why a request cannot be granted on the card, whoever thought that it can: a scheduler with stale or wrong
// books, too. Empty: it fits.
func (g GPU) refuses(r Request) string {
	mode := cmp.Or(g.Mode, ModeVGPU)
	switch held := g.HeldMode(); {
	case r.Admin: // it watches broken cards too
		return ""
	case g.Fault != "":
		return fmt.Sprintf("GPU %d: %s; nothing is granted there until that is cleared (kerf doctor)", g.Index, g.Fault)
	case held != mode:
		return fmt.Sprintf("GPU %d changes from mode %s to %s, and takes no shares before the last one there has ended (kerf top)", g.Index, held, mode)
	case mode == ModeMIG && r.Placement == nil:
		return fmt.Sprintf("GPU %d is in mode mig, which the hardware divides; ask for a MIG placement, or another card", g.Index)
	case mode == ModeMIG:
		return g.refusesPlacement(*r.Placement)
	case r.Placement != nil:
		return fmt.Sprintf("MIG placement %s: GPU %d is in mode %s; ask for memory, or set the card's mode to mig", r.Placement, g.Index, mode)
	case mode == ModeExclusive && len(g.Granted) > 0:
		return fmt.Sprintf("GPU %d is in mode exclusive, and somebody has it; wait for that share to end (kerf top)", g.Index)
	case r.Memory > g.Memory:
		return fmt.Sprintf("memory %s: GPU %d has %s; ask for less", r.Memory, g.Index, g.Memory)
	case r.Limit > g.Memory:
		return fmt.Sprintf("memoryLimit %s: GPU %d has %s; set less", r.Limit, g.Index, g.Memory)
	case r.Limit > r.Memory && mode != ModeOvercommit:
		return fmt.Sprintf("memoryLimit %s above memory %s: on GPU %d memory is guaranteed to others, in mode %s; "+
			"leave memoryLimit out, or use a card in mode overcommit (class gpu-overcommit)", r.Limit, r.Memory, g.Index, mode)
	}
	return g.refusesTier(r)
}

// refusesTier: where kernels of all run at once nobody can be made to wait, so a turn in time beside them would be no turn.
func (g GPU) refusesTier(r Request) string {
	tier, mode := cmp.Or(r.Tier, TierTime), cmp.Or(g.Mode, ModeVGPU)
	switch held := g.HeldTier(); {
	case tier == TierMPS && g.NoMPS != "":
		return fmt.Sprintf("tier mps: GPU %d: %s", g.Index, g.NoMPS)
	case tier == TierMPS && mode == ModeOvercommit:
		return fmt.Sprintf("tier mps: GPU %d is in mode overcommit, where a program whose memory is swapped out must wait, and MPS lets nobody wait; "+
			"ask for tier time, or use a card in mode vgpu", g.Index)
	case tier == TierMPS && mode != ModeVGPU:
		return fmt.Sprintf("tier mps: GPU %d is in mode %s, and has nothing to divide by MPS; leave the tier out, or use a card in mode vgpu", g.Index, mode)
	case held != "" && held != tier:
		return fmt.Sprintf("tier %s: GPU %d has shares of tier %s, and a card has one tier at a time: under time one runs while the others wait, under mps nobody waits; "+
			"wait for the last of them to end (kerf top), ask for tier %s, or take another card", tier, g.Index, held, held)
	}
	return ""
}

// refusal is what refuses says as an error. What an empty card would not say is for want of room.
func (g GPU) refusal(r Request) error {
	empty := g
	empty.Granted = nil
	reason := g.refuses(r)
	if empty.refuses(r) == "" {
		return &NoRoomError{reason}
	}
	return errors.New(reason)
}

func (g GPU) refusesPlacement(p Placement) string {
	if p.Start < 0 || p.Size < 1 || p.Start+p.Size > MIGSlices {
		return fmt.Sprintf("MIG placement %s: outside the card's %d memory slices; ask for one that kerf topo lists", p, MIGSlices)
	}
	for _, foreign := range g.Foreign {
		if foreign.Overlaps(p) {
			return fmt.Sprintf("MIG placement %s: GPU %d has %s in its place, which Kerf did not make; remove that with nvidia-smi mig, or ask for another", p, g.Index, foreign)
		}
	}
	for _, d := range g.Granted {
		if d.Placement != nil && d.Placement.Overlaps(p) {
			return fmt.Sprintf("MIG placement %s: GPU %d has %s in its place; wait for that share to end (kerf top)", p, g.Index, d.Placement)
		}
	}
	return ""
}

// fits says whether nothing refuses the request, and there is room.
func (g GPU) fits(r Request) bool {
	return g.refuses(r) == "" && g.hasRoom(r)
}

func (g GPU) hasRoom(r Request) bool {
	if r.Admin || r.Placement != nil {
		return true
	}
	return g.FreeTenants() >= r.tenants() && g.FreeMemory() >= r.Memory && g.FreeCores() >= r.Cores
}

// part is what a request gets of the card.
func (g GPU) part(r Request) Device {
	d := Device{UUID: g.UUID, Index: g.Index, Memory: r.Memory, Limit: r.Limit, Cores: r.Cores, Tenants: r.Tenants, Mode: g.Mode, Placement: r.Placement}
	if r.Tier == TierMPS { // what has none is of tier time, as all records of earlier versions are
		d.Tier = TierMPS
	}
	switch {
	case r.Admin:
		d.Memory = 0
	case g.Mode == ModeExclusive: // nobody else can use the rest
		d.Memory, d.Limit, d.Tenants = g.Memory, 0, MaxTenants
	}
	return d
}

func byMemory(a, b GPU) int { return cmp.Compare(a.Memory, b.Memory) }

// Placement is where a MIG instance lies on its card, in memory slices.
type Placement struct {
	Profile string `json:"profile"` // 1g.18gb
	Start   int    `json:"start"`   // first memory slice
	Size    int    `json:"size"`    // how many
}

// String is the profile and the slices.
func (p Placement) String() string {
	return fmt.Sprintf("%s at slice %d", p.Profile, p.Start)
}

// Overlaps says whether two instances cannot be on one card.
func (p Placement) Overlaps(q Placement) bool {
	return p.Start < q.Start+q.Size && q.Start < p.Start+p.Size
}

// emptiest is the card with the most free memory, of those that take requests at all; ok is false where there is none.
func emptiest(gpus []GPU, r Request) (g GPU, ok bool) {
	open := slices.DeleteFunc(slices.Clone(gpus), func(g GPU) bool { return g.refuses(r) != "" })
	if len(open) == 0 {
		return GPU{}, false
	}
	return slices.MaxFunc(open, func(a, b GPU) int { return cmp.Compare(a.FreeMemory(), b.FreeMemory()) }), true
}
