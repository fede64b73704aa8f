// Package nic is the kind of devices that Kerf's driver nic.kerf.dev serves: NICs and virtual functions, each for one pod.
//
//	config.go   NicConfig, the opaque configuration of claims and classes
//	slices.go   NICs → ResourceSlices, pure
//	claims.go   an allocated claim → what is asked of the node, pure
//	kind.go     the asks, put in force and taken back
//	runtime.go  the container runtime's side, by NRI: a pod's NICs are moved into it when its sandbox is made
//
// Vocabulary. A physical function (PF) is a NIC; a virtual function (VF) is a part of one with an interface of its own. A root
// port is where a PCIe tree begins below the root complex: a GPU and a NIC under the same one can talk without the CPU, so both of
// Kerf's drivers publish it as kerf.dev/pcieRootPort, and claims match it. To attach is to move an interface, and where the
// system's RDMA mode is exclusive its RDMA device, into a pod's network namespace.
//
// Who attaches. Prepare does all that is slow, and writes down what is to be attached for which pods. The runtime then tells of each
// sandbox (NRI RunPodSandbox), and kerfd attaches. NRI fails open: a plugin that is late or dead is left out, and the pod goes on without.
// So each claim's CDI device has a hook, which finds that the NIC is in the container's namespace, has kerfd attach it where it is not,
// or fails the container.
//
// Traps
//
//   - A CDI device reaches only containers that name the claim; a claim that is named by none has no hook behind it.
//   - An interface is in one network namespace: a claim of NICs cannot be shared by pods. The containers of one pod share it anyway.
//   - Attributes come from the PCI tree, never from an interface that is seen: it is out of sight while it is in a pod.
//   - What an administrator's DeviceClass must decide (vlan, trust, rates) is refused in a claim: it reaches beyond the pod.
package nic
