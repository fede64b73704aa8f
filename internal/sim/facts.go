package sim

import (
	"fmt"
	"slices"
	"unsafe"

	"github.com/kerf-gpu/kerf/internal/node"
)

// gpu is the first state of GPU i's device file.
func (p *Profile) gpu(i int) *simGpu {
	s := p.of("gpu")[i]
	m := p.Models[s.Model]
	g := &simGpu{
		Magic: gpuMagic, Version: stateVersion, Size: uint32(unsafe.Sizeof(simGpu{})),
		Facts: m.facts(), Health: m.health(),
	}
	p.locate(&g.Facts, i, s)
	g.Facts.P2pMask = p.peers(i)
	p.links(&g.Facts, i)
	p.cut(g, i, m)
	return g
}

// facts is what is the same for every GPU of a model.
func (m Model) facts() simFacts {
	f := simFacts{
		SmCount:     uint32(m.SMs),
		MemoryTotal: uint64(m.Memory), MemoryReserved: uint64(m.Reserved), ContextBytes: uint64(m.ContextBytes),
		Bar1Total: uint64(m.BAR1), BusWidth: uint32(m.BusWidth), EccCapable: flag(m.ECC),
		PowerLimitMw: uint32(m.PowerLimit) * 1000, PowerMinMw: uint32(m.PowerLimit) * 300, PowerMaxMw: uint32(m.PowerLimit) * 1000,
		SmClockMhz: uint32(m.SMClock), MemoryClockMhz: uint32(m.MemoryClock), VideoClockMhz: uint32(m.SMClock) * 9 / 10,
		PcieGenMax: uint32(m.PCIe.Gen), PcieWidthMax: uint32(m.PCIe.Width), PcieGen: uint32(m.PCIe.Gen), PcieWidth: uint32(m.PCIe.Width),
		BwH2d: gigabytes(m.Bandwidth.H2D), BwD2h: gigabytes(m.Bandwidth.D2H), BwD2d: gigabytes(m.Bandwidth.D2D), BwP2p: gigabytes(m.Bandwidth.Peer),
		TimesliceNs: uint64(m.Timeslice), LaunchNs: uint64(m.Launch),
	}
	put(f.Name[:], m.Name+simulatedMark)
	put(f.Brand[:], m.Brand)
	put(f.Architecture[:], m.Architecture)
	put(f.Vbios[:], "00.00.00.00.01")
	put(f.BoardPart[:], "KERF-SIM")
	_, _ = fmt.Sscanf(m.Compute, "%d.%d", &f.CcMajor, &f.CcMinor) // check has proved the form
	vendor, device := splitID(m.PCIID)
	f.PciId = uint32(device)<<16 | uint32(vendor)
	f.PciSubsystemId = f.PciId
	f.MigCapable = flag(m.MIG.Capable)
	f.MigProfileCount = uint32(len(m.MIG.Profiles))
	for j, q := range m.MIG.Profiles {
		f.MigProfile[j] = q.state()
	}
	return f
}

func (q MIGProfile) state() simMigProfile {
	s := simMigProfile{
		Memory: uint64(q.Memory), Id: uint32(q.ID), Slot: uint32(q.Slot),
		Sms: uint32(q.SMs), Slices: uint32(q.Slices), CopyEngines: uint32(q.CopyEngines), Max: uint32(q.Max), Size: uint32(q.Size),
	}
	put(s.Name[:], q.Name)
	for _, start := range q.Placements {
		s.Placements |= 1 << start
	}
	return s
}

// health is a GPU at rest in a cool room.
func (m Model) health() simHealth {
	return simHealth{
		EccMode: flag(m.ECC), EccPending: flag(m.ECC),
		TemperatureC: 34, TemperatureMemoryC: 41, PowerMw: uint32(m.PowerLimit) * 100,
		SmClockMhz: 345, MemoryClockMhz: uint32(m.MemoryClock),
		Persistence: 1, PerformanceState: 0,
	}
}

func flag(b bool) uint32 {
	if b {
		return 1
	}
	return 0
}

func gigabytes(n float64) uint64 { return uint64(n * 1e9) }

// locate is what differs from GPU to GPU.
func (p *Profile) locate(f *simFacts, i int, s placed) {
	f.Uuid = p.uuid("GPU", i)
	put(f.Serial[:], fmt.Sprintf("SIM%010d", i+1))
	f.Minor = uint32(i)
	f.PciDomain, f.PciBus, f.PciDevice, f.PciFunction = s.At.Domain, uint32(s.At.Bus), uint32(s.At.Device), uint32(s.At.Function)
	f.NumaNode = int32(s.root.NUMA)
	if s.Width != 0 {
		f.PcieWidth = uint32(s.Width)
	}
}

// peers is the mask of the GPUs that GPU i can reach directly: of its own
// model, where the model can at all.
func (p *Profile) peers(i int) uint64 {
	gpus := p.of("gpu")
	if p.Models[gpus[i].Model].Bandwidth.Peer == 0 {
		return 0
	}
	var mask uint64
	for j, other := range gpus {
		if j != i && other.Model == gpus[i].Model {
			mask |= 1 << j
		}
	}
	return mask
}

// links spreads the GPU's NVLinks over the switches, or ties them to the GPU at
// the other end of the bridge.
func (p *Profile) links(f *simFacts, i int) {
	for _, spec := range p.NVLink {
		if !slices.Contains(spec.GPUs, i) {
			continue
		}
		var ends []placed
		remoteType := uint8(linkSwitch)
		if spec.Through == "switch" {
			ends = p.of("nvswitch")
		} else {
			remoteType = linkGPU
			other := spec.GPUs[0]
			if other == i {
				other = spec.GPUs[1]
			}
			ends = p.of("gpu")[other : other+1]
		}
		f.NvlinkCount = uint32(spec.Links)
		for l := range spec.Links {
			f.Nvlink[l] = nvlink(spec.Version, remoteType, l, ends[l%len(ends)].At)
		}
	}
}

func nvlink(version int, remoteType uint8, l int, at node.PCIAddress) simNvlink {
	return simNvlink{
		Active: 1, Version: uint8(version), RemoteType: remoteType, RemoteLink: uint8(l),
		RemoteDomain: at.Domain, RemoteBus: at.Bus, RemoteDevice: at.Device, RemoteFunction: at.Function,
	}
}

// cut puts the GPU into MIG mode and makes its instances.
func (p *Profile) cut(g *simGpu, i int, m Model) {
	for _, spec := range p.MIG {
		if spec.GPU != i {
			continue
		}
		g.MigMode, g.MigModePending = 1, 1
		for j, in := range spec.Instances {
			g.Mig[j] = simMigInstance{
				Uuid: p.uuid("MIG", i, j), Used: 1, Compute: 1, Start: uint32(in.Start),
				Profile: uint32(slices.IndexFunc(m.MIG.Profiles, func(q MIGProfile) bool { return q.Name == in.Profile })),
			}
			g.Mig[j].Gi = gpuInstance(in.Start, m.MIG.Profiles[g.Mig[j].Profile].Size)
		}
	}
}

// gpuInstance is the driver's number of an instance that takes size memory
// slices from start: one for each place there is, as nvml/instance.c counts.
func gpuInstance(start, size int) uint32 {
	switch size {
	case 8:
		return 0
	case 4:
		return uint32(1 + start/4)
	case 2:
		return uint32(3 + start/2)
	}
	return uint32(7 + start)
}
