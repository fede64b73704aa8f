package nic

import (
	"fmt"
	"strings"
	"testing"

	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/kerf-gpu/kerf/internal/node"
)

const testNode = "node-1"

func address(t testing.TB, text string) node.PCIAddress {
	t.Helper()
	a, err := node.ParsePCIAddress(text)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// testDevices are a NIC and two VFs of another.
func testDevices(t testing.TB) []Device {
	path := node.ParsePCIePath("/sys/devices/pci0000:20/0000:20:00.0/0000:24:00.0")
	whole := Device{PCI: address(t, "0000:18:00.0"), NUMA: -1, LinkType: "infiniband", Driver: "mlx5_core", RDMA: true, Rail: -1}
	vf := Device{PCI: address(t, "0000:24:10.0"), Path: path, NUMA: 0, PF: address(t, "0000:24:00.0"), PFName: "ens1", LinkType: "ethernet", Driver: "igbvf", Rail: 2}
	other := vf
	other.PCI, other.VF, other.Fault = address(t, "0000:24:10.4"), 1, "its PF would not take back vlan"
	return []Device{vf, whole, other}
}

func claimOf(results ...resourceapi.DeviceRequestAllocationResult) *resourceapi.ResourceClaim {
	return &resourceapi.ResourceClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "claim", UID: "uid"},
		Status:     resourceapi.ResourceClaimStatus{Allocation: &resourceapi.AllocationResult{Devices: resourceapi.DeviceAllocationResult{Results: results}}},
	}
}

func result(request, device string) resourceapi.DeviceRequestAllocationResult {
	return resourceapi.DeviceRequestAllocationResult{Request: request, Driver: DriverName, Pool: testNode, Device: device}
}

func opaque(source resourceapi.AllocationConfigSource, members string, requests ...string) resourceapi.DeviceAllocationConfiguration {
	return resourceapi.DeviceAllocationConfiguration{Source: source, Requests: requests, DeviceConfiguration: resourceapi.DeviceConfiguration{
		Opaque: &resourceapi.OpaqueDeviceConfiguration{Driver: DriverName, Parameters: runtime.RawExtension{Raw: configText(members)}}}}
}

const (
	fromTheClass = resourceapi.AllocationConfigSourceClass
	fromTheClaim = resourceapi.AllocationConfigSourceClaim
	vf0          = "vf-0000-24-10-0"
	vf1          = "vf-0000-24-10-4"
	wholeNIC     = "nic-0000-18-00-0"
)

func TestAllocations(t *testing.T) {
	foreign := result("gpu", "gpu-1")
	foreign.Driver = "gpu.kerf.dev"
	elsewhere := result("n", vf0)
	elsewhere.Pool = "node-2"
	watching, yes := result("n", vf0), true
	watching.AdminAccess = &yes
	for name, tt := range map[string]struct {
		results []resourceapi.DeviceRequestAllocationResult
		configs []resourceapi.DeviceAllocationConfiguration
		want    string // the interfaces, or a part of the error
	}{
		"nothing of ours":      {results: []resourceapi.DeviceRequestAllocationResult{foreign}},
		"two":                  {results: []resourceapi.DeviceRequestAllocationResult{foreign, result("nic-0", vf0), result("nic-1/near", wholeNIC)}, want: "nic-0 nic-1"},
		"another node":         {results: []resourceapi.DeviceRequestAllocationResult{elsewhere}, want: "is in pool node-2, and this is node node-1"},
		"gone":                 {results: []resourceapi.DeviceRequestAllocationResult{result("n", "vf-0000-99-00-0")}, want: "is not on this node (any more): 3 NICs"},
		"the same twice":       {results: []resourceapi.DeviceRequestAllocationResult{result("a", vf0), result("b", vf0)}, want: "is allocated to a too"},
		"names that end alike": {results: []resourceapi.DeviceRequestAllocationResult{result("network-of-the-rail-0", vf0), result("network-of-the-rail-1", vf1)}, want: "is the name for network-of-the-rail-0 too"},
		"a bad default":        {results: []resourceapi.DeviceRequestAllocationResult{result("eth0", vf0)}, want: "call the request otherwise"},
		"configured":           {results: []resourceapi.DeviceRequestAllocationResult{result("n", vf0)}, configs: []resourceapi.DeviceAllocationConfiguration{opaque(fromTheClass, `,"vlan":100`), opaque(fromTheClaim, `,"interface":"rail0"`, "n")}, want: "rail0"},
		"for another request":  {results: []resourceapi.DeviceRequestAllocationResult{result("n", vf0)}, configs: []resourceapi.DeviceAllocationConfiguration{opaque(fromTheClaim, `,"interface":"rail0"`, "m")}, want: "n"},
		"beyond a claim":       {results: []resourceapi.DeviceRequestAllocationResult{result("n", vf0)}, configs: []resourceapi.DeviceAllocationConfiguration{opaque(fromTheClaim, `,"trust":true`)}, want: "config from the claim: trust true: it reaches beyond the pod"},
		"the class is wrong":   {results: []resourceapi.DeviceRequestAllocationResult{result("n", vf0)}, configs: []resourceapi.DeviceAllocationConfiguration{opaque(fromTheClass, `,"vlan":5000`)}, want: "config from the DeviceClass: NicConfig: vlan 5000"},
		"no RDMA":              {results: []resourceapi.DeviceRequestAllocationResult{result("n", vf0)}, configs: []resourceapi.DeviceAllocationConfiguration{opaque(fromTheClaim, `,"rdma":"require"`)}, want: vf0 + " has no RDMA device"},
		"VLAN of a whole NIC":  {results: []resourceapi.DeviceRequestAllocationResult{result("n", wholeNIC)}, configs: []resourceapi.DeviceAllocationConfiguration{opaque(fromTheClass, `,"vlan":5`)}, want: "is a whole NIC"},
		"rate of a whole NIC":  {results: []resourceapi.DeviceRequestAllocationResult{result("n", wholeNIC)}, configs: []resourceapi.DeviceAllocationConfiguration{opaque(fromTheClaim, `,"maxTxRate":5`)}, want: "rates are limits of a VF"},
		"trust of a whole NIC": {results: []resourceapi.DeviceRequestAllocationResult{result("n", wholeNIC)}, configs: []resourceapi.DeviceAllocationConfiguration{opaque(fromTheClass, `,"trust":true`)}, want: "switches of a VF"},
		"MAC of InfiniBand":    {results: []resourceapi.DeviceRequestAllocationResult{result("n", wholeNIC)}, configs: []resourceapi.DeviceAllocationConfiguration{opaque(fromTheClaim, `,"mac":"02:00:00:00:00:01"`)}, want: "which has a GUID"},
		"somebody's MAC":       {results: []resourceapi.DeviceRequestAllocationResult{result("n", vf0)}, configs: []resourceapi.DeviceAllocationConfiguration{opaque(fromTheClaim, `,"mac":"00:00:00:00:00:01"`)}, want: "it may be some machine's"},
		"a MAC by the class":   {results: []resourceapi.DeviceRequestAllocationResult{result("n", vf0)}, configs: []resourceapi.DeviceAllocationConfiguration{opaque(fromTheClass, `,"mac":"00:00:00:00:00:01"`)}, want: "n"},
		"admin access":         {results: []resourceapi.DeviceRequestAllocationResult{watching}, want: "cannot be watched"},
		"GUID of Ethernet":     {results: []resourceapi.DeviceRequestAllocationResult{result("n", vf0)}, configs: []resourceapi.DeviceAllocationConfiguration{opaque(fromTheClass, `,"guid":"02:00:00:00:00:00:00:01"`)}, want: "is no InfiniBand device"},
	} {
		claim := claimOf(tt.results...)
		claim.Status.Allocation.Devices.Config = tt.configs
		all, err := allocations(claim, testNode, testDevices(t))
		var got []string
		for _, a := range all {
			got = append(got, a.Interface)
		}
		if err != nil {
			got = []string{err.Error()}
		}
		if text := strings.Join(got, " "); err == nil && text != tt.want || err != nil && (tt.want == "" || !strings.Contains(text, tt.want)) {
			t.Errorf("%s: %q, want %q", name, text, tt.want)
		}
	}
	if _, err := allocations(&resourceapi.ResourceClaim{}, testNode, nil); err == nil || !strings.Contains(err.Error(), "not allocated") {
		t.Error(err)
	}
}

func TestPod(t *testing.T) {
	consumer := func(name string) resourceapi.ResourceClaimConsumerReference {
		return resourceapi.ResourceClaimConsumerReference{Resource: "pods", Name: name, UID: types.UID("uid-" + name)}
	}
	for want, consumers := range map[string][]resourceapi.ResourceClaimConsumerReference{
		"uid-a":                           {consumer("a")},
		"shared by the pods a and b":      {consumer("a"), consumer("b")},
		"reserved for no pod":             nil,
		"reserved for virtualmachines vm": {{APIGroup: "kubevirt.io", Resource: "virtualmachines", Name: "vm", UID: "x"}},
	} {
		claim := claimOf()
		claim.Status.ReservedFor = consumers
		uid, err := pod(claim)
		if got := uid + fmt.Sprint(err); !strings.Contains(got, want) {
			t.Errorf("%v: %q, %v; want %q", consumers, uid, err, want)
		}
	}
}

func TestSlices(t *testing.T) {
	pool := Slices(testNode, testDevices(t)).Pools[testNode]
	devices := pool.Slices[0].Devices
	if len(devices) != 3 || devices[0].Name != wholeNIC || devices[1].Name != vf0 || devices[2].Name != vf1 {
		t.Fatalf("%+v", devices)
	}
	for _, d := range devices {
		if problems := validation.IsDNS1123Label(d.Name); len(problems) > 0 {
			t.Errorf("%s: %v", d.Name, problems)
		}
	}
	have := func(i int, name resourceapi.QualifiedName) string {
		a, ok := devices[i].Attributes[name]
		switch {
		case !ok:
			return "none"
		case a.StringValue != nil:
			return *a.StringValue
		case a.IntValue != nil:
			return fmt.Sprint(*a.IntValue)
		}
		return fmt.Sprint(*a.BoolValue)
	}
	for _, tt := range []struct {
		device     int
		name, want string
	}{
		{0, "type", "pf"}, {0, "rdma", "true"}, {0, "kerf.dev/pcieRootPort", "none"}, {0, "resource.kubernetes.io/numaNode", "none"}, {0, "rail", "none"}, {0, "vf", "none"},
		{1, "type", "vf"}, {1, "kerf.dev/pcieRootPort", "0000:20:00.0"}, {1, "resource.kubernetes.io/pcieRoot", "pci0000:20"}, {1, "resource.kubernetes.io/pciBusID", "0000:24:10.0"},
		{1, "resource.kubernetes.io/numaNode", "0"}, {1, "rail", "2"}, {1, "vf", "0"}, {1, "pf", "ens1"}, {1, "pfPCIBusID", "0000:24:00.0"}, {2, "vf", "1"}, {1, "simulated", "false"},
	} {
		if got := have(tt.device, resourceapi.QualifiedName(tt.name)); got != tt.want {
			t.Errorf("device %d: %s is %s, want %s", tt.device, tt.name, got, tt.want)
		}
	}
	if len(devices[1].Taints) != 0 || len(devices[2].Taints) != 1 || devices[2].Taints[0].Value != "its-pf-would-not-take-back-vlan" {
		t.Errorf("taints %v, %v", devices[1].Taints, devices[2].Taints)
	}
	var many []Device
	for i := range 130 {
		many = append(many, Device{PCI: node.PCIAddress{Bus: uint8(i), Device: 1}, Rail: -1, NUMA: -1})
	}
	if n := len(Slices(testNode, many).Pools[testNode].Slices); n != 3 {
		t.Errorf("130 devices are in %d slices, want 3", n)
	}
	if n := len(Slices(testNode, nil).Pools[testNode].Slices); n != 1 {
		t.Errorf("none are in %d slices, want an empty one", n)
	}
}
