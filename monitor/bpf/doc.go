// Package bpf watches the machine around the GPUs by small programs in the kernel: who was killed for lack of memory, errors of memory,
// PCIe and disks, and GPU processes that crash.
//
// Vocabulary
//
//   - A probe is one program on one tracepoint: a row of the table in table.go. Each is on, or off with a reason, by itself; the daemon
//     works in full with all of them off.
//   - An event is what a probe tells: a record of the ring buffer. Only rare things come this way; what had no room is counted as lost.
//   - A watched process is one that has a GPU. Others' ends are not told.
//   - Cost is the kernel's own measurement of the programs' run time. To measure slows every BPF program of the machine a little, so it is
//     done for a second in each minute.
//
// Traps
//
//   - A tracepoint's fields move from kernel to kernel: their places are read from tracefs, at start, and set as constants of the program.
//     A field of another size than the program reads switches the probe off.
//   - Pids are the machine's; kerfd must be in its pid namespace to give and take them.
//   - Only the probe of crashes needs BTF: a process's exit code is in no tracepoint.
//   - The objects are compiled ahead (generate.go); no compiler is needed on a node.
package bpf
