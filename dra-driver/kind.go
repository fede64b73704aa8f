package dra

import (
	"context"

	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/dynamic-resource-allocation/kubeletplugin"
	"k8s.io/dynamic-resource-allocation/resourceslice"

	"github.com/kerf-gpu/kerf/vgpu/ledger"
)

// Kind is one kind of devices: all that its driver does otherwise than another's. It is safe for use by several goroutines, for the
// same claim too: two pods may share one, and kubelet prepares pods side by side.
type Kind interface {
	// Resources is what the node publishes now. It must not block.
	Resources() resourceslice.DriverResources
	// Prepare puts in force what the scheduler gave to a claim of this kind; all of it or nothing. Convergent: asked again it
	// gives the same, and makes anew what was lost. A claim that has nothing of this kind gets nothing.
	Prepare(ctx context.Context, claim *resourceapi.ResourceClaim) ([]Prepared, error)
	// Unprepare ends what a claim holds; nil where it holds nothing. After an error kubelet asks again.
	Unprepare(ctx context.Context, claimUID string) error
	// Owners is which claims hold anything.
	Owners() []ledger.Owner
	// Health is that of every device there is. It must not block.
	Health() []DeviceHealth
}

// Prepared is one device of a claim: what kubelet is told of it, and what the claim's status says.
type Prepared struct {
	Device kubeletplugin.Device
	Status Status
}

// Status is what status.devices of a claim says of one device, beside its name. Data is written as JSON.
type Status struct {
	Message string // why it is ready
	Data    any
	Network *resourceapi.NetworkDeviceData // of a NIC
}

// DeviceHealth is what kubelet is told of one device.
type DeviceHealth struct {
	Device  string
	Health  kubeletplugin.HealthStatus
	Message string
}
