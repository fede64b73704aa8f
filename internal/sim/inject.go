package sim

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"github.com/kerf-gpu/kerf/internal/node"
)

func load32(p *uint32) uint32 { return atomic.LoadUint32(p) }
func load64(p *uint64) uint64 { return atomic.LoadUint64(p) }

// Injection is a fault to put into a GPU, or its end.
type Injection struct {
	Kind  string // a key of the table below
	Value uint64 // what Kind takes: an Xid, degrees, a count
	PID   int    // the process that an Xid names; 0 for none
	// Hang bounds how long NVML's calls block after a "hang"; 0 is DefaultHang.
	Hang time.Duration
}

// DefaultHang is how long NVML blocks on a hung GPU unless told otherwise.
const DefaultHang = 10 * time.Second

// NVML's event bits.
const (
	eventDoubleBit = 0x2
	eventXid       = 0x8
	eventRecovery  = 0x8000
)

// kind is what one kind of injection takes and does.
type kind struct {
	value string // what Value is; empty: it takes none
	do    func(n *Node, g *simGpu, in Injection) error
}

// kinds is every injection that there is.
var kinds = map[string]kind{
	"xid": {"an Xid", injectXid},
	"lost": {"", func(n *Node, g *simGpu, in Injection) error {
		return injectXid(n, g, Injection{Value: 79, PID: in.PID})
	}},
	"hang":        {"", injectHang},
	"clear":       {"", clearFaults},
	"ecc":         {"a count of uncorrectable errors", injectECC},
	"ecc-correct": {"a count of corrected errors", injectCorrected},
	"remap":       {"1 for a pending row remap, 2 for a failed one", injectRemap},
	"recovery":    {"NVML's recovery action, 0 to 7", func(n *Node, g *simGpu, in Injection) error { return setRecovery(n, g, in.Value) }},
	"temperature": {"degrees Celsius", set(func(g *simGpu, n uint64) { atomic.StoreUint32(&g.Health.TemperatureC, uint32(n)) })},
	"throttle":    {"NVML's clocks event reasons, a mask", set(func(g *simGpu, n uint64) { atomic.StoreUint64(&g.Health.ThrottleReasons, n) })},
	"replay":      {"a count of PCIe replays", set(func(g *simGpu, n uint64) { atomic.AddUint64(&g.Health.PcieReplays, n) })},
	"width":       {"lanes of the PCIe link", set(func(g *simGpu, n uint64) { atomic.StoreUint32(&g.Facts.PcieWidth, uint32(n)) })},
	"nvlink":      {"how many NVLinks are up", set(func(g *simGpu, n uint64) { setLinks(g, n) })},
}

// set is an injection that changes a number.
func set(do func(g *simGpu, n uint64)) func(*Node, *simGpu, Injection) error {
	return func(_ *Node, g *simGpu, in Injection) error {
		do(g, in.Value)
		return nil
	}
}

// setLinks: the first ones are up.
func setLinks(g *simGpu, up uint64) {
	for i := range min(g.Facts.NvlinkCount, maxNVLinks) {
		g.Facts.Nvlink[i].Active = 0
		if uint64(i) < up {
			g.Facts.Nvlink[i].Active = 1
		}
	}
}

// InjectionHelp lists the kinds with what they take, for a usage text.
func InjectionHelp() string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(kinds)) {
		fmt.Fprintf(&b, "  %-12s %s\n", name, kinds[name].value)
	}
	return b.String()
}

// TakesValue reports whether a kind of injection needs a value.
func TakesValue(name string) bool { return kinds[name].value != "" }

func (in Injection) check() error {
	k, ok := kinds[in.Kind]
	switch {
	case !ok:
		return fmt.Errorf("injection %q: unknown; use one of %s", in.Kind, strings.Join(slices.Sorted(maps.Keys(kinds)), ", "))
	case k.value == "" && in.Value != 0:
		return fmt.Errorf("injection %s %d: %s takes no value; leave it out", in.Kind, in.Value, in.Kind)
	case in.Kind == "xid" && (in.Value == 0 || in.Value > 999):
		return fmt.Errorf("xid %d: outside 1 to 999; see the catalogue for those that exist", in.Value)
	case in.Value > 1<<31:
		return fmt.Errorf("injection %s %d: too large; use %s", in.Kind, in.Value, k.value)
	}
	return nil
}

// Inject puts a fault into a GPU, at once and for every process that uses it.
func (n *Node) Inject(gpu int, in Injection) error {
	if err := in.check(); err != nil {
		return err
	}
	if gpu < 0 || gpu >= len(n.gpus) {
		return fmt.Errorf("inject into GPU %d: the simulated node has %d GPUs, numbered from 0", gpu, len(n.gpus))
	}
	return kinds[in.Kind].do(n, n.gpus[gpu], in)
}

// resetXids need a GPU reset by NVIDIA's catalogue, and 79 a reboot: the driver
// says so in its recovery action.
var resetXids = []uint64{46, 48, 62, 64, 95, 109, 110, 119, 120, 136, 140, 143, 155, 156, 158}

const xidFallenOff = 79

func injectXid(n *Node, g *simGpu, in Injection) error {
	// The log first, as the driver does: who hears of the event finds the line.
	logged := n.logXid(g, in)
	n.raise(g, simEvent{Xid: uint32(in.Value), Pid: int32(in.PID), Type: eventXid})
	switch {
	case in.Value == xidFallenOff:
		logged = errors.Join(logged, setRecovery(n, g, uint64(node.RecoveryReboot)))
		atomic.OrUint32(&g.Health.Faults, faultLost)
	case slices.Contains(resetXids, in.Value):
		logged = errors.Join(logged, setRecovery(n, g, uint64(node.RecoveryReset)))
	}
	return logged
}

func setRecovery(n *Node, g *simGpu, action uint64) (err error) {
	before := atomic.SwapUint32(&g.Health.RecoveryAction, uint32(action))
	if before != uint32(action) {
		err = n.logRecovery(g, uint64(before), action)
		n.raise(g, simEvent{Xid: uint32(action), Type: eventRecovery})
	}
	return err
}

func injectHang(_ *Node, g *simGpu, in Injection) error {
	hang := in.Hang
	if hang == 0 {
		hang = DefaultHang
	}
	atomic.StoreUint64(&g.Health.NvmlHangUntilNs, monotonic()+uint64(hang))
	atomic.OrUint32(&g.Health.Faults, faultHang)
	return nil
}

func injectECC(n *Node, g *simGpu, in Injection) error {
	atomic.AddUint64(&g.Health.EccVolatileUncorrected, in.Value)
	atomic.AddUint64(&g.Health.EccAggregateUncorrected, in.Value)
	n.raise(g, simEvent{Type: eventDoubleBit})
	return nil
}

func injectCorrected(_ *Node, g *simGpu, in Injection) error {
	atomic.AddUint64(&g.Health.EccVolatileCorrected, in.Value)
	atomic.AddUint64(&g.Health.EccAggregateCorrected, in.Value)
	return nil
}

func injectRemap(_ *Node, g *simGpu, in Injection) error {
	atomic.AddUint32(&g.Health.RemapUncorrected, 1)
	if in.Value > 1 {
		atomic.StoreUint32(&g.Health.RemapFailed, 1)
		return nil
	}
	atomic.StoreUint32(&g.Health.RemapPending, 1)
	return nil
}

// clearFaults is a reset or a reboot: what lasts beyond one stays, as on the
// real card (aggregate counts, rows already remapped, a failed remap).
func clearFaults(n *Node, g *simGpu, _ Injection) error {
	h := &g.Health
	for _, word := range []*uint64{&h.EccVolatileCorrected, &h.EccVolatileUncorrected, &h.ThrottleReasons, &h.NvmlHangUntilNs} {
		atomic.StoreUint64(word, 0)
	}
	atomic.StoreUint32(&h.RemapPending, 0)
	atomic.StoreUint32(&h.TemperatureC, 34)
	setLinks(g, maxNVLinks)
	atomic.StoreUint32(&g.Facts.PcieWidth, g.Facts.PcieWidthMax)
	err := setRecovery(n, g, uint64(node.RecoveryNone))
	atomic.StoreUint32(&h.Faults, 0)
	return err
}

// raise writes an event into the GPU's ring and wakes who waits. The sequence
// number goes in last: a reader takes an entry only once it is there.
func (n *Node) raise(g *simGpu, e simEvent) {
	seq := atomic.AddUint64(&g.EventSeq, 1)
	slot := &g.Event[seq%maxEvents]
	atomic.StoreUint64(&slot.Seq, 0)
	slot.TimeNs = uint64(time.Now().UnixNano())
	slot.Xid, slot.Pid, slot.Type, slot.Message = e.Xid, e.Pid, e.Type, [32]byte{}
	put(slot.Message[:], "injected (simulated)")
	atomic.StoreUint64(&slot.Seq, seq)
	wake((*uint32)(unsafe.Pointer(&g.EventFutex)))
	wake(&n.ctl.EventFutex)
}

// wake raises a futex word and wakes every process that waits on it.
func wake(word *uint32) {
	const futexWake = 1 // not private: the waiters are other processes
	atomic.AddUint32(word, 1)
	_, _, _ = syscall.Syscall6(syscall.SYS_FUTEX, uintptr(unsafe.Pointer(word)), futexWake, 1<<30, 0, 0, 0) // fails for no word of ours
}

// boottime is CLOCK_BOOTTIME in nanoseconds, which the times in a kernel log follow.
func boottime() uint64 {
	const clockBoottime = 7
	var ts syscall.Timespec
	_, _, _ = syscall.Syscall(syscall.SYS_CLOCK_GETTIME, clockBoottime, uintptr(unsafe.Pointer(&ts)), 0) // cannot fail for this clock
	return uint64(ts.Nano())
}

// monotonic is CLOCK_MONOTONIC, which all processes of a machine share.
func monotonic() uint64 {
	const clockMonotonic = 1
	var ts syscall.Timespec
	_, _, _ = syscall.Syscall(syscall.SYS_CLOCK_GETTIME, clockMonotonic, uintptr(unsafe.Pointer(&ts)), 0) // cannot fail for this clock
	return uint64(ts.Nano())
}
