package cni

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kerf-gpu/kerf/cni/link"
)

// Detach gives back what an attachment has: by its record, by what is left of one, or by the marker of a link in that namespace
// or the host's. netns may be "", and may be gone. That there is nothing is a success. An error is one that a second try can help.
func (e *Engine) Detach(ctx context.Context, k Key, netns string) error {
	records, damaged, err := e.List()
	if err != nil {
		return err
	}
	found := false
	var errs []error
	for _, r := range records {
		if r.Spec.Owner.Key == k {
			found = true
			errs = append(errs, e.detach(ctx, r.Device.ID(), func(now Record) bool { return now.Spec.Owner.Key == k }, netns))
		}
	}
	for _, id := range damaged {
		healed, err := e.heal(ctx, id, func(m marker) bool { return m.of(k) }, netns)
		found = found || healed
		errs = append(errs, err)
	}
	if !found {
		errs = append(errs, e.detachMarked(ctx, func(m marker) bool { return m.of(k) }, netns, ""))
	}
	return errors.Join(errs...)
}

// detach is Detach of one device, if under its lock its record is still one that is meant.
func (e *Engine) detach(ctx context.Context, id string, meant func(Record) bool, paths ...string) error {
	unlock, err := e.lock(ctx, id, e.wait())
	if err != nil {
		return err
	}
	defer unlock()
	r, lost, err := e.recorded(id)
	if err != nil || r == nil || lost || !meant(*r) {
		return err
	}
	l, err := e.open(e.fresh(r.Device))
	if err != nil {
		return err
	}
	defer l.close()
	return e.detachLocked(ctx, l, *r, paths...)
}

// fresh is a device as it is now, or as it was where it does not exist any more.
func (e *Engine) fresh(d link.Device) link.Device {
	if now, err := e.Kernel.Device(d.ID()); err == nil && !d.PCI.IsZero() {
		now.RDMA = d.RDMA // those that are in a pod do not show
		return now
	}
	return d
}

// heal gives back the device of a damaged record, if it is meant by its marker, or is at the host without one: then its attachment
// was cut off before the link was moved, and nobody has it.
func (e *Engine) heal(ctx context.Context, id string, meant func(marker) bool, paths ...string) (healed bool, err error) {
	unlock, err := e.lock(ctx, id, e.wait())
	if err != nil {
		return false, err
	}
	defer unlock()
	if _, lost, err := e.recorded(id); err != nil || !lost {
		return false, err
	}
	d, err := e.Kernel.Device(id)
	if errors.Is(err, link.ErrNotFound) {
		return false, e.journal().Delete(id) // a VF that does not exist any more
	}
	if err != nil {
		return false, failf(CodeIO, err, "look at %s", id)
	}
	l, err := e.open(d)
	if err != nil {
		return false, err
	}
	defer l.close()
	found, err := e.marked(l, paths) // first: another link may have taken the name
	if errors.Is(err, link.ErrNotFound) && d.Name != "" {
		l.leave()
		found, err = l.host.Link(link.Query{Name: d.Name})
	}
	m, marked := parseMarker(found.Alias)
	if errors.Is(err, link.ErrNotFound) || marked && !meant(m) {
		return false, nil
	}
	if err != nil {
		return false, failf(CodeRefused, err, "look for the link of %s", id)
	}
	return true, e.detachLocked(ctx, l, e.guess(l, found, m), paths...)
}

// marked finds a device's link by all means.
func (e *Engine) marked(l *live, paths []string) (link.Link, error) {
	for _, path := range slices.Concat(paths, e.Kernel.Namespaces()) {
		if path == "" || l.enter(path) != nil {
			continue
		}
		links, err := l.pod.Links()
		if err != nil {
			continue
		}
		for _, found := range links {
			m, ok := parseMarker(found.Alias)
			if ok && (found.Device != "" && found.Device == l.device.ID() || l.device.PCI.IsZero() && m.Host == l.device.Name) {
				return found, nil
			}
		}
	}
	return link.Link{}, link.ErrNotFound
}

// guess makes a record from what is left.
func (e *Engine) guess(l *live, found link.Link, m marker) Record {
	var vf *link.VF
	if l.pf != 0 {
		vf = new(clean)
	}
	owner := Owner{Key: m.Key}
	r := Record{Version: recordVersion, Device: l.device, Spec: Spec{Device: l.device.ID(), Owner: owner}, Phase: Detaching, Since: e.now()}
	r.Baseline = BaselineOf(l.device, found, vf, nil, true)
	if m.MAC != "" {
		r.Spec.MAC = found.MAC // so that the record's marker is the link's
	}
	if l.pod != nil {
		r.Netns = Netns{l.path, l.pod.ID()}
	}
	return r
}

// detachMarked gives back links without a record, by their markers: in the namespace at a path, and in the host's.
func (e *Engine) detachMarked(ctx context.Context, meant func(marker) bool, paths ...string) error {
	var errs []error
	for _, path := range append(slices.DeleteFunc(paths, func(p string) bool { return p == "" }), "") {
		n, err := e.Kernel.Open(path)
		if errors.Is(err, link.ErrNotFound) {
			continue
		}
		if err != nil {
			errs = append(errs, failf(CodeRefused, err, "open network namespace %q", path))
			continue
		}
		links, err := n.Links()
		errs = append(errs, err, n.Close())
		for _, found := range links {
			if m, ok := parseMarker(found.Alias); ok && meant(m) {
				errs = append(errs, e.detachLink(ctx, found, m, path))
			}
		}
	}
	return errors.Join(errs...)
}

func (e *Engine) detachLink(ctx context.Context, found link.Link, m marker, path string) error {
	id := found.Device
	if id == "" {
		id = m.Host
	}
	unlock, err := e.lock(ctx, id, e.wait())
	if err != nil {
		return err
	}
	defer unlock()
	if r, _, err := e.recorded(id); err != nil || r != nil { // it got one meanwhile
		return err
	}
	d, err := e.Kernel.Device(id)
	if errors.Is(err, link.ErrNotFound) {
		d = link.Device{Name: m.Host, VF: -1}
	} else if err != nil {
		return failf(CodeIO, err, "look at %s", id)
	}
	l, err := e.open(d)
	if err != nil {
		return err
	}
	defer l.close()
	return e.detachLocked(ctx, l, e.guess(l, found, m), path)
}

// rounds of looking and changing. One brings the link home, the next sees it there and mends the rest, one takes the marker away,
// and one sees that nothing is left; a name that is taken needs one more.
const rounds = 6

// detachLocked is the one way back: rollback, DEL, GC and start all end here. It changes what differs from the baseline until nothing
// does, and only then forgets the device. paths are namespaces that the link may be in, besides the record's.
func (e *Engine) detachLocked(ctx context.Context, l *live, r Record, paths ...string) (err error) {
	want := r.Baseline
	var steps []Step
	var failed error
	home := ""
	for round := 0; ; round++ {
		if err = l.locate(r, paths...); err != nil {
			break
		}
		if home != "" && l.seen.Place == AtHost && l.seen.Link.Name == home {
			want.Name = home // its own is taken: that must not keep the rest from being mended
		}
		if steps = PlanDetach(l.seen, want); len(steps) == 0 || round == rounds || ctx.Err() != nil {
			break
		}
		failed = nil
		for _, s := range steps {
			err := l.back(s, &home)
			if err != nil {
				failed = errors.Join(failed, fmt.Errorf("%s: %w", s, err))
			}
			if s.Verb == Adopt && err == nil {
				want.GUID = false // nothing tells which one it has: once is enough
			}
			if s.Verb == Adopt || s.Verb == Move && err != nil { // what comes after it was planned for another place
				break
			}
		}
	}
	return e.settle(l, r, want, steps, errors.Join(err, failed, ctx.Err()))
}

// back takes a step of a detachment. A name that is taken at home is replaced by one that is not.
func (l *live) back(s Step, home *string) error {
	if s.Change.Name != "" && *home != "" {
		s.Change.Name = *home
	}
	err := l.do(s)
	if s.Change.Name != "" && errors.Is(err, unix.EEXIST) {
		*home = fmt.Sprintf("kerf%d", l.seen.Link.Index)
		s.Change.Name = *home
		err = l.do(s)
	}
	if s.Verb == SetLink && s.Change.MAC != "" && errors.Is(err, unix.EADDRNOTAVAIL) { // igbvf, until it was reset after its PF was
		for _, up := range []bool{true, false} {
			_ = l.where().Change(l.seen.Link.Index, link.Change{Up: new(up)}) // the address is what counts
		}
		err = l.do(s)
	}
	return err
}

// settle ends a detachment: the record goes when the device is clean, and stays with a reason when it is not.
func (e *Engine) settle(l *live, r Record, want Baseline, left []Step, err error) error {
	id := r.Device.ID()
	switch {
	case l.seen.Place == Gone, l.seen.Place == AtHost && len(left) == 0 && want.Name == r.Baseline.Name:
		if err := e.journal().Delete(id); err != nil {
			return failf(CodeNotBack, err, "%s is back, but its record cannot be removed", id)
		}
		return nil
	case l.seen.Place == AtHost && len(left) == 0:
		r.Phase, r.Note = Dirty, fmt.Sprintf("called %s, since another interface is called %s", want.Name, r.Baseline.Name)
		r.Baseline.Index = l.seen.Link.Index
		return e.keep(id, r)
	case l.seen.Place == Lost:
		r.Phase, r.Note = Stranded, "its link is in no network namespace that this process can open"
		if err := e.keep(id, r); err != nil {
			return err
		}
		return failf(CodeNotBack, err, "%s: %s; it comes back when that namespace ends", id, r.Note)
	case l.seen.Place == AtHost && onlyAdmin(left):
		// The pod has let go of it; what is wrong keeps the device from others, and not the pod from ending.
		r.Phase, r.Note = Dirty, fmt.Sprintf("its PF would not take back %s: %v", listSteps(left), err)
		return e.keep(id, r)
	}
	r.Note = fmt.Sprint(err)
	if kept := e.keep(id, r); kept != nil {
		err = errors.Join(err, kept)
	}
	if len(left) == 0 {
		return failf(CodeNotBack, err, "%s could not be looked at; its record is kept, try again", id)
	}
	return failf(CodeNotBack, err, "%s is not as it was before: %s is left to do; its record is kept, try again", id, listSteps(left))
}

// keep is the record of a device that is not back as it was.
func (e *Engine) keep(id string, r Record) error {
	if r.Phase == Attached {
		r.Phase = Detaching
	}
	return e.put(id, r)
}

func (e *Engine) put(id string, r Record) error {
	if err := e.journal().Put(id, r); err != nil {
		return failf(CodeIO, err, "write the record of %s", id)
	}
	return nil
}

func onlyAdmin(steps []Step) bool {
	return !slices.ContainsFunc(steps, func(s Step) bool { return s.Verb != SetVF && s.Verb != SetGUID && s.Verb != Adopt })
}

func listSteps(steps []Step) string {
	var words []string
	for _, s := range steps {
		words = append(words, s.String())
	}
	return strings.Join(words, ", ")
}
