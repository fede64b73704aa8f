/* swap_area.c: areas, their pieces, and the allocations in them. Memory for all of it comes from mmap, as the books'
 * does: a tenant's malloc may call CUDA.
 */
#define _GNU_SOURCE
#include "swap.h"

#include <sys/mman.h>

struct lock swap_lock;
uint32_t swap_used;
const struct swap_arbiter *kerf_swap_arbiter;

#define MAX_ORDINALS 32

static struct stock stocks[MAX_ORDINALS];
static struct area **table;     /* by address */
static size_t count, room;
static uint64_t ids = 1ull << 62; /* far from the driver's own buffer ids */

struct stock *swap_stock(struct device *d)
{
	struct stock *s = &stocks[d->ordinal];

	if (!s->last)
		s->last = &s->first;
	return s;
}

/* --- memory for the records ---------------------------------------------------------------------------------- */

union record { struct area area; struct piece piece; union record *next; };
static union record *spare;

static void *record_new(void)
{
	union record *r;

	if (!spare) {
		r = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (r == MAP_FAILED)
			return NULL;
		for (size_t i = 0; i < 65536 / sizeof *r; i++) {
			r[i].next = spare;
			spare = &r[i];
		}
	}
	r = spare;
	spare = r->next;
	return r;
}

static void record_free(void *p)
{
	union record *r = p;

	r->next = spare;
	spare = r;
}

/* --- the table ----------------------------------------------------------------------------------------------- */

static size_t after(CUdeviceptr p) /* index of the first area that begins after p */
{
	size_t lo = 0, hi = count;

	while (lo < hi) {
		size_t mid = (lo + hi) / 2;

		if (table[mid]->base <= p)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

struct area *swap_find(CUdeviceptr p)
{
	size_t i = after(p);

	return i && p - table[i - 1]->base < table[i - 1]->span ? table[i - 1] : NULL;
}

static bool enter(struct area *a)
{
	size_t i, more = room ? room * 2 : 512;

	if (count == room) {
		struct area **at = mmap(NULL, more * sizeof(struct area *), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (at == MAP_FAILED)
			return false;
		for (i = 0; i < count; i++)
			at[i] = table[i];
		if (table)
			munmap(table, room * sizeof(struct area *));
		table = at;
		room = more;
	}
	for (i = count++; i && table[i - 1]->base > a->base; i--)
		table[i] = table[i - 1];
	table[i] = a;
	return true;
}

static void leave(struct area *a)
{
	for (size_t i = after(a->base); i < count; i++)
		table[i - 1] = table[i];
	count--;
}

/* --- pieces -------------------------------------------------------------------------------------------------- */

void swap_newest(struct piece *p)
{
	struct stock *s = swap_stock(p->area->device);

	if (p->older) {
		*p->older = p->newer;
		if (p->newer)
			p->newer->older = p->older;
		else
			s->last = p->older;
	}
	p->newer = NULL;
	p->older = s->last;
	*s->last = p;
	s->last = &p->newer;
}

static void unlist(struct piece *p)
{
	swap_newest(p); /* the last is the easiest to take */
	*p->older = NULL;
	swap_stock(p->area->device)->last = p->older;
	p->older = NULL;
}

bool swap_cut(struct piece *p, uint64_t bytes)
{
	struct piece *rest = record_new();

	if (!rest)
		return false;
	*rest = *p;
	rest->at += bytes;
	rest->size -= bytes;
	if (rest->host.region)
		rest->host.at = (char *)rest->host.at + bytes;
	p->size = bytes;
	p->next = rest;
	if (rest->newer)
		rest->newer->older = &rest->newer;
	else
		swap_stock(p->area->device)->last = &rest->newer;
	rest->older = &p->newer;
	p->newer = rest;
	return true;
}

static uint64_t *sum_of(struct stock *s, enum piece_state state)
{
	return state == PIECE_RESIDENT ? &s->resident : state == PIECE_OUT ? &s->swapped : &s->fresh;
}

void swap_state(struct piece *p, enum piece_state to)
{
	struct stock *s = swap_stock(p->area->device);

	*sum_of(s, p->state) -= p->size;
	*sum_of(s, to) += p->size;
	p->state = to;
}

static CUresult set_access(struct piece *p)
{
	struct device *d = p->area->device;
	uint64_t who = swap_stock(d)->peers | 1ull << d->ordinal;
	CUmemAccessDesc desc[MAX_ORDINALS];
	size_t n = 0;

	for (int i = 0; i < MAX_ORDINALS; i++)
		if (who >> i & 1)
			desc[n++] = (CUmemAccessDesc){ { CU_MEM_LOCATION_TYPE_DEVICE, i }, CU_MEM_ACCESS_FLAGS_PROT_READWRITE };
	return REAL(cuMemSetAccess)(p->at, p->size, desc, n);
}

/* No handle is kept: the mapping alone holds the memory, so unmapping frees it. gpuDirectRDMACapable stays 0: a
 * network card's driver is then refused at registration, instead of writing to what has moved. */
CUresult swap_make(struct piece *p)
{
	CUmemAllocationProp prop = {
		.type = CU_MEM_ALLOCATION_TYPE_PINNED, .location = { CU_MEM_LOCATION_TYPE_DEVICE, p->area->device->ordinal },
	};
	CUmemGenericAllocationHandle handle;
	CUresult r = STEP(REAL(cuMemCreate)(&handle, p->size, &prop, 0));

	if (r)
		return r;
	r = STEP(REAL(cuMemMap)(p->at, p->size, 0, handle, 0));
	REAL(cuMemRelease)(handle);
	if (r)
		return r;
	r = STEP(set_access(p));
	if (r)
		REAL(cuMemUnmap)(p->at, p->size);
	return r;
}

CUresult swap_unmake(struct piece *p)
{
	return REAL(cuMemUnmap)(p->at, p->size);
}

/* What a context may reach once it may, it may for ever: taking it back would need to know what other contexts of the
 * same device enabled. A superset of the native behaviour. */
void kerf_swap_peer(int of, int with)
{
	if (of < 0 || with < 0 || of >= MAX_ORDINALS || with >= MAX_ORDINALS)
		return;
	lock(&swap_lock);
	stocks[of].peers |= 1ull << with;
	for (size_t i = 0; i < count; i++)
		for (struct piece *p = table[i]->device->ordinal == of ? table[i]->pieces : NULL; p; p = p->next)
			if (p->state == PIECE_RESIDENT)
				set_access(p);
	unlock(&swap_lock);
}

/* --- areas --------------------------------------------------------------------------------------------------- */

static uint64_t piece_size(uint64_t span)
{
	uint64_t part = (span / 16 + PIECE - 1) & ~(PIECE - 1);

	if (part < PIECE_SMALL)
		return PIECE_SMALL;
	return part > PIECE_LARGE ? PIECE_LARGE : part;
}

void swap_join(struct piece *p)
{
	uint64_t most = piece_size(p->area->span);
	struct piece *q;

	while ((q = p->next) != NULL && q->state == p->state && p->size + q->size <= most && q->host.region == p->host.region &&
	       (!p->host.region || (char *)p->host.at + p->size == (char *)q->host.at)) {
		p->size += q->size;
		p->next = q->next;
		unlist(q);
		record_free(q);
	}
}

static bool add_piece(struct area *a, CUdeviceptr at, uint64_t size, struct piece **last)
{
	struct piece *p = record_new();

	if (!p)
		return false;
	*p = (struct piece){ .at = at, .size = size, .area = a };
	*last = p;
	swap_newest(p);
	swap_stock(a->device)->fresh += size;
	return true;
}

/* Fails if a piece cannot be unmapped; the rest stays as it was, and may be tried again. */
static CUresult drop_pieces(struct area *a)
{
	struct piece *p;

	while ((p = a->pieces) != NULL) {
		if (p->state == PIECE_RESIDENT) {
			CUresult r = swap_unmake(p);

			if (r)
				return r;
		}
		*sum_of(swap_stock(a->device), p->state) -= p->size;
		host_put(&p->host, p->size);
		unlist(p);
		a->pieces = p->next;
		record_free(p);
	}
	return CUDA_SUCCESS;
}

static CUresult area_delete(struct area *a)
{
	CUresult r = drop_pieces(a);

	if (r)
		return r;
	REAL(cuMemAddressFree)(a->base, a->span);
	leave(a);
	if (a->slab)
		munmap(a->slab, sizeof *a->slab);
	swap_stock(a->device)->charged -= a->charged;
	record_free(a);
	return CUDA_SUCCESS;
}

/* Addresses and pieces, none of which is there yet. */
static struct area *area_new(struct device *d, CUcontext ctx, uint64_t bytes, CUresult *r)
{
	struct area *a = record_new();
	uint64_t span = kerf_pages(bytes), size = piece_size(span);
	struct piece **last;

	*r = CUDA_ERROR_OUT_OF_MEMORY;
	if (!a)
		return NULL;
	*a = (struct area){ .span = span, .bytes = bytes, .device = d, .ctx = ctx, .id = ++ids };
	*r = REAL(cuMemAddressReserve)(&a->base, span, 0, 0, 0);
	if (*r) {
		record_free(a);
		return NULL;
	}
	if (!enter(a)) {
		REAL(cuMemAddressFree)(a->base, span);
		record_free(a);
		*r = CUDA_ERROR_OUT_OF_MEMORY;
		return NULL;
	}
	store_relaxed(&swap_used, 1);
	last = &a->pieces;
	for (uint64_t at = 0; at < span; at += size) {
		if (!add_piece(a, a->base + at, span - at < size ? span - at : size, last)) {
			area_delete(a);
			*r = CUDA_ERROR_OUT_OF_MEMORY;
			return NULL;
		}
		last = &(*last)->next;
	}
	return a;
}

static CUresult area_fill(struct area *a)
{
	for (struct piece *p = a->pieces; p; p = p->next) {
		CUresult r = p->state == PIECE_FRESH ? swap_make(p) : CUDA_SUCCESS;

		if (r)
			return r;
		if (p->state == PIECE_FRESH)
			swap_state(p, PIECE_RESIDENT);
	}
	return CUDA_SUCCESS;
}

/* With swap_lock held, but not while the arbiter is asked: it answers by kerf_swap_in. */
static struct area *area_made(struct device *d, CUcontext ctx, uint64_t bytes, CUresult *r)
{
	struct area *a = area_new(d, ctx, bytes, r);
	CUdeviceptr base;
	uint64_t id;

	if (!a)
		return NULL;
	base = a->base;
	id = a->id;
	a->pinned = true; /* not to be moved before it has an owner; swap_in makes it all the same */
	if (kerf_swap_arbiter) {
		uint64_t span = a->span;

		unlock(&swap_lock);
		*r = kerf_swap_arbiter->ask(d, span);
		lock(&swap_lock);
		a = swap_find(base);
		if (!a || a->id != id) { /* its context was destroyed meanwhile */
			*r = CUDA_ERROR_CONTEXT_IS_DESTROYED;
			return NULL;
		}
	} else {
		*r = area_fill(a);
	}
	a->pinned = false;
	if (*r == CUDA_SUCCESS)
		return a;
	area_delete(a);
	return NULL;
}

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
	for (size_t i = 0; i < count; i++)
		if (table[i]->slab && table[i]->device == d && table[i]->ctx == ctx && !table[i]->ends && slab_fit(table[i]->slab, units, at))
			return table[i];
	return NULL;
}

static struct area *slab_new(struct device *d, CUcontext ctx, CUresult *r)
{
	struct slab *s = mmap(NULL, sizeof *s, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct area *a;

	*r = CUDA_ERROR_OUT_OF_MEMORY;
	if (s == MAP_FAILED)
		return NULL;
	a = area_made(d, ctx, PIECE, r);
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
	a = area_made(d, ctx, bytes, &r);
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
	CUresult r = kerf_charge(d, kerf_physical(n));

	if (r)
		return r;
	r = n < MIB ? alloc_small(d, ctx, n, p) : alloc_large(d, ctx, n, p);
	if (r)
		kerf_discharge(d, kerf_physical(n));
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

static void tell_freed(struct device *d, uint64_t resident, uint64_t absent)
{
	if (!kerf_swap_arbiter)
		return;
	if (resident)
		kerf_swap_arbiter->freed(d, resident, false);
	if (absent)
		kerf_swap_arbiter->freed(d, absent, true);
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
	return area_delete(a); /* whole, or the last of its slab */
}

static CUresult free_waited(CUdeviceptr p)
{
	uint64_t charged, resident = 0, absent = 0;
	struct device *d = NULL;
	struct stock *s;
	CUresult r;

	lock(&swap_lock);
	r = swap_find(p) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
	if (r == CUDA_SUCCESS) {
		s = swap_stock(swap_find(p)->device);
		resident = s->resident;
		absent = s->swapped + s->fresh;
		r = free_locked(p, &d, &charged);
		resident -= s->resident;
		absent -= s->swapped + s->fresh;
	}
	if (d)
		swap_tell(d);
	unlock(&swap_lock);
	if (r)
		return r;
	kerf_discharge(d, charged);
	tell_freed(d, resident, absent);
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
	ctx = a ? a->ctx : NULL;
	unlock(&swap_lock);
	if (!a)
		return false;
	*r = wait_for_work(ctx);
	if (*r == CUDA_SUCCESS)
		*r = free_waited(p);
	return true;
}

/* --- contexts that end ------------------------------------------------------------------------------------------ */

/* From here on the engine does not touch what the context owns. */
void kerf_swap_context_ends(CUcontext ctx, uint64_t name)
{
	if (likely(!load_relaxed(&swap_used)) || !ctx)
		return;
	lock(&swap_lock);
	for (size_t i = 0; i < count; i++)
		if (table[i]->ctx == ctx && !table[i]->ends) {
			table[i]->ends = name;
			table[i]->pinned = true;
		}
	swap_mover_ends(ctx);
	host_context_ends(ctx);
	unlock(&swap_lock);
}

static void end_areas(struct device *d, uint64_t name)
{
	struct stock *s = swap_stock(d);
	uint64_t resident, absent, charged;

	lock(&swap_lock);
	resident = s->resident;
	absent = s->swapped + s->fresh;
	charged = s->charged;
	for (size_t i = count; i-- > 0;)
		if (table[i]->ends == name && table[i]->device == d)
			area_delete(table[i]);
	resident -= s->resident;
	absent -= s->swapped + s->fresh;
	charged -= s->charged;
	swap_tell(d);
	unlock(&swap_lock);
	kerf_discharge(d, charged);
	tell_freed(d, resident, absent);
}

static void keep_areas(uint64_t name)
{
	lock(&swap_lock);
	for (size_t i = 0; i < count; i++)
		if (table[i]->ends == name) {
			table[i]->ends = 0;
			table[i]->pinned = table[i]->sync_memops;
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
