// Package node holds the words in which Kerf speaks of one machine: its GPUs,
// how they hang on PCIe and NVLink, the NICs, VFs and disks beside them, the
// NUMA nodes under them, and what is wrong with any of these.
//
// Everything here is a plain value: no I/O, no clock, standard library only.
// internal/nvml and internal/sysfs fill the values in, from real or from
// simulated hardware alike; everybody else only reads them.
//
// Vocabulary
//
//   - A GPU is named by its UUID. Index, device node and even the PCI address
//     change over reboots, cable work and MIG reconfiguration; the UUID does not.
//   - A PCI address is domain:bus:device.function as the kernel writes it
//     (0000:b3:00.0). NVML writes the same address as 00000000:B3:00.0.
//   - A PCIe path is the root complex and every bridge down to the device. Two
//     devices below one root port can talk without the CPU; two devices that
//     share no more than the root complex cannot.
//   - An affinity class (PIX … SYS, NVn) says how far apart two devices are, in
//     the terms of nvidia-smi topo -m.
//   - A fault state is what the hardware says of itself. What to do about it is
//     policy, and lives in monitor.
//
// Traps
//
//   - NUMA node −1 means that the kernel does not know (single-node machines,
//     many VMs). It never equals another −1.
//   - A link's current speed drops when the GPU idles. Only a width below the
//     maximum, or a speed below it under load, is a degraded link.
//   - PCI domains have more than four digits under VMD and Hyper-V.
//   - A recovery action that this version does not know is a fault, not health.
//   - Memory figures are bytes. Vendors print 80 GB for 80 GiB and for less.
package node
