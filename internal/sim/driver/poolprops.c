/* poolprops.c: attributes and access of pools, and pools between processes. */
#define _GNU_SOURCE
#include "pool.h"
#include "share.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* --- attributes and access --------------------------------------------------------------------------- */

CUresult cuMemPoolSetAttribute(CUmemoryPool pool, CUmemPool_attribute attr, void *value)
{
	TRY(valid_pool(pool));
	REQUIRE(value, CUDA_ERROR_INVALID_VALUE);
	switch (attr) {
	case CU_MEMPOOL_ATTR_REUSE_FOLLOW_EVENT_DEPENDENCIES:
	case CU_MEMPOOL_ATTR_REUSE_ALLOW_OPPORTUNISTIC:
	case CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES:
		pool->reuse[attr - CU_MEMPOOL_ATTR_REUSE_FOLLOW_EVENT_DEPENDENCIES] = *(const int *)value != 0;
		return CUDA_SUCCESS;
	case CU_MEMPOOL_ATTR_RELEASE_THRESHOLD:
		pool->threshold = *(const cuuint64_t *)value;
		return CUDA_SUCCESS;
	case CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH: /* a high mark can only be put back to what is now */
		REQUIRE(*(const cuuint64_t *)value == 0, CUDA_ERROR_INVALID_VALUE);
		pool->reserved_high = pool->reserved;
		return CUDA_SUCCESS;
	case CU_MEMPOOL_ATTR_USED_MEM_HIGH:
		REQUIRE(*(const cuuint64_t *)value == 0, CUDA_ERROR_INVALID_VALUE);
		pool->used_high = pool->used;
		return CUDA_SUCCESS;
	default:
		return CUDA_ERROR_INVALID_VALUE;
	}
}

CUresult cuMemPoolGetAttribute(CUmemoryPool pool, CUmemPool_attribute attr, void *value)
{
	cuuint64_t *v = value;
	TRY(valid_pool(pool));
	REQUIRE(value, CUDA_ERROR_INVALID_VALUE);
	switch (attr) {
	case CU_MEMPOOL_ATTR_REUSE_FOLLOW_EVENT_DEPENDENCIES:
	case CU_MEMPOOL_ATTR_REUSE_ALLOW_OPPORTUNISTIC:
	case CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES:
		*(int *)value = pool->reuse[attr - CU_MEMPOOL_ATTR_REUSE_FOLLOW_EVENT_DEPENDENCIES];
		return CUDA_SUCCESS;
	case CU_MEMPOOL_ATTR_RELEASE_THRESHOLD:    *v = pool->threshold; return CUDA_SUCCESS;
	case CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT: *v = pool->reserved; return CUDA_SUCCESS;
	case CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH:    *v = pool->reserved_high; return CUDA_SUCCESS;
	case CU_MEMPOOL_ATTR_USED_MEM_CURRENT:     *v = pool->used; return CUDA_SUCCESS;
	case CU_MEMPOOL_ATTR_USED_MEM_HIGH:        *v = pool->used_high; return CUDA_SUCCESS;
	default:                                   return CUDA_ERROR_INVALID_VALUE;
	}
}

CUresult cuMemPoolSetAccess(CUmemoryPool pool, const CUmemAccessDesc *map, size_t count)
{
	struct simdev *d;
	TRY(valid_pool(pool));
	REQUIRE(map || !count, CUDA_ERROR_INVALID_VALUE);
	for (size_t i = 0; i < count; i++) {
		REQUIRE(map[i].location.type == CU_MEM_LOCATION_TYPE_DEVICE, CUDA_ERROR_INVALID_VALUE);
		TRY(device_of(map[i].location.id, &d));
		REQUIRE(d != pool->dev || map[i].flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE, CUDA_ERROR_INVALID_VALUE);
		pool->access[d->ordinal] = map[i].flags;
	}
	return CUDA_SUCCESS;
}

CUresult cuMemPoolGetAccess(CUmemAccess_flags *flags, CUmemoryPool memPool, CUmemLocation *location)
{
	struct simdev *d;
	TRY(valid_pool(memPool));
	REQUIRE(flags && location && location->type == CU_MEM_LOCATION_TYPE_DEVICE, CUDA_ERROR_INVALID_VALUE);
	TRY(device_of(location->id, &d));
	*flags = memPool->access[d->ordinal];
	return CUDA_SUCCESS;
}

/* --- sharing ----------------------------------------------------------------------------------------- */

CUresult cuMemPoolExportToShareableHandle(void *handle_out, CUmemoryPool pool, CUmemAllocationHandleType handleType, unsigned long long flags)
{
	TRY(valid_pool(pool));
	REQUIRE(handle_out && flags == 0 && pool->props.handleTypes & handleType, CUDA_ERROR_INVALID_VALUE);
	REQUIRE(pool->fd >= 0, CUDA_ERROR_NOT_SUPPORTED);
	int fd = fcntl(pool->fd, F_DUPFD_CLOEXEC, 0);
	REQUIRE(fd >= 0, CUDA_ERROR_OPERATING_SYSTEM);
	*(int *)handle_out = fd;
	return CUDA_SUCCESS;
}

static CUresult import_pool(CUmemoryPool *out, int fd)
{
	const CUmemPoolProps props = { .allocType = CU_MEM_ALLOCATION_TYPE_PINNED };
	int own = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	REQUIRE(own >= 0, CUDA_ERROR_INVALID_VALUE);
	CUresult r = pool_new(&g.dev[0], &props, out);
	if (r != CUDA_SUCCESS) {
		close(own);
		return r;
	}
	(*out)->imported = true;
	(*out)->fd = own;
	return CUDA_SUCCESS;
}

CUresult cuMemPoolImportFromShareableHandle(CUmemoryPool *pool_out, void *handle, CUmemAllocationHandleType handleType, unsigned long long flags)
{
	TRY(ready());
	REQUIRE(pool_out && flags == 0 && handleType == CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, CUDA_ERROR_INVALID_VALUE);
	LOCKED(import_pool(pool_out, (int)(intptr_t)handle));
}

struct pointer { char magic[8]; uint64_t offset, span, inner, size; uint8_t uuid[16]; uint64_t reserved; };
_Static_assert(sizeof(struct pointer) == sizeof(CUmemPoolPtrExportData), "pointer");

static CUresult export_pointer(CUmemPoolPtrExportData *out, CUdeviceptr ptr)
{
	struct span s;
	REQUIRE(addr_find(ptr, &s) && s.range->kind == R_POOL && s.range->segment->pool->props.handleTypes, CUDA_ERROR_INVALID_VALUE);
	struct pointer p = { .magic = "kerfptr", .offset = s.range->phys->offset, .span = s.range->span, .inner = s.base - s.range->base, .size = s.size };
	memcpy(p.uuid, s.range->dev->uuid, sizeof p.uuid);
	memcpy(out, &p, sizeof p);
	return CUDA_SUCCESS;
}

CUresult cuMemPoolExportPointer(CUmemPoolPtrExportData *shareData_out, CUdeviceptr ptr)
{
	TRY(ready());
	REQUIRE(shareData_out, CUDA_ERROR_INVALID_VALUE);
	LOCKED(export_pointer(shareData_out, ptr));
}

/* An imported segment has one piece in use: the allocation that was asked for. */
static CUresult import_pointer(CUdeviceptr *out, CUmemoryPool pool, const CUmemPoolPtrExportData *data)
{
	struct pointer p;
	CUresult err;
	memcpy(&p, data, sizeof p);
	REQUIRE(pool->imported && memcmp(p.magic, "kerfptr", 8) == 0 && p.inner <= p.span && p.size <= p.span - p.inner, CUDA_ERROR_INVALID_VALUE);
	struct segment *s = calloc(1, sizeof *s);
	struct piece *piece = calloc(1, sizeof *piece);
	struct phys *bytes = s && piece ? share_adopt(pool->dev, pool->fd, p.offset, p.span) : NULL;
	err = CUDA_ERROR_OUT_OF_MEMORY;
	if (bytes)
		s->range = range_adopt(pool->dev, NULL, R_POOL, bytes, 0, p.span, &err);
	if (!bytes || !s->range) {
		free(s);
		free(piece);
		return err;
	}
	*piece = (struct piece){ .offset = p.inner, .span = round_up(p.size, SMALL_UNIT), .size = p.size, .id = ++g.next_id, .state = USED };
	s->pieces = piece;
	s->pool = pool;
	s->busy = 1;
	s->range->segment = s;
	s->next = pool->segments;
	pool->segments = s;
	pool->reserved += s->range->span;
	pool->used += piece->span;
	*out = s->range->base + p.inner;
	return CUDA_SUCCESS;
}

CUresult cuMemPoolImportPointer(CUdeviceptr *ptr_out, CUmemoryPool pool, CUmemPoolPtrExportData *shareData)
{
	TRY(valid_pool(pool));
	REQUIRE(ptr_out && shareData, CUDA_ERROR_INVALID_VALUE);
	LOCKED(import_pointer(ptr_out, pool, shareData));
}
