// Package arbiter runs the shares of a node: it keeps the pages that tenants and kerfd share, knows which processes are
// attached, and takes their memory off the books when they die.
//
// A share is a grant in force: a directory with a policy page, a usage page and a socket. A session is one process attached
// to a share; it owns one slot of the usage page. Implicit bytes are what NVML sees in a session's process beyond what it
// charged: contexts, modules, local memory. They count against the share's limit.
//
// How a session ends. Its process dies: the pidfd says so at once. Or it calls exec, and lives on as another program: where the
// session had the usage page mapped there is nothing then, which /proc shows. No message is needed for either, and none is trusted.
//
// Why a fold can be exact without a lock. A process raises `enter`, changes its slot and the sum, then raises `leave`. If a
// dead process's two counts are equal, its slot is exactly its part of the sum. If they differ, it died between
// the two words, and the sums are set right from the slots of the living at the next moment when all of them are at
// rest; such moments are frequent, since a change takes nanoseconds. Sums that do not add up without such a
// death have been tampered with: the share is flagged, and allocates nothing more.
//
// Leases (lease*.go) are a second half: who may use the GPU when, as a pure function. lessor.go carries out what it decides: a
// session's process keeps a connection on the share's socket, says there when it has work, and drains when it is asked to. A
// session without that connection is not leased. Where Config.Leases is off every gate is open.
//
// kerfd may die at any time. The pages stay, the sessions are on record beside them, and Restore goes on from there.
package arbiter
