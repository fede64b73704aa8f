package nvml

import (
	"errors"
	"math"

	gonvml "github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/kerf-gpu/kerf/internal/node"
)

// Vitals reads what a GPU says of itself. A lost one is no error: Fault.Lost is set then, and the rest is zero. A GPU that hangs hangs
// this call, and no other.
func (l *Library) Vitals(gpu node.UUID) (node.Vitals, error) {
	dev, err := l.device(gpu)
	if errors.Is(err, ErrLost) {
		return node.Vitals{Fault: node.Fault{Lost: true}}, nil
	}
	if err != nil {
		return node.Vitals{}, err
	}
	r := &reader{}
	v := l.vitals(r, dev)
	if errors.Is(r.err, ErrLost) {
		v.Lost = true
		return v, nil
	}
	return v, r.err
}

func (l *Library) vitals(r *reader, dev gonvml.Device) (v node.Vitals) {
	v.Fault = l.fault(r, dev)
	v.Told = told(dev)
	if n, ret := dev.GetTotalEccErrors(gonvml.MEMORY_ERROR_TYPE_CORRECTED, gonvml.VOLATILE_ECC); r.optional("ECC errors", ret) {
		v.Corrected, v.Told = n, v.Told|node.ToldECC
	}
	if corrected, uncorrected, _, _, ret := dev.GetRemappedRows(); r.optional("remapped rows", ret) {
		v.RemappedCorrectable, v.RemappedUncorrectable, v.Told = corrected, uncorrected, v.Told|node.ToldRemap
	}
	if l.has("nvmlDeviceGetSramEccErrorStatus") {
		if status, ret := dev.GetSramEccErrorStatus(); r.optional("SRAM errors", ret) {
			v.SRAMThreshold, v.Told = status.BThresholdExceeded != 0, v.Told|node.ToldSRAM
		}
	}
	if reasons, ret := dev.GetCurrentClocksThrottleReasons(); r.optional("throttle reasons", ret) {
		v.Throttle, v.Told = node.ThrottleReasons(reasons), v.Told|node.ToldThrottle
	}
	if n, ret := dev.GetPcieReplayCounter(); r.optional("PCIe replays", ret) && n >= 0 {
		v.Replays, v.Told = uint64(n), v.Told|node.ToldReplays
	}
	l.sensors(r, dev, &v)
	v.Link = pcieLink(r, dev)
	for i := range gonvml.NVLINK_MAX_LINKS {
		state, ret := dev.GetNvLinkState(i)
		if !r.optional("NVLink state", ret) {
			break // past the last link, or a GPU without
		}
		v.NVLinks++
		if state == gonvml.FEATURE_ENABLED {
			v.NVLinksUp++
		}
	}
	return v
}

// told asks again for the recovery action alone: of a driver that does not know it, zero would mean that all is well.
func told(dev gonvml.Device) node.Told {
	field := []gonvml.FieldValue{{FieldId: gonvml.FI_DEV_GET_GPU_RECOVERY_ACTION}}
	if ret := dev.GetFieldValues(field); ret == gonvml.SUCCESS && field[0].NvmlReturn == uint32(gonvml.SUCCESS) {
		return node.ToldRecovery
	}
	return 0
}

// sensors are numbers that no verdict hangs on.
func (l *Library) sensors(r *reader, dev gonvml.Device, v *node.Vitals) {
	if t, ret := dev.GetTemperature(gonvml.TEMPERATURE_GPU); r.optional("temperature", ret) && t < math.MaxInt16 {
		v.Temperature = int(t)
	}
	memory := []gonvml.FieldValue{{FieldId: gonvml.FI_DEV_MEMORY_TEMP}}
	if ret := dev.GetFieldValues(memory); r.optional("memory temperature", ret) && memory[0].NvmlReturn == uint32(gonvml.SUCCESS) {
		v.MemoryTemperature = int(memory[0].Value[0])
	}
	if milliwatts, ret := dev.GetPowerUsage(); r.optional("power", ret) {
		v.Power = float64(milliwatts) / 1000
	}
	if millijoules, ret := dev.GetTotalEnergyConsumption(); r.optional("energy", ret) {
		v.Energy = float64(millijoules) / 1000
	}
	if m, ret := dev.GetMemoryInfo(); r.optional("memory", ret) {
		v.MemoryUsed, v.MemoryTotal = node.Bytes(m.Used), node.Bytes(m.Total)
	}
	if u, ret := dev.GetUtilizationRates(); r.optional("utilization", ret) {
		v.Utilization = min(node.Percent(u.Gpu), 100)
	}
}
