package dra

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/dynamic-resource-allocation/resourceslice"

	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

// Card is a GPU as it is published: what it is, and how it is divided.
type Card struct {
	node.GPU
	Share   share.GPU  // grantable memory, mode, over-commit, fault; Granted filled in
	Pending share.Mode // the mode that it changes to when the last share has gone; empty: it stays
	Health  *Health    // what a monitor says of it; nil: nobody watches, and the card's own word counts
	twin    bool       // another card's UUID begins alike; see distinct
}

func (c Card) mode() share.Mode { return cmp.Or(c.Share.Mode, share.ModeVGPU) }

// Order is which card the scheduler tries first. Its allocator takes the first that fits, in the order of publishing.
type Order string

// The orders.
const (
	Binpack Order = "binpack" // by index: shares fill one card before they open the next
	Spread  Order = "spread"  // the emptiest first. Costs a write to the API server for each claim, and lags behind bursts of them
)

// Options are the node's choices in publishing.
type Options struct {
	Order   Order  // empty means Binpack
	Backend string // what enforces limits here, as attribute "backend"; empty: not said
}

// Limits of the API. A slice has 128 devices, but half of that with taints or counters; a taint can come at any time, and a
// pool whose slices are cut anew is incomplete for a moment, so slices are always cut for 64.
const (
	maxDevices     = 64
	maxCounterSets = 8
)

// Capacities and attributes of our own domain that more than one place names.
const (
	capMemory  = "memory"
	capCores   = "cores"
	capTenants = "tenants"
)

// Keys of taints.
const (
	TaintModeChange = DriverName + "/mode-change" // the value is the new mode
	TaintFault      = DriverName + "/fault"       // the value is what is wrong
)

// Slices is what the node publishes: one pool with the node's name, in which every card is one device that many claims can share;
// but a card in mode exclusive is a device that one claim has, and a card in mode mig is one device for each placement, over
// counters that say which placements exclude each other. Counters slow schedulers down (by a factor of 300 up to 1.36), so no
// other mode has them.
//
// A node without cards publishes an empty pool: the driver is there, and has nothing.
func Slices(nodeName string, cards []Card, options Options) resourceslice.DriverResources {
	var devices []resourceapi.Device
	var counters []resourceapi.CounterSet
	for _, c := range ordered(distinct(cards), options.Order) {
		if c.Share.Memory < share.MinMemory {
			continue // a lost card of which nothing was ever read: a device without memory is invalid, and the whole slice with it
		}
		base := device(c, options)
		switch c.mode() {
		case share.ModeMIG:
			placed, set := placements(c, base)
			if len(placed) > 0 {
				devices, counters = append(devices, placed...), append(counters, set)
			}
		case share.ModeExclusive:
			devices = append(devices, exclusive(c, base))
		default:
			devices = append(devices, shared(c, base))
		}
	}
	pool := resourceslice.Pool{}
	for set := range slices.Chunk(counters, maxCounterSets) {
		pool.Slices = append(pool.Slices, resourceslice.Slice{SharedCounters: set})
	}
	for chunk := range slices.Chunk(devices, maxDevices) {
		pool.Slices = append(pool.Slices, resourceslice.Slice{Devices: chunk})
	}
	if len(pool.Slices) == 0 {
		pool.Slices = []resourceslice.Slice{{}}
	}
	return resourceslice.DriverResources{Pools: map[string]resourceslice.Pool{nodeName: pool}}
}

func ordered(cards []Card, order Order) []Card {
	return slices.SortedStableFunc(slices.Values(cards), func(a, b Card) int {
		if order == Spread {
			return cmp.Or(cmp.Compare(b.Share.FreeMemory(), a.Share.FreeMemory()), cmp.Compare(a.Index, b.Index))
		}
		return cmp.Compare(a.Index, b.Index)
	})
}

// deviceName is the name of a card's device. Index and device node change over reboots; the UUID does not.
func deviceName(c Card) string {
	if c.twin {
		return "gpu-" + hex.EncodeToString(c.UUID[:])
	}
	return "gpu-" + c.UUID.Short()
}

// distinct marks the cards whose UUIDs begin alike: with one name for two devices the API server refuses the whole slice. Both get long
// names, whatever their order, so that a name never comes to mean the other card.
func distinct(cards []Card) []Card {
	begins := make(map[string]int)
	for _, c := range cards {
		begins[c.UUID.Short()]++
	}
	cards = slices.Clone(cards)
	for i, c := range cards {
		cards[i].twin = begins[c.UUID.Short()] > 1
	}
	return cards
}

// placementName is the name of a MIG placement's device: a DNS label, so 1g.18gb+me is written 1g-18gb-me.
func placementName(c Card, p share.Placement) string {
	return fmt.Sprintf("%s-mig-%s-%d", deviceName(c), label(p.Profile), p.Start)
}

func label(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, strings.ToLower(s))
}

// device is what all devices of a card have in common.
func device(c Card, options Options) resourceapi.Device {
	return resourceapi.Device{Name: deviceName(c), Attributes: attributes(c, options), Taints: taints(c)}
}

// shared is a card that many claims can have a part of. Every capacity has a policy: one without is consumed whole by the first
// claim, which makes a shared device exclusive.
func shared(c Card, d resourceapi.Device) resourceapi.Device {
	physical := floorMiB(c.Share.Memory)
	yes := true
	d.AllowMultipleAllocations = &yes
	d.Capacity = map[resourceapi.QualifiedName]resourceapi.DeviceCapacity{
		// A claim that names no memory takes all of it: the whole card, as gpu: 1 always meant.
		capMemory: consumable(sized(floorMiB(c.Share.Capacity())), sized(physical), sized(share.MinMemory), sized(physical), sized(node.MiB)),
		// Steps of 1 from 0: not asked for is best effort.
		capCores:   consumable(count(100), count(0), count(0), count(100), count(1)),
		capTenants: consumable(count(share.MaxTenants), count(1), count(1), count(share.MaxTenants), count(1)),
	}
	return d
}

// exclusive is a card that one claim has whole. It has the same capacities, so that claims which name an amount fit here too.
func exclusive(c Card, d resourceapi.Device) resourceapi.Device {
	d.Capacity = whole(c.Share.Memory)
	return d
}

// whole is the capacities of a device that is not shared: without policies, and never consumed.
func whole(memory node.Bytes) map[resourceapi.QualifiedName]resourceapi.DeviceCapacity {
	return map[resourceapi.QualifiedName]resourceapi.DeviceCapacity{
		capMemory:  {Value: sized(floorMiB(memory))},
		capCores:   {Value: count(100)},
		capTenants: {Value: count(share.MaxTenants)},
	}
}

func consumable(value, standard, least, most, step resource.Quantity) resourceapi.DeviceCapacity {
	return resourceapi.DeviceCapacity{Value: value, RequestPolicy: &resourceapi.CapacityRequestPolicy{
		Default:    &standard,
		ValidRange: &resourceapi.CapacityRequestPolicyRange{Min: &least, Max: &most, Step: &step},
	}}
}

// taints keep new claims away from a card; what runs there stays.
func taints(c Card) (taints []resourceapi.DeviceTaint) {
	if c.Pending != "" && c.Pending != c.mode() {
		taints = append(taints, resourceapi.DeviceTaint{Key: TaintModeChange, Value: string(c.Pending), Effect: resourceapi.DeviceTaintEffectNoSchedule})
	}
	if c.Health != nil {
		taints = append(taints, c.Health.Taints...)
	}
	if c.Share.Fault != "" {
		taints = append(taints, resourceapi.DeviceTaint{Key: TaintFault, Value: TaintValue(c.Share.Fault), Effect: resourceapi.DeviceTaintEffectNoSchedule})
	}
	return taints[:min(len(taints), resourceapi.DeviceTaintsMaxLength)]
}

// TaintValue makes a label value of a sentence.
func TaintValue(text string) string {
	value := label(text)
	return strings.Trim(value[:min(len(value), 63)], "-")
}

// floorMiB: the API server wants most-least to be whole steps of 1Mi, and cards have odd sizes.
func floorMiB(b node.Bytes) node.Bytes { return b / node.MiB * node.MiB }

func sized(b node.Bytes) resource.Quantity { return *resource.NewQuantity(int64(b), resource.BinarySI) }
func count(n int64) resource.Quantity      { return *resource.NewQuantity(n, resource.DecimalSI) }
