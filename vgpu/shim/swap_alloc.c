/* swap_alloc.c: allocations in areas, small ones in slabs, and the ends of contexts. */
#define _GNU_SOURCE
#include "swap.h"

#include <sys/mman.h>

/* --- small allocations ----------------------------------------------------------------------------------------- */

static bool slab_fit(struct slab *s, unsigned units, unsigned *out)
{
	unsigned run = 0;

	if (GRANULES - s->used < units)
		return false;
	while (s->hint < GRANULES && s->taken[s->hint / 64] >> s->hint % 64 & 1)
		s->hint++;
	for (unsigned i = s->hint; i < GRANULES; i++) {
		run = s->taken[i / 64] >> i % 64 & 1 ? 0 : run + 1;
		if (run == units) {
			*out = i + 1 - units;
			return true;
		}
	}
	return false;
}

static void slab_mark(struct slab *s, unsigned at, unsigned units, bool on)
{
	for (unsigned i = at; i < at + units; i++)
		s->taken[i / 64] = on ? s->taken[i / 64] | 1ull << i % 64 : s->taken[i / 64] & ~(1ull << i % 64);
	s->used = (uint16_t)(on ? s->used + units : s->used - units);
	if (!on && at < s->hint)
		s->hint = (uint16_t)at;
}

static unsigned units_of(uint64_t bytes)
{
	return (unsigned)((bytes + GRANULE - 1) / GRANULE);
}

static struct area *slab_with_room(struct device *d, CUcontext ctx, unsigned units, unsigned *at)
{
	struct area *a;

	for (size_t i = 0; (a = swap_area_at(i)) != NULL; i++)
		if (a->slab && a->device == d && a->ctx == ctx && !a->ends && slab_fit(a->slab, units, at))
			return a;
	return NULL;
}

static struct area *slab_new(struct device *d, CUcontext ctx, CUresult *r)
{
	struct slab *s = mmap(NULL, sizeof *s, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct area *a;

	*r = CUDA_ERROR_OUT_OF_MEMORY;
	if (s == MAP_FAILED)
		return NULL;
	a = swap_area_made(d, ctx, PIECE, r);
	if (a)
		a->slab = s;
	else
		munmap(s, sizeof *s);
	return a;
}

static CUresult alloc_small(struct device *d, CUcontext ctx, uint64_t bytes, CUdeviceptr *out)
{
	unsigned units = units_of(bytes), at = 0;
	CUresult r = CUDA_SUCCESS;
	struct area *a;

	lock(&swap_lock);
	a = slab_with_room(d, ctx, units, &at);
	if (!a && (a = slab_new(d, ctx, &r)) != NULL)
		slab_fit(a->slab, units, &at);
	if (a) {
		slab_mark(a->slab, at, units, true);
		a->slab->length[at] = (uint16_t)units;
		a->slab->bytes[at] = (uint32_t)bytes;
		a->charged += kerf_physical(bytes);
		swap_stock(d)->charged += kerf_physical(bytes);
		*out = a->base + (uint64_t)at * GRANULE;
	}
	swap_tell(d);
	unlock(&swap_lock);
	return r;
}

/* The small allocation around p. */
static bool small_at(const struct slab *s, uint64_t offset, unsigned *out)
{
	for (unsigned at = (unsigned)(offset / GRANULE) + 1; at-- > 0;) {
		if (!(s->taken[at / 64] >> at % 64 & 1))
			return false;
		if (s->length[at]) {
			*out = at;
			return offset - (uint64_t)at * GRANULE < s->bytes[at];
		}
	}
	return false;
}

bool swap_span(CUdeviceptr p, CUdeviceptr *base, uint64_t *bytes, struct area **area)
{
	struct area *a = swap_find(p);
	unsigned at;

	if (!a || (!a->slab && p - a->base >= a->bytes) || (a->slab && !small_at(a->slab, p - a->base, &at)))
		return false;
	*area = a;
	*base = a->slab ? a->base + (uint64_t)at * GRANULE : a->base;
	*bytes = a->slab ? a->slab->bytes[at] : a->bytes;
	return true;
}

/* --- the calls ------------------------------------------------------------------------------------------------ */

static CUresult alloc_large(struct device *d, CUcontext ctx, uint64_t bytes, CUdeviceptr *out)
{
	struct area *a;
	CUresult r;

	lock(&swap_lock);
	a = swap_area_made(d, ctx, bytes, &r);
	if (a) {
		a->charged = kerf_physical(bytes);
		swap_stock(d)->charged += a->charged;
		*out = a->base;
	}
	swap_tell(d);
	unlock(&swap_lock);
	return r;
}

CUresult kerf_swap_alloc(struct device *d, CUdeviceptr *p, size_t n)
{
	CUcontext ctx = (CUcontext)(uintptr_t)kerf_current_context();
	CUresult r = kerf_charge_apart(d, kerf_physical(n));

	if (r)
		return r;
	r = n < MIB ? alloc_small(d, ctx, n, p) : alloc_large(d, ctx, n, p);
	if (r)
		kerf_discharge_apart(d, kerf_physical(n));
	return r;
}

/* cuMemFree waits for the context's work, and may not be called while a capture forbids it. Nothing in the VMM calls
 * does either, so memory of the driver's own is freed to have both: cuCtxSynchronize would break a capture. */
static CUresult wait_for_work(CUcontext ctx)
{
	CUdeviceptr scratch;
	CUcontext popped;
	CUresult r = REAL(cuCtxPushCurrent_v2)(ctx);

	if (r)
		return r;
	r = REAL(cuMemAlloc_v2)(&scratch, GRANULE);
	if (r == CUDA_SUCCESS)
		r = REAL(cuMemFree_v2)(scratch);
	else if (r == CUDA_ERROR_OUT_OF_MEMORY)
		r = REAL(cuCtxSynchronize)();
	REAL(cuCtxPopCurrent_v2)(&popped);
	return r;
}

/* What is out has been waited for, and the card may be another's by now. */
static bool in_use(const struct area *a)
{
	for (const struct piece *p = a->pieces; p; p = p->next)
		if (p->state == PIECE_RESIDENT)
			return true;
	return false;
}

/* The allocation that begins at p; its index in a slab. */
static struct area *allocation(CUdeviceptr p, unsigned *at)
{
	CUdeviceptr base;
	struct area *a;
	uint64_t bytes;

	if (!swap_span(p, &base, &bytes, &a) || base != p)
		return NULL;
	*at = (unsigned)((p - a->base) / GRANULE);
	return a;
}

static CUresult free_locked(CUdeviceptr p, struct device **d, uint64_t *charged)
{
	unsigned at;
	struct area *a = allocation(p, &at);

	*charged = 0;
	if (!a)
		return CUDA_ERROR_INVALID_VALUE; /* another thread freed it while we waited */
	*d = a->device;
	*charged = kerf_physical(a->slab ? a->slab->bytes[at] : a->bytes);
	if (a->slab && a->slab->used != a->slab->length[at]) {
		slab_mark(a->slab, at, a->slab->length[at], false);
		a->slab->length[at] = 0;
		a->charged -= *charged;
		swap_stock(*d)->charged -= *charged;
		return CUDA_SUCCESS;
	}
	return swap_area_delete(a); /* whole, or the last of its slab */
}

static CUresult free_waited(CUdeviceptr p)
{
	struct device *d = NULL;
	uint64_t charged;
	CUresult r;

	lock(&swap_lock);
	r = free_locked(p, &d, &charged);
	if (d)
		swap_tell(d);
	unlock(&swap_lock);
	if (r)
		return r;
	kerf_discharge_apart(d, charged);
	return CUDA_SUCCESS;
}

bool kerf_swap_free(CUdeviceptr p, CUresult *r)
{
	struct area *a;
	CUcontext ctx;
	unsigned at;

	if (likely(!load_relaxed(&swap_used)))
		return false;
	lock(&swap_lock);
	a = allocation(p, &at);
	ctx = a && in_use(a) ? a->ctx : NULL;
	unlock(&swap_lock);
	if (!a)
		return false;
	*r = ctx ? wait_for_work(ctx) : CUDA_SUCCESS;
	if (*r == CUDA_SUCCESS)
		*r = free_waited(p);
	return true;
}

/* --- contexts that end ------------------------------------------------------------------------------------------ */

/* From here on the engine does not touch what the context owns. */
void kerf_swap_context_ends(CUcontext ctx, uint64_t name)
{
	struct area *a;

	if (likely(!load_relaxed(&swap_used)) || !ctx)
		return;
	lock(&swap_lock);
	for (size_t i = 0; (a = swap_area_at(i)) != NULL; i++)
		if (a->ctx == ctx && !a->ends) {
			a->ends = name;
			a->pinned = true;
		}
	swap_mover_ends(ctx);
	host_context_ends(ctx);
	unlock(&swap_lock);
}

static void end_areas(struct device *d, uint64_t name)
{
	struct stock *s = swap_stock(d);
	uint64_t charged;
	struct area *a;

	lock(&swap_lock);
	charged = s->charged;
	for (size_t i = 0; (a = swap_area_at(i)) != NULL;)
		if (a->ends != name || a->device != d || swap_area_delete(a))
			i++;
	charged -= s->charged;
	swap_tell(d);
	unlock(&swap_lock);
	kerf_discharge_apart(d, charged);
}

static void keep_areas(uint64_t name)
{
	struct area *a;

	lock(&swap_lock);
	for (size_t i = 0; (a = swap_area_at(i)) != NULL; i++)
		if (a->ends == name) {
			a->ends = 0;
			a->pinned = a->sync_memops;
		}
	unlock(&swap_lock);
}

void kerf_swap_context_ended(uint64_t name, bool gone)
{
	if (likely(!load_relaxed(&swap_used)))
		return;
	if (!gone)
		keep_areas(name);
	for (int i = 0; gone && i < kerf_device_count(); i++)
		end_areas(kerf_device(i), name);
}
