package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	podresources "k8s.io/kubelet/pkg/apis/podresources/v1"

	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/vgpu/ledger"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

func TestHeldByPod(t *testing.T) {
	entry := func(door, namespace, name string, uuid byte) ledger.Entry {
		return ledger.Entry{
			Holder: ledger.Holder{Door: door, Owner: ledger.Owner{Namespace: namespace, Name: name}},
			Grant:  share.Grant{Devices: []share.Device{{UUID: node.UUID{uuid}}}},
		}
	}
	entries := []ledger.Entry{
		entry(ledger.DoorDRA, "default", "a", 1), entry(ledger.DoorDRA, "other", "a", 2),
		entry(ledger.DoorPlugin, "", "3-00,3-01", 3), entry(ledger.DoorPlugin, "", "4-00", 4), entry(ledger.DoorRun, "default", "a", 5),
	}
	list := &podresources.ListPodResourcesResponse{PodResources: []*podresources.PodResources{
		{Namespace: "default", Name: "claims", Containers: []*podresources.ContainerResources{{DynamicResources: []*podresources.DynamicResource{{ClaimNamespace: "default", ClaimName: "a"}}}}},
		{Namespace: "default", Name: "slices", Containers: []*podresources.ContainerResources{{Devices: []*podresources.ContainerDevices{{DeviceIds: []string{"3-01"}}}}}},
	}}
	for pod, want := range map[string][]node.UUID{"default/claims": {{1}}, "default/slices": {{3}}, "default/none": nil, "other/claims": nil} {
		if diff := cmp.Diff(want, gpusOf(list, pod, entries)); diff != "" {
			t.Errorf("%s: %s", pod, diff)
		}
	}
}

func TestNICsOfConfig(t *testing.T) {
	pf := node.PCIAddress{Bus: 0x24}
	for want, nics := range map[string][]NICConfig{
		"":                {{pf, 4}, {node.PCIAddress{Bus: 0x25}, 0}},
		"pf is missing":   {{NumVFs: 3}},
		"less than none":  {{pf, -1}},
		"is listed twice": {{pf, 1}, {pf, 2}},
	} {
		err := validateNICs(nics)
		if (want == "") != (err == nil) {
			t.Errorf("%+v: %v, want %q", nics, err, want)
		} else if err != nil {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%v, want %q", err, want)
			}
		}
	}
}

func TestNICsAreReadFromYAML(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kerfd.yaml")
	if err := os.WriteFile(path, []byte("nics:\n- pf: 0000:24:00.0\n  numVFs: 7\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := readConfig(path)
	if diff := cmp.Diff([]NICConfig{{node.PCIAddress{Bus: 0x24}, 7}}, c.NICs); err != nil || diff != "" {
		t.Error(err, diff)
	}
}
