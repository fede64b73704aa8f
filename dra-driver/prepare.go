package dra

import (
	"context"
	"fmt"
	"runtime/debug"
	"time"

	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/dynamic-resource-allocation/kubeletplugin"
)

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
			err = d.failed("prepare", fmt.Errorf("claim %s: %w", Owner(claim), err))
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
	all, err := d.kind.Prepare(ctx, claim)
	if err != nil || len(all) == 0 {
		return nil, err
	}
	for _, p := range all {
		if d.config.CDIDir == "" {
			p.Device.Metadata = nil // it is a file that a CDI spec mounts
		}
		devices = append(devices, p.Device)
	}
	d.status.want(claim, all)
	return devices, nil
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
	return d.kind.Unprepare(ctx, uid)
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
