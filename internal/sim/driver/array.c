/* array.c: arrays and mipmapped arrays. Rows lie one after another, so that offsets mean something; a level of a
 * mipmap lies behind the ones before. Arrays of deferred mapping have a size and no memory. */
#include "sim.h"

#include <string.h>

struct CUmipmappedArray_st {
	struct object o;
	CUcontext ctx;
	CUDA_ARRAY3D_DESCRIPTOR desc;
	unsigned levels;
	CUdeviceptr at;
	bool owns;
	CUarray first;              /* levels; made with it */
};

/* --- shapes ------------------------------------------------------------------------------------------ */

static unsigned format_size(CUarray_format f)
{
	switch (f) {
	case CU_AD_FORMAT_UNSIGNED_INT8: case CU_AD_FORMAT_SIGNED_INT8: return 1;
	case CU_AD_FORMAT_UNSIGNED_INT16: case CU_AD_FORMAT_SIGNED_INT16: case CU_AD_FORMAT_HALF: return 2;
	case CU_AD_FORMAT_UNSIGNED_INT32: case CU_AD_FORMAT_SIGNED_INT32: case CU_AD_FORMAT_FLOAT: return 4;
	}
	return 0;
}

CUresult array_layout(CUarray a, const CUDA_ARRAY3D_DESCRIPTOR *d)
{
	unsigned element = format_size(d->Format) * d->NumChannels;
	REQUIRE(d->Width && element && (d->NumChannels == 1 || d->NumChannels == 2 || d->NumChannels == 4), CUDA_ERROR_INVALID_VALUE);
	REQUIRE(d->Width <= 131072 && d->Height <= 131072 && d->Depth <= 16384, CUDA_ERROR_INVALID_VALUE);
	REQUIRE(d->Height || !d->Depth || d->Flags & CUDA_ARRAY3D_LAYERED, CUDA_ERROR_INVALID_VALUE);
	REQUIRE(!(d->Flags & CUDA_ARRAY3D_SPARSE), CUDA_ERROR_NOT_SUPPORTED);
	a->desc = *d;
	a->pitch = d->Width * element;
	a->rows = d->Height ? d->Height : 1;
	a->layers = d->Depth ? d->Depth : 1;
	a->slice = a->pitch * a->rows;
	return CUDA_SUCCESS;
}

static uint64_t bytes_of(const struct CUarray_st *a) { return round_up(a->slice * a->layers, SMALL_UNIT); }

static CUDA_ARRAY3D_DESCRIPTOR level_desc(const CUDA_ARRAY3D_DESCRIPTOR *d, unsigned level)
{
	CUDA_ARRAY3D_DESCRIPTOR l = *d;
	bool layered = d->Flags & CUDA_ARRAY3D_LAYERED;
	l.Width = d->Width >> level ? d->Width >> level : 1;
	l.Height = d->Height ? (d->Height >> level ? d->Height >> level : 1) : 0;
	if (!layered)
		l.Depth = d->Depth ? (d->Depth >> level ? d->Depth >> level : 1) : 0;
	return l;
}

static unsigned max_levels(const CUDA_ARRAY3D_DESCRIPTOR *d)
{
	size_t n = d->Width > d->Height ? d->Width : d->Height;
	if (!(d->Flags & CUDA_ARRAY3D_LAYERED) && d->Depth > n)
		n = d->Depth;
	unsigned levels = 1;
	while (n >>= 1)
		levels++;
	return levels;
}

/* --- memory ------------------------------------------------------------------------------------------ */

/* What an allocation of so many bytes takes. */
static uint64_t taken(uint64_t bytes) { return round_up(bytes, bytes < SMALL_LIMIT ? SMALL_UNIT : GRANULE); }

static CUresult take(CUcontext c, uint64_t bytes, CUdeviceptr *out)
{
	CUresult err;
	if (bytes < SMALL_LIMIT)
		return small_alloc(c, bytes, out);
	struct range *r = range_new(c->dev, c, R_ARRAY, bytes, &err);
	if (!r && err == CUDA_ERROR_OUT_OF_MEMORY && pool_trim_all(c->dev))
		r = range_new(c->dev, c, R_ARRAY, bytes, &err);
	*out = r ? r->base : 0;
	return r ? CUDA_SUCCESS : err;
}

static void give_back(CUcontext c, CUdeviceptr at)
{
	struct span s;
	if (!at || c->dead || !addr_find(at, &s))
		return; /* it went with its context */
	wait_idle_context(c);
	if (s.range->kind == R_BLOCK)
		small_free(s.range, s.base);
	else
		range_free(s.range);
}

/* --- arrays ------------------------------------------------------------------------------------------ */

/* Under g.lock. */
static CUresult create(CUcontext c, const CUDA_ARRAY3D_DESCRIPTOR *desc, CUarray *out)
{
	CUarray a = object_new(K_ARRAY, sizeof *a);
	REQUIRE(a, CUDA_ERROR_OUT_OF_MEMORY);
	CUresult r = array_layout(a, desc);
	a->ctx = c;
	a->owns = true;
	if (r == CUDA_SUCCESS && !(desc->Flags & CUDA_ARRAY3D_DEFERRED_MAPPING))
		r = take(c, bytes_of(a), &a->at);
	if (r != CUDA_SUCCESS)
		object_free(a);
	else
		*out = a;
	return r;
}

CUresult cuArray3DCreate_v2(CUarray *pHandle, const CUDA_ARRAY3D_DESCRIPTOR *pAllocateArray)
{
	CUcontext c;
	REQUIRE(pHandle && pAllocateArray, CUDA_ERROR_INVALID_VALUE);
	TRY(current(&c));
	TRY(capture_forbids());
	pthread_mutex_lock(&g.lock);
	CUresult r = create(c, pAllocateArray, pHandle);
	pthread_mutex_unlock(&g.lock);
	return r;
}

CUresult cuArrayCreate_v2(CUarray *pHandle, const CUDA_ARRAY_DESCRIPTOR *p)
{
	TRY(ready());
	REQUIRE(p, CUDA_ERROR_INVALID_VALUE);
	CUDA_ARRAY3D_DESCRIPTOR d = { .Width = p->Width, .Height = p->Height, .Format = p->Format, .NumChannels = p->NumChannels };
	return cuArray3DCreate_v2(pHandle, &d);
}

CUresult cuArray3DGetDescriptor_v2(CUDA_ARRAY3D_DESCRIPTOR *pArrayDescriptor, CUarray hArray)
{
	TRY(ready());
	REQUIRE(pArrayDescriptor, CUDA_ERROR_INVALID_VALUE);
	REQUIRE(is_kind(hArray, K_ARRAY), CUDA_ERROR_INVALID_HANDLE);
	*pArrayDescriptor = hArray->desc;
	return CUDA_SUCCESS;
}

CUresult cuArrayGetDescriptor_v2(CUDA_ARRAY_DESCRIPTOR *pArrayDescriptor, CUarray hArray)
{
	CUDA_ARRAY3D_DESCRIPTOR d;
	REQUIRE(pArrayDescriptor, CUDA_ERROR_INVALID_VALUE);
	TRY(cuArray3DGetDescriptor_v2(&d, hArray));
	*pArrayDescriptor = (CUDA_ARRAY_DESCRIPTOR){ d.Width, d.Height, d.Format, d.NumChannels };
	return CUDA_SUCCESS;
}

CUresult cuArrayDestroy(CUarray hArray)
{
	TRY(ready());
	REQUIRE(is_kind(hArray, K_ARRAY) && hArray->owns, CUDA_ERROR_INVALID_HANDLE);
	pthread_mutex_lock(&g.lock);
	give_back(hArray->ctx, hArray->at);
	object_free(hArray);
	pthread_mutex_unlock(&g.lock);
	return CUDA_SUCCESS;
}

static CUresult requirements(CUDA_ARRAY_MEMORY_REQUIREMENTS *out, uint64_t bytes)
{
	*out = (CUDA_ARRAY_MEMORY_REQUIREMENTS){ .size = taken(bytes), .alignment = 65536 };
	return CUDA_SUCCESS;
}

CUresult cuArrayGetMemoryRequirements(CUDA_ARRAY_MEMORY_REQUIREMENTS *memoryRequirements, CUarray array, CUdevice device)
{
	struct simdev *d;
	REQUIRE(memoryRequirements, CUDA_ERROR_INVALID_VALUE);
	TRY(device_of(device, &d));
	REQUIRE(is_kind(array, K_ARRAY), CUDA_ERROR_INVALID_HANDLE);
	REQUIRE(array->desc.Flags & CUDA_ARRAY3D_DEFERRED_MAPPING, CUDA_ERROR_INVALID_VALUE);
	return requirements(memoryRequirements, bytes_of(array));
}

CUresult cuArrayGetSparseProperties(CUDA_ARRAY_SPARSE_PROPERTIES *sparseProperties, CUarray array)
{
	TRY(ready());
	REQUIRE(sparseProperties && is_kind(array, K_ARRAY), CUDA_ERROR_INVALID_VALUE);
	return CUDA_ERROR_INVALID_VALUE; /* none is sparse */
}

/* --- mipmapped arrays -------------------------------------------------------------------------------- */

static void free_levels(CUmipmappedArray m)
{
	for (CUarray a = m->first, next; a; a = next) {
		next = a->next;
		object_free(a);
	}
	object_free(m);
}

/* Under g.lock. at 0: memory is taken, unless mapping is deferred. */
CUresult mipmap_at(CUcontext c, const CUDA_ARRAY3D_DESCRIPTOR *desc, unsigned levels, CUdeviceptr at, uint64_t room, CUmipmappedArray *out)
{
	uint64_t bytes = 0;
	REQUIRE(levels && levels <= max_levels(desc), CUDA_ERROR_INVALID_VALUE);
	CUmipmappedArray m = object_new(K_MIPMAP, sizeof *m);
	REQUIRE(m, CUDA_ERROR_OUT_OF_MEMORY);
	*m = (struct CUmipmappedArray_st){ .o = m->o, .ctx = c, .desc = *desc, .levels = levels, .at = at, .owns = !at };
	CUresult r = CUDA_SUCCESS;
	CUarray *tail = &m->first;
	for (unsigned i = 0; i < levels && r == CUDA_SUCCESS; i++) {
		CUDA_ARRAY3D_DESCRIPTOR d = level_desc(desc, i);
		CUarray a = *tail = object_new(K_ARRAY, sizeof *a);
		r = a ? array_layout(a, &d) : CUDA_ERROR_OUT_OF_MEMORY;
		if (r != CUDA_SUCCESS)
			break;
		a->ctx = c;
		a->at = bytes; /* for now from 0 on */
		bytes += bytes_of(a);
		tail = &a->next;
	}
	if (r == CUDA_SUCCESS && at && bytes > room)
		r = CUDA_ERROR_INVALID_VALUE;
	if (r == CUDA_SUCCESS && !at && !(desc->Flags & CUDA_ARRAY3D_DEFERRED_MAPPING))
		r = take(c, bytes, &m->at);
	if (r != CUDA_SUCCESS) {
		free_levels(m);
		return r;
	}
	for (CUarray a = m->first; a; a = a->next)
		a->at = m->at ? m->at + a->at : 0;
	*out = m;
	return CUDA_SUCCESS;
}

CUresult cuMipmappedArrayCreate(CUmipmappedArray *pHandle, const CUDA_ARRAY3D_DESCRIPTOR *pMipmappedArrayDesc, unsigned int numMipmapLevels)
{
	CUcontext c;
	REQUIRE(pHandle && pMipmappedArrayDesc, CUDA_ERROR_INVALID_VALUE);
	TRY(current(&c));
	TRY(capture_forbids());
	pthread_mutex_lock(&g.lock);
	CUresult r = mipmap_at(c, pMipmappedArrayDesc, numMipmapLevels, 0, 0, pHandle);
	pthread_mutex_unlock(&g.lock);
	return r;
}

CUresult cuMipmappedArrayGetLevel(CUarray *pLevelArray, CUmipmappedArray hMipmappedArray, unsigned int level)
{
	TRY(ready());
	REQUIRE(pLevelArray, CUDA_ERROR_INVALID_VALUE);
	REQUIRE(is_kind(hMipmappedArray, K_MIPMAP), CUDA_ERROR_INVALID_HANDLE);
	REQUIRE(level < hMipmappedArray->levels, CUDA_ERROR_INVALID_VALUE);
	CUarray a = hMipmappedArray->first;
	while (level--)
		a = a->next;
	*pLevelArray = a;
	return CUDA_SUCCESS;
}

CUresult cuMipmappedArrayDestroy(CUmipmappedArray hMipmappedArray)
{
	TRY(ready());
	REQUIRE(is_kind(hMipmappedArray, K_MIPMAP), CUDA_ERROR_INVALID_HANDLE);
	pthread_mutex_lock(&g.lock);
	if (hMipmappedArray->owns)
		give_back(hMipmappedArray->ctx, hMipmappedArray->at);
	free_levels(hMipmappedArray);
	pthread_mutex_unlock(&g.lock);
	return CUDA_SUCCESS;
}

CUresult cuMipmappedArrayGetMemoryRequirements(CUDA_ARRAY_MEMORY_REQUIREMENTS *memoryRequirements, CUmipmappedArray mipmap, CUdevice device)
{
	struct simdev *d;
	uint64_t bytes = 0;
	REQUIRE(memoryRequirements, CUDA_ERROR_INVALID_VALUE);
	TRY(device_of(device, &d));
	REQUIRE(is_kind(mipmap, K_MIPMAP), CUDA_ERROR_INVALID_HANDLE);
	REQUIRE(mipmap->desc.Flags & CUDA_ARRAY3D_DEFERRED_MAPPING, CUDA_ERROR_INVALID_VALUE);
	for (CUarray a = mipmap->first; a; a = a->next)
		bytes += bytes_of(a);
	return requirements(memoryRequirements, bytes);
}

CUresult cuMipmappedArrayGetSparseProperties(CUDA_ARRAY_SPARSE_PROPERTIES *sparseProperties, CUmipmappedArray mipmap)
{
	TRY(ready());
	REQUIRE(sparseProperties && is_kind(mipmap, K_MIPMAP), CUDA_ERROR_INVALID_VALUE);
	return CUDA_ERROR_INVALID_VALUE;
}
