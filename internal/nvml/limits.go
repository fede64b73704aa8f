package nvml

import (
	gonvml "github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/kerf-gpu/kerf/internal/node"
)

// LimitMemory makes the driver itself hold the processes of a cgroup (version 2, by its absolute path) together to hard bytes of
// a GPU's memory; soft is what it keeps for them. Not for MIG devices. The limit goes with the cgroup. Source:
// nvmlDeviceSetMemoryLimits_v1, from R615 on.
func (l *Library) LimitMemory(gpu node.UUID, cgroup string, soft, hard node.Bytes) error {
	if !l.MemoryLimitsSupported() { // go-nvml would end the program
		return check(gonvml.ERROR_FUNCTION_NOT_FOUND, "limit memory of %s on %s: the driver is older than R615", cgroup, gpu)
	}
	dev, ret := l.api.DeviceGetHandleByUUID(gpu.String())
	if err := check(ret, "find %s", gpu); err != nil {
		return err
	}
	return check(dev.SetMemoryLimits_v1(cgroup, uint64(soft), uint64(hard)), "limit memory of %s on %s", cgroup, gpu)
}
