package main

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	resourceapi "k8s.io/api/resource/v1"

	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/monitor"
)

// TestTaintTimes: each new taint is measured once; what was there at the start is not, nor what is no fault.
func TestTaintTimes(t *testing.T) {
	start := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	times := newTaintTimes(&kubernetes{}, knows{monitor.Verdict{Conditions: []monitor.Condition{{Since: start.Add(-time.Hour)}, {Since: start}}}})
	times.now = func() time.Time { return start.Add(400 * time.Millisecond) }
	uuid := node.UUID{1}.String()
	slice := func(taints ...string) *resourceapi.ResourceSlice {
		d := resourceapi.Device{Name: "gpu-1", Attributes: map[resourceapi.QualifiedName]resourceapi.DeviceAttribute{"uuid": {StringValue: &uuid}}}
		for _, key := range taints {
			d.Taints = append(d.Taints, resourceapi.DeviceTaint{Key: key, Effect: resourceapi.DeviceTaintEffectNoSchedule})
		}
		return &resourceapi.ResourceSlice{Spec: resourceapi.ResourceSliceSpec{Devices: []resourceapi.Device{d}}}
	}
	times.note(slice("kerf.dev/old"), true)
	times.note(slice("kerf.dev/old"), false)
	times.note(slice("kerf.dev/old", "gpu.kerf.dev/mode-change", monitor.TaintUnmonitored), false)
	times.note(slice("kerf.dev/old", "kerf.dev/xid"), false)
	times.note(slice("kerf.dev/old", "kerf.dev/xid"), false)
	times.note(slice(), false)
	times.note(slice("kerf.dev/old"), false) // it came back
	registry := prometheus.NewRegistry()
	registry.MustRegister(times.took)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	if h := families[0].GetMetric()[0].GetHistogram(); h.GetSampleCount() != 2 || h.GetSampleSum() < 0.79 || h.GetSampleSum() > 0.81 {
		t.Errorf("%d samples, %v s together; want 2 of 0.4 s", h.GetSampleCount(), h.GetSampleSum())
	}
}
