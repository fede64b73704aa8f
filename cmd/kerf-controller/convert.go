package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/kerf-gpu/kerf/dra-driver"
	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

// Names that claims use.
const (
	classWhole  = "gpu"        // all memory of a card
	classShared = "gpu-shared" // an amount of it
	driverName  = dra.DriverName

	attributeUUID = resourceapi.FullyQualifiedName(driverName + "/uuid")
	attributeNUMA = resourceapi.FullyQualifiedName("resource.kubernetes.io/numaNode")
)

// Limits of resource.k8s.io.
const (
	maxResults     = resourceapi.AllocationResultsMaxSize
	maxSubrequests = resourceapi.FirstAvailableDeviceRequestMaxSize
)

// Options is what Convert must know beside the pod.
type Options struct {
	// Sizes are how much memory the cards of the cluster have that take slices, each once. It is asked only for percentages.
	Sizes func() ([]node.Bytes, error)
}

// Conversion is what becomes of a pod.
type Conversion struct {
	Template *resourceapi.ResourceClaimTemplate // without namespace; nil: none is needed
	Patch    []Operation                        // empty: the pod stays as it is
	Warnings []string
}

// Convert answers for one pod. An error says what the user must change. It reads of the pod what users may write, and
// nothing that HAMi's scheduler wrote.
func Convert(pod *corev1.Pod, options Options) (Conversion, error) {
	asking, warnings, err := readContainers(pod)
	if err != nil {
		return Conversion{}, err
	}
	patch := removals(pod)
	if len(asking) == 0 {
		return Conversion{Patch: patch, Warnings: warnings}, nil
	}
	if pod.Spec.NodeName != "" {
		return Conversion{},
			fmt.Errorf("spec.nodeName %q: a pod that goes around the scheduler gets no GPU; use nodeSelector kubernetes.io/hostname", clip(pod.Spec.NodeName))
	}
	chosen, err := readChoice(pod.Annotations)
	if err != nil {
		return Conversion{}, err
	}
	requests := assign(asking)
	spec, err := claimSpec(requests, chosen, options)
	if err != nil {
		return Conversion{}, err
	}
	template, err := newTemplate(spec)
	if err != nil {
		return Conversion{}, err
	}
	patch = append(patch, additions(pod, asking, requests, template.Name)...)
	if pod.Spec.SchedulerName == hamiScheduler {
		patch = append(patch, Operation{Op: "replace", Path: "/spec/schedulerName", Value: corev1.DefaultSchedulerName})
		warnings = append(warnings, "schedulerName hami-scheduler is replaced: Kubernetes' own scheduler allocates claims")
	}
	return Conversion{Template: template, Patch: patch, Warnings: append(warnings, chosen.warnings...)}, nil
}

// hamiScheduler is the name that HAMi's own webhook, or a careful user, put into pods.
const hamiScheduler = "hami-scheduler"

// asker is a container that asks for GPUs.
type asker struct {
	path  string // in the pod, as JSON pointers have it
	want  want
	early bool // an init container that ends before the next begins
	has   bool // it has claims of its own already
}

// containersOf calls f for every container that can have resources.
func containersOf(pod *corev1.Pod, f func(path string, early bool, c corev1.Container)) {
	for i, c := range pod.Spec.InitContainers {
		sidecar := c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
		f(fmt.Sprintf("/spec/initContainers/%d", i), !sidecar, c)
	}
	for i, c := range pod.Spec.Containers {
		f(fmt.Sprintf("/spec/containers/%d", i), false, c)
	}
}

func readContainers(pod *corev1.Pod) (asking []asker, warnings []string, err error) {
	var errs []error
	containersOf(pod, func(path string, early bool, c corev1.Container) {
		w, asks, warned, err := readWant(c)
		errs = append(errs, err)
		warnings = append(warnings, warned...)
		if asks {
			warnings = append(warnings, environmentWarnings(c)...)
			asking = append(asking, asker{path: path, want: w, early: early, has: len(c.Resources.Claims) > 0})
		}
	})
	return asking, warnings, errors.Join(errs...)
}

// request is one request of the claim, and the containers that use it.
type request struct {
	name string
	want want
	by   []int // indices of askers
}

// assign gives every container a request of its own, but for init containers: what ends before the next container begins can have
// the same GPU as that one, as long as it asks for the same.
func assign(asking []asker) (requests []request) {
	for pass := range 2 { // init containers last, so that they find the containers' requests
		for i, a := range asking {
			if a.early != (pass == 1) {
				continue
			}
			shared := slices.IndexFunc(requests, func(r request) bool { return a.early && r.want == a.want })
			if shared < 0 {
				requests = append(requests, request{name: fmt.Sprintf("gpu-%d", len(requests)), want: a.want})
				shared = len(requests) - 1
			}
			requests[shared].by = append(requests[shared].by, i)
		}
	}
	return requests
}

func claimSpec(requests []request, chosen choice, options Options) (spec resourceapi.ResourceClaimSpec, err error) {
	results := 0
	for _, r := range requests {
		results += r.want.gpus
		device, err := deviceRequest(r, chosen, options)
		if err != nil {
			return spec, err
		}
		spec.Devices.Requests = append(spec.Devices.Requests, device)
		if r.want.gpus > 1 {
			spec.Devices.Constraints = append(spec.Devices.Constraints, constraints(r, chosen)...)
		}
	}
	if results > maxResults {
		return spec, fmt.Errorf("%s: %d in all containers of the pod, and one claim holds %d; use fewer, or more pods", resourceGPU, results, maxResults)
	}
	return spec, nil
}

// constraints: several GPUs are different ones, which Kubernetes before 1.36 does not see to by itself.
func constraints(r request, chosen choice) []resourceapi.DeviceConstraint {
	uuid, numa := attributeUUID, attributeNUMA
	c := []resourceapi.DeviceConstraint{{Requests: []string{r.name}, DistinctAttribute: &uuid}}
	if chosen.sameNUMA {
		c = append(c, resourceapi.DeviceConstraint{Requests: []string{r.name}, MatchAttribute: &numa})
	}
	return c
}

func deviceRequest(r request, chosen choice, options Options) (resourceapi.DeviceRequest, error) {
	if r.want.percent > 0 {
		return percentRequest(r, chosen, options)
	}
	class := classShared
	if r.want.memory == 0 {
		class = classWhole
	}
	return resourceapi.DeviceRequest{Name: r.name, Exactly: &resourceapi.ExactDeviceRequest{
		DeviceClassName: class, Selectors: selectors(chosen.selectors), AllocationMode: resourceapi.DeviceAllocationModeExactCount,
		Count: int64(r.want.gpus), Capacity: capacity(r.want.memory, r.want.cores),
	}}, nil
}

// percentRequest is a request for part of a card's memory whose size nobody knows yet: an alternative for each size that there is, the
// smallest first. Cards of another size that join the cluster later are not used by templates from before.
func percentRequest(r request, chosen choice, options Options) (resourceapi.DeviceRequest, error) {
	fail := func(why string) error {
		return fmt.Errorf("%s %d: %s; write %s, in MiB, instead", resourcePercent, r.want.percent, why, resourceMemory)
	}
	sizes, err := options.Sizes()
	switch {
	case err != nil:
		return resourceapi.DeviceRequest{}, fail("the sizes of the cluster's GPUs cannot be read (" + clip(err.Error()) + ")")
	case len(sizes) == 0:
		return resourceapi.DeviceRequest{}, fail("no node has published a GPU yet, so it is a percentage of nothing")
	case len(sizes) > maxSubrequests:
		return resourceapi.DeviceRequest{}, fail(fmt.Sprintf("the cluster's GPUs have %d sizes, and a claim can name %d", len(sizes), maxSubrequests))
	}
	device := resourceapi.DeviceRequest{Name: r.name}
	for _, size := range slices.Sorted(slices.Values(sizes)) {
		part := max(size*node.Bytes(r.want.percent)/100/node.MiB*node.MiB, share.MinMemory)
		ofSize := fmt.Sprintf(`device.driver == "gpu.kerf.dev" && device.capacity["gpu.kerf.dev"].memory.compareTo(quantity("%s")) == 0`, size.Exact())
		device.FirstAvailable = append(device.FirstAvailable, resourceapi.DeviceSubRequest{
			Name: "of-" + strings.ToLower(size.Exact()), DeviceClassName: classShared, Selectors: selectors(append([]string{ofSize}, chosen.selectors...)),
			AllocationMode: resourceapi.DeviceAllocationModeExactCount, Count: int64(r.want.gpus), Capacity: capacity(part, r.want.cores),
		})
	}
	return device, nil
}

func selectors(expressions []string) (s []resourceapi.DeviceSelector) {
	for _, e := range expressions {
		s = append(s, resourceapi.DeviceSelector{CEL: &resourceapi.CELDeviceSelector{Expression: e}})
	}
	return s
}

// capacity names only what was asked: without memory a claim takes all of it.
func capacity(memory node.Bytes, cores int64) *resourceapi.CapacityRequirements {
	requests := map[resourceapi.QualifiedName]resource.Quantity{}
	if memory > 0 {
		requests["memory"] = resource.MustParse(memory.Exact())
	}
	if cores > 0 {
		requests["cores"] = *resource.NewQuantity(cores, resource.DecimalSI)
	}
	if len(requests) == 0 {
		return nil
	}
	return &resourceapi.CapacityRequirements{Requests: requests}
}
