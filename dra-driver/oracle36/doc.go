// Package dra runs the allocator's cases of dra-driver with the scheduler of Kubernetes 1.36: a module of its own, since a
// module has one version of a library. The test and its data are those of the driver.
package dra
