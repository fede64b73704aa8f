package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/kerf-gpu/kerf/internal/node"
)

// sizesFor is how long the cluster's sizes are believed: new kinds of cards are rare, and the list is long.
const sizesFor = time.Minute

// sizes knows how much memory the cluster's cards have. It asks when somebody wants to know, and not otherwise.
type sizes struct {
	client kubernetes.Interface
	now    func() time.Time

	mu    sync.Mutex
	known []node.Bytes
	read  time.Time
}

// get asks the API server, from its cache, or answers from its own.
func (s *sizes) get(ctx context.Context) ([]node.Bytes, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.known) > 0 && s.now().Sub(s.read) < sizesFor {
		return s.known, nil
	}
	list, err := s.client.ResourceV1().ResourceSlices().List(ctx, metav1.ListOptions{
		FieldSelector: resourceapi.ResourceSliceSelectorDriver + "=" + driverName, ResourceVersion: "0",
	})
	if err != nil {
		return nil, fmt.Errorf("list ResourceSlices: %w", err)
	}
	s.known, s.read = sizesOf(list.Items), s.now()
	return s.known, nil
}

// sizesOf are the sizes of the cards that the class gpu-shared selects, each once.
func sizesOf(items []resourceapi.ResourceSlice) []node.Bytes {
	found := map[node.Bytes]bool{}
	for _, slice := range items {
		if slice.Spec.Driver != driverName {
			continue
		}
		for _, device := range slice.Spec.Devices {
			memory, ok := device.Capacity["memory"]
			if ok && is(device, "type", "gpu") && is(device, "mode", "vgpu") && memory.Value.Sign() > 0 {
				found[node.Bytes(memory.Value.Value())] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(found))
}

func is(device resourceapi.Device, attribute resourceapi.QualifiedName, value string) bool {
	a := device.Attributes[attribute]
	return a.StringValue != nil && *a.StringValue == value
}
