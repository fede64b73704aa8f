package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// inMachine is the machine that this test runs in.
func inMachine(t *testing.T) Described {
	t.Helper()
	if os.Getenv("KERF_LAB") != "1" {
		t.Skip("not in a machine of the lab; make lab runs it there")
	}
	data, err := os.ReadFile(machineFile)
	if err != nil {
		t.Fatal(err)
	}
	var m Described
	if err := json.Unmarshal(data, &m); err != nil {
		t.Fatal(err)
	}
	return m
}

const pciDevices = "/sys/bus/pci/devices"

func sysfs(t *testing.T, parts ...string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(parts...))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}

// output runs a program that must succeed.
func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// TestLabSelfDevices: each device is where the description says, on its NUMA node, and is what it stands for.
func TestLabSelfDevices(t *testing.T) {
	m := inMachine(t)
	if m.Name != os.Getenv("KERF_LAB_HARDWARE") {
		t.Errorf("%s describes the machine %q, KERF_LAB_HARDWARE is %q", machineFile, m.Name, os.Getenv("KERF_LAB_HARDWARE"))
	}
	ids := map[Kind]string{GPU: "0x1234 0x11e8", NIC: "0x8086 0x10c9", Disk: "0x1b36 0x0010"}
	for _, d := range m.Devices {
		for _, address := range append(d.VFs, d.Address) {
			dir := filepath.Join(pciDevices, address)
			path, err := filepath.EvalSymlinks(dir)
			if err != nil {
				t.Errorf("%s: %v", d.Name, err)
				continue
			}
			// A VF is beside its PF, below the same port.
			if want := filepath.Join("/sys/devices", filepath.Dir(d.Path), address); path != want {
				t.Errorf("%s (%s) is at %s, want %s", d.Name, address, path, want)
			}
			if got := sysfs(t, dir, "numa_node"); got != strconv.Itoa(d.Node) {
				t.Errorf("%s (%s) is on NUMA node %s, want %d", d.Name, address, got, d.Node)
			}
		}
		dir := filepath.Join(pciDevices, d.Address)
		if got := sysfs(t, dir, "vendor") + " " + sysfs(t, dir, "device"); got != ids[d.Kind] {
			t.Errorf("%s is a %s, want %s", d.Name, got, ids[d.Kind])
		}
	}
	for _, node := range []string{"node0", "node1"} {
		if got := sysfs(t, "/sys/devices/system/node", node, "cpulist"); len(got) != 1 {
			t.Errorf("%s has the CPUs %q, want one", node, got)
		}
	}
}

// links are the names of network devices on a PCI function.
func links(t *testing.T, address string) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(pciDevices, address, "net"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// TestLabSelfSRIOV: VFs are made and unmade, each with a link of its own.
func TestLabSelfSRIOV(t *testing.T) {
	for _, d := range inMachine(t).Devices {
		if d.Kind != NIC {
			continue
		}
		t.Run(d.Name, func(t *testing.T) {
			file := filepath.Join(pciDevices, d.Address, "sriov_numvfs")
			for _, n := range []int{0, len(d.VFs)} {
				if err := os.WriteFile(file, []byte(strconv.Itoa(n)), 0); err != nil {
					t.Fatal(err)
				}
			}
			seen := links(t, d.Address)
			for _, vf := range d.VFs {
				seen = append(seen, links(t, vf)...)
			}
			slices.Sort(seen)
			if got := slices.Compact(slices.Clone(seen)); len(seen) != len(d.VFs)+1 || len(got) != len(seen) {
				t.Errorf("%s and its %d VFs have the links %q, want one each", d.Name, len(d.VFs), seen)
			}
		})
	}
}

// TestLabSelfRDMA: software RDMA works on the machine's NICs, and the system is in shared mode.
func TestLabSelfRDMA(t *testing.T) {
	m := inMachine(t)
	i := slices.IndexFunc(m.Devices, func(d Place) bool { return d.Kind == NIC })
	if i < 0 {
		return // a machine without NICs
	}
	link := links(t, m.Devices[i].Address)[0]
	output(t, "rdma", "link", "add", "lab0", "type", "rxe", "netdev", link)
	defer output(t, "rdma", "link", "delete", "lab0")
	if got := sysfs(t, "/sys/class/infiniband/lab0/ports/1/link_layer"); got != "Ethernet" {
		t.Errorf("lab0 is on %q, want Ethernet", got)
	}
	if uverbs, err := filepath.Glob("/dev/infiniband/uverbs*"); err != nil || len(uverbs) != 1 {
		t.Errorf("%q, %v; want one uverbs device", uverbs, err)
	}
	if got := output(t, "rdma", "system"); !strings.HasPrefix(got, "netns shared") {
		t.Errorf("rdma system says %q, want netns shared", got)
	}
}

// TestLabSelfStorage: thin volumes and project quotas work on the machine's disks.
func TestLabSelfStorage(t *testing.T) {
	m := inMachine(t)
	var disks []string
	for _, d := range m.Devices {
		if d.Kind != Disk {
			continue
		}
		found, err := filepath.Glob(filepath.Join(pciDevices, d.Address, "nvme/nvme*/nvme*n1"))
		if err != nil || len(found) != 1 {
			t.Fatalf("%s has the namespaces %q, %v; want one", d.Name, found, err)
		}
		if serial := sysfs(t, filepath.Dir(found[0]), "serial"); serial != d.Name {
			t.Errorf("the disk at %s calls itself %s, want %s", d.Address, serial, d.Name)
		}
		// With multipath, as the kernel has it, nvme0c1n1 is a path by controller 1 to the disk nvme0n1.
		disks = append(disks, "/dev/"+regexp.MustCompile(`c\d+n`).ReplaceAllString(filepath.Base(found[0]), "n"))
	}
	if len(disks) == 0 {
		return // a machine without disks
	}
	output(t, "lvm", append([]string{"vgcreate", "labself"}, disks...)...)
	defer output(t, "lvm", "vgremove", "-f", "labself")
	output(t, "lvm", "lvcreate", "-L", "1G", "-T", "labself/pool")
	output(t, "lvm", "lvcreate", "-V", "2G", "-T", "labself/pool", "-n", "thin")
	output(t, "mkfs.xfs", "-q", "/dev/labself/thin")
	dir := t.TempDir()
	output(t, "mount", "-o", "prjquota", "/dev/labself/thin", dir)
	defer output(t, "umount", dir)
	project := filepath.Join(dir, "project")
	if err := os.Mkdir(project, 0o755); err != nil {
		t.Fatal(err)
	}
	output(t, "xfs_quota", "-x", "-c", "project -s -p "+project+" 7", "-c", "limit -p bhard=1m 7", dir)
	err := os.WriteFile(filepath.Join(project, "big"), make([]byte, 2<<20), 0o600)
	if err == nil || !strings.Contains(err.Error(), "no space left") {
		t.Errorf("2 MiB in a project of 1 MiB: %v, want no space left", err)
	}
}

// TestLabSelfTools: iproute2's programs are found before busybox's of the same name.
func TestLabSelfTools(t *testing.T) {
	inMachine(t)
	if got := output(t, "ip", "-V"); !strings.Contains(got, "iproute2") {
		t.Errorf("ip says %q, want iproute2", got)
	}
	if got := output(t, "sh", "-c", "ip -V"); !strings.Contains(got, "iproute2") {
		t.Errorf("ip in a shell says %q, want iproute2", got)
	}
	var links []struct {
		Name string `json:"ifname"`
	}
	if err := json.Unmarshal([]byte(output(t, "ip", "-j", "link")), &links); err != nil || len(links) == 0 || links[0].Name != "lo" {
		t.Errorf("ip -j link gives %s", fmt.Sprint(links, err))
	}
}
