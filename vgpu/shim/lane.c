/* lane.c: the streams of this process, and about how much work is queued in each while others wait.
 *
 * Every stream is entered when it is made, every context's default stream with the context: what was submitted while the
 * gate was simply open left no trace, and a drain must find it. A per-thread default stream is entered when its thread
 * comes to a shared gate; before that the context's legacy stream waits for it, as for all blocking streams.
 *
 * Work that passes a shared gate is priced: by function, by executable graph, by kind and size of copy. Behind every 200 us of
 * it an event without timing is recorded, and when the event has passed, the price is corrected by the time that it took
 * since the one before. What only marks or waits has no price, or it would take half of its neighbour's. Prices are only for
 * the queue's bound; a tenant pays for time, not for estimates.
 *
 * A stream that captures is never touched: who begins a capture, or joins one by waiting for an event, does so under
 * lanes_lock, and under it a stream is asked whether it captures before anything else is done with it.
 */
#include "lease.h"

#include <string.h>
#include <sys/mman.h>

#define RING        64
#define SEGMENT_NS  200000u   /* of work between two markers */
#define SEGMENT_MAX 16        /* submissions between two markers */
#define HIGH_NS     4000000u  /* queued ahead: no more than this */
#define LOW_NS      2000000u  /* and on again below this, which must outlast a thread's waking up */
#define UNKNOWN_NS  1000000u  /* price of what was never seen */
#define SHORTEST_NS 50000u    /* sleep */
#define LONGEST_NS  1000000u
#define PRICES      1024
#define BUCKETS     512

#define LEGACY(ctx) ((uint64_t)(uintptr_t)(ctx) | 1)
#define LIKE_LEGACY 1u
#define LIKE_THREAD 2u

struct segment {
	CUevent marker;
	uint64_t key;      /* 0: of several kinds */
	uint64_t ns;       /* by the prices when it was submitted */
	uint32_t n;
};

struct lane {
	struct lane *next;      /* in its bucket */
	struct lane *all;       /* every lane ever made; they are used again, never freed */
	uint64_t id;            /* 0: free. A stream's handle; or a context's legacy stream; or a thread's own */
	CUcontext ctx;
	CUstream stream;        /* as this process's calls name it */
	struct keeper *keeper;
	bool touched;           /* may have work */
	bool full;
	bool marked;            /* drain: the marker is in */
	CUevent drain;
	unsigned head, count;   /* of ring: markers that have not passed */
	uint64_t since;         /* when the head began to run, about */
	struct segment open;    /* what has no marker behind it yet */
	struct segment ring[RING];
};

static struct lock lanes_lock;
static struct lane *bucket[BUCKETS], *all;
static uint32_t captures; /* begun and not ended; under lanes_lock */
static struct { uint64_t key, ns; } price[PRICES]; /* under lanes_lock */

uint64_t kerf_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

bool kerf_capturing(CUstream stream)
{
	CUstreamCaptureStatus s = CU_STREAM_CAPTURE_STATUS_NONE;

	/* The legacy stream beside a capture answers with an error, and no harm is done by having asked. */
	return load_relaxed(&captures) && REAL(cuStreamIsCapturing) && (REAL(cuStreamIsCapturing)(stream, &s) || s != CU_STREAM_CAPTURE_STATUS_NONE);
}

/* An event asked about while any thread captures would end that capture, unless the asking thread says that it knows. */
static CUstreamCaptureMode relax(void)
{
	CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_RELAXED;

	if (!REAL(cuThreadExchangeStreamCaptureMode) || REAL(cuThreadExchangeStreamCaptureMode)(&mode))
		return CU_STREAM_CAPTURE_MODE_RELAXED;
	return mode;
}

static void unrelax(CUstreamCaptureMode mode)
{
	if (mode != CU_STREAM_CAPTURE_MODE_RELAXED)
		REAL(cuThreadExchangeStreamCaptureMode)(&mode);
}

static unsigned hash(uint64_t key)
{
	return (unsigned)(key * 0x9e3779b97f4a7c15ull >> 40);
}

/* --- prices; under lanes_lock ------------------------------------------------------------------------------- */

static uint64_t price_of(uint64_t key)
{
	unsigned i = hash(key) % PRICES;

	return price[i].key == key ? price[i].ns : UNKNOWN_NS;
}

static void learn(uint64_t key, uint64_t ns)
{
	unsigned i = hash(key) % PRICES;

	if (price[i].key != key)
		price[i].ns = ns;
	else
		price[i].ns = (price[i].ns * 3 + ns) / 4;
	price[i].key = key;
}

/* --- finding; under lanes_lock ------------------------------------------------------------------------------ */

static struct lane *find(uint64_t id)
{
	struct lane *l = bucket[hash(id) % BUCKETS];

	while (l && l->id != id)
		l = l->next;
	return l;
}

static struct lane *fresh(void)
{
	struct lane *l;

	for (l = all; l; l = l->all)
		if (!l->id)
			return l;
	l = mmap(NULL, sizeof *l, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (l == MAP_FAILED)
		return NULL;
	l->all = all;
	all = l;
	return l;
}

/* Without memory for it the stream is not watched: its work is not waited for, and is charged to nobody. */
static struct lane *add(uint64_t id, CUcontext ctx, CUstream stream, struct keeper *k)
{
	struct lane *l = find(id);

	if (l || !k || !(l = fresh()))
		return l;
	l->id = id;
	l->ctx = ctx;
	l->stream = stream;
	l->keeper = k;
	l->touched = true;
	l->next = bucket[hash(id) % BUCKETS];
	bucket[hash(id) % BUCKETS] = l;
	return l;
}

/* The context is still there: its events go now. */
static void drop(struct lane *l)
{
	struct lane **at = &bucket[hash(l->id) % BUCKETS], *chain = l->all;

	while (*at != l)
		at = &(*at)->next;
	*at = l->next;
	if (l->drain)
		REAL(cuEventDestroy_v2)(l->drain);
	for (unsigned i = 0; i < RING; i++)
		if (l->ring[i].marker)
			REAL(cuEventDestroy_v2)(l->ring[i].marker);
	memset(l, 0, sizeof *l);
	l->all = chain;
}

static struct keeper *keeper_of_current(void)
{
	CUresult why;
	struct device *d = kerf_current_device(&why);

	return d ? kerf_keeper_of(d->share) : NULL;
}

void kerf_lane_context(CUcontext ctx, struct device *d)
{
	lock(&lanes_lock);
	add(LEGACY(ctx), ctx, CU_STREAM_LEGACY, kerf_keeper_of(d->share));
	unlock(&lanes_lock);
	kerf_keeper_context(d);
}

void kerf_lane_context_gone(CUcontext ctx)
{
	lock(&lanes_lock);
	for (struct lane *l = all; l; l = l->all)
		if (l->id && l->ctx == ctx)
			drop(l);
	unlock(&lanes_lock);
}

struct lane *kerf_lane_of(CUstream stream, bool per_thread, struct keeper *k)
{
	uint64_t own = (uint64_t)(uintptr_t)stream;
	CUcontext ctx = NULL;
	struct lane *l;

	per_thread = stream == CU_STREAM_PER_THREAD || (per_thread && !stream);
	if (own <= 2) {
		ctx = (CUcontext)(uintptr_t)kerf_current_context();
		if (!ctx)
			return NULL;
		/* The address of a thread-local word names the thread; contexts of one thread each have their stream. */
		own = per_thread ? ((uint64_t)(uintptr_t)&kerf_depth ^ (uint64_t)(uintptr_t)ctx << 20) | 2 : LEGACY(ctx);
		stream = per_thread ? CU_STREAM_PER_THREAD : CU_STREAM_LEGACY;
	}
	lock(&lanes_lock);
	l = find(own);
	if (!l && (ctx || !REAL(cuStreamGetCtx)(stream, &ctx)))
		l = add(own, ctx, stream, k);
	unlock(&lanes_lock);
	return l;
}

/* --- the queue ------------------------------------------------------------------------------------------------ */

static struct segment *at(struct lane *l, unsigned i)
{
	return &l->ring[(l->head + i) % RING];
}

static uint64_t worth(const struct segment *g)
{
	return g->key ? g->n * price_of(g->key) : g->ns;
}

/* Takes off what has passed, and learns from it. Who was late to look sees several pass at once, and spreads the time. Where all
 * has passed the GPU may have stood still for part of that time, so that it says no more than what the work took at most. */
static void reap(struct lane *l, uint64_t now)
{
	uint64_t spent = now - l->since, sum = 0;
	unsigned done = 0;

	while (done < l->count && REAL(cuEventQuery)(at(l, done)->marker) != CUDA_ERROR_NOT_READY)
		sum += worth(at(l, done++));
	if (!done)
		return;
	for (unsigned i = 0; i < done; i++) {
		struct segment *g = at(l, i);

		if (g->key && sum && (done < l->count || spent < sum))
			learn(g->key, (uint64_t)((double)worth(g) / (double)g->n * (double)spent / (double)sum) + 1);
	}
	l->head = (l->head + done) % RING;
	l->count -= done;
	l->since = now;
}

static uint64_t queued(struct lane *l, uint64_t now)
{
	uint64_t sum = worth(&l->open), first, ran = now - l->since;

	for (unsigned i = 0; i < l->count; i++)
		sum += worth(at(l, i));
	first = l->count ? worth(at(l, 0)) : worth(&l->open);
	return sum - (ran < first ? ran : first);
}

static bool too_much(struct lane *l, uint64_t rest)
{
	return l->count && (rest > (l->full ? LOW_NS : HIGH_NS) || l->count == RING);
}

/* The driver is asked only where the books say that it is too much. */
uint64_t kerf_lane_ahead(struct lane *l)
{
	uint64_t now, rest, wait = 0;
	CUstreamCaptureMode mode;

	lock(&lanes_lock);
	if (l->id) {
		now = kerf_now();
		rest = queued(l, now);
		if (too_much(l, rest)) {
			mode = relax();
			reap(l, now);
			unrelax(mode);
			rest = queued(l, now);
		}
		l->full = too_much(l, rest);
		if (l->full) {
			wait = rest > LOW_NS ? rest - LOW_NS : 0;
			wait = wait < SHORTEST_NS ? SHORTEST_NS : wait > LONGEST_NS ? LONGEST_NS : wait;
		}
	}
	unlock(&lanes_lock);
	return wait;
}

/* Of the lane's own context, which need not be the caller's. */
static bool event(struct lane *l, CUevent *e)
{
	CUcontext popped;
	CUresult r;

	if (*e)
		return true;
	if (REAL(cuCtxPushCurrent_v2)(l->ctx))
		return false;
	r = REAL(cuEventCreate)(e, CU_EVENT_DISABLE_TIMING);
	REAL(cuCtxPopCurrent_v2)(&popped);
	if (r)
		*e = NULL;
	return r == CUDA_SUCCESS;
}

static bool record(struct lane *l, CUevent e)
{
	CUcontext popped;
	CUresult r;

	if ((uintptr_t)l->stream > 2)
		return !REAL(cuEventRecord)(e, l->stream);
	if (REAL(cuCtxPushCurrent_v2)(l->ctx))
		return false;
	r = kerf_capturing(l->stream) ? CUDA_ERROR_NOT_READY : REAL(cuEventRecord)(e, l->stream);
	REAL(cuCtxPopCurrent_v2)(&popped);
	return r == CUDA_SUCCESS;
}

/* A full ring goes on without a marker: the next one stands for this work too. */
static void mark(struct lane *l, uint64_t now)
{
	struct segment *g = at(l, l->count);
	CUevent e;

	if (l->count == RING || !event(l, &g->marker) || !record(l, g->marker))
		return;
	e = g->marker;
	*g = l->open;
	g->marker = e;
	memset(&l->open, 0, sizeof l->open);
	if (l->count++ == 0)
		l->since = now;
}

void kerf_lane_submitted(struct lane *l, uint64_t key)
{
	struct segment *g = &l->open;
	uint64_t now;

	lock(&lanes_lock);
	if (l->id)
		l->touched = true;
	if (l->id && key) {
		now = kerf_now();
		if (g->n && g->key != key)
			g->ns = worth(g), g->key = 0;
		else
			g->key = key;
		g->n++;
		g->ns += price_of(key);
		if (!l->count && g->n == 1)
			l->since = now;
		if (worth(g) >= SEGMENT_NS || g->n >= SEGMENT_MAX)
			mark(l, now);
	}
	unlock(&lanes_lock);
}

/* --- draining ------------------------------------------------------------------------------------------------- */

void kerf_lanes_untracked(struct keeper *k)
{
	lock(&lanes_lock);
	for (struct lane *l = all; l; l = l->all)
		if (l->id && l->keeper == k)
			l->touched = true;
	unlock(&lanes_lock);
}

/* An event in the legacy stream comes after all work of the context's blocking streams, those of other threads too. */
static bool passed(struct lane *l)
{
	if (kerf_capturing(CU_STREAM_LEGACY))
		return true; /* a capture forbids its use, so it has no work that is new */
	if (!l->marked)
		l->marked = event(l, &l->drain) && record(l, l->drain);
	return !l->marked || REAL(cuEventQuery)(l->drain) != CUDA_ERROR_NOT_READY;
}

static bool lane_idle(struct lane *l, bool may_mark)
{
	CUcontext popped;
	bool idle = true;

	if (l->stream == CU_STREAM_PER_THREAD) { /* to be asked by its thread alone */
		reap(l, kerf_now());
		return l->count == 0;
	}
	if (REAL(cuCtxPushCurrent_v2)(l->ctx))
		return true;
	if (l->stream == CU_STREAM_LEGACY && may_mark)
		idle = passed(l);
	else if (!kerf_capturing(l->stream))
		idle = REAL(cuStreamQuery)(l->stream) != CUDA_ERROR_NOT_READY;
	REAL(cuCtxPopCurrent_v2)(&popped);
	return idle;
}

/* Stops at the first stream that is busy, and begins with it the next time. */
bool kerf_lanes_idle(struct keeper *k, bool may_mark)
{
	static struct lane *busy;
	bool idle = true;

	lock(&lanes_lock);
	if (busy && busy->id && busy->touched && busy->keeper == k)
		idle = lane_idle(busy, may_mark);
	for (struct lane *l = all; l && idle; l = l->all)
		if (l->id && l->touched && l->keeper == k) {
			busy = l;
			idle = lane_idle(l, may_mark);
		}
	unlock(&lanes_lock);
	return idle;
}

void kerf_lanes_drained(struct keeper *k)
{
	lock(&lanes_lock);
	for (struct lane *l = all; l; l = l->all)
		if (l->id && l->keeper == k) {
			l->touched = l->marked = l->full = false;
			l->head = l->count = 0;
			memset(&l->open, 0, sizeof l->open);
		}
	unlock(&lanes_lock);
}

/* --- streams and captures, as the tenant makes them ------------------------------------------------------------ */

static CUresult made(CUresult r, const CUstream *stream)
{
	CUcontext ctx = NULL;

	if (r == CUDA_SUCCESS && stream && (uintptr_t)*stream > 2) {
		struct keeper *k = keeper_of_current();

		if (REAL(cuStreamGetCtx)(*stream, &ctx))
			return r;
		lock(&lanes_lock);
		add((uint64_t)(uintptr_t)*stream, ctx, *stream, k);
		unlock(&lanes_lock);
	}
	return r;
}

CUresult on_stream_create(real_on_stream_create real, CUstream *stream, unsigned int flags)
{
	return made(real(stream, flags), stream);
}

CUresult on_stream_create_priority(real_on_stream_create_priority real, CUstream *stream, unsigned int flags, int priority)
{
	return made(real(stream, flags, priority), stream);
}

CUresult on_green_stream(real_on_green_stream real, CUstream *stream, void *green, unsigned int flags, int priority)
{
	return made(real(stream, green, flags, priority), stream);
}

/* Its work goes on without it, and is found by nobody: no drain waits for it. */
CUresult on_stream_destroy(real_on_stream_destroy real, CUstream stream)
{
	struct lane *l;

	lock(&lanes_lock);
	l = (uintptr_t)stream > 2 ? find((uint64_t)(uintptr_t)stream) : NULL;
	if (l)
		drop(l);
	unlock(&lanes_lock);
	return real(stream);
}

static CUresult began(CUresult r)
{
	if (r == CUDA_SUCCESS)
		store_relaxed(&captures, captures + 1);
	unlock(&lanes_lock);
	return r;
}

CUresult on_begin_capture(real_on_begin_capture real, CUstream stream)
{
	lock(&lanes_lock);
	return began(real(stream));
}

CUresult on_begin_capture_v2(real_on_begin_capture_v2 real, CUstream stream, CUstreamCaptureMode mode)
{
	lock(&lanes_lock);
	return began(real(stream, mode));
}

CUresult on_begin_capture_to(real_on_begin_capture_to real, CUstream stream, CUgraph graph, const CUgraphNode *deps, const CUgraphEdgeData *data, size_t n, CUstreamCaptureMode mode)
{
	lock(&lanes_lock);
	return began(real(stream, graph, deps, data, n, mode));
}

CUresult on_end_capture(real_on_end_capture real, CUstream stream, CUgraph *graph)
{
	CUstreamCaptureStatus was = CU_STREAM_CAPTURE_STATUS_NONE, is = CU_STREAM_CAPTURE_STATUS_NONE;
	CUresult r;

	lock(&lanes_lock);
	REAL(cuStreamIsCapturing)(stream, &was);
	r = real(stream, graph);
	REAL(cuStreamIsCapturing)(stream, &is);
	if (was != CU_STREAM_CAPTURE_STATUS_NONE && is == CU_STREAM_CAPTURE_STATUS_NONE && captures)
		store_relaxed(&captures, captures - 1);
	unlock(&lanes_lock);
	return r;
}

/* By waiting for an event of a capture a stream joins it. */
CUresult on_wait_event(real_on_wait_event real, CUstream stream, CUevent e, unsigned int flags)
{
	CUresult r;

	if (likely(!load_relaxed(&captures)))
		return real(stream, e, flags);
	lock(&lanes_lock);
	r = real(stream, e, flags);
	unlock(&lanes_lock);
	return r;
}
