package nvml_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"unsafe"

	gonvml "github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/google/go-cmp/cmp"

	"github.com/kerf-gpu/kerf/internal/nodetest"
	"github.com/kerf-gpu/kerf/internal/nvml"
	"github.com/kerf-gpu/kerf/internal/sim"
)

// raw opens go-nvml itself on a simulated node, for what internal/nvml does not ask.
func raw(t *testing.T, profile string) (gonvml.Interface, *sim.Node) {
	t.Helper()
	p, err := sim.LoadProfile(profile)
	if err != nil {
		t.Fatal(err)
	}
	n, err := sim.Create(filepath.Join(t.TempDir(), "node"), p, nodetest.SimulatorDir(t))
	if err != nil {
		t.Fatal(err)
	}
	path, err := nvml.FindLibrary(n.Root, "libnvidia-ml.so.1")
	if err != nil {
		t.Fatal(err)
	}
	api := gonvml.New(gonvml.WithLibraryPath(path))
	if ret := api.Init(); ret != gonvml.SUCCESS {
		t.Fatal(ret)
	}
	return api, n
}

// question is one call on a GPU: what it answers, and how.
type question struct {
	name string
	ask  func(gonvml.Device) (any, gonvml.Return)
}

func one[T any](f func(gonvml.Device) (T, gonvml.Return)) func(gonvml.Device) (any, gonvml.Return) {
	return func(d gonvml.Device) (any, gonvml.Return) {
		v, ret := f(d)
		return v, ret
	}
}

// questions is what a monitor asks of a data-centre GPU, with the answer of a healthy, idle H200.
var questions = []struct {
	question
	want any // nil: any value, as long as there is one
}{
	{question{"name", one(gonvml.Device.GetName)}, "NVIDIA H200 (simulated)"},
	{question{"brand", one(gonvml.Device.GetBrand)}, gonvml.BRAND_NVIDIA},
	{question{"architecture", one(gonvml.Device.GetArchitecture)}, gonvml.DeviceArchitecture(gonvml.DEVICE_ARCH_HOPPER)},
	{question{"serial", one(gonvml.Device.GetSerial)}, "SIM0000000003"},
	{question{"VBIOS", one(gonvml.Device.GetVbiosVersion)}, nil},
	{question{"part number", one(gonvml.Device.GetBoardPartNumber)}, nil},
	{question{"board id", one(gonvml.Device.GetBoardId)}, nil},
	{question{"BAR1", one(gonvml.Device.GetBAR1MemoryInfo)}, nil},
	{question{"bus width", one(gonvml.Device.GetMemoryBusWidth)}, uint32(6144)},
	{question{"memory v1", one(gonvml.Device.GetMemoryInfo)}, gonvml.Memory{Total: 143771 << 20, Free: 143243 << 20, Used: 528 << 20}},
	{question{"memory v2", one(func(d gonvml.Device) (uint64, gonvml.Return) { m, ret := d.GetMemoryInfo_v2(); return m.Reserved, ret })}, uint64(528 << 20)},
	{question{"compute processes", one(gonvml.Device.GetComputeRunningProcesses)}, nil},
	{question{"graphics processes", one(gonvml.Device.GetGraphicsRunningProcesses)}, nil},
	{question{"MPS processes", one(gonvml.Device.GetMPSComputeRunningProcesses)}, nil},
	{question{"utilization", one(gonvml.Device.GetUtilizationRates)}, gonvml.Utilization{}},
	{question{"PCIe replays", one(gonvml.Device.GetPcieReplayCounter)}, 0},
	{question{"PCIe throughput", one(func(d gonvml.Device) (uint32, gonvml.Return) { return d.GetPcieThroughput(gonvml.PCIE_UTIL_RX_BYTES) })}, uint32(0)},
	{question{"PCIe speed", one(gonvml.Device.GetPcieSpeed)}, 32000},
	{question{"CPU affinity", one(func(d gonvml.Device) ([]uint, gonvml.Return) { return d.GetCpuAffinity(64) })}, []uint{1<<56 - 1, 0xffff << 48, 1<<40 - 1, 0, 0, 0, 0, 0}},
	{question{"NUMA node", one(gonvml.Device.GetNumaNodeId)}, 0},
	{question{"ECC errors", one(func(d gonvml.Device) (uint64, gonvml.Return) {
		return d.GetTotalEccErrors(gonvml.MEMORY_ERROR_TYPE_CORRECTED, gonvml.AGGREGATE_ECC)
	})}, uint64(0)},
	{question{"ECC counter", one(func(d gonvml.Device) (uint64, gonvml.Return) {
		return d.GetMemoryErrorCounter(gonvml.MEMORY_ERROR_TYPE_UNCORRECTED, gonvml.VOLATILE_ECC, gonvml.MEMORY_LOCATION_DRAM)
	})}, uint64(0)},
	{question{"row histogram", one(gonvml.Device.GetRowRemapperHistogram)}, gonvml.RowRemapperHistogramValues{Max: 640}},
	{question{"SM clock", one(func(d gonvml.Device) (uint32, gonvml.Return) { return d.GetClockInfo(gonvml.CLOCK_SM) })}, uint32(345)},
	{question{"max SM clock", one(func(d gonvml.Device) (uint32, gonvml.Return) { return d.GetMaxClockInfo(gonvml.CLOCK_SM) })}, uint32(1980)},
	{question{"power", one(gonvml.Device.GetPowerUsage)}, uint32(70000)},
	{question{"power limit", one(gonvml.Device.GetPowerManagementLimit)}, uint32(700000)},
	{question{"energy", one(gonvml.Device.GetTotalEnergyConsumption)}, nil},
	{question{"temperature", one(func(d gonvml.Device) (uint32, gonvml.Return) { return d.GetTemperature(gonvml.TEMPERATURE_GPU) })}, uint32(34)},
	{question{"clock reasons", one(gonvml.Device.GetCurrentClocksEventReasons)}, uint64(1)},
	{question{"persistence", one(gonvml.Device.GetPersistenceMode)}, gonvml.FEATURE_ENABLED},
	{question{"compute mode", one(gonvml.Device.GetComputeMode)}, gonvml.COMPUTEMODE_DEFAULT},
	{question{"accounting", one(gonvml.Device.GetAccountingMode)}, gonvml.FEATURE_DISABLED},
	{question{"performance state", one(gonvml.Device.GetPerformanceState)}, gonvml.PSTATE_0},
	{question{"NVLink capability", one(func(d gonvml.Device) (uint32, gonvml.Return) {
		return d.GetNvLinkCapability(3, gonvml.NVLINK_CAP_P2P_SUPPORTED)
	})}, uint32(1)},
	{question{"MIG capacity", one(func(d gonvml.Device) (int, gonvml.Return) { return d.GetMaxMigDeviceCount() })}, 7},
	{question{"event types", one(gonvml.Device.GetSupportedEventTypes)}, nil},
}

func TestWhatAMonitorAsks(t *testing.T) {
	nodetest.InOwnProcess(t, func(t *testing.T) {
		api, _ := raw(t, "h200x8")
		dev, ret := api.DeviceGetHandleBySerial("SIM0000000003")
		if ret != gonvml.SUCCESS {
			t.Fatal(ret)
		}
		for _, q := range questions {
			got, ret := q.ask(dev)
			if ret != gonvml.SUCCESS {
				t.Errorf("%s: %v", q.name, ret)
			} else if d := cmp.Diff(q.want, got); q.want != nil && d != "" {
				t.Errorf("%s (-want +got):\n%s", q.name, d)
			}
		}
	})
}

func TestFieldValues(t *testing.T) {
	nodetest.InOwnProcess(t, func(t *testing.T) {
		api, n := raw(t, "h200x8")
		dev, ret := api.DeviceGetHandleByIndex(1)
		if ret != gonvml.SUCCESS {
			t.Fatal(ret)
		}
		if err := n.Inject(1, sim.Injection{Kind: "recovery", Value: 4}); err != nil {
			t.Fatal(err)
		}
		fields := []gonvml.FieldValue{
			{FieldId: gonvml.FI_DEV_GET_GPU_RECOVERY_ACTION}, {FieldId: gonvml.FI_DEV_NVLINK_LINK_COUNT},
			{FieldId: gonvml.FI_DEV_POWER_CURRENT_LIMIT}, {FieldId: gonvml.FI_DEV_NVLINK_GET_STATE, ScopeId: 17},
			{FieldId: gonvml.FI_DEV_NVLINK_GET_STATE, ScopeId: 18}, {FieldId: 9999},
		}
		if ret := dev.GetFieldValues(fields); ret != gonvml.SUCCESS {
			t.Fatal(ret)
		}
		type answer struct {
			Value  uint32
			Return gonvml.Return
		}
		var got []answer
		for _, f := range fields {
			got = append(got, answer{*(*uint32)(unsafe.Pointer(&f.Value)), gonvml.Return(f.NvmlReturn)})
		}
		want := []answer{{4, 0}, {18, 0}, {700000, 0}, {1, 0}, {0, gonvml.ERROR_INVALID_ARGUMENT}, {0, gonvml.ERROR_NOT_SUPPORTED}}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("fields (-want +got):\n%s", d)
		}
	})
}

// TestOldDriver: a driver from before R565 knows no recovery action, neither as a field nor as an event.
func TestOldDriver(t *testing.T) {
	nodetest.InOwnProcess(t, func(t *testing.T) {
		api, _ := raw(t, "a100x8")
		dev, _ := api.DeviceGetHandleByIndex(0)
		types, ret := dev.GetSupportedEventTypes()
		if ret != gonvml.SUCCESS || types&0x8000 != 0 || types&0x8 == 0 {
			t.Errorf("event types %x, %v", types, ret)
		}
		field := []gonvml.FieldValue{{FieldId: gonvml.FI_DEV_GET_GPU_RECOVERY_ACTION}}
		if ret := dev.GetFieldValues(field); ret != gonvml.SUCCESS || field[0].NvmlReturn != uint32(gonvml.ERROR_NOT_SUPPORTED) {
			t.Errorf("recovery action: %v, %+v", ret, field)
		}
	})
}

func TestTopology(t *testing.T) {
	nodetest.InOwnProcess(t, func(t *testing.T) {
		api, _ := raw(t, "a100x8")
		var got []gonvml.GpuTopologyLevel
		first, _ := api.DeviceGetHandleByIndex(0)
		for _, other := range []int{0, 1, 2, 4} {
			dev, _ := api.DeviceGetHandleByIndex(other)
			level, ret := first.GetTopologyCommonAncestor(dev)
			if ret != gonvml.SUCCESS {
				t.Error(ret)
			}
			got = append(got, level)
		}
		want := []gonvml.GpuTopologyLevel{gonvml.TOPOLOGY_INTERNAL, gonvml.TOPOLOGY_MULTIPLE, gonvml.TOPOLOGY_NODE, gonvml.TOPOLOGY_SYSTEM}
		if !slices.Equal(want, got) {
			t.Errorf("levels %v, want %v", got, want)
		}
		near, ret := first.GetTopologyNearestGpus(gonvml.TOPOLOGY_SYSTEM)
		if ret != gonvml.SUCCESS || len(near) != 4 {
			t.Errorf("GPUs of the other socket: %d, %v", len(near), ret)
		}
	})
}

// TestBadHandles: nothing that is handed in as a handle or an argument brings the library down.
func TestBadHandles(t *testing.T) {
	nodetest.InOwnProcess(t, func(t *testing.T) {
		api, _ := raw(t, "a100x8")
		for what, ret := range map[string]gonvml.Return{
			"index":    second(api.DeviceGetHandleByIndex(8)),
			"UUID":     second(api.DeviceGetHandleByUUID("GPU-nonsense")),
			"PCI":      second(api.DeviceGetHandleByPciBusId("99:99.0")),
			"PCI text": second(api.DeviceGetHandleByPciBusId("nonsense")),
			"serial":   second(api.DeviceGetHandleBySerial("0")),
		} {
			if ret == gonvml.SUCCESS {
				t.Errorf("%s: found", what)
			}
		}
		dev, _ := api.DeviceGetHandleByIndex(7)
		mig, ret := dev.GetMigDeviceHandleByIndex(0)
		if ret != gonvml.SUCCESS {
			t.Fatal(ret)
		}
		if name, ret := mig.GetName(); ret != gonvml.SUCCESS || name != "NVIDIA A100-SXM4-80GB MIG 3g.40gb (simulated)" {
			t.Errorf("MIG device %q, %v", name, ret)
		}
		if _, ret := mig.GetPowerUsage(); ret != gonvml.ERROR_NOT_SUPPORTED {
			t.Errorf("power of a MIG device: %v", ret)
		}
		if _, ret := dev.GetNvLinkState(12); ret != gonvml.ERROR_INVALID_ARGUMENT {
			t.Errorf("link 12 of 12: %v", ret)
		}
		if ret := api.Shutdown(); ret != gonvml.SUCCESS {
			t.Error(ret)
		}
	})
}

func second[T any](_ T, ret gonvml.Return) gonvml.Return { return ret }

// cutUp is GPU 6 of a100x8, which is in MIG mode and empty, with the info of one profile.
func cutUp(t *testing.T, slot int) (gonvml.Interface, *sim.Node, gonvml.Device, gonvml.GpuInstanceProfileInfo) {
	t.Helper()
	api, n := raw(t, "a100x8")
	dev, ret := api.DeviceGetHandleByIndex(6)
	if ret != gonvml.SUCCESS {
		t.Fatal(ret)
	}
	info, ret := dev.GetGpuInstanceProfileInfo(slot)
	if ret != gonvml.SUCCESS {
		t.Fatal(ret)
	}
	return api, n, dev, info
}

// TestMIGRules: what the driver refuses, and by which code.
func TestMIGRules(t *testing.T) {
	nodetest.InOwnProcess(t, func(t *testing.T) {
		api, n, dev, three := cutUp(t, gonvml.GPU_INSTANCE_PROFILE_3_SLICE)
		at := func(start, size uint32) *gonvml.GpuInstancePlacement {
			return &gonvml.GpuInstancePlacement{Start: start, Size: size}
		}
		gi, ret := dev.CreateGpuInstanceWithPlacement(&three, at(4, 4))
		if ret != gonvml.SUCCESS {
			t.Fatal(ret)
		}
		one, _ := dev.GetGpuInstanceProfileInfo(gonvml.GPU_INSTANCE_PROFILE_1_SLICE)
		media, _ := dev.GetGpuInstanceProfileInfo(gonvml.GPU_INSTANCE_PROFILE_1_SLICE_REV1)
		if _, ret := dev.CreateGpuInstance(&media); ret != gonvml.SUCCESS {
			t.Error(ret)
		}
		whole, ret := gi.GetComputeInstanceProfileInfo(gonvml.COMPUTE_INSTANCE_PROFILE_3_SLICE, 0)
		if ret != gonvml.SUCCESS || whole.MultiprocessorCount != 42 {
			t.Errorf("%+v, %v", whole, ret)
		}
		ci, ret := gi.CreateComputeInstance(&whole)
		if ret != gonvml.SUCCESS {
			t.Fatal(ret)
		}
		busy, _ := api.DeviceGetHandleByIndex(0)
		for _, tc := range []struct {
			what      string
			got, want gonvml.Return
		}{
			{"overlap", second(dev.CreateGpuInstanceWithPlacement(&one, at(5, 1))), gonvml.ERROR_INSUFFICIENT_RESOURCES},
			{"no such placement", second(dev.CreateGpuInstanceWithPlacement(&three, at(2, 4))), gonvml.ERROR_INVALID_ARGUMENT},
			{"placement of another", second(dev.CreateGpuInstanceWithPlacement(&three, at(0, 2))), gonvml.ERROR_INVALID_ARGUMENT},
			{"placement far away", second(dev.CreateGpuInstanceWithPlacement(&one, at(4e9, 1))), gonvml.ERROR_INVALID_ARGUMENT},
			{"one media engine", second(dev.CreateGpuInstance(&media)), gonvml.ERROR_INSUFFICIENT_RESOURCES},
			{"no such profile", second(dev.CreateGpuInstance(&gonvml.GpuInstanceProfileInfo{Id: 99})), gonvml.ERROR_INVALID_ARGUMENT},
			{"not in MIG mode", second(busy.CreateGpuInstance(&one)), gonvml.ERROR_NOT_SUPPORTED},
			{"second compute", second(gi.CreateComputeInstance(&whole)), gonvml.ERROR_INSUFFICIENT_RESOURCES},
			{"compute still there", gi.Destroy(), gonvml.ERROR_IN_USE},
			{"compute", ci.Destroy(), gonvml.SUCCESS},
		} {
			if tc.got != tc.want {
				t.Errorf("%s: %v, want %v", tc.what, tc.got, tc.want)
			}
		}
		for what, ret := range map[string]gonvml.Return{"compute": ci.Destroy(), "stale": second(ci.GetInfo())} {
			if ret != gonvml.ERROR_INVALID_ARGUMENT {
				t.Errorf("%s: %v", what, ret)
			}
		}
		if err := os.Remove(filepath.Join(n.Root, "dev/nvidia-caps/nvidia-cap1")); err != nil {
			t.Fatal(err)
		}
		if ret := gi.Destroy(); ret != gonvml.ERROR_NO_PERMISSION {
			t.Errorf("without the capability: %v", ret)
		}
	})
}

// TestMIGFills: a card holds as many as its profile says, each in a place of its own.
func TestMIGFills(t *testing.T) {
	nodetest.InOwnProcess(t, func(t *testing.T) {
		_, _, dev, one := cutUp(t, gonvml.GPU_INSTANCE_PROFILE_1_SLICE)
		ids := map[uint32]bool{}
		for want := 7; want > 0; want-- {
			if left, ret := dev.GetGpuInstanceRemainingCapacity(&one); ret != gonvml.SUCCESS || left != want {
				t.Errorf("room for %d, %v; want %d", left, ret, want)
			}
			gi, ret := dev.CreateGpuInstance(&one)
			if ret != gonvml.SUCCESS {
				t.Fatal(ret)
			}
			info, _ := gi.GetInfo()
			ids[info.Id] = true
		}
		if _, ret := dev.CreateGpuInstance(&one); ret != gonvml.ERROR_INSUFFICIENT_RESOURCES || len(ids) != 7 {
			t.Errorf("an eighth: %v; ids %v", ret, ids)
		}
		if all, ret := dev.GetGpuInstances(&one); ret != gonvml.SUCCESS || len(all) != 7 {
			t.Errorf("%d instances, %v", len(all), ret)
		}
	})
}

// TestMIGCompleted: a GPU instance without its compute instance is what a crash leaves. It is no MIG device, and CreateMIG ends it.
func TestMIGCompleted(t *testing.T) {
	nodetest.InOwnProcess(t, func(t *testing.T) {
		_, n, dev, three := cutUp(t, gonvml.GPU_INSTANCE_PROFILE_3_SLICE)
		gi, ret := dev.CreateGpuInstanceWithPlacement(&three, &gonvml.GpuInstancePlacement{Start: 4, Size: 4})
		if ret != gonvml.SUCCESS {
			t.Fatal(ret)
		}
		lib, err := nvml.Open(n.Root)
		if err != nil {
			t.Fatal(err)
		}
		gpus, err := lib.GPUs()
		if err != nil || len(gpus[6].MIG.Instances) != 0 {
			t.Fatalf("%+v, %v", gpus[6].MIG.Instances, err)
		}
		in, err := lib.CreateMIG(gpus[6].UUID, "3g.40gb", 4)
		if err != nil {
			t.Fatal(err)
		}
		info, ret := gi.GetInfo()
		if ret != gonvml.SUCCESS || in.GPUInstance != int(info.Id) || in.Start != 4 || in.Slices != 4 {
			t.Errorf("%+v is not GPU instance %+v, %v", in, info, ret)
		}
	})
}

// TestUnsupportedIsAnswered: what the simulator does not serve exists and says so, where a missing function would end
// the process.
func TestUnsupportedIsAnswered(t *testing.T) {
	nodetest.InOwnProcess(t, func(t *testing.T) {
		api, _ := raw(t, "l40sx4")
		dev, _ := api.DeviceGetHandleByIndex(0)
		if _, ret := dev.GetEncoderSessions(); ret != gonvml.ERROR_NOT_SUPPORTED {
			t.Errorf("encoder sessions: %v", ret)
		}
		if _, ret := dev.GetActiveVgpus(); ret != gonvml.ERROR_NOT_SUPPORTED {
			t.Errorf("vGPUs: %v", ret)
		}
		if err := api.Extensions().LookupSymbol("nvmlDeviceSetMemoryLimits_v1"); err == nil {
			t.Error("the simulated driver claims to limit memory itself")
		}
	})
}
