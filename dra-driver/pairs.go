package dra

import (
	"fmt"
	"strings"

	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/dynamic-resource-allocation/deviceattribute"
)

// PairFallback is what a GPU's NIC may be where none is PXB or better.
type PairFallback string

// The fallbacks, each with those before it as its better choices.
const (
	PairNone PairFallback = "none" // the pod waits
	PairNUMA PairFallback = "numa" // one on the GPU's NUMA node
	PairAny  PairFallback = "any"  // any one of the node
)

// Pairs is a claim of GPUs that each have a NIC of their own.
type Pairs struct {
	Count    int
	Fallback PairFallback
	GPUClass string
	NICClass string
	Capacity map[resourceapi.QualifiedName]resource.Quantity // of each GPU; nil: whole GPUs
}

// pairing is how one kind of fallback is said. A constraint binds every device of the requests that it names, and a device
// without the attribute fails it; so what cannot or need not match is a subrequest that the constraint does not name.
//
// The NIC's request comes first: the allocator tries all GPUs for a NIC before it goes on to the NIC's next choice. The other way
// round it would give the first GPU a far NIC while a second one has a near one.
type pairing struct {
	nics []string   // subrequests of the NIC, best first; none: an exact request
	gpus []gpuPlace // subrequests of the GPU: each GPU fits one of them
	port []string   // what must have one root port
	numa []string   // what must have one NUMA node
}

// gpuPlace is a GPU by what is known of its place.
type gpuPlace struct {
	name       string
	port, numa bool
}

var pairings = map[PairFallback]pairing{
	PairNone: {port: []string{"nic-%d", "gpu-%d"}},
	PairNUMA: {
		nics: []string{"near", "numa"},
		gpus: []gpuPlace{{"placed", true, true}, {"numa", false, true}},
		port: []string{"nic-%d/near", "gpu-%d/placed"},
		numa: []string{"nic-%d/near", "nic-%d/numa", "gpu-%d/placed", "gpu-%d/numa"},
	},
	PairAny: {
		nics: []string{"near", "port", "numa", "any"}, // near is port too, by a NIC whose NUMA node is known: a GPU without a port must not take just any NIC as near
		gpus: []gpuPlace{{"placed", true, true}, {"port", true, false}, {"numa", false, true}, {"flat", false, false}},
		port: []string{"nic-%d/near", "nic-%d/port", "gpu-%d/placed", "gpu-%d/port"},
		numa: []string{"nic-%d/near", "nic-%d/numa", "gpu-%d/placed", "gpu-%d/numa"},
	},
}

// Claim is the claim's spec, or why the API would not take it.
func (p Pairs) Claim() (resourceapi.ResourceClaimSpec, error) {
	how, ok := pairings[p.Fallback]
	if !ok {
		return resourceapi.ResourceClaimSpec{}, fmt.Errorf("fallback %q: not known; take none, numa or any", p.Fallback)
	}
	var devices resourceapi.DeviceClaim
	var gpus []string
	for i := range max(0, p.Count) {
		devices.Requests = append(devices.Requests, p.nic(i, how), p.gpu(i, how))
		devices.Constraints = append(devices.Constraints, match(PCIeRootPort, how.port, i))
		if len(how.numa) > 0 {
			devices.Constraints = append(devices.Constraints, match(resourceapi.FullyQualifiedName(deviceattribute.StandardDeviceAttributeNUMANode), how.numa, i))
		}
		gpus = append(gpus, fmt.Sprint("gpu-", i))
	}
	if p.Capacity != nil && p.Count > 1 { // two slices of one card are no two GPUs
		uuid := resourceapi.FullyQualifiedName(DriverName + "/uuid")
		devices.Constraints = append(devices.Constraints, resourceapi.DeviceConstraint{Requests: gpus, DistinctAttribute: &uuid})
	}
	return resourceapi.ResourceClaimSpec{Devices: devices}, p.fits(devices)
}

// fits holds the claim to the API's limits. Both are 32, and are checked by the server as well; here the error says pairs.
func (p Pairs) fits(d resourceapi.DeviceClaim) error {
	const requests, constraints = resourceapi.DeviceRequestsMaxSize, resourceapi.DeviceConstraintsMaxSize
	switch {
	case p.Count < 1:
		return fmt.Errorf("%d pairs of GPU and NIC: a claim has at least 1; ask for more", p.Count)
	case len(d.Requests) > requests:
		return fmt.Errorf("%d pairs of GPU and NIC: they need %d requests, and a ResourceClaim takes %d; ask for at most %d pairs in one claim", p.Count, len(d.Requests), requests, requests/2)
	case len(d.Constraints) > constraints:
		return fmt.Errorf("%d pairs of GPU and NIC with fallback %s: they need %d constraints, and a ResourceClaim takes %d; ask for fewer pairs in one claim, or for whole GPUs", p.Count, p.Fallback, len(d.Constraints), constraints)
	}
	return nil
}

func match(attribute resourceapi.FullyQualifiedName, of []string, i int) resourceapi.DeviceConstraint {
	c := resourceapi.DeviceConstraint{MatchAttribute: &attribute}
	for _, request := range of {
		c.Requests = append(c.Requests, fmt.Sprintf(request, i))
	}
	return c
}

func (p Pairs) nic(i int, how pairing) resourceapi.DeviceRequest {
	r := resourceapi.DeviceRequest{Name: fmt.Sprint("nic-", i)}
	if len(how.nics) == 0 {
		r.Exactly = &resourceapi.ExactDeviceRequest{DeviceClassName: p.NICClass}
	}
	for _, name := range how.nics {
		r.FirstAvailable = append(r.FirstAvailable, resourceapi.DeviceSubRequest{Name: name, DeviceClassName: p.NICClass})
	}
	return r
}

func (p Pairs) gpu(i int, how pairing) resourceapi.DeviceRequest {
	r := resourceapi.DeviceRequest{Name: fmt.Sprint("gpu-", i)}
	var capacity *resourceapi.CapacityRequirements
	if p.Capacity != nil {
		capacity = &resourceapi.CapacityRequirements{Requests: p.Capacity}
	}
	if len(how.gpus) == 0 {
		r.Exactly = &resourceapi.ExactDeviceRequest{DeviceClassName: p.GPUClass, Capacity: capacity}
	}
	for _, kind := range how.gpus {
		r.FirstAvailable = append(r.FirstAvailable, resourceapi.DeviceSubRequest{Name: kind.name, DeviceClassName: p.GPUClass, Capacity: capacity, Selectors: kind.selectors()})
	}
	return r
}

// selectors of a kind: which attributes a GPU has, and which not.
func (k gpuPlace) selectors() []resourceapi.DeviceSelector {
	var tests []string
	for _, a := range []struct {
		name resourceapi.QualifiedName
		has  bool
	}{{PCIeRootPort, k.port}, {deviceattribute.StandardDeviceAttributeNUMANode, k.numa}} {
		domain, id, _ := strings.Cut(string(a.name), "/")
		test := fmt.Sprintf("%q in device.attributes[%q]", id, domain)
		if !a.has {
			test = "!(" + test + ")"
		}
		tests = append(tests, test)
	}
	return []resourceapi.DeviceSelector{{CEL: &resourceapi.CELDeviceSelector{Expression: strings.Join(tests, " && ")}}}
}
