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
	"k8s.io/client-go/kubernetes"

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
	mu      sync.Mutex
	pending map[types.UID]*apply.ResourceClaimApplyConfiguration
	wake    chan struct{}
}

func newStatuses() *statuses {
	return &statuses{pending: make(map[types.UID]*apply.ResourceClaimApplyConfiguration), wake: make(chan struct{}, 1)}
}

// want notes what a claim's status should be, unless it already is.
func (s *statuses) want(claim *resourceapi.ResourceClaim, all []allocation, held map[string]ledger.Held) {
	desired := make([]resourceapi.AllocatedDeviceStatus, len(all))
	changed := false
	for i, a := range all {
		var same bool
		desired[i], same = deviceStatus(claim, a, held[a.ask.Key])
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

// deviceStatus is the status of one share; same is true where the claim says it already.
func deviceStatus(claim *resourceapi.ResourceClaim, a allocation, h ledger.Held) (s resourceapi.AllocatedDeviceStatus, same bool) {
	data := DeviceData{UUID: a.card.UUID.String(), Share: h.ID, Class: h.Grant.Class, Backend: h.Grant.Backend, Simulated: a.card.Simulated}
	for _, part := range h.Grant.Devices {
		data.Memory, data.Limit, data.Cores = part.Memory.Exact(), part.HardLimit().Exact(), part.Cores
	}
	raw, _ := json.Marshal(data) // plain values: cannot fail
	s = resourceapi.AllocatedDeviceStatus{Driver: DriverName, Pool: a.result.Pool, Device: a.result.Device, ShareID: (*string)(a.result.ShareID),
		Data: &runtime.RawExtension{Raw: raw},
		Conditions: []metav1.Condition{{Type: "Ready", Status: metav1.ConditionTrue, Reason: "Prepared", Message: "the share is in force",
			LastTransitionTime: metav1.Now()}}}
	for _, is := range claim.Status.Devices {
		if is.Driver != s.Driver || is.Pool != s.Pool || is.Device != s.Device || !equality.Semantic.DeepEqual(is.ShareID, s.ShareID) || len(is.Conditions) != 1 {
			continue
		}
		s.Conditions[0].LastTransitionTime = is.Conditions[0].LastTransitionTime
		return s, equality.Semantic.DeepEqual(is.Conditions, s.Conditions) && sameJSON(is.Data, s.Data)
	}
	return s, false
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
		err := applyStatus(ctx, d.config.Client, config)
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

func applyStatus(ctx context.Context, client kubernetes.Interface, config *apply.ResourceClaimApplyConfiguration) error {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	_, err := client.ResourceV1().ResourceClaims(*config.Namespace).ApplyStatus(ctx, config, metav1.ApplyOptions{FieldManager: DriverName, Force: true})
	if apierrors.IsInvalid(err) {
		return patchStatus(ctx, client, config)
	}
	return err
}

// patchStatus writes the status without server-side apply, which some claims refuse: it decodes and encodes the whole claim, and where the
// members of an opaque configuration were not in alphabetical order, the API server takes that for a change of the allocation.
func patchStatus(ctx context.Context, client kubernetes.Interface, config *apply.ResourceClaimApplyConfiguration) error {
	claims := client.ResourceV1().ResourceClaims(*config.Namespace)
	claim, err := claims.Get(ctx, *config.Name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	var devices []any
	for _, d := range claim.Status.Devices {
		if d.Driver != DriverName { // others' are kept as they are
			devices = append(devices, d)
		}
	}
	for _, d := range config.Status.Devices {
		devices = append(devices, d)
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
	_, err = claims.Patch(ctx, *config.Name, types.JSONPatchType, patch, metav1.PatchOptions{FieldManager: DriverName}, "status")
	return err
}
