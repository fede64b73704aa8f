// Package share decides how a GPU is divided. It is pure: the same node and the same request give the same answer.
//
// A Request is what a tenant asks for, through whichever door it came: `kerf run`, a ResourceClaim, the device plugin.
// Decide answers with a Grant, or with an error that a person can act on: what was asked, what was found, what to do.
//
//	memory   bytes of one GPU's memory, guaranteed and a hard limit
//	cores    percent of one GPU's time: a guaranteed share. 0 is best effort: the time that others leave
//	class    who waits and who gives way first under pressure
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

// Request is what a tenant asks for.
type Request struct {
	Memory node.Bytes   `json:"memory"`         // on each GPU
	Cores  node.Percent `json:"cores"`          // of each GPU's time
	GPUs   int          `json:"gpus,omitempty"` // how many; 0 means 1, or as many as GPU names
	GPU    []string     `json:"gpu,omitempty"`  // which: indices, UUIDs or beginnings of UUIDs; empty means any
	Class  Class        `json:"class,omitempty"`
}

// Device is a grant's part of one GPU.
type Device struct {
	UUID   node.UUID    `json:"uuid"`
	Index  int          `json:"index"` // when it was granted
	Memory node.Bytes   `json:"memory"`
	Cores  node.Percent `json:"cores"`
}

// Grant is what a tenant holds.
type Grant struct {
	Devices []Device `json:"devices"`
	Class   Class    `json:"class"`
}

// GPU is one GPU as the policy sees it: what can be granted there, and what is.
type GPU struct {
	UUID    node.UUID
	Index   int
	Memory  node.Bytes // that can be granted: the card's, less what the driver keeps
	Fault   string     // why nothing may be granted here; empty: nothing is wrong
	Granted []Device
}

// FreeMemory is what is left to grant, in bytes.
func (g GPU) FreeMemory() node.Bytes {
	used := node.Bytes(0)
	for _, d := range g.Granted {
		used += d.Memory
	}
	return g.Memory - min(used, g.Memory)
}

// FreeCores is what is left to guarantee, in percent.
func (g GPU) FreeCores() node.Percent {
	used := node.Percent(0)
	for _, d := range g.Granted {
		used += d.Cores
	}
	return 100 - min(used, 100)
}

func (g GPU) fits(r Request) bool {
	return g.Fault == "" && len(g.Granted) < MaxTenants && g.FreeMemory() >= r.Memory && g.FreeCores() >= r.Cores
}

// Normalize checks a request against itself and fills in what was left out.
func (r Request) Normalize() (Request, error) {
	r.Class = cmp.Or(r.Class, Guaranteed)
	r.GPUs = cmp.Or(r.GPUs, max(1, len(r.GPU)))
	switch {
	case r.Memory == 0:
		return r, errors.New("memory 0: a slice without memory can run nothing; ask for at least " + MinMemory.String())
	case r.Memory < MinMemory:
		return r, fmt.Errorf("memory %s: less than the %s in which the driver takes memory; ask for at least that", r.Memory, MinMemory)
	case r.Cores < 0 || r.Cores > 100:
		return r, r.Cores.Validate()
	case !slices.Contains(Classes, r.Class):
		return r, fmt.Errorf("class %q: not known; use guaranteed, burstable or besteffort", r.Class)
	case r.GPUs < 0 || r.GPUs > MaxGPUs:
		return r, fmt.Errorf("gpus %d: outside 1 to %d, the most that one share can hold; ask for fewer", r.GPUs, MaxGPUs)
	case len(r.GPU) > 0 && r.GPUs != len(r.GPU):
		return r, fmt.Errorf("gpus %d: but %d GPUs are named; leave one of the two out", r.GPUs, len(r.GPU))
	}
	return r, nil
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
	grant := Grant{Class: r.Class}
	for _, g := range chosen {
		grant.Devices = append(grant.Devices, Device{UUID: g.UUID, Index: g.Index, Memory: r.Memory, Cores: r.Cores})
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
	if largest := slices.MaxFunc(gpus, func(a, b GPU) int { return cmp.Compare(a.Memory, b.Memory) }); r.Memory > largest.Memory {
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
		case r.Memory > g.Memory:
			return nil, fmt.Errorf("memory %s: GPU %d has %s; ask for less", r.Memory, g.Index, g.Memory)
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

// noRoom says what stands in the way: faults, memory or cores.
func noRoom(gpus []GPU, r Request, fitting int) error {
	healthy := slices.DeleteFunc(slices.Clone(gpus), func(g GPU) bool { return g.Fault != "" })
	if len(healthy) == 0 {
		return fmt.Errorf("GPU %d: %s; nothing is granted there until that is cleared (kerf doctor)", gpus[0].Index, gpus[0].Fault)
	}
	roomiest := slices.MaxFunc(healthy, func(a, b GPU) int { return cmp.Compare(a.FreeMemory(), b.FreeMemory()) })
	asked := fmt.Sprintf("memory %s and %d%% of cores", r.Memory, int(r.Cores))
	if r.GPUs > 1 {
		asked += fmt.Sprintf(" on each of %d GPUs", r.GPUs)
	}
	if len(roomiest.Granted) >= MaxTenants {
		return fmt.Errorf("%s: asked, but GPU %d has %d shares, the most that one can have; wait for a share to end (kerf top)", asked, roomiest.Index, MaxTenants)
	}
	where := fmt.Sprintf("the most free memory is %s, on GPU %d, which has %d%% of cores left", roomiest.FreeMemory(), roomiest.Index, int(roomiest.FreeCores()))
	if fitting > 0 {
		where = fmt.Sprintf("%d GPUs have room for that", fitting)
	}
	return fmt.Errorf("%s: asked, but %s; ask for less, or wait for a share to end (kerf top)", asked, where)
}
