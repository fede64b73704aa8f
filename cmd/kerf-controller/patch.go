package main

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Operation is one of a JSON patch (RFC 6902). Each names the one member that it changes, so fields that this program does not
// know stay as they are.
type Operation struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value any    `json:"value,omitempty"`
}

// removals take HAMi's resources from all containers.
func removals(pod *corev1.Pod) (patch []Operation) {
	containersOf(pod, func(path string, _ bool, c corev1.Container) {
		for _, list := range []struct {
			name      string
			resources corev1.ResourceList
		}{{"limits", c.Resources.Limits}, {"requests", c.Resources.Requests}} {
			for _, name := range hamiResources {
				if _, ok := list.resources[name]; ok {
					patch = append(patch, Operation{Op: "remove", Path: path + "/resources/" + list.name + "/" + escape(string(name))})
				}
			}
		}
	})
	return patch
}

// additions give the pod the claim, and each container its request of it. Claims that are there stay.
func additions(pod *corev1.Pod, asking []asker, requests []request, template string) (patch []Operation) {
	claim := claimName(pod)
	added := corev1.PodResourceClaim{Name: claim, ResourceClaimTemplateName: &template}
	patch = append(patch, appendTo("/spec/resourceClaims", len(pod.Spec.ResourceClaims) > 0, added))
	for _, r := range requests {
		for _, i := range r.by {
			patch = append(patch, appendTo(asking[i].path+"/resources/claims", asking[i].has, corev1.ResourceClaim{Name: claim, Request: r.name}))
		}
	}
	return patch
}

// appendTo adds to a list, which is made where there is none.
func appendTo[T any](path string, exists bool, value T) Operation {
	if exists {
		return Operation{Op: "add", Path: path + "/-", Value: value}
	}
	return Operation{Op: "add", Path: path, Value: []T{value}}
}

// claimName is a name that no other claim of the pod has.
func claimName(pod *corev1.Pod) string {
	name := "kerf"
	for n := 2; slices.ContainsFunc(pod.Spec.ResourceClaims, func(c corev1.PodResourceClaim) bool { return c.Name == name }); n++ {
		name = fmt.Sprintf("kerf-%d", n)
	}
	return name
}

// escape writes a member's name into a JSON pointer.
func escape(name string) string {
	return strings.NewReplacer("~", "~0", "/", "~1").Replace(name)
}
