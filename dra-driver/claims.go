package dra

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"

	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/dynamic-resource-allocation/resourceclaim"

	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/vgpu/ledger"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

// allocation is one result of a claim on this node, and what it asks of the ledger.
type allocation struct {
	result resourceapi.DeviceRequestAllocationResult
	card   Card
	ask    ledger.Ask
}

// Owner is the claim as the ledger knows it.
func Owner(claim *resourceapi.ResourceClaim) ledger.Owner {
	return ledger.Owner{UID: string(claim.UID), Namespace: claim.Namespace, Name: claim.Name}
}

// allocations reads what the scheduler gave to a claim, of this driver. It is pure, and trusts nothing: a scheduler may be older
// than the slices, or have allocated from slices that are gone. All of a claim or nothing: the first error ends it.
func allocations(claim *resourceapi.ResourceClaim, nodeName string, cards []Card) (all []allocation, err error) {
	if claim.Status.Allocation == nil {
		return nil, errors.New("it is not allocated; this is the scheduler's part, so see the events of the pod")
	}
	keys := make(map[string]string)
	for _, result := range claim.Status.Allocation.Devices.Results {
		if result.Driver != DriverName {
			continue
		}
		a, err := allocate(claim, result, nodeName, cards)
		if err != nil {
			return nil, fmt.Errorf("request %s: %w", result.Request, err)
		}
		if first, twice := keys[a.ask.Key]; twice {
			return nil, fmt.Errorf("request %s: device %s is allocated twice without a share id, to %s too: the scheduler's feature gate "+
				"DRAConsumableCapacity is off; enable it, or ask for distinct devices", result.Request, result.Device, first)
		}
		keys[a.ask.Key] = result.Request
		all = append(all, a)
	}
	return all, nil
}

func allocate(claim *resourceapi.ResourceClaim, result resourceapi.DeviceRequestAllocationResult, nodeName string, cards []Card) (a allocation, err error) {
	if result.Pool != nodeName {
		return a, fmt.Errorf("device %s is in pool %s, and this is node %s; delete the pod, so that it is scheduled anew", result.Device, result.Pool, nodeName)
	}
	card, at, err := find(cards, result.Device)
	if err != nil {
		return a, err
	}
	config, err := configured(claim.Status.Allocation.Devices.Config, result)
	if err != nil {
		return a, err
	}
	request, err := amounts(card, at, result.ConsumedCapacity)
	if err != nil {
		return a, err
	}
	if result.AdminAccess != nil && *result.AdminAccess {
		request.Admin = true
	}
	if err := config.apply(&request, card); err != nil {
		return a, err
	}
	return allocation{result: result, card: card, ask: ledger.Ask{Key: key(claim, result), Request: request}}, nil
}

// key names a share within our door, and its CDI device. Runtimes cache CDI devices by name, so a name is never used again: the
// claim's UID is in it. Without a share id there is one share for each request and device.
func key(claim *resourceapi.ResourceClaim, result resourceapi.DeviceRequestAllocationResult) string {
	if result.ShareID != nil {
		return fmt.Sprintf("%s-%s", claim.UID, *result.ShareID)
	}
	sum := sha256.Sum256([]byte(result.Request + "/" + result.Device))
	return fmt.Sprintf("%s-%s", claim.UID, hex.EncodeToString(sum[:4]))
}

// find is the card behind a device that was published, and the placement where it is one. A long name is good for a card that is
// published by its short one, too: the other card that begins alike may be lost by now.
func find(cards []Card, device string) (Card, *place, error) {
	for _, c := range distinct(cards) {
		long := c
		long.twin = true
		for _, c := range []Card{c, long} {
			if c.mode() != share.ModeMIG && deviceName(c) == device {
				return c, nil, nil
			}
			if c.mode() != share.ModeMIG {
				continue
			}
			for _, p := range places(c) {
				if placementName(c, p.at) == device {
					return c, &p, nil
				}
			}
		}
	}
	return Card{}, nil, fmt.Errorf("device %s is not on this node (any more): %d cards are, and kerf doctor tells of each; "+
		"delete the pod, so that it is scheduled anew", device, len(cards))
}

// amounts is what the scheduler says was consumed. What it does not say is the device's default, as schedulers without consumable
// capacity give the whole device.
func amounts(c Card, at *place, consumed map[resourceapi.QualifiedName]resource.Quantity) (r share.Request, err error) {
	r = share.Request{GPU: []string{c.UUID.String()}, Memory: floorMiB(c.Share.Memory), Tenants: 1}
	switch {
	case at != nil:
		placement := at.at
		r.Placement, r.Memory, r.Cores = &placement, at.profile.Memory, 100
		return r, nil
	case c.mode() == share.ModeExclusive:
		r.Memory, r.Cores, r.Tenants = c.Share.Memory, 100, share.MaxTenants
		return r, nil
	}
	for _, name := range sortedKeys(consumed) {
		quantity := consumed[name]
		switch local(name) {
		case capMemory:
			r.Memory, err = within[node.Bytes](name, quantity, node.Bytes(1), r.Memory)
		case capCores:
			r.Cores, err = within[node.Percent](name, quantity, 0, 100)
		case capTenants:
			r.Tenants, err = within(name, quantity, 1, share.MaxTenants)
		default:
			err = fmt.Errorf("capacity %s %s: not known to this driver, so it cannot be held to; leave it out, or update Kerf on the node", name, quantity.String())
		}
		if err != nil {
			return r, err
		}
	}
	return r, nil
}

// local is a capacity's name without our own domain.
func local(name resourceapi.QualifiedName) string {
	const domain = DriverName + "/"
	if len(name) > len(domain) && name[:len(domain)] == domain {
		return string(name[len(domain):])
	}
	return string(name)
}

func within[T ~uint64 | ~int](name resourceapi.QualifiedName, q resource.Quantity, least, most T) (T, error) {
	if v := q.Value(); v >= int64(least) && v <= int64(most) {
		return T(v), nil
	}
	return 0, fmt.Errorf("%s %s consumed, outside %v to %v of this device, so the scheduler has seen another one; "+
		"delete the pod, so that it is scheduled anew", name, q.String(), least, most)
}

// configured is the configuration for one result: the class's as ceiling, the claim's below it. ConfigForResult knows of requests
// that are alternatives of another one. Other drivers' configurations are theirs.
func configured(configs []resourceapi.DeviceAllocationConfiguration, result resourceapi.DeviceRequestAllocationResult) (ShareConfig, error) {
	var class, claim ShareConfig
	err := Configs(DriverName, configs, result, func(raw []byte, fromClass bool) error {
		decoded, err := DecodeConfig(raw)
		if fromClass {
			class = Overlay(class, decoded)
		} else {
			claim = Overlay(claim, decoded)
		}
		return err
	})
	if err != nil {
		return ShareConfig{}, err
	}
	return class.Tighten(claim)
}

// Configs hands over each opaque configuration for one result that is a driver's, in order.
func Configs(driver string, configs []resourceapi.DeviceAllocationConfiguration, result resourceapi.DeviceRequestAllocationResult, each func(raw []byte, fromClass bool) error) error {
	for _, c := range resourceclaim.ConfigForResult(configs, result) {
		if c.Opaque.Driver != driver {
			continue
		}
		if err := each(c.Opaque.Parameters.Raw, c.Source == resourceapi.AllocationConfigSourceClass); err != nil {
			return fmt.Errorf("config from the %s: %w", author(c.Source), err)
		}
	}
	return nil
}

func author(source resourceapi.AllocationConfigSource) string {
	if source == resourceapi.AllocationConfigSourceClass {
		return "DeviceClass"
	}
	return "claim"
}

// apply puts the configuration into a request.
func (c ShareConfig) apply(r *share.Request, on Card) error {
	if c.MemoryLimit != nil {
		r.Limit = node.Bytes(c.MemoryLimit.Value())
	}
	if c.MinResident != nil {
		r.MinResident = node.Bytes(c.MinResident.Value())
	}
	if c.Class != nil {
		r.Class = *c.Class
	}
	if c.Backend != nil {
		r.Backend = *c.Backend
	}
	r.Capped = c.Burst != nil && !*c.Burst
	if c.Tier != nil && *c.Tier == TierMPS {
		r.Tier = share.TierMPS
	}
	if r.Admin {
		*r = share.Request{Admin: true, GPU: r.GPU}
		return nil
	}
	if _, err := r.Normalize(); err != nil {
		return err
	}
	return c.checkTier(*r, on)
}

// checkTier: a tier is not a wish that changes the device; it says which devices will do, after the fact of a DeviceClass that let
// through another one.
func (c ShareConfig) checkTier(r share.Request, on Card) error {
	if c.Tier == nil {
		return nil
	}
	alone := r.Tenants == share.MaxTenants || on.mode() == share.ModeVGPU && r.Memory >= floorMiB(on.Share.Memory)
	refuse := func(fix string) error {
		return fmt.Errorf("tier %s: GPU %d is in mode %s; %s", *c.Tier, on.Index, on.mode(), fix)
	}
	switch mode := on.mode(); {
	case *c.Tier == TierMPS && mode != share.ModeVGPU:
		return refuse("MPS divides cards in mode vgpu: use the DeviceClass gpu-shared")
	case *c.Tier == TierMPS && on.Share.NoMPS != "":
		return fmt.Errorf("tier mps: GPU %d: %s", on.Index, on.Share.NoMPS)
	case *c.Tier == TierMIG && mode != share.ModeMIG:
		return refuse("use the DeviceClass gpu-mig")
	case *c.Tier == TierTime && (mode == share.ModeMIG || mode == share.ModeExclusive):
		return refuse("use the DeviceClass gpu-shared")
	case *c.Tier == TierWhole && !alone:
		return refuse(fmt.Sprintf("ask for capacity tenants: %d, which has the card alone", share.MaxTenants))
	}
	return nil
}
