// Package cdi writes the CDI specs by which a container runtime gives shares to containers: one file for each share, with one
// device kerf.dev/share=NAME.
//
// Spec is pure: a Tenant in, a spec out. What the hooks need to know of the share they get as arguments, from the same value as
// the mounts (hook.Share), so the two cannot differ. On real nodes the driver's other files come from NVIDIA's own container toolkit:
// FromToolkit asks it, and Edit takes from its answer what a share is not to have.
//
// Traps. A runtime takes two mounts on one path for one, the last: what several shares of a container have in common must be
// the same in all specs, and the rest must be under the share's own name. Device names are never used twice, since runtimes keep
// specs in memory: they watch the directory and read it again when a file comes by rename, as all of ours do, but a moment later. So a
// spec that was written again, at an update, is what the next container gets, and not surely one that starts this very moment.
// The directory is usually a tmpfs: after a reboot the specs are gone while claims live on, so who prepares a claim again writes
// them again.
package cdi

import (
	"path/filepath"
	"strings"

	"tags.cncf.io/container-device-interface/pkg/parser"
	"tags.cncf.io/container-device-interface/specs-go"

	"github.com/kerf-gpu/kerf/hook"
)

// Vendor is the one of Kerf's CDI devices.
const Vendor = "kerf.dev"

// Class is what a CDI device is.
type Class string

// The classes.
const (
	Shares Class = "share" // of a GPU
	NICs   Class = "nic"   // of a claim
)

var classes = []Class{Shares, NICs}

// Device is the qualified name of a CDI device.
func (c Class) Device(name string) string { return c.kind() + "=" + name }

func (c Class) kind() string { return Vendor + "/" + string(c) }

// hookSeconds bounds a hook. It takes milliseconds; only the driver's own limits make it wait for kerfd.
const hookSeconds = 30

// Tenant is a share as a container gets it. Paths are the host's.
type Tenant struct {
	Name   string     // the CDI device's
	Share  hook.Share // what the hooks know
	UUIDs  []string   // of the granted GPUs or MIG devices, for people who read the spec
	Driver Driver     // the real driver's other files; empty on a simulated node
	Hook   string     // kerf-hook, under a path that names its version: running containers refer to it
}

// Driver is what every container needs of a host's driver beside libcuda and libnvidia-ml.
type Driver struct {
	Mounts []*specs.Mount
	// Nodes are those that belong to no GPU. Those of a share's GPUs are in Share.GPUs.
	Nodes []*specs.DeviceNode
}

// Spec is the CDI spec of a share.
func Spec(t Tenant) (*specs.Spec, error) {
	if err := parser.ValidateDeviceName(t.Name); err != nil {
		return nil, err
	}
	edits := specs.ContainerEdits{
		// NVIDIA's own runtime, where it is the node's default, injects all GPUs into images that ask for them in their environment.
		Env:         []string{"NVIDIA_VISIBLE_DEVICES=void"},
		DeviceNodes: nodes(t),
		Mounts:      mounts(t),
		Hooks:       []*specs.Hook{hookOf(t, "createRuntime", hook.CreateRuntimeVerb), hookOf(t, "createContainer", hook.CreateContainerVerb)},
	}
	return one(Shares, specs.Device{Name: t.Name, Annotations: annotations(t), ContainerEdits: edits})
}

// one is a spec of one device, of the oldest version that can say what it does.
func one(class Class, device specs.Device) (*specs.Spec, error) {
	spec := &specs.Spec{Kind: class.kind(), Devices: []specs.Device{device}}
	version, err := specs.MinimumRequiredVersion(spec)
	if err != nil {
		return nil, err
	}
	spec.Version = version
	return spec, nil
}

func annotations(t Tenant) map[string]string {
	notes := map[string]string{"kerf.dev/gpus": strings.Join(t.UUIDs, ",")}
	if t.Share.ID != "" {
		notes["kerf.dev/share"] = t.Share.ID
	}
	if t.Share.Simulated {
		notes["kerf.dev/simulated"] = "true"
	}
	return notes
}

// nodes are the device nodes: of a simulated GPU there are none, its files are mounted.
func nodes(t Tenant) (all []*specs.DeviceNode) {
	if t.Share.Simulated {
		return nil
	}
	add := func(host string) {
		node := &specs.DeviceNode{Path: t.Share.NodeIn(host), HostPath: host, Permissions: "rw"}
		if node.HostPath == node.Path {
			node.HostPath = ""
		}
		all = append(all, node)
	}
	for _, host := range t.Share.Control {
		add(host)
	}
	for _, host := range t.Share.GPUs {
		add(host)
	}
	for _, node := range t.Driver.Nodes {
		if !hasNode(all, node.Path) {
			all = append(all, node)
		}
	}
	return all
}

func hasNode(nodes []*specs.DeviceNode, path string) bool {
	for _, n := range nodes {
		if n.Path == path {
			return true
		}
	}
	return false
}

func mounts(t Tenant) (all []*specs.Mount) {
	taken := make(map[string]bool)
	for _, m := range t.Share.Mounts() {
		taken[m.Target] = true
		mode := "ro"
		if m.Writable {
			mode = "rw"
		}
		all = append(all, &specs.Mount{HostPath: m.Source, ContainerPath: m.Target, Options: []string{mode, "nosuid", "nodev", "rbind", "rprivate"}})
	}
	for _, m := range t.Driver.Mounts {
		cudaOnly := t.Share.Admin && filepath.Dir(m.ContainerPath) == hook.LibDir // libraries that only libcuda uses
		if !taken[m.ContainerPath] && !cudaOnly {
			all = append(all, m)
		}
	}
	return all
}

func hookOf(t Tenant, moment, verb string) *specs.Hook {
	seconds := hookSeconds
	return &specs.Hook{HookName: moment, Path: t.Hook, Args: t.Share.Args(verb), Timeout: &seconds}
}
