package arbiter

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/vgpu/region"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

// reconcileEvery is how often the books are compared with NVML.
const reconcileEvery = time.Second

// UnknownBytes is what the driver has for a process of which it does not tell, for lack of rights or under some modes.
const UnknownBytes node.Bytes = math.MaxUint64

// Memory says how many bytes each process has on a GPU, by the host's pids, or UnknownBytes. internal/nvml does.
type Memory interface {
	ProcessMemory(gpu node.UUID) (map[int]node.Bytes, error)
}

// Event is something that the daemon writes to its log, or acts on.
type Event struct {
	Kind    EventKind
	Share   string
	PID     int
	Comm    string
	Message string
}

// EventKind is what happened.
type EventKind string

// The events.
const (
	SessionStarted EventKind = "session started"
	SessionEnded   EventKind = "session ended"
	Tampered       EventKind = "usage page tampered with"
	Refused        EventKind = "attach refused"
	Noted          EventKind = "note from a tenant"
	MemoryUnknown  EventKind = "memory in use unknown"
	MemoryKnown    EventKind = "memory in use known again"
	LeaseOverrun   EventKind = "GPU time"
	MoveShort      EventKind = "memory moved in part"
	PoolShort      EventKind = "host memory for swapping is short"
	Lost           EventKind = "share made anew: its pages could not be taken up"
)

// Spec is what a share is made from.
type Spec struct {
	ID        string
	Grant     share.Grant
	GID       int // whose members may find the share's directory, besides root
	Strict    bool
	Simulated bool
}

// Config is what a Server needs.
type Config struct {
	Shares   string // directory of the shares' directories
	Sessions string // directory of the rosters; both live on a tmpfs, as sessions do not outlive a boot
	Memory   Memory
	Leases   bool                           // GPU time is leased; else every gate is open
	Hold     bool                           // while kerfd is away shut gates stay shut; else they open
	Drain    time.Duration                  // after it others go on beside a tenant that has not drained; 0: as DefaultLeaseRules
	Pool     node.Bytes                     // of host memory, for what over-committed shares swap out
	Card     func(gpu node.UUID) node.Bytes // what of a card's memory can be granted
	Notify   func(Event)                    // called without a lock held; must not block for long
	Now      func() time.Time
}

// Server is the session server. Its methods may be called from several goroutines.
type Server struct {
	config Config
	lessor *lessor       // nil without leases
	soon   chan struct{} // asks for a reconcile before the next second

	// mu guards all below. It is never held while NVML is asked, which may hang.
	mu           sync.Mutex
	shares       map[string]*liveShare
	contextBytes map[node.UUID]uint64 // what one context takes, learned from the first that was seen
	memoryErrors map[node.UUID]string // why a GPU's memory is not known, where it is not
	asking       map[node.UUID]bool   // GPUs about which NVML is being asked
	closed       bool
}

// New opens the session records. Restore and Run follow.
func New(config Config) (*Server, error) {
	for dir, mode := range map[string]os.FileMode{config.Shares: 0o711, config.Sessions: 0o700} { // 0711: a share is found by its id, not by listing
		if err := os.MkdirAll(dir, mode); err != nil {
			return nil, fmt.Errorf("open sessions: %w", err)
		}
	}
	s := &Server{
		config: config, soon: make(chan struct{}, 1),
		shares: make(map[string]*liveShare), contextBytes: make(map[node.UUID]uint64),
		memoryErrors: make(map[node.UUID]string), asking: make(map[node.UUID]bool),
	}
	if config.Leases {
		var err error
		if s.lessor, err = newLessor(s.notify, config); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Restore brings back the shares of a previous kerfd with their sessions, makes those anew whose directory was lost, and
// removes directories that no spec names. It is called once, before Run and Add.
func (s *Server) Restore(specs []Spec) error {
	known := make(map[string]bool)
	for _, spec := range specs {
		known[spec.ID] = true
		err := s.add(spec)
		if err == nil {
			continue
		}
		// One share that cannot be taken up must not take the others along. Its programs keep what they hold and get no more.
		s.notify(Event{Kind: Lost, Share: spec.ID, Message: err.Error()})
		if err := errors.Join(s.removeFiles(spec.ID), s.add(spec)); err != nil {
			return fmt.Errorf("restore share %s: %w", spec.ID, err)
		}
	}
	for _, dir := range []string{s.config.Shares, s.config.Sessions} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return fmt.Errorf("restore shares: %w", err)
		}
		for _, entry := range entries {
			if known[entry.Name()] {
				continue
			}
			if err := os.RemoveAll(filepath.Join(dir, entry.Name())); err != nil {
				return fmt.Errorf("remove share without a grant: %w", err)
			}
		}
	}
	return nil
}

// Add puts a grant in force; it is no error that it is already.
func (s *Server) Add(spec Spec) error {
	if s.inForce(spec.ID) {
		return nil
	}
	if err := s.add(spec); err != nil {
		_ = s.removeFiles(spec.ID)
		return fmt.Errorf("open share %s: %w", spec.ID, err)
	}
	return nil
}

func (s *Server) inForce(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shares[id] != nil
}

func (s *Server) removeFiles(id string) error {
	return errors.Join(os.RemoveAll(filepath.Join(s.config.Shares, id)), os.RemoveAll(filepath.Join(s.config.Sessions, id)))
}

// RemoveIdle ends a share if no session is left in it, and says whether it did: no new session, and its files go. Between the look
// and the end nobody attaches.
func (s *Server) RemoveIdle(id string) (bool, error) {
	s.mu.Lock()
	live := s.shares[id]
	if s.closed || live != nil && live.count() > 0 {
		s.mu.Unlock()
		return false, nil
	}
	delete(s.shares, id)
	if live != nil {
		live.setFlag(region.FlagRevoked)
		s.lessorLeave(id)
		live.close()
		s.limitFixed()
	}
	s.mu.Unlock()
	if err := s.removeFiles(id); err != nil {
		return false, fmt.Errorf("remove share %s: %w", id, err)
	}
	return true, nil
}

func (s *Server) lessorLeave(id string) {
	if s.lessor != nil {
		s.lessor.leave(id)
	}
}

// Change puts another grant of the same GPUs in force; running programs see it at once.
func (s *Server) Change(id string, grant share.Grant) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	live := s.shares[id]
	if live == nil {
		return fmt.Errorf("share %q: not in force; kerf top lists the shares", id)
	}
	live.spec.Grant = grant
	live.writePolicy(s.contextBytes)
	if s.lessor != nil {
		s.lessor.change(live.spec)
	}
	s.limitFixed()
	return nil
}

// Run reconciles until the context ends. Shares stay in force afterwards, for the next kerfd.
func (s *Server) Run(ctx context.Context) error {
	tick := time.NewTicker(reconcileEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return s.shut()
		case <-tick.C:
			if s.lessor != nil {
				s.lessor.tick()
				s.rates()
			}
		case <-s.soon:
		}
		s.reconcile()
	}
}

// shut closes what kerfd holds of the shares and leaves them as they are.
func (s *Server) shut() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.lessor != nil {
		s.lessor.stop()
	}
	for _, live := range s.shares {
		for _, session := range live.slots {
			if session != nil {
				session.stop()
			}
		}
		live.close()
	}
	clear(s.shares)
	return nil
}

// reconcileSoon asks for a reconcile without waiting for the next second.
func (s *Server) reconcileSoon() {
	select {
	case s.soon <- struct{}{}:
	default: // one is asked for already
	}
}

func (s *Server) notify(events ...Event) {
	for _, event := range events {
		s.config.Notify(event)
	}
}

func (s *Server) sortedShares() []*liveShare {
	return slices.SortedFunc(maps.Values(s.shares), func(a, b *liveShare) int {
		return cmp.Or(a.created.Compare(b.created), cmp.Compare(a.spec.ID, b.spec.ID))
	})
}

// liveShare is a share in force.
type liveShare struct {
	spec       Spec
	leaseFlags uint32
	dir        string
	policy     *region.File[region.Policy]
	usage      *region.File[region.Usage]
	roster     *region.File[region.Roster]
	page       pageID
	listener   *net.UnixListener
	created    time.Time

	slots      [region.MaxSlots]*session
	generation uint32
	// interrupted: a session died in the middle of a change, or kerfd did: the sums may be off until they are settled.
	interrupted bool
	tampered    string
	mended      string // why the usage page had to be made whole when the share was taken up
	peak        [region.MaxDevices]uint64
	refused     uint64 // by sessions that have ended

	moved, rate [region.MaxDevices]uint64 // bytes swapped, ever, and in the last second
}

// session is one process attached to a share.
type session struct {
	Process
	usage    uint64 // where it mapped the usage page
	comm     string
	started  time.Time
	slot     int
	stop     func()
	implicit [region.MaxDevices]sample
	nvml     [region.MaxDevices]uint64 // bytes, at the last reading
}

// sample is the implicit bytes of a session on one device in the last two readings. The larger one counts: an allocation
// that is charged but not yet made by the driver makes a reading too small, never too large.
type sample struct{ last, previous uint64 }

func (s sample) value() uint64 { return max(s.last, s.previous) }
