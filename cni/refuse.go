package cni

import (
	"errors"
	"slices"
	"strings"

	"github.com/kerf-gpu/kerf/cni/link"
)

// Vacant refuses a namespace that cannot be opened, or that has an interface of that name already, unless an attachment of the same
// name was cut off: attaching again takes that back first.
func (e *Engine) Vacant(netns string, k Key) error {
	n, err := e.Kernel.Open(netns)
	if err != nil {
		return failf(CodeEnv, err, "CNI_NETNS %q: cannot be opened", netns)
	}
	defer func() { _ = n.Close() }()
	_, err = n.Link(link.Query{Name: k.IfName})
	switch {
	case errors.Is(err, link.ErrNotFound):
		return nil
	case err != nil:
		return failf(CodeRefused, err, "look for %s in %s", k.IfName, netns)
	}
	if r, found, err := e.Find(k); err != nil || found && r.Phase != Attached {
		return err
	}
	return nameTaken(k.IfName)
}

func nameTaken(name string) error {
	return failf(CodeEnv, nil, "CNI_IFNAME %q: the pod has an interface of that name already", name)
}

// refuseDevice is why a device cannot be attached as wanted, by what sysfs says of it. It is pure.
func refuseDevice(d link.Device, s Spec) error {
	fields := s.VF.fields()
	if s.GUID != "" {
		fields = append(fields, "guid")
	}
	switch {
	case strings.HasPrefix(d.Driver, "vfio") || strings.HasPrefix(d.Driver, "uio"):
		return failf(CodeConfig, nil, "deviceID %s: bound to %s, so it has no network interface; bind it to its network driver, or give it to a virtual machine instead", d.ID(), d.Driver)
	case !d.PCI.IsZero() && d.Driver == "":
		return failf(CodeConfig, nil, "deviceID %s: no driver is bound to it; bind its network driver (see dmesg for why none is)", d.ID())
	case !d.IsVF() && d.NumVFs > 0:
		return failf(CodeConfig, nil, "deviceID %s: a PF with %d VFs, which would lose their uplink; name one of its VFs (ls -d /sys/bus/pci/devices/%s/virtfn*)", d.ID(), d.NumVFs, d.ID())
	case !d.IsVF() && len(fields) > 0:
		return failf(CodeConfig, nil, "%s: deviceID %s is not a VF, and only a PF can set that of its VFs; leave %s out, or name a VF", fields[0], d.ID(), strings.Join(fields, ", "))
	case d.Eswitch == "switchdev":
		return failf(CodeConfig, nil, "deviceID %s: its PF %s is in switchdev mode, where VFs are ports of a switch (OVS) and not set by their PF; use mode legacy: devlink dev eswitch set pci/%s mode legacy", d.ID(), d.PFName, d.PF)
	case d.IsVF() && d.PFName == "" && len(fields) > 0:
		return failf(CodeConfig, nil, "%s: the PF %s of deviceID %s has no interface in this namespace, so nothing can be set through it", fields[0], d.PF, d.ID())
	}
	return nil
}

// refuseLink is why the link cannot be attached, by what the kernel says of it and of the pod.
func (l *live) refuseLink(s Spec) error {
	id := l.device.ID()
	if l.seen.Link.Master != 0 {
		return failf(CodeBusy, nil, "%s (%s) belongs to another interface (index %d: a bond or bridge); take it out: ip link set %s nomaster", id, l.seen.Link.Name, l.seen.Link.Master, l.seen.Link.Name)
	}
	if l.pf != 0 {
		pf, err := l.host.Link(link.Query{Index: l.pf})
		if err == nil && pf.Master != 0 {
			return failf(CodeConfig, nil, "deviceID %s: its PF %s is in a bond (index %d), which takes its VFs' traffic over; use a PF that is not", id, pf.Name, pf.Master)
		}
	}
	if fields := s.VF.fields(); l.seen.VF == nil && len(fields) > 0 {
		return failf(CodeConfig, nil, "%s: the driver of PF %s tells nothing of VF %d, so it cannot be set or given back; leave %s out", fields[0], l.device.PFName, l.device.VF, strings.Join(fields, ", "))
	}
	if !l.device.IsVF() {
		uplinks, err := l.host.Uplinks()
		if err != nil {
			return failf(CodeRefused, err, "read the node's default routes")
		}
		if slices.Contains(uplinks, l.seen.Link.Index) {
			return failf(CodeConfig, nil, "deviceID %s: the node's default route goes over %s, and the node would lose its network", id, l.seen.Link.Name)
		}
	}
	_, err := l.pod.Link(link.Query{Name: s.Owner.IfName})
	if err == nil {
		return nameTaken(s.Owner.IfName)
	}
	if !errors.Is(err, link.ErrNotFound) {
		return failf(CodeRefused, err, "look for %s in the pod", s.Owner.IfName)
	}
	return nil
}
