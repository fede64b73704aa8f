package monitor

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/monitor/source"
	"github.com/kerf-gpu/kerf/monitor/xid"
)

// Config is what the monitor needs of the daemon around it.
type Config struct {
	Profile    Profile
	Mode       Mode
	Thresholds Thresholds
	Dir        string // of the state file
	Boot       string // the machine's boot id
	Branch     int    // of the driver: 580; 0: not known
	GPUs       []Device
	Now        func() Moment

	Kmsg    string                        // path of the kernel log; empty: there is none
	Prober  source.Prober                 // nil: no GPU can be read
	Poll    source.Poll                   // zero: DefaultPoll
	Events  func() (source.Waiter, error) // nil: no events
	Root    string                        // below which /sys is, for ports and disks; empty: not looked at
	Tenant  func(pid int) string          // whose process that is; nil: nobody knows
	Notify  func(Device, Notice)          // what a person, or a pod's owner, is told; it must not block for long
	Changed func()                        // a verdict is another than before
	Report  func(error)                   // errors in the background
}

// DefaultPoll reads a GPU every 15 s, and takes 5 s without an answer for none.
var DefaultPoll = source.Poll{Every: 15 * time.Second, Again: time.Second, Deadline: 5 * time.Second}

// Monitor watches a node's devices.
type Monitor struct {
	config Config
	books  *books
	wake   map[string]chan struct{}

	mu      sync.Mutex
	devices map[string]*watched
	log     correlator
	sources map[string]*sourceState
	dirty   map[string]bool // states that differ from the file in counts alone
	seq     uint64          // of the last record of the kernel log
	written uint64          // likewise, in the file
	orphans map[int]uint64  // Xids of no device that is known, by code
	counts  counts
}

// watched is a device with what is known of it.
type watched struct {
	Device
	state   State
	verdict Verdict
	last    earlier
	port    source.Port
	host    bool      // it tells of errors only, by the kernel
	wasUp   bool      // a port: it was active since kerfd started
	answer  time.Time // when it last answered
}

// sourceState is how a source does.
type sourceState struct {
	up   bool
	why  string // it is down
	last time.Time
	lost uint64
}

// Names of sources.
const (
	sourceKmsg   = "kmsg"
	sourceEvents = "nvml-events"
	sourcePoll   = "nvml-poll"
	sourceSysfs  = "sysfs"
)

// New reads what an earlier kerfd knew. It starts nothing. The caller closes.
func New(c Config) (*Monitor, error) {
	if !slices.Contains(Modes, c.Mode) {
		return nil, fmt.Errorf("monitor: mode %q: not known; use observe, hold or evict", c.Mode)
	}
	if c.Poll == (source.Poll{}) {
		c.Poll = DefaultPoll
	}
	b, err := openBooks(c.Dir, c.Boot)
	if err != nil {
		return nil, err
	}
	c.GPUs = append(slices.Clone(c.GPUs), b.missing(c.GPUs)...)
	m := &Monitor{config: c, books: b, wake: make(map[string]chan struct{}), devices: make(map[string]*watched),
		sources: make(map[string]*sourceState), dirty: make(map[string]bool), seq: b.seq, written: b.seq, orphans: make(map[int]uint64), counts: newCounts()}
	for _, file := range b.corrupt {
		m.report(fmt.Errorf("the state file %s is damaged and was set aside; what it knew of a device's earlier faults is lost, and the device is unknown until it has been read", file))
	}
	for _, d := range c.GPUs {
		m.add(d)
		m.wake[d.ID] = make(chan struct{}, 1)
	}
	for name, on := range map[string]bool{sourceKmsg: c.Kmsg != "", sourceEvents: c.Events != nil, sourcePoll: c.Prober != nil, sourceSysfs: c.Root != ""} {
		if on {
			m.sources[name] = &sourceState{why: "it has not begun yet"}
		}
	}
	return m, nil
}

func (m *Monitor) add(d Device) *watched {
	w := &watched{Device: d, state: m.books.resume(d)}
	w.verdict = w.state.Verdict(m.config.Profile, m.config.Mode)
	m.devices[d.ID] = w
	return w
}

// Close writes what is not written yet, and gives the state file back.
func (m *Monitor) Close() error { return errors.Join(m.flush(), m.books.Close()) }

// Verdict is what is known of a GPU; ok is false for one that is not watched.
func (m *Monitor) Verdict(gpu node.UUID) (v Verdict, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	w, ok := m.devices[gpu.String()]
	if !ok {
		return Verdict{}, false
	}
	return w.verdict, true
}

// Release takes somebody's word that a device is well.
func (m *Monitor) Release(id, by, why string) error {
	m.mu.Lock()
	w, ok := m.find(id)
	m.mu.Unlock()
	if !ok {
		return fmt.Errorf("device %q: not watched; kerf doctor lists those that are", id)
	}
	reason := "released by " + by
	if why != "" {
		reason += ": " + why
	}
	m.take(w, Fact{Kind: KindRelease, Reason: reason}, m.config.Now())
	return m.flush()
}

// find finds a device by a name of it. The caller has the lock.
func (m *Monitor) find(name string) (*watched, bool) {
	if w, ok := m.devices[name]; ok {
		return w, true
	}
	for _, w := range m.devices {
		if w.Named(name) {
			return w, true
		}
	}
	return nil, false
}

// take steps a device's state on, keeps it, and tells what came of it.
func (m *Monitor) take(w *watched, f Fact, now Moment) {
	m.mu.Lock()
	before, conditions := w.verdict, w.state.Conditions
	var notices []Notice
	w.state, notices = Step(m.config.Profile, w.state, f, now)
	verdict := w.state.Verdict(m.config.Profile, m.config.Mode)
	var err error
	switch {
	case !sameConditions(conditions, w.state.Conditions), f.Kind == KindRelease:
		// On disk before anybody acts on it: a hold must not be forgotten by who is killed now.
		err = m.books.write(w.Device, w.state)
		delete(m.dirty, w.ID)
	case f.Kind == KindXid:
		m.dirty[w.ID] = true
	}
	w.verdict = verdict
	changed := !sameVerdict(before, verdict)
	if changed {
		m.counts.verdict(before, verdict, m.config.Mode)
	}
	m.mu.Unlock()
	if err != nil {
		m.report(fmt.Errorf("keep the state of %s: %w; a hold may be forgotten when kerfd restarts", w.ID, err))
	}
	for _, n := range notices {
		if m.config.Notify != nil {
			m.config.Notify(w.Device, n)
		}
	}
	if changed && m.config.Changed != nil {
		m.config.Changed()
	}
}

// sameConditions reports whether a restart would find the same.
func sameConditions(a, b map[string]Condition) bool {
	return maps.EqualFunc(a, b, func(a, b Condition) bool { return a.Level == b.Level && a.Sticky == b.Sticky && a.Earlier == b.Earlier })
}

// sameVerdict reports whether nobody needs to hear of the difference.
func sameVerdict(a, b Verdict) bool {
	return a.Level == b.Level && a.Health == b.Health && a.Reason == b.Reason && a.Refuse == b.Refuse && slices.Equal(a.Taints, b.Taints)
}

func (m *Monitor) report(err error) {
	if err != nil && m.config.Report != nil {
		m.config.Report(err)
	}
}

// flush writes the counts that changed.
func (m *Monitor) flush() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var errs []error
	for id := range m.dirty {
		w := m.devices[id]
		if err := m.books.write(w.Device, w.state); err != nil {
			errs = append(errs, err)
			continue
		}
		delete(m.dirty, id)
	}
	if len(errs) == 0 && m.seq != m.written { // after the states: what is between is counted again rather than lost
		if err := m.books.writeSeq(m.seq); err != nil {
			errs = append(errs, err)
		} else {
			m.written = m.seq
		}
	}
	return errors.Join(errs...)
}

// --- what sources bring ---

// Record implements source.KmsgSink.
func (m *Monitor) Record(r source.Record) {
	m.mu.Lock()
	known := r.Seq != 0 && r.Seq <= m.seq
	m.seq = max(m.seq, r.Seq)
	m.mu.Unlock()
	if known {
		return // by an earlier kerfd of this boot
	}
	now := m.config.Now()
	now.Boot = r.At
	if r.Kind == xid.KindSXid {
		m.takeSwitch(r, now)
		return
	}
	from := fromKmsg
	if r.Kind == xid.KindLost {
		from = fromText
	}
	x := Xid{Code: r.Code, PID: r.PID, Place: r.SM, Text: r.Text}
	if row, ok := r.Decoded(m.config.Branch); ok {
		x.Action, x.Text = row.Action, row.Unit+" "+row.Severity+": "+r.Text
	}
	if m.config.Tenant != nil && r.PID != 0 && m.config.Now().Boot-r.At < pidAge {
		x.Tenant = m.config.Tenant(r.PID)
	}
	w := m.at(r.PCI)
	if w != nil && !m.advance(w, r.Seq) {
		return
	}
	m.takeXid(w, r.PCI, x, from, now)
	if w != nil && r.Code == xid.RecoveryAction && r.Kind == xid.KindXid {
		m.take(w, Fact{Kind: KindRecovery, Recovery: r.Recovery}, now)
	}
	m.mu.Lock()
	m.counts.detected(m.config.Now().Boot - r.At)
	m.mu.Unlock()
}

// advance says whether a record is new to a device; with the device's state on disk is how far it had come, so that a kill between two
// records makes none count twice.
func (m *Monitor) advance(w *watched, seq uint64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if seq != 0 && seq <= w.state.Seq {
		return false
	}
	w.state.Seq = max(w.state.Seq, seq)
	return true
}

// pidAge is how long a number in the log is taken for the process that has it now.
const pidAge = 30 * time.Second

// at is the GPU at a PCI address; nil where none is known.
func (m *Monitor) at(pci node.PCIAddress) *watched {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, w := range m.devices {
		if w.PCI == pci && !pci.IsZero() {
			return w
		}
	}
	return nil
}

func (m *Monitor) takeXid(w *watched, pci node.PCIAddress, x Xid, from string, now Moment) {
	m.mu.Lock()
	if w == nil {
		m.orphans[x.Code]++
		m.mu.Unlock()
		if m.config.Notify != nil {
			m.config.Notify(Device{PCI: pci, Name: "a GPU that NVML does not show"}, Notice{Kind: NoticeUnknown, Code: x.Code, Text: x.Text})
		}
		return
	}
	var duplicate bool
	m.log, duplicate, x.Follows = m.log.see(reported{device: w.ID, source: from, code: x.Code, at: now.Boot})
	m.mu.Unlock()
	if !duplicate {
		m.take(w, Fact{Kind: KindXid, Xid: x}, now)
	}
	m.look(w.ID)
}

// takeSwitch: which cards hang on which switch, NVML does not say; all that have links to any are taken.
func (m *Monitor) takeSwitch(r source.Record, now Moment) {
	m.mu.Lock()
	m.counts.sxid[r.Fatal]++
	var linked []*watched
	for _, w := range m.devices {
		if w.state.MostLinks > 0 {
			linked = append(linked, w)
		}
	}
	m.mu.Unlock()
	if !r.Fatal {
		return
	}
	for _, w := range linked {
		m.take(w, Fact{Kind: KindSwitch, Xid: Xid{Code: r.Code, Text: r.Text}}, now)
	}
}

// look asks for a reading now.
func (m *Monitor) look(id string) {
	select {
	case m.wake[id] <- struct{}{}:
	default: // asked already, or not a GPU
	}
}

// Lost implements source.KmsgSink. What was in the lost records, readings tell as far as it still is so.
func (m *Monitor) Lost(records uint64) {
	m.mu.Lock()
	m.source(sourceKmsg).lost += records
	m.mu.Unlock()
	for id := range m.wake {
		m.look(id)
	}
}

// Replayed implements source.KmsgSink.
func (m *Monitor) Replayed() {
	for _, w := range m.gpus() {
		m.take(w, Fact{Kind: KindReplayed}, m.config.Now())
	}
	m.report(m.flush())
}

// Up implements source.KmsgSink.
func (m *Monitor) Up(err error) { m.up(sourceKmsg, err) }

func (m *Monitor) up(name string, err error) {
	m.mu.Lock()
	s := m.source(name)
	was, why := s.up, s.why
	s.up, s.why = err == nil, ""
	if err != nil {
		s.why = err.Error()
	} else {
		s.last = m.config.Now().Wall
	}
	changed := was != s.up && !(err == nil && why == "it has not begun yet") || err != nil && why != s.why
	m.mu.Unlock()
	if changed && err != nil { // said once, not at each try
		m.report(fmt.Errorf("source %s is down: %w; devices whose readings still come are judged by these", name, err))
	}
}

// source is a source's state. The caller has the lock.
func (m *Monitor) source(name string) *sourceState {
	if m.sources[name] == nil {
		m.sources[name] = &sourceState{}
	}
	return m.sources[name]
}

func (m *Monitor) gpus() (gpus []*watched) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, d := range m.config.GPUs {
		gpus = append(gpus, m.devices[d.ID])
	}
	return gpus
}

func (m *Monitor) isUp(name string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.source(name).up
}

// event takes an event of NVML, which came at a moment.
func (m *Monitor) event(e source.Event, now Moment) {
	m.mu.Lock()
	w := m.devices[e.GPU.String()]
	m.mu.Unlock()
	if w == nil { // NVML did not say which: all are read
		for id := range m.wake {
			m.look(id)
		}
		return
	}
	if e.Kind == source.EventXid {
		// An event about a whole card on one that is divided by MIG is about all of its instances, and one about an instance is the card's
		// too: what holds a card holds all that is on it.
		m.takeXid(w, w.PCI, Xid{Code: e.Code, Text: "told by NVML"}, fromNVML, now)
		return
	}
	m.look(w.ID)
}

// reading takes a GPU's answer, and says whether to ask again soon.
func (m *Monitor) reading(r source.Reading) (soon bool) {
	m.mu.Lock()
	w := m.devices[r.GPU.String()]
	now := m.config.Now()
	if r.Err != nil {
		m.mu.Unlock()
		m.take(w, Fact{Kind: KindSilence, Reason: r.Err.Error()}, now)
		return false
	}
	if w.last.ok && r.Vitals.Energy > 0 && r.Vitals.Energy < w.last.vitals.Energy { // it counts from when the driver was loaded
		m.mu.Unlock()
		m.take(w, Fact{Kind: KindReload}, now)
		m.mu.Lock()
	}
	w.state.MostLinks = max(w.state.MostLinks, r.Vitals.NVLinksUp)
	signals := readings(r.Vitals, w.last, now.Boot, w.state.MostLinks, m.config.Thresholds)
	w.last, w.answer = earlier{r.Vitals, now.Boot, true}, now.Wall
	m.mu.Unlock()
	m.take(w, Fact{Kind: KindSample, Signals: signals}, now)
	m.mu.Lock()
	defer m.mu.Unlock()
	bad := slices.ContainsFunc(signals, func(s Reading) bool { return s.Bad })
	for _, s := range signals {
		if _, raised := w.state.Conditions[string(s.Signal)]; s.Bad && !raised { // it is to be confirmed
			return true
		}
	}
	return !bad && w.verdict.Level >= Hold && !w.verdict.Conditions[0].Sticky // it may be over
}
