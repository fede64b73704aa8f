/* stream.c: streams, their values to write and to wait for, and callbacks. */
#include "sim.h"

#include <stdlib.h>
#include <string.h>

/* --- which stream a handle means --------------------------------------------------------------------- */

static __thread struct { CUcontext ctx; CUstream stream; uint64_t ctx_id; } own __attribute__((tls_model("initial-exec")));

static CUstream stream_new(CUcontext c, unsigned flags, int priority)
{
	CUstream s = object_new(K_STREAM, sizeof *s);
	if (!s)
		return NULL;
	s->ctx = c;
	s->flags = flags;
	s->priority = priority;
	s->id = ++g.next_id;
	s->submitted = s->completed = g.stream_base += (uint64_t)1 << 32;
	s->next = c->streams;
	c->streams = s;
	return s;
}

CUstream thread_stream(CUcontext c)
{
	if (own.ctx != c || own.ctx_id != c->id) {
		own.stream = stream_new(c, CU_STREAM_DEFAULT, 0);
		own.ctx = c;
		own.ctx_id = c->id;
	}
	return own.stream;
}

CUresult stream_of(CUstream h, CUstream *out)
{
	if ((uintptr_t)h > 2) {
		REQUIRE(is_kind(h, K_STREAM) && !h->dying, CUDA_ERROR_INVALID_HANDLE);
		REQUIRE(!h->ctx->dead, CUDA_ERROR_CONTEXT_IS_DESTROYED);
		*out = h;
		return CUDA_SUCCESS;
	}
	CUcontext c = tls_current;
	REQUIRE(c, CUDA_ERROR_INVALID_CONTEXT);
	REQUIRE(!c->dead, CUDA_ERROR_CONTEXT_IS_DESTROYED);
	bool own_stream = h == CU_STREAM_PER_THREAD || (!h && tls_per_thread);
	*out = own_stream ? thread_stream(c) : c->legacy;
	return *out ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

/* Runs f on the stream of a handle under g.lock. */
static CUresult with_stream(CUstream h, CUresult (*f)(CUstream, void *), void *arg)
{
	CUstream s;
	TRY(ready());
	pthread_mutex_lock(&g.lock);
	CUresult r = stream_of(h, &s);
	if (r == CUDA_SUCCESS)
		r = f(s, arg);
	pthread_mutex_unlock(&g.lock);
	return r;
}

/* --- life -------------------------------------------------------------------------------------------- */

CUresult cuStreamCreateWithPriority(CUstream *phStream, unsigned int flags, int priority)
{
	CUcontext c;
	REQUIRE(phStream && flags <= CU_STREAM_NON_BLOCKING, CUDA_ERROR_INVALID_VALUE);
	TRY(current(&c));
	priority = priority > 0 ? 0 : priority < -5 ? -5 : priority;
	pthread_mutex_lock(&g.lock);
	*phStream = stream_new(c, flags, priority);
	pthread_mutex_unlock(&g.lock);
	return *phStream ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult cuStreamCreate(CUstream *phStream, unsigned int Flags) { return cuStreamCreateWithPriority(phStream, Flags, 0); }

static CUresult destroy(CUstream s, void *arg)
{
	(void)arg;
	REQUIRE(!s->legacy, CUDA_ERROR_INVALID_HANDLE);
	if (capturing(s)) {
		capture_invalidate(s);
		capture_leave(s);
	}
	free(s->deps);
	s->deps = NULL;
	for (CUstream *at = &s->ctx->streams; *at; at = &(*at)->next)
		if (*at == s) {
			*at = s->next;
			break;
		}
	if (stream_idle(s))
		object_free(s);
	else
		s->dying = true; /* goes when its work is done */
	return CUDA_SUCCESS;
}

CUresult cuStreamDestroy_v2(CUstream hStream)
{
	TRY(ready());
	REQUIRE((uintptr_t)hStream > 2, CUDA_ERROR_INVALID_HANDLE);
	return with_stream(hStream, destroy, NULL);
}

CUresult cuStreamDestroy(CUstream hStream) { return cuStreamDestroy_v2(hStream); }

/* --- properties -------------------------------------------------------------------------------------- */

static CUresult get_priority(CUstream s, void *out) { *(int *)out = s->priority; return CUDA_SUCCESS; }
static CUresult get_flags(CUstream s, void *out) { *(unsigned *)out = s->flags; return CUDA_SUCCESS; }
static CUresult get_id(CUstream s, void *out) { *(unsigned long long *)out = s->id; return CUDA_SUCCESS; }
static CUresult get_context(CUstream s, void *out) { *(CUcontext *)out = s->ctx; return CUDA_SUCCESS; }
static CUresult get_device(CUstream s, void *out) { *(CUdevice *)out = s->ctx->dev->ordinal; return CUDA_SUCCESS; }

#define GETTER(name, type, f)                                       \
	CUresult name(CUstream hStream, type *out)                      \
	{                                                               \
		REQUIRE(out, CUDA_ERROR_INVALID_VALUE);                     \
		return with_stream(hStream, f, out);                        \
	}
GETTER(cuStreamGetPriority, int, get_priority)
GETTER(cuStreamGetFlags, unsigned int, get_flags)
GETTER(cuStreamGetId, unsigned long long, get_id)
GETTER(cuStreamGetCtx, CUcontext, get_context)
GETTER(cuStreamGetDevice, CUdevice, get_device)

static CUresult set_priority(CUstream s, void *value) { s->priority = *(const int *)value; return CUDA_SUCCESS; }
static CUresult nothing(CUstream s, void *arg) { (void)s; (void)arg; return CUDA_SUCCESS; }

CUresult cuStreamCopyAttributes(CUstream dst, CUstream src)
{
	int priority;
	TRY(with_stream(src, get_priority, &priority));
	return with_stream(dst, set_priority, &priority);
}

CUresult cuStreamGetAttribute(CUstream hStream, CUstreamAttrID attr, CUstreamAttrValue *value_out)
{
	REQUIRE(value_out, CUDA_ERROR_INVALID_VALUE);
	memset(value_out, 0, sizeof *value_out);
	return with_stream(hStream, attr == CU_LAUNCH_ATTRIBUTE_PRIORITY ? get_priority : nothing, &value_out->priority);
}

CUresult cuStreamSetAttribute(CUstream hStream, CUstreamAttrID attr, const CUstreamAttrValue *value)
{
	REQUIRE(value, CUDA_ERROR_INVALID_VALUE);
	int priority = value->priority;
	return with_stream(hStream, attr == CU_LAUNCH_ATTRIBUTE_PRIORITY ? set_priority : nothing, &priority);
}

/* --- waiting ----------------------------------------------------------------------------------------- */

static CUresult query(CUstream s, void *arg)
{
	(void)arg;
	TRY(usable(s->ctx));
	if (capturing(s))
		return capture_invalidate(s);
	return stream_idle(s) ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

static CUresult synchronize(CUstream s, void *arg)
{
	CUcontext c = s->ctx;
	(void)arg;
	TRY(usable(c));
	if (capturing(s))
		return capture_invalidate(s);
	wait_idle_stream(s);
	pool_synchronized(c->dev);
	return usable(c);
}

CUresult cuStreamQuery(CUstream hStream) { return with_stream(hStream, query, NULL); }
CUresult cuStreamSynchronize(CUstream hStream) { return with_stream(hStream, synchronize, NULL); }

static CUresult wait_event(CUstream s, void *arg)
{
	CUevent e = arg;
	TRY(usable(s->ctx));
	REQUIRE(is_kind(e, K_EVENT), CUDA_ERROR_INVALID_HANDLE);
	if (capturing(s) || e->capture)
		return capture_wait(s, e);
	if (!e->mark || e->mark->done)
		return CUDA_SUCCESS;
	struct op *op = op_new(OP_NOW, CU_GRAPH_NODE_TYPE_WAIT_EVENT, 0);
	REQUIRE(op, CUDA_ERROR_OUT_OF_MEMORY);
	op->awaits = e->mark;
	e->mark->refs++;
	op_submit(s, op);
	return CUDA_SUCCESS;
}

CUresult cuStreamWaitEvent(CUstream hStream, CUevent hEvent, unsigned int Flags)
{
	REQUIRE(Flags <= CU_EVENT_WAIT_EXTERNAL, CUDA_ERROR_INVALID_VALUE);
	return with_stream(hStream, wait_event, hEvent);
}

/* --- callbacks --------------------------------------------------------------------------------------- */

static CUresult call_back(struct op *op)
{
	struct callback *c = (struct callback *)op->arg;
	if (c->fn)
		c->fn(c->data);
	else
		c->stream_fn(c->handle, op->stream->ctx->sticky, c->data);
	return CUDA_SUCCESS;
}

CUresult callback_op(struct callback c, struct op **out)
{
	struct op *op = op_new(OP_HOST, CU_GRAPH_NODE_TYPE_HOST, sizeof c);
	REQUIRE(op, CUDA_ERROR_OUT_OF_MEMORY);
	memcpy(op->arg, &c, sizeof c);
	op->run = call_back;
	*out = op;
	return CUDA_SUCCESS;
}

static CUresult submit_callback(CUstream h, struct callback c)
{
	struct op *op;
	TRY(callback_op(c, &op));
	return submit(h, op);
}

CUresult cuLaunchHostFunc(CUstream hStream, CUhostFn fn, void *userData)
{
	TRY(ready());
	REQUIRE(fn, CUDA_ERROR_INVALID_VALUE);
	return submit_callback(hStream, (struct callback){ .fn = fn, .data = userData });
}

CUresult cuLaunchHostFunc_v2(CUstream hStream, CUhostFn fn, void *userData, unsigned int syncMode)
{
	(void)syncMode;
	return cuLaunchHostFunc(hStream, fn, userData);
}

CUresult cuStreamAddCallback(CUstream hStream, CUstreamCallback callback, void *userData, unsigned int flags)
{
	TRY(ready());
	REQUIRE(callback && flags == 0, CUDA_ERROR_INVALID_VALUE);
	return submit_callback(hStream, (struct callback){ .stream_fn = callback, .handle = hStream, .data = userData });
}

/* --- values in memory -------------------------------------------------------------------------------- */

struct value { CUdeviceptr addr; uint64_t value; unsigned flags; bool wide; };

static uint64_t load(const struct value *v)
{
	void *p = addr_bytes(v->addr);
	return v->wide ? __atomic_load_n((uint64_t *)p, __ATOMIC_ACQUIRE) : __atomic_load_n((uint32_t *)p, __ATOMIC_ACQUIRE);
}

static bool satisfied(struct op *op)
{
	const struct value *v = (const struct value *)op->arg;
	if (!addr_accessible(op->stream->ctx->dev, v->addr, v->wide ? 8 : 4, false))
		return true; /* freed under us: let the stream go on */
	uint64_t now = load(v), mask = v->wide ? UINT64_MAX : UINT32_MAX;
	switch (v->flags & 3) {
	case CU_STREAM_WAIT_VALUE_GEQ:
		return v->wide ? (int64_t)(now - v->value) >= 0 : (int32_t)((uint32_t)now - (uint32_t)v->value) >= 0;
	case CU_STREAM_WAIT_VALUE_EQ:  return now == (v->value & mask);
	case CU_STREAM_WAIT_VALUE_AND: return now & v->value;
	default:                       return ~(now | v->value) & mask;
	}
}

static CUresult write_value(struct op *op)
{
	const struct value *v = (const struct value *)op->arg;
	if (g.zero_cost)
		return CUDA_SUCCESS;
	if (!addr_accessible(op->stream->ctx->dev, v->addr, v->wide ? 8 : 4, true))
		return CUDA_ERROR_ILLEGAL_ADDRESS;
	void *p = addr_bytes(v->addr);
	if (v->wide)
		__atomic_store_n((uint64_t *)p, v->value, __ATOMIC_RELEASE);
	else
		__atomic_store_n((uint32_t *)p, (uint32_t)v->value, __ATOMIC_RELEASE);
	return CUDA_SUCCESS;
}

static CUresult submit_value(CUstream h, struct value v, bool wait)
{
	TRY(ready());
	pthread_mutex_lock(&g.lock);
	bool ok = v.addr % (v.wide ? 8 : 4) == 0 && addr_accessible(NULL, v.addr, v.wide ? 8 : 4, !wait);
	pthread_mutex_unlock(&g.lock);
	REQUIRE(ok, CUDA_ERROR_INVALID_VALUE);
	struct op *op = op_new(OP_NOW, CU_GRAPH_NODE_TYPE_BATCH_MEM_OP, sizeof v);
	REQUIRE(op, CUDA_ERROR_OUT_OF_MEMORY);
	memcpy(op->arg, &v, sizeof v);
	if (wait)
		op->poll = satisfied;
	else
		op->run = write_value;
	return submit(h, op);
}

#define VALUE_CALLS(name, type, bits, waits)                                                  \
	CUresult name##_v2(CUstream stream, CUdeviceptr addr, type value, unsigned int flags)     \
	{                                                                                         \
		return submit_value(stream, (struct value){ addr, value, flags, bits }, waits);       \
	}                                                                                         \
	CUresult name(CUstream stream, CUdeviceptr addr, type value, unsigned int flags)          \
	{                                                                                         \
		return name##_v2(stream, addr, value, flags);                                         \
	}
VALUE_CALLS(cuStreamWaitValue32, cuuint32_t, false, true)
VALUE_CALLS(cuStreamWaitValue64, cuuint64_t, true, true)
VALUE_CALLS(cuStreamWriteValue32, cuuint32_t, false, false)
VALUE_CALLS(cuStreamWriteValue64, cuuint64_t, true, false)

CUresult cuStreamBatchMemOp_v2(CUstream stream, unsigned int count, CUstreamBatchMemOpParams *paramArray, unsigned int flags)
{
	TRY(ready());
	REQUIRE(count <= 256 && (paramArray || !count) && flags == 0, CUDA_ERROR_INVALID_VALUE);
	for (unsigned i = 0; i < count; i++) {
		const CUstreamBatchMemOpParams *p = &paramArray[i];
		bool wide = p->operation == CU_STREAM_MEM_OP_WAIT_VALUE_64 || p->operation == CU_STREAM_MEM_OP_WRITE_VALUE_64;
		struct value v = { p->waitValue.address, wide ? p->waitValue.value64 : p->waitValue.value, p->waitValue.flags, wide };
		switch (p->operation) {
		case CU_STREAM_MEM_OP_WAIT_VALUE_32:
		case CU_STREAM_MEM_OP_WAIT_VALUE_64:  TRY(submit_value(stream, v, true)); break;
		case CU_STREAM_MEM_OP_WRITE_VALUE_32:
		case CU_STREAM_MEM_OP_WRITE_VALUE_64: TRY(submit_value(stream, v, false)); break;
		case CU_STREAM_MEM_OP_FLUSH_REMOTE_WRITES:
		case CU_STREAM_MEM_OP_BARRIER:        break; /* stores are seen at once here */
		default:                              return CUDA_ERROR_INVALID_VALUE;
		}
	}
	return CUDA_SUCCESS;
}

CUresult cuStreamBatchMemOp(CUstream stream, unsigned int count, CUstreamBatchMemOpParams *paramArray, unsigned int flags)
{
	return cuStreamBatchMemOp_v2(stream, count, paramArray, flags);
}
