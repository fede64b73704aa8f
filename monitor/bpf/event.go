package bpf

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Event is what a probe told.
type Event struct {
	Kind  Kind
	At    time.Duration  // since boot
	PID   int            // of OOM and Crash
	Sig   syscall.Signal // of Crash
	Errno syscall.Errno  // of Block
	Disk  string         // of Block: its number, as in /sys/dev/block: 259:0
	MC    int            // of Memory: the controller's number
	Level Severity       // of Memory and AER
	PCI   string         // of AER: the device, as the kernel names it
	Label string         // of Memory: the module, if the board tells
	Count uint64         // of Memory, and of Block: so many since the probe is on
	Bits  uint32         // of AER: the status register
}

// Severity is how bad an error of hardware is.
type Severity int

// The severities.
const (
	Corrected   Severity = iota // the hardware put it right
	Uncorrected                 // data was lost, the machine goes on
	Fatal                       // what it happened to cannot go on
)

func (s Severity) String() string { return [...]string{"corrected", "uncorrected", "fatal"}[s] }

// severities are the kernel's numbers of severities, by kind: enum hw_event_mc_err_type and AER_*. One that is not here is nothing
// that went wrong, or nothing that this version knows.
var severities = map[Kind]map[int32]Severity{
	Memory: {0: Corrected, 1: Uncorrected, 2: Corrected /* deferred: poison that nobody has used */, 3: Fatal},
	AER:    {0: Uncorrected, 1: Fatal, 2: Corrected},
}

// recordSize is that of the program's struct event.
const recordSize = 96

// parse reads a record; ok is false for one that tells of nothing.
func parse(raw []byte) (e Event, ok bool, err error) {
	if len(raw) < recordSize {
		return e, false, fmt.Errorf("a record of %d bytes, %d are due: object and program differ", len(raw), recordSize)
	}
	le := binary.LittleEndian
	e.At, e.Kind = time.Duration(le.Uint64(raw)), Kind(le.Uint32(raw[8:]))                                             //nolint:gosec // G115: the kernel's clock
	pid, code, dev, count := le.Uint32(raw[12:]), int32(le.Uint32(raw[16:])), le.Uint32(raw[20:]), le.Uint64(raw[24:]) //nolint:gosec // G115: code is signed
	text, _, _ := bytes.Cut(raw[32:recordSize], []byte{0})
	switch e.Kind {
	case OOM:
		e.PID = int(pid)
	case Crash:
		e.PID, e.Sig = int(pid), syscall.Signal(code)
	case Memory:
		e.MC, e.Label, e.Count = int(dev), string(text), count
	case AER:
		e.PCI, e.Bits = string(text), uint32(count) //nolint:gosec // G115: a register of 32 bits
	case Block:
		// Numbers inside the kernel are 12 and 20 bits.
		e.Errno, e.Disk, e.Count = syscall.Errno(max(code, -code)), fmt.Sprintf("%d:%d", dev>>20, dev&(1<<20-1)), count //nolint:gosec // G115: not negative
		return e, faults[e.Errno], nil
	default:
		return e, false, fmt.Errorf("a record of kind %d: object and program differ", e.Kind)
	}
	if of := severities[e.Kind]; of != nil {
		e.Level, ok = of[code]
		return e, ok, nil
	}
	return e, true, nil
}

// faults are errors that speak of a disk. Others speak of the request: a discard that a disk does not know fails too.
var faults = map[syscall.Errno]bool{
	unix.EIO: true, unix.ENODATA: true /* medium */, unix.ETIMEDOUT: true, unix.EILSEQ: true /* protection */, unix.ENOLINK: true, unix.EREMOTEIO: true, unix.ENODEV: true,
}
