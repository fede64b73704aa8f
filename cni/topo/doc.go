// Package topo judges how a node's GPUs and NICs lie to each other: which pairs
// can talk past the CPU, how wide the way is, what is wrong with it, and which
// NIC each GPU should get. It is pure: values of internal/node in, values out.
//
//	class.go    how far apart a GPU and a NIC are
//	links.go    bandwidth along a path, links that trained below their best, ACS
//	facts.go    what a NIC is worth to a scheduler, and rails
//	nearest.go  NICs in order of nearness to a pod's GPUs
//	assign.go   the best NIC for each of N GPUs, exactly; solve.go finds it
//
// Vocabulary
//
//   - A class is PIX, PXB, PHB, NODE, SYS or UNKNOWN, in the words of
//     nvidia-smi topo -m. What matters is PXB or better: there NCCL lets the NIC
//     read and write GPU memory directly (GPUDirect RDMA), and from PHB on it
//     does not.
//   - A domain is what is PXB or better of each other: all below one root port.
//     A class is a word about two devices and cannot be an attribute of one; the
//     root port's address can, as kerf.dev/pcieRootPort.
//   - A rail is the switch plane that NIC i of every node is cabled to.
//   - Data Direct is a second PCI function of a NIC, below the GPU's root, for
//     traffic with GPU memory alone. The NIC is as near as the better of the two.
//
// Read a topology
//
//  1. `kerf topo` shows the classes, and what is wrong, last.
//  2. PIX or PXB somewhere in each GPU's row: a NIC for it is there. All PHB or
//     worse: GPUDirect RDMA is off by NCCL's default.
//  3. `kerf topo --assign N` says which NIC each GPU should have, and why.
//  4. `kerf topo --svg FILE` draws the tree with what each link carries.
//
// Traps
//
//   - One root complex is not one domain: two devices below different root ports
//     of it are PHB. So pcieRoot cannot promise what pcieRootPort does.
//   - A flat tree, as most VMs show it, has no bridge, so no root port: the
//     attribute is left out, since what cannot be known must not match.
//   - NUMA node −1 is not known, and never equals another −1.
//   - Old Broadcom switches show as two levels: PXB here, PIX to NCCL. Both are
//     on the direct side, so they differ in tie-breaks alone.
//   - A GPU's own link slows down when it idles: only fewer lanes are called
//     degraded there. Those of switches and NICs keep their speed.
//   - A link can do no more than the weaker of its ends. A fast card in a slow
//     slot is not degraded.
package topo
