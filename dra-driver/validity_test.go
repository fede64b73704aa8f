package dra

import (
	"regexp"
	"testing"

	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

var semantic = regexp.MustCompile(`^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)$`)

// checkSlices holds slices to the API server's rules, as far as ours could break them; its own validation cannot be imported.
func checkSlices(t *testing.T, objects []*resourceapi.ResourceSlice) {
	t.Helper()
	names := map[string]bool{}
	sets := map[string]resourceapi.CounterSet{}
	for _, s := range objects {
		if len(s.Spec.Devices) > 0 && len(s.Spec.SharedCounters) > 0 || len(s.Spec.Devices) > maxDevices || len(s.Spec.SharedCounters) > maxCounterSets {
			t.Errorf("%s: %d devices, %d counter sets", s.Name, len(s.Spec.Devices), len(s.Spec.SharedCounters))
		}
		for _, set := range s.Spec.SharedCounters {
			if sets[set.Name].Name != "" || len(set.Counters) == 0 || len(set.Counters) > 32 {
				t.Errorf("counter set %s: twice, or %d counters", set.Name, len(set.Counters))
			}
			isLabel(t, set.Name)
			sets[set.Name] = set
		}
	}
	for _, s := range objects {
		for _, d := range s.Spec.Devices {
			if names[d.Name] {
				t.Errorf("device %s: twice", d.Name)
			}
			names[d.Name] = true
			checkDevice(t, d)
			checkCounters(t, d, sets)
		}
	}
}

func isLabel(t *testing.T, name string) {
	t.Helper()
	for _, problem := range validation.IsDNS1123Label(name) {
		t.Errorf("name %q: %s", name, problem)
	}
}

func checkDevice(t *testing.T, d resourceapi.Device) {
	t.Helper()
	isLabel(t, d.Name)
	if n := len(d.Attributes) + len(d.Capacity); n > 32 {
		t.Errorf("%s: %d attributes and capacities, the API takes 32", d.Name, n)
	}
	for name, a := range d.Attributes {
		switch {
		case a.StringValue != nil && (*a.StringValue == "" || len(*a.StringValue) > maxText):
			t.Errorf("%s: attribute %s is %q", d.Name, name, *a.StringValue)
		case a.VersionValue != nil && (!semantic.MatchString(*a.VersionValue) || len(*a.VersionValue) > maxText):
			t.Errorf("%s: attribute %s is version %q", d.Name, name, *a.VersionValue)
		}
	}
	for _, taint := range d.Taints {
		for _, problem := range validation.IsValidLabelValue(taint.Value) {
			t.Errorf("%s: taint %s=%q: %s", d.Name, taint.Key, taint.Value, problem)
		}
	}
	shared := d.AllowMultipleAllocations != nil && *d.AllowMultipleAllocations
	for name, c := range d.Capacity {
		if (c.RequestPolicy != nil) != shared {
			t.Errorf("%s: capacity %s: policy %v on a device that is shared %v", d.Name, name, c.RequestPolicy != nil, shared)
		}
		if c.RequestPolicy != nil {
			checkPolicy(t, d.Name+" "+string(name), c)
		}
	}
}

func checkPolicy(t *testing.T, what string, c resourceapi.DeviceCapacity) {
	t.Helper()
	r := c.RequestPolicy.ValidRange
	least, most, step, standard := r.Min.Value(), r.Max.Value(), r.Step.Value(), c.RequestPolicy.Default.Value()
	if most > c.Value.Value() || most < least || step <= 0 || (most-least)%step != 0 || standard < least || standard > most || (standard-least)%step != 0 {
		t.Errorf("%s: value %s, default %s, %s to %s by %s", what, c.Value.String(), c.RequestPolicy.Default, r.Min, r.Max, r.Step)
	}
}

func checkCounters(t *testing.T, d resourceapi.Device, sets map[string]resourceapi.CounterSet) {
	t.Helper()
	for _, consumed := range d.ConsumesCounters {
		for name, c := range consumed.Counters {
			isLabel(t, name)
			if has, ok := sets[consumed.CounterSet].Counters[name]; !ok || has.Value.Cmp(c.Value) < 0 {
				t.Errorf("%s takes %s of counter %s/%s, which has %s", d.Name, c.Value.String(), consumed.CounterSet, name, has.Value.String())
			}
		}
	}
}
