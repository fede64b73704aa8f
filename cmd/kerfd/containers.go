package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"

	"github.com/kerf-gpu/kerf/hook"
	"github.com/kerf-gpu/kerf/hook/cdi"
	"github.com/kerf-gpu/kerf/vgpu/arbiter"
	"github.com/kerf-gpu/kerf/vgpu/ledger"
	"github.com/kerf-gpu/kerf/vgpu/mps"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

// containers gives shares to containers: a CDI spec for each share of an owner, made from what is installed on the host and from
// what the driver has. Its paths are the host's, as the container runtime sees them.
type containers struct {
	config   KubernetesConfig
	runDir   string
	roots    cdi.Roots
	hardware *hardware
	in       installation

	mu     sync.Mutex
	driver cdi.Driver // of the driver version that it was asked for
	asked  string
}

func newContainers(c Config, h *hardware, in installation) (*containers, error) {
	if err := cdi.Sweep(c.Kubernetes.CDIDir); err != nil {
		return nil, err
	}
	roots := cdi.Roots{Seen: h.root, Host: h.root}
	if h.sim == nil && c.Kubernetes.RootOnHost != "" {
		roots.Host = c.Kubernetes.RootOnHost
	}
	return &containers{config: c.Kubernetes, runDir: c.RunDir, roots: roots, hardware: h, in: in}, nil
}

// hookSocket is where kerf-hook asks for the driver's own limits.
func (c *containers) hookSocket() string { return filepath.Join(c.runDir, "hook.sock") }

// publish writes the CDI spec of a share that is in force, and says by which name a container gets it.
func (c *containers) publish(pages string, server mps.Place, entry ledger.Entry) (string, error) {
	tenant, err := c.tenant(pages, server, entry)
	if err != nil {
		return "", err
	}
	if err := cdi.Check(tenant, c.roots); err != nil {
		return "", err
	}
	spec, err := cdi.Spec(tenant)
	if err != nil {
		return "", fmt.Errorf("CDI spec of share %s: %w", entry.ID, err)
	}
	return cdi.Shares.Device(tenant.Name), cdi.Write(c.config.CDIDir, spec)
}

func (c *containers) tenant(pages string, server mps.Place, entry ledger.Entry) (cdi.Tenant, error) {
	files, err := c.hardware.driver(entry.Grant)
	if err != nil {
		return cdi.Tenant{}, err
	}
	t := cdi.Tenant{Name: entry.Holder.Key, Hook: c.in.hook, Share: hook.Share{
		ID: entry.ID, Pages: pages, Lib: c.in.lib, CUDA: c.onHost(files.CUDA), NVML: c.onHost(files.NVML),
		Simulated: c.hardware.sim != nil, Admin: entry.Grant.Admin, MPS: server.Pipe, MPSMemory: server.Memory,
	}}
	if entry.Grant.Admin {
		t.Share.ID, t.Share.Pages, t.Share.CUDA = "", "", ""
	}
	for _, path := range files.Granted {
		t.Share.GPUs = append(t.Share.GPUs, c.onHost(path))
	}
	for _, path := range files.Control {
		t.Share.Control = append(t.Share.Control, c.onHost(path))
	}
	for _, d := range entry.Grant.Devices {
		uuid := d.UUID.String()
		if d.Placement != nil {
			uuid = d.MIG.String()
		}
		t.UUIDs = append(t.UUIDs, uuid)
	}
	if c.native(entry) {
		t.Share.Kerfd = c.hookSocket()
	}
	t.Driver, err = c.others()
	return t, err
}

// native says whether the driver is to hold a share's limits too: where it can, unless the claim wants the shim alone.
func (c *containers) native(entry ledger.Entry) bool {
	// A MIG instance has no limits by cgroup, nor needs any.
	mig := slices.ContainsFunc(entry.Grant.Devices, func(d share.Device) bool { return d.Placement != nil })
	return !entry.Grant.Admin && !mig && entry.Grant.Backend != share.BackendShim && c.hardware.limitsMemory()
}

// onHost is a path under the driver root as the host sees it.
func (c *containers) onHost(path string) string {
	if rest, err := filepath.Rel(c.roots.Seen, path); err == nil && filepath.IsLocal(rest) {
		return filepath.Join(c.roots.Host, rest)
	}
	return path
}

// others are the driver's other files, asked for once a version: the answer takes a second.
func (c *containers) others() (cdi.Driver, error) {
	n := c.hardware.Node()
	if n.Simulated || n.Driver.Version == "" {
		return cdi.Driver{}, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.asked == n.Driver.Version {
		return c.driver, nil
	}
	driver, err := cdi.FromToolkit(c.roots, n.Driver.Version)
	if err != nil {
		return driver, err
	}
	c.driver, c.asked = driver, n.Driver.Version
	return driver, nil
}

// withdraw takes a share's CDI spec away, so that no container begins in it.
func (c *containers) withdraw(entry ledger.Entry) error {
	return cdi.Shares.Remove(c.config.CDIDir, entry.Holder.Key)
}

// sweep removes the specs of shares that nobody holds any more, which a kerfd left that was killed between two steps.
func (c *containers) sweep(entries []ledger.Entry) error {
	names, err := cdi.Shares.List(c.config.CDIDir)
	errs := []error{err}
	for _, name := range names {
		if !slices.ContainsFunc(entries, func(e ledger.Entry) bool { return e.Holder.Key == name }) {
			errs = append(errs, cdi.Shares.Remove(c.config.CDIDir, name))
		}
	}
	return errors.Join(errs...)
}

// missing are the CDI devices of owners' shares that have no spec; names are all that have one.
func (c *containers) missing(entries []ledger.Entry) (names, missing []string) {
	names, _ = cdi.Shares.List(c.config.CDIDir) // a directory that cannot be read has none
	for _, e := range entries {
		if e.Holder.Door != ledger.DoorRun && !slices.Contains(names, e.Holder.Key) {
			missing = append(missing, e.Holder.Key)
		}
	}
	return names, missing
}

// serveHooks answers the hooks of containers.
func (c *containers) serveHooks(ctx context.Context, g *grants, n *nics) error {
	limit := func(_ context.Context, b hook.Binding) error {
		entry, ok := g.ledger.Entry(b.Share)
		if !ok {
			return fmt.Errorf("share %s has ended", b.Share)
		}
		switch {
		case b.Cgroup == "" && entry.Grant.Backend == share.BackendNative:
			return errors.New("the container is in no cgroup of version 2, and the driver limits by those only; use backend auto or shim")
		case b.Cgroup == "": // the shim holds it
			return nil
		}
		for _, d := range entry.Grant.Devices {
			if err := c.hardware.limitMemory(g.within(d, b), b.Cgroup); err != nil {
				return err
			}
		}
		return nil
	}
	answers := hook.Answers{Limit: limit}
	if n != nil {
		answers.Attach = n.attachFor
	}
	return hook.Serve(ctx, c.hookSocket(), answers)
}

// within is a device with what all shares of a container have of it together: the driver limits the container's cgroup, and knows of
// no shares. Each share's hook has bound it before it asks, so the last one to ask has the whole sum.
func (g *grants) within(d share.Device, b hook.Binding) share.Device {
	sum := share.Device{UUID: d.UUID}
	for _, entry := range g.ledger.Entries() {
		bindings, _ := hook.Bindings(arbiter.Directory(g.config.sharesDir(), entry.ID)) // one that cannot be read gives less, which is safe
		if !slices.ContainsFunc(bindings, func(other hook.Binding) bool { return other.ID == b.ID }) {
			continue
		}
		for _, other := range entry.Grant.Devices {
			if other.UUID == d.UUID {
				sum.Memory, sum.Limit = sum.Memory+other.Memory, sum.Limit+other.HardLimit()
			}
		}
	}
	return sum
}
