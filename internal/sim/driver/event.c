/* event.c: events. A record is a mark in a stream's work; waits hold the mark that was last at their call. */
#include "sim.h"

#include <stdlib.h>
#include <string.h>

CUresult cuEventCreate(CUevent *phEvent, unsigned int Flags)
{
	CUcontext c;
	const unsigned all = CU_EVENT_BLOCKING_SYNC | CU_EVENT_DISABLE_TIMING | CU_EVENT_INTERPROCESS;
	REQUIRE(phEvent && !(Flags & ~all), CUDA_ERROR_INVALID_VALUE);
	REQUIRE(!(Flags & CU_EVENT_INTERPROCESS) || Flags & CU_EVENT_DISABLE_TIMING, CUDA_ERROR_INVALID_VALUE);
	TRY(current(&c));
	pthread_mutex_lock(&g.lock);
	CUevent e = object_new(K_EVENT, sizeof *e);
	if (e) {
		e->ctx = c;
		e->flags = Flags;
	}
	pthread_mutex_unlock(&g.lock);
	*phEvent = e;
	return e ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

static void forget_capture(CUevent e)
{
	if (e->capture)
		capture_forget(e->capture);
	free(e->nodes);
	e->capture = NULL;
	e->nodes = NULL;
	e->node_count = 0;
}

CUresult cuEventDestroy_v2(CUevent hEvent)
{
	TRY(ready());
	pthread_mutex_lock(&g.lock);
	bool ok = is_kind(hEvent, K_EVENT);
	if (ok) {
		mark_put(hEvent->mark);
		forget_capture(hEvent);
		object_free(hEvent);
	}
	pthread_mutex_unlock(&g.lock);
	return ok ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUresult cuEventDestroy(CUevent hEvent) { return cuEventDestroy_v2(hEvent); }

/* Under g.lock. */
static CUresult record(CUevent e, CUstream h)
{
	CUstream s;
	REQUIRE(is_kind(e, K_EVENT), CUDA_ERROR_INVALID_HANDLE);
	TRY(stream_of(h, &s));
	TRY(usable(s->ctx));
	REQUIRE(e->ctx == s->ctx, CUDA_ERROR_INVALID_HANDLE);
	if (capturing(s))
		return capture_event(s, e);
	struct op *op = op_new(OP_NOW, CU_GRAPH_NODE_TYPE_EVENT_RECORD, 0);
	struct mark *m = mark_new();
	if (!op || !m) {
		free(op);
		free(m);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	mark_put(e->mark);
	e->mark = m;
	forget_capture(e);
	m->refs++;
	op->fires = m;
	op_submit(s, op);
	return CUDA_SUCCESS;
}

CUresult cuEventRecordWithFlags(CUevent hEvent, CUstream hStream, unsigned int flags)
{
	TRY(ready());
	REQUIRE(flags <= CU_EVENT_RECORD_EXTERNAL, CUDA_ERROR_INVALID_VALUE);
	pthread_mutex_lock(&g.lock);
	CUresult r = record(hEvent, hStream);
	pthread_mutex_unlock(&g.lock);
	return r;
}

CUresult cuEventRecord(CUevent hEvent, CUstream hStream) { return cuEventRecordWithFlags(hEvent, hStream, 0); }

/* Under g.lock. */
static CUresult askable(CUevent e)
{
	REQUIRE(is_kind(e, K_EVENT), CUDA_ERROR_INVALID_HANDLE);
	REQUIRE(!e->capture, CUDA_ERROR_CAPTURED_EVENT);
	return usable(e->ctx);
}

CUresult cuEventQuery(CUevent hEvent)
{
	TRY(ready());
	pthread_mutex_lock(&g.lock);
	CUresult r = askable(hEvent);
	if (r == CUDA_SUCCESS && hEvent->mark && !hEvent->mark->done)
		r = CUDA_ERROR_NOT_READY;
	pthread_mutex_unlock(&g.lock);
	return r;
}

CUresult cuEventSynchronize(CUevent hEvent)
{
	TRY(ready());
	pthread_mutex_lock(&g.lock);
	CUresult r = askable(hEvent);
	if (r == CUDA_SUCCESS && hEvent->mark) {
		CUcontext c = hEvent->ctx;
		wait_mark(hEvent->mark);
		pool_synchronized(c->dev);
		r = usable(c);
	}
	pthread_mutex_unlock(&g.lock);
	return r;
}

CUresult cuEventElapsedTime(float *pMilliseconds, CUevent hStart, CUevent hEnd)
{
	TRY(ready());
	REQUIRE(pMilliseconds, CUDA_ERROR_INVALID_VALUE);
	pthread_mutex_lock(&g.lock);
	CUresult r = askable(hStart);
	if (r == CUDA_SUCCESS)
		r = askable(hEnd);
	if (r == CUDA_SUCCESS && ((hStart->flags | hEnd->flags) & CU_EVENT_DISABLE_TIMING || !hStart->mark || !hEnd->mark))
		r = CUDA_ERROR_INVALID_HANDLE;
	if (r == CUDA_SUCCESS && (!hStart->mark->done || !hEnd->mark->done))
		r = CUDA_ERROR_NOT_READY;
	if (r == CUDA_SUCCESS)
		*pMilliseconds = (float)((double)(int64_t)(hEnd->mark->time - hStart->mark->time) * 1e-6);
	pthread_mutex_unlock(&g.lock);
	return r;
}

CUresult cuEventElapsedTime_v2(float *pMilliseconds, CUevent hStart, CUevent hEnd)
{
	return cuEventElapsedTime(pMilliseconds, hStart, hEnd);
}
