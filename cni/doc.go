// Package cni attaches NICs to pods, and gets them back whatever dies in between. One engine serves two doors: the CNI plugin
// kerf-cni, a short-lived process for each pod, and kerfd's DRA driver; what it knows is in files and in the kernel, never in a process.
//
// Words. A device is what is attached: a VF, a whole NIC, or a link without hardware (veth, macvlan), by its PCI address or its
// link's name. An attachment is a device in a pod's network namespace, by Key: container and interface name. The baseline is how
// a device was before, and has to be again: name, MTU, addresses, what its PF had set. The marker is the link's alias,
// kerf:CONTAINER/IFNAME:HOSTNAME: it travels with the link, so that a link tells whose it is and what it was called when its record is lost.
//
// The rules
//
//   - The record is written before the first change, and deleted when the device was seen clean in the host's namespace.
//   - The kernel is the truth. A record's phase is a hint: Detach compares what is there with the baseline and changes what differs,
//     whatever happened before. Rollback of an attachment that failed, DEL, GC and the start of a daemon are all this one function.
//   - One move for each link and direction, with name, MTU and marker in the same message.
//   - A device's lock (flock, so it ends with its process) is held for each change of it; a PF's only while a VF is bound again.
//     Nobody waits longer than LockWait, and nobody holds a lock while another plugin runs.
//
// Traps. A baseline that is taken from a dirty device makes the dirt permanent: it is taken only where there was no record, in the
// host's namespace, without a marker. A VF whose address was set by its PF refuses to change it itself. A second err in an inner
// scope is how two plugins lost VFs: functions that undo things on error name their results, and this package is vetted for shadows.
package cni
