/* device.c: enumeration, attributes and names of devices. */
#define _GNU_SOURCE
#include "sim.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>

CUresult device_of(CUdevice dev, struct simdev **out)
{
	TRY(ready());
	REQUIRE(dev >= 0 && dev < g.ndev, CUDA_ERROR_INVALID_DEVICE);
	*out = &g.dev[dev];
	return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice *device, int ordinal)
{
	TRY(ready());
	REQUIRE(device, CUDA_ERROR_INVALID_VALUE);
	REQUIRE(ordinal >= 0 && ordinal < g.ndev, CUDA_ERROR_INVALID_DEVICE);
	*device = ordinal;
	return CUDA_SUCCESS;
}

CUresult cuDeviceGetCount(int *count)
{
	TRY(ready());
	REQUIRE(count, CUDA_ERROR_INVALID_VALUE);
	*count = g.ndev;
	return CUDA_SUCCESS;
}

#define SIMULATED " (simulated)" /* the end of every name */

CUresult cuDeviceGetName(char *name, int len, CUdevice dev)
{
	struct simdev *d;
	REQUIRE(name && len > 0, CUDA_ERROR_INVALID_VALUE);
	TRY(device_of(dev, &d));
	if (d->profile) {
		const char *full = d->gpu->facts.name, *mark = strstr(full, SIMULATED);
		snprintf(name, (size_t)len, "%.*s MIG %s" SIMULATED, mark ? (int)(mark - full) : 40, full, d->profile->name);
		return CUDA_SUCCESS;
	}
	snprintf(name, (size_t)len, "%s", d->gpu->facts.name);
	return CUDA_SUCCESS;
}

CUresult cuDeviceGetUuid(CUuuid *uuid, CUdevice dev)
{
	struct simdev *d;
	REQUIRE(uuid, CUDA_ERROR_INVALID_VALUE);
	TRY(device_of(dev, &d));
	memcpy(uuid->bytes, d->gpu->facts.uuid, sizeof uuid->bytes);
	return CUDA_SUCCESS;
}

/* The first version knows no MIG: it tells the GPU's. */
CUresult cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice dev)
{
	struct simdev *d;
	REQUIRE(uuid, CUDA_ERROR_INVALID_VALUE);
	TRY(device_of(dev, &d));
	memcpy(uuid->bytes, d->uuid, sizeof uuid->bytes);
	return CUDA_SUCCESS;
}

CUresult cuDeviceGetLuid(char *luid, unsigned int *deviceNodeMask, CUdevice dev)
{
	struct simdev *d;
	(void)luid;
	(void)deviceNodeMask;
	TRY(device_of(dev, &d));
	return CUDA_ERROR_NOT_SUPPORTED; /* Windows only */
}

CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice dev)
{
	struct simdev *d;
	REQUIRE(bytes, CUDA_ERROR_INVALID_VALUE);
	TRY(device_of(dev, &d));
	*bytes = capacity(d);
	return CUDA_SUCCESS;
}

/* --- attributes -------------------------------------------------------------------------------------- */

/* What does not depend on the GPU. An attribute that is not listed here or below is 0: not supported. */
static const struct { CUdevice_attribute attrib; int value; } constant[] = {
	{ CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK, 1024 },
	{ CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X, 1024 },
	{ CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y, 1024 },
	{ CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z, 64 },
	{ CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X, INT_MAX },
	{ CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y, 65535 },
	{ CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z, 65535 },
	{ CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK, 49152 },
	{ CU_DEVICE_ATTRIBUTE_TOTAL_CONSTANT_MEMORY, 65536 },
	{ CU_DEVICE_ATTRIBUTE_WARP_SIZE, 32 },
	{ CU_DEVICE_ATTRIBUTE_MAX_PITCH, INT_MAX },
	{ CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK, 65536 },
	{ CU_DEVICE_ATTRIBUTE_TEXTURE_ALIGNMENT, 512 },
	{ CU_DEVICE_ATTRIBUTE_GPU_OVERLAP, 1 },
	{ CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY, 1 },
	{ CU_DEVICE_ATTRIBUTE_MAXIMUM_TEXTURE1D_WIDTH, 131072 },
	{ CU_DEVICE_ATTRIBUTE_MAXIMUM_TEXTURE2D_WIDTH, 131072 },
	{ CU_DEVICE_ATTRIBUTE_MAXIMUM_TEXTURE2D_HEIGHT, 65536 },
	{ CU_DEVICE_ATTRIBUTE_MAXIMUM_TEXTURE3D_WIDTH, 16384 },
	{ CU_DEVICE_ATTRIBUTE_MAXIMUM_TEXTURE3D_HEIGHT, 16384 },
	{ CU_DEVICE_ATTRIBUTE_MAXIMUM_TEXTURE3D_DEPTH, 16384 },
	{ CU_DEVICE_ATTRIBUTE_SURFACE_ALIGNMENT, 512 },
	{ CU_DEVICE_ATTRIBUTE_CONCURRENT_KERNELS, 1 },
	{ CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR, 2048 },
	{ CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT, 2 },
	{ CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING, 1 },
	{ CU_DEVICE_ATTRIBUTE_TEXTURE_PITCH_ALIGNMENT, 32 },
	{ CU_DEVICE_ATTRIBUTE_STREAM_PRIORITIES_SUPPORTED, 1 },
	{ CU_DEVICE_ATTRIBUTE_GLOBAL_L1_CACHE_SUPPORTED, 1 },
	{ CU_DEVICE_ATTRIBUTE_LOCAL_L1_CACHE_SUPPORTED, 1 },
	{ CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR, 167936 },
	{ CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR, 65536 },
	{ CU_DEVICE_ATTRIBUTE_MANAGED_MEMORY, 1 },
	{ CU_DEVICE_ATTRIBUTE_SINGLE_TO_DOUBLE_PRECISION_PERF_RATIO, 2 },
	{ CU_DEVICE_ATTRIBUTE_CONCURRENT_MANAGED_ACCESS, 1 },
	{ CU_DEVICE_ATTRIBUTE_COMPUTE_PREEMPTION_SUPPORTED, 1 },
	{ CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM, 1 },
	{ CU_DEVICE_ATTRIBUTE_CAN_USE_STREAM_MEM_OPS_V1, 1 },
	{ CU_DEVICE_ATTRIBUTE_CAN_USE_64_BIT_STREAM_MEM_OPS_V1, 1 },
	{ CU_DEVICE_ATTRIBUTE_CAN_USE_STREAM_WAIT_VALUE_NOR_V1, 1 },
	{ CU_DEVICE_ATTRIBUTE_CAN_USE_64_BIT_STREAM_MEM_OPS, 1 },
	{ CU_DEVICE_ATTRIBUTE_CAN_USE_STREAM_WAIT_VALUE_NOR, 1 },
	{ CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH, 1 },
	{ CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, 166912 },
	{ CU_DEVICE_ATTRIBUTE_HOST_REGISTER_SUPPORTED, 1 },
	{ CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED, 1 },
	{ CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED, 1 },
	{ CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR, 32 },
	{ CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK, 1024 },
	{ CU_DEVICE_ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED, 1 },
	{ CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED, 1 },
	{ CU_DEVICE_ATTRIBUTE_MEMPOOL_SUPPORTED_HANDLE_TYPES, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR },
	{ CU_DEVICE_ATTRIBUTE_DEFERRED_MAPPING_CUDA_ARRAY_SUPPORTED, 1 },
	{ CU_DEVICE_ATTRIBUTE_IPC_EVENT_SUPPORTED, 0 },
	{ CU_DEVICE_ATTRIBUTE_MEM_SYNC_DOMAIN_COUNT, 1 },
	{ CU_DEVICE_ATTRIBUTE_UNIFIED_FUNCTION_POINTERS, 1 },
};

static bool fact(const struct simdev *d, CUdevice_attribute a, int *out)
{
	const struct sim_facts *f = &d->gpu->facts;
	switch (a) {
	case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT:   *out = (int)sm_count(d); return true;
	case CU_DEVICE_ATTRIBUTE_MPS_ENABLED:            *out = d->use->mps != 0; return true;
	case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *out = (int)f->cc_major; return true;
	case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *out = (int)f->cc_minor; return true;
	case CU_DEVICE_ATTRIBUTE_CLUSTER_LAUNCH:         *out = f->cc_major >= 9; return true;
	case CU_DEVICE_ATTRIBUTE_CLOCK_RATE:             *out = (int)f->sm_clock_mhz * 1000; return true;
	case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE:      *out = (int)f->memory_clock_mhz * 1000; return true;
	case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH: *out = (int)f->bus_width; return true;
	case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE:          *out = 50 << 20; return true;
	case CU_DEVICE_ATTRIBUTE_ECC_ENABLED:            *out = (int)d->gpu->health.ecc_mode; return true;
	case CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID:          *out = (int)f->pci_domain; return true;
	case CU_DEVICE_ATTRIBUTE_PCI_BUS_ID:             *out = (int)f->pci_bus; return true;
	case CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID:          *out = (int)f->pci_device; return true;
	case CU_DEVICE_ATTRIBUTE_GPU_PCI_DEVICE_ID:      *out = (int)f->pci_id; return true;
	case CU_DEVICE_ATTRIBUTE_GPU_PCI_SUBSYSTEM_ID:   *out = (int)f->pci_subsystem_id; return true;
	case CU_DEVICE_ATTRIBUTE_HOST_NUMA_ID:           *out = f->numa_node; return true;
	case CU_DEVICE_ATTRIBUTE_NUMA_ID:                *out = -1; return true;
	case CU_DEVICE_ATTRIBUTE_COMPUTE_MODE:           *out = (int)d->gpu->health.compute_mode; return true;
	default: return false;
	}
}

CUresult cuDeviceGetAttribute(int *pi, CUdevice_attribute attrib, CUdevice dev)
{
	struct simdev *d;
	REQUIRE(pi, CUDA_ERROR_INVALID_VALUE);
	TRY(device_of(dev, &d));
	REQUIRE((int)attrib > 0 && attrib <= CU_DEVICE_ATTRIBUTE_ONLY_PARTIAL_HOST_NATIVE_ATOMIC_SUPPORTED, CUDA_ERROR_INVALID_VALUE);
	*pi = 0;
	if (fact(d, attrib, pi))
		return CUDA_SUCCESS;
	for (size_t i = 0; i < sizeof constant / sizeof constant[0]; i++)
		if (constant[i].attrib == attrib)
			*pi = constant[i].value;
	return CUDA_SUCCESS;
}

CUresult cuDeviceComputeCapability(int *major, int *minor, CUdevice dev)
{
	struct simdev *d;
	REQUIRE(major && minor, CUDA_ERROR_INVALID_VALUE);
	TRY(device_of(dev, &d));
	*major = (int)d->gpu->facts.cc_major;
	*minor = (int)d->gpu->facts.cc_minor;
	return CUDA_SUCCESS;
}

CUresult cuDeviceGetProperties(CUdevprop *prop, CUdevice dev)
{
	struct simdev *d;
	REQUIRE(prop, CUDA_ERROR_INVALID_VALUE);
	TRY(device_of(dev, &d));
	*prop = (CUdevprop){ .maxThreadsPerBlock = 1024, .maxThreadsDim = { 1024, 1024, 64 }, .maxGridSize = { INT_MAX, 65535, 65535 },
	                     .sharedMemPerBlock = 49152, .totalConstantMemory = 65536, .SIMDWidth = 32, .memPitch = INT_MAX,
	                     .regsPerBlock = 65536, .clockRate = (int)d->gpu->facts.sm_clock_mhz * 1000, .textureAlign = 512 };
	return CUDA_SUCCESS;
}

/* --- PCI and peers ----------------------------------------------------------------------------------- */

CUresult cuDeviceGetPCIBusId(char *pciBusId, int len, CUdevice dev)
{
	struct simdev *d;
	REQUIRE(pciBusId && len > 0, CUDA_ERROR_INVALID_VALUE);
	TRY(device_of(dev, &d));
	const struct sim_facts *f = &d->gpu->facts;
	int n = snprintf(pciBusId, (size_t)len, "%04X:%02X:%02X.%u", f->pci_domain, f->pci_bus, f->pci_device, f->pci_function);
	return n < len ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuDeviceGetByPCIBusId(CUdevice *dev, const char *pciBusId)
{
	unsigned domain = 0, bus, device, function = 0;
	TRY(ready());
	REQUIRE(dev && pciBusId, CUDA_ERROR_INVALID_VALUE);
	if (sscanf(pciBusId, "%x:%x:%x.%x", &domain, &bus, &device, &function) != 4 &&
	    (domain = 0, sscanf(pciBusId, "%x:%x:%x", &domain, &bus, &device)) != 3 &&
	    (domain = 0, sscanf(pciBusId, "%x:%x.%x", &bus, &device, &function)) != 3)
		return CUDA_ERROR_INVALID_VALUE;
	for (int i = 0; i < g.ndev; i++) {
		const struct sim_facts *f = &g.dev[i].gpu->facts;
		if (f->pci_domain == domain && f->pci_bus == bus && f->pci_device == device) {
			*dev = i;
			return CUDA_SUCCESS;
		}
	}
	return CUDA_ERROR_INVALID_DEVICE;
}

static bool peers(const struct simdev *a, const struct simdev *b)
{
	return a != b && !a->mig && !b->mig && (a->gpu->facts.p2p_mask >> b->node_index & 1);
}

CUresult cuDeviceCanAccessPeer(int *canAccessPeer, CUdevice dev, CUdevice peerDev)
{
	struct simdev *a, *b;
	REQUIRE(canAccessPeer, CUDA_ERROR_INVALID_VALUE);
	TRY(device_of(dev, &a));
	TRY(device_of(peerDev, &b));
	*canAccessPeer = peers(a, b);
	return CUDA_SUCCESS;
}

CUresult cuDeviceGetP2PAttribute(int *value, CUdevice_P2PAttribute attrib, CUdevice srcDevice, CUdevice dstDevice)
{
	struct simdev *a, *b;
	REQUIRE(value && attrib >= CU_DEVICE_P2P_ATTRIBUTE_PERFORMANCE_RANK && attrib <= CU_DEVICE_P2P_ATTRIBUTE_CUDA_ARRAY_ACCESS_SUPPORTED,
	        CUDA_ERROR_INVALID_VALUE);
	TRY(device_of(srcDevice, &a));
	TRY(device_of(dstDevice, &b));
	REQUIRE(a != b, CUDA_ERROR_INVALID_DEVICE);
	*value = attrib == CU_DEVICE_P2P_ATTRIBUTE_PERFORMANCE_RANK ? 0 : peers(a, b);
	return CUDA_SUCCESS;
}

CUresult cuDeviceGetTexture1DLinearMaxWidth(size_t *maxWidthInElements, CUarray_format format, unsigned numChannels, CUdevice dev)
{
	struct simdev *d;
	REQUIRE(maxWidthInElements && numChannels && format, CUDA_ERROR_INVALID_VALUE);
	TRY(device_of(dev, &d));
	*maxWidthInElements = (size_t)1 << 28;
	return CUDA_SUCCESS;
}

CUresult cuDeviceGetExecAffinitySupport(int *pi, CUexecAffinityType type, CUdevice dev)
{
	struct simdev *d;
	REQUIRE(pi && type == CU_EXEC_AFFINITY_TYPE_SM_COUNT, CUDA_ERROR_INVALID_VALUE);
	TRY(device_of(dev, &d));
	*pi = 0;
	return CUDA_SUCCESS;
}

CUresult cuFlushGPUDirectRDMAWrites(CUflushGPUDirectRDMAWritesTarget target, CUflushGPUDirectRDMAWritesScope scope)
{
	CUcontext c;
	(void)target;
	(void)scope;
	TRY(current(&c));
	return CUDA_ERROR_NOT_SUPPORTED;
}
