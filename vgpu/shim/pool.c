/* pool.c: stream-ordered memory. What counts is what a pool holds of the device (its reserved bytes), not what
 * the tenant has of the pool: a pool keeps memory after a free, and other processes cannot have it.
 *
 * Before an allocation that the pool may have to grow for, as much as it may grow by is charged: what is asked for in whole
 * steps of the driver's. After it the charge is corrected to what the pool says it holds. So at the limit less than a step can
 * be left that no pool can have. The step is not told: it begins as GROWTH, and a larger growth that is seen raises it.
 *
 * What may still be over for the length of one call: a pool that has room inside, but in pieces too small, where no step more
 * can be charged. To refuse there would fail programs that free and take the same again at their limit. It grows, and
 * gives that back at once.
 *
 * Over-committed shares have pools of the driver's too, and all that they hold stays on the card. To serve them from swap.h's
 * memory would be to write stream order, reuse across streams, thresholds, access lists and exports a second time; the
 * frameworks' allocators take cuMemAlloc or cuMemCreate unless told otherwise.
 */
#include "swap.h"

#define MAX_POOLS 256
#define GROWTH    (32 * MIB)
#define GROWTH_MOST (512 * MIB)

struct pool {
	CUmemoryPool handle;  /* NULL: free entry */
	struct device *device;
	uint64_t charged;
	uint64_t live;        /* bytes of allocations not freed */
	bool gone;            /* destroyed with allocations left: charged for those, until they are freed */
	bool foreign;         /* imported, or of host memory: its bytes are not this device's account */
};

static struct pool pools[MAX_POOLS];
static int npools;            /* entries ever used: read without the lock to skip an empty table */
static uint64_t step = GROWTH; /* a power of two; under pools_lock */
static struct lock pools_lock;

static uint64_t attribute(CUmemoryPool pool, CUmemPool_attribute a)
{
	cuuint64_t v = 0;

	return REAL(cuMemPoolGetAttribute)(pool, a, &v) ? 0 : v;
}

/* With pools_lock held. */
static struct pool *find(CUmemoryPool handle)
{
	for (int i = 0; i < npools; i++)
		if (pools[i].handle == handle && !pools[i].gone)
			return &pools[i];
	return NULL;
}

static struct pool *add(CUmemoryPool handle, struct device *d, bool foreign)
{
	struct pool *p = find(handle);

	if (!p)
		for (int i = 0; i < MAX_POOLS && !p; i++)
			if (!pools[i].handle)
				p = &pools[i];
	if (!p)
		return NULL;
	*p = (struct pool){ .handle = handle, .device = d, .foreign = foreign };
	if (p - pools >= npools)
		store_relaxed(&npools, (int)(p - pools) + 1);
	return p;
}

/* Sets the charge to what the pool holds now. Memory that is there is charged even over the limit. */
static void refresh(struct pool *p)
{
	uint64_t now;

	if (p->foreign || p->gone)
		return;
	now = attribute(p->handle, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT);
	if (now > p->charged)
		kerf_charge_anyway(p->device, now - p->charged);
	else
		kerf_discharge(p->device, p->charged - now);
	p->charged = now;
}

void kerf_pools_refresh(void)
{
	if (likely(load_relaxed(&npools) == 0))
		return;
	lock(&pools_lock);
	for (int i = 0; i < npools; i++)
		if (pools[i].handle)
			refresh(&pools[i]);
	unlock(&pools_lock);
}

/* With pools_lock held. */
static void trim(struct device *d)
{
	for (int i = 0; i < npools; i++) {
		struct pool *p = &pools[i];

		if (!p->handle || p->gone || p->foreign || p->device != d)
			continue;
		REAL(cuMemPoolTrimTo)(p->handle, 0);
		refresh(p);
	}
}

/* Trylock: the caller may be an allocation from a pool itself, or a graph's with that lock held. */
void kerf_pools_trim(struct device *d)
{
	if (load_relaxed(&npools) == 0 || !trylock(&pools_lock))
		return;
	trim(d);
	unlock(&pools_lock);
}

static CUresult device_of_stream(CUstream stream, struct device **d)
{
	CUcontext ctx, popped;
	CUresult r;

	if (stream == NULL || stream == CU_STREAM_LEGACY || stream == CU_STREAM_PER_THREAD) {
		*d = kerf_current_device(&r);
		return r;
	}
	r = REAL(cuStreamGetCtx)(stream, &ctx);
	if (r == CUDA_SUCCESS)
		r = REAL(cuCtxPushCurrent_v2)(ctx);
	if (r)
		return r;
	*d = kerf_current_device(&r);
	REAL(cuCtxPopCurrent_v2)(&popped);
	return r;
}

static bool capturing(CUstream stream)
{
	CUstreamCaptureStatus s = CU_STREAM_CAPTURE_STATUS_NONE;

	return REAL(cuStreamIsCapturing) && !REAL(cuStreamIsCapturing)(stream, &s) && s != CU_STREAM_CAPTURE_STATUS_NONE;
}

/* How the two allocating calls differ. */
struct request {
	real_on_alloc_async plain;
	real_on_alloc_from_pool from_pool;
	CUmemoryPool pool;
	CUdeviceptr *p;
	size_t n;
	CUstream stream;
};

static CUresult call(const struct request *q)
{
	return q->plain ? q->plain(q->p, q->n, q->stream) : q->from_pool(q->p, q->n, q->pool, q->stream);
}

/* By so much at most the pool grows for it. */
static uint64_t growth(size_t n)
{
	return n > UINT64_MAX / 2 ? UINT64_MAX / 2 : (n + step - 1) & ~(step - 1);
}

static void learn(size_t n, uint64_t grew)
{
	while (growth(n) < grew && step < GROWTH_MOST)
		step *= 2;
}

static bool has_room(const struct pool *p, size_t n)
{
	uint64_t used = attribute(p->handle, CU_MEMPOOL_ATTR_USED_MEM_CURRENT);

	return used <= p->charged && p->charged - used >= kerf_physical(n);
}

/* The growth is charged even where there is room inside: it may be in pieces. */
static CUresult charge_ahead(const struct pool *p, size_t n, uint64_t *ahead)
{
	*ahead = kerf_room(p->device) < growth(n) && has_room(p, n) ? 0 : growth(n);
	if (kerf_charge(p->device, *ahead) == CUDA_SUCCESS)
		return CUDA_SUCCESS;
	trim(p->device);
	if (kerf_charge(p->device, *ahead) == CUDA_SUCCESS)
		return CUDA_SUCCESS;
	*ahead = 0;
	return has_room(p, n) ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

/* With pools_lock held, but not while waiting: the stream may wait for a thread whose own sync wants the lock. The
 * pool may be destroyed after that, and its charge gone with it. */
static CUresult give_back(CUmemoryPool handle, CUdeviceptr ptr, CUstream stream)
{
	struct pool *p;

	REAL(cuMemFreeAsync)(ptr, stream);
	unlock(&pools_lock);
	REAL(cuStreamSynchronize)(stream);
	lock(&pools_lock);
	p = find(handle);
	if (p) {
		REAL(cuMemPoolTrimTo)(handle, 0);
		refresh(p);
	}
	return CUDA_ERROR_OUT_OF_MEMORY;
}

/* With pools_lock held: two threads growing one pool would each see the other's growth. */
static CUresult alloc_charged(struct pool *p, const struct request *q)
{
	struct book b = { .kind = BOOK_ASYNC, .ordinal = p->device->ordinal, .bytes = kerf_physical(q->n), .extra = (uint64_t)(p - pools) };
	uint64_t ahead = 0, now;
	CUresult r;

	if (!p->foreign) {
		refresh(p);
		r = charge_ahead(p, q->n, &ahead);
		if (r)
			return r;
	}
	r = call(q);
	if (p->foreign)
		return r;
	now = attribute(p->handle, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT);
	learn(q->n, now > p->charged ? now - p->charged : 0);
	if (now <= p->charged + ahead) {
		kerf_discharge(p->device, p->charged + ahead - now);
	} else if (kerf_charge(p->device, now - p->charged - ahead)) {
		p->charged += ahead;
		if (r == CUDA_SUCCESS)
			return give_back(p->handle, *q->p, q->stream);
		refresh(p);
		return r;
	}
	p->charged = now;
	if (r)
		return r;
	b.key = *q->p;
	if (!book_put(&b))
		return give_back(p->handle, *q->p, q->stream);
	p->live += b.bytes;
	return CUDA_SUCCESS;
}

static CUresult alloc(const struct request *q)
{
	struct device *d = NULL;
	CUmemoryPool handle = q->pool;
	struct pool *p;
	CUresult r;

	if (!q->p || !q->n)
		return call(q);
	if (capturing(q->stream)) { /* becomes a graph's node: the graph's launch pays */
		kerf_note_graph_memory();
		return call(q);
	}
	r = device_of_stream(q->stream, &d);
	if (r == CUDA_SUCCESS && q->plain)
		r = REAL(cuDeviceGetMemPool)(&handle, d->ordinal);
	if (r)
		return r;
	lock(&pools_lock);
	p = find(handle);
	if (!p)
		p = add(handle, d, false);
	r = p ? alloc_charged(p, q) : CUDA_ERROR_OUT_OF_MEMORY;
	unlock(&pools_lock);
	return r;
}

CUresult on_alloc_async(real_on_alloc_async real, CUdeviceptr *p, size_t n, CUstream stream)
{
	struct request q = { .plain = real, .p = p, .n = n, .stream = stream };

	return alloc(&q);
}

CUresult on_alloc_from_pool(real_on_alloc_from_pool real, CUdeviceptr *p, size_t n, CUmemoryPool pool, CUstream stream)
{
	struct request q = { .from_pool = real, .pool = pool, .p = p, .n = n, .stream = stream };

	return alloc(&q);
}

CUresult kerf_async_freed(struct book *b, CUresult r)
{
	struct pool *p = &pools[b->extra];

	if (r) {
		book_put(b);
		return r;
	}
	lock(&pools_lock);
	p->live -= b->bytes < p->live ? b->bytes : p->live;
	if (p->gone) {
		kerf_discharge(p->device, b->bytes < p->charged ? b->bytes : p->charged);
		p->charged -= b->bytes < p->charged ? b->bytes : p->charged;
		if (p->charged == 0)
			p->handle = NULL;
	} else {
		refresh(p);
	}
	unlock(&pools_lock);
	return r;
}

/* cuMemAlloc's memory may be freed so, too. Freeing it waits for the whole context, which is later than the stream's order asks for. */
static CUresult free_swapping(CUdeviceptr p, CUstream stream)
{
	CUresult r = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;

	if (!capturing(stream) && !kerf_swap_free(p, &r))
		r = CUDA_ERROR_INVALID_VALUE;
	return r;
}

CUresult on_free_async(real_on_free_async real, CUdeviceptr p, CUstream stream)
{
	struct book b;

	if (book_take(BOOK_ASYNC, p, &b))
		return kerf_async_freed(&b, real(p, stream));
	if (book_take(BOOK_LINEAR, p, &b)) {
		CUresult r = real(p, stream);

		if (r)
			book_put(&b);
		else
			kerf_discharge(kerf_device(b.ordinal), b.bytes);
		return r;
	}
	if (kerf_swap_owns(p))
		return free_swapping(p, stream);
	return real(p, stream);
}

static CUresult adopt(CUmemoryPool handle, struct device *d, bool foreign, CUresult r)
{
	bool ok;

	if (r)
		return r;
	lock(&pools_lock);
	ok = add(handle, d ? d : kerf_device(0), foreign || !d) != NULL;
	unlock(&pools_lock);
	if (ok)
		return r;
	REAL(cuMemPoolDestroy)(handle);
	return CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult on_pool_create(real_on_pool_create real, CUmemoryPool *pool, const CUmemPoolProps *props)
{
	CUresult r = real(pool, props);
	bool on_device = props && props->location.type == CU_MEM_LOCATION_TYPE_DEVICE;

	return adopt(r ? NULL : *pool, r || !on_device ? NULL : kerf_device(props->location.id), false, r);
}

/* The bytes of an imported pool are charged where it was made. */
CUresult on_pool_import(real_on_pool_import real, CUmemoryPool *pool, void *handle, CUmemAllocationHandleType type, unsigned long long flags)
{
	CUresult r = real(pool, handle, type, flags);

	return adopt(r ? NULL : *pool, NULL, true, r);
}

CUresult on_pool_import_pointer(real_on_pool_import_pointer real, CUdeviceptr *p, CUmemoryPool pool, CUmemPoolPtrExportData *data)
{
	return real(p, pool, data);
}

CUresult on_pool_destroy(real_on_pool_destroy real, CUmemoryPool handle)
{
	struct pool *p;
	CUresult r;

	lock(&pools_lock);
	p = find(handle);
	r = real(handle);
	if (r == CUDA_SUCCESS && p) {
		uint64_t left = p->foreign || p->live > p->charged ? p->charged : p->live;

		kerf_discharge(p->device, p->charged - left);
		p->charged = left;
		p->gone = true;
		if (left == 0)
			p->handle = NULL;
	}
	unlock(&pools_lock);
	return r;
}

CUresult on_pool_trim(real_on_pool_trim real, CUmemoryPool pool, size_t keep)
{
	CUresult r = real(pool, keep);

	kerf_pools_refresh();
	return r;
}

CUresult on_pool_set(real_on_pool_set real, CUmemoryPool pool, CUmemPool_attribute a, void *value)
{
	CUresult r = real(pool, a, value);

	kerf_pools_refresh();
	return r;
}

/* --- synchronisation: pools give back what is over their release threshold ------------------------------------ */

CUresult on_ctx_sync(real_on_ctx_sync real)
{
	CUresult r = real();

	kerf_pools_refresh();
	return r;
}

CUresult on_ctx_sync_v2(real_on_ctx_sync_v2 real, CUcontext ctx)
{
	CUresult r = real(ctx);

	kerf_pools_refresh();
	return r;
}

CUresult on_stream_sync(real_on_stream_sync real, CUstream stream)
{
	CUresult r = real(stream);

	kerf_pools_refresh();
	return r;
}

CUresult on_event_sync(real_on_event_sync real, CUevent event)
{
	CUresult r = real(event);

	kerf_pools_refresh();
	return r;
}
