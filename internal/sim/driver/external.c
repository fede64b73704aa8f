/* external.c: memory that another interface (Vulkan, say) exports as a descriptor. Memory that this driver made is
 * charged where it was made; any other file stands for memory of that other interface, and is charged here. */
#define _GNU_SOURCE
#include "sim.h"
#include "share.h"

#include <unistd.h>

struct CUextMemory_st {
	struct object o;
	CUcontext ctx;
	struct phys *phys;          /* held by one reference */
	uint64_t size;
};

/* Under g.lock. */
static CUresult adopt(CUcontext c, int fd, uint64_t size, struct phys **out)
{
	struct simdev *d;
	off_t end;
	uint64_t have;
	bool ours = share_read(fd, &d, &have) == CUDA_SUCCESS;
	if (!ours) {
		REQUIRE((end = lseek(fd, 0, SEEK_END)) > 0, CUDA_ERROR_INVALID_VALUE);
		d = c->dev;
		have = (uint64_t)end;
	}
	REQUIRE(size <= have, CUDA_ERROR_INVALID_VALUE);
	uint64_t bytes = round_up(size, GRANULE);
	if (!ours)
		TRY(charge(d, CHARGE_MEMORY, bytes));
	struct phys *p = share_adopt(d, fd, 0, bytes);
	if (!p) {
		if (!ours)
			discharge(d, CHARGE_MEMORY, bytes);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	p->charged = ours ? 0 : bytes;
	p->refs = 1;
	*out = p;
	return CUDA_SUCCESS;
}

CUresult cuImportExternalMemory(CUexternalMemory *extMem_out, const CUDA_EXTERNAL_MEMORY_HANDLE_DESC *d)
{
	CUcontext c;
	REQUIRE(extMem_out && d && d->size && !(d->flags & ~(unsigned)CUDA_EXTERNAL_MEMORY_DEDICATED), CUDA_ERROR_INVALID_VALUE);
	TRY(current(&c));
	REQUIRE(d->type == CU_EXTERNAL_MEMORY_HANDLE_TYPE_OPAQUE_FD, CUDA_ERROR_NOT_SUPPORTED);
	pthread_mutex_lock(&g.lock);
	CUexternalMemory m = object_new(K_EXTERNAL, sizeof *m);
	CUresult r = m ? adopt(c, d->handle.fd, d->size, &m->phys) : CUDA_ERROR_OUT_OF_MEMORY;
	if (r == CUDA_SUCCESS) {
		m->ctx = c;
		m->size = d->size;
		*extMem_out = m;
		close(d->handle.fd); /* a descriptor that was imported is the driver's */
	} else if (m) {
		object_free(m);
	}
	pthread_mutex_unlock(&g.lock);
	return r;
}

/* Under g.lock. */
static CUresult map(CUexternalMemory m, uint64_t offset, uint64_t size, struct range **out)
{
	CUresult err;
	uint64_t skip = offset % GRANULE; /* the file is mapped by whole granules */
	REQUIRE(size && offset <= m->size && size <= m->size - offset, CUDA_ERROR_INVALID_VALUE);
	REQUIRE(skip == 0, CUDA_ERROR_NOT_SUPPORTED);
	*out = range_adopt(m->phys->dev, m->ctx, R_EXTERNAL, m->phys, offset, size, &err);
	return *out ? CUDA_SUCCESS : err;
}

static CUresult valid(CUexternalMemory m)
{
	CUcontext c;
	TRY(current(&c));
	return is_kind(m, K_EXTERNAL) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUresult cuExternalMemoryGetMappedBuffer(CUdeviceptr *devPtr, CUexternalMemory extMem, const CUDA_EXTERNAL_MEMORY_BUFFER_DESC *bufferDesc)
{
	struct range *r;
	REQUIRE(devPtr && bufferDesc && bufferDesc->flags == 0, CUDA_ERROR_INVALID_VALUE);
	TRY(valid(extMem));
	pthread_mutex_lock(&g.lock);
	CUresult err = map(extMem, bufferDesc->offset, bufferDesc->size, &r);
	if (err == CUDA_SUCCESS)
		*devPtr = r->base;
	pthread_mutex_unlock(&g.lock);
	return err;
}

CUresult cuExternalMemoryGetMappedMipmappedArray(CUmipmappedArray *mipmap, CUexternalMemory extMem,
                                                 const CUDA_EXTERNAL_MEMORY_MIPMAPPED_ARRAY_DESC *d)
{
	struct range *r;
	REQUIRE(mipmap && d, CUDA_ERROR_INVALID_VALUE);
	TRY(valid(extMem));
	REQUIRE(d->offset < extMem->size, CUDA_ERROR_INVALID_VALUE);
	pthread_mutex_lock(&g.lock);
	uint64_t room = extMem->size - d->offset;
	CUresult err = map(extMem, d->offset, room, &r);
	if (err == CUDA_SUCCESS) {
		err = mipmap_at(extMem->ctx, &d->arrayDesc, d->numLevels, r->base, room, mipmap);
		if (err != CUDA_SUCCESS)
			range_free(r); /* else it goes with the context */
	}
	pthread_mutex_unlock(&g.lock);
	return err;
}

CUresult cuDestroyExternalMemory(CUexternalMemory extMem)
{
	TRY(valid(extMem));
	pthread_mutex_lock(&g.lock);
	extMem->phys->refs--;
	phys_put(extMem->phys);
	object_free(extMem);
	pthread_mutex_unlock(&g.lock);
	return CUDA_SUCCESS;
}
