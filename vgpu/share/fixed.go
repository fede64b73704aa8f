package share

import "github.com/kerf-gpu/kerf/internal/node"

// Promise is what a tenant of an over-committed card was promised of it.
type Promise struct{ Memory, MinResident node.Bytes }

// fixedFloor is the part of the room, one in so many, that is for what cannot be moved whatever was promised: programs that use a little of it must run at all. Who
// was promised more than this leaves is refused what does not fit, as it is for the others' contexts.
const fixedFloor = 16

// FixedLimits is how much each tenant of an over-committed card may have of memory that cannot leave it: pools, arrays, managed memory
// and what a program makes by cuMemCreate. Room is what the card has for tenants, contexts taken off.
//
// A tenant runs with all of its memory or not at all. So of two the one may fix what the other's memory leaves of the room; of more,
// those beside a tenant share what it leaves: each has its minResident, which stays anyhow, and a part of the rest by its memory.
// Then whoever comes in finds room for all that it was promised, whatever the others have fixed. A tenant alone may fix all.
func FixedLimits(room node.Bytes, promised []Promise) []node.Bytes {
	limits := make([]node.Bytes, len(promised))
	for i, own := range promised {
		limits[i] = room
		for j, other := range promised {
			if i != j {
				limits[i] = min(limits[i], beside(room-min(room, other.Memory), own, promised, j))
			}
		}
		if len(promised) > 1 {
			limits[i] = max(limits[i], room/fixedFloor/node.Bytes(len(promised)))
		}
	}
	return limits
}

// beside is a tenant's part of what the one with the number leaves.
func beside(left node.Bytes, own Promise, promised []Promise, number int) node.Bytes {
	var memory, kept node.Bytes
	for k, p := range promised {
		if k != number {
			memory, kept = memory+p.Memory, kept+p.MinResident
		}
	}
	left -= min(left, kept)
	return own.MinResident + node.Bytes(float64(left)*float64(own.Memory)/float64(max(memory, 1)))
}
