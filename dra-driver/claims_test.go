package dra

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/vgpu/ledger"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

// testNode is the node of the tests of claims: a card in each mode.
const testNode = "node-1"

const (
	vgpu      = "gpu-ca000d00"
	crowded   = "gpu-ca010d00" // over-committed
	alone     = "gpu-ca020d00" // exclusive
	migPart   = "gpu-ca030d00-mig-1g-10gb-me-2"
	vgpuUUID  = "GPU-ca000d00-0000-0000-0000-000000000000"
	secondary = "gpu-ca040d00" // vgpu too
)

func testCards() []Card {
	return made(5, func(c *Card) {
		switch c.Index {
		case 1:
			mode(share.ModeOvercommit, 200)(c)
		case 2:
			mode(share.ModeExclusive, 0)(c)
			c.Share.Memory -= 12345
		case 3:
			c.MIG.Profiles = a100MIG
			mode(share.ModeMIG, 0)(c)
		}
	})
}

// result is a result for request "r", with a share id unless it is empty.
func result(device, shareID string, consumed ...string) resourceapi.DeviceRequestAllocationResult {
	r := resourceapi.DeviceRequestAllocationResult{Request: "r", Driver: DriverName, Pool: testNode, Device: device}
	if shareID != "" {
		r.ShareID = (*types.UID)(&shareID)
	}
	for _, c := range consumed {
		name, amount, _ := strings.Cut(c, "=")
		if r.ConsumedCapacity == nil {
			r.ConsumedCapacity = map[resourceapi.QualifiedName]resource.Quantity{}
		}
		r.ConsumedCapacity[resourceapi.QualifiedName(name)] = resource.MustParse(amount)
	}
	return r
}

// with changes a result.
func with(r resourceapi.DeviceRequestAllocationResult, change func(*resourceapi.DeviceRequestAllocationResult)) resourceapi.DeviceRequestAllocationResult {
	change(&r)
	return r
}

func claimOf(uid string, results ...resourceapi.DeviceRequestAllocationResult) *resourceapi.ResourceClaim {
	return &resourceapi.ResourceClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "claim-" + uid, UID: types.UID(uid)},
		Status:     resourceapi.ResourceClaimStatus{Allocation: &resourceapi.AllocationResult{Devices: resourceapi.DeviceAllocationResult{Results: results}}},
	}
}

// opaque is a configuration of our driver: "class" or "claim", then members, then the requests it is for.
func opaque(source, members string, requests ...string) resourceapi.DeviceAllocationConfiguration {
	c := resourceapi.DeviceAllocationConfiguration{Source: resourceapi.AllocationConfigSourceClaim, Requests: requests}
	if source == "class" {
		c.Source = resourceapi.AllocationConfigSourceClass
	}
	c.Opaque = &resourceapi.OpaqueDeviceConfiguration{Driver: DriverName, Parameters: runtime.RawExtension{Raw: []byte(configText(members))}}
	return c
}

func TestAllocations(t *testing.T) {
	const gi = node.GiB
	onVGPU := func(r share.Request) share.Request { r.GPU = []string{vgpuUUID}; return r }
	asks := func(list ...any) (asks []ledger.Ask) {
		for i := 0; i < len(list); i += 2 {
			asks = append(asks, ledger.Ask{Key: list[i].(string), Request: list[i+1].(share.Request)})
		}
		return asks
	}
	card := func(i string) []string { return []string{"GPU-ca0" + i + "0d00-0000-0000-0000-000000000000"} }
	adminAccess := func(r *resourceapi.DeviceRequestAllocationResult) { yes := true; r.AdminAccess = &yes }
	named := func(name string) func(*resourceapi.DeviceRequestAllocationResult) {
		return func(r *resourceapi.DeviceRequestAllocationResult) { r.Request = name }
	}
	for _, tt := range []struct {
		name    string
		results []resourceapi.DeviceRequestAllocationResult
		configs []resourceapi.DeviceAllocationConfiguration
		want    []ledger.Ask
		err     string
	}{
		{"a slice", []resourceapi.DeviceRequestAllocationResult{result(vgpu, "s1", "memory=30Gi", "cores=40", "tenants=1")}, nil,
			asks("u-s1", onVGPU(share.Request{Memory: 30 * gi, Cores: 40, Tenants: 1})), ""},
		{"qualified names", []resourceapi.DeviceRequestAllocationResult{result(vgpu, "s1", "gpu.kerf.dev/memory=30Gi", "gpu.kerf.dev/cores=40")}, nil,
			asks("u-s1", onVGPU(share.Request{Memory: 30 * gi, Cores: 40, Tenants: 1})), ""},
		{"no share id and no amounts: an old scheduler gave the whole card", []resourceapi.DeviceRequestAllocationResult{result(vgpu, "")}, nil,
			asks("u-5da87a3a", onVGPU(share.Request{Memory: 80 * gi, Tenants: 1})), ""},
		{"all tenants", []resourceapi.DeviceRequestAllocationResult{result(vgpu, "s1", "memory=1Gi", "tenants=32")}, nil,
			asks("u-s1", onVGPU(share.Request{Memory: gi, Tenants: 32})), ""},
		{"other drivers' results are theirs", []resourceapi.DeviceRequestAllocationResult{with(result("nic-0", ""), func(r *resourceapi.DeviceRequestAllocationResult) { r.Driver = "nic.kerf.dev" })}, nil, nil, ""},
		{"the driver's name in capitals is another driver", []resourceapi.DeviceRequestAllocationResult{with(result(vgpu, ""), func(r *resourceapi.DeviceRequestAllocationResult) { r.Driver = "GPU.kerf.dev" })}, nil, nil, ""},
		{"nothing allocated", nil, nil, nil, ""},
		{"two shares of one card", []resourceapi.DeviceRequestAllocationResult{result(vgpu, "s1", "memory=1Gi"), with(result(vgpu, "s2", "memory=2Gi"), named("q"))}, nil,
			asks("u-s1", onVGPU(share.Request{Memory: gi, Tenants: 1}), "u-s2", onVGPU(share.Request{Memory: 2 * gi, Tenants: 1})), ""},
		{"two cards", []resourceapi.DeviceRequestAllocationResult{result(vgpu, "s1", "memory=1Gi"), result(secondary, "s2", "memory=1Gi")}, nil,
			asks("u-s1", onVGPU(share.Request{Memory: gi, Tenants: 1}), "u-s2", share.Request{GPU: card("4"), Memory: gi, Tenants: 1}), ""},
		{"over-committed", []resourceapi.DeviceRequestAllocationResult{result(crowded, "s1", "memory=80Gi")},
			[]resourceapi.DeviceAllocationConfiguration{opaque("claim", `"minResident":"4Gi"`)},
			asks("u-s1", share.Request{GPU: card("1"), Memory: 80 * gi, MinResident: 4 * gi, Tenants: 1}), ""},
		{"an exclusive card is had whole", []resourceapi.DeviceRequestAllocationResult{result(alone, "")}, nil,
			asks("u-3eadb448", share.Request{GPU: card("2"), Memory: 80*gi - 12345, Cores: 100, Tenants: 32}), ""},
		{"a MIG placement", []resourceapi.DeviceRequestAllocationResult{result(migPart, "")}, []resourceapi.DeviceAllocationConfiguration{opaque("class", `"tier":"mig"`)},
			asks("u-9eba27e2", share.Request{GPU: card("3"), Memory: 9728 * node.MiB, Cores: 100, Tenants: 1, Placement: &share.Placement{Profile: "1g.10gb+me", Start: 2, Size: 1}}), ""},
		{"monitoring", []resourceapi.DeviceRequestAllocationResult{with(result(vgpu, "s1", "memory=2Mi"), adminAccess)}, []resourceapi.DeviceAllocationConfiguration{opaque("claim", `"tier":"mps"`)},
			asks("u-s1", onVGPU(share.Request{Admin: true})), ""},

		{"every field", []resourceapi.DeviceRequestAllocationResult{result(crowded, "s1", "memory=10Gi", "cores=20")},
			[]resourceapi.DeviceAllocationConfiguration{opaque("claim", `"memoryLimit":"20Gi","minResident":"1Gi","burst":false,"class":"burstable","tier":"time","backend":"shim"`)},
			asks("u-s1", share.Request{GPU: card("1"), Memory: 10 * gi, Limit: 20 * gi, MinResident: gi, Cores: 20, Capped: true, Class: share.Burstable, Backend: share.BackendShim, Tenants: 1}), ""},
		{"tier mps", []resourceapi.DeviceRequestAllocationResult{result(vgpu, "s1", "memory=1Gi", "cores=30")}, []resourceapi.DeviceAllocationConfiguration{opaque("claim", `"tier":"mps"`)},
			asks("u-s1", onVGPU(share.Request{Memory: gi, Cores: 30, Tenants: 1, Tier: share.TierMPS})), ""},
		{"the claim below the class", []resourceapi.DeviceRequestAllocationResult{result(vgpu, "s1", "memory=1Gi", "cores=20")},
			[]resourceapi.DeviceAllocationConfiguration{opaque("class", `"class":"burstable","burst":false`), opaque("claim", `"class":"besteffort"`)},
			asks("u-s1", onVGPU(share.Request{Memory: gi, Class: share.BestEffort, Cores: 20, Capped: true, Tenants: 1})), ""},
		{"later wins among the claim's", []resourceapi.DeviceRequestAllocationResult{result(vgpu, "s1", "memory=1Gi")},
			[]resourceapi.DeviceAllocationConfiguration{opaque("claim", `"class":"burstable"`), opaque("claim", `"class":"guaranteed"`)},
			asks("u-s1", onVGPU(share.Request{Memory: gi, Class: share.Guaranteed, Tenants: 1})), ""},
		{"the configuration of another request", []resourceapi.DeviceRequestAllocationResult{result(vgpu, "s1", "memory=1Gi")},
			[]resourceapi.DeviceAllocationConfiguration{opaque("claim", `"class":"burstable"`, "other")}, asks("u-s1", onVGPU(share.Request{Memory: gi, Tenants: 1})), ""},
		{"an alternative, and the configuration of the whole list", []resourceapi.DeviceRequestAllocationResult{with(result(vgpu, "s1", "memory=1Gi"), named("main/large"))},
			[]resourceapi.DeviceAllocationConfiguration{opaque("claim", `"class":"burstable"`, "main")}, asks("u-s1", onVGPU(share.Request{Memory: gi, Class: share.Burstable, Tenants: 1})), ""},
		{"an alternative's own configuration, and another's", []resourceapi.DeviceRequestAllocationResult{with(result(vgpu, "s1", "memory=1Gi"), named("main/large"))},
			[]resourceapi.DeviceAllocationConfiguration{opaque("class", `"class":"burstable"`, "main/large"), opaque("class", `"class":"besteffort"`, "main/small")},
			asks("u-s1", onVGPU(share.Request{Memory: gi, Class: share.Burstable, Tenants: 1})), ""},
		{"another driver's configuration is not read", []resourceapi.DeviceRequestAllocationResult{result(vgpu, "s1", "memory=1Gi")},
			[]resourceapi.DeviceAllocationConfiguration{{DeviceConfiguration: resourceapi.DeviceConfiguration{Opaque: &resourceapi.OpaqueDeviceConfiguration{Driver: "gpu.example.com", Parameters: runtime.RawExtension{Raw: []byte("{")}}}}},
			asks("u-s1", onVGPU(share.Request{Memory: gi, Tenants: 1})), ""},
		{"no parameters at all", []resourceapi.DeviceRequestAllocationResult{result(vgpu, "s1", "memory=1Gi")},
			[]resourceapi.DeviceAllocationConfiguration{{DeviceConfiguration: resourceapi.DeviceConfiguration{Opaque: &resourceapi.OpaqueDeviceConfiguration{Driver: DriverName}}}},
			nil, "request r: config from the claim: ShareConfig: : not a JSON object"},
		{"a configuration that is none", []resourceapi.DeviceRequestAllocationResult{result(vgpu, "s1", "memory=1Gi")},
			[]resourceapi.DeviceAllocationConfiguration{{}}, asks("u-s1", onVGPU(share.Request{Memory: gi, Tenants: 1})), ""},
		{"a mistake of the administrator", []resourceapi.DeviceRequestAllocationResult{result(vgpu, "s1")}, []resourceapi.DeviceAllocationConfiguration{opaque("class", `"burts":false`)},
			nil, "config from the DeviceClass: ShareConfig: burts: no such field"},
		{"above the class", []resourceapi.DeviceRequestAllocationResult{result(crowded, "s1", "memory=1Gi")},
			[]resourceapi.DeviceAllocationConfiguration{opaque("class", `"memoryLimit":"2Gi"`), opaque("claim", `"memoryLimit":"3Gi"`)}, nil, "memoryLimit 3Gi: the DeviceClass allows 2Gi"},
		{"a limit below the guarantee", []resourceapi.DeviceRequestAllocationResult{result(vgpu, "s1", "memory=30Gi")}, []resourceapi.DeviceAllocationConfiguration{opaque("claim", `"memoryLimit":"20Gi"`)},
			nil, "memoryLimit 20Gi: less than the memory of 30Gi"},
		{"more resident than guaranteed", []resourceapi.DeviceRequestAllocationResult{result(vgpu, "s1", "memory=3Gi")}, []resourceapi.DeviceAllocationConfiguration{opaque("claim", `"minResident":"4Gi"`)},
			nil, "minResident 4Gi: more than the memory of 3Gi"},

		{"another node's pool", []resourceapi.DeviceRequestAllocationResult{with(result(vgpu, "s1"), func(r *resourceapi.DeviceRequestAllocationResult) { r.Pool = "node-2" })}, nil,
			nil, "request r: device gpu-ca000d00 is in pool node-2, and this is node node-1; delete the pod"},
		{"a device that went away", []resourceapi.DeviceRequestAllocationResult{result("gpu-deadbeef", "s1")}, nil, nil, "device gpu-deadbeef is not on this node (any more): 5 cards are"},
		{"a card that is in MIG mode by now", []resourceapi.DeviceRequestAllocationResult{result("gpu-ca030d00", "s1")}, nil, nil, "device gpu-ca030d00 is not on this node"},
		{"a placement of a card that is not in MIG mode any more", []resourceapi.DeviceRequestAllocationResult{result("gpu-ca000d00-mig-1g-10gb-0", "")}, nil, nil, "is not on this node"},
		{"more memory than the card has", []resourceapi.DeviceRequestAllocationResult{result(vgpu, "s1", "memory=81Gi")}, nil, nil, "memory 81Gi consumed, outside 1 to 80Gi of this device"},
		{"more than the card has, over-committed", []resourceapi.DeviceRequestAllocationResult{result(crowded, "s1", "memory=81Gi")}, nil, nil, "memory 81Gi consumed"},
		{"no memory", []resourceapi.DeviceRequestAllocationResult{result(vgpu, "s1", "memory=0")}, nil, nil, "memory 0 consumed, outside"},
		{"negative memory", []resourceapi.DeviceRequestAllocationResult{result(vgpu, "s1", "memory=-1Gi")}, nil, nil, "memory -1Gi consumed, outside"},
		{"a byte of memory", []resourceapi.DeviceRequestAllocationResult{result(vgpu, "s1", "memory=1")}, nil, nil, "memory 1: less than the 2Mi"},
		{"cores over 100", []resourceapi.DeviceRequestAllocationResult{result(vgpu, "s1", "cores=101")}, nil, nil, "cores 101 consumed, outside 0% to 100%"},
		{"no tenant", []resourceapi.DeviceRequestAllocationResult{result(vgpu, "s1", "tenants=0")}, nil, nil, "tenants 0 consumed, outside 1 to 32"},
		{"a capacity of a later version", []resourceapi.DeviceRequestAllocationResult{result(vgpu, "s1", "bandwidth=5")}, nil, nil, "capacity bandwidth 5: not known to this driver"},
		{"a device twice without share ids", []resourceapi.DeviceRequestAllocationResult{result(vgpu, ""), result(vgpu, "")}, nil, nil, "allocated twice without a share id"},
		{"a share id twice", []resourceapi.DeviceRequestAllocationResult{result(vgpu, "s1", "memory=1Gi"), result(secondary, "s1", "memory=1Gi")}, nil, nil, "allocated twice"},

		{"tier time on a MIG placement", []resourceapi.DeviceRequestAllocationResult{result(migPart, "")}, []resourceapi.DeviceAllocationConfiguration{opaque("claim", `"tier":"time"`)},
			nil, "tier time: GPU 3 is in mode mig; use the DeviceClass gpu-shared"},
		{"tier mig on a shared card", []resourceapi.DeviceRequestAllocationResult{result(vgpu, "s1", "memory=1Gi")}, []resourceapi.DeviceAllocationConfiguration{opaque("claim", `"tier":"mig"`)},
			nil, "tier mig: GPU 0 is in mode vgpu; use the DeviceClass gpu-mig"},
		{"tier mps over-committed", []resourceapi.DeviceRequestAllocationResult{result(crowded, "s1", "memory=1Gi")}, []resourceapi.DeviceAllocationConfiguration{opaque("claim", `"tier":"mps"`)},
			nil, "tier mps: GPU 1 is in mode overcommit; MPS divides cards in mode vgpu: use the DeviceClass gpu-shared"},
		{"tier mps for a MIG placement", []resourceapi.DeviceRequestAllocationResult{result(migPart, "")}, []resourceapi.DeviceAllocationConfiguration{opaque("claim", `"tier":"mps"`)},
			nil, "it divides whole cards only"},
		{"tier mps with a class", []resourceapi.DeviceRequestAllocationResult{result(vgpu, "s1", "memory=1Gi")}, []resourceapi.DeviceAllocationConfiguration{opaque("class", `"class":"burstable"`), opaque("claim", `"tier":"mps"`)},
			nil, "class burstable with tier mps: nobody waits there"},
		{"tier whole with others", []resourceapi.DeviceRequestAllocationResult{result(vgpu, "s1", "memory=1Gi")}, []resourceapi.DeviceAllocationConfiguration{opaque("claim", `"tier":"whole"`)},
			nil, "ask for capacity tenants: 32"},
		{"tier whole with all memory", []resourceapi.DeviceRequestAllocationResult{result(vgpu, "s1")}, []resourceapi.DeviceAllocationConfiguration{opaque("claim", `"tier":"whole"`)},
			asks("u-s1", onVGPU(share.Request{Memory: 80 * gi, Tenants: 1})), ""},
		{"tier whole with all memory of an over-committed card", []resourceapi.DeviceRequestAllocationResult{result(crowded, "s1")}, []resourceapi.DeviceAllocationConfiguration{opaque("claim", `"tier":"whole"`)},
			nil, "tier whole: GPU 1 is in mode overcommit"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			claim := claimOf("u", tt.results...)
			claim.Status.Allocation.Devices.Config = tt.configs
			all, err := allocations(claim, testNode, testCards())
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) || strings.Contains(err.Error(), "\n") {
					t.Fatalf("error %v, want one line with %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got []ledger.Ask
			for _, a := range all {
				got = append(got, a.ask)
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestNotAllocated(t *testing.T) {
	if _, err := allocations(&resourceapi.ResourceClaim{}, testNode, nil); err == nil || !strings.Contains(err.Error(), "not allocated") {
		t.Error(err)
	}
}

// A claim can have 32 results.
func TestManyResults(t *testing.T) {
	claim := claimOf("u")
	for i := range 32 {
		claim.Status.Allocation.Devices.Results = append(claim.Status.Allocation.Devices.Results, result(vgpu, "s"+string(rune('a'+i)), "memory=1Gi"))
	}
	all, err := allocations(claim, testNode, testCards())
	if err != nil || len(all) != 32 {
		t.Errorf("%d, %v", len(all), err)
	}
}

// A card without MPS is refused where the claim is read, with the fix.
func TestTierWithoutMPS(t *testing.T) {
	card := Card{Share: share.GPU{Mode: share.ModeVGPU, Memory: 80 * node.GiB, NoMPS: "nvidia-cuda-mps-control is not below /; install it, or use tier time"}}
	tier := TierMPS
	err := ShareConfig{Tier: &tier}.apply(&share.Request{Memory: node.GiB, Tenants: 1}, card)
	if want := "tier mps: GPU 0: nvidia-cuda-mps-control is not below /; install it, or use tier time"; err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
}
