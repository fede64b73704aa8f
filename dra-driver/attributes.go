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

// pcieRootPort is shared with Kerf's NICs: devices with the same one can talk without the CPU. It is in a domain of its own,
// since an attribute of one driver's domain cannot be matched with another's.
const pcieRootPort = "kerf.dev/pcieRootPort"

// maxText is the API's limit for a text attribute.
const maxText = 64

type attributeMap map[resourceapi.QualifiedName]resourceapi.DeviceAttribute

// attributes is what CEL selectors can ask about a card. A selector that names an attribute which a device does not have ends the
// whole scheduling attempt, so what has a value on any card has one on every card, and has the same type on all of them. Left out
// are only what the node does not know: the NUMA node, the PCIe root, a driver version that is none.
func attributes(c Card, options Options) attributeMap {
	a := attributeMap{}
	a.text("type", "gpu")
	a.text("uuid", c.UUID.String())
	a.text("productName", c.ProductName)
	a.text("architecture", c.Architecture)
	a.version("computeCapability", c.Compute.String())
	a.version("driverVersion", c.DriverVersion)
	a.version("cudaDriverVersion", c.CUDAVersion.String())
	a.text("mode", string(c.mode()))
	a.number("overcommitPercent", overcommit(c))
	a.flag("mps", c.mode() == share.ModeVGPU && c.Share.NoMPS == "") // tier mps can be had, unless shares of tier time are there
	a.flag("simulated", c.Simulated)
	a.text("backend", options.Backend)
	a.text(deviceattribute.StandardDeviceAttributePCIeRoot, c.Path.Root)
	if !c.PCI.IsZero() {
		a.text(deviceattribute.StandardDeviceAttributePCIBusID, c.PCI.String())
	}
	if port := c.Path.RootPort(); !port.IsZero() {
		a.text(pcieRootPort, port.String())
	}
	if c.NUMA >= 0 { // −1 is unknown, and would match every other unknown
		a.number(deviceattribute.StandardDeviceAttributeNUMANode, int64(c.NUMA))
	}
	return a
}

// overcommit is 100 where guarantees fit the card, so that selectors can compare on every node.
func overcommit(c Card) int64 {
	if c.mode() != share.ModeOvercommit {
		return 100
	}
	return max(100, int64(c.Share.Overcommit))
}

func (a attributeMap) text(name resourceapi.QualifiedName, value string) {
	if value == "" {
		return
	}
	value = strings.ToValidUTF8(value[:min(len(value), maxText)], "")
	a[name] = resourceapi.DeviceAttribute{StringValue: &value}
}

func (a attributeMap) number(name resourceapi.QualifiedName, value int64) {
	a[name] = resourceapi.DeviceAttribute{IntValue: &value}
}

func (a attributeMap) flag(name resourceapi.QualifiedName, value bool) {
	a[name] = resourceapi.DeviceAttribute{BoolValue: &value}
}

func (a attributeMap) version(name resourceapi.QualifiedName, value string) {
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
func (a attributeMap) share(memory, limit node.Bytes, cores node.Percent) {
	a.number("memoryMiB", int64(memory/node.MiB))
	a.number("memoryLimitMiB", int64(max(memory, limit)/node.MiB))
	a.number("cores", int64(cores))
}
