/* graphexec.c: instantiated graphs: making, changing, launching them.
 *
 * A launch puts the graph's work into the stream node by node, each after what it depends on. So branches of one
 * graph do not overlap here, as they would on a GPU.
 */
#include "graph.h"

#include <stdlib.h>
#include <string.h>

/* --- making ------------------------------------------------------------------------------------------ */

static size_t count_steps(CUgraph graph)
{
	size_t n = 0;
	for (CUgraphNode m = graph->first; m; m = m->next)
		n += m->child ? count_steps(m->child) : 1;
	return n;
}

static CUresult add_steps(CUgraph graph, struct step *steps, size_t *n)
{
	CUgraphNode *order = malloc((graph->count + 1) * sizeof *order);
	REQUIRE(order, CUDA_ERROR_OUT_OF_MEMORY);
	CUresult r = graph_order(graph, order);
	for (size_t i = 0; i < graph->count && r == CUDA_SUCCESS; i++) {
		CUgraphNode m = order[i];
		if (m->child) {
			r = add_steps(m->child, steps, n);
			continue;
		}
		struct step *s = &steps[(*n)++];
		*s = (struct step){ .node = m, .type = m->type, .ndeps = m->ndeps, .event = m->event, .memory = m->memory, .freed = m->freed };
		if (m->memory)
			graph_memory_hold(m->memory);
		if (m->op && !(s->op = op_clone(m->op)))
			r = CUDA_ERROR_OUT_OF_MEMORY;
	}
	free(order);
	return r;
}

static void free_steps(struct step *steps, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		if (steps[i].op)
			op_discard(steps[i].op);
		if (steps[i].memory)
			graph_memory_put(steps[i].memory);
	}
	free(steps);
}

/* Bytes for what the graph allocates, ahead of its launch. */
static CUresult upload(CUgraphExec e)
{
	for (size_t i = 0; i < e->count; i++)
		if (e->steps[i].type == CU_GRAPH_NODE_TYPE_MEM_ALLOC)
			TRY(graph_memory_back(e->steps[i].memory));
	return CUDA_SUCCESS;
}

static const cuuint64_t all_flags = CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH | CUDA_GRAPH_INSTANTIATE_FLAG_UPLOAD |
                                    CUDA_GRAPH_INSTANTIATE_FLAG_USE_NODE_PRIORITY;

static CUresult instantiate(CUgraph graph, cuuint64_t flags, CUgraphExec *out)
{
	REQUIRE(!(flags & ~all_flags), flags & CUDA_GRAPH_INSTANTIATE_FLAG_DEVICE_LAUNCH ? CUDA_ERROR_NOT_SUPPORTED : CUDA_ERROR_INVALID_VALUE);
	size_t n = 0, room = count_steps(graph);
	struct step *steps = calloc(room + 1, sizeof *steps);
	CUgraphExec e = steps ? object_new(K_EXEC, sizeof *e) : NULL;
	if (!e) {
		free(steps);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	CUresult r = add_steps(graph, steps, &n);
	e->ctx = graph->ctx ? graph->ctx : tls_current;
	e->flags = flags;
	e->steps = steps;
	e->count = n;
	for (size_t i = 0; i < n; i++) {
		e->has_memory |= steps[i].memory != NULL;
		e->has_host |= steps[i].type == CU_GRAPH_NODE_TYPE_HOST;
	}
	if (r == CUDA_SUCCESS && flags & CUDA_GRAPH_INSTANTIATE_FLAG_UPLOAD)
		r = upload(e);
	if (r != CUDA_SUCCESS) {
		free_steps(steps, n);
		object_free(e);
	} else {
		*out = e;
	}
	return r;
}

CUresult cuGraphInstantiateWithFlags(CUgraphExec *phGraphExec, CUgraph hGraph, unsigned long long flags)
{
	TRY(valid_graph(hGraph));
	REQUIRE(phGraphExec, CUDA_ERROR_INVALID_VALUE);
	pthread_mutex_lock(&g.lock);
	CUresult r = instantiate(hGraph, flags, phGraphExec);
	pthread_mutex_unlock(&g.lock);
	return r;
}

CUresult cuGraphInstantiate_v2(CUgraphExec *phGraphExec, CUgraph hGraph, CUgraphNode *phErrorNode, char *logBuffer, size_t bufferSize)
{
	if (phErrorNode)
		*phErrorNode = NULL;
	if (logBuffer && bufferSize)
		*logBuffer = 0;
	return cuGraphInstantiateWithFlags(phGraphExec, hGraph, 0);
}

CUresult cuGraphInstantiate(CUgraphExec *phGraphExec, CUgraph hGraph, CUgraphNode *phErrorNode, char *logBuffer, size_t bufferSize)
{
	return cuGraphInstantiate_v2(phGraphExec, hGraph, phErrorNode, logBuffer, bufferSize);
}

CUresult cuGraphInstantiateWithParams(CUgraphExec *phGraphExec, CUgraph hGraph, CUDA_GRAPH_INSTANTIATE_PARAMS *p)
{
	REQUIRE(p, CUDA_ERROR_INVALID_VALUE);
	CUresult r = cuGraphInstantiateWithFlags(phGraphExec, hGraph, p->flags);
	p->hErrNode_out = NULL;
	p->result_out = r == CUDA_SUCCESS ? CUDA_GRAPH_INSTANTIATE_SUCCESS :
	                r == CUDA_ERROR_NOT_SUPPORTED ? CUDA_GRAPH_INSTANTIATE_NODE_OPERATION_NOT_SUPPORTED : CUDA_GRAPH_INSTANTIATE_ERROR;
	return r;
}

static CUresult valid(CUgraphExec e)
{
	TRY(ready());
	return is_kind(e, K_EXEC) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuGraphExecGetFlags(CUgraphExec hGraphExec, cuuint64_t *flags)
{
	TRY(valid(hGraphExec));
	REQUIRE(flags, CUDA_ERROR_INVALID_VALUE);
	*flags = hGraphExec->flags & ~(cuuint64_t)CUDA_GRAPH_INSTANTIATE_FLAG_UPLOAD;
	return CUDA_SUCCESS;
}

CUresult cuGraphExecDestroy(CUgraphExec hGraphExec)
{
	TRY(valid(hGraphExec));
	pthread_mutex_lock(&g.lock);
	if (hGraphExec->last && !hGraphExec->last->done)
		wait_mark(hGraphExec->last); /* its memory is in use until then */
	mark_put(hGraphExec->last);
	free_steps(hGraphExec->steps, hGraphExec->count);
	object_free(hGraphExec);
	pthread_mutex_unlock(&g.lock);
	return CUDA_SUCCESS;
}

/* --- changing ---------------------------------------------------------------------------------------- */

static CUgraphExecUpdateResult compare(const struct step *a, const struct step *b)
{
	if (a->type != b->type)
		return CU_GRAPH_EXEC_UPDATE_ERROR_NODE_TYPE_CHANGED;
	if (a->ndeps != b->ndeps)
		return CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED;
	if (a->memory != b->memory || a->freed != b->freed)
		return CU_GRAPH_EXEC_UPDATE_ERROR_NOT_SUPPORTED;
	return CU_GRAPH_EXEC_UPDATE_SUCCESS;
}

static CUresult update(CUgraphExec e, CUgraph graph, CUgraphExecUpdateResultInfo *info)
{
	size_t n = 0, room = count_steps(graph);
	*info = (CUgraphExecUpdateResultInfo){ .result = CU_GRAPH_EXEC_UPDATE_SUCCESS };
	struct step *steps = calloc(room + 1, sizeof *steps);
	REQUIRE(steps, CUDA_ERROR_OUT_OF_MEMORY);
	CUresult r = add_steps(graph, steps, &n);
	if (r != CUDA_SUCCESS)
		info->result = CU_GRAPH_EXEC_UPDATE_ERROR;
	else if (n != e->count)
		info->result = CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED;
	for (size_t i = 0; i < n && info->result == CU_GRAPH_EXEC_UPDATE_SUCCESS; i++) {
		info->result = compare(&e->steps[i], &steps[i]);
		if (info->result != CU_GRAPH_EXEC_UPDATE_SUCCESS)
			info->errorNode = steps[i].node;
	}
	if (info->result != CU_GRAPH_EXEC_UPDATE_SUCCESS) {
		free_steps(steps, n);
		return r != CUDA_SUCCESS ? r : CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE;
	}
	for (size_t i = 0; i < n; i++)
		steps[i].node = e->steps[i].node; /* it is still known by the graph that it was made from */
	free_steps(e->steps, e->count);
	e->steps = steps;
	return CUDA_SUCCESS;
}

CUresult cuGraphExecUpdate_v2(CUgraphExec hGraphExec, CUgraph hGraph, CUgraphExecUpdateResultInfo *resultInfo)
{
	TRY(valid(hGraphExec));
	TRY(valid_graph(hGraph));
	REQUIRE(resultInfo, CUDA_ERROR_INVALID_VALUE);
	pthread_mutex_lock(&g.lock);
	CUresult r = update(hGraphExec, hGraph, resultInfo);
	pthread_mutex_unlock(&g.lock);
	return r;
}

CUresult cuGraphExecUpdate(CUgraphExec hGraphExec, CUgraph hGraph, CUgraphNode *hErrorNode_out, CUgraphExecUpdateResult *updateResult_out)
{
	CUgraphExecUpdateResultInfo info = { 0 };
	REQUIRE(updateResult_out, CUDA_ERROR_INVALID_VALUE);
	CUresult r = cuGraphExecUpdate_v2(hGraphExec, hGraph, &info);
	if (hErrorNode_out)
		*hErrorNode_out = info.errorNode;
	*updateResult_out = info.result;
	return r;
}

/* Puts an op in the place of what the exec does for a node; takes the op. */
static CUresult replace(CUgraphExec e, CUgraphNode node, CUgraphNodeType type, CUresult r, struct op *op)
{
	TRY(r);
	for (size_t i = 0; i < e->count; i++)
		if (e->steps[i].node == node && e->steps[i].type == type) {
			op_discard(e->steps[i].op);
			e->steps[i].op = op;
			return CUDA_SUCCESS;
		}
	op_discard(op);
	return CUDA_ERROR_INVALID_VALUE;
}

#define REPLACE(type, make)                                       \
	do {                                                          \
		struct op *op = NULL;                                     \
		TRY(valid(hGraphExec));                                   \
		pthread_mutex_lock(&g.lock);                              \
		CUresult made = (make);                                   \
		CUresult r = replace(hGraphExec, hNode, type, made, op);  \
		pthread_mutex_unlock(&g.lock);                            \
		return r;                                                 \
	} while (0)

CUresult cuGraphExecKernelNodeSetParams_v2(CUgraphExec hGraphExec, CUgraphNode hNode, const CUDA_KERNEL_NODE_PARAMS *nodeParams)
{
	REPLACE(CU_GRAPH_NODE_TYPE_KERNEL, kernel_node_op(nodeParams, &op));
}

CUresult cuGraphExecKernelNodeSetParams(CUgraphExec hGraphExec, CUgraphNode hNode, const CUDA_KERNEL_NODE_PARAMS_v1 *nodeParams)
{
	CUDA_KERNEL_NODE_PARAMS v2 = { 0 };
	REQUIRE(nodeParams, CUDA_ERROR_INVALID_VALUE);
	memcpy(&v2, nodeParams, sizeof *nodeParams);
	return cuGraphExecKernelNodeSetParams_v2(hGraphExec, hNode, &v2);
}

CUresult cuGraphExecMemcpyNodeSetParams(CUgraphExec hGraphExec, CUgraphNode hNode, const CUDA_MEMCPY3D *copyParams, CUcontext ctx)
{
	(void)ctx;
	REPLACE(CU_GRAPH_NODE_TYPE_MEMCPY, memcpy_node_op(copyParams, &op));
}

CUresult cuGraphExecMemsetNodeSetParams(CUgraphExec hGraphExec, CUgraphNode hNode, const CUDA_MEMSET_NODE_PARAMS *p, CUcontext ctx)
{
	REQUIRE(p && (!ctx || is_kind(ctx, K_CONTEXT)), CUDA_ERROR_INVALID_VALUE);
	REPLACE(CU_GRAPH_NODE_TYPE_MEMSET,
	        fill_op(ctx ? ctx->dev : &g.dev[0], (struct fill){ p->dst, p->pitch, p->width, p->height, p->value, p->elementSize }, &op));
}

CUresult cuGraphExecHostNodeSetParams(CUgraphExec hGraphExec, CUgraphNode hNode, const CUDA_HOST_NODE_PARAMS *p)
{
	REQUIRE(p && p->fn, CUDA_ERROR_INVALID_VALUE);
	REPLACE(CU_GRAPH_NODE_TYPE_HOST, callback_op((struct callback){ .fn = p->fn, .data = p->userData }, &op));
}

/* --- launching --------------------------------------------------------------------------------------- */

/* Allocations and frees count at the call, in their order; if one fails the ones before are taken back. */
static CUresult account(CUgraphExec e)
{
	bool again = e->flags & CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
	for (size_t i = 0; i < e->count; i++) {
		struct step *s = &e->steps[i];
		CUresult r = CUDA_SUCCESS;
		if (s->type == CU_GRAPH_NODE_TYPE_MEM_ALLOC)
			r = graph_memory_use(s->memory, again);
		else if (s->type == CU_GRAPH_NODE_TYPE_MEM_FREE)
			r = graph_memory_free(s->memory);
		if (r == CUDA_SUCCESS)
			continue;
		while (i--)
			if (e->steps[i].type == CU_GRAPH_NODE_TYPE_MEM_ALLOC)
				graph_memory_free(e->steps[i].memory);
		return r;
	}
	return CUDA_SUCCESS;
}

static CUresult submit_mark(CUstream s, struct mark *fires, struct mark *awaits)
{
	struct op *op = op_new(OP_NOW, CU_GRAPH_NODE_TYPE_EMPTY, 0);
	REQUIRE(op, CUDA_ERROR_OUT_OF_MEMORY);
	if (fires)
		fires->refs++;
	if (awaits)
		awaits->refs++;
	op->fires = fires;
	op->awaits = awaits;
	op_submit(s, op);
	return CUDA_SUCCESS;
}

static CUresult submit_event(CUstream s, const struct step *step)
{
	CUevent e = step->event;
	if (step->type == CU_GRAPH_NODE_TYPE_WAIT_EVENT)
		return e->mark && !e->mark->done ? submit_mark(s, NULL, e->mark) : CUDA_SUCCESS;
	struct mark *m = mark_new();
	REQUIRE(m, CUDA_ERROR_OUT_OF_MEMORY);
	mark_put(e->mark);
	e->mark = m;
	return submit_mark(s, m, NULL);
}

static CUresult submit_steps(CUgraphExec e, CUstream s)
{
	for (size_t i = 0; i < e->count; i++) {
		const struct step *step = &e->steps[i];
		if (step->op) {
			struct op *op = op_clone(step->op);
			REQUIRE(op, CUDA_ERROR_OUT_OF_MEMORY);
			op_submit(s, op);
		} else if (step->type == CU_GRAPH_NODE_TYPE_EVENT_RECORD || step->type == CU_GRAPH_NODE_TYPE_WAIT_EVENT) {
			TRY(submit_event(s, step));
		}
	}
	return CUDA_SUCCESS;
}

static CUresult launch(CUgraphExec e, CUstream h)
{
	CUstream s;
	TRY(stream_of(h, &s));
	TRY(usable(s->ctx));
	if (capturing(s))
		return capture_invalidate(s); /* launching while capturing: not simulated */
	if (e->has_memory)
		TRY(account(e));
	if (g.zero_cost && !e->has_host)
		return CUDA_SUCCESS;
	struct mark *end = mark_new();
	REQUIRE(end, CUDA_ERROR_OUT_OF_MEMORY);
	if (e->last && !e->last->done)
		TRY(submit_mark(s, NULL, e->last));
	CUresult r = submit_steps(e, s);
	mark_put(e->last);
	e->last = end;
	submit_mark(s, end, NULL);
	return r;
}

CUresult cuGraphLaunch(CUgraphExec hGraphExec, CUstream hStream)
{
	TRY(valid(hGraphExec));
	pthread_mutex_lock(&g.lock);
	CUresult r = launch(hGraphExec, hStream);
	pthread_mutex_unlock(&g.lock);
	return r;
}

CUresult cuGraphUpload(CUgraphExec hGraphExec, CUstream hStream)
{
	CUstream s;
	TRY(valid(hGraphExec));
	pthread_mutex_lock(&g.lock);
	CUresult r = stream_of(hStream, &s);
	if (r == CUDA_SUCCESS)
		r = upload(hGraphExec);
	pthread_mutex_unlock(&g.lock);
	return r;
}
