package cni

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/kerf-gpu/kerf/cni/link"
)

// Configure gives an attachment its addresses and routes, where they came after it was made.
func (e *Engine) Configure(ctx context.Context, k Key, ip link.IP) error {
	return e.with(ctx, k, func(l *live, r Record) error { return e.configure(l, r, ip) })
}

func (e *Engine) configure(l *live, r Record, ip link.IP) error {
	for _, s := range planIP(ip) {
		if err := l.do(s); err != nil {
			return l.explain(s, r.Spec, err)
		}
	}
	r.Spec.IP = ip
	return e.put(r.Device.ID(), r)
}

// with runs something on an attachment that stands, under its lock.
func (e *Engine) with(ctx context.Context, k Key, do func(*live, Record) error) error {
	r, found, err := e.Find(k)
	if err != nil {
		return err
	}
	if !found {
		return failf(CodeUnknown, nil, "no attachment %s is on record", k)
	}
	unlock, err := e.lock(ctx, r.Device.ID(), e.wait())
	if err != nil {
		return err
	}
	defer unlock()
	now, _, err := e.recorded(r.Device.ID())
	if err != nil {
		return err
	}
	if now == nil || now.Spec.Owner.Key != k || now.Phase != Attached {
		return failf(CodeUnknown, nil, "attachment %s is not complete or was ended meanwhile", k)
	}
	l, err := e.open(e.fresh(now.Device))
	if err != nil {
		return err
	}
	defer l.close()
	if err := l.locate(*now); err != nil {
		return err
	}
	if l.seen.Place != InPod {
		return failf(CodeDiffers, nil, "%s: %s is not in the pod's namespace %s", k, r.Device.ID(), now.Netns.Path)
	}
	return do(l, *now)
}

// Check says what of an attachment is not as it was made; nil if nothing.
func (e *Engine) Check(ctx context.Context, k Key) error {
	return e.with(ctx, k, func(l *live, r Record) error {
		has, err := l.where().Configured(l.seen.Link.Index)
		if err != nil {
			return failf(CodeRefused, err, "read the addresses of %s", k)
		}
		wrong := differences(r, l.seen, has)
		if l.pod.ID() != r.Netns.ID {
			wrong = append(wrong, fmt.Sprintf("it is in namespace %s, was attached to %s", l.pod.ID(), r.Netns.ID))
		}
		if len(wrong) > 0 {
			return failf(CodeDiffers, nil, "%s (%s) is not as it was attached: %s", k, r.Device.ID(), strings.Join(wrong, "; "))
		}
		return nil
	})
}

// differences of what is there from what was attached, in words. It is pure.
func differences(r Record, seen Seen, has link.IP) (wrong []string) {
	is := func(what string, got, want any) {
		if got != want {
			wrong = append(wrong, fmt.Sprintf("%s is %v, was %v", what, got, want))
		}
	}
	is("name", seen.Link.Name, r.Spec.Owner.IfName)
	is("mac", seen.Link.MAC, r.Attachment.Link.MAC)
	is("mtu", seen.Link.MTU, r.Attachment.Link.MTU)
	is("up", seen.Link.Up, true)
	is("alias", seen.Link.Alias, r.Attachment.Link.Alias)
	for _, address := range r.Spec.IP.Addresses {
		if !slices.Contains(has.Addresses, address) {
			wrong = append(wrong, fmt.Sprintf("address %s is missing", address))
		}
	}
	for _, route := range r.Spec.IP.Routes {
		if !slices.ContainsFunc(has.Routes, func(h link.Route) bool { return h.To == route.To && h.Via == route.Via }) {
			wrong = append(wrong, fmt.Sprintf("route to %s via %q is missing", route.To, route.Via))
		}
	}
	if r.Attachment.VF != nil && seen.VF != nil {
		for _, attr := range link.Attrs {
			if attr == link.AttrMAC && r.Spec.MAC == "" {
				continue
			}
			if !attr.Equal(*seen.VF, *r.Attachment.VF) {
				wrong = append(wrong, fmt.Sprintf("%s of the VF is %+v, was %+v", attr, *seen.VF, *r.Attachment.VF))
			}
		}
	}
	for _, device := range r.Attachment.moving() {
		if !slices.Contains(seen.RDMA, device) {
			wrong = append(wrong, fmt.Sprintf("RDMA device %s is not in the pod", device))
		}
	}
	return wrong
}

// Report is what Reconcile found and did.
type Report struct {
	Kept     []Record // attachments that stand
	Returned []string // devices that were given back
	Failed   []string // devices that could not be, with the reason
}

// Reconcile gives back every device whose namespace is gone, or whose owner is not valid any more; valid may be nil. A device that
// somebody is at work on is left to him.
func (e *Engine) Reconcile(ctx context.Context, valid func(Owner) bool) (report Report, err error) {
	records, damaged, err := e.List()
	if err != nil {
		return report, err
	}
	stale := func(r Record) bool {
		return r.Phase != Attached || !e.alive(r.Netns) || valid != nil && !valid(r.Spec.Owner)
	}
	for _, r := range records {
		if !stale(r) {
			report.Kept = append(report.Kept, r)
			continue
		}
		report.note(r.Device.ID(), e.detachIdle(ctx, r.Device.ID(), stale))
	}
	gone := func(m marker) bool { return valid == nil || !valid(Owner{Key: m.Key}) }
	for _, id := range damaged {
		healed, err := e.heal(ctx, id, gone)
		if healed || err != nil {
			report.note(id, err)
		}
	}
	// A link with a marker in the host's namespace came back when its namespace ended.
	return report, e.detachMarked(ctx, func(marker) bool { return true })
}

// detachIdle is detach of a device that nobody is at work on.
func (e *Engine) detachIdle(ctx context.Context, id string, stale func(Record) bool) error {
	unlock, err := e.lock(ctx, id, 0)
	if err != nil {
		return err
	}
	unlock()
	return e.detach(ctx, id, stale)
}

func (r *Report) note(id string, err error) {
	switch {
	case errors.Is(err, errHeld):
	case err != nil:
		r.Failed = append(r.Failed, fmt.Sprintf("%s: %v", id, err))
	default:
		r.Returned = append(r.Returned, id)
	}
}
