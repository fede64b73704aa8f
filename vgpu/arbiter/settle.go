package arbiter

import "github.com/kerf-gpu/kerf/vgpu/region"

// reading is the slots of all sessions of a share and the sums, read in this order: slots, sums, slots again.
type reading struct {
	before, after []region.Snapshot
	sums          [region.MaxDevices]uint64
}

// still says that nothing changed while the reading was made, so that it is a picture of one moment.
func (r *reading) still() bool {
	for i := range r.before {
		b, a := &r.before[i], &r.after[i]
		if !b.Quiet() || !a.Quiet() || b.Enter != a.Enter || b.Charged != a.Charged {
			return false
		}
	}
	return true
}

// drift is how far the sums are from the sum of the slots: what must be added to them, in bytes.
func (r *reading) drift() (delta [region.MaxDevices]int64) {
	for d := range delta {
		var slots uint64
		for i := range r.after {
			slots += r.after[i].Charged[d]
		}
		delta[d] = int64(slots - r.sums[d])
	}
	return delta
}

// implicitBytes is what NVML sees in a process beyond its charges. ok is false where the charges changed while NVML was
// asked, so that the two numbers are of different moments and say nothing.
func implicitBytes(nvml uint64, before, after []region.Snapshot, device int) (bytes uint64, ok bool) {
	var charged uint64
	for i := range before {
		b, a := &before[i], &after[i]
		if !b.Quiet() || b.Enter != a.Enter || b.Leave != a.Leave {
			return 0, false
		}
		charged += a.Charged[device]
	}
	return nvml - min(charged, nvml), true
}
