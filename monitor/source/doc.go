// Package source brings in what a node says of its devices: lines of the kernel log, events and readings of GPUs, ports and disks.
//
// Vocabulary: a source runs until its context ends and hands on what it learns. It is up while its reads succeed. What it cannot bring
// it counts: a loss is a number that somebody can see, never a silence.
//
// Traps
//
//   - User space can write to /dev/kmsg, but not as facility 0. Only records of that facility are the kernel's own word.
//   - A gap in the sequence numbers is the exact number of records lost; EPIPE says that the ring has overtaken the reader.
//   - Times of records are of the kernel's clock since boot. Wall clocks jump; these do not.
//   - A call into a sick GPU may never return, and cannot be ended. It keeps one goroutine, and no second one is sent after it.
package source
