/* info.c: the memory that a tenant is told of is its slice's: total is the limit, free is what is left under it. */
#include "shim.h"

static unsigned int clamp32(uint64_t n)
{
	return n > UINT32_MAX ? UINT32_MAX : (unsigned int)n;
}

static struct device *look(CUresult *r)
{
	struct device *d = kerf_current_device(r);

	if (d) {
		kerf_pools_refresh();
		kerf_graphs_refresh();
	}
	return d;
}

/* Some callers pass NULL for what they do not want, and the driver lets them. */
CUresult on_mem_info(real_on_mem_info real, size_t *free_bytes, size_t *total)
{
	CUresult r;
	struct device *d = look(&r);

	(void)real;
	if (!d)
		return r;
	if (free_bytes)
		*free_bytes = kerf_room(d);
	if (total)
		*total = load_relaxed(&d->share->policy->device[d->index].limit);
	return CUDA_SUCCESS;
}

CUresult on_mem_info_v1(real_on_mem_info_v1 real, unsigned int *free_bytes, unsigned int *total)
{
	CUresult r;
	struct device *d = look(&r);

	(void)real;
	if (!d)
		return r;
	if (free_bytes)
		*free_bytes = clamp32(kerf_room(d));
	if (total)
		*total = clamp32(load_relaxed(&d->share->policy->device[d->index].limit));
	return CUDA_SUCCESS;
}

CUresult on_total_mem(real_on_total_mem real, size_t *total, CUdevice dev)
{
	struct device *d = kerf_device(dev);

	if (!d || !total)
		return real(total, dev);
	*total = load_relaxed(&d->share->policy->device[d->index].limit);
	return CUDA_SUCCESS;
}

CUresult on_total_mem_v1(real_on_total_mem_v1 real, unsigned int *total, CUdevice dev)
{
	struct device *d = kerf_device(dev);

	if (!d || !total)
		return real(total, dev);
	*total = clamp32(load_relaxed(&d->share->policy->device[d->index].limit));
	return CUDA_SUCCESS;
}
