// Package region is the Go side of the pages that kerfd and the shim share.
//
// A share has two files. The policy is kerfd's: limits, the gate word, and what NVML sees of the share; a tenant
// has it read-only. The usage is the tenant's: one slot a session (a session is one process attached to the share) and
// one sum a device, changed by the shim with atomic adds and no lock, so that a process killed at any instruction blocks nobody.
//
// The layout is C's: vgpu/shim/region.h is the authority and the parity test compares every offset. Both files are
// mapped MAP_SHARED and live on a tmpfs, so they outlive kerfd; a restarted kerfd maps them again and goes on.
//
// Traps. A tenant can truncate its usage file, and then reading the page is a SIGBUS: kerfd reads it under Guard. Every word of usage may hold anything, since a tenant can write there: read it once into a local, bound
// it, and never index by it. A word that the other side writes is read and written with sync/atomic only.
package region

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"runtime/debug"
	"sync/atomic"
	"syscall"
	"unsafe"
)

// Layout constants, as in region.h.
const (
	Magic      = 0x4652454b
	Version    = 2
	MaxDevices = 16
	MaxSlots   = 512
	ReasonLen  = 232
)

// Policy flags.
const (
	FlagStrict    = 0x1 // refuse calls that allocate and are not known
	FlagTampered  = 0x2 // usage did not add up: nothing more is allocated
	FlagRevoked   = 0x4 // the grant has ended
	FlagSimulated = 0x8 // the GPUs are simulated

	FlagOvercommit = 0x10 // linear memory can be swapped out to the host; set before the first attach, and never changed
	FlagLeases     = 0x20 // GPU time is leased: the gate opens and shuts, and kerfd must be told of work
	FlagHold       = 0x40 // while kerfd is away a gate that it left shut stays shut; else it opens
	FlagMPS        = 0x80 // the share is of tier mps: its processes must be clients of its card's MPS server
)

// What the gate word says.
const (
	GateOpen   = 0 // nobody else wants the GPU
	GateShut   = 1
	GateShared = 2 // open, but no more than a few milliseconds of work ahead: others wait, or may soon
)

// DeviceMIG in PolicyDevice.Flags: UUID names a MIG device.
const DeviceMIG = 0x1

// SlotTampered is set in Slot.Flags by a process that found its slot changed under it.
const SlotTampered = 0x1

// PolicyDevice is one GPU of a share, or one MIG device. Sizes are bytes.
type PolicyDevice struct {
	UUID         [16]byte // as CUDA tells it: a MIG device's own
	Limit        uint64   // charged + implicit never exceed it
	Guaranteed   uint64
	Implicit     uint64 // seen by NVML in the share's processes beyond what they charged
	ContextBytes uint64 // what one context takes on this GPU, 0 while not known
	Cores        uint32 // percent of GPU time, 0: best effort
	Flags        uint32 // DeviceMIG
	MinResident  uint64 // what a process of an over-committed share never swaps out
	HostLimit    uint64 // host memory that one process may fill with what it swaps out, 0: no limit
	FixedLimit   uint64 // what an over-committed share may have of memory that cannot be moved, contexts apart; 0: no limit
	_            [48]byte
}

// Policy is the page that kerfd writes.
type Policy struct {
	Magic, Version uint32
	Size           uint32
	DeviceCount    uint32
	Flags          uint32
	_              uint32
	Epoch          uint64
	Share          [40]byte
	_              [56]byte
	Gate           uint32 // GateOpen and so on; a futex word
	_              [60]byte
	Device         [MaxDevices]PolicyDevice
	HostPID        [MaxSlots]int32
}

// Slot is one session's counters, written by its process.
type Slot struct {
	Generation   uint32 // set by kerfd, 0: free
	Flags        uint32
	Enter, Leave uint64 // changes begun and ended: unequal in a slot whose process died between two words
	Charged      [MaxDevices]uint64
	HostPinned   uint64
	Imported     uint64
	Launches     uint64
	Refused      uint64
	Unknown      uint64
	Mismatch     uint64
	_            [56]byte
}

// Sum is the bytes charged by all sessions on one device, alone in its cache line.
type Sum struct {
	Charged uint64
	_       [56]byte
}

// Residency says where the swappable memory of one session of an over-committed share is, in whole pages as the card holds
// them. It is the slot's only if the generations are equal.
type Residency struct {
	Generation uint32
	_          uint32
	Host       uint64 // bytes of page-locked host memory taken for swapping
	_          [48]byte
	Resident   [MaxDevices]uint64
	Swapped    [MaxDevices]uint64
	Moved      [MaxDevices]uint64 // bytes that were copied in or out, ever
}

// Usage is the page that the tenant's processes write.
type Usage struct {
	Magic, Version uint32
	Size           uint32
	_              uint32
	_              [48]byte
	Sum            [MaxDevices]Sum
	Slot           [MaxSlots]Slot
	Residency      [MaxSlots]Residency
}

// RosterEntry is a session as kerfd wrote it down for the kerfd that comes next. Generation is written last.
type RosterEntry struct {
	Generation uint32 // 0: none
	PID        int32
	Start      uint64 // of the process, in clock ticks since boot
	Since      int64  // of the session, Unix time in nanoseconds
	Usage      uint64 // address of the usage page in the process
	Comm       [16]byte
}

// Roster is a share's sessions on record. It is kerfd's alone, and in a file of its own that no tenant sees. A mapped page
// outlives a killed process like a written file does, and costs an attach no more than a few stores.
type Roster struct {
	Magic, Version uint32
	Size           uint32
	_              uint32
	Entry          [MaxSlots]RosterEntry
}

// Page is a type that a File can hold.
type Page interface{ Policy | Usage | Roster }

// What a shim can ask for on the share's socket.
const (
	HelloAttach  = 1 // a session, please
	HelloNote    = 2 // write this to kerfd's log
	HelloMeasure = 3 // read NVML before the answer: a context was made whose price is not known
	HelloLease   = 4 // keep this connection for the leases of an attached process
)

// What goes over the connection for leases, either way.
const (
	LeaseWatch   = 1 // kerfd: say when work begins and ends (Flags 1), or no more (0)
	LeaseDrain   = 2 // kerfd: the gate is shut; answer when all that was submitted has ended. Flags 1: some of it went unwatched
	LeaseBegan   = 3 // the process waits at the gate, or was seen to submit
	LeaseEnded   = 4 // it has submitted nothing for a while, and all is done
	LeaseDrained = 5 // the process: it has. Flags: microseconds for which it had work since the drain before, at least 1; 0: it cannot tell

	// Of over-committed shares.
	LeaseOut     = 6  // kerfd: move Memory of a device out, once all that was submitted has ended; the gate is shut
	LeaseIn      = 7  // kerfd: move Memory in, or make them
	LeaseRefused = 8  // kerfd: what is asked for can never be had
	LeaseHost    = 9  // kerfd: Memory of the host memory to move to; a file comes with the message
	LeaseTrim    = 10 // kerfd: give back what of that holds nothing
	LeaseMemory  = 11 // what the process has of a device; Flags 1: some of Absent is asked for, and a thread waits
)

// Lease is a message of that connection.
type Lease struct {
	Kind  uint32
	Flags uint32
	Lease uint64 // LeaseDrain, LeaseDrained: which. LeaseOut, LeaseIn: a number that grows, by device; LeaseHost, LeaseTrim likewise, for all. LeaseMemory: the last LeaseOut or LeaseIn that was carried out
	At    uint64 // LeaseDrained: when the work ended, CLOCK_MONOTONIC ns. LeaseMemory: the last LeaseHost or LeaseTrim that was dealt with

	Device uint32 // its place in the policy
	_      uint32
	Memory uint64 // bytes. LeaseOut, LeaseIn, LeaseHost: so many; LeaseMemory: resident, whole pages as the card holds them
	Absent uint64 // LeaseMemory: out, or not made yet
	Host   uint64 // LeaseMemory: host memory that the process has to move to, filled or not, for all devices together
}

// Hello is the one message of the shim on the share's socket.
type Hello struct {
	Magic, Version uint32
	Kind           uint32
	DriverVersion  uint32
	Usage          uint64 // address of the usage page in the process
	Comm           [16]byte
	Note           [64]byte
}

// Answers to a Hello.
const (
	WelcomeOK      = 0
	WelcomeVersion = 1
	WelcomeFull    = 2
	WelcomeRevoked = 3
	WelcomeDenied  = 4
)

// Welcome is kerfd's answer.
type Welcome struct {
	Magic, Version uint32
	Status         uint32
	Slot           uint32
	Generation     uint32
	_              uint32
	Reason         [ReasonLen]byte
}

// File is a mapped page of type T.
type File[T Page] struct {
	Page *T
	mem  []byte
}

// Create makes the file with its header and maps it. The file appears whole or not at all.
func Create[T Page](path string, mode os.FileMode) (*File[T], error) {
	size := int(unsafe.Sizeof(*new(T)))
	temp := path + ".new"
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) { // of a kerfd that was killed here
		return nil, fmt.Errorf("create page: %w", err)
	}
	f, err := os.OpenFile(temp, os.O_RDWR|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, mode)
	if err != nil {
		return nil, fmt.Errorf("create page: %w", err)
	}
	defer func() { _ = f.Close() }()
	header := []uint32{Magic, Version, uint32(size)}
	if err := writeHeader(f, header, size, mode); err != nil {
		_ = os.Remove(temp)
		return nil, fmt.Errorf("create page %s: %w", path, err)
	}
	if err := os.Rename(temp, path); err != nil {
		_ = os.Remove(temp)
		return nil, fmt.Errorf("create page: %w", err)
	}
	return mapFile[T](f, path)
}

func writeHeader(f *os.File, header []uint32, size int, mode os.FileMode) error {
	if mode != 0 {
		if err := f.Chmod(mode); err != nil { // the umask must not decide who may read a policy
			return err
		}
	}
	// Allocated, not only sized: on a full tmpfs a store to a sparse page would be a SIGBUS.
	if err := syscall.Fallocate(int(f.Fd()), 0, 0, int64(size)); err != nil {
		return err
	}
	_, err := f.WriteAt(unsafe.Slice((*byte)(unsafe.Pointer(&header[0])), 4*len(header)), 0)
	return err
}

// Open maps an existing file for reading and writing, as a restarted kerfd does.
func Open[T Page](path string) (*File[T], error) {
	f, err := os.OpenFile(path, os.O_RDWR|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("open page: %w", err)
	}
	defer func() { _ = f.Close() }()
	return mapFile[T](f, path)
}

// Mend gives a page that a tenant can write its size and header again, so that it can be opened whatever was done to it.
// What the page says besides is not to be believed afterwards.
func Mend[T Page](path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("mend page: %w", err)
	}
	defer func() { _ = f.Close() }()
	size := int(unsafe.Sizeof(*new(T)))
	if err := errors.Join(f.Truncate(int64(size)), writeHeader(f, []uint32{Magic, Version, uint32(size)}, size, 0)); err != nil {
		return fmt.Errorf("mend page %s: %w", path, err)
	}
	return nil
}

func mapFile[T Page](f *os.File, path string) (*File[T], error) {
	size := int64(unsafe.Sizeof(*new(T)))
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("open page: %w", err)
	}
	if info.Size() != size { // a shorter file would be a SIGBUS later
		return nil, fmt.Errorf("open page %s: it has %d bytes, version %d has %d; it is of another version of kerf, remove its share", path, info.Size(), Version, size)
	}
	mem, err := syscall.Mmap(int(f.Fd()), 0, int(size), syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map page %s: %w", path, err)
	}
	header := (*[3]uint32)(unsafe.Pointer(&mem[0]))
	if header[0] != Magic || header[1] != Version || header[2] != uint32(size) {
		err := fmt.Errorf("open page %s: magic %#x version %d size %d found, %#x %d %d wanted; it is of another version of kerf, remove its share",
			path, header[0], header[1], header[2], uint32(Magic), Version, size)
		_ = syscall.Munmap(mem)
		return nil, err
	}
	return &File[T]{Page: (*T)(unsafe.Pointer(&mem[0])), mem: mem}, nil
}

// ErrTruncated says that the file under a page has become shorter than the page.
var ErrTruncated = errors.New("the file under the page was truncated")

// Guard runs f, which touches pages that a tenant can truncate, and returns ErrTruncated where one was.
func Guard(f func()) (err error) {
	old := debug.SetPanicOnFault(true)
	defer debug.SetPanicOnFault(old)
	defer func() {
		switch fault := recover().(type) {
		case nil:
		case interface{ Addr() uintptr }: // runtime's memory fault
			err = ErrTruncated
		default:
			panic(fault)
		}
	}()
	f()
	return nil
}

// Close unmaps the page. The file stays.
func (f *File[T]) Close() error {
	if f.mem == nil {
		return nil
	}
	err := syscall.Munmap(f.mem)
	f.mem, f.Page = nil, nil
	return err
}

// ParseHello reads the shim's message; ok is false when it is not one.
func ParseHello(b []byte) (h Hello, ok bool) {
	if len(b) < int(unsafe.Sizeof(h)) {
		return h, false
	}
	h = *(*Hello)(unsafe.Pointer(&b[0]))
	return h, h.Magic == Magic
}

// ParseLease reads a message of the connection for leases; ok is false when it is not one.
func ParseLease(b []byte) (m Lease, ok bool) {
	if len(b) != int(unsafe.Sizeof(m)) {
		return m, false
	}
	return *(*Lease)(unsafe.Pointer(&b[0])), true
}

// Bytes is the message as it goes over the socket.
func (m *Lease) Bytes() []byte { return unsafe.Slice((*byte)(unsafe.Pointer(m)), unsafe.Sizeof(*m)) }

// Bytes is the message as it goes over the socket.
func (w *Welcome) Bytes() []byte {
	w.Magic, w.Version = Magic, Version
	return unsafe.Slice((*byte)(unsafe.Pointer(w)), unsafe.Sizeof(*w))
}

// SetReason cuts the reason to what fits, NUL-terminated.
func (w *Welcome) SetReason(s string) { copy(w.Reason[:ReasonLen-1], s) }

// Snapshot is what one slot held, read word by word.
type Snapshot struct {
	Charged    [MaxDevices]uint64
	Enter      uint64
	Leave      uint64
	HostPinned uint64
	Imported   uint64
	Launches   uint64
	Refused    uint64
	Unknown    uint64
	Mismatch   uint64
	Tampered   bool
}

// Quiet says that no change was under way in the slot.
func (s *Snapshot) Quiet() bool { return s.Enter == s.Leave }

// Read copies the slot. Leave is read first and Enter last: equal values mean that no change began or ended between.
func (s *Slot) Read() Snapshot {
	out := Snapshot{Leave: atomic.LoadUint64(&s.Leave)}
	for d := range s.Charged {
		out.Charged[d] = atomic.LoadUint64(&s.Charged[d])
	}
	out.HostPinned = atomic.LoadUint64(&s.HostPinned)
	out.Imported = atomic.LoadUint64(&s.Imported)
	out.Launches = atomic.LoadUint64(&s.Launches)
	out.Refused = atomic.LoadUint64(&s.Refused)
	out.Unknown = atomic.LoadUint64(&s.Unknown)
	out.Mismatch = atomic.LoadUint64(&s.Mismatch)
	out.Tampered = atomic.LoadUint32(&s.Flags)&SlotTampered != 0
	out.Enter = atomic.LoadUint64(&s.Enter)
	return out
}

// Claim empties a slot for a new session. No process uses it yet.
func (s *Slot) Claim(generation uint32) {
	s.Release()
	atomic.StoreUint32(&s.Generation, generation)
}

// Release empties a slot whose process is gone.
func (s *Slot) Release() {
	atomic.StoreUint32(&s.Generation, 0)
	atomic.StoreUint32(&s.Flags, 0)
	for d := range s.Charged {
		atomic.StoreUint64(&s.Charged[d], 0)
	}
	for _, word := range []*uint64{&s.HostPinned, &s.Imported, &s.Launches, &s.Refused, &s.Unknown, &s.Mismatch, &s.Enter, &s.Leave} {
		atomic.StoreUint64(word, 0)
	}
}

// Add changes a device's sum by delta bytes and returns the new sum. A sum that would fall below zero becomes zero:
// the counter is the tenant's, and 2^64 bytes in use would be a lie of ours.
func (u *Usage) Add(device int, delta int64) uint64 {
	word := &u.Sum[device].Charged
	for {
		old := atomic.LoadUint64(word)
		next := old + uint64(delta)
		if delta < 0 && uint64(-delta) > old {
			next = 0
		}
		if atomic.CompareAndSwapUint64(word, old, next) {
			return next
		}
	}
}

// Charged is the sum on one device, in bytes.
func (u *Usage) Charged(device int) uint64 {
	return min(atomic.LoadUint64(&u.Sum[device].Charged), math.MaxInt64)
}
