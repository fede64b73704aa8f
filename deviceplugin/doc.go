// Package deviceplugin serves uniform slices of GPUs to kubelet's v1beta1 device plugin protocol, for clusters without DRA.
//
// A slice is so much memory and so many cores of one GPU, the same on every node (configuration). kubelet counts slices as an
// extended resource, picks some for a container, and tells which. Slices of one GPU add up to one share, with the sum of
// their memory and cores; slices of several GPUs are one share a GPU. The container gets its shares as CDI devices, and nothing
// else: no environment, no annotations, no mounts.
//
// An owner is one container's slices on one GPU: one share. Its name in the ledger is the list of its slices, so who holds what
// is known again after a restart, from the ledger alone.
//
// Traps, all of v1beta1:
//
//   - Nothing says that a container has ended. kubelet's pod resources API says which devices are in use, and an owner that was
//     in use and is not seen twice in a row is dropped. That API does not show init containers other than sidecars, so an owner
//     that was never seen there has more time: UnseenFor.
//   - Allocate does not say for which pod. The slices of an init container are given again to a container of the same pod,
//     while the init container has yet to start. So an Allocate of slices that have an owner ends that owner's share and makes
//     the new one under the same name: the CDI device that the init container was told of is then the new share.
//   - A restarted container is not allocated again: it comes back with the CDI devices of its first start.
//   - Two plugins for one resource are one too many for older kubelets, but an update of the DaemonSet makes two for a moment: the older
//     one lets go of its socket when the newer one takes its path (register.go).
//   - A kubelet that starts removes all sockets of plugins, lists no pods until it has heard from the API server, and
//     expects every plugin to register again.
//
// Slices whose bytes another door holds (DRA, kerf run) are Unhealthy while they do, so that the scheduler does not count
// them. That is a courtesy: the ledger refuses them anyway.
package deviceplugin
