package arbiter

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/vgpu/region"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

// Names in a share's directory. region.h tells tenants the same.
const (
	innerDir   = "s" // what a tenant gets; the share's own directory above it keeps other users out
	policyFile = "policy"
	usageFile  = "usage"
	socketFile = "socket"
)

// MaxSocketPath is the kernel's limit for the path of a unix socket, in bytes.
const MaxSocketPath = 107

// add makes or finds the share's directory, maps its pages and listens on its socket. Sessions that a previous kerfd wrote down
// are taken up again where their process still is what it was.
func (s *Server) add(spec Spec) error {
	live := &liveShare{spec: spec, leaseFlags: s.leaseFlags(spec), dir: Directory(s.config.Shares, spec.ID), created: s.config.Now()}
	if err := live.open(filepath.Join(s.config.Sessions, spec.ID)); err != nil {
		live.close()
		return err
	}
	s.mu.Lock()
	live.writePolicy(s.contextBytes)
	s.shares[spec.ID] = live
	events := s.resume(live)
	err := s.openOrLease(live)
	s.limitFixed()
	s.mu.Unlock()
	if err != nil {
		return err
	}
	go s.accept(live)
	s.notify(events...)
	return nil
}

// openOrLease puts a share's gate under lease, where GPU time is leased.
func (s *Server) openOrLease(live *liveShare) error {
	if !s.leased(live.spec) {
		live.openGate()
		return nil
	}
	err := s.lessor.join(live)
	if err != nil {
		delete(s.shares, live.spec.ID)
		live.close()
	}
	return err
}

// leased: under tier mps nobody waits for a turn, so there are none.
func (s *Server) leased(spec Spec) bool {
	return s.lessor != nil && spec.Grant.Tier() == share.TierTime
}

func (s *Server) leaseFlags(spec Spec) (flags uint32) {
	if spec.Grant.Tier() == share.TierMPS {
		return region.FlagMPS
	}
	if s.config.Leases {
		flags |= region.FlagLeases
	}
	if s.config.Hold {
		flags |= region.FlagHold
	}
	return flags
}

// openGate is for a kerfd without leases that follows one with them.
func (l *liveShare) openGate() {
	wakeGate(l.policy.Page, region.GateOpen)
}

// wakeGate writes the gate word, and wakes those who wait for it to change.
func wakeGate(p *region.Policy, gate uint32) {
	atomic.StoreUint32(&p.Gate, gate)
	_, _, _ = unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(&p.Gate)), 1 /* FUTEX_WAKE */, 1<<30, 0, 0, 0)
}

func (l *liveShare) open(roster string) error {
	socket := Socket(l.dir)
	if len(socket) > MaxSocketPath {
		return fmt.Errorf("socket path %s has %d bytes, the kernel takes %d; use a shorter run directory", socket, len(socket), MaxSocketPath)
	}
	// Each file appears whole, and the ledger knows of the share before its directory: a kerfd that dies here goes on in Restore.
	if err := l.makeDirs(); err != nil {
		return err
	}
	var err error
	// 0644: kerfd writes the policy, and the tenant has it under a read-only mount besides.
	if l.policy, err = openOrCreate[region.Policy](filepath.Join(l.dir, policyFile), 0o644); err != nil {
		return err
	}
	// 0666: a tenant's processes may be of several users. Nobody else gets past the directory above.
	usage := filepath.Join(l.dir, usageFile)
	if l.usage, err = openOrCreate[region.Usage](usage, 0o666); err != nil { // the policy is whole, so a tenant has done this
		l.mended = err.Error()
		if err = region.Mend[region.Usage](usage); err == nil {
			l.usage, err = region.Open[region.Usage](usage)
		}
	}
	if err != nil {
		return err
	}
	if l.roster, err = openOrCreate[region.Roster](roster, 0o600); err != nil {
		return err
	}
	if l.page, err = identify(filepath.Join(l.dir, usageFile)); err != nil {
		return err
	}
	return l.listen(socket)
}

// makeDirs makes the share's two directories, both kerfd's own: who could write there could put a link in the place of a page.
// The outer one lets in root and the holder's group; the inner one, which a tenant has bound into its view, anybody in that view.
func (l *liveShare) makeDirs() error {
	outer := filepath.Dir(l.dir)
	if err := os.Mkdir(outer, 0o710); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(outer, 0, l.spec.GID); err != nil {
			return err
		}
	}
	if err := os.Mkdir(l.dir, 0o711); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return errors.Join(os.Chmod(outer, 0o710), os.Chmod(l.dir, 0o711)) // whatever the umask
}

// Directory is where a share's pages and socket are.
func Directory(shares, id string) string { return filepath.Join(shares, id, innerDir) }

// Socket is the socket in a share's directory.
func Socket(dir string) string { return filepath.Join(dir, socketFile) }

func (l *liveShare) listen(socket string) (err error) {
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) { // of a kerfd that was killed
		return err
	}
	l.listener, err = net.ListenUnix("unixpacket", &net.UnixAddr{Name: socket, Net: "unixpacket"})
	if err != nil {
		return err
	}
	l.listener.SetUnlinkOnClose(false) // a tenant that starts while kerfd restarts then waits for the socket to answer
	return os.Chmod(socket, 0o666)
}

func openOrCreate[T region.Page](path string, mode os.FileMode) (*region.File[T], error) {
	file, err := region.Open[T](path)
	if errors.Is(err, fs.ErrNotExist) {
		return region.Create[T](path, mode)
	}
	return file, err
}

func (l *liveShare) close() {
	if l.listener != nil {
		_ = l.listener.Close()
	}
	// The pages stay mapped if an accept or a reconcile still runs: they look again under the server's lock and find the share gone.
	if l.policy != nil {
		_ = l.policy.Close()
	}
	if l.usage != nil {
		_ = l.usage.Close()
	}
	if l.roster != nil {
		_ = l.roster.Close()
	}
}

// writePolicy fills the page with what the grant says. Implicit bytes come from reconcile.
func (l *liveShare) writePolicy(contextBytes map[node.UUID]uint64) {
	p := l.policy.Page
	flags := l.leaseFlags
	if l.spec.Strict {
		flags |= region.FlagStrict
	}
	if l.spec.Simulated {
		flags |= region.FlagSimulated
	}
	if flags&region.FlagLeases != 0 && overcommitted(l.spec.Grant) {
		flags |= region.FlagOvercommit
	}
	copy(p.Share[:len(p.Share)-1], l.spec.ID)
	for i, d := range l.spec.Grant.Devices {
		device := &p.Device[i]
		device.UUID = d.UUID
		if d.MIG != (node.MIGUUID{}) {
			device.UUID = d.MIG
			atomic.StoreUint32(&device.Flags, region.DeviceMIG)
		}
		atomic.StoreUint64(&device.Limit, uint64(d.HardLimit()))
		atomic.StoreUint64(&device.Guaranteed, uint64(d.Memory))
		atomic.StoreUint64(&device.ContextBytes, contextBytes[d.UUID])
		atomic.StoreUint32(&device.Cores, uint32(d.Cores))
		atomic.StoreUint64(&device.MinResident, uint64(l.spec.Grant.MinResident))
		atomic.StoreUint64(&device.HostLimit, 1) // it takes none by itself: kerfd gives
	}
	atomic.StoreUint32(&p.Flags, atomic.LoadUint32(&p.Flags)&region.FlagTampered|flags)
	atomic.StoreUint32(&p.DeviceCount, uint32(len(l.spec.Grant.Devices)))
	atomic.AddUint64(&p.Epoch, 1)
	if atomic.LoadUint32(&p.Flags)&region.FlagTampered != 0 { // a previous kerfd saw it
		l.tampered = "seen before kerfd restarted"
	}
}

func (l *liveShare) setFlag(flag uint32) {
	p := l.policy.Page
	atomic.StoreUint32(&p.Flags, atomic.LoadUint32(&p.Flags)|flag)
	atomic.AddUint64(&p.Epoch, 1)
}

func (l *liveShare) clearFlag(flag uint32) {
	p := l.policy.Page
	atomic.StoreUint32(&p.Flags, atomic.LoadUint32(&p.Flags)&^flag)
	atomic.AddUint64(&p.Epoch, 1)
}

func (l *liveShare) count() (n int) {
	for _, session := range l.slots {
		if session != nil {
			n++
		}
	}
	return n
}

// devices are the numbers of the share's GPUs in its pages.
func (l *liveShare) devices() int { return len(l.spec.Grant.Devices) }
