package nvml

import (
	"errors"
	"fmt"
	"strings"

	gonvml "github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/kerf-gpu/kerf/internal/node"
)

// GPUs reads every GPU that NVML shows, in its order. Path and NUMA node are
// left to sysfs (Path empty, NUMA unknown). A lost GPU is in the list with
// Fault.Lost set, and as it was when it was last read; if it never was, it has
// an index and nothing else.
func (l *Library) GPUs() ([]node.GPU, error) {
	count, err := l.Count()
	if err != nil {
		return nil, err
	}
	gpus := make([]node.GPU, count)
	for i := range gpus {
		if gpus[i], err = l.GPU(i); err != nil {
			return nil, err
		}
	}
	return gpus, nil
}

// Count is how many GPUs NVML shows, lost ones too.
func (l *Library) Count() (int, error) {
	count, ret := l.api.DeviceGetCount()
	return count, check(ret, "count GPUs")
}

// GPU reads one of them, by its place in NVML's order; see GPUs. A GPU that hangs hangs this call, and no other.
func (l *Library) GPU(index int) (node.GPU, error) {
	d, err := l.Driver()
	if err != nil {
		return node.GPU{}, err
	}
	g, err := l.gpu(index, d)
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case errors.Is(err, ErrLost):
		g = l.lost(index, g)
	case err != nil:
		return g, err
	}
	l.last[index] = g
	return g, nil
}

// lost is GPU i as it was last read, or what could be read of it now.
func (l *Library) lost(i int, now node.GPU) node.GPU {
	if last, known := l.last[i]; known && (now.UUID.IsZero() || now.UUID == last.UUID) {
		now = last
	}
	now.Index = i
	now.Fault = node.Fault{Lost: true, Recovery: now.Fault.Recovery}
	return now
}

// reader reads one device and remembers the first failure, so that a GPU is
// written down as a list of facts.
type reader struct {
	index int
	err   error
}

func (r *reader) check(what string, ret gonvml.Return) bool {
	if ret != gonvml.SUCCESS && r.err == nil {
		r.err = check(ret, "read %s of GPU %d", what, r.index)
	}
	return ret == gonvml.SUCCESS
}

// optional is check for what not every GPU has.
func (r *reader) optional(what string, ret gonvml.Return) bool {
	switch ret {
	case gonvml.ERROR_NOT_SUPPORTED, gonvml.ERROR_FUNCTION_NOT_FOUND, gonvml.ERROR_NOT_FOUND,
		gonvml.ERROR_INVALID_ARGUMENT, gonvml.ERROR_NO_PERMISSION, gonvml.ERROR_UNKNOWN:
		return false
	}
	return r.check(what, ret)
}

func (l *Library) gpu(index int, driver node.Driver) (node.GPU, error) {
	g := node.GPU{Index: index, NUMA: node.UnknownNUMA, DriverVersion: driver.Version, CUDAVersion: driver.CUDAVersion, Simulated: l.Simulated()}
	r := &reader{index: index}
	dev, ret := l.api.DeviceGetHandleByIndex(index)
	if !r.check("handle", ret) {
		return g, r.err
	}
	l.identity(r, dev, &g)
	l.hardware(r, dev, &g)
	g.Link = pcieLink(r, dev)
	g.NVLink = l.nvlinks(r, dev)
	g.MIG = l.mig(r, dev)
	g.Fault = l.fault(r, dev)
	return g, r.err
}

// identity is what names the GPU.
func (l *Library) identity(r *reader, dev gonvml.Device, g *node.GPU) {
	uuid, ret := dev.GetUUID()
	if r.check("UUID", ret) {
		u, err := node.ParseUUID(uuid)
		if err != nil && r.err == nil {
			r.err = fmt.Errorf("read UUID of GPU %d: %w", r.index, err)
		}
		g.UUID = u
	}
	pci, ret := dev.GetPciInfo()
	if r.check("PCI address", ret) {
		g.PCI = pciAddress(pci)
	}
	minor, ret := dev.GetMinorNumber()
	if r.check("minor number", ret) {
		g.Minor, g.DeviceNode = minor, fmt.Sprintf("/dev/nvidia%d", minor)
	}
	name, ret := dev.GetName()
	if r.check("name", ret) {
		g.ProductName = name
		g.Simulated = g.Simulated || strings.HasSuffix(name, simulatedMark)
	}
	if serial, ret := dev.GetSerial(); r.optional("serial number", ret) {
		g.Serial = serial
	}
}

// pciAddress leaves the function out: a GPU's is 0, and NVML does not say.
func pciAddress(p gonvml.PciInfo) node.PCIAddress {
	return node.PCIAddress{Domain: p.Domain, Bus: uint8(p.Bus), Device: uint8(p.Device)}
}

func (l *Library) hardware(r *reader, dev gonvml.Device, g *node.GPU) {
	if arch, ret := dev.GetArchitecture(); r.optional("architecture", ret) {
		g.Architecture = architectures[arch]
	}
	if major, minor, ret := dev.GetCudaComputeCapability(); r.check("compute capability", ret) {
		g.Compute = node.ComputeCapability{Major: major, Minor: minor}
	}
	if memory, ret := dev.GetMemoryInfo(); r.check("memory", ret) {
		g.Memory = node.Bytes(memory.Total)
	}
	if cores, ret := dev.GetNumGpuCores(); r.optional("core count", ret) {
		g.SMs = cores / coresPerSM(g.Compute)
	}
}

var architectures = map[gonvml.DeviceArchitecture]string{
	gonvml.DEVICE_ARCH_KEPLER: "Kepler", gonvml.DEVICE_ARCH_MAXWELL: "Maxwell", gonvml.DEVICE_ARCH_PASCAL: "Pascal",
	gonvml.DEVICE_ARCH_VOLTA: "Volta", gonvml.DEVICE_ARCH_TURING: "Turing", gonvml.DEVICE_ARCH_AMPERE: "Ampere",
	gonvml.DEVICE_ARCH_ADA: "Ada", gonvml.DEVICE_ARCH_HOPPER: "Hopper", gonvml.DEVICE_ARCH_BLACKWELL: "Blackwell",
	gonvml.DEVICE_ARCH_RUBIN: "Rubin",
}

// coresPerSM turns NVML's core count into SMs, which NVML does not give. From
// the tables of NVIDIA's CUDA programming guide.
func coresPerSM(c node.ComputeCapability) int {
	switch {
	case c.Major == 7, c == node.ComputeCapability{Major: 8}, c == node.ComputeCapability{Major: 6}:
		return 64
	}
	return 128
}

func pcieLink(r *reader, dev gonvml.Device) node.PCIeLink {
	var link node.PCIeLink
	for _, f := range []struct {
		to   *int
		read func() (int, gonvml.Return)
	}{
		{&link.Gen, dev.GetCurrPcieLinkGeneration}, {&link.Width, dev.GetCurrPcieLinkWidth},
		{&link.MaxGen, dev.GetMaxPcieLinkGeneration}, {&link.MaxWidth, dev.GetMaxPcieLinkWidth},
	} {
		if n, ret := f.read(); r.optional("PCIe link", ret) {
			*f.to = n
		}
	}
	return link
}

func (l *Library) nvlinks(r *reader, dev gonvml.Device) []node.NVLink {
	var links []node.NVLink
	for i := range gonvml.NVLINK_MAX_LINKS {
		state, ret := dev.GetNvLinkState(i)
		if !r.optional("NVLink state", ret) {
			break // past the last link, or a GPU without
		}
		link := node.NVLink{Link: i, Active: state == gonvml.FEATURE_ENABLED}
		if version, ret := dev.GetNvLinkVersion(i); r.optional("NVLink version", ret) {
			link.Version = int(version)
		}
		if link.Active {
			l.farEnd(r, dev, &link)
		}
		links = append(links, link)
	}
	return links
}

func (l *Library) farEnd(r *reader, dev gonvml.Device, link *node.NVLink) {
	if pci, ret := dev.GetNvLinkRemotePciInfo(link.Link); r.optional("far end of NVLink", ret) {
		link.Peer = pciAddress(pci)
	}
	if !l.has("nvmlDeviceGetNvLinkRemoteDeviceType") {
		return
	}
	if kind, ret := dev.GetNvLinkRemoteDeviceType(link.Link); r.optional("far end of NVLink", ret) {
		link.Kind = linkKinds[kind]
	}
}

var linkKinds = map[gonvml.IntNvLinkDeviceType]node.NVLinkKind{
	gonvml.NVLINK_DEVICE_TYPE_GPU:    node.NVLinkToGPU,
	gonvml.NVLINK_DEVICE_TYPE_SWITCH: node.NVLinkToSwitch,
	gonvml.NVLINK_DEVICE_TYPE_IBMNPU: node.NVLinkToCPU,
}

// fault reads what the GPU says of its own health.
func (l *Library) fault(r *reader, dev gonvml.Device) node.Fault {
	var f node.Fault
	field := []gonvml.FieldValue{{FieldId: gonvml.FI_DEV_GET_GPU_RECOVERY_ACTION}}
	// Drivers before R565 do not know the field, and say so in the value.
	if ret := dev.GetFieldValues(field); r.optional("recovery action", ret) && field[0].NvmlReturn == uint32(gonvml.SUCCESS) {
		f.Recovery = node.RecoveryAction(field[0].Value[0]) // an unsigned int, little-endian; all known ones are small
	}
	if _, _, pending, failed, ret := dev.GetRemappedRows(); r.optional("remapped rows", ret) {
		f.RemapPending, f.RemapFailure = pending, failed
	}
	if n, ret := dev.GetTotalEccErrors(gonvml.MEMORY_ERROR_TYPE_UNCORRECTED, gonvml.VOLATILE_ECC); r.optional("ECC errors", ret) {
		f.Uncorrectable = n
	}
	return f
}
