package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	dracel "k8s.io/dynamic-resource-allocation/cel"
	"k8s.io/dynamic-resource-allocation/structured"

	"github.com/kerf-gpu/kerf/dra-driver"
	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

// scheduler is the real allocator on one node with two A100 of 40 GiB and an H200, published as kerfd does.
type scheduler struct {
	node      *corev1.Node
	slices    []*resourceapi.ResourceSlice
	allocated structured.AllocatedState
	cache     *dracel.Cache
}

// classes as the chart has them.
type classes struct{}

func (classes) List() ([]*resourceapi.DeviceClass, error) { return nil, nil }
func (classes) Get(name string) (*resourceapi.DeviceClass, error) {
	modes, ok := map[string]string{classWhole: `["vgpu", "exclusive"]`, classShared: `["vgpu"]`}[name]
	if !ok {
		return nil, errors.New("no such class: " + name)
	}
	return &resourceapi.DeviceClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: resourceapi.DeviceClassSpec{Selectors: selectors([]string{
		`device.driver == "gpu.kerf.dev" && device.attributes["gpu.kerf.dev"].?mode.orValue("") in ` + modes})}}, nil
}

func newScheduler(t *testing.T) *scheduler {
	var cards []dra.Card
	for i, memory := range []node.Bytes{40 * node.GiB, 40 * node.GiB, 143771 * node.MiB} {
		uuid := node.UUID{byte(i + 1)}
		product := map[bool]string{true: "NVIDIA H200", false: "NVIDIA A100-SXM4-40GB"}[i == 2]
		cards = append(cards, dra.Card{GPU: node.GPU{Index: i, UUID: uuid, ProductName: product, NUMA: i / 2, Memory: memory}, Share: share.GPU{UUID: uuid, Index: i, Memory: memory}})
	}
	s := &scheduler{node: &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}}, cache: dracel.NewCache(100, dracel.Features{EnableConsumableCapacity: true}),
		allocated: structured.AllocatedState{AllocatedDevices: sets.New[structured.DeviceID](), AllocatedSharedDeviceIDs: sets.New[structured.SharedDeviceID](),
			AggregatedCapacity: structured.NewConsumedCapacityCollection()}}
	pool := dra.Slices("n", cards, dra.Options{}).Pools["n"]
	for i, slice := range pool.Slices {
		s.slices = append(s.slices, &resourceapi.ResourceSlice{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint(i)}, Spec: resourceapi.ResourceSliceSpec{
			Driver: driverName, NodeName: &s.node.Name, Devices: slice.Devices, Pool: resourceapi.ResourcePool{Name: "n", Generation: 1, ResourceSliceCount: int64(len(pool.Slices))}}})
	}
	return s
}

// allocate is what a template's claim gets: "gpu-0 2:8000Mi" is 8000 MiB of card 2 for the request gpu-0.
func (s *scheduler) allocate(t *testing.T, template *resourceapi.ResourceClaimTemplate) string {
	t.Helper()
	features := structured.Features{AdminAccess: true, ConsumableCapacity: true, DeviceTaints: true, PrioritizedList: true}
	allocator, err := structured.NewAllocator(context.Background(), features, s.allocated, classes{}, s.slices, s.cache)
	if err != nil {
		t.Fatal(err)
	}
	claim := &resourceapi.ResourceClaim{ObjectMeta: metav1.ObjectMeta{Name: "c", UID: "c"}, Spec: template.Spec.Spec}
	results, err := allocator.Allocate(context.Background(), s.node, []*resourceapi.ResourceClaim{claim})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, allocation := range results {
		for _, r := range allocation.Devices.Results {
			id := structured.MakeDeviceID(r.Driver, r.Pool, r.Device)
			s.allocated.AllocatedSharedDeviceIDs.Insert(structured.MakeSharedDeviceID(id, r.ShareID))
			s.allocated.AggregatedCapacity.Insert(structured.NewDeviceConsumedCapacity(id, r.ConsumedCapacity))
			memory := r.ConsumedCapacity["memory"]
			got = append(got, fmt.Sprintf("%s %s:%s", r.Request, r.Device[5:6], memory.String()))
		}
	}
	slices.Sort(got)
	return strings.Join(got, ", ")
}

// What HAMi-style pods get, one after the other.
func TestScheduled(t *testing.T) {
	type pod struct {
		containers []string
		annotation string // "name=value"
		want       string
	}
	for name, pods := range map[string][]pod{
		"fill one card, then the next": {
			{[]string{"main: gpu=1 gpumem=30000"}, "", "gpu-0 1:30000Mi"},
			{[]string{"main: gpu=1 gpumem=8000"}, "", "gpu-0 1:8000Mi"},
			{[]string{"main: gpu=1 gpumem=8000"}, "", "gpu-0 2:8000Mi"},
		},
		"whole cards": {
			{[]string{"main: gpu=1"}, "", "gpu-0 1:40Gi"},
			{[]string{"main: gpu=2"}, "", "gpu-0 2:40Gi, gpu-0 3:143771Mi"},
			{[]string{"main: gpu=1 gpumem=1000"}, "", ""},
		},
		"two GPUs are two": {
			{[]string{"main: gpu=2 gpumem=1000"}, "", "gpu-0 1:1000Mi, gpu-0 2:1000Mi"},
			{[]string{"main: gpu=4 gpumem=1000"}, "", ""},
		},
		"two containers may share": {
			{[]string{"a: gpu=1 gpumem=1000", "b: gpu=1 gpumem=2000"}, "", "gpu-0 1:1000Mi, gpu-1 1:2000Mi"},
		},
		"percent of whichever card": {
			{[]string{"main: gpu=1 gpumem-percentage=50"}, "", "gpu-0/of-40gi 1:20Gi"},
			{[]string{"main: gpu=2 gpumem-percentage=75"}, "", ""}, // two of one size, and only one of them has room
			{[]string{"main: gpu=2 gpumem-percentage=50"}, "", "gpu-0/of-40gi 1:20Gi, gpu-0/of-40gi 2:20Gi"},
			{[]string{"main: gpu=1 gpumem-percentage=75"}, "", "gpu-0/of-143771mi 3:107828Mi"},
		},
		"percent of a chosen card":  {{[]string{"main: gpu=1 gpumem-percentage=50"}, annotationTypes + "=H200", "gpu-0/of-143771mi 3:71885Mi"}},
		"a type":                    {{[]string{"main: gpu=1 gpumem=1000"}, annotationTypes + "=h200,h100", "gpu-0 3:1000Mi"}, {[]string{"main: gpu=1 gpumem=1000"}, annotationTypes + "=L40", ""}},
		"not a type":                {{[]string{"main: gpu=1 gpumem=1000"}, annotationNotTypes + "=A100", "gpu-0 3:1000Mi"}},
		"a UUID":                    {{[]string{"main: gpu=1 gpumem=1000"}, annotationUUIDs + "=" + node.UUID{2}.String(), "gpu-0 2:1000Mi"}},
		"not a UUID":                {{[]string{"main: gpu=1 gpumem=1000"}, annotationNotUUIDs + "=" + node.UUID{1}.String(), "gpu-0 2:1000Mi"}},
		"the same NUMA node":        {{[]string{"main: gpu=2 gpumem=1000"}, annotationNUMA + "=true", "gpu-0 1:1000Mi, gpu-0 2:1000Mi"}, {[]string{"main: gpu=3 gpumem=1000"}, annotationNUMA + "=true", ""}},
		"time adds up to a hundred": {{[]string{"a: gpumem=1000 gpucores=60", "b: gpumem=1000 gpucores=60"}, "", "gpu-0 1:1000Mi, gpu-1 2:1000Mi"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScheduler(t)
			for i, p := range pods {
				object := podOf(p.containers...)
				if key, value, ok := strings.Cut(p.annotation, "="); ok {
					object.Annotations = map[string]string{key: value}
				}
				c, err := Convert(object, have(40*node.GiB, 143771*node.MiB))
				if err != nil {
					t.Fatal(err)
				}
				if got := s.allocate(t, c.Template); got != p.want {
					t.Errorf("pod %d: %q, want %q", i, got, p.want)
				}
			}
		})
	}
}
