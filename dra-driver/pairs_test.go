package dra

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

var slice = map[resourceapi.QualifiedName]resource.Quantity{"memory": resource.MustParse("40Gi"), "cores": resource.MustParse("50")}

// TestPairsLimits: what the API takes, and what is said of more.
func TestPairsLimits(t *testing.T) {
	for _, tt := range []struct {
		pairs Pairs
		want  string // of the error; empty: none
	}{
		{Pairs{Count: 1, Fallback: PairNone}, ""},
		{Pairs{Count: 16, Fallback: PairNone}, ""},
		{Pairs{Count: 16, Fallback: PairNone, Capacity: slice}, ""},
		{Pairs{Count: 16, Fallback: PairAny}, ""},
		{Pairs{Count: 15, Fallback: PairNUMA, Capacity: slice}, ""},
		{Pairs{Count: 16, Fallback: PairNUMA, Capacity: slice}, "16 pairs of GPU and NIC with fallback numa: they need 33 constraints, and a ResourceClaim takes 32"},
		{Pairs{Count: 17, Fallback: PairNone}, "17 pairs of GPU and NIC: they need 34 requests, and a ResourceClaim takes 32; ask for at most 16"},
		{Pairs{Count: 0, Fallback: PairNone}, "0 pairs"},
		{Pairs{Count: -3, Fallback: PairNone}, "-3 pairs"},
		{Pairs{Count: 1, Fallback: "near"}, `fallback "near": not known; take none, numa or any`},
	} {
		spec, err := tt.pairs.Claim()
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%+v: error %v, want %q", tt.pairs, err, tt.want)
		}
		if err == nil && (len(spec.Devices.Requests) > 32 || len(spec.Devices.Constraints) > 32) {
			t.Errorf("%+v: %d requests, %d constraints", tt.pairs, len(spec.Devices.Requests), len(spec.Devices.Constraints))
		}
	}
}

// pairWorld is the node h200x8 with the NICs that a case says, and what of GPUs' attributes it takes away.
func pairWorld(t testing.TB, nics []resourceapi.Device, without ...resourceapi.QualifiedName) *oracle {
	t.Helper()
	nic := &resourceapi.DeviceClass{ObjectMeta: metav1.ObjectMeta{Name: "nic"},
		Spec: resourceapi.DeviceClassSpec{Selectors: []resourceapi.DeviceSelector{{CEL: &resourceapi.CELDeviceSelector{Expression: `device.driver == "nic.kerf.dev"`}}}}}
	var all oracleCases
	text, err := os.ReadFile(filepath.Join("testdata", "cases.yaml"))
	if err == nil {
		err = yaml.UnmarshalStrict(text, &all)
	}
	if err != nil {
		t.Fatal(err)
	}
	o := newOracle(t, "h200x8", append(all.Classes, nic))
	for _, s := range o.slices {
		for _, d := range s.Spec.Devices {
			for _, name := range without {
				delete(d.Attributes, name)
			}
		}
	}
	o.slices = append(o.slices, &resourceapi.ResourceSlice{ObjectMeta: metav1.ObjectMeta{Name: "nics"}, Spec: resourceapi.ResourceSliceSpec{
		Driver: "nic.kerf.dev", NodeName: new("h200x8"), Pool: resourceapi.ResourcePool{Name: "h200x8", ResourceSliceCount: 1, Generation: 1}, Devices: nics}})
	return o
}

// nicAt is a NIC below a root port, "" for one that nobody knows, on a NUMA node, −1 likewise.
func nicAt(name, port string, numa int) resourceapi.Device {
	d := resourceapi.Device{Name: name, Attributes: Attributes{}}
	Attributes(d.Attributes).Text(PCIeRootPort, port)
	if numa >= 0 {
		Attributes(d.Attributes).Number("resource.kubernetes.io/numaNode", int64(numa))
	}
	return d
}

const (
	portOf0 = "0000:15:01.0" // of the first GPU of h200x8, on NUMA node 0
	portOf7 = "0000:d7:01.0" // of the last one, on node 1
	other   = "0000:00:02.0" // of no GPU
)

// TestPairs: the scheduler's allocator on the claims as they are written. A pair is "gpu's port|node nic".
func TestPairs(t *testing.T) {
	const numa = resourceapi.QualifiedName("resource.kubernetes.io/numaNode")
	near := []resourceapi.Device{nicAt("storage", other, 0), nicAt("nic7", portOf7, 1), nicAt("nic0", portOf0, 0)}
	for _, tt := range []struct {
		name    string
		nics    []resourceapi.Device
		without []resourceapi.QualifiedName
		pairs   Pairs
		want    string
	}{
		{"one near, not the first NIC", near, nil, Pairs{Count: 1, Fallback: PairNone}, "d7|1 nic7"},
		{"two near", near, nil, Pairs{Count: 2, Fallback: PairNone}, "d7|1 nic7, 15|0 nic0"},
		{"no third is near", near, nil, Pairs{Count: 3, Fallback: PairNone}, "no"},
		{"slices of two cards", near, nil, Pairs{Count: 2, Fallback: PairNone, Capacity: slice}, "d7|1 nic7, 15|0 nic0"},
		{"two NICs by one card are one pair of slices", []resourceapi.Device{nicAt("a", portOf0, 0), nicAt("b", portOf0, 0)}, nil, Pairs{Count: 2, Fallback: PairNone, Capacity: slice}, "no"},
		{"the third on the NUMA node", near, nil, Pairs{Count: 3, Fallback: PairNUMA}, "d7|1 nic7, 15|0 nic0, 37|0 storage"},
		{"none on the NUMA node", []resourceapi.Device{nicAt("far", other, 5)}, nil, Pairs{Count: 1, Fallback: PairNUMA}, "no"},
		{"near though the first GPU is not", []resourceapi.Device{nicAt("storage", other, 0), nicAt("nic7", portOf7, 1)}, nil, Pairs{Count: 1, Fallback: PairAny}, "d7|1 nic7"},
		{"near, then NUMA, then any", append(near[:3:3], nicAt("far", other, -1)), nil, Pairs{Count: 4, Fallback: PairAny}, "d7|1 nic7, 15|0 nic0, 37|0 storage, 48|0 far"},
		{"any has an end too", near, nil, Pairs{Count: 4, Fallback: PairAny}, "no"},
		{"a flat VM has NUMA nodes alone", []resourceapi.Device{nicAt("b", "", 1)}, []resourceapi.QualifiedName{PCIeRootPort}, Pairs{Count: 1, Fallback: PairAny}, "?|1 b"},
		{"and no pair by port", []resourceapi.Device{nicAt("b", portOf0, 1)}, []resourceapi.QualifiedName{PCIeRootPort}, Pairs{Count: 1, Fallback: PairNone}, "no"},
		{"a flat VM, by NUMA node though one has a port", []resourceapi.Device{nicAt("a", other, 3), nicAt("b", "", 1)}, []resourceapi.QualifiedName{PCIeRootPort}, Pairs{Count: 1, Fallback: PairNUMA}, "?|1 b"},
		{"ports without NUMA nodes", []resourceapi.Device{nicAt("a", other, -1), nicAt("b", portOf7, -1)}, []resourceapi.QualifiedName{numa}, Pairs{Count: 1, Fallback: PairAny}, "d7|? b"},
		{"nothing is known", []resourceapi.Device{nicAt("a", "", -1)}, []resourceapi.QualifiedName{PCIeRootPort, numa}, Pairs{Count: 1, Fallback: PairAny}, "?|? a"},
		{"nothing is known, and NUMA is asked", []resourceapi.Device{nicAt("a", "", -1)}, []resourceapi.QualifiedName{PCIeRootPort, numa}, Pairs{Count: 1, Fallback: PairNUMA}, "no"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := pairWorld(t, tt.nics, tt.without...)
			tt.pairs.GPUClass, tt.pairs.NICClass = "gpu", "nic"
			if tt.pairs.Capacity != nil {
				tt.pairs.GPUClass = "gpu-shared"
			}
			if d := cmp.Diff(tt.want, o.pairs(t, tt.pairs)); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

// pairs allocates a claim of pairs, and tells each GPU's port and NUMA node with its NIC.
func (o *oracle) pairs(t testing.TB, p Pairs) string {
	t.Helper()
	spec, err := p.Claim()
	if err != nil {
		t.Fatal(err)
	}
	claim := &resourceapi.ResourceClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "pairs", UID: "1"}, Spec: *defaults(spec.DeepCopy())}
	devices := map[string]resourceapi.Device{}
	for _, s := range o.slices {
		for _, d := range s.Spec.Devices {
			devices[d.Name] = d
		}
	}
	got := o.allocate(t, claim)
	if got == nil {
		return "no"
	}
	with := map[string]string{} // request → device
	for _, result := range got {
		words := strings.Fields(result)
		request, _, _ := strings.Cut(words[0], "/")
		with[request] = words[1]
	}
	var pairs []string
	for i := range p.Count {
		gpu := devices[with[fmt.Sprint("gpu-", i)]]
		port, node := "?", "?"
		if a := gpu.Attributes[PCIeRootPort]; a.StringValue != nil {
			port = strings.Split(*a.StringValue, ":")[1]
		}
		if a := gpu.Attributes["resource.kubernetes.io/numaNode"]; a.IntValue != nil {
			node = fmt.Sprint(*a.IntValue)
		}
		pairs = append(pairs, fmt.Sprintf("%s|%s %s", port, node, with[fmt.Sprint("nic-", i)]))
	}
	return strings.Join(pairs, ", ")
}

// defaults are those that the API server sets.
func defaults(spec *resourceapi.ResourceClaimSpec) *resourceapi.ResourceClaimSpec {
	for i := range spec.Devices.Requests {
		r := &spec.Devices.Requests[i]
		if r.Exactly != nil {
			r.Exactly.AllocationMode, r.Exactly.Count = resourceapi.DeviceAllocationModeExactCount, 1
		}
		for k := range r.FirstAvailable {
			r.FirstAvailable[k].AllocationMode, r.FirstAvailable[k].Count = resourceapi.DeviceAllocationModeExactCount, 1
		}
	}
	return spec
}
