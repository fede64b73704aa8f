package sysfs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kerf-gpu/kerf/internal/node"
)

// machine writes files (path → text; a text that starts with -> is a symlink) below a root.
func machine(t *testing.T, files map[string]string) Host {
	t.Helper()
	root := t.TempDir()
	for path, content := range files {
		full := filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, ok := strings.CutPrefix(content, "->"); ok {
			err = os.Symlink(target, full)
		} else {
			err = os.WriteFile(full, []byte(content+"\n"), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return New(root)
}

func address(t *testing.T, s string) node.PCIAddress {
	t.Helper()
	a, err := node.ParsePCIAddress(s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// TestVM is a virtual machine: a NIC behind virtio, no links, the NUMA node known to a bridge only.
func TestVM(t *testing.T) {
	const nic = "sys/devices/pci0000:00/0000:00:1e.0/0000:01:01.0"
	h := machine(t, map[string]string{
		"sys/bus/pci/devices/0000:01:01.0":          "->../../../devices/pci0000:00/0000:00:1e.0/0000:01:01.0",
		"sys/bus/pci/devices/0000:00:1e.0":          "->../../../devices/pci0000:00/0000:00:1e.0",
		"sys/devices/pci0000:00/0000:00:1e.0/class": "0x060400",
		nic + "/class":                                  "0x020000",
		nic + "/vendor":                                 "0x1af4",
		nic + "/device":                                 "0x1000",
		nic + "/numa_node":                              "-1",
		nic + "/current_link_speed":                     "Unknown",
		nic + "/current_link_width":                     "0",
		nic + "/max_link_speed":                         "Unknown",
		nic + "/max_link_width":                         "255",
		nic + "/virtio0/net/eth0/type":                  "1",
		"sys/devices/pci0000:00/0000:00:1e.0/numa_node": "1",
	})
	nics, err := h.NICs()
	if err != nil {
		t.Fatal(err)
	}
	at := address(t, "0000:01:01.0")
	want := []node.NIC{{
		PCI: at, NUMA: 1, Vendor: 0x1af4, Device: 0x1000, NetDevs: []string{"eth0"}, LinkType: "ethernet",
		Path: node.PCIePath{Root: "pci0000:00", Chain: []node.PCIAddress{address(t, "0000:00:1e.0"), at}},
	}}
	if d := cmp.Diff(want, nics); d != "" {
		t.Errorf("NICs (-want +got):\n%s", d)
	}
}

// TestVFs: VFs are below their PF and in their own order, not in that of the names; one whose directory went away in
// the middle is left out.
func TestVFs(t *testing.T) {
	const root = "sys/devices/pci0000:20/"
	files := map[string]string{
		"sys/bus/pci/devices/0000:20:00.0":   "->../../../devices/pci0000:20/0000:20:00.0",
		root + "0000:20:00.0/class":          "0x020000",
		root + "0000:20:00.0/virtfn3":        "->../0000:20:09.9", // gone
		root + "0000:20:00.0/sriov_totalvfs": "16",
	}
	for name, vf := range map[string]string{"virtfn2": "0000:20:02.2", "virtfn10": "0000:20:03.2", "virtfn0": "0000:20:02.0"} {
		files["sys/bus/pci/devices/"+vf] = "->../../../devices/pci0000:20/" + vf
		files[root+"0000:20:00.0/"+name] = "->../" + vf
		files[root+vf+"/class"] = "0x020000"
		files[root+vf+"/physfn"] = "->../0000:20:00.0"
	}
	nics, err := machine(t, files).NICs()
	if err != nil || len(nics) != 1 {
		t.Fatalf("%+v, %v; want the PF alone", nics, err)
	}
	var got []int
	for _, vf := range nics[0].VFs {
		got = append(got, vf.Index)
	}
	if d := cmp.Diff([]int{0, 2, 10}, got); d != "" {
		t.Errorf("VFs (-want +got):\n%s", d)
	}
}

func TestEmptyMachine(t *testing.T) {
	h := machine(t, nil)
	nics, errNICs := h.NICs()
	disks, errDisks := h.Disks()
	numa, errNUMA := h.NUMA()
	if len(nics)+len(disks)+len(numa) != 0 || errNICs != nil || errDisks != nil || errNUMA != nil {
		t.Errorf("%v %v %v, %v %v %v", nics, disks, numa, errNICs, errDisks, errNUMA)
	}
	if _, err := h.Place(address(t, "0000:01:00.0")); err == nil || !strings.Contains(err.Error(), "find PCI device 0000:01:00.0") {
		t.Errorf("place of a device that is not there: %v", err)
	}
	gpus := []node.GPU{{NUMA: node.UnknownNUMA, PCI: address(t, "0000:01:00.0")}}
	h.Locate(gpus)
	if gpus[0].Path.Root != "" || gpus[0].NUMA != node.UnknownNUMA {
		t.Errorf("located %+v", gpus[0])
	}
}

func TestGeneration(t *testing.T) {
	for speed, want := range map[string]int{"2.5 GT/s PCIe": 1, "8.0 GT/s PCIe": 3, "64.0 GT/s PCIe": 6, "16 GT/s": 0, "Unknown": 0, "": 0} {
		if got := generation(speed); got != want {
			t.Errorf("generation(%q) = %d, want %d", speed, got, want)
		}
	}
}

func TestMemTotal(t *testing.T) {
	for text, want := range map[string]node.Bytes{
		"Node 0 MemTotal:       1024 kB\nNode 0 MemFree: 1 kB": node.MiB,
		"Node 0 MemTotal:": 0, "": 0, "Node 0 MemTotal: many kB": 0,
	} {
		if got := memTotal(text); got != want {
			t.Errorf("memTotal(%q) = %d, want %d", text, got, want)
		}
	}
}
