package dra

import (
	"context"
	"fmt"
	"slices"

	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/dynamic-resource-allocation/kubeletplugin"
	"k8s.io/dynamic-resource-allocation/resourceslice"

	"github.com/kerf-gpu/kerf/vgpu/ledger"
)

// Shares is what this driver needs of the node: shares, by owner. It is safe for use by several goroutines, for the same owner too:
// two pods may share a claim, and kubelet prepares pods side by side.
type Shares interface {
	// Hold takes all asks of an owner or none, puts the shares in force and writes their CDI specs. Convergent: asked again
	// it gives the same shares, and makes anew what was lost. What does not fit a card is refused, whatever the scheduler said.
	Hold(ctx context.Context, owner ledger.Owner, asks []ledger.Ask) ([]ledger.Held, error)
	// Drop ends all shares of an owner; nil where there are none. While processes are in one it is an error: try again.
	Drop(ctx context.Context, ownerUID string) error
	// Owners is who holds anything through this door.
	Owners() []ledger.Owner
}

// gpuDevices is GPUs and their slices, as a Kind.
type gpuDevices struct{ config Config }

func (g *gpuDevices) Resources() resourceslice.DriverResources {
	return Slices(g.config.NodeName, g.cards(), g.config.Options)
}

// cards are all of them, with what is known of their health.
func (g *gpuDevices) cards() []Card {
	cards := g.config.Cards()
	if g.config.Judge == nil {
		return cards
	}
	cards = slices.Clone(cards)
	for i := range cards {
		if h, ok := g.config.Judge.Health(cards[i].UUID); ok {
			cards[i].Health = &h
		}
	}
	return cards
}

func (g *gpuDevices) Unprepare(ctx context.Context, uid string) error {
	return g.config.Shares.Drop(ctx, uid)
}
func (g *gpuDevices) Owners() []ledger.Owner { return g.config.Shares.Owners() }

func (g *gpuDevices) Prepare(ctx context.Context, claim *resourceapi.ResourceClaim) (prepared []Prepared, err error) {
	all, err := allocations(claim, g.config.NodeName, g.config.Cards())
	if err != nil || len(all) == 0 {
		return nil, err
	}
	asks := make([]ledger.Ask, len(all))
	for i, a := range all {
		asks[i] = a.ask
	}
	held, err := g.config.Shares.Hold(ctx, Owner(claim), asks)
	if err != nil {
		return nil, err
	}
	byKey := make(map[string]ledger.Held, len(held))
	for _, h := range held {
		byKey[h.Holder.Key] = h
	}
	for _, a := range all {
		h, ok := byKey[a.ask.Key]
		if !ok || h.CDI == "" {
			return nil, fmt.Errorf("request %s: the share has no CDI device; this is a mistake in Kerf, please report it", a.result.Request)
		}
		prepared = append(prepared, Prepared{Device: g.deviceOf(a, h), Status: statusOf(a, h)})
	}
	return prepared, nil
}

// deviceOf is the answer for one result.
func (g *gpuDevices) deviceOf(a allocation, h ledger.Held) kubeletplugin.Device {
	m := attributes(a.card, g.config.Options)
	for _, part := range h.Grant.Devices {
		m.share(part.Memory, part.Limit, part.Cores)
	}
	return kubeletplugin.Device{Requests: []string{a.result.Request}, PoolName: a.result.Pool, DeviceName: a.result.Device,
		CDIDeviceIDs: []string{h.CDI}, ShareID: a.result.ShareID, Metadata: &kubeletplugin.DeviceMetadata{Attributes: named(m)}}
}

func named(m Attributes) map[string]resourceapi.DeviceAttribute {
	all := make(map[string]resourceapi.DeviceAttribute, len(m))
	for name, value := range m {
		all[string(name)] = value
	}
	return all
}

// Health: a card's placements are as well as the card.
func (g *gpuDevices) Health() (all []DeviceHealth) {
	for _, c := range ordered(distinct(g.cards()), Binpack) {
		health, message := healthOf(c)
		for _, device := range deviceNames(c) {
			all = append(all, DeviceHealth{device, health, message})
		}
	}
	return all
}
