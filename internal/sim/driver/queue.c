/* queue.c: streams' work and the threads that do it.
 *
 * A stream is a list of ops, done in order. Its first op is either waited for (the stream is parked), done at
 * once (OP_NOW), or handed with its stream to the unit that does it; when it ends, the stream goes on. Each
 * unit of a device has one thread, started with the first work for it: compute, copy in, copy out, callbacks.
 */
#define _GNU_SOURCE
#include "sim.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define POLL_NS 100000 /* how often memory that a stream waits for is looked at */

static unsigned polling; /* ops that somebody must look at again and again */

struct mark *mark_new(void)
{
	struct mark *m = calloc(1, sizeof *m);
	if (m)
		m->refs = 1;
	return m;
}

void mark_put(struct mark *m)
{
	if (m && --m->refs == 0)
		free(m);
}

struct op *op_new(enum op_unit unit, CUgraphNodeType type, size_t arg_size)
{
	struct op *op = calloc(1, sizeof *op + arg_size);
	if (op) {
		op->unit = unit;
		op->type = type;
		op->arg_size = arg_size;
	}
	return op;
}

/* Of ops that hold nothing but their bytes, as all that graphs have. */
struct op *op_clone(const struct op *op)
{
	struct op *copy = op_new(op->unit, op->type, op->arg_size);
	if (!copy)
		return NULL;
	copy->cost = op->cost;
	copy->bytes = op->bytes;
	copy->poll = op->poll;
	copy->run = op->run;
	memcpy(copy->arg, op->arg, op->arg_size);
	return copy;
}

void op_discard(struct op *op)
{
	if (op->drop)
		op->drop(op);
	mark_put(op->fires);
	mark_put(op->awaits);
	free(op);
}

/* --- going on; all under g.lock ---------------------------------------------------------------------- */

static void complete(CUstream s, uint64_t end, CUresult result)
{
	struct op *op = s->head;
	if (end > s->clock)
		s->clock = end;
	if (op->fires) {
		op->fires->done = true;
		op->fires->time = s->clock;
	}
	if (result != CUDA_SUCCESS && s->ctx->sticky == CUDA_SUCCESS) {
		s->ctx->sticky = result;
		__atomic_fetch_add(&s->ctx->dev->use->launch_errors, 1, __ATOMIC_RELAXED);
	}
	s->head = op->next;
	if (!s->head)
		s->tail = NULL;
	s->completed++;
	op_discard(op);
	pthread_cond_broadcast(&g.done);
	if (s->dying && !s->head && !s->parked)
		object_free(s);
}

static bool now_ready(struct op *op)
{
	uint64_t t = 0;
	if (op->awaits) {
		if (!op->awaits->done)
			return false;
		t = op->awaits->time;
	}
	if (op->await) {
		if (op->await->completed < op->await_count)
			return false;
		t = op->await->clock;
	}
	if (op->poll && !op->poll(op))
		return false;
	if (t > op->stream->clock)
		op->stream->clock = t;
	return true;
}

static void *unit_main(void *arg);

static bool unit_start(struct unit *u)
{
	sigset_t all, old;
	pthread_t thread;
	pthread_condattr_t ca;
	if (u->running)
		return true;
	pthread_condattr_init(&ca);
	pthread_condattr_setclock(&ca, CLOCK_MONOTONIC);
	pthread_cond_init(&u->work, &ca);
	pthread_condattr_destroy(&ca);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old); /* signals are the program's business, not this thread's */
	u->running = pthread_create(&thread, NULL, unit_main, u) == 0;
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (u->running)
		pthread_detach(thread);
	return u->running;
}

static bool hand_over(CUstream s, enum unit_kind kind)
{
	struct unit *u = &s->ctx->dev->unit[kind];
	if (!unit_start(u))
		return false;
	CUstream *at = &u->first;
	while (*at && (*at)->priority <= s->priority)
		at = &(*at)->ready_next;
	s->ready_next = *at;
	*at = s;
	s->in_unit = true;
	pthread_cond_signal(&u->work);
	return true;
}

static void park(CUstream s, const struct op *op)
{
	s->parked = true;
	s->ready_next = g.parked;
	g.parked = s;
	if (op->poll) {
		struct unit *u = &s->ctx->dev->unit[UNIT_HOST];
		polling++;
		if (unit_start(u))
			pthread_cond_signal(&u->work);
	}
}

/* Takes a stream as far as it gets; says whether it did anything. */
static bool advance(CUstream s)
{
	bool moved = false;
	while (s->head && !s->in_unit && !s->parked) {
		struct op *op = s->head;
		if (op->unit != OP_NOW) {
			if (hand_over(s, (enum unit_kind)op->unit))
				return true;
			complete(s, 0, CUDA_ERROR_OUT_OF_MEMORY);
		} else if (now_ready(op)) {
			CUresult r = op->run ? op->run(op) : CUDA_SUCCESS;
			complete(s, op->ready, r);
		} else {
			park(s, op);
			return moved;
		}
		moved = true;
		if (!is_kind(s, K_STREAM))
			return true; /* it was dying, and this was the last of it */
	}
	return moved;
}

void queue_advance(void)
{
	bool moved;
	do {
		CUstream list = g.parked, next;
		g.parked = NULL;
		moved = false;
		for (CUstream s = list; s; s = next) {
			next = s->ready_next;
			s->parked = false;
			if (s->head->poll)
				polling--;
			moved |= advance(s);
		}
	} while (moved && g.parked);
}

/* --- threads ----------------------------------------------------------------------------------------- */

static uint64_t spend_time(struct unit *u, const struct op *op, uint64_t earliest)
{
	struct simdev *d = u->dev;
	switch (u->kind) {
	case UNIT_COMPUTE: return engine_compute(d, earliest, op->cost);
	case UNIT_HOST:    wait_while_hung(d); return earliest;
	default:           return engine_copy(d, u->kind, earliest, op->cost, op->bytes);
	}
}

static void do_first(struct unit *u)
{
	CUstream s = u->first;
	struct op *op = s->head;
	u->first = s->ready_next;
	uint64_t earliest = op->ready > s->clock ? op->ready : s->clock;
	CUresult r = s->ctx->sticky;
	pthread_mutex_unlock(&g.lock);
	uint64_t end = r == CUDA_SUCCESS ? spend_time(u, op, earliest) : earliest;
	if (r == CUDA_SUCCESS && faults(u->dev) & SIM_FAULT_LOST)
		r = CUDA_ERROR_LAUNCH_FAILED;
	if (r == CUDA_SUCCESS && mps_lost(u->dev))
		r = CUDA_ERROR_MPS_RPC_FAILURE;
	if (r == CUDA_SUCCESS)
		r = op->run(op);
	if (u->kind == UNIT_HOST)
		end = now_ns();
	pthread_mutex_lock(&g.lock);
	s->in_unit = false;
	complete(s, end, r);
	if (is_kind(s, K_STREAM))
		advance(s);
	queue_advance();
}

static void wait_for_work(struct unit *u)
{
	if (u->kind == UNIT_HOST && polling) {
		struct timespec ts;
		clock_gettime(CLOCK_MONOTONIC, &ts);
		ts.tv_nsec += POLL_NS;
		if (ts.tv_nsec >= 1000000000) {
			ts.tv_sec++;
			ts.tv_nsec -= 1000000000;
		}
		pthread_cond_timedwait(&u->work, &g.lock, &ts);
		queue_advance();
	} else {
		pthread_cond_wait(&u->work, &g.lock);
	}
}

static void *unit_main(void *arg)
{
	struct unit *u = arg;
	bool owner = false;
	pthread_mutex_lock(&g.lock);
	for (;;) {
		if (u->first) {
			do_first(u);
			owner = true;
		} else if (owner && u->kind == UNIT_COMPUTE) {
			pthread_mutex_unlock(&g.lock);
			engine_release(u->dev);
			pthread_mutex_lock(&g.lock);
			owner = false;
		} else {
			wait_for_work(u);
		}
	}
	return NULL;
}

/* --- submitting -------------------------------------------------------------------------------------- */

static void append(CUstream s, struct op *op)
{
	op->stream = s;
	op->ready = now_ns();
	op->next = NULL;
	if (s->tail)
		s->tail->next = op;
	else
		s->head = op;
	s->tail = op;
	s->submitted++;
}

static void await_stream(CUstream s, CUstream other)
{
	struct op *op;
	if (other == s || stream_idle(other) || !(op = op_new(OP_NOW, CU_GRAPH_NODE_TYPE_EMPTY, 0)))
		return;
	op->await = other;
	op->await_count = other->submitted;
	append(s, op);
}

/* The NULL stream waits for all that came before in the context's blocking streams, and they for it. */
static void order_with_legacy(CUstream s)
{
	if (s->legacy) {
		for (CUstream t = s->ctx->streams; t; t = t->next)
			if (!(t->flags & CU_STREAM_NON_BLOCKING))
				await_stream(s, t);
	} else if (!(s->flags & CU_STREAM_NON_BLOCKING)) {
		await_stream(s, s->ctx->legacy);
	}
}

/* In the null driver nothing is done but what a program can see without bytes or time: callbacks and marks. */
static void do_nothing(CUstream s, struct op *op)
{
	if (op->fires) {
		op->fires->done = true;
		op->fires->time = now_ns();
	}
	op->stream = s;
	if (op->unit == OP_HOST) {
		pthread_mutex_unlock(&g.lock);
		op->run(op);
		pthread_mutex_lock(&g.lock);
	} else if (op->unit == OP_NOW && op->run) {
		op->run(op);
	}
	op_discard(op);
}

void op_submit(CUstream s, struct op *op)
{
	if (g.zero_cost) {
		do_nothing(s, op);
		return;
	}
	order_with_legacy(s);
	append(s, op);
	if (advance(s))
		queue_advance();
}

CUresult submit(CUstream h, struct op *op)
{
	CUstream s;
	REQUIRE(op, CUDA_ERROR_OUT_OF_MEMORY);
	pthread_mutex_lock(&g.lock);
	CUresult r = stream_of(h, &s);
	if (r == CUDA_SUCCESS)
		r = usable(s->ctx);
	if (r == CUDA_SUCCESS && s->legacy && s->ctx->captures)
		r = capture_disturbed(s->ctx);
	if (r != CUDA_SUCCESS)
		op_discard(op);
	else if (capturing(s))
		r = capture_op(s, op);
	else
		op_submit(s, op);
	pthread_mutex_unlock(&g.lock);
	return r;
}

CUresult submit_wait(CUstream h, struct op *op)
{
	CUstream s;
	REQUIRE(op, CUDA_ERROR_OUT_OF_MEMORY);
	pthread_mutex_lock(&g.lock);
	CUresult r = stream_of(h, &s);
	if (r == CUDA_SUCCESS)
		r = usable(s->ctx);
	if (r == CUDA_SUCCESS && s->legacy && s->ctx->captures)
		r = capture_disturbed(s->ctx);
	if (r == CUDA_SUCCESS && capturing(s))
		r = capture_invalidate(s);
	if (r == CUDA_SUCCESS) {
		op_submit(s, op);
		wait_idle_stream(s);
		r = usable(s->ctx);
	} else {
		op_discard(op);
	}
	pthread_mutex_unlock(&g.lock);
	return r;
}

/* --- waiting ----------------------------------------------------------------------------------------- */

void wait_idle_stream(CUstream s)
{
	for (uint64_t count = s->submitted; s->completed < count;)
		pthread_cond_wait(&g.done, &g.lock);
}

void wait_mark(struct mark *m)
{
	m->refs++;
	while (!m->done)
		pthread_cond_wait(&g.done, &g.lock);
	mark_put(m);
}

static CUstream first_busy(CUcontext c)
{
	if (!stream_idle(c->legacy))
		return c->legacy;
	for (CUstream s = c->streams; s; s = s->next)
		if (!stream_idle(s))
			return s;
	return NULL;
}

void wait_idle_context(CUcontext c)
{
	for (CUstream s; (s = first_busy(c));) /* looked for anew: a stream may end while we wait */
		wait_idle_stream(s);
}
