package sim

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestNVMLLayouts compiles nvml/abi.h beside NVIDIA's header, which go-nvml carries, and compares each struct's size
// and the offsets of the fields by which a mistake would show.
func TestNVMLLayouts(t *testing.T) {
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		t.Skip("gcc is not installed; the layouts cannot be compared")
	}
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/NVIDIA/go-nvml").Output()
	if err != nil {
		t.Fatal(err)
	}
	var code strings.Builder
	fmt.Fprintf(&code, "#include <stddef.h>\n#include \"%s/pkg/nvml/nvml.h\"\n#include \"abi.h\"\n", strings.TrimSpace(string(out)))
	for _, row := range []struct{ ours, theirs, fields string }{
		{"struct nv_pci", "nvmlPciInfo_t", "bus_id_legacy busIdLegacy, domain domain, pci_id pciDeviceId, bus_id busId"},
		{"struct nv_memory", "nvmlMemory_t", "total total, free free, used used"},
		{"struct nv_memory_v2", "nvmlMemory_v2_t", "version version, total total, reserved reserved, free free, used used"},
		{"struct nv_bar1", "nvmlBAR1Memory_t", "total bar1Total, free bar1Free, used bar1Used"},
		{"struct nv_utilization", "nvmlUtilization_t", "gpu gpu, memory memory"},
		{"struct nv_process_v1", "nvmlProcessInfo_v1_t", "pid pid, used usedGpuMemory"},
		{"struct nv_process", "nvmlProcessInfo_v2_t", "pid pid, used usedGpuMemory, gi gpuInstanceId, ci computeInstanceId"},
		{"struct nv_process", "nvmlProcessInfo_t", "pid pid, used usedGpuMemory, gi gpuInstanceId, ci computeInstanceId"},
		{"struct nv_process_sample", "nvmlProcessUtilizationSample_t", "pid pid, time_us timeStamp, sm smUtil, mem memUtil, enc encUtil, dec decUtil"},
		{"struct nv_event", "nvmlEventData_t", "device device, type eventType, data eventData, gi gpuInstanceId, ci computeInstanceId"},
		{"struct nv_field", "nvmlFieldValue_t", "id fieldId, scope scopeId, time_us timestamp, latency_us latencyUsec, type valueType, result nvmlReturn, value value"},
		{"struct nv_ecc_counts", "nvmlEccErrorCounts_t", "l1 l1Cache, l2 l2Cache, device deviceMemory, registers registerFile"},
		{"struct nv_sram_v1", "nvmlEccSramErrorStatus_v1_t", "version version, volatile_parity volatileUncParity, bucket_l2 aggregateUncBucketL2, threshold_exceeded bThresholdExceeded"},
		{"struct nv_row_histogram", "nvmlRowRemapperHistogramValues_t", "max max, high high, partial partial, low low, none none"},
		{"struct nv_temperature_v1", "nvmlTemperature_v1_t", "version version, sensor sensorType, celsius temperature"},
		{"struct nv_uuid_v1", "nvmlUUID_v1_t", "version version, type type, value value"},
		{"struct nv_placement", "nvmlGpuInstancePlacement_t", "start start, size size"},
		{"struct nv_gi_profile", "nvmlGpuInstanceProfileInfo_t", "id id, slices sliceCount, count instanceCount, sms multiprocessorCount, memory_mb memorySizeMB"},
		{"struct nv_gi_profile_v2", "nvmlGpuInstanceProfileInfo_v2_t", "version version, slices sliceCount, sms multiprocessorCount, memory_mb memorySizeMB, name name"},
		{"struct nv_gi_profile_v3", "nvmlGpuInstanceProfileInfo_v3_t", "version version, slices sliceCount, sms multiprocessorCount, memory_mb memorySizeMB, name name, capabilities capabilities"},
		{"struct nv_gi_info", "nvmlGpuInstanceInfo_t", "device device, id id, profile profileId, placement placement"},
		{"struct nv_ci_info", "nvmlComputeInstanceInfo_t", "device device, gi gpuInstance, id id, profile profileId, placement placement"},
		{"struct nv_placement", "nvmlComputeInstancePlacement_t", "start start, size size"},
		{"struct nv_ci_profile", "nvmlComputeInstanceProfileInfo_t", "id id, slices sliceCount, count instanceCount, sms multiprocessorCount, ofas sharedOfaCount"},
		{"struct nv_ci_profile_v2", "nvmlComputeInstanceProfileInfo_v2_t", "version version, slices sliceCount, count instanceCount, sms multiprocessorCount, name name"},
		{"struct nv_ci_profile_v3", "nvmlComputeInstanceProfileInfo_v3_t", "version version, slices sliceCount, sms multiprocessorCount, name name, capabilities capabilities"},
		{"struct nv_attributes", "nvmlDeviceAttributes_t", "sms multiprocessorCount, copy_engines sharedCopyEngineCount, gi_slices gpuInstanceSliceCount, ci_slices computeInstanceSliceCount, memory_mb memorySizeMB"},
	} {
		fmt.Fprintf(&code, "_Static_assert(sizeof(%s) == sizeof(%s), \"size of %s\");\n", row.ours, row.theirs, row.theirs)
		for pair := range strings.SplitSeq(row.fields, ", ") {
			ours, theirs, _ := strings.Cut(pair, " ")
			fmt.Fprintf(&code, "_Static_assert(offsetof(%s, %s) == offsetof(%s, %s), \"%s.%s\");\n", row.ours, ours, row.theirs, theirs, row.theirs, theirs)
		}
	}
	for ours, theirs := range map[string]string{
		"NV_NOT_SUPPORTED": "NVML_ERROR_NOT_SUPPORTED", "NV_INSUFFICIENT_SIZE": "NVML_ERROR_INSUFFICIENT_SIZE", "NV_DRIVER_NOT_LOADED": "NVML_ERROR_DRIVER_NOT_LOADED",
		"NV_TIMEOUT": "NVML_ERROR_TIMEOUT", "NV_GPU_IS_LOST": "NVML_ERROR_GPU_IS_LOST", "NV_VERSION_MISMATCH": "NVML_ERROR_ARGUMENT_VERSION_MISMATCH",
		"NV_LIB_RM_VERSION_MISMATCH": "NVML_ERROR_LIB_RM_VERSION_MISMATCH", "NV_NOT_FOUND": "NVML_ERROR_NOT_FOUND", "NV_MEMORY": "NVML_ERROR_MEMORY",
		"NV_IN_USE": "NVML_ERROR_IN_USE", "NV_INSUFFICIENT_RESOURCES": "NVML_ERROR_INSUFFICIENT_RESOURCES", "NV_NO_PERMISSION": "NVML_ERROR_NO_PERMISSION",
	} {
		fmt.Fprintf(&code, "_Static_assert((int)%s == (int)%s, \"%s\");\n", ours, theirs, theirs)
	}
	src := filepath.Join(t.TempDir(), "layout.c")
	if err := os.WriteFile(src, []byte(code.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(gcc, "-std=gnu11", "-fsyntax-only", "-w", "-Invml", src).CombinedOutput(); err != nil {
		t.Errorf("layouts differ: %v\n%s", err, out)
	}
}
