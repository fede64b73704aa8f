package linktest

import (
	"github.com/kerf-gpu/kerf/cni"
	"github.com/kerf-gpu/kerf/cni/link"
	"github.com/kerf-gpu/kerf/internal/node"
)

// Stopper ends a process before one of the calls that an engine makes: of the kernel, or of its journal. It counts them all, those
// that only read too.
type Stopper struct {
	At   int    // the call before which it ends, from 0; below 0: none
	Die  func() // does not return
	Made int    // calls so far
}

// Died is what a Stopper without Die panics with. A panic runs the functions that are deferred, as a death does not: what they do to
// the world goes through the Stopper, which has died already and panics again.
type Died struct{}

func (s *Stopper) step() {
	n := s.Made
	s.Made++
	if s.At < 0 || n < s.At {
		return
	}
	if s.Die != nil {
		s.Die()
	}
	panic(Died{})
}

// Wrap puts an engine's kernel and journal behind the Stopper.
func (s *Stopper) Wrap(e *cni.Engine) {
	if e.Journal == nil {
		e.Journal = cni.Dir(e.Dir)
	}
	e.Journal = journal{s, e.Journal}
	e.Kernel = kernel{s, e.Kernel}
}

type journal struct {
	s  *Stopper
	in cni.Journal
}

func (j journal) Put(id string, r cni.Record) error { j.s.step(); return j.in.Put(id, r) }
func (j journal) Get(id string) (cni.Record, error) { j.s.step(); return j.in.Get(id) }
func (j journal) Delete(id string) error            { j.s.step(); return j.in.Delete(id) }
func (j journal) List() ([]string, error)           { j.s.step(); return j.in.List() }

type kernel struct {
	s  *Stopper
	in cni.Kernel
}

func (k kernel) Open(path string) (cni.Net, error) {
	k.s.step()
	n, err := k.in.Open(path)
	if err != nil {
		return nil, err
	}
	return net{n, k.s}, nil
}
func (k kernel) Namespaces() []string                  { k.s.step(); return k.in.Namespaces() }
func (k kernel) Device(id string) (link.Device, error) { k.s.step(); return k.in.Device(id) }
func (k kernel) VFs(pf string) ([]string, error)       { k.s.step(); return k.in.VFs(pf) }
func (k kernel) Place(id string) (node.Place, error)   { k.s.step(); return k.in.Place(id) }
func (k kernel) Rebind(vf node.PCIAddress) error       { k.s.step(); return k.in.Rebind(vf) }
func (k kernel) Mode() string                          { k.s.step(); return k.in.Mode() }
func (k kernel) OfDevice(pci node.PCIAddress) []string { k.s.step(); return k.in.OfDevice(pci) }
func (k kernel) CharDevices(rdma string) []string      { k.s.step(); return k.in.CharDevices(rdma) }

// net passes on what needs no stop: who it is, and its end.
type net struct {
	cni.Net
	s *Stopper
}

func (n net) Link(q link.Query) (link.Link, error)  { n.s.step(); return n.Net.Link(q) }
func (n net) Links() ([]link.Link, error)           { n.s.step(); return n.Net.Links() }
func (n net) Change(index int, c link.Change) error { n.s.step(); return n.Net.Change(index, c) }
func (n net) Announce(name string) error            { n.s.step(); return n.Net.Announce(name) }
func (n net) Configure(index int, ip link.IP) error { n.s.step(); return n.Net.Configure(index, ip) }
func (n net) Configured(index int) (link.IP, error) { n.s.step(); return n.Net.Configured(index) }
func (n net) Uplinks() ([]int, error)               { n.s.step(); return n.Net.Uplinks() }
func (n net) VF(pf, vf int) (link.VF, error)        { n.s.step(); return n.Net.VF(pf, vf) }
func (n net) SetGUID(pf, vf int, guid string) error { n.s.step(); return n.Net.SetGUID(pf, vf, guid) }
func (n net) RDMA() ([]string, error)               { n.s.step(); return n.Net.RDMA() }
func (n net) MoveRDMA(device string, to int) error  { n.s.step(); return n.Net.MoveRDMA(device, to) }
func (n net) SetVF(pf, vf int, a link.Attr, to link.VF) error {
	n.s.step()
	return n.Net.SetVF(pf, vf, a, to)
}
