// Package upstream runs those of Kubernetes' own tests of dynamic resource allocation that need no image of a registry and no driver of
// theirs, on the cluster with Kerf on it: its conformance tests of resource.k8s.io. Kerf's admission policies and webhooks stand
// in the way of every object of that API group, and must let pass what Kubernetes promises to take.
package upstream
