package cdi

import (
	"strconv"

	"tags.cncf.io/container-device-interface/pkg/parser"
	"tags.cncf.io/container-device-interface/specs-go"

	"github.com/kerf-gpu/kerf/hook"
)

// Network is a claim's NICs as a container gets them: character devices, and the hook that makes sure of the interfaces.
type Network struct {
	Name      string   // the CDI device's
	NIC       hook.NIC // what the hook knows
	Nodes     []string // RDMA character devices, by path on the host and in the container
	Hook      string   // kerf-hook, under a path that names its version
	Devices   []string // for people who read the spec
	Simulated bool
}

// NetworkSpec is the CDI spec of a claim's NICs.
func NetworkSpec(n Network) (*specs.Spec, error) {
	if err := parser.ValidateDeviceName(n.Name); err != nil {
		return nil, err
	}
	seconds := hookSeconds
	edits := specs.ContainerEdits{Hooks: []*specs.Hook{{HookName: "createRuntime", Path: n.Hook, Args: n.NIC.Args(), Timeout: &seconds}}}
	for _, path := range n.Nodes {
		edits.DeviceNodes = append(edits.DeviceNodes, &specs.DeviceNode{Path: path, Permissions: "rw"})
	}
	notes := make(map[string]string)
	for i, device := range n.Devices {
		notes["kerf.dev/nic-"+strconv.Itoa(i)] = device
	}
	if n.Simulated {
		notes["kerf.dev/simulated"] = "true"
	}
	return one(NICs, specs.Device{Name: n.Name, Annotations: notes, ContainerEdits: edits})
}
