/* vmm.c: addresses without memory, memory without addresses, and mapping the one to the other. */
#define _GNU_SOURCE
#include "sim.h"
#include "share.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* --- what is shared as a descriptor (share.h) -------------------------------------------------------- */

struct trailer { char magic[16]; uint8_t uuid[16]; uint64_t size; };
_Static_assert(sizeof(struct trailer) == SHARE_TRAILER, "trailer");
static const char trailer_magic[16] = "kerf-sim-memory";

CUresult share_mark(int fd, const struct simdev *d, uint64_t size)
{
	struct trailer t = { .size = size };
	memcpy(t.magic, trailer_magic, sizeof t.magic);
	memcpy(t.uuid, d->uuid, sizeof t.uuid);
	return pwrite(fd, &t, sizeof t, (off_t)size) == (ssize_t)sizeof t ? CUDA_SUCCESS : CUDA_ERROR_OPERATING_SYSTEM;
}

CUresult share_read(int fd, struct simdev **d, uint64_t *size)
{
	struct trailer t;
	off_t end = lseek(fd, 0, SEEK_END);
	REQUIRE(end > (off_t)sizeof t && pread(fd, &t, sizeof t, end - (off_t)sizeof t) == (ssize_t)sizeof t, CUDA_ERROR_INVALID_VALUE);
	REQUIRE(memcmp(t.magic, trailer_magic, sizeof t.magic) == 0 && t.size == (uint64_t)end - sizeof t, CUDA_ERROR_INVALID_VALUE);
	for (int i = 0; i < g.ndev; i++)
		if (memcmp(g.dev[i].uuid, t.uuid, sizeof t.uuid) == 0) {
			*d = &g.dev[i];
			*size = t.size;
			return CUDA_SUCCESS;
		}
	return CUDA_ERROR_INVALID_DEVICE;
}

/* --- addresses --------------------------------------------------------------------------------------- */

static bool granular(uint64_t n) { return n % GRANULE == 0; }

CUresult cuMemAddressReserve(CUdeviceptr *ptr, size_t size, size_t alignment, CUdeviceptr addr, unsigned long long flags)
{
	TRY(ready());
	REQUIRE(ptr && size && granular(size) && flags == 0 && (alignment & (alignment - 1)) == 0, CUDA_ERROR_INVALID_VALUE);
	struct range *r = calloc(1, sizeof *r);
	REQUIRE(r, CUDA_ERROR_OUT_OF_MEMORY);
	*r = (struct range){ .kind = R_RESERVED, .size = size, .span = size, .dev = &g.dev[0] };
	pthread_mutex_lock(&g.lock);
	r->id = ++g.next_id;
	CUresult err = addr_reserve(size, alignment, granular(addr) ? addr : 0, &r->base);
	if (err == CUDA_SUCCESS)
		addr_set(r->base, r->span, r);
	pthread_mutex_unlock(&g.lock);
	if (err != CUDA_SUCCESS) {
		free(r);
		return err;
	}
	*ptr = r->base;
	return CUDA_SUCCESS;
}

/* The mapping or reservation at p. */
static struct range *at(CUdeviceptr p)
{
	struct span s;
	if (!addr_is_device(p) || !addr_find(p, &s) || (s.range->kind != R_RESERVED && s.range->kind != R_MAP))
		return NULL;
	return s.range;
}

/* Says whether every granule of a stretch is of one kind. */
static bool all(CUdeviceptr p, uint64_t size, enum range_kind kind)
{
	for (uint64_t o = 0; o < size;) {
		struct range *r = at(p + o);
		if (!r || r->kind != kind)
			return false;
		o = kind == R_MAP ? r->base + r->size - p : o + GRANULE;
	}
	return true;
}

CUresult cuMemAddressFree(CUdeviceptr ptr, size_t size)
{
	TRY(ready());
	REQUIRE(size && granular(ptr) && granular(size), CUDA_ERROR_INVALID_VALUE);
	pthread_mutex_lock(&g.lock);
	struct range *r = at(ptr);
	bool ok = r && r->kind == R_RESERVED && r->base == ptr && r->size == size && all(ptr, size, R_RESERVED);
	if (ok) {
		addr_set(r->base, r->span, NULL);
		addr_unreserve(r->base, r->span);
		free(r);
	}
	pthread_mutex_unlock(&g.lock);
	return ok ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

/* --- memory ------------------------------------------------------------------------------------------ */

static CUresult check_prop(const CUmemAllocationProp *prop, struct simdev **d)
{
	REQUIRE(prop && prop->type == CU_MEM_ALLOCATION_TYPE_PINNED, CUDA_ERROR_INVALID_VALUE);
	REQUIRE(prop->location.type == CU_MEM_LOCATION_TYPE_DEVICE, CUDA_ERROR_NOT_SUPPORTED); /* host memory: not simulated */
	REQUIRE(!(prop->requestedHandleTypes & ~CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR), CUDA_ERROR_NOT_SUPPORTED);
	REQUIRE(device_of(prop->location.id, d) == CUDA_SUCCESS, CUDA_ERROR_INVALID_DEVICE);
	return CUDA_SUCCESS;
}

CUresult cuMemGetAllocationGranularity(size_t *granularity, const CUmemAllocationProp *prop, CUmemAllocationGranularity_flags option)
{
	struct simdev *d;
	TRY(ready());
	REQUIRE(granularity && (unsigned)option <= CU_MEM_ALLOC_GRANULARITY_RECOMMENDED, CUDA_ERROR_INVALID_VALUE);
	TRY(check_prop(prop, &d));
	*granularity = GRANULE;
	return CUDA_SUCCESS;
}

CUresult cuMemCreate(CUmemGenericAllocationHandle *handle, size_t size, const CUmemAllocationProp *prop, unsigned long long flags)
{
	struct simdev *d;
	CUresult err;
	TRY(ready());
	REQUIRE(handle && size && granular(size) && flags == 0, CUDA_ERROR_INVALID_VALUE);
	TRY(check_prop(prop, &d));
	bool shareable = prop->requestedHandleTypes & CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
	pthread_mutex_lock(&g.lock);
	struct phys *p = phys_new(d, size, shareable, &err);
	if (!p && err == CUDA_ERROR_OUT_OF_MEMORY && pool_trim_all(d))
		p = phys_new(d, size, shareable, &err);
	if (p) {
		p->prop = *prop;
		p->refs = 1;
		*handle = (CUmemGenericAllocationHandle)(uintptr_t)p;
	}
	pthread_mutex_unlock(&g.lock);
	return p ? CUDA_SUCCESS : err;
}

/* Under g.lock. */
static CUresult phys_of(CUmemGenericAllocationHandle handle, struct phys **out)
{
	struct phys *p = (struct phys *)(uintptr_t)handle;
	REQUIRE(is_kind(p, K_PHYS) && p->refs, CUDA_ERROR_INVALID_VALUE);
	*out = p;
	return CUDA_SUCCESS;
}

static CUresult release(CUmemGenericAllocationHandle handle)
{
	struct phys *p;
	TRY(phys_of(handle, &p));
	p->refs--;
	phys_put(p);
	return CUDA_SUCCESS;
}

CUresult cuMemRelease(CUmemGenericAllocationHandle handle) { LOCKED(release(handle)); }

static CUresult retain(CUmemGenericAllocationHandle *handle, CUdeviceptr addr)
{
	struct range *r = at(addr);
	REQUIRE(handle && r && r->kind == R_MAP, CUDA_ERROR_INVALID_VALUE);
	r->phys->refs++;
	*handle = (CUmemGenericAllocationHandle)(uintptr_t)r->phys;
	return CUDA_SUCCESS;
}

CUresult cuMemRetainAllocationHandle(CUmemGenericAllocationHandle *handle, void *addr) { LOCKED(retain(handle, (CUdeviceptr)addr)); }

static CUresult properties(CUmemAllocationProp *prop, CUmemGenericAllocationHandle handle)
{
	struct phys *p;
	REQUIRE(prop, CUDA_ERROR_INVALID_VALUE);
	TRY(phys_of(handle, &p));
	*prop = p->prop;
	return CUDA_SUCCESS;
}

CUresult cuMemGetAllocationPropertiesFromHandle(CUmemAllocationProp *prop, CUmemGenericAllocationHandle handle) { LOCKED(properties(prop, handle)); }

/* --- mapping ----------------------------------------------------------------------------------------- */

static CUresult map(CUdeviceptr ptr, uint64_t size, uint64_t offset, CUmemGenericAllocationHandle handle)
{
	struct phys *p;
	TRY(phys_of(handle, &p));
	REQUIRE(size && granular(ptr) && granular(size) && granular(offset), CUDA_ERROR_INVALID_VALUE);
	REQUIRE(offset <= p->size && size <= p->size - offset, CUDA_ERROR_INVALID_VALUE);
	struct range *reservation = at(ptr);
	REQUIRE(reservation && all(ptr, size, R_RESERVED) && at(ptr + size - GRANULE) == reservation, CUDA_ERROR_INVALID_VALUE);
	struct range *r = calloc(1, sizeof *r);
	REQUIRE(r, CUDA_ERROR_OUT_OF_MEMORY);
	*r = (struct range){ .kind = R_MAP, .base = ptr, .size = size, .span = size, .id = ++g.next_id, .dev = p->dev, .phys = p,
	                     .phys_offset = offset, .reservation = reservation };
	CUresult err = addr_map(ptr, size, p, offset);
	if (err != CUDA_SUCCESS) {
		free(r);
		return err;
	}
	p->maps++;
	addr_set(ptr, size, r);
	return CUDA_SUCCESS;
}

CUresult cuMemMap(CUdeviceptr ptr, size_t size, size_t offset, CUmemGenericAllocationHandle handle, unsigned long long flags)
{
	REQUIRE(flags == 0, CUDA_ERROR_INVALID_VALUE);
	LOCKED(map(ptr, size, offset, handle));
}

/* The stretch must be mapped from end to end, by whole mappings. */
static bool whole_mappings(CUdeviceptr ptr, uint64_t size)
{
	struct range *first = size && granular(ptr) && granular(size) ? at(ptr) : NULL, *last;
	if (!first || first->kind != R_MAP || first->base != ptr || !all(ptr, size, R_MAP))
		return false;
	last = at(ptr + size - GRANULE);
	return last->base + last->size == ptr + size;
}

static CUresult unmap(CUdeviceptr ptr, uint64_t size)
{
	REQUIRE(whole_mappings(ptr, size), CUDA_ERROR_INVALID_VALUE);
	for (CUdeviceptr p = ptr; p < ptr + size;) {
		struct range *r = at(p);
		p += r->size;
		addr_set(r->base, r->span, r->reservation);
		addr_unmap(r->base, r->span);
		r->phys->maps--;
		phys_put(r->phys);
		free(r);
	}
	return CUDA_SUCCESS;
}

CUresult cuMemUnmap(CUdeviceptr ptr, size_t size) { LOCKED(unmap(ptr, size)); }

static CUresult set_access(CUdeviceptr ptr, uint64_t size, const CUmemAccessDesc *desc, size_t count)
{
	REQUIRE(desc && count && size && granular(ptr) && granular(size), CUDA_ERROR_INVALID_VALUE);
	REQUIRE(all(ptr, size, R_MAP), CUDA_ERROR_INVALID_VALUE);
	for (size_t i = 0; i < count; i++) {
		REQUIRE(desc[i].location.type == CU_MEM_LOCATION_TYPE_DEVICE, CUDA_ERROR_NOT_SUPPORTED);
		REQUIRE(desc[i].location.id >= 0 && desc[i].location.id < g.ndev, CUDA_ERROR_INVALID_DEVICE);
		uint64_t bit = (uint64_t)1 << desc[i].location.id;
		for (CUdeviceptr p = ptr; p < ptr + size;) {
			struct range *r = at(p);
			r->readable = desc[i].flags & CU_MEM_ACCESS_FLAGS_PROT_READ ? r->readable | bit : r->readable & ~bit;
			r->writable = desc[i].flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE ? r->writable | bit : r->writable & ~bit;
			p = r->base + r->size;
		}
	}
	return CUDA_SUCCESS;
}

CUresult cuMemSetAccess(CUdeviceptr ptr, size_t size, const CUmemAccessDesc *desc, size_t count) { LOCKED(set_access(ptr, size, desc, count)); }

static CUresult get_access(unsigned long long *flags, const CUmemLocation *location, CUdeviceptr ptr)
{
	struct range *r = at(ptr);
	REQUIRE(flags && location && r && r->kind == R_MAP, CUDA_ERROR_INVALID_VALUE);
	REQUIRE(location->type == CU_MEM_LOCATION_TYPE_DEVICE && location->id >= 0 && location->id < g.ndev, CUDA_ERROR_INVALID_VALUE);
	*flags = r->writable >> location->id & 1 ? CU_MEM_ACCESS_FLAGS_PROT_READWRITE :
	         r->readable >> location->id & 1 ? CU_MEM_ACCESS_FLAGS_PROT_READ : CU_MEM_ACCESS_FLAGS_PROT_NONE;
	return CUDA_SUCCESS;
}

CUresult cuMemGetAccess(unsigned long long *flags, const CUmemLocation *location, CUdeviceptr ptr) { LOCKED(get_access(flags, location, ptr)); }

/* --- between processes ------------------------------------------------------------------------------- */

static CUresult export_fd(int *out, CUmemGenericAllocationHandle handle)
{
	struct phys *p;
	TRY(phys_of(handle, &p));
	REQUIRE(p->shareable, CUDA_ERROR_INVALID_VALUE);
	REQUIRE(p->fd >= 0, CUDA_ERROR_NOT_SUPPORTED); /* the null driver has no bytes to share */
	*out = fcntl(p->fd, F_DUPFD_CLOEXEC, 0);
	return *out >= 0 ? CUDA_SUCCESS : CUDA_ERROR_OPERATING_SYSTEM;
}

CUresult cuMemExportToShareableHandle(void *shareableHandle, CUmemGenericAllocationHandle handle, CUmemAllocationHandleType handleType,
                                      unsigned long long flags)
{
	REQUIRE(shareableHandle && flags == 0, CUDA_ERROR_INVALID_VALUE);
	REQUIRE(handleType == CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, CUDA_ERROR_NOT_SUPPORTED);
	LOCKED(export_fd(shareableHandle, handle));
}

/* Under g.lock. Memory of another process (or an own one that came back): not charged here. */
struct phys *share_adopt(struct simdev *d, int fd, uint64_t offset, uint64_t size)
{
	struct phys *p = object_new(K_PHYS, sizeof *p);
	int own = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	if (!p || own < 0) {
		if (p)
			object_free(p);
		if (own >= 0)
			close(own);
		return NULL;
	}
	p->dev = d;
	p->fd = own;
	p->own_fd = p->imported = true;
	p->offset = offset;
	p->size = size;
	return p;
}

static CUresult import_fd(CUmemGenericAllocationHandle *handle, int fd)
{
	struct simdev *d;
	uint64_t size;
	TRY(share_read(fd, &d, &size));
	struct phys *p = share_adopt(d, fd, 0, size);
	REQUIRE(p, CUDA_ERROR_OUT_OF_MEMORY);
	p->shareable = true;
	p->refs = 1;
	p->prop = (CUmemAllocationProp){ .type = CU_MEM_ALLOCATION_TYPE_PINNED, .requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
	                                 .location = { CU_MEM_LOCATION_TYPE_DEVICE, d->ordinal } };
	*handle = (CUmemGenericAllocationHandle)(uintptr_t)p;
	return CUDA_SUCCESS;
}

CUresult cuMemImportFromShareableHandle(CUmemGenericAllocationHandle *handle, void *osHandle, CUmemAllocationHandleType shHandleType)
{
	REQUIRE(handle, CUDA_ERROR_INVALID_VALUE);
	REQUIRE(shHandleType == CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, CUDA_ERROR_NOT_SUPPORTED);
	LOCKED(import_fd(handle, (int)(intptr_t)osHandle));
}
