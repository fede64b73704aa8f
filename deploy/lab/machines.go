package main

import (
	"fmt"
	"strings"
)

// Modules that others find by what they do, not by name, come first: libcrc32c (xfs, thin pools) and rdma_rxe ask the
// crypto layer for an algorithm, and fail to load where it has none.

// hardware is the list of machines.
func hardware() []Machine {
	return []Machine{cni(), storage()}
}

// cni has GPUs and SR-IOV NICs at every distance: behind one switch, behind another root port, on another socket.
func cni() Machine {
	return Machine{
		Name: "cni",
		Nodes: []Node{
			{MiB: 1024, Bus: 0x20, Ports: []Port{
				{Switch: []Device{{Name: "gpu0", Kind: GPU}, {Name: "nic0", Kind: NIC, VFs: igbVFs}}},
				{Device: &Device{Name: "gpu1", Kind: GPU}},
			}},
			{MiB: 1024, Bus: 0x80, Ports: []Port{
				{Switch: []Device{{Name: "gpu2", Kind: GPU}, {Name: "nic1", Kind: NIC, VFs: igbVFs}}},
			}},
		},
		Classes: []Pair{
			{"gpu0", "nic0", "PIX"}, {"gpu1", "nic0", "PHB"}, {"gpu2", "nic0", "SYS"},
			{"gpu0", "nic1", "SYS"}, {"gpu1", "nic1", "SYS"}, {"gpu2", "nic1", "PIX"},
		},
		Modules: []string{"igb", "igbvf", "crc32_generic", "ib_uverbs", "rdma_ucm", "rdma_rxe", "veth", "macvlan", "ipvlan", "dummy",
			"bridge", "8021q", "configfs", "vfio-pci", "aer_inject"},
		Tools: []string{"ip", "bridge", "rdma", "devlink", "lspci", "setpci", "nsenter", "unshare"},
	}
}

// storage has NVMe disks, for volume managers and quotas.
func storage() Machine {
	disk := func(i int) Port { return Port{Device: &Device{Name: fmt.Sprintf("disk%d", i), Kind: Disk, MiB: 4096}} }
	return Machine{
		Name: "storage",
		Nodes: []Node{
			{MiB: 1024, Bus: 0x20, Ports: []Port{disk(0), disk(1)}},
			{MiB: 1024, Bus: 0x80, Ports: []Port{disk(2), disk(3)}},
		},
		Modules: []string{"crc32c_generic", "nvme", "dm-mod", "dm-thin-pool", "dm-snapshot", "loop", "xfs", "quota_v2", "ext4", "configfs", "fuse", "erofs", "overlay"},
		Tools: []string{"lvm", "dmsetup", "thin_check", "mkfs.xfs", "xfs_quota", "xfs_growfs", "xfs_repair", "mkfs.ext4", "resize2fs", "e2fsck",
			"lsblk", "blkid", "losetup", "mount", "umount", "findmnt", "ip"},
	}
}

func hardwareNames() (names []string) {
	for _, m := range hardware() {
		names = append(names, m.Name)
	}
	return names
}

func machine(name string) (Machine, error) {
	for _, m := range hardware() {
		if m.Name == name {
			return m, nil
		}
	}
	return Machine{}, usageError{fmt.Errorf("hardware %q: no machine has this name; there are %s", name, strings.Join(hardwareNames(), ", "))}
}
