// Package dra is Kerf's drivers for Kubernetes' dynamic resource allocation (resource.k8s.io/v1): they tell the scheduler
// what devices the node has, and put in force what the scheduler allocated.
//
// Two halves. A Driver is what drivers of all kinds of devices have in common: driver.go (kubelet's sockets), register.go, publish.go,
// prepare.go (one claim at a time), health.go, status.go, sweep.go (orphans), metadata.go. A Kind (kind.go) is what differs. This
// package has the kind for GPUs and their slices; package nic below it has the one for NICs.
//
//	slices.go   cards → ResourceSlices, pure; the scheduler chooses from these
//	config.go   ShareConfig, the opaque configuration of claims and classes; policy.go says the same in CEL
//	claims.go   an allocated claim → what is asked of the ledger, pure
//	gpu.go      the asks, put in force and taken back
//
// Vocabulary, which is Kubernetes'. A claim has requests; the scheduler answers each with one or more results; a result names
// a device in a pool (ours is named like the node) and, for a device that many can hold, the capacity that was
// consumed and a share id. A result becomes one share with one CDI device.
//
// Traps
//
//   - The scheduler is not trusted: old ones allocate shared devices twice. The ledger, behind Shares, has the last word.
//   - kubelet asks again: after its own restart, ours, or a reboot. Prepare is convergent and Unprepare of something unknown is
//     success, or pods hang.
//   - kubelet waits 45 s for all claims of a pod together, and an error of one of them fails the pod. An error here is read
//     in `kubectl describe pod`, so it says what was asked, what was found and what to do.
//   - Nothing is kept between calls but in the ledger: during a rolling update two drivers answer.
package dra
