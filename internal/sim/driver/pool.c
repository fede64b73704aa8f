/* pool.c: stream-ordered memory.
 *
 * A pool reserves memory by segments and gives out pieces of them. cuMemAllocAsync hands out an address at once;
 * what cuMemFreeAsync frees is free for the same stream at once and for everybody when the stream gets there.
 * Segments without a piece in use go back to the device when a wait ends and the pool holds more than its release
 * threshold, when the pool is trimmed, or when the device has nothing else left.
 */
#define _GNU_SOURCE
#include "pool.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define SEGMENT MIB(32) /* at least; larger allocations get a segment of their own */

CUmemoryPool pool_of(const struct range *r) { return r->segment ? r->segment->pool : NULL; }

/* --- segments; all under g.lock ---------------------------------------------------------------------- */

/* A pool that can be shared keeps all its bytes in one file, so that one descriptor shows them all. */
static struct phys *shared_bytes(CUmemoryPool p, uint64_t size, CUresult *err)
{
	if ((*err = charge(p->dev, CHARGE_MEMORY, size)) != CUDA_SUCCESS)
		return NULL;
	struct phys *b = object_new(K_PHYS, sizeof *b);
	if (!b || (p->fd >= 0 && ftruncate(p->fd, (off_t)(p->fd_end + size)) != 0)) {
		discharge(p->dev, CHARGE_MEMORY, size);
		if (b)
			object_free(b);
		*err = CUDA_ERROR_OUT_OF_MEMORY;
		return NULL;
	}
	b->dev = p->dev;
	b->fd = p->fd;
	b->offset = p->fd_end;
	b->size = b->charged = size;
	p->fd_end += size;
	return b;
}

static struct segment *segment_new(CUmemoryPool p, uint64_t size, CUresult *err)
{
	struct segment *s = calloc(1, sizeof *s);
	struct piece *whole = calloc(1, sizeof *whole);
	struct phys *bytes = NULL;
	*err = CUDA_ERROR_OUT_OF_MEMORY;
	if (s && whole && (!p->props.maxSize || p->reserved + size <= p->props.maxSize))
		bytes = p->props.handleTypes ? shared_bytes(p, size, err) : phys_new(p->dev, size, false, err);
	if (bytes)
		s->range = range_adopt(p->dev, NULL, R_POOL, bytes, 0, size, err);
	if (!bytes || !s->range) {
		free(s);
		free(whole);
		return NULL;
	}
	whole->span = size;
	s->pieces = whole;
	s->pool = p;
	s->range->segment = s;
	s->next = p->segments;
	p->segments = s;
	p->reserved += size;
	if (p->reserved > p->reserved_high)
		p->reserved_high = p->reserved;
	return s;
}

static void segment_free(struct segment **at)
{
	struct segment *s = *at;
	*at = s->next;
	s->pool->reserved -= s->range->span;
	for (struct piece *p = s->pieces, *next; p; p = next) {
		next = p->next;
		free(p);
	}
	range_free(s->range);
	free(s);
}

static bool trim(CUmemoryPool p, uint64_t keep)
{
	bool any = false;
	for (struct segment **at = &p->segments; *at && p->reserved > keep;) {
		if ((*at)->busy) {
			at = &(*at)->next;
		} else {
			segment_free(at);
			any = true;
		}
	}
	return any;
}

static void pool_free(CUmemoryPool p)
{
	for (CUmemoryPool *at = &g.pools; *at; at = &(*at)->next)
		if (*at == p) {
			*at = p->next;
			break;
		}
	while (p->segments)
		segment_free(&p->segments);
	if (p->fd >= 0)
		close(p->fd);
	if (p->dev->current_pool == p)
		p->dev->current_pool = NULL;
	if (p->dev->default_pool == p)
		p->dev->default_pool = NULL;
	object_free(p);
}

bool pool_trim_all(struct simdev *d)
{
	bool any = graph_memory_trim(d);
	for (CUmemoryPool p = g.pools; p; p = p->next)
		if (p->dev == d)
			any |= trim(p, 0);
	return any;
}

void pool_synchronized(struct simdev *d)
{
	for (CUmemoryPool p = g.pools; p; p = p->next)
		if (p->dev == d)
			trim(p, p->threshold);
}

void pool_drop_all(struct simdev *d)
{
	graph_memory_trim(d);
	for (CUmemoryPool p = g.pools, next; p; p = next) {
		next = p->next;
		if (p->dev == d)
			pool_free(p);
	}
}

/* --- pieces ------------------------------------------------------------------------------------------ */

/* Takes the front of a piece, the rest stays as it was. */
static bool split(struct piece *p, uint64_t span)
{
	struct piece *rest;
	if (p->span == span)
		return true;
	if (!(rest = calloc(1, sizeof *rest)))
		return false;
	rest->next = p->next;
	rest->offset = p->offset + span;
	rest->span = p->span - span;
	p->span = span;
	p->next = rest;
	return true;
}

static void merge(struct segment *s)
{
	for (struct piece *p = s->pieces; p && p->next;) {
		struct piece *n = p->next;
		if (p->state == FREE && n->state == FREE) {
			p->span += n->span;
			p->next = n->next;
			free(n);
		} else {
			p = n;
		}
	}
}

static void set_used(struct segment *s, struct piece *p, uint64_t size)
{
	s->busy += p->state == FREE;
	p->state = USED;
	p->size = size;
	p->id = ++g.next_id;
	p->round++;
	s->pool->used += p->span;
	if (s->pool->used > s->pool->used_high)
		s->pool->used_high = s->pool->used;
}

/* A piece that will do: freed earlier in this very stream and of the right size (stream not NULL), or free. */
static bool take_from(struct segment *s, uint64_t span, uint64_t size, CUstream stream, CUdeviceptr *out)
{
	for (struct piece *p = s->pieces; p; p = p->next) {
		bool again = stream && p->state == FREED && p->freed_in == stream && p->span == span;
		if (!again && (stream || p->state != FREE || p->span < span || !split(p, span)))
			continue;
		set_used(s, p, size);
		*out = s->range->base + p->offset;
		return true;
	}
	return false;
}

static CUresult take(CUmemoryPool pool, uint64_t size, CUstream stream, CUdeviceptr *out)
{
	uint64_t span = round_up(size, SMALL_UNIT);
	uint64_t room = round_up(span, SEGMENT);
	CUresult err = CUDA_ERROR_OUT_OF_MEMORY;
	for (int pass = 0; pass < 2; pass++)
		for (struct segment *s = pool->segments; s; s = s->next)
			if (take_from(s, span, size, pass ? NULL : stream, out))
				return CUDA_SUCCESS;
	struct segment *s = segment_new(pool, room, &err);
	if (!s && err == CUDA_ERROR_OUT_OF_MEMORY && pool_trim_all(pool->dev))
		s = segment_new(pool, room, &err);
	if (!s && err == CUDA_ERROR_OUT_OF_MEMORY) /* rather a tight fit than none */
		s = segment_new(pool, round_up(span, GRANULE), &err);
	if (!s)
		return err;
	return take_from(s, span, size, NULL, out) ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

static struct piece *piece_at(struct range *r, CUdeviceptr p)
{
	for (struct piece *q = r->segment->pieces; q; q = q->next)
		if (p - r->base >= q->offset && p - r->base - q->offset < q->span)
			return q->state == USED ? q : NULL;
	return NULL;
}

bool pool_find(struct range *r, CUdeviceptr p, struct span *out)
{
	struct piece *q = r->segment ? piece_at(r, p) : NULL;
	if (!q || p - r->base - q->offset >= q->size)
		return false;
	*out = (struct span){ r, r->base + q->offset, q->size, q->id };
	return true;
}

static void set_free(struct segment *s, struct piece *p)
{
	p->state = FREE;
	s->busy--;
	merge(s);
	if (s->pool->dying && !s->busy) {
		CUmemoryPool pool = s->pool;
		trim(pool, 0);
		if (!pool->segments)
			pool_free(pool);
	}
}

CUresult pool_free_now(struct range *r, CUdeviceptr p)
{
	struct piece *q = piece_at(r, p);
	REQUIRE(q && r->base + q->offset == p, CUDA_ERROR_INVALID_VALUE);
	r->segment->pool->used -= q->span;
	set_free(r->segment, q);
	return CUDA_SUCCESS;
}

/* --- the calls --------------------------------------------------------------------------------------- */

CUresult valid_pool(CUmemoryPool p)
{
	TRY(ready());
	return is_kind(p, K_POOL) && !p->dying ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult pool_new(struct simdev *d, const CUmemPoolProps *props, CUmemoryPool *out)
{
	CUmemoryPool p = object_new(K_POOL, sizeof *p);
	REQUIRE(p, CUDA_ERROR_OUT_OF_MEMORY);
	p->dev = d;
	p->props = *props;
	p->fd = -1;
	p->reuse[0] = p->reuse[1] = p->reuse[2] = 1;
	p->access[d->ordinal] = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
	if (props->handleTypes && !g.zero_cost && (p->fd = memory_file("kerf-sim-pool")) < 0) {
		object_free(p);
		return CUDA_ERROR_OPERATING_SYSTEM;
	}
	p->next = g.pools;
	g.pools = p;
	*out = p;
	return CUDA_SUCCESS;
}

static CUresult default_pool(struct simdev *d, CUmemoryPool *out)
{
	const CUmemPoolProps props = { .allocType = CU_MEM_ALLOCATION_TYPE_PINNED, .location = { CU_MEM_LOCATION_TYPE_DEVICE, d->ordinal } };
	if (!d->default_pool)
		TRY(pool_new(d, &props, &d->default_pool));
	*out = d->default_pool;
	return CUDA_SUCCESS;
}

static CUresult current_pool(struct simdev *d, CUmemoryPool *out)
{
	if (!d->current_pool)
		TRY(default_pool(d, &d->current_pool));
	*out = d->current_pool;
	return CUDA_SUCCESS;
}

/* pool NULL: the current one of the stream's device. Under g.lock. */
static CUresult alloc_async(CUdeviceptr *out, uint64_t size, CUmemoryPool pool, CUstream h)
{
	CUstream s;
	TRY(stream_of(h, &s));
	TRY(usable(s->ctx));
	REQUIRE(!pool || (is_kind(pool, K_POOL) && !pool->dying && !pool->imported), CUDA_ERROR_INVALID_VALUE);
	if (capturing(s))
		return capture_alloc(s, pool ? pool->dev : s->ctx->dev, size, out);
	if (!pool)
		TRY(current_pool(s->ctx->dev, &pool));
	REQUIRE(size <= capacity(pool->dev), CUDA_ERROR_OUT_OF_MEMORY);
	return take(pool, size ? size : 1, s, out);
}

CUresult cuMemAllocFromPoolAsync(CUdeviceptr *dptr, size_t bytesize, CUmemoryPool pool, CUstream hStream)
{
	TRY(ready());
	REQUIRE(dptr && pool, CUDA_ERROR_INVALID_VALUE);
	pthread_mutex_lock(&g.lock);
	CUresult r = alloc_async(dptr, bytesize, pool, hStream);
	pthread_mutex_unlock(&g.lock);
	return r;
}

CUresult cuMemAllocAsync(CUdeviceptr *dptr, size_t bytesize, CUstream hStream)
{
	TRY(ready());
	REQUIRE(dptr, CUDA_ERROR_INVALID_VALUE);
	pthread_mutex_lock(&g.lock);
	CUresult r = alloc_async(dptr, bytesize, NULL, hStream);
	pthread_mutex_unlock(&g.lock);
	return r;
}

struct late_free { CUdeviceptr at; uint64_t round; };

/* The stream came to a cuMemFreeAsync. The pool may be gone, or the piece taken again: then nothing is left to do. */
static CUresult free_arrived(struct op *op)
{
	const struct late_free *f = (const struct late_free *)op->arg;
	struct range *r = addr_range(f->at);
	if (!r || r->kind != R_POOL)
		return CUDA_SUCCESS;
	for (struct piece *p = r->segment->pieces; p; p = p->next)
		if (r->base + p->offset == f->at && p->state == FREED && p->round == f->round) {
			set_free(r->segment, p);
			break;
		}
	return CUDA_SUCCESS;
}

static CUresult free_async(CUdeviceptr dptr, CUstream h)
{
	CUstream s;
	struct span found;
	TRY(stream_of(h, &s));
	TRY(usable(s->ctx));
	if (capturing(s))
		return capture_free(s, dptr);
	REQUIRE(addr_find(dptr, &found) && found.base == dptr, CUDA_ERROR_INVALID_VALUE);
	if (found.range->kind == R_GRAPH)
		return graph_memory_free(found.range->graph);
	REQUIRE(found.range->kind == R_POOL, CUDA_ERROR_INVALID_VALUE);
	struct piece *p = piece_at(found.range, dptr);
	struct late_free f = { dptr, p->round };
	struct op *op = op_new(OP_NOW, CU_GRAPH_NODE_TYPE_MEM_FREE, sizeof f);
	REQUIRE(op, CUDA_ERROR_OUT_OF_MEMORY);
	memcpy(op->arg, &f, sizeof f);
	op->run = free_arrived;
	p->state = FREED;
	p->freed_in = s;
	found.range->segment->pool->used -= p->span;
	op_submit(s, op);
	return CUDA_SUCCESS;
}

CUresult cuMemFreeAsync(CUdeviceptr dptr, CUstream hStream)
{
	TRY(ready());
	REQUIRE(dptr, CUDA_ERROR_INVALID_VALUE);
	pthread_mutex_lock(&g.lock);
	CUresult r = free_async(dptr, hStream);
	pthread_mutex_unlock(&g.lock);
	return r;
}

/* --- pools ------------------------------------------------------------------------------------------- */

CUresult cuMemPoolCreate(CUmemoryPool *pool, const CUmemPoolProps *p)
{
	struct simdev *d;
	TRY(ready());
	REQUIRE(pool && p && p->allocType == CU_MEM_ALLOCATION_TYPE_PINNED, CUDA_ERROR_INVALID_VALUE);
	REQUIRE(p->location.type == CU_MEM_LOCATION_TYPE_DEVICE, CUDA_ERROR_NOT_SUPPORTED);
	REQUIRE(!(p->handleTypes & ~CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR), CUDA_ERROR_NOT_SUPPORTED);
	TRY(device_of(p->location.id, &d));
	LOCKED(pool_new(d, p, pool));
}

static CUresult destroy(CUmemoryPool p)
{
	bool busy = false;
	REQUIRE(p != p->dev->default_pool, CUDA_ERROR_INVALID_VALUE);
	if (p->dev->current_pool == p)
		p->dev->current_pool = NULL;
	for (struct segment *s = p->segments; s; s = s->next)
		busy |= s->busy > 0;
	if (busy)
		p->dying = true; /* goes with its last piece */
	else
		pool_free(p);
	return CUDA_SUCCESS;
}

CUresult cuMemPoolDestroy(CUmemoryPool pool)
{
	TRY(valid_pool(pool));
	LOCKED(destroy(pool));
}

static CUresult trim_to(CUmemoryPool p, size_t keep) { trim(p, keep); return CUDA_SUCCESS; }

CUresult cuMemPoolTrimTo(CUmemoryPool pool, size_t minBytesToKeep)
{
	TRY(valid_pool(pool));
	LOCKED(trim_to(pool, minBytesToKeep));
}

CUresult cuDeviceGetDefaultMemPool(CUmemoryPool *pool_out, CUdevice dev)
{
	struct simdev *d;
	REQUIRE(pool_out, CUDA_ERROR_INVALID_VALUE);
	TRY(device_of(dev, &d));
	LOCKED(default_pool(d, pool_out));
}

CUresult cuDeviceGetMemPool(CUmemoryPool *pool, CUdevice dev)
{
	struct simdev *d;
	REQUIRE(pool, CUDA_ERROR_INVALID_VALUE);
	TRY(device_of(dev, &d));
	LOCKED(current_pool(d, pool));
}

CUresult cuDeviceSetMemPool(CUdevice dev, CUmemoryPool pool)
{
	struct simdev *d;
	TRY(device_of(dev, &d));
	TRY(valid_pool(pool));
	REQUIRE(pool->dev == d, CUDA_ERROR_INVALID_VALUE);
	d->current_pool = pool;
	return CUDA_SUCCESS;
}

static CUresult located(const CUmemLocation *l, CUmemAllocationType type, CUdevice *out)
{
	TRY(ready());
	REQUIRE(l, CUDA_ERROR_INVALID_VALUE);
	REQUIRE(l->type == CU_MEM_LOCATION_TYPE_DEVICE && type == CU_MEM_ALLOCATION_TYPE_PINNED, CUDA_ERROR_NOT_SUPPORTED);
	*out = l->id;
	return CUDA_SUCCESS;
}

CUresult cuMemGetDefaultMemPool(CUmemoryPool *pool_out, CUmemLocation *location, CUmemAllocationType type)
{
	CUdevice d;
	TRY(located(location, type, &d));
	return cuDeviceGetDefaultMemPool(pool_out, d);
}

CUresult cuMemGetMemPool(CUmemoryPool *pool, CUmemLocation *location, CUmemAllocationType type)
{
	CUdevice d;
	TRY(located(location, type, &d));
	return cuDeviceGetMemPool(pool, d);
}

CUresult cuMemSetMemPool(CUmemLocation *location, CUmemAllocationType type, CUmemoryPool pool)
{
	CUdevice d;
	TRY(located(location, type, &d));
	return cuDeviceSetMemPool(d, pool);
}
