package dra

import (
	"fmt"
	"maps"
	"slices"

	resourceapi "k8s.io/api/resource/v1"

	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

// places lists every MIG placement of a card, in the order of the driver's profiles. The size in memory slices is the driver's
// word; a driver that does not say it has no placements here.
func places(c Card) (found []place) {
	for _, profile := range c.MIG.Profiles {
		for _, start := range profile.Placements {
			if profile.Size > 0 && start >= 0 && start+profile.Size <= share.MIGSlices {
				found = append(found, place{profile, share.Placement{Profile: profile.Name, Start: start, Size: profile.Size}})
			}
		}
	}
	return found
}

type place struct {
	profile node.MIGProfile
	at      share.Placement
}

// placements is a device for each placement of a card, and the counters that say which of them can be together: each memory slice
// once, as many compute slices as the card has, and for a profile that the card cannot have in all its places (1g.18gb+me: there
// is one media engine to give away) how often it can.
func placements(c Card, base resourceapi.Device) (devices []resourceapi.Device, set resourceapi.CounterSet) {
	set = resourceapi.CounterSet{Name: deviceName(c), Counters: counters{}}
	for _, p := range places(c) {
		if slices.ContainsFunc(c.Share.Foreign, p.at.Overlaps) {
			continue // somebody else's instance is there: a claim would be allocated, and refused again and again
		}
		d := *base.DeepCopy()
		d.Name = placementName(c, p.at)
		a := Attributes(d.Attributes)
		a.Text("type", "mig")
		a.Text("profile", p.profile.Name)
		a.Number("multiprocessors", int64(p.profile.SMs))
		d.Capacity = whole(p.profile.Memory)
		consumed := consumption(p)
		d.ConsumesCounters = []resourceapi.DeviceCounterConsumption{{CounterSet: set.Name, Counters: consumed}}
		devices = append(devices, d)
		maps.Copy(set.Counters, available(c, p, consumed))
	}
	return devices, set
}

type counters = map[string]resourceapi.Counter

const computeSlices = "compute-slices"

// consumption is what a placement takes away.
func consumption(p place) counters {
	taken := counters{computeSlices: {Value: count(int64(p.profile.Slices))}}
	for slice := p.at.Start; slice < p.at.Start+p.at.Size; slice++ {
		taken[fmt.Sprintf("memory-slice-%d", slice)] = resourceapi.Counter{Value: count(1)}
	}
	if p.profile.MaxCount < len(p.profile.Placements) {
		taken[label(p.profile.Name)] = resourceapi.Counter{Value: count(1)}
	}
	return taken
}

// available is how much of what a placement takes there is on the card.
func available(c Card, p place, consumed counters) counters {
	has := maps.Clone(consumed) // of each memory slice there is one
	most := 0
	for _, profile := range c.MIG.Profiles {
		most = max(most, profile.Slices)
	}
	has[computeSlices] = resourceapi.Counter{Value: count(int64(most))}
	if name := label(p.profile.Name); has[name] != (resourceapi.Counter{}) {
		has[name] = resourceapi.Counter{Value: count(int64(p.profile.MaxCount))}
	}
	return has
}
