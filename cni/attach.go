package cni

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kerf-gpu/kerf/cni/link"
)

// Attach brings a device into the network namespace at a path. The same again, in the same namespace, is a success and changes
// nothing. After an error nothing of it is left, unless the error says so.
func (e *Engine) Attach(ctx context.Context, netns string, s Spec) (Attachment, error) {
	d, err := e.device(s)
	if err != nil {
		return Attachment{}, err
	}
	unlock, err := e.lock(ctx, d.ID(), e.wait())
	if err != nil {
		return Attachment{}, err
	}
	defer unlock()
	return e.attachLocked(ctx, netns, s, d)
}

// AttachAny attaches the first of several devices that is free, in their order. No lock is waited for while another device may be
// free; two that choose at once never get the same one.
func (e *Engine) AttachAny(ctx context.Context, netns string, s Spec, candidates []string) (Attachment, error) {
	if r, found, err := e.Find(s.Owner.Key); err != nil {
		return Attachment{}, err
	} else if found && slices.Contains(candidates, r.Device.ID()) { // asked again
		s.Device = r.Device.ID()
		return e.Attach(ctx, netns, s)
	}
	deadline := e.now().Add(e.wait())
	for {
		a, locked, err := e.tryAny(ctx, netns, s, candidates)
		if err == nil || !errors.Is(err, errHeld) || locked == "" || e.now().After(deadline) || ctx.Err() != nil {
			return a, err
		}
		unlock, err := e.lock(ctx, locked, deadline.Sub(e.now())) // whoever has it is about to take it, or to give it back
		if err != nil {
			return Attachment{}, err
		}
		unlock()
	}
}

// tryAny is one round over the candidates. locked is one that another has the lock of.
func (e *Engine) tryAny(ctx context.Context, netns string, s Spec, candidates []string) (a Attachment, locked string, err error) {
	var why []string
	for _, id := range candidates {
		s.Device = id
		d, err := e.device(s)
		if err != nil {
			why = append(why, err.Error())
			continue
		}
		unlock, err := e.lock(ctx, d.ID(), 0)
		if errors.Is(err, errHeld) {
			locked = d.ID()
			continue
		}
		if err != nil {
			return Attachment{}, "", err
		}
		a, err = e.attachLocked(ctx, netns, s, d)
		unlock()
		if CodeOf(err) != CodeBusy || err == nil {
			return a, "", err
		}
		why = append(why, err.Error())
	}
	if locked != "" {
		return Attachment{}, locked, failf(CodeBusy, errHeld, "none of %d devices is free", len(candidates))
	}
	return Attachment{}, "", failf(CodeBusy, nil, "none of %d devices is free: %s", len(candidates), strings.Join(why, "; "))
}

// device finds what is to be attached, and refuses what cannot be.
func (e *Engine) device(s Spec) (link.Device, error) {
	d, err := e.Kernel.Device(s.Device)
	if err != nil {
		return d, failf(CodeConfig, err, "deviceID %q", s.Device)
	}
	return d, refuseDevice(d, s)
}

func (e *Engine) attachLocked(ctx context.Context, netns string, s Spec, d link.Device) (Attachment, error) {
	l, err := e.open(d)
	if err != nil {
		return Attachment{}, err
	}
	defer l.close()
	if err := l.enter(netns); err != nil {
		return Attachment{}, failf(CodeEnv, err, "CNI_NETNS %q: cannot be opened", netns)
	}
	here := Netns{netns, l.pod.ID()}
	if here.ID == l.host.ID() {
		return Attachment{}, failf(CodeEnv, nil, "CNI_NETNS %q: that is the host's own network namespace", netns)
	}
	r, lost, err := e.recorded(d.ID())
	if err != nil {
		return Attachment{}, err
	}
	if r != nil {
		a, done, err := e.previous(ctx, l, *r, s, here)
		if done || err != nil {
			return a, err
		}
		if err := l.enter(netns); err != nil { // the search went elsewhere
			return Attachment{}, failf(CodeEnv, err, "CNI_NETNS %q: cannot be opened", netns)
		}
	}
	if r != nil { // what was given back may have other names now
		if l.device, err = e.device(s); err == nil {
			r, lost, err = e.recorded(d.ID())
		}
		if err != nil {
			return Attachment{}, err
		}
	}
	record, steps, err := e.prepare(l, s, here, r, lost)
	if err != nil {
		return Attachment{}, err
	}
	return e.carryOut(ctx, l, record, steps)
}

// previous deals with a record that is there. done: it is the same attachment, and stands.
func (e *Engine) previous(ctx context.Context, l *live, r Record, s Spec, here Netns) (a Attachment, done bool, err error) {
	same := r.Spec.Owner.Key == s.Owner.Key
	if same && r.Phase == Attached && r.Netns.ID == here.ID && equalSpecs(r.Spec, s) && l.stands(r) {
		if len(s.IP.Addresses)+len(s.IP.Routes) == 0 {
			return r.Attachment, true, nil
		}
		return r.Attachment, true, e.configure(l, r, s.IP)
	}
	if !same && r.Phase == Attached && e.alive(r.Netns) {
		return a, false, failf(CodeBusy, nil, "%s: in use by %s since %s; delete that pod, or choose another", l.device.ID(), r.Spec.Owner, r.Since.Format(time.RFC3339))
	}
	return a, false, e.detachLocked(ctx, l, r) // nobody is at work on it: the lock is ours
}

// stands says whether an attachment is still where its record says.
func (l *live) stands(r Record) bool {
	got, err := l.podLink(markerOf(r.Spec, r.Baseline))
	if err != nil || got.Name != r.Spec.Owner.IfName {
		return false
	}
	l.seen = Seen{Place: InPod, Link: got}
	return true
}

func equalSpecs(a, b Spec) bool {
	a.IP, b.IP = link.IP{}, link.IP{}
	return reflect.DeepEqual(a, b)
}

// alive says whether the namespace of a record is still there.
func (e *Engine) alive(n Netns) bool {
	// The path may be of a process that has ended in a namespace that others live in.
	for _, path := range append([]string{n.Path}, e.Kernel.Namespaces()...) {
		if path == "" {
			continue
		}
		net, err := e.Kernel.Open(path)
		if err != nil {
			continue
		}
		id := net.ID()
		_ = net.Close()
		if id == n.ID {
			return true
		}
	}
	return false
}

// prepare looks at the device and the pod, and plans. Nothing is changed. dirty is the record of a device that is back, but not yet as
// it was: its baseline still holds.
func (e *Engine) prepare(l *live, s Spec, here Netns, dirty *Record, lost bool) (r Record, steps []Step, err error) {
	var known *Baseline
	if dirty != nil {
		known = &dirty.Baseline
	}
	found, err := l.hostLink("", known)
	if errors.Is(err, link.ErrNotFound) && l.device.PCI.IsZero() {
		return r, nil, failf(CodeConfig, nil, "deviceID %s: the host has no interface of that name", l.device.ID())
	}
	if err != nil {
		return r, nil, failf(CodeBusy, err, "%s has no interface in the host's namespace: a pod has it that Kerf has no record of, or its driver is at work; `ip -all netns exec ip link` finds it", l.device.ID())
	}
	l.seen = Seen{Place: AtHost, Link: found}
	if err := l.readVF(); err != nil {
		return r, nil, err
	}
	if err := l.refuseLink(s); err != nil {
		return r, nil, err
	}
	use, err := e.planRDMA(l.device, s)
	if err != nil {
		return r, nil, err
	}
	base := BaselineOf(l.device, found, l.seen.VF, s.Baseline, lost)
	if dirty != nil {
		base = dirty.Baseline
		base.Index = found.Index
	}
	base.GUID = s.GUID != ""
	r = Record{Version: recordVersion, Device: l.device, Spec: s, Netns: here, Baseline: base, Phase: Attaching, Since: e.now()}
	r.Attachment = use
	return r, PlanAttach(s, l.seen, base, use.moving()), nil
}

// moving are the RDMA devices that have to move.
func (a Attachment) moving() []string {
	if a.RDMAMode != link.Exclusive {
		return nil
	}
	return a.RDMA
}

// planRDMA says which RDMA devices the pod gets and how.
func (e *Engine) planRDMA(d link.Device, s Spec) (a Attachment, err error) {
	if s.RDMA == RDMAOff || d.PCI.IsZero() && s.RDMA != RDMARequire {
		return a, nil
	}
	mode := e.Kernel.Mode()
	devices := e.Kernel.OfDevice(d.PCI)
	if len(devices) == 0 {
		if s.RDMA == RDMARequire {
			return a, failf(CodeConfig, nil, "rdma: require: %s (driver %q) has no RDMA device; load its RDMA driver (mlx5_ib, irdma, …), or use rdma: auto", d.ID(), d.Driver)
		}
		return a, nil
	}
	if mode == link.Shared && s.RDMA == RDMARequire {
		return a, failf(CodeConfig, nil, "rdma: require: the system's RDMA devices are shared by all namespaces, so %v would not be the pod's own; put `options ib_core netns_mode=0` in /etc/modprobe.d and the initramfs, and reboot (`rdma system set netns exclusive` works only while there is no other namespace); or use rdma: auto, which gives the pod its device files", devices)
	}
	a = Attachment{RDMA: devices, RDMAMode: mode}
	for _, name := range devices {
		a.CharDevices = append(a.CharDevices, e.Kernel.CharDevices(name)...)
	}
	slices.Sort(a.CharDevices)
	a.CharDevices = slices.Compact(a.CharDevices)
	return a, nil
}

// carryOut writes the record, takes the steps, and takes them back if one fails.
func (e *Engine) carryOut(ctx context.Context, l *live, r Record, steps []Step) (a Attachment, err error) {
	if err = e.journal().Put(r.Device.ID(), r); err != nil {
		return a, failf(CodeIO, err, "write the record of %s; nothing was changed", r.Device.ID())
	}
	var done []string
	for i, s := range steps {
		if err = ctx.Err(); err == nil {
			err = l.do(s)
		}
		if err != nil {
			err = l.explain(s, r.Spec, err)
			break
		}
		done = append(done, s.String())
		if s.Verb == Adopt && s.GUID != "" {
			if err = e.renamed(&r, steps[i+1:]); err != nil {
				break
			}
		}
	}
	if err == nil {
		err = l.finish(&r)
	}
	if err == nil {
		if err = e.journal().Put(r.Device.ID(), r); err == nil {
			return r.Attachment, nil
		}
		err = failf(CodeIO, err, "write the record of %s", r.Device.ID())
	}
	return a, e.rollBack(ctx, l, r, done, err)
}

// renamed takes up the names that RDMA devices got when their VF was bound again.
func (e *Engine) renamed(r *Record, rest []Step) error {
	devices := e.Kernel.OfDevice(r.Device.PCI)
	for i := range rest {
		if at := slices.Index(r.Device.RDMA, rest[i].RDMA); rest[i].Verb == MoveRDMA && at >= 0 && at < len(devices) {
			rest[i].RDMA = devices[at]
		}
	}
	r.Device.RDMA = devices
	if len(r.Attachment.RDMA) > 0 {
		r.Attachment.RDMA = devices
	}
	if err := e.journal().Put(r.Device.ID(), *r); err != nil {
		return failf(CodeIO, err, "write the record of %s", r.Device.ID())
	}
	return nil
}

func (e *Engine) rollBack(ctx context.Context, l *live, r Record, done []string, cause error) error {
	code := CodeOf(cause)
	if err := e.detachLocked(context.WithoutCancel(ctx), l, r); err != nil {
		return failf(code, cause, "%s; taking it back failed too, DEL tries again (%s)", cause, err)
	}
	if len(done) == 0 {
		return cause
	}
	return failf(code, errors.Unwrap(cause), "%s. Rolled back: %s", cause, strings.Join(done, ", "))
}

// finish reads what was made.
func (l *live) finish(r *Record) error {
	got, err := l.pod.Link(link.Query{Name: r.Spec.Owner.IfName})
	if err != nil {
		return failf(CodeRefused, err, "read %s in the pod", r.Spec.Owner.IfName)
	}
	if r.Spec.MAC != "" && got.MAC != r.Spec.MAC {
		return failf(CodeRefused, nil, "mac %s: %s (driver %q) kept %s", r.Spec.MAC, r.Device.ID(), r.Device.Driver, got.MAC)
	}
	r.Phase = Attached
	r.Attachment.Device, r.Attachment.Owner, r.Attachment.Netns = r.Device.ID(), r.Spec.Owner, r.Netns
	r.Attachment.Link, r.Attachment.Of = got, r.Device
	if l.seen.VF != nil {
		r.Attachment.VF = new(r.Spec.VF.want(r.Spec.MAC, *l.seen.VF))
	}
	return nil
}

// adopt has a VF take what its PF has set: some drivers let the VF set the same itself, some read it when the link goes down, all
// when they are bound again.
func (l *live) adopt(s Step) error {
	if s.GUID != "" {
		return l.rebind()
	}
	has := func() (bool, error) {
		got, err := l.host.Link(link.Query{Index: l.seen.Link.Index})
		if err == nil {
			l.seen.Link = got
		}
		return got.MAC == s.Change.MAC, err
	}
	for _, try := range [][]link.Change{{}, {{MAC: s.Change.MAC}}, {{Up: new(true)}, {Up: new(false)}}} {
		for _, c := range try {
			_ = l.host.Change(l.seen.Link.Index, c) // what counts is the address that it has after it
		}
		if done, err := has(); done || err != nil {
			return err
		}
	}
	if err := l.rebind(); err != nil {
		return err
	}
	if done, err := has(); !done {
		return errors.Join(fmt.Errorf("the VF has address %s even after it was bound again", l.seen.Link.MAC), err)
	}
	return nil
}

func (l *live) rebind() (err error) {
	unlock, err := l.e.lock(context.Background(), l.device.PF.String(), l.e.wait()) // a bind renames RDMA devices of the whole PF
	if err != nil {
		return err
	}
	defer unlock()
	if err = l.e.Kernel.Rebind(l.device.PCI); err != nil {
		return err
	}
	return l.again()
}

// explain says which field of the configuration a step was for, and what the kernel said.
func (l *live) explain(s Step, spec Spec, err error) error {
	field, value := s.field(spec)
	what := fmt.Sprintf("%s (driver %s)", l.device.ID(), l.device.Driver)
	if l.device.IsVF() {
		what = fmt.Sprintf("VF %s (PF %s vf %d, driver %s)", l.device.ID(), l.device.PFName, l.device.VF, l.device.Driver)
	}
	if field == "" {
		return failf(CodeRefused, err, "%s: %s failed", what, s)
	}
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.ERANGE) {
		return failf(CodeRefused, err, "%s: %s: %s is not supported by this driver; remove %s", what, field, value, field)
	}
	return failf(CodeRefused, err, "%s: %s: %s was refused", what, field, value)
}

// field is the configuration's name for what a step sets, with the value that was asked.
func (s Step) field(spec Spec) (name, value string) {
	switch {
	case s.Verb == SetVF && s.Attr == link.AttrVLAN && s.VF.Proto == link.AD:
		return "vlanProto", s.VF.Proto
	case s.Verb == SetVF && s.Attr == link.AttrVLAN:
		return "vlan", fmt.Sprint(s.VF.VLAN)
	case s.Verb == SetVF && s.Attr == link.AttrMAC, s.Verb == Adopt && s.Change.MAC != "":
		return "mac", spec.MAC
	case s.Verb == SetVF && s.Attr == link.AttrRate && s.VF.MinRate != 0:
		return "min_tx_rate", fmt.Sprint(s.VF.MinRate)
	case s.Verb == SetVF && s.Attr == link.AttrRate:
		return "max_tx_rate", fmt.Sprint(s.VF.MaxRate)
	case s.Verb == SetVF && s.Attr == link.AttrSpoof:
		return "spoofchk", onOff(s.VF.SpoofCheck)
	case s.Verb == SetVF && s.Attr == link.AttrTrust:
		return "trust", onOff(s.VF.Trust)
	case s.Verb == SetVF && s.Attr == link.AttrState:
		return "link_state", string(s.VF.State)
	case s.GUID != "":
		return "guid", s.GUID
	case s.Verb == MoveRDMA:
		return "rdma", "the move of " + s.RDMA
	case s.Verb == Move && s.Change.MTU != 0:
		return "mtu", fmt.Sprint(s.Change.MTU)
	}
	return "", ""
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}

func (s Step) String() string {
	switch s.Verb {
	case SetVF:
		return string(s.Attr)
	case MoveRDMA:
		return "move of " + s.RDMA
	}
	return string(s.Verb)
}
