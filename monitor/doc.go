// Package monitor judges the health of a node's devices: facts go in, a verdict for each device comes out, with its reason and what
// clears it.
//
// Vocabulary
//
//   - A fact is something that a source saw: an Xid, a reading of a device, that a device did not answer, that the driver was loaded anew.
//   - A condition is what facts have established about a device, under a key (xid/79, lost, nvlink). It is suspected until it is confirmed,
//     has a level, and goes only by evidence: silence, a restart and the passing of time clear nothing.
//   - A level says what a condition asks for: nothing new on the device (hold), a reset, a reboot, another card.
//   - A profile is policy as data: which level each action of the catalogue, each recovery action and each signal has. There is no list
//     of bad Xids.
//   - A verdict is a device's level and health. Health is unknown when nobody can tell, and that is never unhealthy.
//   - A mode is what may be done about a verdict: observe (say it), hold (keep new work away), evict (ask for what runs to be moved).
//
// Step is a pure function of state, fact and moment. Monitor is the loop around it, with the state file. Sources are in monitor/source,
// the catalogue in monitor/xid, what `kerf doctor` judges in monitor/doctor.
//
// Traps
//
//   - A moment's time since boot orders facts; the wall clock is for people, and may jump.
//   - An Xid is a statement of the driver and counts at once. A reading is a sample, and one bad sample establishes nothing.
//   - A tenant's own fault (a bad address, a kernel that hangs) looks like the card's. The line names a process: it is pinned there.
//   - A board can be swapped for another at the same address: state belongs to a serial number.
package monitor
