package nic

import (
	"errors"
	"fmt"

	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/dynamic-resource-allocation/resourceclaim"

	dra "github.com/kerf-gpu/kerf/dra-driver"
)

// Ask is one NIC that a claim has: which, and how it is to be in the pod.
type Ask struct {
	Request   string
	Name      string // the device's
	Device    Device
	Interface string // in the pod
	Config    Config
}

// allocation is an Ask with the result that it answers.
type allocation struct {
	Ask
	result resourceapi.DeviceRequestAllocationResult
}

// Pods are the pods that a claim is reserved for. There is one: an interface is in one network namespace at a time.
func pod(claim *resourceapi.ResourceClaim) (uid string, err error) {
	var name string
	for _, consumer := range claim.Status.ReservedFor {
		switch {
		case consumer.Resource != "pods" || consumer.APIGroup != "":
			return "", fmt.Errorf("it is reserved for %s %s: a NIC is moved into a pod, and nothing else", consumer.Resource, consumer.Name)
		case uid != "":
			return "", fmt.Errorf("it is shared by the pods %s and %s: an interface is in one pod's network at a time; give each pod a claim of its own, "+
				"by a ResourceClaimTemplate", name, consumer.Name)
		}
		uid, name = string(consumer.UID), consumer.Name
	}
	if uid == "" {
		return "", errors.New("it is reserved for no pod; this is the scheduler's part, so see the events of the pod")
	}
	return uid, nil
}

// allocations reads what the scheduler gave to a claim of this driver. It is pure and trusts nothing; the first error ends it.
func allocations(claim *resourceapi.ResourceClaim, nodeName string, devices []Device) (all []allocation, err error) {
	if claim.Status.Allocation == nil {
		return nil, errors.New("it is not allocated; this is the scheduler's part, so see the events of the pod")
	}
	interfaces, taken := make(map[string]string), make(map[string]string)
	for _, result := range claim.Status.Allocation.Devices.Results {
		if result.Driver != DriverName {
			continue
		}
		a, err := allocate(claim, result, nodeName, devices)
		if err != nil {
			return nil, fmt.Errorf("request %s: %w", result.Request, err)
		}
		if first, twice := taken[a.Name]; twice {
			return nil, fmt.Errorf("request %s: device %s is allocated to %s too: an interface is for one", result.Request, a.Name, first)
		}
		if first, twice := interfaces[a.Interface]; twice {
			return nil, fmt.Errorf("request %s: interface %s is the name for %s too; write interface: in the configuration of each request, "+
				"or names of requests that differ in their first 15 characters", result.Request, a.Interface, first)
		}
		taken[a.Name], interfaces[a.Interface] = result.Request, result.Request
		all = append(all, a)
	}
	return all, nil
}

func allocate(claim *resourceapi.ResourceClaim, result resourceapi.DeviceRequestAllocationResult, nodeName string, devices []Device) (a allocation, err error) {
	if result.Pool != nodeName {
		return a, fmt.Errorf("device %s is in pool %s, and this is node %s; delete the pod, so that it is scheduled anew", result.Device, result.Pool, nodeName)
	}
	if result.AdminAccess != nil && *result.AdminAccess {
		return a, errors.New("adminAccess: a NIC is moved into a pod, and cannot be watched beside the pod that has it; leave adminAccess out")
	}
	a.result, a.Request, a.Name = result, result.Request, result.Device
	if a.Device, err = find(devices, result.Device); err != nil {
		return a, err
	}
	var class, own Config
	err = dra.Configs(DriverName, claim.Status.Allocation.Devices.Config, result, func(raw []byte, fromClass bool) error {
		c, err := DecodeConfig(raw)
		switch {
		case err != nil:
			return err
		case fromClass:
			class = dra.Overlay(class, c)
			return nil
		}
		own = dra.Overlay(own, c)
		return errors.Join(fromClaim(raw), c.ownMAC())
	})
	if err != nil {
		return a, err
	}
	if a.Config, err = class.tighten(own); err != nil {
		return a, err
	}
	if a.Interface, err = interfaceOf(result.Request, a.Config); err != nil {
		return a, err
	}
	return a, suits(a.Device, a.Config)
}

// interfaceOf is an interface's name in the pod: as configured, or as the request is called.
func interfaceOf(request string, c Config) (string, error) {
	if c.Interface != nil {
		return *c.Interface, nil
	}
	name := resourceclaim.BaseRequestRef(request)
	name = name[:min(len(name), 15)]
	if problem := interfaceName(name); problem != "" {
		return "", fmt.Errorf("interface %s, as the request is called: %s; write interface: in the NicConfig, or call the request otherwise", name, problem)
	}
	return name, nil
}

// suits refuses what a device cannot do, before anything is changed.
func suits(d Device, c Config) error {
	wrong := func(what, why string) error {
		return fmt.Errorf("%s: %s %s; use a DeviceClass that selects what can, or leave the field out", what, d.Name(), why)
	}
	switch vf := !d.PF.IsZero(); {
	case c.RDMA != nil && *c.RDMA == RDMARequire && !d.RDMA:
		return wrong("rdma: require", "has no RDMA device")
	case c.VLAN != nil && *c.VLAN != 0 && !vf:
		return wrong(fmt.Sprintf("vlan %d", *c.VLAN), "is a whole NIC: a VLAN is forced on a VF by its physical function")
	case (c.MaxTxRate != nil && *c.MaxTxRate != 0 || c.MinTxRate != nil && *c.MinTxRate != 0) && !vf:
		return wrong("maxTxRate or minTxRate", "is a whole NIC: rates are limits of a VF")
	case (c.SpoofChk != nil || c.Trust != nil || c.LinkState != nil) && !vf:
		return wrong("spoofchk, trust or linkState", "is a whole NIC: these are switches of a VF")
	case c.GUID != nil && d.LinkType != "infiniband":
		return wrong("guid "+*c.GUID, "is no InfiniBand device")
	case c.MAC != nil && d.LinkType == "infiniband":
		return wrong("mac "+*c.MAC, "is an InfiniBand device, which has a GUID")
	}
	return nil
}
