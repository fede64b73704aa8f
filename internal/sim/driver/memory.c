/* memory.c: linear, pitched, managed and page-locked memory, and questions about pointers. */
#define _GNU_SOURCE
#include "sim.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

CUresult cuMemGetInfo_v2(size_t *free, size_t *total)
{
	CUcontext c;
	TRY(current(&c));
	if (free)
		*free = free_bytes(c->dev);
	if (total)
		*total = capacity(c->dev);
	return CUDA_SUCCESS;
}

/* --- linear ------------------------------------------------------------------------------------------ */

/* Under g.lock. Memory that pools keep in reserve is given up before an allocation fails. */
static CUresult alloc_linear(CUcontext c, size_t size, CUdeviceptr *out)
{
	CUresult r = CUDA_SUCCESS;
	for (int pass = 0; pass < 2; pass++) {
		if (size < SMALL_LIMIT) {
			r = small_alloc(c, size, out);
		} else {
			struct range *m = range_new(c->dev, c, R_LINEAR, size, &r);
			if (m)
				*out = m->base;
			r = m ? CUDA_SUCCESS : r;
		}
		if (r != CUDA_ERROR_OUT_OF_MEMORY || !pool_trim_all(c->dev))
			break;
	}
	return r;
}

static CUresult alloc(CUdeviceptr *dptr, size_t size)
{
	CUcontext c;
	REQUIRE(dptr, CUDA_ERROR_INVALID_VALUE);
	TRY(current(&c));
	REQUIRE(size, CUDA_ERROR_INVALID_VALUE);
	REQUIRE(size <= capacity(c->dev), CUDA_ERROR_OUT_OF_MEMORY);
	TRY(capture_forbids());
	pthread_mutex_lock(&g.lock);
	CUresult r = alloc_linear(c, size, dptr);
	pthread_mutex_unlock(&g.lock);
	return r;
}

CUresult cuMemAlloc_v2(CUdeviceptr *dptr, size_t bytesize) { return alloc(dptr, bytesize); }

CUresult cuMemAllocPitch_v2(CUdeviceptr *dptr, size_t *pPitch, size_t WidthInBytes, size_t Height, unsigned int ElementSizeBytes)
{
	TRY(ready());
	REQUIRE(dptr && pPitch && WidthInBytes && Height, CUDA_ERROR_INVALID_VALUE);
	REQUIRE(ElementSizeBytes == 4 || ElementSizeBytes == 8 || ElementSizeBytes == 16, CUDA_ERROR_INVALID_VALUE);
	REQUIRE(WidthInBytes <= INT32_MAX, CUDA_ERROR_INVALID_VALUE);
	size_t pitch = round_up(WidthInBytes, PITCH_ALIGN), size;
	REQUIRE(!__builtin_mul_overflow(pitch, Height, &size), CUDA_ERROR_OUT_OF_MEMORY);
	TRY(alloc(dptr, size));
	*pPitch = pitch;
	return CUDA_SUCCESS;
}

/* Under g.lock. */
static CUresult find_base(CUdeviceptr p, struct span *s)
{
	return addr_find(p, s) && s->base == p ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

/* Work that may still use the memory is waited for, as cuMemFree of the real driver does: so the range has to
 * be looked up again, lest another thread freed it meanwhile. Under g.lock. */
static CUresult free_found(struct span s)
{
	if (s.range->ctx && !s.range->ctx->dead && !g.zero_cost) {
		wait_idle_context(s.range->ctx);
		TRY(find_base(s.base, &s));
	}
	struct range *r = s.range;
	switch (r->kind) {
	case R_BLOCK:
		return small_free(r, s.base);
	case R_POOL: /* stream-ordered memory may be freed so, too */
		return pool_free_now(r, s.base);
	case R_GRAPH:
		return graph_memory_free(r->graph);
	case R_LINEAR:
	case R_EXTERNAL:
		range_free(r);
		return CUDA_SUCCESS;
	case R_MANAGED:
		discharge(r->dev, CHARGE_MANAGED, r->charged);
		host_remove(r);
		range_unlink(r);
		munmap((void *)r->base, r->span);
		free(r);
		return CUDA_SUCCESS;
	default:
		return CUDA_ERROR_INVALID_VALUE;
	}
}

CUresult cuMemFree_v2(CUdeviceptr dptr)
{
	struct span s;
	CUcontext c;
	TRY(ready());
	if (!dptr)
		return CUDA_SUCCESS;
	TRY(current(&c));
	TRY(capture_forbids());
	pthread_mutex_lock(&g.lock);
	CUresult r = find_base(dptr, &s);
	if (r == CUDA_SUCCESS)
		r = free_found(s);
	pthread_mutex_unlock(&g.lock);
	return r;
}

CUresult cuMemGetAddressRange_v2(CUdeviceptr *pbase, size_t *psize, CUdeviceptr dptr)
{
	struct span s;
	CUcontext c;
	TRY(current(&c));
	pthread_mutex_lock(&g.lock);
	bool found = addr_find(dptr, &s) && s.range->kind != R_RESERVED;
	pthread_mutex_unlock(&g.lock);
	REQUIRE(found, CUDA_ERROR_NOT_FOUND);
	if (pbase)
		*pbase = s.base;
	if (psize)
		*psize = s.size;
	return CUDA_SUCCESS;
}

/* --- memory with host addresses ---------------------------------------------------------------------- */

static CUresult host_range(CUcontext c, enum range_kind kind, size_t size, unsigned flags, void *at, struct range **out)
{
	struct range *r = calloc(1, sizeof *r);
	REQUIRE(r, CUDA_ERROR_OUT_OF_MEMORY);
	*r = (struct range){ .kind = kind, .size = size, .span = round_up(size, 4096), .dev = c->dev, .ctx = c, .flags = flags };
	if (!at) {
		at = mmap(NULL, r->span, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (at == MAP_FAILED) {
			free(r);
			return CUDA_ERROR_OUT_OF_MEMORY;
		}
	}
	r->base = (CUdeviceptr)at;
	pthread_mutex_lock(&g.lock);
	r->id = ++g.next_id;
	host_add(r);
	range_link(&c->ranges, r);
	pthread_mutex_unlock(&g.lock);
	*out = r;
	return CUDA_SUCCESS;
}

CUresult cuMemAllocManaged(CUdeviceptr *dptr, size_t bytesize, unsigned int flags)
{
	CUcontext c;
	struct range *r;
	REQUIRE(dptr && bytesize, CUDA_ERROR_INVALID_VALUE);
	REQUIRE(flags == CU_MEM_ATTACH_GLOBAL || flags == CU_MEM_ATTACH_HOST, CUDA_ERROR_INVALID_VALUE);
	TRY(current(&c));
	TRY(capture_forbids());
	uint64_t bytes = round_up(bytesize, bytesize < SMALL_LIMIT ? SMALL_UNIT : GRANULE);
	TRY(charge(c->dev, CHARGE_MANAGED, bytes));
	CUresult err = host_range(c, R_MANAGED, bytesize, flags, NULL, &r);
	if (err != CUDA_SUCCESS) {
		discharge(c->dev, CHARGE_MANAGED, bytes);
		return err;
	}
	r->charged = bytes;
	*dptr = r->base;
	return CUDA_SUCCESS;
}

CUresult cuMemHostAlloc(void **pp, size_t bytesize, unsigned int Flags)
{
	CUcontext c;
	struct range *r;
	const unsigned all = CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP | CU_MEMHOSTALLOC_WRITECOMBINED;
	REQUIRE(pp && bytesize && !(Flags & ~all), CUDA_ERROR_INVALID_VALUE);
	TRY(current(&c));
	TRY(capture_forbids());
	TRY(host_range(c, R_HOST, bytesize, Flags, NULL, &r));
	*pp = (void *)r->base;
	return CUDA_SUCCESS;
}

CUresult cuMemAllocHost_v2(void **pp, size_t bytesize) { return cuMemHostAlloc(pp, bytesize, CU_MEMHOSTALLOC_DEVICEMAP); }

static CUresult host_forget(void *p, enum range_kind kind, CUresult missing)
{
	struct span s;
	CUcontext c;
	TRY(ready());
	REQUIRE(p, CUDA_ERROR_INVALID_VALUE);
	TRY(current(&c));
	TRY(capture_forbids());
	pthread_mutex_lock(&g.lock);
	CUresult r = host_find((CUdeviceptr)p, &s) && s.base == (CUdeviceptr)p && s.range->kind == kind ? CUDA_SUCCESS : missing;
	if (r == CUDA_SUCCESS) {
		if (!s.range->ctx->dead)
			wait_idle_context(s.range->ctx);
		host_remove(s.range);
		range_unlink(s.range);
		if (kind == R_HOST)
			munmap(p, s.range->span);
		free(s.range);
	}
	pthread_mutex_unlock(&g.lock);
	return r;
}

CUresult cuMemFreeHost(void *p) { return host_forget(p, R_HOST, CUDA_ERROR_INVALID_VALUE); }
CUresult cuMemHostUnregister(void *p) { return host_forget(p, R_REGISTERED, CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED); }

CUresult cuMemHostRegister_v2(void *p, size_t bytesize, unsigned int Flags)
{
	CUcontext c;
	struct span s;
	struct range *r;
	const unsigned all = CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP | CU_MEMHOSTREGISTER_IOMEMORY | CU_MEMHOSTREGISTER_READ_ONLY;
	REQUIRE(p && bytesize && !(Flags & ~all), CUDA_ERROR_INVALID_VALUE);
	TRY(current(&c));
	TRY(capture_forbids());
	pthread_mutex_lock(&g.lock);
	bool known = host_find((CUdeviceptr)p, &s) || host_find((CUdeviceptr)p + bytesize - 1, &s);
	pthread_mutex_unlock(&g.lock);
	REQUIRE(!known, CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
	return host_range(c, R_REGISTERED, bytesize, Flags, p, &r);
}

static CUresult find_host(void *p, struct span *s)
{
	CUcontext c;
	REQUIRE(p, CUDA_ERROR_INVALID_VALUE);
	TRY(current(&c));
	pthread_mutex_lock(&g.lock);
	bool ok = host_find((CUdeviceptr)p, s) && s->range->kind != R_MANAGED;
	pthread_mutex_unlock(&g.lock);
	return ok ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr *pdptr, void *p, unsigned int Flags)
{
	struct span s;
	REQUIRE(pdptr && Flags == 0, CUDA_ERROR_INVALID_VALUE);
	TRY(find_host(p, &s));
	*pdptr = (CUdeviceptr)p;
	return CUDA_SUCCESS;
}

CUresult cuMemHostGetFlags(unsigned int *pFlags, void *p)
{
	struct span s;
	REQUIRE(pFlags, CUDA_ERROR_INVALID_VALUE);
	TRY(find_host(p, &s));
	*pFlags = s.range->flags | CU_MEMHOSTALLOC_DEVICEMAP;
	return CUDA_SUCCESS;
}

/* With its context a range goes, whatever its kind. Under g.lock; nothing runs any more. */
void context_free_memory(CUcontext c)
{
	while (c->ranges) {
		struct range *r = c->ranges;
		if (r->kind == R_MANAGED || r->kind == R_HOST || r->kind == R_REGISTERED) {
			if (r->kind == R_MANAGED)
				discharge(r->dev, CHARGE_MANAGED, r->charged);
			host_remove(r);
			range_unlink(r);
			if (r->kind != R_REGISTERED)
				munmap((void *)r->base, r->span);
			free(r);
		} else {
			range_free(r);
		}
	}
	while (c->blocks)
		range_free(c->blocks);
}

/* --- what a pointer is ------------------------------------------------------------------------------- */

static bool on_host(const struct range *r) { return r->kind == R_HOST || r->kind == R_REGISTERED; }

static CUresult attribute(void *out, CUpointer_attribute a, CUdeviceptr ptr, const struct span *s)
{
	const struct range *r = s->range;
	switch (a) {
	case CU_POINTER_ATTRIBUTE_CONTEXT:        *(CUcontext *)out = r->ctx; return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:    *(unsigned *)out = on_host(r) ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE; return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_DEVICE_POINTER: *(CUdeviceptr *)out = ptr; return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_HOST_POINTER:
		if (!on_host(r) && r->kind != R_MANAGED)
			return CUDA_ERROR_INVALID_VALUE;
		*(void **)out = (void *)ptr;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_P2P_TOKENS:     return CUDA_ERROR_NOT_SUPPORTED;
	case CU_POINTER_ATTRIBUTE_SYNC_MEMOPS:    *(int *)out = r->sync_memops; return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_BUFFER_ID:      *(unsigned long long *)out = s->id; return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_IS_MANAGED:     *(unsigned *)out = r->kind == R_MANAGED; return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL: *(int *)out = r->dev->ordinal; return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE: *(unsigned *)out = r->kind == R_LINEAR || r->kind == R_BLOCK; return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR: *(CUdeviceptr *)out = s->base; return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_RANGE_SIZE:     *(size_t *)out = s->size; return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_MAPPED:         *(unsigned *)out = r->kind != R_RESERVED; return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES:
		*(uint64_t *)out = r->phys && r->phys->shareable ? CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR : 0;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_IS_GPU_DIRECT_RDMA_CAPABLE: *(unsigned *)out = !on_host(r); return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_ACCESS_FLAGS:   *(unsigned *)out = CU_MEM_ACCESS_FLAGS_PROT_READWRITE; return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE: *(CUmemoryPool *)out = pool_of(r); return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_MAPPING_SIZE:   *(size_t *)out = r->size; return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_MAPPING_BASE_ADDR: *(CUdeviceptr *)out = r->base; return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_MEMORY_BLOCK_ID: *(unsigned long long *)out = r->id; return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_IS_HW_DECOMPRESS_CAPABLE: *(unsigned *)out = 0; return CUDA_SUCCESS;
	}
	return CUDA_ERROR_INVALID_VALUE;
}

CUresult cuPointerGetAttribute(void *data, CUpointer_attribute attribute_, CUdeviceptr ptr)
{
	struct span s;
	TRY(ready());
	REQUIRE(data, CUDA_ERROR_INVALID_VALUE);
	pthread_mutex_lock(&g.lock);
	CUresult r = addr_find(ptr, &s) ? attribute(data, attribute_, ptr, &s) : CUDA_ERROR_INVALID_VALUE;
	pthread_mutex_unlock(&g.lock);
	return r;
}

/* Bytes that each attribute takes, for answers about a pointer that CUDA does not know. */
static size_t attribute_size(CUpointer_attribute a)
{
	switch (a) {
	case CU_POINTER_ATTRIBUTE_MEMORY_TYPE: case CU_POINTER_ATTRIBUTE_SYNC_MEMOPS: case CU_POINTER_ATTRIBUTE_IS_MANAGED:
	case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL: case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE: case CU_POINTER_ATTRIBUTE_MAPPED:
	case CU_POINTER_ATTRIBUTE_IS_GPU_DIRECT_RDMA_CAPABLE: case CU_POINTER_ATTRIBUTE_ACCESS_FLAGS:
	case CU_POINTER_ATTRIBUTE_IS_HW_DECOMPRESS_CAPABLE:
		return 4;
	default:
		return 8;
	}
}

CUresult cuPointerGetAttributes(unsigned int numAttributes, CUpointer_attribute *attributes, void **data, CUdeviceptr ptr)
{
	struct span s;
	TRY(ready());
	REQUIRE(numAttributes && attributes && data, CUDA_ERROR_INVALID_VALUE);
	pthread_mutex_lock(&g.lock);
	bool known = addr_find(ptr, &s);
	for (unsigned i = 0; i < numAttributes; i++) {
		memset(data[i], 0, attribute_size(attributes[i]));
		if (known)
			attribute(data[i], attributes[i], ptr, &s);
		else if (attributes[i] == CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL)
			*(int *)data[i] = CU_DEVICE_INVALID;
	}
	pthread_mutex_unlock(&g.lock);
	return CUDA_SUCCESS;
}

CUresult cuPointerSetAttribute(const void *value, CUpointer_attribute attribute_, CUdeviceptr ptr)
{
	struct span s;
	TRY(ready());
	REQUIRE(value && attribute_ == CU_POINTER_ATTRIBUTE_SYNC_MEMOPS, CUDA_ERROR_INVALID_VALUE);
	pthread_mutex_lock(&g.lock);
	bool known = addr_find(ptr, &s);
	if (known)
		s.range->sync_memops = *(const int *)value;
	pthread_mutex_unlock(&g.lock);
	return known ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemGetHandleForAddressRange(void *handle, CUdeviceptr dptr, size_t size, CUmemRangeHandleType handleType, unsigned long long flags)
{
	(void)handle;
	(void)dptr;
	(void)size;
	(void)handleType;
	(void)flags;
	TRY(ready());
	return CUDA_ERROR_NOT_SUPPORTED; /* dma-buf: the device attribute says so too */
}
