package topo_test

import (
	"encoding/json"
	"os"
	"testing"

	"github.com/kerf-gpu/kerf/cni/topo"
	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/internal/sysfs"
)

// labMachine is what the QEMU machine says of itself.
type labMachine struct {
	Devices []struct {
		Name, Kind, Address string
		Node                int
		VFs                 []string
	}
	Classes []struct{ A, B, Class string }
}

func (m labMachine) read(t *testing.T, host sysfs.Host) map[string]node.Place {
	t.Helper()
	places := map[string]node.Place{}
	for _, d := range m.Devices {
		at, err := node.ParsePCIAddress(d.Address)
		must(t, err)
		places[d.Name], err = host.Place(at)
		must(t, err)
		if got := places[d.Name]; got.NUMA != d.Node || got.Path.Device() != at {
			t.Errorf("%s at %s: NUMA node %d, path %s; want node %d", d.Name, d.Address, got.NUMA, got.Path, d.Node)
		}
	}
	return places
}

// TestLabClasses: every class of the machine's list, by the paths that its kernel shows, and of each VF as of its PF.
func TestLabClasses(t *testing.T) {
	if os.Getenv("KERF_LAB") != "1" {
		t.Skip("KERF_LAB is not 1: this is not the QEMU machine (make lab)")
	}
	text, err := os.ReadFile("/lab/machine.json")
	must(t, err)
	var m labMachine
	must(t, json.Unmarshal(text, &m))
	host := sysfs.New("/")
	places := m.read(t, host)
	if len(m.Classes) < 6 || len(places) < 5 {
		t.Fatalf("%d classes of %d devices: the machine's description is not the one that this test is for", len(m.Classes), len(places))
	}
	for _, pair := range m.Classes {
		a, b := places[pair.A], places[pair.B]
		class := node.Affinity(a, b)
		if class.String() != pair.Class {
			t.Errorf("%s and %s: %s, want %s (%s, %s)", pair.A, pair.B, class, pair.Class, a.Path, b.Path)
		}
		if same := a.Path.RootPort() == b.Path.RootPort(); same != class.PeerDMA() {
			t.Errorf("%s and %s: class %s, and one root port is %v", pair.A, pair.B, class, same)
		}
	}
	labVFs(t, host, m, places)
}

func labVFs(t *testing.T, host sysfs.Host, m labMachine, places map[string]node.Place) {
	nics, err := host.NICs()
	must(t, err)
	vfs := 0
	for _, d := range m.Devices {
		for _, address := range d.VFs {
			at, err := node.ParsePCIAddress(address)
			must(t, err)
			vf, err := host.Place(at)
			must(t, err)
			vfs++
			for other, place := range places {
				if other != d.Name && node.Affinity(vf, place) != node.Affinity(places[d.Name], place) {
					t.Errorf("VF %s of %s is %s of %s, its PF is not", address, d.Name, node.Affinity(vf, place), other)
				}
			}
		}
	}
	listed := 0
	for _, nic := range nics {
		listed += len(nic.VFs)
	}
	if vfs == 0 || listed != vfs {
		t.Errorf("%d VFs in the description, %d below the PFs", vfs, listed)
	}
	for _, d := range m.Devices {
		if d.Kind != "gpu" {
			continue
		}
		place := places[d.Name]
		nearest := topo.Nearest([]node.GPU{{Path: place.Path, NUMA: place.NUMA}}, nics)
		if len(nearest) != len(nics) {
			t.Errorf("%s: %d of %d NICs in order", d.Name, len(nearest), len(nics))
			continue
		}
		t.Logf("%s: nearest %s, %s; %s on the way, hops %+v", d.Name, nics[nearest[0].NIC].PCI, nearest[0].Class, topo.Rate(place.Path), place.Path.Hops)
	}
}
