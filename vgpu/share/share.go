// Package share decides how a GPU is divided. It is pure: the same node and the same request give the same answer.
//
// A Request is what a tenant asks for, through whichever door it came: `kerf run`, a ResourceClaim, the device plugin.
// Decide answers with a Grant, or with an error that a person can act on: what was asked, what was found, what to do.
//
//	memory   bytes of one GPU's memory, guaranteed and a hard limit
//	cores    percent of one GPU's time: a guaranteed share. 0 is the time that others leave, and a floor of a fiftieth for all such
//	class    who waits and who gives way first under pressure
//	tier     by what means the card is divided: in time, where one at a time has it, or by MPS, where kernels of all run at once
//	tenants  as how many of a card's 32 places a share counts: 32 has the card alone
//
// Trap: memory and cores are for each GPU of a grant, not for all of them together.
package share

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/kerf-gpu/kerf/internal/node"
)

// MaxGPUs is how many GPUs one share can hold: the devices of a policy page.
const MaxGPUs = 16

// MaxTenants is how many shares one GPU can have.
const MaxTenants = 32

// MinMemory is the smallest slice: the granule in which the driver takes memory.
const MinMemory = 2 * node.MiB

// Class says who waits and who gives way first.
type Class string

// The classes, strongest first.
const (
	Guaranteed Class = "guaranteed"
	Burstable  Class = "burstable"
	BestEffort Class = "besteffort"
)

// Classes lists every class, strongest first.
var Classes = []Class{Guaranteed, Burstable, BestEffort}

// Tier is by what means a card is divided among its shares. A card has shares of one tier at a time.
type Tier string

// The tiers of cards in mode vgpu; what the hardware divides is a mode.
const (
	TierTime Tier = "time" // one at a time has the GPU
	TierMPS  Tier = "mps"  // kernels of all run at once, through NVIDIA's Multi-Process Service, for tenants who trust each other
)

// Tiers lists every tier.
var Tiers = []Tier{TierTime, TierMPS}

// Backend is what enforces a limit.
type Backend string

// The backends.
const (
	BackendAuto   Backend = "auto"   // whatever the node has, both where it has both
	BackendShim   Backend = "shim"   // Kerf's library in front of the driver's
	BackendNative Backend = "native" // the driver itself, by control group
)

// Backends lists every backend.
var Backends = []Backend{BackendAuto, BackendShim, BackendNative}

// Request is what a tenant asks for.
type Request struct {
	Memory      node.Bytes   `json:"memory"`                // on each GPU
	Limit       node.Bytes   `json:"limit,omitempty"`       // the hard limit; 0 means Memory. More is a burst into what is free
	Cores       node.Percent `json:"cores"`                 // of each GPU's time
	Capped      bool         `json:"capped,omitempty"`      // Cores is a limit too
	Class       Class        `json:"class,omitempty"`       // empty means guaranteed
	Tier        Tier         `json:"tier,omitempty"`        // empty means time
	Tenants     int          `json:"tenants,omitempty"`     // as how many it counts; 0 means 1, MaxTenants has the card alone
	MinResident node.Bytes   `json:"minResident,omitempty"` // never swapped out
	Backend     Backend      `json:"backend,omitempty"`     // empty means auto
	Admin       bool         `json:"admin,omitempty"`       // it watches, and holds nothing
	GPUs        int          `json:"gpus,omitempty"`        // how many; 0 means 1, or as many as GPU names
	GPU         []string     `json:"gpu,omitempty"`         // which: indices, UUIDs or beginnings of UUIDs; empty means any
	Placement   *Placement   `json:"placement,omitempty"`   // of a MIG instance; Memory is then what its profile has
}

func (r Request) tenants() int { return max(1, r.Tenants) }

// Device is a grant's part of one GPU.
type Device struct {
	UUID      node.UUID    `json:"uuid"`
	Index     int          `json:"index"` // when it was granted
	Memory    node.Bytes   `json:"memory"`
	Limit     node.Bytes   `json:"limit,omitempty"` // 0 means Memory
	Cores     node.Percent `json:"cores"`
	Tenants   int          `json:"tenants,omitempty"` // 0 means 1
	Mode      Mode         `json:"mode,omitempty"`    // of the card, when it was granted; empty is vgpu
	Tier      Tier         `json:"tier,omitempty"`    // empty means time
	Placement *Placement   `json:"placement,omitempty"`
	MIG       node.MIGUUID `json:"mig,omitzero"` // the instance, once there is one
}

// HardLimit is what the tenant can have at most, in bytes.
func (d Device) HardLimit() node.Bytes { return max(d.Limit, d.Memory) }

// Grant is what a tenant holds.
type Grant struct {
	Devices     []Device   `json:"devices"`
	Class       Class      `json:"class"`
	Capped      bool       `json:"capped,omitempty"`
	MinResident node.Bytes `json:"minResident,omitempty"`
	Backend     Backend    `json:"backend,omitempty"`
	Admin       bool       `json:"admin,omitempty"`
}

// Tier is by what means the grant's cards are divided. It is the same for all of them.
func (g Grant) Tier() Tier {
	for _, d := range g.Devices {
		return cmp.Or(d.Tier, TierTime)
	}
	return TierTime
}

// Normalize checks a request against itself and fills in what was left out.
func (r Request) Normalize() (Request, error) {
	r.Class = cmp.Or(r.Class, Guaranteed)
	r.GPUs = cmp.Or(r.GPUs, max(1, len(r.GPU)))
	r.Backend = cmp.Or(r.Backend, BackendAuto)
	r.Tier = cmp.Or(r.Tier, TierTime)
	if r.Limit == r.Memory {
		r.Limit = 0
	}
	if r.Admin { // nothing is left that could be counted
		r = Request{Admin: true, GPUs: r.GPUs, GPU: r.GPU, Class: r.Class, Tier: TierTime, Backend: r.Backend, Memory: MinMemory}
	}
	switch {
	case r.Memory == 0:
		return r, errors.New("memory 0: a slice without memory can run nothing; ask for at least " + MinMemory.String())
	case r.Memory < MinMemory:
		return r, fmt.Errorf("memory %s: less than the %s in which the driver takes memory; ask for at least that", r.Memory, MinMemory)
	case r.Cores < 0 || r.Cores > 100:
		return r, r.Cores.Validate()
	case r.Capped && r.Cores == 0 && r.Placement == nil:
		return r, errors.New("cores 0 with burst: false: it would never run; ask for cores, or let it burst")
	case !slices.Contains(Classes, r.Class):
		return r, fmt.Errorf("class %q: not known; use guaranteed, burstable or besteffort", r.Class)
	case r.Limit != 0 && r.Limit < r.Memory:
		return r, fmt.Errorf("memoryLimit %s: less than the memory of %s that is guaranteed; set at least that, or leave it out", r.Limit, r.Memory)
	case r.MinResident > r.Memory:
		return r, fmt.Errorf("minResident %s: more than the memory of %s that is guaranteed; set at most that", r.MinResident, r.Memory)
	case r.Tenants < 0 || r.Tenants > MaxTenants:
		return r, fmt.Errorf("tenants %d: outside 1 to %d; %d has the card alone", r.Tenants, MaxTenants, MaxTenants)
	case !slices.Contains(Backends, r.Backend):
		return r, fmt.Errorf("backend %q: not known; use auto, shim or native", r.Backend)
	case r.GPUs < 0 || r.GPUs > MaxGPUs:
		return r, fmt.Errorf("gpus %d: outside 1 to %d, the most that one share can hold; ask for fewer", r.GPUs, MaxGPUs)
	case len(r.GPU) > 0 && r.GPUs != len(r.GPU):
		return r, fmt.Errorf("gpus %d: but %d GPUs are named; leave one of the two out", r.GPUs, len(r.GPU))
	}
	return r, r.checkTier()
}

// checkTier is what a tier cannot do on any card.
func (r Request) checkTier() error {
	switch {
	case !slices.Contains(Tiers, r.Tier):
		return fmt.Errorf("tier %q: not known; use time or mps", r.Tier)
	case r.Tier == TierTime:
		return nil
	case r.GPUs > 1:
		return fmt.Errorf("tier mps with %d GPUs: a program is the client of one MPS server, and each GPU has its own; ask for one GPU, or for tier time", r.GPUs)
	case r.Placement != nil:
		return fmt.Errorf("tier mps with MIG placement %s: it divides whole cards only; leave the tier out, or ask for memory of a card in mode vgpu", r.Placement)
	case r.Class != Guaranteed:
		return fmt.Errorf("class %s with tier mps: nobody waits there, and nobody gives way; leave the class out, or ask for tier time", r.Class)
	}
	return nil
}

// Decide answers a request. Unless GPUs are named, the fullest ones that fit are taken (binpack: whole GPUs stay whole for
// those who need one), the lowest index first among equals.
func Decide(gpus []GPU, request Request) (Grant, error) {
	r, err := request.Normalize()
	if err != nil {
		return Grant{}, err
	}
	if len(gpus) == 0 {
		return Grant{}, errors.New("no GPU on this node; see `kerf doctor`, or run kerfd --simulate h200x8 for simulated ones")
	}
	chosen, err := choose(gpus, r)
	if err != nil {
		return Grant{}, err
	}
	grant := Grant{Class: r.Class, Capped: r.Capped, MinResident: r.MinResident, Backend: r.Backend, Admin: r.Admin}
	for _, g := range chosen {
		grant.Devices = append(grant.Devices, g.part(r))
	}
	slices.SortFunc(grant.Devices, func(a, b Device) int { return cmp.Compare(a.Index, b.Index) })
	return grant, nil
}

func choose(gpus []GPU, r Request) ([]GPU, error) {
	if len(r.GPU) > 0 {
		return named(gpus, r)
	}
	if r.GPUs > len(gpus) {
		return nil, fmt.Errorf("gpus %d: this node has %d; ask for fewer", r.GPUs, len(gpus))
	}
	if largest := slices.MaxFunc(gpus, byMemory); r.Memory > largest.Memory {
		return nil, fmt.Errorf("memory %s: the largest GPU here has %s; ask for less", r.Memory, largest.Memory)
	}
	fitting := slices.DeleteFunc(slices.Clone(gpus), func(g GPU) bool { return !g.fits(r) })
	if len(fitting) < r.GPUs {
		return nil, noRoom(gpus, r, len(fitting))
	}
	slices.SortFunc(fitting, func(a, b GPU) int {
		return cmp.Or(cmp.Compare(a.FreeMemory(), b.FreeMemory()), cmp.Compare(a.FreeCores(), b.FreeCores()), cmp.Compare(a.Index, b.Index))
	})
	return fitting[:r.GPUs], nil
}

func named(gpus []GPU, r Request) (chosen []GPU, err error) {
	for _, name := range r.GPU {
		g, err := Find(gpus, name)
		switch {
		case err != nil:
			return nil, err
		case slices.ContainsFunc(chosen, func(c GPU) bool { return c.UUID == g.UUID }):
			return nil, fmt.Errorf("GPU %q: named twice, and a share has one part of a GPU; name it once", name)
		case !g.fits(r):
			return nil, noRoom([]GPU{g}, r, 0)
		}
		chosen = append(chosen, g)
	}
	return chosen, nil
}

// Find is the GPU that a person means: by index, UUID, or a beginning of one that only one GPU has.
func Find(gpus []GPU, name string) (GPU, error) {
	var found []GPU
	index, err := strconv.Atoi(name)
	for _, g := range gpus {
		text := strings.ToLower(g.UUID.String())
		wanted := strings.ToLower(name)
		isPrefix := len(wanted) >= 4 && (strings.HasPrefix(text, wanted) || strings.HasPrefix(strings.TrimPrefix(text, "gpu-"), wanted))
		if err == nil && g.Index == index {
			return g, nil
		}
		if isPrefix {
			found = append(found, g)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return GPU{}, fmt.Errorf("GPU %q: not on this node, which has %s; name one by index or UUID (kerf topo lists them)", name, span(gpus))
	}
	return GPU{}, fmt.Errorf("GPU %q: the beginning of %d UUIDs; write more of it", name, len(found))
}

func span(gpus []GPU) string {
	if len(gpus) == 0 {
		return "none"
	}
	indices := make([]string, len(gpus))
	for i, g := range gpus {
		indices[i] = strconv.Itoa(g.Index)
	}
	return "GPU " + strings.Join(indices, ", ")
}

// NoRoomError says that a request fits the card and not what others left of it: the same request may be granted once a share ends.
type NoRoomError struct{ reason string }

func (e *NoRoomError) Error() string { return e.reason }

// noRoom says what stands in the way: faults, modes, memory or cores.
func noRoom(gpus []GPU, r Request, fitting int) error {
	emptiest, ok := emptiest(gpus, r)
	if !ok {
		return gpus[0].refusal(r)
	}
	asked := fmt.Sprintf("memory %s and %d%% of cores", r.Memory, int(r.Cores))
	if r.GPUs > 1 {
		asked += fmt.Sprintf(" on each of %d GPUs", r.GPUs)
	}
	if free := emptiest.FreeTenants(); free < r.tenants() {
		return &NoRoomError{fmt.Sprintf("%s: asked, but GPU %d has room for %d more of the %d shares that one can have, and %d asked; wait for a share to end (kerf top)",
			asked, emptiest.Index, free, MaxTenants, r.tenants())}
	}
	where := fmt.Sprintf("the most free memory is %s, on GPU %d, which has %d%% of cores left", emptiest.FreeMemory(), emptiest.Index, int(emptiest.FreeCores()))
	if fitting > 0 {
		where = fmt.Sprintf("%d GPUs have room for that", fitting)
	}
	return &NoRoomError{fmt.Sprintf("%s: asked, but %s; ask for less, or wait for a share to end (kerf top)", asked, where)}
}
