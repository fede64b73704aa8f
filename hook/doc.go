// Package hook is what the container runtime runs while it makes a container that holds a share: it makes Kerf's shim the
// libcuda.so.1 of the image, whatever that image has, and checks that it is. It fails closed: a container whose shim cannot be
// proved does not start, and the reason is one line that `kubectl describe pod` shows.
//
// Two moments, named as the OCI runtime specification does:
//
//	createRuntime    on the host, as root, when the container's mounts are made and before its root is changed. CreateRuntime checks
//	                 that the mounts of the share are there and are what they should be (Verify on the configuration, look on the
//	                 real ones), that no other GPU's device node is, and writes down which container holds the share
//	createContainer  in the container's namespaces, the host's files still in sight. CreateContainer works on files of the image: what
//	                 the loader could find as libcuda.so.1 is covered, links and the loader's cache are made (Plan), then it
//	                 is checked what the loader finds
//
// Words. A Share here is what a container is given of one share; the CDI spec (package hook/cdi) is made from it, and carries it to
// both hooks as arguments. A container may hold several shares: each has its own hooks, and each hook sees all of them in the
// container's configuration. Monitoring is a claim with admin access: device nodes and NVML, no share.
//
// Traps. The image is hostile until proved otherwise: every path in it goes through openat2 confined to the image's root, nothing
// in it is executed, and nothing is written across a mount (a volume may be the host's own /etc). Hooks run once a container, so
// this package must start in a few milliseconds: no gRPC, no client-go, no CDI library. The hook may be of an older version than
// the kerfd that runs: it stays installed while a CDI spec names it.
package hook
