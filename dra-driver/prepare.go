package dra

import (
	"context"
	"fmt"
	"runtime/debug"
	"time"

	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/dynamic-resource-allocation/kubeletplugin"

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

// prepareTimeout leaves kubelet, which gives up after 45 s, time to hear why.
const prepareTimeout = 30 * time.Second

// PrepareResourceClaims implements kubeletplugin.DRAPlugin. Every claim has an answer of its own; none fails another.
func (d *Driver) PrepareResourceClaims(ctx context.Context, claims []*resourceapi.ResourceClaim) (map[types.UID]kubeletplugin.PrepareResult, error) {
	defer d.metrics.prepareTime(time.Now())
	ctx, cancel := context.WithTimeout(ctx, prepareTimeout)
	defer cancel()
	results := make(map[types.UID]kubeletplugin.PrepareResult, len(claims))
	for _, claim := range claims {
		devices, err := d.prepare(ctx, claim)
		if err != nil {
			err = d.failed("prepare", fmt.Errorf("claim %s: %w", owner(claim), err))
		}
		results[claim.UID] = kubeletplugin.PrepareResult{Devices: devices, Err: err}
	}
	return results, nil
}

func (d *Driver) prepare(ctx context.Context, claim *resourceapi.ResourceClaim) (devices []kubeletplugin.Device, err error) {
	defer d.recovered("prepare", &devices, &err)
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("the time for this was over before its turn: %w; kubelet asks again", err)
	}
	all, err := allocations(claim, d.config.NodeName, d.config.Cards())
	if err != nil || len(all) == 0 {
		return nil, err
	}
	asks := make([]ledger.Ask, len(all))
	for i, a := range all {
		asks[i] = a.ask
	}
	held, err := d.config.Shares.Hold(ctx, owner(claim), asks)
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
		devices = append(devices, d.deviceOf(a, h))
	}
	d.status.want(claim, all, byKey)
	return devices, nil
}

// deviceOf is the answer for one result.
func (d *Driver) deviceOf(a allocation, h ledger.Held) kubeletplugin.Device {
	device := kubeletplugin.Device{Requests: []string{a.result.Request}, PoolName: a.result.Pool, DeviceName: a.result.Device,
		CDIDeviceIDs: []string{h.CDI}, ShareID: a.result.ShareID}
	if d.config.CDIDir != "" {
		m := attributes(a.card, d.config.Options)
		for _, part := range h.Grant.Devices {
			m.share(part.Memory, part.Limit, part.Cores)
		}
		device.Metadata = &kubeletplugin.DeviceMetadata{Attributes: named(m)}
	}
	return device
}

func named(m attributeMap) map[string]resourceapi.DeviceAttribute {
	all := make(map[string]resourceapi.DeviceAttribute, len(m))
	for name, value := range m {
		all[string(name)] = value
	}
	return all
}

// UnprepareResourceClaims implements kubeletplugin.DRAPlugin. A claim that holds nothing is done.
func (d *Driver) UnprepareResourceClaims(ctx context.Context, claims []kubeletplugin.NamespacedObject) (map[types.UID]error, error) {
	results := make(map[types.UID]error, len(claims))
	for _, claim := range claims {
		if err := d.unprepare(ctx, string(claim.UID)); err != nil {
			results[claim.UID] = d.failed("unprepare", fmt.Errorf("claim %s: %w", claim.NamespacedName, err))
			continue
		}
		results[claim.UID] = nil
	}
	return results, nil
}

func (d *Driver) unprepare(ctx context.Context, uid string) (err error) {
	defer d.recovered("unprepare", nil, &err)
	d.status.forget(uid)
	return d.config.Shares.Drop(ctx, uid)
}

// recovered makes an error of a panic: one claim that nobody thought of must not take the others' driver away.
func (d *Driver) recovered(verb string, devices *[]kubeletplugin.Device, err *error) {
	cause := recover()
	if cause == nil {
		return
	}
	if devices != nil {
		*devices = nil
	}
	*err = fmt.Errorf("%s panicked (%v); this is a mistake in Kerf, please report it with the log of kerfd", verb, cause)
	d.config.report(fmt.Errorf("%s panicked: %v\n%s", verb, cause, debug.Stack()))
}

// failed counts an error on its way to kubelet.
func (d *Driver) failed(kind string, err error) error {
	d.metrics.errors.WithLabelValues(kind).Inc()
	return err
}
