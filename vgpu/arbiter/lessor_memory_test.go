package arbiter

import (
	"testing"

	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/vgpu/region"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

// What a process says of its host memory frees what it gave back, and nothing that is on its way; and never is more than it was given.
func TestHostMemoryHeard(t *testing.T) {
	const file = uint64(hostGrain)
	for _, row := range []struct {
		name  string
		was   memoryClient
		says  region.Lease
		given node.Bytes
	}{
		{"the first word, after kerfd was away", memoryClient{}, region.Lease{Host: 2 * file}, 2 * hostGrain},
		{"the first word of a liar", memoryClient{}, region.Lease{Host: 1 << 63}, 10 * hostGrain},
		{"later words raise nothing", memoryClient{told: true, given: hostGrain}, region.Lease{Host: 1 << 63}, hostGrain},
		{"two files are on their way", memoryClient{told: true, given: 2 * hostGrain, files: 2}, region.Lease{Host: 0}, 2 * hostGrain},
		{"one of them is", memoryClient{told: true, given: 2 * hostGrain, files: 2}, region.Lease{Host: file, At: 1}, 2 * hostGrain},
		{"it could not take one", memoryClient{told: true, given: 2 * hostGrain, files: 2}, region.Lease{Host: file, At: 2}, hostGrain},
		{"trimmed", memoryClient{told: true, given: 2 * hostGrain, files: 3, trim: 3}, region.Lease{Host: 0, At: 3}, 0},
		{"a number that was never sent", memoryClient{told: true, given: hostGrain, files: 1}, region.Lease{Host: 0, At: 9}, hostGrain},
		{"more is being made", memoryClient{told: true, given: hostGrain, files: 1, dealt: 1, giving: true}, region.Lease{Host: 0, At: 1}, hostGrain},
	} {
		c := row.was
		if c.hears(row.says, 10*hostGrain); c.given != row.given {
			t.Errorf("%s: counts %s, want %s", row.name, c.given, row.given)
		}
	}
}

func overcommittedSpec(id string, memory node.Bytes) Spec {
	s := leasedSpec(id, 20)
	s.Grant.Devices[0].Mode, s.Grant.Devices[0].Memory = share.ModeOvercommit, memory
	return s
}

// A process moves memory by order: the file comes before the order that needs it, and the next order after it.
func TestMemoryMovesByOrder(t *testing.T) {
	r := leasedRig(t)
	for _, id := range []string{"a", "b"} {
		if err := r.server.Add(overcommittedSpec(id, node.GiB)); err != nil {
			t.Fatal(err)
		}
	}
	a := r.leaseholder("a")
	memory := func(h *leaseholder, resident, absent node.Bytes, flags uint32, done, files uint64) {
		h.say(region.Lease{Kind: region.LeaseMemory, Memory: uint64(resident), Absent: uint64(absent), Flags: flags, Lease: done, At: files, Host: files * uint64(hostGrain)})
	}
	memory(a, 0, 900*node.MiB, 1, 0, 0)
	in := a.await(region.LeaseIn)
	memory(a, 900*node.MiB, 0, 0, in.Lease, 0)
	b := r.leaseholder("b")
	memory(b, 0, 300*node.MiB, 1, 0, 0)
	for range 2 { // a's lease ends first, if it had one
		if m := a.next(); m.Kind == region.LeaseDrain {
			a.say(region.Lease{Kind: region.LeaseDrained, Lease: m.Lease, At: uint64(monotonic())})
		} else if m.Kind == region.LeaseHost {
			memory(a, 900*node.MiB, 0, 0, in.Lease, m.Lease)
			break
		}
	}
	out := a.await(region.LeaseOut)
	moved := node.Bytes(out.Memory)
	if moved < 150*node.MiB || moved > 300*node.MiB {
		t.Errorf("%s are to leave, want what b lacks", moved)
	}
	memory(a, 900*node.MiB-moved, moved, 0, out.Lease, 1)
	first := b.await(region.LeaseIn)
	if first.Memory == 0 || first.Memory > uint64(300*node.MiB) {
		t.Errorf("b is to bring in %d bytes", first.Memory)
	}
	memory(b, 0, 5*node.GiB, 1, 0, 0) // more than the card, and more than is believed
	b.await(region.LeaseRefused)
}
