/* capture.c: a stream's calls noted down as a graph instead of done.
 *
 * A capturing stream knows the nodes that its next one follows; an event recorded in it takes them along, and a
 * stream that waits for such an event joins the capture. A call that cannot be noted down ends the capture's
 * hopes: it is invalidated, and cuStreamEndCapture says so.
 */
#include "graph.h"

#include <stdlib.h>
#include <string.h>

struct capture {
	unsigned refs;              /* streams in it, events recorded in it */
	CUgraph graph;              /* NULL once it has ended */
	bool own_graph;             /* not one that the program gave */
	CUstream origin;
	CUstreamCaptureMode mode;
	pthread_t thread;
	uint64_t id;
	bool invalid;
	struct capture *next;       /* of all that run */
};

static struct capture *running;
static __thread CUstreamCaptureMode thread_mode __attribute__((tls_model("initial-exec"))) = CU_STREAM_CAPTURE_MODE_GLOBAL;

void capture_forget(struct capture *c)
{
	if (--c->refs == 0)
		free(c);
}

static CUresult set_deps(CUstream s, const CUgraphNode *deps, size_t n)
{
	CUgraphNode *copy = malloc((n + 1) * sizeof *copy);
	REQUIRE(copy, CUDA_ERROR_OUT_OF_MEMORY);
	if (n)
		memcpy(copy, deps, n * sizeof *copy);
	free(s->deps);
	s->deps = copy;
	s->ndeps = n;
	return CUDA_SUCCESS;
}

static CUresult join(CUstream s, struct capture *c, const CUgraphNode *deps, size_t n)
{
	TRY(set_deps(s, deps, n));
	s->capture = c;
	c->refs++;
	if (!(s->flags & CU_STREAM_NON_BLOCKING))
		s->ctx->captures++;
	return CUDA_SUCCESS;
}

void capture_leave(CUstream s)
{
	struct capture *c = s->capture;
	free(s->deps);
	s->deps = NULL;
	s->ndeps = 0;
	s->capture = NULL;
	if (!(s->flags & CU_STREAM_NON_BLOCKING))
		s->ctx->captures--;
	if (c->origin == s)
		c->origin = NULL;
	capture_forget(c);
}

CUresult capture_invalidate(CUstream s)
{
	s->capture->invalid = true;
	return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
}

CUresult capture_disturbed(CUcontext c)
{
	for (CUstream s = c->streams; s; s = s->next)
		if (capturing(s) && !(s->flags & CU_STREAM_NON_BLOCKING))
			s->capture->invalid = true;
	return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
}

/* Whether this thread may make a call that could block or change what a capture relies on. */
CUresult capture_forbids(void)
{
	bool forbidden = false;
	if (likely(!__atomic_load_n(&running, __ATOMIC_RELAXED)) || thread_mode == CU_STREAM_CAPTURE_MODE_RELAXED)
		return CUDA_SUCCESS;
	pthread_mutex_lock(&g.lock);
	for (struct capture *c = running; c; c = c->next) {
		bool mine = c->mode != CU_STREAM_CAPTURE_MODE_RELAXED && pthread_equal(c->thread, pthread_self());
		bool anyones = c->mode == CU_STREAM_CAPTURE_MODE_GLOBAL && thread_mode == CU_STREAM_CAPTURE_MODE_GLOBAL;
		if (mine || anyones)
			c->invalid = forbidden = true;
	}
	pthread_mutex_unlock(&g.lock);
	return forbidden ? CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED : CUDA_SUCCESS;
}

/* --- noting down; all under g.lock ------------------------------------------------------------------- */

static CUresult note(CUstream s, CUgraphNodeType type, CUgraphNode *out)
{
	struct capture *c = s->capture;
	REQUIRE(!c->invalid, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
	TRY(node_new(c->graph, type, s->deps, s->ndeps, out));
	return set_deps(s, out, 1);
}

CUresult capture_op(CUstream s, struct op *op)
{
	CUgraphNode n;
	CUresult r = note(s, op->type, &n);
	if (r != CUDA_SUCCESS)
		op_discard(op);
	else
		n->op = op;
	return r;
}

CUresult capture_alloc(CUstream s, struct simdev *d, uint64_t size, CUdeviceptr *out)
{
	CUgraphNode n;
	CUresult err;
	(void)d;
	struct graph_memory *m = graph_memory_new(s->ctx, size, &err);
	TRY(err);
	err = note(s, CU_GRAPH_NODE_TYPE_MEM_ALLOC, &n);
	if (err != CUDA_SUCCESS) {
		graph_memory_put(m);
		return err;
	}
	n->memory = m;
	n->alloc = (CUDA_MEM_ALLOC_NODE_PARAMS){ .poolProps = { .allocType = CU_MEM_ALLOCATION_TYPE_PINNED,
	                                                       .location = { CU_MEM_LOCATION_TYPE_DEVICE, s->ctx->dev->ordinal } },
	                                         .bytesize = size, .dptr = graph_memory_address(m) };
	*out = n->alloc.dptr;
	return CUDA_SUCCESS;
}

CUresult capture_free(CUstream s, CUdeviceptr p)
{
	CUgraphNode n;
	struct graph_memory *m = graph_memory_find(p);
	REQUIRE(m, CUDA_ERROR_INVALID_VALUE);
	TRY(note(s, CU_GRAPH_NODE_TYPE_MEM_FREE, &n));
	graph_memory_hold(m);
	n->memory = m;
	n->freed = p;
	return CUDA_SUCCESS;
}

CUresult capture_event(CUstream s, CUevent e)
{
	REQUIRE(!s->capture->invalid, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
	CUgraphNode *nodes = malloc((s->ndeps + 1) * sizeof *nodes);
	REQUIRE(nodes, CUDA_ERROR_OUT_OF_MEMORY);
	if (s->ndeps)
		memcpy(nodes, s->deps, s->ndeps * sizeof *nodes);
	if (e->capture)
		capture_forget(e->capture);
	free(e->nodes);
	e->nodes = nodes;
	e->node_count = s->ndeps;
	e->capture = s->capture;
	e->capture->refs++;
	return CUDA_SUCCESS;
}

static CUresult add_deps(CUstream s, const CUgraphNode *more, size_t n)
{
	CUgraphNode *all = malloc((s->ndeps + n + 1) * sizeof *all);
	REQUIRE(all, CUDA_ERROR_OUT_OF_MEMORY);
	size_t count = s->ndeps;
	if (count)
		memcpy(all, s->deps, count * sizeof *all);
	for (size_t i = 0; i < n; i++) {
		bool known = false;
		for (size_t k = 0; k < count && !known; k++)
			known = all[k] == more[i];
		if (!known)
			all[count++] = more[i];
	}
	CUresult r = set_deps(s, all, count);
	free(all);
	return r;
}

CUresult capture_wait(CUstream s, CUevent e)
{
	if (!e->capture) { /* s captures, the event's work does not */
		s->capture->invalid = true;
		return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
	}
	REQUIRE(e->capture->graph, CUDA_ERROR_CAPTURED_EVENT);
	REQUIRE(!e->capture->invalid, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
	if (!capturing(s)) {
		REQUIRE(!s->legacy, CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
		return join(s, e->capture, e->nodes, e->node_count);
	}
	if (s->capture != e->capture) {
		s->capture->invalid = e->capture->invalid = true;
		return CUDA_ERROR_STREAM_CAPTURE_MERGE;
	}
	return add_deps(s, e->nodes, e->node_count);
}

/* --- beginning and ending ---------------------------------------------------------------------------- */

static CUresult begin(CUstream h, CUgraph graph, const CUgraphNode *deps, size_t ndeps, CUstreamCaptureMode mode)
{
	CUstream s;
	TRY(stream_of(h, &s));
	TRY(usable(s->ctx));
	REQUIRE((unsigned)mode <= CU_STREAM_CAPTURE_MODE_RELAXED, CUDA_ERROR_INVALID_VALUE);
	REQUIRE(!s->legacy, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
	REQUIRE(!capturing(s), CUDA_ERROR_ILLEGAL_STATE);
	struct capture *c = calloc(1, sizeof *c);
	REQUIRE(c, CUDA_ERROR_OUT_OF_MEMORY);
	*c = (struct capture){ .graph = graph, .own_graph = !graph, .origin = s, .mode = mode, .thread = pthread_self(), .id = ++g.next_id };
	CUresult r = graph ? CUDA_SUCCESS : graph_new(s->ctx, &c->graph);
	if (r == CUDA_SUCCESS)
		r = join(s, c, deps, ndeps);
	if (r != CUDA_SUCCESS) {
		free(c);
		return r;
	}
	c->next = running;
	__atomic_store_n(&running, c, __ATOMIC_RELAXED);
	return CUDA_SUCCESS;
}

CUresult cuStreamBeginCapture_v2(CUstream hStream, CUstreamCaptureMode mode)
{
	TRY(ready());
	pthread_mutex_lock(&g.lock);
	CUresult r = begin(hStream, NULL, NULL, 0, mode);
	pthread_mutex_unlock(&g.lock);
	return r;
}

CUresult cuStreamBeginCaptureToGraph(CUstream hStream, CUgraph hGraph, const CUgraphNode *dependencies, const CUgraphEdgeData *dependencyData,
                                     size_t numDependencies, CUstreamCaptureMode mode)
{
	(void)dependencyData;
	TRY(valid_graph(hGraph));
	REQUIRE(dependencies || !numDependencies, CUDA_ERROR_INVALID_VALUE);
	pthread_mutex_lock(&g.lock);
	CUresult r = begin(hStream, hGraph, dependencies, numDependencies, mode);
	pthread_mutex_unlock(&g.lock);
	return r;
}

/* Every node that nothing follows must be one that the origin would have followed. */
static bool all_joined(const struct capture *c)
{
	for (CUgraphNode n = c->graph->first; n; n = n->next) {
		bool followed = false;
		for (CUgraphNode m = c->graph->first; m && !followed; m = m->next)
			followed = node_depends(m, n);
		for (size_t i = 0; i < c->origin->ndeps && !followed; i++)
			followed = c->origin->deps[i] == n;
		if (!followed && c->own_graph)
			return false;
	}
	return true;
}

static void leave_all(struct capture *c)
{
	for (CUcontext ctx = g.contexts; ctx; ctx = ctx->next)
		for (CUstream s = ctx->streams; s; s = s->next)
			if (s->capture == c)
				capture_leave(s);
}

static CUresult end(CUstream h, CUgraph *out)
{
	CUstream s;
	*out = NULL;
	TRY(stream_of(h, &s));
	REQUIRE(capturing(s), CUDA_ERROR_ILLEGAL_STATE);
	struct capture *c = s->capture;
	REQUIRE(c->origin == s, CUDA_ERROR_STREAM_CAPTURE_UNMATCHED);
	REQUIRE(c->mode == CU_STREAM_CAPTURE_MODE_RELAXED || pthread_equal(c->thread, pthread_self()), CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD);
	CUresult r = c->invalid ? CUDA_ERROR_STREAM_CAPTURE_INVALIDATED : all_joined(c) ? CUDA_SUCCESS : CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
	for (struct capture **at = &running; *at; at = &(*at)->next)
		if (*at == c) {
			__atomic_store_n(at, c->next, __ATOMIC_RELAXED);
			break;
		}
	if (r == CUDA_SUCCESS)
		*out = c->graph;
	else if (c->own_graph)
		graph_free(c->graph);
	c->graph = NULL;
	c->refs++; /* stays until here */
	leave_all(c);
	capture_forget(c);
	return r;
}

CUresult cuStreamEndCapture(CUstream hStream, CUgraph *phGraph)
{
	TRY(ready());
	REQUIRE(phGraph, CUDA_ERROR_INVALID_VALUE);
	pthread_mutex_lock(&g.lock);
	CUresult r = end(hStream, phGraph);
	pthread_mutex_unlock(&g.lock);
	return r;
}

CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode *mode)
{
	TRY(ready());
	REQUIRE(mode && (unsigned)*mode <= CU_STREAM_CAPTURE_MODE_RELAXED, CUDA_ERROR_INVALID_VALUE);
	CUstreamCaptureMode was = thread_mode;
	thread_mode = *mode;
	*mode = was;
	return CUDA_SUCCESS;
}

/* --- what goes on ------------------------------------------------------------------------------------ */

static CUstreamCaptureStatus status(CUstream s)
{
	return !capturing(s) ? CU_STREAM_CAPTURE_STATUS_NONE : s->capture->invalid ? CU_STREAM_CAPTURE_STATUS_INVALIDATED : CU_STREAM_CAPTURE_STATUS_ACTIVE;
}

CUresult cuStreamGetCaptureInfo_v2(CUstream hStream, CUstreamCaptureStatus *captureStatus_out, cuuint64_t *id_out, CUgraph *graph_out,
                                   const CUgraphNode **dependencies_out, size_t *numDependencies_out)
{
	CUstream s;
	TRY(ready());
	REQUIRE(captureStatus_out, CUDA_ERROR_INVALID_VALUE);
	pthread_mutex_lock(&g.lock);
	CUresult r = stream_of(hStream, &s);
	if (r == CUDA_SUCCESS && s->legacy && s->ctx->captures)
		r = CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
	if (r == CUDA_SUCCESS) {
		*captureStatus_out = status(s);
		if (*captureStatus_out == CU_STREAM_CAPTURE_STATUS_ACTIVE) {
			if (id_out)
				*id_out = s->capture->id;
			if (graph_out)
				*graph_out = s->capture->graph;
			if (dependencies_out)
				*dependencies_out = s->deps;
			if (numDependencies_out)
				*numDependencies_out = s->ndeps;
		}
	}
	pthread_mutex_unlock(&g.lock);
	return r;
}

CUresult cuStreamGetCaptureInfo_v3(CUstream hStream, CUstreamCaptureStatus *captureStatus_out, cuuint64_t *id_out, CUgraph *graph_out,
                                   const CUgraphNode **dependencies_out, const CUgraphEdgeData **edgeData_out, size_t *numDependencies_out)
{
	if (edgeData_out)
		*edgeData_out = NULL;
	return cuStreamGetCaptureInfo_v2(hStream, captureStatus_out, id_out, graph_out, dependencies_out, numDependencies_out);
}

CUresult cuStreamIsCapturing(CUstream hStream, CUstreamCaptureStatus *captureStatus)
{
	return cuStreamGetCaptureInfo_v2(hStream, captureStatus, NULL, NULL, NULL, NULL);
}

static CUresult update_deps(CUstream h, const CUgraphNode *deps, size_t n, unsigned flags)
{
	CUstream s;
	TRY(stream_of(h, &s));
	REQUIRE(capturing(s), CUDA_ERROR_ILLEGAL_STATE);
	for (size_t i = 0; i < n; i++)
		REQUIRE(is_kind(deps[i], K_NODE) && deps[i]->graph == s->capture->graph, CUDA_ERROR_INVALID_VALUE);
	return flags == CU_STREAM_SET_CAPTURE_DEPENDENCIES ? set_deps(s, deps, n) : add_deps(s, deps, n);
}

CUresult cuStreamUpdateCaptureDependencies(CUstream hStream, CUgraphNode *dependencies, size_t numDependencies, unsigned int flags)
{
	TRY(ready());
	REQUIRE((dependencies || !numDependencies) && flags <= CU_STREAM_SET_CAPTURE_DEPENDENCIES, CUDA_ERROR_INVALID_VALUE);
	pthread_mutex_lock(&g.lock);
	CUresult r = update_deps(hStream, dependencies, numDependencies, flags);
	pthread_mutex_unlock(&g.lock);
	return r;
}

CUresult cuStreamUpdateCaptureDependencies_v2(CUstream hStream, CUgraphNode *dependencies, const CUgraphEdgeData *dependencyData,
                                              size_t numDependencies, unsigned int flags)
{
	(void)dependencyData;
	return cuStreamUpdateCaptureDependencies(hStream, dependencies, numDependencies, flags);
}
