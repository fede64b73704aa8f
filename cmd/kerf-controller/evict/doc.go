// Package evict moves pods off devices that are to be drained: slowly, whole gangs at a time, and not at all where many nodes say the
// same at once.
//
// Vocabulary
//
//   - A device asks to be drained by the taint kerf.dev/drain in its ResourceSlice. What else taints it there is the cause: kerf.dev/xid=79.
//   - A gang is pods that are moved together or not at all: of a Job, a JobSet, a pod group. A pod of its own is a gang of one.
//   - A move is a pod that was asked to go. It is written down before it is asked, and counts against the budgets whether it went or not,
//     unless the pod is seen to be there still.
//   - A budget bounds moves in any stretch of time: pods by a rate, nodes by a number and by a share of all.
//   - The breaker opens when one cause appears on many nodes at once. That is software, power or a fabric, and moving pods heals none of
//     these. Nothing is moved until a person has reset it.
//   - A decision is what is done about a gang now, or what it waits for.
//
// Plan is a pure function. Controller is the loop around it: it reads the cluster, writes History to a ConfigMap, then acts.
//
// Traps
//
//   - The ConfigMap is written with its resourceVersion before anything is asked of a pod: of two who think that they lead, one fails there.
//   - A pod that replaces a moved one belongs to the same gang: it must not be moved because its gang was not yet whole.
//   - A dry run moves nothing and fills its budgets all the same; what it would do next must not depend on that.
package evict
