package dra

import (
	"fmt"
	"strconv"
	"strings"

	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/dynamic-resource-allocation/deviceattribute"

	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

// PCIeRootPort is shared with Kerf's NICs: devices with the same one can talk without the CPU. It is in a domain of its own,
// since an attribute of one driver's domain cannot be matched with another's.
const PCIeRootPort = "kerf.dev/pcieRootPort"

// maxText is the API's limit for a text attribute.
const maxText = 64

// Attributes are those of one device. What is empty, or not known, is left out.
type Attributes map[resourceapi.QualifiedName]resourceapi.DeviceAttribute

// attributes is what CEL selectors can ask about a card. A selector that names an attribute which a device does not have ends the
// whole scheduling attempt, so what has a value on any card has one on every card, and has the same type on all of them. Left out
// are only what the node does not know: the NUMA node, the PCIe root, a driver version that is none.
func attributes(c Card, options Options) Attributes {
	a := Attributes{}
	a.Text("type", "gpu")
	a.Text("uuid", c.UUID.String())
	a.Text("productName", c.ProductName)
	a.Text("architecture", c.Architecture)
	a.Version("computeCapability", c.Compute.String())
	a.Version("driverVersion", c.DriverVersion)
	a.Version("cudaDriverVersion", c.CUDAVersion.String())
	a.Text("mode", string(c.mode()))
	a.Number("overcommitPercent", overcommit(c))
	a.Flag("mps", c.mode() == share.ModeVGPU && c.Share.NoMPS == "") // tier mps can be had, unless shares of tier time are there
	a.Flag("simulated", c.Simulated)
	a.Text("backend", options.Backend)
	a.Place(c.PCI, c.Path, c.NUMA)
	return a
}

// Place adds where a PCI device sits, in the words that claims match over drivers.
func (a Attributes) Place(address node.PCIAddress, path node.PCIePath, numa int) {
	a.Text(deviceattribute.StandardDeviceAttributePCIeRoot, path.Root)
	if !address.IsZero() {
		a.Text(deviceattribute.StandardDeviceAttributePCIBusID, address.String())
	}
	if port := path.RootPort(); !port.IsZero() {
		a.Text(PCIeRootPort, port.String())
	}
	if numa >= 0 { // −1 is unknown, and would match every other unknown
		a.Number(deviceattribute.StandardDeviceAttributeNUMANode, int64(numa))
	}
}

// overcommit is 100 where guarantees fit the card, so that selectors can compare on every node.
func overcommit(c Card) int64 {
	if c.mode() != share.ModeOvercommit {
		return 100
	}
	return max(100, int64(c.Share.Overcommit))
}

// Text adds a text, cut to what the API takes.
func (a Attributes) Text(name resourceapi.QualifiedName, value string) {
	if value == "" {
		return
	}
	value = strings.ToValidUTF8(value[:min(len(value), maxText)], "")
	a[name] = resourceapi.DeviceAttribute{StringValue: &value}
}

// Number adds an integer.
func (a Attributes) Number(name resourceapi.QualifiedName, value int64) {
	a[name] = resourceapi.DeviceAttribute{IntValue: &value}
}

// Flag adds a boolean.
func (a Attributes) Flag(name resourceapi.QualifiedName, value bool) {
	a[name] = resourceapi.DeviceAttribute{BoolValue: &value}
}

// Version adds a version; what is none is left out.
func (a Attributes) Version(name resourceapi.QualifiedName, value string) {
	if v, ok := semver(value); ok {
		a[name] = resourceapi.DeviceAttribute{VersionValue: &v}
	}
}

// semver writes a vendor's version as the API wants it: three numbers without leading zeros. 580.95.05 becomes 580.95.5, and 13.0
// becomes 13.0.0. What has no numbers is no version.
func semver(vendor string) (string, bool) {
	parts := strings.Split(vendor, ".")
	if len(parts) > 3 {
		return "", false
	}
	var numbers [3]uint64
	for i, part := range parts {
		n, err := strconv.ParseUint(part, 10, 32)
		if err != nil {
			return "", false
		}
		numbers[i] = n
	}
	return fmt.Sprintf("%d.%d.%d", numbers[0], numbers[1], numbers[2]), numbers != [3]uint64{}
}

// share adds what one share has, for the file that a workload reads.
func (a Attributes) share(memory, limit node.Bytes, cores node.Percent) {
	a.Number("memoryMiB", int64(memory/node.MiB))
	a.Number("memoryLimitMiB", int64(max(memory, limit)/node.MiB))
	a.Number("cores", int64(cores))
}
