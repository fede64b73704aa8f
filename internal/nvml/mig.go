package nvml

import (
	"strings"

	gonvml "github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/kerf-gpu/kerf/internal/node"
)

func (l *Library) mig(r *reader, dev gonvml.Device) node.MIG {
	current, pending, ret := dev.GetMigMode()
	if !r.optional("MIG mode", ret) {
		return node.MIG{}
	}
	m := node.MIG{
		Capable: true,
		Enabled: current == gonvml.DEVICE_MIG_ENABLE,
		Pending: current != pending,
	}
	m.Profiles = l.migProfiles(r, dev)
	if m.Enabled {
		m.Instances = migInstances(r, dev, m.Profiles)
	}
	return m
}

func (l *Library) migProfiles(r *reader, dev gonvml.Device) []node.MIGProfile {
	var profiles []node.MIGProfile
	for slot := range gonvml.GPU_INSTANCE_PROFILE_COUNT {
		info, ret := dev.GetGpuInstanceProfileInfoV(slot).V2()
		if !r.optional("MIG profile", ret) {
			continue // not a profile of this model
		}
		p := node.MIGProfile{
			ID: int(info.Id), Name: profileText(info),
			Memory: node.Bytes(info.MemorySizeMB) * node.MiB, SMs: int(info.MultiprocessorCount),
			Slices: int(info.SliceCount), MaxCount: int(info.InstanceCount),
		}
		// Placements are told only in MIG mode.
		places, ret := dev.GetGpuInstancePossiblePlacements(&gonvml.GpuInstanceProfileInfo{Id: info.Id})
		if r.optional("MIG placements", ret) {
			for _, place := range places {
				p.Size = int(place.Size)
				p.Placements = append(p.Placements, int(place.Start))
			}
		}
		profiles = append(profiles, p)
	}
	return profiles
}

// profileText is the profile's name as people write it: 1g.18gb.
func profileText(info gonvml.GpuInstanceProfileInfo_v2) string {
	return strings.TrimPrefix(cString(info.Name[:]), "MIG ")
}

func cString(s []int8) string {
	var b strings.Builder
	for _, c := range s {
		if c == 0 {
			break
		}
		b.WriteByte(byte(c))
	}
	return b.String()
}

func migInstances(r *reader, dev gonvml.Device, profiles []node.MIGProfile) []node.MIGInstance {
	count, ret := dev.GetMaxMigDeviceCount()
	if !r.optional("MIG device count", ret) {
		return nil
	}
	var instances []node.MIGInstance
	for i := range count {
		child, ret := dev.GetMigDeviceHandleByIndex(i)
		if !r.optional("MIG device", ret) {
			continue // no instance at this index
		}
		if in, ok := migInstance(r, dev, child, profiles); ok {
			instances = append(instances, in)
		}
	}
	return instances
}

func migInstance(r *reader, dev, child gonvml.Device, profiles []node.MIGProfile) (node.MIGInstance, bool) {
	uuid, ret := child.GetUUID()
	if !r.optional("MIG UUID", ret) {
		return node.MIGInstance{}, false // destroyed since it was listed
	}
	u, err := node.ParseUUID(uuid)
	if err != nil {
		return node.MIGInstance{}, false
	}
	in := node.MIGInstance{UUID: node.MIGUUID(u)}
	if id, ret := child.GetGpuInstanceId(); r.optional("GPU instance id", ret) {
		in.GPUInstance = id
	}
	if id, ret := child.GetComputeInstanceId(); r.optional("compute instance id", ret) {
		in.ComputeInstance = id
	}
	if a, ret := child.GetAttributes(); r.optional("MIG attributes", ret) {
		in.Memory, in.SMs = node.Bytes(a.MemorySizeMB)*node.MiB, int(a.MultiprocessorCount)
	}
	if gi, ret := dev.GetGpuInstanceById(in.GPUInstance); r.optional("GPU instance", ret) {
		if info, ret := gi.GetInfo(); r.optional("GPU instance", ret) {
			in.Start, in.Slices = int(info.Placement.Start), int(info.Placement.Size)
			in.Profile = profileName(info.ProfileId, profiles)
		}
	}
	return in, true
}

func profileName(id uint32, profiles []node.MIGProfile) string {
	for _, p := range profiles {
		if p.ID == int(id) {
			return p.Name
		}
	}
	return ""
}
