package linktest

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/kerf-gpu/kerf/cni/link"
)

// Net is an open namespace of a Kernel.
type Net struct {
	k *Kernel
	s *space
}

// ID is cni.Net's, as all below.
func (n *Net) ID() string { return fmt.Sprintf("4:%d", n.s.id) }

// Fd stands for a descriptor.
func (n *Net) Fd() int { return 1000 + n.s.id }

// Close does nothing: a namespace here ends when it is told to.
func (n *Net) Close() error { return nil }

func (n *Net) find(index int) *iface {
	for _, l := range n.k.links {
		if l.in == n.s && l.Index == index {
			return l
		}
	}
	return nil
}

// Link finds one.
func (n *Net) Link(q link.Query) (link.Link, error) {
	n.k.mu.Lock()
	defer n.k.mu.Unlock()
	for _, l := range n.k.links {
		if l.in == n.s && q.Matches(l.Link) {
			return l.Link, nil
		}
	}
	return link.Link{}, link.ErrNotFound
}

// Links are all.
func (n *Net) Links() (all []link.Link, err error) {
	n.k.mu.Lock()
	defer n.k.mu.Unlock()
	for _, l := range n.k.links {
		if l.in == n.s {
			all = append(all, l.Link)
		}
	}
	return all, nil
}

// Change moves first, and then does the rest until something fails.
func (n *Net) Change(index int, c link.Change) error {
	n.k.mu.Lock()
	defer n.k.mu.Unlock()
	l := n.find(index)
	if l == nil {
		return errGone
	}
	if err := n.moveOrRename(l, c); err != nil {
		return err
	}
	if c.MAC != "" {
		if err := n.setMAC(l, c.MAC); err != nil {
			return err
		}
	}
	switch {
	case c.MTU == 0:
	case c.MTU < 68 || c.MTU > 9000:
		return unix.EINVAL
	default:
		l.MTU = c.MTU
	}
	if c.Alias != nil {
		if len(*c.Alias) > 255 {
			return unix.EINVAL
		}
		l.Alias = *c.Alias
	}
	if c.Up != nil {
		n.setUp(l, *c.Up)
	}
	return nil
}

func (n *Net) moveOrRename(l *iface, c link.Change) error {
	to := n.s
	if c.To != 0 {
		i := slices.IndexFunc(n.k.spaces, func(s *space) bool { return 1000+s.id == c.To && !s.dead })
		if i < 0 {
			return unix.EINVAL
		}
		to = n.k.spaces[i]
	}
	name := c.Name
	if name == "" {
		name = l.Name
	}
	if other := n.k.named(to, name); other != nil && other != l {
		return unix.EEXIST
	}
	l.Name = name
	if to != n.s {
		n.k.put(l, to)
	}
	return nil
}

func (n *Net) setMAC(l *iface, mac string) error {
	if mac == l.MAC {
		return nil // Linux 6.12 tells the driver only what differs: a PF does not hear it again
	}
	if l.of != nil && !l.of.pf.IsZero() {
		if l.of.byPF && mac != l.of.vf.MAC {
			return unix.EADDRNOTAVAIL
		}
		if !l.of.byPF {
			l.of.vf.MAC = mac
		}
	}
	l.MAC = mac
	return nil
}

// setUp: a VF that goes down is reset, and takes the address that its PF has set.
func (n *Net) setUp(l *iface, up bool) {
	if l.Up && !up && l.of != nil && l.of.byPF && !n.k.NoAdopt {
		l.MAC = l.of.vf.MAC
	}
	l.Up = up
}

// Announce sets what makes the kernel announce.
func (n *Net) Announce(name string) error {
	n.k.mu.Lock()
	defer n.k.mu.Unlock()
	l := n.k.named(n.s, name)
	if l == nil {
		return errGone
	}
	l.notify = true
	return nil
}

// Configure adds addresses and routes; a route needs a link that is up.
func (n *Net) Configure(index int, ip link.IP) error {
	n.k.mu.Lock()
	defer n.k.mu.Unlock()
	l := n.find(index)
	if l == nil {
		return errGone
	}
	if len(ip.Routes) > 0 && !l.Up {
		return unix.ENETDOWN
	}
	for _, a := range ip.Addresses {
		if !slices.Contains(l.ip.Addresses, a) {
			l.ip.Addresses = append(l.ip.Addresses, a)
		}
	}
	for _, r := range ip.Routes {
		if !slices.Contains(l.ip.Routes, r) {
			l.ip.Routes = append(l.ip.Routes, r)
		}
	}
	return nil
}

// Configured is what is there.
func (n *Net) Configured(index int) (link.IP, error) {
	n.k.mu.Lock()
	defer n.k.mu.Unlock()
	l := n.find(index)
	if l == nil {
		return link.IP{}, errGone
	}
	return link.IP{Addresses: slices.Clone(l.ip.Addresses), Routes: slices.Clone(l.ip.Routes)}, nil
}

// Uplinks are what default routes go over.
func (n *Net) Uplinks() (indexes []int, err error) {
	n.k.mu.Lock()
	defer n.k.mu.Unlock()
	for _, l := range n.k.links {
		if l.in == n.s && slices.ContainsFunc(l.ip.Routes, link.Route.Default) {
			indexes = append(indexes, l.Index)
		}
	}
	return indexes, nil
}

// vf is a PF's VF by the index of the PF's link.
func (n *Net) vf(pf, index int) *function {
	l := n.find(pf)
	if l == nil || l.of == nil {
		return nil
	}
	for _, f := range n.k.devices {
		if f.pf == l.of.pci && f.index == index {
			return f
		}
	}
	return nil
}

// VF is what a PF has set.
func (n *Net) VF(pf, vf int) (link.VF, error) {
	n.k.mu.Lock()
	defer n.k.mu.Unlock()
	f := n.vf(pf, vf)
	if f == nil {
		return link.VF{}, link.ErrNoVF
	}
	return f.vf, nil
}

// SetVF sets one attribute, if the driver does that.
func (n *Net) SetVF(pf, vf int, attr link.Attr, to link.VF) error {
	n.k.mu.Lock()
	defer n.k.mu.Unlock()
	f := n.vf(pf, vf)
	if f == nil {
		return unix.EINVAL
	}
	if err := n.refused(attr, to); err != nil {
		return err
	}
	switch attr {
	case link.AttrVLAN:
		f.vf.VLAN, f.vf.QoS, f.vf.Proto = to.VLAN, to.QoS, to.Proto
	case link.AttrMAC:
		f.vf.MAC, f.byPF = to.MAC, to.MAC != link.NoMAC
	case link.AttrRate:
		f.vf.MinRate, f.vf.MaxRate = to.MinRate, to.MaxRate
	case link.AttrSpoof:
		f.vf.SpoofCheck = to.SpoofCheck
	case link.AttrTrust:
		f.vf.Trust = to.Trust
	case link.AttrState:
		f.vf.State = to.State
	}
	return nil
}

func (n *Net) refused(attr link.Attr, to link.VF) error {
	if err := n.k.Refuse[attr]; err != nil {
		return err
	}
	reset := link.VF{Proto: link.Q, SpoofCheck: true, State: link.Auto, MAC: link.NoMAC}
	if err := n.k.Keep[attr]; err != nil && attr.Equal(to, reset) {
		return err
	}
	return nil
}

// SetGUID sets a GUID; zeros take it away.
func (n *Net) SetGUID(pf, vf int, guid string) error {
	n.k.mu.Lock()
	defer n.k.mu.Unlock()
	f := n.vf(pf, vf)
	if f == nil || !f.ib {
		return unix.EOPNOTSUPP
	}
	if f.guid = guid; guid == "00:00:00:00:00:00:00:00" {
		f.guid = ""
	}
	return nil
}

// RDMA are the devices of the namespace: all, in shared mode.
func (n *Net) RDMA() (names []string, err error) {
	n.k.mu.Lock()
	defer n.k.mu.Unlock()
	for _, r := range n.k.rdma {
		if r.in == n.s || n.k.mode == link.Shared {
			names = append(names, r.name)
		}
	}
	return names, nil
}

// MoveRDMA moves a device. IPoIB links of it are made anew.
func (n *Net) MoveRDMA(device string, to int) error {
	n.k.mu.Lock()
	defer n.k.mu.Unlock()
	for _, r := range n.k.rdma {
		if r.name != device || r.in != n.s {
			continue
		}
		if n.k.mode != link.Exclusive || !r.disassociate {
			return unix.EOPNOTSUPP
		}
		i := slices.IndexFunc(n.k.spaces, func(s *space) bool { return 1000+s.id == to && !s.dead })
		if i < 0 {
			return unix.EINVAL
		}
		r.in = n.k.spaces[i]
		n.k.renewIPoIB(r.of)
		return nil
	}
	return unix.ENODEV
}
