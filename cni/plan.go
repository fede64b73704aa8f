package cni

import (
	"slices"

	"github.com/kerf-gpu/kerf/cni/link"
)

// Verb is what a step does.
type Verb string

// The verbs.
const (
	SetVF      Verb = "set VF"    // one attribute, through the PF
	SetGUID    Verb = "set GUID"  // through the PF
	Adopt      Verb = "adopt"     // have the VF take the address or GUID that its PF has set
	SetLink    Verb = "set link"  // one message, in the namespace where the link is
	Move       Verb = "move"      // one message, to the other namespace
	MoveRDMA   Verb = "move RDMA" // of a device, to the pod
	ReturnRDMA Verb = "return RDMA"
	Announce   Verb = "announce"
	Address    Verb = "address"
	Routes     Verb = "routes"
)

// Step is one change of the world.
type Step struct {
	Verb   Verb        `json:"verb"`
	Attr   link.Attr   `json:"attr,omitempty"`
	VF     link.VF     `json:"vf,omitzero"`
	GUID   string      `json:"guid,omitempty"`
	Change link.Change `json:"change,omitzero"`
	RDMA   string      `json:"rdma,omitempty"`
	IP     link.IP     `json:"ip,omitzero"`
}

// Seen is a device as it is now.
type Seen struct {
	Place Place     // where its link is
	Link  link.Link // zero where there is none
	VF    *link.VF  // nil where no PF tells
	RDMA  []string  // of its RDMA devices, those in the pod's namespace
}

// Place is where a link is.
type Place string

// The places.
const (
	AtHost Place = "host"
	InPod  Place = "pod"
	Gone   Place = "gone" // it does not exist any more
	Lost   Place = "lost" // it exists, in a namespace that was not found
)

// want is what of a VF is asked, over what it has.
func (a Asked) want(mac string, has link.VF) link.VF {
	w := has
	set(&w.VLAN, a.VLAN)
	set(&w.QoS, a.QoS)
	set(&w.SpoofCheck, a.SpoofCheck)
	set(&w.Trust, a.Trust)
	set(&w.MinRate, a.MinRate)
	set(&w.MaxRate, a.MaxRate)
	set(&w.State, a.State)
	if a.Proto != "" {
		w.Proto = a.Proto
	}
	if mac != "" {
		w.MAC = mac
	}
	return w
}

func set[T any](to *T, from *T) {
	if from != nil {
		*to = *from
	}
}

// PlanAttach is the steps that bring a device from the host, as seen there, into a pod. It is pure. rdma are its RDMA devices that
// have to move, which is in exclusive mode only.
func PlanAttach(s Spec, seen Seen, base Baseline, rdma []string) (steps []Step) {
	isVF := seen.VF != nil
	if isVF {
		want := s.VF.want(s.MAC, *seen.VF)
		steps = append(steps, planVF(*seen.VF, want)...)
		if s.MAC != "" && (seen.Link.MAC != s.MAC || seen.VF.MAC != s.MAC) {
			steps = append(steps, Step{Verb: Adopt, Change: link.Change{MAC: s.MAC}})
		}
	}
	if s.GUID != "" {
		steps = append(steps, Step{Verb: SetGUID, GUID: s.GUID}, Step{Verb: Adopt, GUID: s.GUID})
	}
	move := link.Change{Name: s.Owner.IfName, Alias: new(markerOf(s, base).String())}
	if s.MTU != seen.Link.MTU {
		move.MTU = s.MTU
	}
	if !isVF && s.MAC != seen.Link.MAC {
		move.MAC = s.MAC
	}
	moves := []Step{{Verb: Move, Change: move}}
	for _, device := range rdma {
		step := Step{Verb: MoveRDMA, RDMA: device}
		if seen.Link.IPoIB { // moving the RDMA device makes its IPoIB links anew: the link is moved after that
			moves = slices.Insert(moves, len(moves)-1, step)
		} else { // RoCE builds its table of addresses when link and device are in one namespace
			moves = append(moves, step)
		}
	}
	steps = append(steps, moves...)
	steps = append(steps, Step{Verb: Announce})
	return append(steps, planIP(s.IP)...)
}

// planIP ends with a link that is up. Addresses are there before, so that coming up announces them; routes need one that is up.
func planIP(ip link.IP) (steps []Step) {
	if len(ip.Addresses) > 0 {
		steps = append(steps, Step{Verb: Address, IP: link.IP{Addresses: ip.Addresses}})
	}
	steps = append(steps, Step{Verb: SetLink, Change: link.Change{Up: new(true)}})
	if len(ip.Routes) > 0 {
		steps = append(steps, Step{Verb: Routes, IP: link.IP{Routes: ip.Routes}})
	}
	return steps
}

func planVF(seen, want link.VF) (steps []Step) {
	for _, attr := range link.Attrs {
		if !attr.Equal(seen, want) {
			steps = append(steps, Step{Verb: SetVF, Attr: attr, VF: want})
		}
	}
	return steps
}

// PlanDetach is the steps that bring a device nearer to its baseline; none says that it is clean. It is pure, and knows nothing of what
// was done before: whoever carries the steps out looks again, and plans again. The marker goes last, since until then the device
// may need to tell whose it was.
func PlanDetach(seen Seen, want Baseline) (steps []Step) {
	if seen.Place == Gone || seen.Place == Lost {
		return nil
	}
	for _, device := range seen.RDMA {
		steps = append(steps, Step{Verb: ReturnRDMA, RDMA: device})
	}
	if seen.Place == InPod {
		back := link.Change{Name: want.Name}
		if want.MTU != seen.Link.MTU {
			back.MTU = want.MTU
		}
		if want.VF == nil && want.MAC != seen.Link.MAC {
			back.MAC = want.MAC
		}
		steps = append(steps, Step{Verb: Move, Change: back})
	}
	steps = append(steps, planVFBack(seen, want)...)
	if seen.Place == AtHost && want.GUID {
		return append(steps, Step{Verb: SetGUID, GUID: noGUID}, Step{Verb: Adopt, GUID: noGUID})
	}
	if seen.Place == AtHost {
		steps = append(steps, planLinkBack(seen.Link, want, len(steps) == 0)...)
	}
	return steps
}

const noGUID = "00:00:00:00:00:00:00:00"

// planVFBack takes back what the PF has set. An address of the VF's own may show there too, or none after the PF was reset: both are
// as good. It is not set by the PF, which would hold the VF to it: the PF's is taken away, and the VF sets its own again.
func planVFBack(seen Seen, want Baseline) (steps []Step) {
	if seen.VF == nil || want.VF == nil {
		return nil
	}
	target := *want.VF
	own := slices.Contains([]string{want.MAC, link.NoMAC, ""}, target.MAC)
	taken := own && !slices.Contains([]string{want.MAC, link.NoMAC}, seen.VF.MAC)
	switch {
	case taken:
		target.MAC = link.NoMAC
	case own:
		target.MAC = seen.VF.MAC
	}
	steps = planVF(*seen.VF, target)
	if taken && want.MAC != "" {
		steps = append(steps, Step{Verb: SetLink, Change: link.Change{MAC: want.MAC}})
	}
	return steps
}

// planLinkBack is one message with all that differs, and at the very end one that takes the marker away.
func planLinkBack(l link.Link, want Baseline, last bool) []Step {
	var c link.Change
	if l.Name != want.Name {
		c.Name = want.Name
	}
	if want.MTU != 0 && l.MTU != want.MTU {
		c.MTU = want.MTU
	}
	if want.MAC != "" && l.MAC != want.MAC {
		c.MAC = want.MAC
	}
	if l.Up != want.Up {
		c.Up = new(want.Up)
	}
	if c != (link.Change{}) {
		return []Step{{Verb: SetLink, Change: c}}
	}
	if last && l.Alias != want.Alias {
		return []Step{{Verb: SetLink, Change: link.Change{Alias: new(want.Alias)}}}
	}
	return nil
}

// clean is what a VF has when no one has set anything.
var clean = link.VF{Proto: link.Q, SpoofCheck: true, State: link.Auto}

// BaselineOf is what a device has to be again after the attachment, from what it is now. lost says that it may be dirty: that there
// was a record which cannot be read. It is pure.
func BaselineOf(d link.Device, l link.Link, vf *link.VF, over *Override, lost bool) Baseline {
	b := Baseline{Name: l.Name, Index: l.Index, Kind: l.Kind, MTU: l.MTU, MAC: l.MAC, Up: l.Up, Alias: l.Alias}
	if vf != nil {
		b.VF = new(*vf)
	}
	m, marked := parseMarker(l.Alias)
	if marked || lost {
		b.Alias, b.Up = "", l.Up && !marked
		b.MTU, b.MAC = 0, l.PermMAC
		if vf != nil { // igbvf gives out what its PF has set as burnt in
			b.VF, b.MAC = new(clean), ""
		}
	}
	if marked {
		b.Name = m.Host
	}
	if marked && m.MAC != "" {
		b.MAC = m.MAC
	}
	if over != nil {
		b.override(*over)
	}
	return b
}

func (b *Baseline) override(o Override) {
	if o.MTU != 0 {
		b.MTU = o.MTU
	}
	if o.MAC != "" {
		b.MAC = o.MAC
	}
	if b.VF == nil {
		return
	}
	if o.MAC != "" {
		b.VF.MAC = o.MAC
	}
	set(&b.VF.Trust, o.Trust)
	set(&b.VF.SpoofCheck, o.SpoofCheck)
}
