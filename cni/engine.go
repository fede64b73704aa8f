package cni

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/kerf-gpu/kerf/cni/link"
	"github.com/kerf-gpu/kerf/internal/durable"
)

// Engine attaches and detaches. Any number of processes may have one on the same directory.
type Engine struct {
	Dir      string // of records and locks: /run/kerf/nic
	Kernel   Kernel
	Journal  Journal          // nil: records in Dir
	Now      func() time.Time // nil: time.Now
	LockWait time.Duration    // 0: 10 s
}

// New is an engine on this machine's kernel.
func New(dir string) *Engine { return &Engine{Dir: dir, Kernel: Host{}} }

func (e *Engine) journal() Journal {
	if e.Journal == nil {
		return Dir(e.Dir)
	}
	return e.Journal
}

func (e *Engine) now() time.Time {
	if e.Now == nil {
		return time.Now()
	}
	return e.Now()
}

func (e *Engine) wait() time.Duration { return cmp.Or(e.LockWait, 10*time.Second) }

// List is every record, and the devices whose record cannot be read.
func (e *Engine) List() (records []Record, damaged []string, err error) {
	ids, err := e.journal().List()
	if err != nil {
		return nil, nil, failf(CodeIO, err, "list the journal")
	}
	for _, id := range ids {
		r, err := e.journal().Get(id)
		switch {
		case errors.Is(err, fs.ErrNotExist): // ended since
		case err != nil:
			damaged = append(damaged, id)
		default:
			records = append(records, r)
		}
	}
	return records, damaged, nil
}

// Find is the record of an attachment.
func (e *Engine) Find(k Key) (Record, bool, error) {
	records, _, err := e.List()
	i := slices.IndexFunc(records, func(r Record) bool { return r.Spec.Owner.Key == k })
	if i < 0 {
		return Record{}, false, err
	}
	return records[i], true, nil
}

// recorded reads a device's record under its lock; lost is true where there is one that cannot be read.
func (e *Engine) recorded(id string) (r *Record, lost bool, err error) {
	got, err := e.journal().Get(id)
	switch {
	case err == nil:
		return &got, false, nil
	case errors.Is(err, fs.ErrNotExist):
		return nil, false, nil
	case errors.Is(err, durable.ErrDamaged):
		return nil, true, nil
	}
	return nil, false, failf(CodeIO, err, "read the record of %s", id)
}

// live is a device that is being looked at: its namespaces are open until close.
type live struct {
	e      *Engine
	device link.Device
	pf     int // index of its PF's link in the host's namespace; 0: none
	host   Net
	pod    Net // nil: not open
	path   string
	seen   Seen
}

func (e *Engine) open(d link.Device) (*live, error) {
	host, err := e.Kernel.Open("")
	if err != nil {
		return nil, failf(CodeIO, err, "open the host's network namespace")
	}
	l := &live{e: e, device: d, host: host}
	if d.IsVF() && d.PFName != "" {
		if pf, err := host.Link(link.Query{Name: d.PFName}); err == nil {
			l.pf = pf.Index
		}
	}
	return l, nil
}

func (l *live) close() {
	_ = l.host.Close()
	l.leave()
}

func (l *live) leave() {
	if l.pod != nil {
		_ = l.pod.Close()
		l.pod = nil
	}
}

// enter opens the pod's namespace.
func (l *live) enter(path string) error {
	l.leave()
	pod, err := l.e.Kernel.Open(path)
	if err != nil {
		return err
	}
	l.pod, l.path = pod, path
	return nil
}

// readVF asks the PF, where there is one that tells.
func (l *live) readVF() error {
	l.seen.VF = nil
	if l.pf == 0 {
		return nil
	}
	vf, err := l.host.VF(l.pf, l.device.VF)
	switch {
	case errors.Is(err, link.ErrNoVF):
		return nil
	case err != nil:
		return failf(CodeRefused, err, "%s: ask its PF %s what it has set", l.device.PCI, l.device.PFName)
	}
	l.seen.VF = &vf
	return nil
}

// hostLink is the device's link if it is in the host's namespace. mark is the alias of who has it; base is nil where there is no record.
func (l *live) hostLink(mark string, base *Baseline) (link.Link, error) {
	if l.device.PCI.IsZero() || base != nil && base.Kind != "" { // a link without hardware may stand in for a PCI function
		return l.softLink(mark, base)
	}
	now, err := l.e.Kernel.Device(l.device.ID()) // its name may be another by now
	if err != nil {
		return link.Link{}, err
	}
	if now.Name == "" {
		return link.Link{}, link.ErrNotFound
	}
	found, err := l.host.Link(link.Query{Name: now.Name})
	if err == nil && found.Device != now.PCI.String() && found.Kind == "" && found.Device != "" {
		return link.Link{}, link.ErrNotFound
	}
	return found, err
}

// softLink is a link without hardware: by its index while nobody marked it, by its marker after that; another may have its name.
func (l *live) softLink(mark string, base *Baseline) (link.Link, error) {
	if base == nil {
		return l.host.Link(link.Query{Name: l.device.Name})
	}
	found, err := l.host.Link(link.Query{Index: base.Index})
	own := found.MAC == base.MAC || found.Name == base.Name
	if err == nil && found.Kind == base.Kind && (found.Alias == mark || found.Alias == base.Alias && own) {
		return found, nil
	}
	return l.host.Link(link.Query{Alias: mark})
}

// podLink is the device's link if it is in the namespace that is open: under the name that it was given there, else any.
func (l *live) podLink(m marker) (link.Link, error) {
	mark := m.String()
	found, err := l.pod.Link(link.Query{Name: m.IfName})
	if err == nil && (found.Alias == mark || found.Device != "" && found.Device == l.device.ID()) {
		return found, nil
	}
	if !l.device.PCI.IsZero() {
		found, err := l.pod.Link(link.Query{Device: l.device.PCI.String()})
		if !errors.Is(err, link.ErrNotFound) {
			return found, err
		}
	}
	return l.pod.Link(link.Query{Alias: mark})
}

// locate finds where the device is: in the host's namespace, in one of those that are named, in any. After it, the pod's namespace
// is open if the link is there.
func (l *live) locate(r Record, paths ...string) (err error) {
	m, base := markerOf(r.Spec, r.Baseline), &r.Baseline
	l.seen = Seen{}
	if base.Kind != "" { // its host's namespace would have to be searched: ask first where it was brought to
		if found, err := l.tryPod(r.Netns.Path, m); found || err != nil {
			return errors.Join(err, l.lookIf(found, r))
		}
	}
	if l.seen.Link, err = l.hostLink(m.String(), base); err == nil {
		l.seen.Place = AtHost
		l.enterRecorded(r)
		return l.look(r)
	}
	if !errors.Is(err, link.ErrNotFound) {
		return failf(CodeRefused, err, "look for %s in the host's namespace", l.device.ID())
	}
	for _, path := range slices.Concat([]string{r.Netns.Path}, paths) {
		if found, err := l.tryPod(path, m); found || err != nil {
			return errors.Join(err, l.lookIf(found, r))
		}
	}
	for _, path := range l.e.Kernel.Namespaces() {
		if found, _ := l.tryPod(path, m); found { // a namespace that ends while it is looked at is none of ours
			return l.look(r)
		}
	}
	l.leave()
	l.seen.Place = Gone
	if !l.device.PCI.IsZero() && base.Kind == "" {
		if _, err := l.e.Kernel.Device(l.device.ID()); err == nil {
			l.seen.Place = Lost
		}
	}
	return l.readVF()
}

// enterRecorded opens the namespace of the record, for RDMA devices that are still there while the link is back.
func (l *live) enterRecorded(r Record) {
	if r.Netns.Path != "" && l.pod == nil && l.enter(r.Netns.Path) == nil && l.pod.ID() != r.Netns.ID {
		l.leave()
	}
}

func (l *live) lookIf(found bool, r Record) error {
	if !found {
		return nil
	}
	return l.look(r)
}

// look fills in what belongs to a link that was found.
func (l *live) look(r Record) error {
	if l.pod != nil && len(r.Attachment.RDMA)+len(r.Device.RDMA) > 0 && l.e.Kernel.Mode() == link.Exclusive {
		there, err := l.pod.RDMA()
		if err != nil {
			return failf(CodeRefused, err, "look for RDMA devices in %s", l.path)
		}
		for _, name := range there {
			if slices.Contains(r.Device.RDMA, name) {
				l.seen.RDMA = append(l.seen.RDMA, name)
			}
		}
	}
	return l.readVF()
}

func (l *live) tryPod(path string, m marker) (found bool, err error) {
	if path == "" {
		return false, nil
	}
	switch err := l.enter(path); {
	case errors.Is(err, link.ErrNotFound), errors.Is(err, os.ErrNotExist):
		return false, nil
	case err != nil:
		return false, failf(CodeRefused, err, "open network namespace %s", path)
	}
	if l.pod.ID() == l.host.ID() {
		l.leave()
		return false, nil
	}
	got, err := l.podLink(m)
	if errors.Is(err, link.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, failf(CodeRefused, err, "look for %s in %s", l.device.ID(), path)
	}
	l.seen.Place, l.seen.Link = InPod, got
	return true, nil
}

// where is the namespace that the link is in.
func (l *live) where() Net {
	if l.seen.Place == InPod {
		return l.pod
	}
	return l.host
}

// do carries out one step. A move of the link changes where it is seen.
func (l *live) do(s Step) error {
	index := l.seen.Link.Index
	switch s.Verb {
	case SetVF:
		return l.host.SetVF(l.pf, l.device.VF, s.Attr, s.VF)
	case SetGUID:
		return l.host.SetGUID(l.pf, l.device.VF, s.GUID)
	case Adopt:
		return l.adopt(s)
	case SetLink:
		return l.where().Change(index, s.Change)
	case Move:
		return l.move(s.Change)
	case MoveRDMA:
		return l.moveRDMAIn(s.RDMA)
	case ReturnRDMA:
		return l.pod.MoveRDMA(s.RDMA, l.host.Fd())
	case Announce:
		return l.where().Announce(l.seen.Link.Name)
	case Address, Routes:
		return l.where().Configure(index, s.IP)
	}
	return fmt.Errorf("step %q: %w", s.Verb, errors.ErrUnsupported)
}

// moveRDMAIn moves a device to the pod. IPoIB links of it are made anew by that, in the host's namespace.
func (l *live) moveRDMAIn(device string) error {
	if err := l.host.MoveRDMA(device, l.pod.Fd()); err != nil || !l.seen.Link.IPoIB {
		return err
	}
	return l.again()
}

// again finds the link in the host's namespace once more, after what made it anew.
func (l *live) again() error {
	fresh, err := l.e.Kernel.Device(l.device.ID())
	if err != nil {
		return err
	}
	l.seen.Link, err = l.host.Link(link.Query{Name: fresh.Name})
	return err
}

// move is the one message. Its index there may be another.
func (l *live) move(c link.Change) error {
	from, to, place := l.host, l.pod, InPod
	if l.seen.Place == InPod {
		from, to, place = l.pod, l.host, AtHost
	}
	c.To = to.Fd()
	err := from.Change(l.seen.Link.Index, c)
	found, lookErr := to.Link(link.Query{Name: c.Name})
	same := found.Device == l.seen.Link.Device && found.Kind == l.seen.Link.Kind && found.MAC == l.seen.Link.MAC
	if lookErr == nil && (err == nil || same) { // also after an error: the kernel moves first, and then does the rest
		l.seen.Place, l.seen.Link = place, found
	}
	if err == nil {
		err = lookErr
	}
	return err
}
