package arbiter

import (
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/vgpu/region"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

// leaseholder is a process that speaks the shim's part of leases: this test's own, attached to a share.
type leaseholder struct {
	t    *testing.T
	gate *uint32
	conn *net.UnixConn
}

func (r *rig) leaseholder(id string) *leaseholder {
	r.t.Helper()
	r.server.mu.Lock()
	live := r.server.shares[id]
	r.server.mu.Unlock()
	// The server maps the page too, in this process: that mapping stands for the session's.
	usage := uintptr(unsafe.Pointer(live.usage.Page))
	dir := Directory(filepath.Join(r.dir, "shares"), id)
	if w := hello(dir, region.Version, usage); w.Status != region.WelcomeOK {
		r.t.Fatalf("attach: %+v", w)
	}
	return &leaseholder{r.t, &live.policy.Page.Gate, r.leaseConn(dir, usage)}
}

func (r *rig) leaseConn(dir string, usage uintptr) *net.UnixConn {
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: Socket(dir), Net: "unixpacket"})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = conn.Close() })
	h := region.Hello{Magic: region.Magic, Version: region.Version, Kind: region.HelloLease, Usage: uint64(usage)}
	if _, err := conn.Write(unsafe.Slice((*byte)(unsafe.Pointer(&h)), unsafe.Sizeof(h))); err != nil {
		r.t.Fatal(err)
	}
	var w region.Welcome
	if _, err := conn.Read(unsafe.Slice((*byte)(unsafe.Pointer(&w)), unsafe.Sizeof(w))); err != nil || w.Status != region.WelcomeOK {
		r.t.Fatalf("connection for leases: %v %+v", err, w)
	}
	return conn
}

func (h *leaseholder) say(m region.Lease) {
	if _, err := h.conn.Write(m.Bytes()); err != nil {
		h.t.Fatal(err)
	}
}

// next reads one message.
func (h *leaseholder) next() region.Lease {
	h.t.Helper()
	buffer := make([]byte, 64)
	_ = h.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	n, err := h.conn.Read(buffer)
	m, ok := region.ParseLease(buffer[:n])
	if err != nil || !ok {
		h.t.Fatalf("waiting for a message: %v", err)
	}
	return m
}

// await reads until a message of the kind comes.
func (h *leaseholder) await(kind uint32) region.Lease {
	h.t.Helper()
	buffer := make([]byte, 64)
	_ = h.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	for {
		n, err := h.conn.Read(buffer)
		if err != nil {
			h.t.Fatalf("waiting for message %d: %v", kind, err)
		}
		if m, ok := region.ParseLease(buffer[:n]); ok && m.Kind == kind {
			return m
		}
	}
}

func (h *leaseholder) drain() {
	h.t.Helper()
	m := h.await(region.LeaseDrain)
	if got := atomic.LoadUint32(h.gate); got != region.GateShut {
		h.t.Errorf("asked to drain with the gate at %d", got)
	}
	h.say(region.Lease{Kind: region.LeaseDrained, Lease: m.Lease, At: uint64(monotonic())})
}

func (h *leaseholder) opens(want uint32) {
	h.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); atomic.LoadUint32(h.gate) != want; {
		if time.Now().After(deadline) {
			h.t.Fatalf("the gate is at %d, want %d", atomic.LoadUint32(h.gate), want)
		}
		<-time.After(time.Millisecond)
	}
}

func leasedRig(t *testing.T) *rig {
	t.Helper()
	dir, err := os.MkdirTemp("", "kerf")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	r := &rig{t: t, dir: dir, nvml: &fakeNVML{used: make(map[int]node.Bytes)}, events: make(chan Event, 1000), leases: true}
	r.start(nil)
	t.Cleanup(func() { r.stop() })
	return r
}

func leasedSpec(id string, cores node.Percent) Spec {
	return Spec{ID: id, GID: os.Getgid(), Grant: share.Grant{Class: share.Guaranteed, Devices: []share.Device{{UUID: testGPU, Memory: node.GiB, Cores: cores}}}}
}

func TestLeasesTakeTurns(t *testing.T) {
	r := leasedRig(t)
	for _, id := range []string{"a", "b"} {
		if err := r.server.Add(leasedSpec(id, 50)); err != nil {
			t.Fatal(err)
		}
	}
	a, b := r.leaseholder("a"), r.leaseholder("b")
	if got := atomic.LoadUint32(a.gate); got != region.GateOpen {
		t.Errorf("the gate of who was alone is at %d", got)
	}
	b.say(region.Lease{Kind: region.LeaseBegan})
	a.drain() // it has said nothing of work, so nothing is lost by making way
	b.opens(region.GateOpen)
	a.say(region.Lease{Kind: region.LeaseBegan})
	b.drain()
	a.opens(region.GateShared)
	if s := r.server.State(); s[1].Lease == nil || s[1].Lease.Lease != "waits" && s[1].Lease.Lease != "runs" {
		t.Errorf("who waits is shown as %+v", s[1].Lease)
	}
	_ = a.conn.Close() // as a process's death does
	b.opens(region.GateOpen)
	if err := r.server.Change("b", leasedSpec("b", 70).Grant); err != nil {
		t.Error(err)
	}
	if got := r.server.State()[1].Devices[0].Cores; got != 70 {
		t.Errorf("cores are %s after the change", got)
	}
}

// A kerfd with leases finds what one before it left, and one without leases opens every gate.
func TestLeasesAcrossRestarts(t *testing.T) {
	r := leasedRig(t)
	specs := []Spec{leasedSpec("a", 50), leasedSpec("b", 50)}
	for _, spec := range specs {
		if err := r.server.Add(spec); err != nil {
			t.Fatal(err)
		}
	}
	b := r.leaseholder("b")
	r.stop()
	buffer := make([]byte, 64)
	_ = b.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	if n, err := b.conn.Read(buffer); n != 0 || err == nil {
		t.Errorf("the connection outlives kerfd: %d bytes, %v", n, err)
	}
	r.leases = false
	r.start(specs)
	r.server.mu.Lock()
	defer r.server.mu.Unlock()
	for id, live := range r.server.shares {
		if p := live.policy.Page; p.Gate != region.GateOpen || p.Flags&region.FlagLeases != 0 {
			t.Errorf("share %s: gate %d, flags %#x without leases", id, p.Gate, p.Flags)
		}
	}
}

// A share of tier mps has no lease: its gate is open whoever else there is, and its shim is told to be a client of MPS.
func TestLessorLeavesMPSAlone(t *testing.T) {
	r := leasedRig(t)
	spec := leasedSpec("b", 50)
	spec.Grant.Devices[0].Tier = share.TierMPS
	for _, spec := range []Spec{leasedSpec("a", 50), spec} {
		if err := r.server.Add(spec); err != nil {
			t.Fatal(err)
		}
	}
	r.server.mu.Lock()
	page := r.server.shares["b"].policy.Page
	r.server.mu.Unlock()
	if gate, flags := atomic.LoadUint32(&page.Gate), atomic.LoadUint32(&page.Flags); gate != region.GateOpen || flags&(region.FlagMPS|region.FlagLeases) != region.FlagMPS {
		t.Errorf("gate %d, flags %#x", gate, flags)
	}
	for _, s := range r.server.State() {
		if mps := s.ID == "b"; (s.Lease == nil) != mps || (s.Tier == share.TierMPS) != mps {
			t.Errorf("%+v", s)
		}
	}
}
