/* swap_area.c: areas and their pieces. Memory for the records comes from mmap, as the books'
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

struct area *swap_area_at(size_t i)
{
	return i < count ? table[i] : NULL;
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

CUresult swap_area_delete(struct area *a)
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
			swap_area_delete(a);
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
struct area *swap_area_made(struct device *d, CUcontext ctx, uint64_t bytes, CUresult *r)
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
		unlock(&swap_lock);
		*r = kerf_swap_arbiter->ask(d);
		lock(&swap_lock);
		a = swap_find(base);
		if (!a || a->id != id) { /* its context was destroyed meanwhile */
			*r = CUDA_ERROR_CONTEXT_IS_DESTROYED;
			return NULL;
		}
	} else {
		*r = area_fill(a);
	}
	a->pinned = a->ends != 0;
	if (*r == CUDA_SUCCESS)
		return a;
	swap_area_delete(a);
	return NULL;
}
