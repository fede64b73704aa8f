package dra

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	applymeta "k8s.io/client-go/applyconfigurations/meta/v1"
	apply "k8s.io/client-go/applyconfigurations/resource/v1"

	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/vgpu/ledger"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

// DeviceData is what ResourceClaim.status.devices says of a share. Memory in use is not in it: that would be a write to the API
// server every second; kerf top and the metrics have it.
type DeviceData struct {
	UUID      string        `json:"uuid"`
	Share     string        `json:"share"`
	Memory    string        `json:"memory"`
	Limit     string        `json:"limit"`
	Cores     node.Percent  `json:"cores"`
	Class     share.Class   `json:"class"`
	Backend   share.Backend `json:"backend,omitempty"`
	Simulated bool          `json:"simulated"`
}

// statuses writes claims' status in the background: a pod never waits for it, and losing it loses nothing else.
type statuses struct {
	driver  string
	mu      sync.Mutex
	pending map[types.UID]*apply.ResourceClaimApplyConfiguration
	wake    chan struct{}
}

func newStatuses(driver string) *statuses {
	return &statuses{driver: driver, pending: make(map[types.UID]*apply.ResourceClaimApplyConfiguration), wake: make(chan struct{}, 1)}
}

// want notes what a claim's status should be, unless it already is.
func (s *statuses) want(claim *resourceapi.ResourceClaim, all []Prepared) {
	desired := make([]resourceapi.AllocatedDeviceStatus, len(all))
	changed := false
	for i, p := range all {
		var same bool
		desired[i], same = s.deviceStatus(claim, p)
		changed = changed || !same
	}
	if !changed {
		return
	}
	s.mu.Lock()
	s.pending[claim.UID] = applied(claim, desired)
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// forget drops what was not written yet.
func (s *statuses) forget(uid string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.pending, types.UID(uid))
}

func (s *statuses) take() map[types.UID]*apply.ResourceClaimApplyConfiguration {
	s.mu.Lock()
	defer s.mu.Unlock()
	taken := s.pending
	s.pending = make(map[types.UID]*apply.ResourceClaimApplyConfiguration)
	return taken
}

// statusOf is what a claim's status says of a share.
func statusOf(a allocation, h ledger.Held) Status {
	data := DeviceData{UUID: a.card.UUID.String(), Share: h.ID, Class: h.Grant.Class, Backend: h.Grant.Backend, Simulated: a.card.Simulated}
	for _, part := range h.Grant.Devices {
		data.Memory, data.Limit, data.Cores = part.Memory.Exact(), part.HardLimit().Exact(), part.Cores
	}
	return Status{Message: "the share is in force", Data: data}
}

// deviceStatus is the status of one device; same is true where the claim says it already.
func (s *statuses) deviceStatus(claim *resourceapi.ResourceClaim, p Prepared) (status resourceapi.AllocatedDeviceStatus, same bool) {
	raw, _ := json.Marshal(p.Status.Data) // plain values: cannot fail
	status = resourceapi.AllocatedDeviceStatus{Driver: s.driver, Pool: p.Device.PoolName, Device: p.Device.DeviceName, ShareID: (*string)(p.Device.ShareID),
		Data: &runtime.RawExtension{Raw: raw}, NetworkData: p.Status.Network,
		Conditions: []metav1.Condition{{Type: "Ready", Status: metav1.ConditionTrue, Reason: "Prepared", Message: p.Status.Message,
			LastTransitionTime: metav1.Now()}}}
	for _, is := range claim.Status.Devices {
		if is.Driver != status.Driver || is.Pool != status.Pool || is.Device != status.Device ||
			!equality.Semantic.DeepEqual(is.ShareID, status.ShareID) || len(is.Conditions) != 1 {
			continue
		}
		status.Conditions[0].LastTransitionTime = is.Conditions[0].LastTransitionTime
		return status, equality.Semantic.DeepEqual(is.Conditions, status.Conditions) && sameJSON(is.Data, status.Data) &&
			equality.Semantic.DeepEqual(is.NetworkData, status.NetworkData)
	}
	return status, false
}

// sameJSON: the API server gives an object's members back in another order.
func sameJSON(a, b *runtime.RawExtension) bool {
	if a == nil || b == nil {
		return a == b
	}
	var left, right any
	return json.Unmarshal(a.Raw, &left) == nil && json.Unmarshal(b.Raw, &right) == nil && equality.Semantic.DeepEqual(left, right)
}

// applied is the status as a server-side apply. The UID makes it fail on another claim of the same name.
func applied(claim *resourceapi.ResourceClaim, devices []resourceapi.AllocatedDeviceStatus) *apply.ResourceClaimApplyConfiguration {
	status := apply.ResourceClaimStatus()
	for _, d := range devices {
		one := apply.AllocatedDeviceStatus().WithDriver(d.Driver).WithPool(d.Pool).WithDevice(d.Device).WithData(*d.Data)
		if d.ShareID != nil {
			one.WithShareID(*d.ShareID)
		}
		if n := d.NetworkData; n != nil {
			one.WithNetworkData(apply.NetworkDeviceData().WithInterfaceName(n.InterfaceName).WithHardwareAddress(n.HardwareAddress).WithIPs(n.IPs...))
		}
		for _, c := range d.Conditions {
			one.WithConditions(applymeta.Condition().WithType(c.Type).WithStatus(c.Status).WithReason(c.Reason).WithMessage(c.Message).
				WithLastTransitionTime(c.LastTransitionTime))
		}
		status.WithDevices(one)
	}
	return apply.ResourceClaim(claim.Name, claim.Namespace).WithUID(claim.UID).WithStatus(status)
}

// statusRetry is how long a status that could not be written waits, first and at most.
const (
	statusRetry    = time.Second
	statusRetryMax = time.Minute
)

// writeStatuses runs until ctx ends.
func (d *Driver) writeStatuses(ctx context.Context) {
	wait := statusRetry
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.status.wake:
		}
		if d.writePending(ctx) {
			wait = statusRetry
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
			wait = min(2*wait, statusRetryMax)
		}
		select {
		case d.status.wake <- struct{}{}:
		default:
		}
	}
}

// writePending writes what is pending, and keeps what should be tried again; true: nothing is.
func (d *Driver) writePending(ctx context.Context) bool {
	done := true
	for uid, config := range d.status.take() {
		err := d.applyStatus(ctx, config)
		if err == nil || ctx.Err() != nil {
			continue
		}
		d.config.report(d.failed("status", fmt.Errorf("write status of claim %s/%s: %w", *config.Namespace, *config.Name, err)))
		if apierrors.IsNotFound(err) || apierrors.IsConflict(err) || apierrors.IsInvalid(err) {
			continue // the claim is gone, or another one by now
		}
		done = false
		d.status.keep(uid, config)
	}
	return done
}

// keep puts back what could not be written, unless there is news.
func (s *statuses) keep(uid types.UID, config *apply.ResourceClaimApplyConfiguration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pending[uid] == nil {
		s.pending[uid] = config
	}
}

func (d *Driver) applyStatus(ctx context.Context, config *apply.ResourceClaimApplyConfiguration) error {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	_, err := d.config.Client.ResourceV1().ResourceClaims(*config.Namespace).ApplyStatus(ctx, config, metav1.ApplyOptions{FieldManager: d.name, Force: true})
	if apierrors.IsInvalid(err) {
		return d.patchStatus(ctx, config)
	}
	return err
}

// patchStatus writes the status without server-side apply, which some claims refuse: it decodes and encodes the whole claim, and where the
// members of an opaque configuration were not in alphabetical order, the API server takes that for a change of the allocation.
func (d *Driver) patchStatus(ctx context.Context, config *apply.ResourceClaimApplyConfiguration) error {
	claims := d.config.Client.ResourceV1().ResourceClaims(*config.Namespace)
	claim, err := claims.Get(ctx, *config.Name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	var devices []any
	for _, other := range claim.Status.Devices {
		if other.Driver != d.name { // kept as they are
			devices = append(devices, other)
		}
	}
	for _, ours := range config.Status.Devices {
		devices = append(devices, ours)
	}
	type step struct {
		Op    string `json:"op"`
		Path  string `json:"path"`
		Value any    `json:"value"`
	}
	patch, err := json.Marshal([]step{
		{"test", "/metadata/uid", *config.UID}, // another claim of the name is none of ours
		{"test", "/metadata/resourceVersion", claim.ResourceVersion},
		{"add", "/status/devices", devices},
	})
	if err != nil {
		return err
	}
	_, err = claims.Patch(ctx, *config.Name, types.JSONPatchType, patch, metav1.PatchOptions{FieldManager: d.name}, "status")
	return err
}
