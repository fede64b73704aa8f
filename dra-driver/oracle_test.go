package dra

// This file is also the test of oracle36, which runs it with an older allocator. It must not use the package that it is in.

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/dynamic-resource-allocation/cel"
	"k8s.io/dynamic-resource-allocation/structured"
	"sigs.k8s.io/yaml"
)

// oracleCases is testdata/cases.yaml.
type oracleCases struct {
	Classes []*resourceapi.DeviceClass `json:"classes"`
	Cases   []struct {
		Name   string        `json:"name"`
		Node   string        `json:"node"`
		Claims []oracleClaim `json:"claims"`
	} `json:"cases"`
}

// oracleClaim is a claim, in full or as one request with a few words.
type oracleClaim struct {
	Devices  *resourceapi.DeviceClaim                        `json:"devices"`
	Class    string                                          `json:"class"` // empty means gpu-shared
	Share    map[resourceapi.QualifiedName]resource.Quantity `json:"share"`
	Profile  string                                          `json:"profile"`
	Selector string                                          `json:"selector"`
	Tolerate string                                          `json:"tolerate"`
	Want     any                                             `json:"want"`
}

func (c oracleClaim) claim(uid int) *resourceapi.ResourceClaim {
	claim := &resourceapi.ResourceClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprint("claim-", uid), UID: types.UID(fmt.Sprint(uid))}}
	if c.Devices != nil {
		claim.Spec.Devices = *c.Devices
		return claim
	}
	exactly := &resourceapi.ExactDeviceRequest{DeviceClassName: "gpu-shared", AllocationMode: resourceapi.DeviceAllocationModeExactCount, Count: 1}
	if c.Class != "" {
		exactly.DeviceClassName = c.Class
	}
	if len(c.Share) > 0 {
		exactly.Capacity = &resourceapi.CapacityRequirements{Requests: c.Share}
	}
	if c.Profile != "" {
		c.Selector = fmt.Sprintf(`device.attributes["gpu.kerf.dev"].profile == %q`, c.Profile)
	}
	if c.Selector != "" {
		exactly.Selectors = []resourceapi.DeviceSelector{{CEL: &resourceapi.CELDeviceSelector{Expression: c.Selector}}}
	}
	if c.Tolerate != "" {
		exactly.Tolerations = []resourceapi.DeviceToleration{{Key: c.Tolerate, Operator: resourceapi.DeviceTolerationOpExists}}
	}
	claim.Spec.Devices.Requests = []resourceapi.DeviceRequest{{Name: "gpu", Exactly: exactly}}
	return claim
}

func (c oracleClaim) want() (results []string) {
	list, _ := c.Want.([]any)
	for _, item := range list {
		results = append(results, item.(string))
	}
	return results
}

type classLister []*resourceapi.DeviceClass

func (l classLister) List() ([]*resourceapi.DeviceClass, error) { return l, nil }
func (l classLister) Get(name string) (*resourceapi.DeviceClass, error) {
	for _, c := range l {
		if c.Name == name {
			return c, nil
		}
	}
	return nil, errors.New("no such class: " + name)
}

// The allocator of the scheduler finds in our slices what the cases say.
func TestAllocator(t *testing.T) {
	var all oracleCases
	text, err := os.ReadFile(filepath.Join("testdata", "cases.yaml"))
	if err == nil {
		err = yaml.UnmarshalStrict(text, &all)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range all.Cases {
		t.Run(tt.Name, func(t *testing.T) {
			o := newOracle(t, tt.Node, all.Classes)
			for i, c := range tt.Claims {
				if d := cmp.Diff(c.want(), o.allocate(t, c.claim(i))); d != "" {
					t.Errorf("claim %d (-want +got):\n%s", i, d)
				}
			}
		})
	}
}

// oracle is a scheduler's view of one node: what is published, and what is allocated.
type oracle struct {
	node      *v1.Node
	slices    []*resourceapi.ResourceSlice
	classes   classLister
	allocated structured.AllocatedState
	cache     *cel.Cache
}

func newOracle(t testing.TB, nodeName string, classes classLister) *oracle {
	t.Helper()
	o := &oracle{node: &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName}}, classes: classes, cache: cel.NewCache(100, cel.Features{EnableConsumableCapacity: true})}
	o.allocated = structured.AllocatedState{AllocatedDevices: sets.New[structured.DeviceID](), AllocatedSharedDeviceIDs: sets.New[structured.SharedDeviceID](),
		AggregatedCapacity: structured.NewConsumedCapacityCollection()}
	text, err := os.ReadFile(filepath.Join("testdata", "slices", nodeName+".yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for document := range strings.SplitSeq(strings.TrimPrefix(string(text), "---\n"), "---\n") {
		var s resourceapi.ResourceSlice
		if err := yaml.UnmarshalStrict([]byte(document), &s); err != nil {
			t.Fatal(err)
		}
		o.slices = append(o.slices, &s)
	}
	return o
}

// allocate is what a claim gets, which it keeps; nil: it does not fit.
func (o *oracle) allocate(t testing.TB, claim *resourceapi.ResourceClaim) (got []string) {
	t.Helper()
	features := structured.Features{AdminAccess: true, ConsumableCapacity: true, DeviceBindingAndStatus: true, DeviceTaints: true, PartitionableDevices: true, PrioritizedList: true}
	allocator, err := structured.NewAllocator(context.Background(), features, o.allocated, o.classes, o.slices, o.cache)
	if err != nil {
		t.Fatal(err)
	}
	results, err := allocator.Allocate(context.Background(), o.node, []*resourceapi.ResourceClaim{claim})
	if err != nil && !errors.Is(err, structured.ErrFailedAllocationOnNode) {
		t.Fatal(err)
	}
	for _, allocation := range results {
		for _, r := range allocation.Devices.Results {
			o.keep(r)
			got = append(got, words(r, len(claim.Spec.Devices.Requests) == 1 && !strings.Contains(r.Request, "/")))
		}
	}
	return got
}

func (o *oracle) keep(r resourceapi.DeviceRequestAllocationResult) {
	id := structured.MakeDeviceID(r.Driver, r.Pool, r.Device)
	switch {
	case r.AdminAccess != nil && *r.AdminAccess:
	case r.ShareID != nil:
		o.allocated.AllocatedSharedDeviceIDs.Insert(structured.MakeSharedDeviceID(id, r.ShareID))
		o.allocated.AggregatedCapacity.Insert(structured.NewDeviceConsumedCapacity(id, r.ConsumedCapacity))
	default:
		o.allocated.AllocatedDevices.Insert(id)
	}
}

// words is a result as the cases write it.
func words(r resourceapi.DeviceRequestAllocationResult, onlyRequest bool) string {
	text := r.Device
	if !onlyRequest {
		text = r.Request + " " + text
	}
	if r.AdminAccess != nil && *r.AdminAccess {
		return text + " admin"
	}
	for _, name := range []resourceapi.QualifiedName{"memory", "cores", "tenants"} {
		if q, ok := r.ConsumedCapacity[name]; ok {
			text += fmt.Sprintf(" %s=%s", name, q.String())
		}
	}
	return text
}
