/* lane.c: the streams of this process: which there are, which capture, and whether they have work. queue.c bounds what is queued
 * in one, meter.c tells for how long they worked.
 *
 * Every stream is entered when it is made, every context's default stream with the context: what was submitted while the
 * gate was simply open left no trace, and a drain must find it. A per-thread default stream is entered when its thread
 * comes to a shared gate; before that the context's legacy stream waits for it, as for all blocking streams.
 *
 * A stream that captures is never touched: who begins a capture, or joins one by waiting for an event, does so under
 * kerf_lanes_lock, and under it a stream is asked whether it captures before anything else is done with it.
 */
#include "lane.h"

#include <string.h>
#include <sys/mman.h>

#define BUCKETS     512

#define LEGACY(ctx) ((uint64_t)(uintptr_t)(ctx) | 1)
#define LIKE_LEGACY 1u
#define LIKE_THREAD 2u

struct lock kerf_lanes_lock;
static struct lane *bucket[BUCKETS], *all;
static uint32_t captures; /* begun and not ended; under kerf_lanes_lock */

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

unsigned kerf_lane_hash(uint64_t key)
{
	return (unsigned)(key * 0x9e3779b97f4a7c15ull >> 40);
}

/* --- finding; under kerf_lanes_lock ------------------------------------------------------------------------------ */

static struct lane *find(uint64_t id)
{
	struct lane *l = bucket[kerf_lane_hash(id) % BUCKETS];

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
	l->next = bucket[kerf_lane_hash(id) % BUCKETS];
	bucket[kerf_lane_hash(id) % BUCKETS] = l;
	return l;
}

/* The context is still there: its events go now. */
static void drop(struct lane *l)
{
	struct lane **at = &bucket[kerf_lane_hash(l->id) % BUCKETS], *chain = l->all;

	while (*at != l)
		at = &(*at)->next;
	*at = l->next;
	kerf_meter_end(l, kerf_now());
	if (l->drain)
		REAL(cuEventDestroy_v2)(l->drain);
	if (l->burst.start)
		REAL(cuEventDestroy_v2)(l->burst.start);
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
	lock(&kerf_lanes_lock);
	add(LEGACY(ctx), ctx, CU_STREAM_LEGACY, kerf_keeper_of(d->share));
	unlock(&kerf_lanes_lock);
	kerf_keeper_context(d);
}

void kerf_lane_context_gone(CUcontext ctx)
{
	lock(&kerf_lanes_lock);
	for (struct lane *l = all; l; l = l->all)
		if (l->id && l->ctx == ctx)
			drop(l);
	unlock(&kerf_lanes_lock);
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
	lock(&kerf_lanes_lock);
	l = find(own);
	if (!l && (ctx || !REAL(cuStreamGetCtx)(stream, &ctx)))
		l = add(own, ctx, stream, k);
	unlock(&kerf_lanes_lock);
	return l;
}

/* --- events ---------------------------------------------------------------------------------------------------- */

bool kerf_lane_event(struct lane *l, CUevent *e, unsigned flags)
{
	CUcontext popped;
	CUresult r;

	if (*e)
		return true;
	if (REAL(cuCtxPushCurrent_v2)(l->ctx))
		return false;
	r = REAL(cuEventCreate)(e, flags);
	REAL(cuCtxPopCurrent_v2)(&popped);
	if (r)
		*e = NULL;
	return r == CUDA_SUCCESS;
}

bool kerf_lane_record(struct lane *l, CUevent e)
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

/* --- draining ------------------------------------------------------------------------------------------------- */

void kerf_lanes_untracked(struct keeper *k)
{
	lock(&kerf_lanes_lock);
	for (struct lane *l = all; l; l = l->all)
		if (l->id && l->keeper == k)
			l->touched = true;
	unlock(&kerf_lanes_lock);
}

/* An event in the legacy stream comes after all work of the context's blocking streams, those of other threads too. */
static bool passed(struct lane *l)
{
	if (kerf_capturing(CU_STREAM_LEGACY))
		return true; /* a capture forbids its use, so it has no work that is new */
	if (!l->marked)
		l->marked = kerf_lane_event(l, &l->drain, CU_EVENT_DISABLE_TIMING) && kerf_lane_record(l, l->drain);
	return !l->marked || REAL(cuEventQuery)(l->drain) != CUDA_ERROR_NOT_READY;
}

static bool lane_idle(struct lane *l, bool may_mark)
{
	CUcontext popped;
	bool idle = true;

	if (l->stream == CU_STREAM_PER_THREAD) { /* to be asked by its thread alone */
		kerf_queue_reap(l, kerf_now());
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

	lock(&kerf_lanes_lock);
	if (busy && busy->id && busy->touched && busy->keeper == k)
		idle = lane_idle(busy, may_mark);
	for (struct lane *l = all; l && idle; l = l->all)
		if (l->id && l->touched && l->keeper == k) {
			busy = l;
			idle = lane_idle(l, may_mark);
		}
	unlock(&kerf_lanes_lock);
	return idle;
}

/* The gate is shut, and nobody is inside: what has no marker gets one, so that it can be told when the work ended. A stream of a
 * thread's own is for that thread alone. */
void kerf_lanes_mark(struct keeper *k)
{
	CUcontext popped;

	lock(&kerf_lanes_lock);
	for (struct lane *l = all; l; l = l->all)
		if (l->id && l->keeper == k && l->open.n && l->stream != CU_STREAM_PER_THREAD && !REAL(cuCtxPushCurrent_v2)(l->ctx)) {
			if (!kerf_capturing(l->stream))
				kerf_queue_mark(l, kerf_now());
			REAL(cuCtxPopCurrent_v2)(&popped);
		}
	unlock(&kerf_lanes_lock);
}

uint64_t kerf_lanes_drained(struct keeper *k)
{
	uint64_t worked;

	lock(&kerf_lanes_lock);
	for (struct lane *l = all; l; l = l->all)
		if (l->id && l->keeper == k) {
			kerf_meter_end(l, kerf_now());
			l->touched = l->marked = false;
			kerf_queue_forget(l);
		}
	worked = kerf_meter_read(k);
	unlock(&kerf_lanes_lock);
	return worked;
}

/* --- streams and captures, as the tenant makes them ------------------------------------------------------------ */

static CUresult made(CUresult r, const CUstream *stream)
{
	CUcontext ctx = NULL;

	if (r == CUDA_SUCCESS && stream && (uintptr_t)*stream > 2) {
		struct keeper *k = keeper_of_current();

		if (REAL(cuStreamGetCtx)(*stream, &ctx))
			return r;
		lock(&kerf_lanes_lock);
		add((uint64_t)(uintptr_t)*stream, ctx, *stream, k);
		unlock(&kerf_lanes_lock);
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

	lock(&kerf_lanes_lock);
	l = (uintptr_t)stream > 2 ? find((uint64_t)(uintptr_t)stream) : NULL;
	if (l)
		drop(l);
	unlock(&kerf_lanes_lock);
	return real(stream);
}

static CUresult began(CUresult r)
{
	if (r == CUDA_SUCCESS)
		store_relaxed(&captures, captures + 1);
	unlock(&kerf_lanes_lock);
	return r;
}

CUresult on_begin_capture(real_on_begin_capture real, CUstream stream)
{
	lock(&kerf_lanes_lock);
	return began(real(stream));
}

CUresult on_begin_capture_v2(real_on_begin_capture_v2 real, CUstream stream, CUstreamCaptureMode mode)
{
	lock(&kerf_lanes_lock);
	return began(real(stream, mode));
}

CUresult on_begin_capture_to(real_on_begin_capture_to real, CUstream stream, CUgraph graph, const CUgraphNode *deps, const CUgraphEdgeData *data, size_t n, CUstreamCaptureMode mode)
{
	lock(&kerf_lanes_lock);
	return began(real(stream, graph, deps, data, n, mode));
}

CUresult on_end_capture(real_on_end_capture real, CUstream stream, CUgraph *graph)
{
	CUstreamCaptureStatus was = CU_STREAM_CAPTURE_STATUS_NONE, is = CU_STREAM_CAPTURE_STATUS_NONE;
	CUresult r;

	lock(&kerf_lanes_lock);
	REAL(cuStreamIsCapturing)(stream, &was);
	r = real(stream, graph);
	REAL(cuStreamIsCapturing)(stream, &is);
	if (was != CU_STREAM_CAPTURE_STATUS_NONE && is == CU_STREAM_CAPTURE_STATUS_NONE && captures)
		store_relaxed(&captures, captures - 1);
	unlock(&kerf_lanes_lock);
	return r;
}

/* By waiting for an event of a capture a stream joins it. */
CUresult on_wait_event(real_on_wait_event real, CUstream stream, CUevent e, unsigned int flags)
{
	CUresult r;

	if (likely(!load_relaxed(&captures)))
		return real(stream, e, flags);
	lock(&kerf_lanes_lock);
	r = real(stream, e, flags);
	unlock(&kerf_lanes_lock);
	return r;
}
