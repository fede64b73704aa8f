package link_test

import (
	"errors"
	"os"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/kerf-gpu/kerf/cni/call"
	"github.com/kerf-gpu/kerf/cni/link"
)

// TestLabRxe finds a software RDMA device, its files and the mode, and meets what the kernel refuses: rxe cannot be moved on 6.12, so
// the move itself is shown on no machine yet.
func TestLabRxe(t *testing.T) {
	if os.Getenv("KERF_LAB") != "1" {
		t.Skip("needs rxe: run it by make lab")
	}
	host := link.Host{}
	n, err := host.Open("")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = n.Close() }()
	pfs, err := n.Links()
	if err != nil {
		t.Fatal(err)
	}
	on := slices.IndexFunc(pfs, func(l link.Link) bool { return l.Kind == "" && l.Device != "" && l.Master == 0 })
	if on < 0 {
		t.Fatalf("no hardware among %+v", pfs)
	}
	if err := netlink.RdmaLinkAdd("rxe0", "rxe", pfs[on].Name); err != nil {
		t.Fatal("add rxe0: ", err)
	}
	defer func() { _ = netlink.RdmaLinkDel("rxe0") }()
	if mode := host.Mode(); mode != link.Shared {
		t.Errorf("mode %q, want %q", mode, link.Shared)
	}
	if devices, err := n.RDMA(); err != nil || !slices.Contains(devices, "rxe0") {
		t.Errorf("devices %v, %v; want rxe0 among them", devices, err)
	}
	if files := host.CharDevices("rxe0"); !slices.ContainsFunc(files, func(f string) bool { return len(f) > 0 }) {
		t.Errorf("files %v, want uverbs", files)
	}
	d, err := host.Device(pfs[on].Name)
	if err != nil || len(host.OfDevice(d.PCI)) != 0 {
		t.Errorf("%+v has %v (%v): rxe has no PCI parent", d, host.OfDevice(d.PCI), err)
	}
	pod, err := call.NewNetns(t.TempDir(), "pod")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = call.EndNetns(pod) }()
	to, err := host.Open(pod)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = to.Close() }()
	if err := n.MoveRDMA("rxe0", to.Fd()); err == nil {
		t.Error("moved in shared mode")
	}
	if err := netlink.RdmaSystemSetNetnsMode(link.Exclusive); !errors.Is(err, unix.EBUSY) {
		t.Errorf("exclusive beside another namespace: %v, want EBUSY", err)
	}
	if err := n.MoveRDMA("none0", to.Fd()); err == nil {
		t.Error("moved a device that is not there")
	}
}
