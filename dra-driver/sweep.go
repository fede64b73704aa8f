package dra

import (
	"context"
	"fmt"
	"time"

	resourceapi "k8s.io/api/resource/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kerf-gpu/kerf/vgpu/ledger"
)

// sweepInterval and sightings: an owner is an orphan when its claim was found gone so often, so far apart. kubelet unprepares what
// it knows; what it has forgotten (its state was lost, a pod was deleted by force) is found here.
const (
	sweepInterval = time.Minute
	sightings     = 2
)

// sweepOrphans runs until ctx ends.
func (d *Driver) sweepOrphans(ctx context.Context) {
	ticker := time.NewTicker(sweepInterval)
	defer ticker.Stop()
	missed := make(map[string]int)
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			missed = d.sweep(ctx, missed)
			d.reportFailed("sweep", d.sweepTemporary(now))
		}
	}
}

// sweep looks once at every owner, and drops those that were missed often enough. An API server that does not answer has
// not said that a claim is gone.
func (d *Driver) sweep(ctx context.Context, before map[string]int) map[string]int {
	missed := make(map[string]int)
	for _, o := range d.kind.Owners() {
		gone, err := d.orphan(ctx, o)
		switch {
		case ctx.Err() != nil:
			return before
		case err != nil:
			d.config.report(d.failed("sweep", fmt.Errorf("look for claim %s: %w", o, err)))
			missed[o.UID] = before[o.UID]
		case !gone:
		case before[o.UID]+1 < sightings:
			missed[o.UID] = before[o.UID] + 1
		default:
			missed[o.UID] = sightings // it stays due until it is dropped
			if err := d.unprepare(ctx, o.UID); err == nil {
				d.reportFailed("sweep", d.forgetMetadata(o))
			} else {
				d.config.report(d.failed("sweep", fmt.Errorf("end what claim %s holds, which is gone: %w", o, err)))
			}
		}
	}
	return missed
}

// reportFailed tells of an error in the background.
func (d *Driver) reportFailed(kind string, err error) {
	if err != nil {
		d.config.report(d.failed(kind, err))
	}
}

// orphan reports whether an owner's claim is gone, is another claim of that name by now, or is not allocated here.
func (d *Driver) orphan(ctx context.Context, o ledger.Owner) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	claim, err := d.config.Client.ResourceV1().ResourceClaims(o.Namespace).Get(ctx, o.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return true, nil
	case err != nil:
		return false, err
	}
	return string(claim.UID) != o.UID || !d.allocatedHere(claim), nil
}

func (d *Driver) allocatedHere(claim *resourceapi.ResourceClaim) bool {
	if claim.Status.Allocation == nil {
		return false
	}
	for _, r := range claim.Status.Allocation.Devices.Results {
		if r.Driver == d.name && r.Pool == d.config.NodeName {
			return true
		}
	}
	return false
}
