/* swap_info.c: what the driver would say of an area's addresses would be wrong (a mapping's size, not the allocation's) or an
 * error (when the memory is out). So the answers are those of the native allocation that the tenant believes it has.
 *
 * What hands memory to others is refused, since it would have to stay where it is for ever: CUDA IPC handles (which
 * the driver does not make of such memory anyhow) and dma-buf. Programs that ask first are told so: LEGACY_CUDA_IPC_CAPABLE
 * and GPU_DIRECT_RDMA_CAPABLE are 0. CU_POINTER_ATTRIBUTE_SYNC_MEMOPS is what a program sets on memory that it gives to other
 * hardware: such an area is pinned.
 */
#include "swap.h"

static bool look(CUdeviceptr p, CUdeviceptr *base, uint64_t *bytes, struct area *out)
{
	struct area *a;
	bool found;

	if (likely(!load_relaxed(&swap_used)))
		return false;
	lock(&swap_lock);
	found = swap_span(p, base, bytes, &a);
	if (found)
		*out = *a;
	unlock(&swap_lock);
	return found;
}

bool kerf_swap_owns(CUdeviceptr p)
{
	struct area *a;

	if (likely(!load_relaxed(&swap_used)))
		return false;
	lock(&swap_lock);
	a = swap_find(p);
	unlock(&swap_lock);
	return a != NULL;
}

static CUresult no_context(void)
{
	CUcontext ctx = NULL;
	CUresult r = REAL(cuCtxGetCurrent)(&ctx);

	return r ? r : ctx ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}

CUresult on_address_range(real_on_address_range real, CUdeviceptr *base, size_t *n, CUdeviceptr p)
{
	CUdeviceptr first;
	struct area a;
	uint64_t bytes;
	CUresult r;

	if (!look(p, &first, &bytes, &a))
		return real(base, n, p);
	r = no_context();
	if (r)
		return r;
	if (base)
		*base = first;
	if (n)
		*n = bytes;
	return CUDA_SUCCESS;
}

static CUresult attribute(void *out, CUpointer_attribute which, CUdeviceptr p, CUdeviceptr base, uint64_t bytes, const struct area *a)
{
	switch (which) {
	case CU_POINTER_ATTRIBUTE_CONTEXT:
		*(CUcontext *)out = a->ctx;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
		*(unsigned *)out = CU_MEMORYTYPE_DEVICE;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
		*(CUdeviceptr *)out = p;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_SYNC_MEMOPS:
		*(unsigned *)out = a->sync_memops;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_BUFFER_ID:
	case CU_POINTER_ATTRIBUTE_MEMORY_BLOCK_ID:
		*(unsigned long long *)out = which == CU_POINTER_ATTRIBUTE_BUFFER_ID ? a->id << 12 | (base - a->base) / GRANULE : a->id;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
		*(int *)out = a->device->ordinal;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
		*(CUdeviceptr *)out = base;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
		*(size_t *)out = bytes;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_MAPPED:
		*(unsigned *)out = 1;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_IS_MANAGED:
	case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE:
	case CU_POINTER_ATTRIBUTE_IS_GPU_DIRECT_RDMA_CAPABLE:
	case CU_POINTER_ATTRIBUTE_IS_HW_DECOMPRESS_CAPABLE:
		*(unsigned *)out = 0;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES:
	case CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE:
		*(uint64_t *)out = 0;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_ACCESS_FLAGS:
		*(unsigned *)out = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_MAPPING_SIZE:
		*(size_t *)out = a->span;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_MAPPING_BASE_ADDR:
		*(CUdeviceptr *)out = a->base;
		return CUDA_SUCCESS;
	default: /* a host pointer, tokens for a network card, and what is newer than this file */
		return CUDA_ERROR_INVALID_VALUE;
	}
}

CUresult on_pointer_get(real_on_pointer_get real, void *out, CUpointer_attribute which, CUdeviceptr p)
{
	CUdeviceptr base;
	struct area a;
	uint64_t bytes;

	if (!out || !look(p, &base, &bytes, &a))
		return real(out, which, p);
	return attribute(out, which, p, base, bytes, &a);
}

/* The driver first, for what is newer than this file; it zeroes what it cannot answer. */
CUresult on_pointer_get_all(real_on_pointer_get_all real, unsigned int n, CUpointer_attribute *which, void **out, CUdeviceptr p)
{
	CUresult r = real(n, which, out, p);
	CUdeviceptr base;
	struct area a;
	uint64_t bytes;

	if (!n || !which || !out || !look(p, &base, &bytes, &a))
		return r;
	for (unsigned i = 0; i < n; i++)
		if (out[i])
			attribute(out[i], which[i], p, base, bytes, &a);
	return CUDA_SUCCESS;
}

CUresult on_pointer_set(real_on_pointer_set real, const void *value, CUpointer_attribute which, CUdeviceptr p)
{
	CUdeviceptr base;
	struct area *a = NULL;
	uint64_t bytes;

	if (!value || which != CU_POINTER_ATTRIBUTE_SYNC_MEMOPS || !load_relaxed(&swap_used))
		return real(value, which, p);
	lock(&swap_lock);
	if (swap_span(p, &base, &bytes, &a)) {
		a->sync_memops = *(const unsigned *)value != 0;
		a->pinned = a->sync_memops || a->ends;
	} else {
		a = NULL;
	}
	unlock(&swap_lock);
	return a ? CUDA_SUCCESS : real(value, which, p);
}

/* --- what would let others hold on to it ------------------------------------------------------------------------ */

static CUresult refuse(uint32_t *said, const char *why)
{
	if (!__atomic_exchange_n(said, 1, __ATOMIC_RELAXED))
		kerf_say(why);
	return CUDA_ERROR_NOT_SUPPORTED;
}

CUresult on_ipc_get(real_on_ipc_get real, CUipcMemHandle *handle, CUdeviceptr p)
{
	static uint32_t said;

	if (!handle || !kerf_swap_owns(p))
		return real(handle, p);
	return refuse(&said, "cuIpcGetMemHandle: memory of an over-committed share can leave the GPU, so no other process can have it; use cuMemCreate and cuMemExportToShareableHandle, or a share without over-commit");
}

CUresult on_range_handle(real_on_range_handle real, void *handle, CUdeviceptr p, size_t n, CUmemRangeHandleType type, unsigned long long flags)
{
	static uint32_t said;

	if (!handle || !kerf_swap_owns(p))
		return real(handle, p, n, type, flags);
	return refuse(&said, "cuMemGetHandleForAddressRange: memory of an over-committed share can leave the GPU, so no device can have it as a dma-buf; use cuMemCreate, or a share without over-commit");
}

/* --- peers -------------------------------------------------------------------------------------------------------- */

CUresult on_peer_enable(real_on_peer_enable real, CUcontext peer, unsigned int flags)
{
	CUresult r = real(peer, flags), why;
	struct device *with = r ? NULL : kerf_current_device(&why), *of = NULL;
	CUcontext popped;

	if (!with || REAL(cuCtxPushCurrent_v2)(peer))
		return r;
	of = kerf_current_device(&why);
	REAL(cuCtxPopCurrent_v2)(&popped);
	if (of && kerf_swappable(of))
		kerf_swap_peer(of->ordinal, with->ordinal);
	return r;
}
