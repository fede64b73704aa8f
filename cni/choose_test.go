package cni_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/kerf-gpu/kerf/cni"
	"github.com/kerf-gpu/kerf/internal/node"
)

func nic(path string, numa int) node.NIC {
	p := node.ParsePCIePath(path)
	return node.NIC{PCI: p.Chain[len(p.Chain)-1], Path: p, NUMA: numa}
}

func TestNearest(t *testing.T) {
	const gpu = "/sys/devices/pci0000:20/0000:20:00.0/0000:21:00.0/0000:22:00.0/0000:23:00.0"
	gpus := []cni.GPU{{UUID: "GPU-1", Path: node.ParsePCIePath(gpu), NUMA: 0}}
	nics := []node.NIC{
		nic("/sys/devices/pci0000:80/0000:80:00.0/0000:84:00.0", 1),
		nic("/sys/devices/pci0000:20/0000:20:01.0/0000:30:00.0", 0),
		nic("/sys/devices/pci0000:20/0000:20:00.0/0000:21:00.0/0000:22:01.0/0000:24:10.0", 0),
	}
	for atLeast, want := range map[string][]string{
		"": {"0000:24:10.0", "0000:30:00.0", "0000:84:00.0"}, "PIX": {"0000:24:10.0"}, "PHB": {"0000:24:10.0", "0000:30:00.0"},
	} {
		if got, err := cni.Nearest(nics, gpus, atLeast); err != nil || !slices.Equal(got, want) {
			t.Errorf("at least %q: %v, %v; want %v", atLeast, got, err, want)
		}
	}
	_, err := cni.Nearest(nics[:2], gpus, "PXB")
	if cni.CodeOf(err) != cni.CodeConfig || !strings.Contains(err.Error(), "0000:30:00.0 is PHB, 0000:84:00.0 is SYS") {
		t.Errorf("%v; want code 7 and what there is", err)
	}
}
