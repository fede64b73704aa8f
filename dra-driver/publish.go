package dra

import (
	"context"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/dynamic-resource-allocation/resourceslice"
)

// publisher is the part of kubeletplugin.Helper that publishes. It retries by itself what the API server does not take.
type publisher interface {
	PublishResources(ctx context.Context, resources resourceslice.DriverResources) error
}

// publishDebounce gathers changes: a driver that loses its devices loses them one by one, and each write goes to every scheduler.
const publishDebounce = 250 * time.Millisecond

// publishEvery is the least between two writes, whatever burst of faults there is.
const publishEvery = time.Second

// publish hands slices to the library at first, and whenever they differ, until ctx ends.
func (d *Driver) publish(ctx context.Context, to publisher) {
	var last *resourceslice.DriverResources
	var written time.Time
	for {
		changed := d.changed.wait() // before the look: what changes meanwhile is seen
		wanted := d.kind.Resources()
		var retry <-chan time.Time
		if last == nil || !equality.Semantic.DeepEqual(*last, wanted) {
			if err := to.PublishResources(ctx, wanted); err != nil {
				d.config.report(d.failed("publish", fmt.Errorf("publish slices of node %s: %w", d.config.NodeName, err)))
				retry = time.After(10 * time.Second)
			} else {
				last, written = &wanted, time.Now()
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-retry:
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(max(publishDebounce, publishEvery-time.Since(written))):
		}
	}
}
