package nvml

import (
	"cmp"
	"slices"

	gonvml "github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/kerf-gpu/kerf/internal/node"
)

// MemoryInfo is a GPU's memory at one moment. Used + Free + Reserved = Total,
// where Reserved is what driver and firmware keep for themselves.
type MemoryInfo struct {
	Total, Used, Free, Reserved node.Bytes
}

// ProcessMemory is what one process holds of one GPU.
type ProcessMemory struct {
	PID   int // in the host's pid namespace
	Bytes node.Bytes
	// Unknown: the driver does not say how much, for lack of rights or, under
	// some modes, at all. Bytes is then 0.
	Unknown bool
}

// Utilization is NVML's: percent of the last sample period, a sixth of a second
// to a second, in which any kernel ran, or memory was read or written.
type Utilization struct {
	GPU, Memory node.Percent
}

func (l *Library) device(gpu node.UUID) (gonvml.Device, error) {
	dev, ret := l.api.DeviceGetHandleByUUID(gpu.String())
	return dev, check(ret, "find %s", gpu)
}

// Memory reads the memory of one GPU.
func (l *Library) Memory(gpu node.UUID) (MemoryInfo, error) {
	return l.memory(gpu.String())
}

// memory is of a GPU or a MIG device, by its UUID's text.
func (l *Library) memory(uuid string) (MemoryInfo, error) {
	dev, ret := l.api.DeviceGetHandleByUUID(uuid)
	if err := check(ret, "find %s", uuid); err != nil {
		return MemoryInfo{}, err
	}
	if m, ret := dev.GetMemoryInfo_v2(); ret == gonvml.SUCCESS {
		return MemoryInfo{
			Total: node.Bytes(m.Total), Used: node.Bytes(m.Used), Free: node.Bytes(m.Free), Reserved: node.Bytes(m.Reserved),
		}, nil
	}
	m, ret := dev.GetMemoryInfo()
	if err := check(ret, "read memory of %s", uuid); err != nil {
		return MemoryInfo{}, err
	}
	return MemoryInfo{Total: node.Bytes(m.Total), Used: node.Bytes(m.Used), Free: node.Bytes(m.Free)}, nil
}

// Processes lists the processes that have a context on a GPU, by pid. A process
// with both compute and graphics contexts, or with several MIG instances, is
// one entry.
func (l *Library) Processes(gpu node.UUID) ([]ProcessMemory, error) {
	dev, err := l.device(gpu)
	if err != nil {
		return nil, err
	}
	lists := []func() ([]gonvml.ProcessInfo, gonvml.Return){dev.GetComputeRunningProcesses, dev.GetGraphicsRunningProcesses}
	if l.has("nvmlDeviceGetMPSComputeRunningProcesses_v3") {
		lists = append(lists, dev.GetMPSComputeRunningProcesses)
	}
	byPID := map[int]ProcessMemory{}
	for _, list := range lists {
		infos, ret := list()
		if ret == gonvml.ERROR_NOT_SUPPORTED {
			continue
		}
		if err := check(ret, "list processes of %s", gpu); err != nil {
			return nil, err
		}
		merge(byPID, infos)
	}
	procs := make([]ProcessMemory, 0, len(byPID))
	for _, p := range byPID {
		procs = append(procs, p)
	}
	slices.SortFunc(procs, func(a, b ProcessMemory) int { return cmp.Compare(a.PID, b.PID) })
	return procs, nil
}

// notAvailable is NVML_VALUE_NOT_AVAILABLE.
const notAvailable = ^uint64(0)

// merge adds one list. Within a list, a pid that comes again is another MIG
// instance and adds up; across lists it is the same memory told twice.
func merge(byPID map[int]ProcessMemory, infos []gonvml.ProcessInfo) {
	list := map[int]ProcessMemory{}
	for _, info := range infos {
		p := list[int(info.Pid)]
		p.PID = int(info.Pid)
		if info.UsedGpuMemory == notAvailable {
			p.Unknown = true
		} else {
			p.Bytes += node.Bytes(info.UsedGpuMemory)
		}
		list[p.PID] = p
	}
	for pid, p := range list {
		if p.Bytes >= byPID[pid].Bytes {
			byPID[pid] = p
		}
	}
}

// Utilization reads how busy one GPU was.
func (l *Library) Utilization(gpu node.UUID) (Utilization, error) {
	dev, err := l.device(gpu)
	if err != nil {
		return Utilization{}, err
	}
	u, ret := dev.GetUtilizationRates()
	return Utilization{node.Percent(u.Gpu), node.Percent(u.Memory)}, check(ret, "read utilization of %s", gpu)
}
