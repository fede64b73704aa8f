/* managed.c: hints for managed memory. There is one copy of the bytes here, so nothing moves: hints are checked,
 * remembered where they can be asked for, and prefetches take their place in the stream. */
#include "sim.h"

#include <string.h>

/* --- advice ------------------------------------------------------------------------------------------ */

static CUresult managed_at(CUdeviceptr p, size_t n, struct span *s)
{
	REQUIRE(n && addr_find(p, s) && s->range->kind == R_MANAGED && n <= s->base + s->size - p, CUDA_ERROR_INVALID_VALUE);
	return CUDA_SUCCESS;
}

static CUresult place_ok(CUmemLocation l)
{
	bool host = l.type == CU_MEM_LOCATION_TYPE_HOST || l.type == CU_MEM_LOCATION_TYPE_HOST_NUMA || l.type == CU_MEM_LOCATION_TYPE_HOST_NUMA_CURRENT;
	bool device = l.type == CU_MEM_LOCATION_TYPE_DEVICE && l.id >= 0 && l.id < g.ndev;
	return host || device ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

static CUmemLocation place_of(CUdevice d)
{
	return d == CU_DEVICE_CPU ? (CUmemLocation){ CU_MEM_LOCATION_TYPE_HOST, 0 } : (CUmemLocation){ CU_MEM_LOCATION_TYPE_DEVICE, d };
}

static CUresult advise(CUdeviceptr p, size_t n, CUmem_advise advice, CUmemLocation where)
{
	struct span s;
	TRY(managed_at(p, n, &s));
	struct advice *a = &s.range->advice;
	switch (advice) {
	case CU_MEM_ADVISE_SET_READ_MOSTLY:
	case CU_MEM_ADVISE_UNSET_READ_MOSTLY:
		a->read_mostly = advice == CU_MEM_ADVISE_SET_READ_MOSTLY;
		return CUDA_SUCCESS;
	case CU_MEM_ADVISE_UNSET_PREFERRED_LOCATION:
		a->preferred = (CUmemLocation){ 0 };
		return CUDA_SUCCESS;
	case CU_MEM_ADVISE_SET_PREFERRED_LOCATION:
		TRY(place_ok(where));
		a->preferred = where;
		return CUDA_SUCCESS;
	case CU_MEM_ADVISE_SET_ACCESSED_BY:
	case CU_MEM_ADVISE_UNSET_ACCESSED_BY:
		return place_ok(where);
	}
	return CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemAdvise_v2(CUdeviceptr devPtr, size_t count, CUmem_advise advice, CUmemLocation location)
{
	LOCKED(advise(devPtr, count, advice, location));
}

CUresult cuMemAdvise(CUdeviceptr devPtr, size_t count, CUmem_advise advice, CUdevice device)
{
	LOCKED(advise(devPtr, count, advice, place_of(device)));
}

/* --- prefetch ---------------------------------------------------------------------------------------- */

static CUresult note_prefetch(CUdeviceptr p, size_t n, CUmemLocation where)
{
	struct span s;
	TRY(managed_at(p, n, &s));
	TRY(place_ok(where));
	s.range->advice.prefetched = where;
	return CUDA_SUCCESS;
}

static CUresult prefetch(CUdeviceptr p, size_t n, CUmemLocation where, CUstream h)
{
	TRY(ready());
	pthread_mutex_lock(&g.lock);
	CUresult r = note_prefetch(p, n, where);
	pthread_mutex_unlock(&g.lock);
	TRY(r);
	return submit(h, op_new(OP_NOW, CU_GRAPH_NODE_TYPE_EMPTY, 0));
}

CUresult cuMemPrefetchAsync_v2(CUdeviceptr devPtr, size_t count, CUmemLocation location, unsigned int flags, CUstream hStream)
{
	REQUIRE(flags == 0, CUDA_ERROR_INVALID_VALUE);
	return prefetch(devPtr, count, location, hStream);
}

CUresult cuMemPrefetchAsync(CUdeviceptr devPtr, size_t count, CUdevice dstDevice, CUstream hStream)
{
	return prefetch(devPtr, count, place_of(dstDevice), hStream);
}

CUresult cuMemPrefetchBatchAsync(CUdeviceptr *dptrs, size_t *sizes, size_t count, CUmemLocation *prefetchLocs, size_t *prefetchLocIdxs,
                                 size_t numPrefetchLocs, unsigned long long flags, CUstream hStream)
{
	TRY(ready());
	REQUIRE(dptrs && sizes && count && prefetchLocs && prefetchLocIdxs && numPrefetchLocs && numPrefetchLocs <= count && flags == 0 &&
	        prefetchLocIdxs[0] == 0, CUDA_ERROR_INVALID_VALUE);
	for (size_t i = 0, l = 0; i < count; i++) {
		while (l + 1 < numPrefetchLocs && prefetchLocIdxs[l + 1] <= i)
			l++;
		TRY(prefetch(dptrs[i], sizes[i], prefetchLocs[l], hStream));
	}
	return CUDA_SUCCESS;
}

CUresult cuMemDiscardBatchAsync(CUdeviceptr *dptrs, size_t *sizes, size_t count, unsigned long long flags, CUstream hStream)
{
	struct span s;
	TRY(ready());
	REQUIRE(dptrs && sizes && count && flags == 0, CUDA_ERROR_INVALID_VALUE);
	pthread_mutex_lock(&g.lock);
	CUresult r = CUDA_SUCCESS;
	for (size_t i = 0; i < count && r == CUDA_SUCCESS; i++)
		r = managed_at(dptrs[i], sizes[i], &s);
	pthread_mutex_unlock(&g.lock);
	TRY(r);
	return submit(hStream, op_new(OP_NOW, CU_GRAPH_NODE_TYPE_EMPTY, 0)); /* what is discarded may be anything: its old bytes, too */
}

CUresult cuMemDiscardAndPrefetchBatchAsync(CUdeviceptr *dptrs, size_t *sizes, size_t count, CUmemLocation *prefetchLocs, size_t *prefetchLocIdxs,
                                           size_t numPrefetchLocs, unsigned long long flags, CUstream hStream)
{
	return cuMemPrefetchBatchAsync(dptrs, sizes, count, prefetchLocs, prefetchLocIdxs, numPrefetchLocs, flags, hStream);
}

CUresult cuStreamAttachMemAsync(CUstream hStream, CUdeviceptr dptr, size_t length, unsigned int flags)
{
	struct span s;
	TRY(ready());
	REQUIRE(flags == CU_MEM_ATTACH_GLOBAL || flags == CU_MEM_ATTACH_HOST || flags == CU_MEM_ATTACH_SINGLE, CUDA_ERROR_INVALID_VALUE);
	pthread_mutex_lock(&g.lock);
	CUresult r = managed_at(dptr, length ? length : 1, &s);
	pthread_mutex_unlock(&g.lock);
	TRY(r);
	return submit(hStream, op_new(OP_NOW, CU_GRAPH_NODE_TYPE_EMPTY, 0));
}

/* --- questions --------------------------------------------------------------------------------------- */

static int device_number(CUmemLocation l)
{
	return l.type == CU_MEM_LOCATION_TYPE_DEVICE ? l.id : l.type == CU_MEM_LOCATION_TYPE_INVALID ? CU_DEVICE_INVALID : CU_DEVICE_CPU;
}

static CUresult range_attribute(void *data, size_t size, CUmem_range_attribute attribute, CUdeviceptr p, size_t n)
{
	struct span s;
	int *out = data;
	REQUIRE(data && size >= sizeof *out && size % sizeof *out == 0, CUDA_ERROR_INVALID_VALUE);
	TRY(managed_at(p, n, &s));
	const struct advice *a = &s.range->advice;
	switch (attribute) {
	case CU_MEM_RANGE_ATTRIBUTE_READ_MOSTLY:                 *out = a->read_mostly; return CUDA_SUCCESS;
	case CU_MEM_RANGE_ATTRIBUTE_PREFERRED_LOCATION:          *out = device_number(a->preferred); return CUDA_SUCCESS;
	case CU_MEM_RANGE_ATTRIBUTE_LAST_PREFETCH_LOCATION:      *out = device_number(a->prefetched); return CUDA_SUCCESS;
	case CU_MEM_RANGE_ATTRIBUTE_PREFERRED_LOCATION_TYPE:     *out = (int)a->preferred.type; return CUDA_SUCCESS;
	case CU_MEM_RANGE_ATTRIBUTE_PREFERRED_LOCATION_ID:       *out = a->preferred.id; return CUDA_SUCCESS;
	case CU_MEM_RANGE_ATTRIBUTE_LAST_PREFETCH_LOCATION_TYPE: *out = (int)a->prefetched.type; return CUDA_SUCCESS;
	case CU_MEM_RANGE_ATTRIBUTE_LAST_PREFETCH_LOCATION_ID:   *out = a->prefetched.id; return CUDA_SUCCESS;
	case CU_MEM_RANGE_ATTRIBUTE_ACCESSED_BY:
		for (size_t i = 0; i < size / sizeof *out; i++)
			out[i] = CU_DEVICE_INVALID;
		return CUDA_SUCCESS;
	}
	return CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemRangeGetAttribute(void *data, size_t dataSize, CUmem_range_attribute attribute, CUdeviceptr devPtr, size_t count)
{
	LOCKED(range_attribute(data, dataSize, attribute, devPtr, count));
}

CUresult cuMemRangeGetAttributes(void **data, size_t *dataSizes, CUmem_range_attribute *attributes, size_t numAttributes, CUdeviceptr devPtr,
                                 size_t count)
{
	TRY(ready());
	REQUIRE(data && dataSizes && attributes && numAttributes, CUDA_ERROR_INVALID_VALUE);
	for (size_t i = 0; i < numAttributes; i++)
		TRY(cuMemRangeGetAttribute(data[i], dataSizes[i], attributes[i], devPtr, count));
	return CUDA_SUCCESS;
}
