/* swap.c: moving pieces between the card and the host.
 *
 * Two streams take turns, so that the copy of one piece runs while the one before it is unmapped, or the one after it made.
 * Each piece changes hands only once its own copy is known to have ended well.
 */
#define _GNU_SOURCE
#include "swap.h"

#define STREAMS 2

struct mover { CUcontext ctx; CUstream stream[STREAMS]; };
static struct mover movers[32];

/* --- the books' questions --------------------------------------------------------------------------------------- */

static bool probe(struct device *d)
{
	CUmemAllocationProp prop = {
		.type = CU_MEM_ALLOCATION_TYPE_PINNED, .location = { CU_MEM_LOCATION_TYPE_DEVICE, d->ordinal },
	};
	size_t unit = 0;

	if (!REAL(cuMemGetAllocationGranularity) || REAL(cuMemGetAllocationGranularity)(&unit, &prop, CU_MEM_ALLOC_GRANULARITY_MINIMUM))
		return false;
	return unit && PIECE % unit == 0;
}

/* A driver without VMM, or with larger pages, serves over-committed shares as any other: all of it is pinned. */
bool kerf_swappable(struct device *d)
{
	struct stock *s;
	bool able;

	if (likely(!(load_relaxed(&d->share->policy->flags) & KERF_POLICY_OVERCOMMIT)))
		return false;
	lock(&swap_lock);
	s = swap_stock(d);
	if (!s->probed)
		s->able = probe(d);
	s->probed = true;
	able = s->able;
	unlock(&swap_lock);
	return able;
}

static struct kerf_residency *residency(struct device *d)
{
	struct share *s = d->share;

	return s->slot ? &s->usage->residency[s->slot - s->usage->slot] : NULL;
}

void swap_tell(struct device *d)
{
	struct kerf_residency *r = residency(d);
	struct stock *s = swap_stock(d);

	if (kerf_swap_arbiter)
		kerf_swap_arbiter->changed(d, s->resident, s->swapped + s->fresh);
	if (!r)
		return;
	if (load_relaxed(&r->generation) != d->share->generation) { /* a dead session's words */
		for (int i = 0; i < KERF_MAX_DEVICES; i++) {
			store_relaxed(&r->resident[i], 0);
			store_relaxed(&r->swapped[i], 0);
			store_relaxed(&r->moved[i], 0);
		}
		store_release(&r->generation, d->share->generation);
	}
	store_relaxed(&r->resident[d->index], s->resident);
	store_relaxed(&r->swapped[d->index], s->swapped + s->fresh);
	store_relaxed(&r->moved[d->index], s->moved);
	store_relaxed(&r->host, host_bytes());
}

void kerf_swap_look(struct device *d, struct swap_counts *out)
{
	struct stock *s;

	lock(&swap_lock);
	s = swap_stock(d);
	*out = (struct swap_counts){ .resident = s->resident, .swapped = s->swapped, .fresh = s->fresh, .host = host_bytes(), .locked = host_locked() };
	for (struct piece *p = s->first; p; p = p->newer) {
		out->pinned += p->area->pinned && p->state == PIECE_RESIDENT ? p->size : 0;
		out->areas += p == p->area->pieces;
	}
	unlock(&swap_lock);
}

bool kerf_swap_whole(struct device *d)
{
	const struct stock *s;
	bool whole;

	lock(&swap_lock);
	s = swap_stock(d);
	whole = s->swapped + s->fresh == 0;
	unlock(&swap_lock);
	return whole;
}

/* --- a move's surroundings --------------------------------------------------------------------------------------- */

/* What must be put back on this thread. */
struct move { struct device *d; struct mover *by; CUstreamCaptureMode mode; bool relaxed; };

static void streams_destroy(struct mover *m)
{
	for (int i = 0; i < STREAMS; i++)
		if (m->stream[i])
			REAL(cuStreamDestroy_v2)(m->stream[i]);
	*m = (struct mover){ NULL, { NULL } };
}

static CUresult streams_create(struct mover *m, CUcontext ctx)
{
	*m = (struct mover){ ctx, { NULL } };
	for (int i = 0; i < STREAMS; i++) {
		CUresult r = STEP(REAL(cuStreamCreate)(&m->stream[i], CU_STREAM_NON_BLOCKING));

		if (r) {
			m->stream[i] = NULL;
			streams_destroy(m);
			return r;
		}
	}
	return CUDA_SUCCESS;
}

void swap_mover_ends(CUcontext ctx)
{
	CUcontext popped;

	for (size_t i = 0; i < ARRAY_LEN(movers); i++)
		if (movers[i].ctx == ctx && !REAL(cuCtxPushCurrent_v2)(ctx)) {
			streams_destroy(&movers[i]);
			REAL(cuCtxPopCurrent_v2)(&popped);
		}
}

/* Any context of the device will do, and one in which memory of the tenant's lies is sure to live. */
static CUresult begin(struct move *m, struct device *d, CUcontext ctx)
{
	CUcontext popped;
	CUresult r;

	*m = (struct move){ .d = d, .by = &movers[d->ordinal], .mode = CU_STREAM_CAPTURE_MODE_RELAXED };
	if (m->by->ctx)
		ctx = m->by->ctx;
	r = REAL(cuCtxPushCurrent_v2)(ctx);
	if (r)
		return r;
	host_move_begins();
	m->relaxed = REAL(cuThreadExchangeStreamCaptureMode) && !REAL(cuThreadExchangeStreamCaptureMode)(&m->mode);
	r = m->by->ctx ? CUDA_SUCCESS : streams_create(m->by, ctx);
	if (r) {
		if (m->relaxed)
			REAL(cuThreadExchangeStreamCaptureMode)(&m->mode);
		REAL(cuCtxPopCurrent_v2)(&popped);
	}
	return r;
}

static void end(struct move *m)
{
	CUcontext popped;

	if (m->relaxed)
		REAL(cuThreadExchangeStreamCaptureMode)(&m->mode);
	REAL(cuCtxPopCurrent_v2)(&popped);
	swap_tell(m->d);
}

/* --- which ------------------------------------------------------------------------------------------------------- */

/* Bytes that may leave: the process keeps min_resident, of which memory that cannot be swapped is a part. */
static uint64_t may_leave(struct device *d)
{
	const struct stock *s = swap_stock(d);
	uint64_t own = load_relaxed(&d->own), least = load_relaxed(&d->share->policy->device[d->index].min_resident);
	uint64_t fixed = own > s->charged ? own - s->charged : 0;

	return s->resident + fixed > least ? s->resident + fixed - least : 0;
}

struct choice { struct piece *first, **last; uint64_t bytes; };

static void choose(struct choice *c, struct piece *p)
{
	p->chosen = NULL;
	*c->last = p;
	c->last = &p->chosen;
	c->bytes += p->size;
}

static bool movable(const struct piece *p)
{
	return p->state == PIECE_RESIDENT && !p->area->pinned && !p->host.region;
}

/* The pool's limit, and the least that no place was found for in it. */
struct places { uint64_t limit, none; };

static void choose_placed(struct choice *c, struct piece *p, struct places *in)
{
	if (p->size >= in->none)
		return;
	if (host_take(p->size, in->limit, &p->host))
		choose(c, p);
	else
		in->none = p->size;
}

/* Pieces that fit into what was asked for and into the pool, oldest first, slabs last; then the smallest other one, if the floor
 * lets it. A piece that is chosen holds its place in the pool from here on: that marks it, too. */
static CUresult choose_out(struct device *d, uint64_t bytes, struct choice *c)
{
	struct stock *s = swap_stock(d);
	struct places in = { load_relaxed(&d->share->policy->device[d->index].host_limit), UINT64_MAX };
	uint64_t most = may_leave(d);
	struct piece *least = NULL;

	for (int pass = 0; pass < 3 && c->bytes < bytes; pass++) {
		for (struct piece *p = s->first; p && c->bytes < bytes; p = p->newer) {
			if (!movable(p) || p->size > most - c->bytes || (pass < 2 && (p->area->slab != NULL) != (pass == 1)))
				continue;
			if (pass == 2)
				least = !least || p->size < least->size ? p : least;
			else if (p->size <= bytes - c->bytes)
				choose_placed(c, p, &in);
		}
	}
	if (least)
		choose_placed(c, least, &in);
	return c->first || in.none == UINT64_MAX ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

/* Those that were out the longest first. Never more than was asked for: the room beyond may be another's. What is not there
 * can be cut, since nothing of it is mapped. */
static void choose_in(struct device *d, uint64_t bytes, struct choice *c)
{
	for (struct piece *p = swap_stock(d)->first; p && bytes - c->bytes >= PIECE; p = p->newer) {
		if (p->state == PIECE_RESIDENT || p->area->ends)
			continue;
		swap_join(p);
		if (p->size > bytes - c->bytes && !swap_cut(p, (bytes - c->bytes) & ~(PIECE - 1)))
			continue;
		choose(c, p);
	}
}

static void give_back(struct piece *from)
{
	for (struct piece *p = from; p; p = p->chosen)
		if (p->state == PIECE_RESIDENT)
			host_put(&p->host, p->size);
}

static void has_moved(struct piece *p, bool out)
{
	struct device *d = p->area->device;

	swap_stock(d)->moved += p->state == PIECE_FRESH ? 0 : p->size;
	swap_state(p, out ? PIECE_OUT : PIECE_RESIDENT);
	swap_tell(d);
}

/* --- out ---------------------------------------------------------------------------------------------------------- */

static CUresult left(struct piece *p, CUstream stream)
{
	CUresult r = STEP(REAL(cuStreamSynchronize)(stream));

	if (r == CUDA_SUCCESS)
		r = STEP(swap_unmake(p));
	if (r)
		return r;
	has_moved(p, true);
	return CUDA_SUCCESS;
}

/* On an error what is on its way is waited for, lest a copy writes to a place that is given to another piece. */
static CUresult copy_out(struct move *m, struct piece *first, uint64_t *moved)
{
	struct piece *before = NULL;
	CUresult r = CUDA_SUCCESS, one;
	int n = 0;

	for (struct piece *p = first; p && r == CUDA_SUCCESS; p = p->chosen, n++) {
		host_pin(&p->host, m->by->ctx);
		r = STEP(REAL(cuMemcpyDtoHAsync_v2)(p->host.at, p->at, p->size, m->by->stream[n % STREAMS]));
		if (before) {
			one = left(before, m->by->stream[(n + 1) % STREAMS]);
			*moved += one ? 0 : before->size;
			r = r ? r : one;
		}
		before = r ? NULL : p;
	}
	if (before && (r = left(before, m->by->stream[(n + 1) % STREAMS])) == CUDA_SUCCESS)
		*moved += before->size;
	for (int i = 0; r && i < STREAMS; i++)
		REAL(cuStreamSynchronize)(m->by->stream[i]);
	return r;
}

CUresult kerf_swap_out(struct device *d, uint64_t bytes, uint64_t *moved)
{
	struct choice c = { .last = &c.first };
	struct move m;
	CUresult r;

	*moved = 0;
	kerf_depth++;
	lock(&swap_lock);
	r = choose_out(d, bytes, &c);
	if (r == CUDA_SUCCESS && c.first)
		r = begin(&m, d, c.first->area->ctx);
	if (r == CUDA_SUCCESS && c.first) {
		r = copy_out(&m, c.first, moved);
		end(&m);
	}
	give_back(c.first);
	swap_tell(d);
	unlock(&swap_lock);
	kerf_depth--;
	return r;
}

/* --- in ----------------------------------------------------------------------------------------------------------- */

static CUresult start_in(struct move *m, struct piece *p, CUstream stream)
{
	CUresult r = swap_make(p);

	if (r || p->state == PIECE_FRESH)
		return r;
	host_pin(&p->host, m->by->ctx);
	r = STEP(REAL(cuMemcpyHtoDAsync_v2)(p->at, p->host.at, p->size, stream));
	if (r)
		swap_unmake(p);
	return r;
}

static CUresult arrived(struct piece *p, CUstream stream)
{
	CUresult r = p->state == PIECE_FRESH ? CUDA_SUCCESS : STEP(REAL(cuStreamSynchronize)(stream));

	if (r) {
		REAL(cuStreamSynchronize)(stream); /* it may be on its way yet */
		swap_unmake(p);
		return r;
	}
	host_put(&p->host, p->size);
	has_moved(p, false);
	swap_newest(p);
	return CUDA_SUCCESS;
}

static CUresult copy_in(struct move *m, struct piece *first, uint64_t *moved)
{
	struct piece *before = NULL, *next;
	CUresult r = CUDA_SUCCESS, one;
	int n = 0;

	for (struct piece *p = first; p && r == CUDA_SUCCESS; p = next, n++) {
		next = p->chosen;
		r = start_in(m, p, m->by->stream[n % STREAMS]);
		if (before) {
			one = arrived(before, m->by->stream[(n + 1) % STREAMS]);
			*moved += one ? 0 : before->size;
			if (one && !r) { /* p was begun, and is whole: let it arrive */
				if (arrived(p, m->by->stream[n % STREAMS]) == CUDA_SUCCESS)
					*moved += p->size;
			}
			r = r ? r : one;
		}
		before = r ? NULL : p;
	}
	if (before && (r = arrived(before, m->by->stream[(n + 1) % STREAMS])) == CUDA_SUCCESS)
		*moved += before->size;
	return r;
}

CUresult kerf_swap_in(struct device *d, uint64_t bytes, uint64_t *moved)
{
	struct choice c = { .last = &c.first };
	CUresult r = CUDA_SUCCESS;
	struct move m;

	*moved = 0;
	kerf_depth++;
	lock(&swap_lock);
	choose_in(d, bytes, &c);
	if (c.first)
		r = begin(&m, d, c.first->area->ctx);
	if (c.first && r == CUDA_SUCCESS) {
		r = copy_in(&m, c.first, moved);
		end(&m);
	}
	unlock(&swap_lock);
	kerf_depth--;
	return r;
}

/* In the context of whatever memory there is. */
static bool begin_anywhere(struct move *m, struct device *d)
{
	struct piece *p;

	for (p = swap_stock(d)->first; p && p->area->ends; p = p->newer)
		;
	return p && begin(m, d, p->area->ctx) == CUDA_SUCCESS;
}

void kerf_host_pin(struct device *d)
{
	struct move m;

	kerf_depth++;
	lock(&swap_lock);
	if (begin_anywhere(&m, d)) {
		host_pin_all(m.by->ctx);
		end(&m);
	}
	unlock(&swap_lock);
	kerf_depth--;
}

void kerf_swap_report(struct device *d)
{
	lock(&swap_lock);
	swap_tell(d);
	unlock(&swap_lock);
}

#ifdef KERF_SWAP_DOOR
#include "test/door.h"
#endif
