/* graphnode.c: nodes by kind: adding them, and their parameters. */
#include "graph.h"

#include <string.h>

/* A new node of a graph, under g.lock, with something done to it; nothing is left of it if that fails. */
#define ADD(type, setup)                                                            \
	do {                                                                            \
		TRY(valid_graph(hGraph));                                                   \
		REQUIRE(phGraphNode, CUDA_ERROR_INVALID_VALUE);                             \
		CUgraphNode n;                                                              \
		pthread_mutex_lock(&g.lock);                                                \
		CUresult r = node_new(hGraph, type, dependencies, numDependencies, &n);     \
		if (r == CUDA_SUCCESS) {                                                    \
			r = (setup);                                                            \
			if (r != CUDA_SUCCESS)                                                  \
				node_free(n);                                                       \
			else                                                                    \
				*phGraphNode = n;                                                   \
		}                                                                           \
		pthread_mutex_unlock(&g.lock);                                              \
		return r;                                                                   \
	} while (0)

#define NODE_ARGS CUgraphNode *phGraphNode, CUgraph hGraph, const CUgraphNode *dependencies, size_t numDependencies

/* Puts new work in the place of a node's old. */
static CUresult replace(CUgraphNode n, struct op *op)
{
	if (n->op)
		op_discard(n->op);
	n->op = op;
	return CUDA_SUCCESS;
}

static CUresult of_type(CUgraphNode n, CUgraphNodeType type)
{
	TRY(valid_node(n));
	return n->type == type ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

/* --- kernels ----------------------------------------------------------------------------------------- */

CUresult kernel_node_op(const CUDA_KERNEL_NODE_PARAMS *p, struct op **out)
{
	REQUIRE(p, CUDA_ERROR_INVALID_VALUE);
	const struct launch shape = { p->func ? p->func : (CUfunction)p->kern, { p->gridDimX, p->gridDimY, p->gridDimZ },
	                              { p->blockDimX, p->blockDimY, p->blockDimZ }, p->sharedMemBytes };
	return kernel_op(&shape, p->kernelParams, p->extra, out);
}

static CUresult set_kernel(CUgraphNode n, const CUDA_KERNEL_NODE_PARAMS *p)
{
	struct op *op;
	TRY(kernel_node_op(p, &op));
	return replace(n, op);
}

CUresult cuGraphAddKernelNode_v2(NODE_ARGS, const CUDA_KERNEL_NODE_PARAMS *nodeParams)
{
	ADD(CU_GRAPH_NODE_TYPE_KERNEL, set_kernel(n, nodeParams));
}

/* The first version lacks the last two fields. */
static CUDA_KERNEL_NODE_PARAMS from_v1(const CUDA_KERNEL_NODE_PARAMS_v1 *p)
{
	CUDA_KERNEL_NODE_PARAMS v2 = { 0 };
	memcpy(&v2, p, sizeof *p);
	return v2;
}

CUresult cuGraphAddKernelNode(NODE_ARGS, const CUDA_KERNEL_NODE_PARAMS_v1 *nodeParams)
{
	REQUIRE(nodeParams, CUDA_ERROR_INVALID_VALUE);
	CUDA_KERNEL_NODE_PARAMS v2 = from_v1(nodeParams);
	return cuGraphAddKernelNode_v2(phGraphNode, hGraph, dependencies, numDependencies, &v2);
}

/* The parameter pointers lead into the node, and are good as long as it is not changed. */
CUresult cuGraphKernelNodeGetParams_v2(CUgraphNode hNode, CUDA_KERNEL_NODE_PARAMS *nodeParams)
{
	static __thread void *pointers[MAX_PARAMS];
	TRY(of_type(hNode, CU_GRAPH_NODE_TYPE_KERNEL));
	REQUIRE(nodeParams, CUDA_ERROR_INVALID_VALUE);
	struct launch *l = (struct launch *)hNode->op->arg;
	for (unsigned i = 0; i < l->f->nparams; i++)
		pointers[i] = l->bytes + l->f->param_offset[i];
	*nodeParams = (CUDA_KERNEL_NODE_PARAMS){ .func = l->f, .gridDimX = l->grid[0], .gridDimY = l->grid[1], .gridDimZ = l->grid[2],
	                                         .blockDimX = l->block[0], .blockDimY = l->block[1], .blockDimZ = l->block[2],
	                                         .sharedMemBytes = l->shared, .kernelParams = pointers };
	return CUDA_SUCCESS;
}

CUresult cuGraphKernelNodeGetParams(CUgraphNode hNode, CUDA_KERNEL_NODE_PARAMS_v1 *nodeParams)
{
	CUDA_KERNEL_NODE_PARAMS v2;
	REQUIRE(nodeParams, CUDA_ERROR_INVALID_VALUE);
	TRY(cuGraphKernelNodeGetParams_v2(hNode, &v2));
	memcpy(nodeParams, &v2, sizeof *nodeParams);
	return CUDA_SUCCESS;
}

CUresult cuGraphKernelNodeSetParams_v2(CUgraphNode hNode, const CUDA_KERNEL_NODE_PARAMS *nodeParams)
{
	TRY(of_type(hNode, CU_GRAPH_NODE_TYPE_KERNEL));
	return set_kernel(hNode, nodeParams);
}

CUresult cuGraphKernelNodeSetParams(CUgraphNode hNode, const CUDA_KERNEL_NODE_PARAMS_v1 *nodeParams)
{
	REQUIRE(nodeParams, CUDA_ERROR_INVALID_VALUE);
	CUDA_KERNEL_NODE_PARAMS v2 = from_v1(nodeParams);
	return cuGraphKernelNodeSetParams_v2(hNode, &v2);
}

/* --- copies and fills -------------------------------------------------------------------------------- */

CUresult memcpy_node_op(const CUDA_MEMCPY3D *p, struct op **out)
{
	bool pageable, host;
	REQUIRE(p && p->WidthInBytes && p->Height && p->Depth, CUDA_ERROR_INVALID_VALUE);
	return copy_op_3d(p, out, &pageable, &host);
}

static CUresult set_memcpy(CUgraphNode n, const CUDA_MEMCPY3D *p)
{
	struct op *op;
	TRY(memcpy_node_op(p, &op));
	n->memcpy = *p;
	return replace(n, op);
}

CUresult cuGraphAddMemcpyNode(NODE_ARGS, const CUDA_MEMCPY3D *copyParams, CUcontext ctx)
{
	REQUIRE(!ctx || is_kind(ctx, K_CONTEXT), CUDA_ERROR_INVALID_CONTEXT);
	ADD(CU_GRAPH_NODE_TYPE_MEMCPY, set_memcpy(n, copyParams));
}

CUresult cuGraphMemcpyNodeGetParams(CUgraphNode hNode, CUDA_MEMCPY3D *nodeParams)
{
	TRY(of_type(hNode, CU_GRAPH_NODE_TYPE_MEMCPY));
	REQUIRE(nodeParams, CUDA_ERROR_INVALID_VALUE);
	*nodeParams = hNode->memcpy;
	if (!hNode->memcpy.WidthInBytes) { /* captured: only its extent is known */
		const struct copy *c = (const struct copy *)hNode->op->arg;
		nodeParams->WidthInBytes = c->width;
		nodeParams->Height = c->height;
		nodeParams->Depth = c->depth;
	}
	return CUDA_SUCCESS;
}

CUresult cuGraphMemcpyNodeSetParams(CUgraphNode hNode, const CUDA_MEMCPY3D *nodeParams)
{
	TRY(of_type(hNode, CU_GRAPH_NODE_TYPE_MEMCPY));
	pthread_mutex_lock(&g.lock);
	CUresult r = set_memcpy(hNode, nodeParams);
	pthread_mutex_unlock(&g.lock);
	return r;
}

static CUresult set_memset(CUgraphNode n, const CUDA_MEMSET_NODE_PARAMS *p)
{
	struct op *op;
	REQUIRE(p && (p->elementSize == 1 || p->elementSize == 2 || p->elementSize == 4) && p->width && p->height, CUDA_ERROR_INVALID_VALUE);
	const struct simdev *d = tls_current ? tls_current->dev : &g.dev[0];
	TRY(fill_op(d, (struct fill){ p->dst, p->pitch, p->width, p->height, p->value, p->elementSize }, &op));
	return replace(n, op);
}

CUresult cuGraphAddMemsetNode(NODE_ARGS, const CUDA_MEMSET_NODE_PARAMS *memsetParams, CUcontext ctx)
{
	REQUIRE(!ctx || is_kind(ctx, K_CONTEXT), CUDA_ERROR_INVALID_CONTEXT);
	ADD(CU_GRAPH_NODE_TYPE_MEMSET, set_memset(n, memsetParams));
}

CUresult cuGraphMemsetNodeGetParams(CUgraphNode hNode, CUDA_MEMSET_NODE_PARAMS *nodeParams)
{
	TRY(of_type(hNode, CU_GRAPH_NODE_TYPE_MEMSET));
	REQUIRE(nodeParams, CUDA_ERROR_INVALID_VALUE);
	const struct fill *f = (const struct fill *)hNode->op->arg;
	*nodeParams = (CUDA_MEMSET_NODE_PARAMS){ f->at, f->pitch, f->value, f->element, f->width, f->height };
	return CUDA_SUCCESS;
}

CUresult cuGraphMemsetNodeSetParams(CUgraphNode hNode, const CUDA_MEMSET_NODE_PARAMS *nodeParams)
{
	TRY(of_type(hNode, CU_GRAPH_NODE_TYPE_MEMSET));
	pthread_mutex_lock(&g.lock);
	CUresult r = set_memset(hNode, nodeParams);
	pthread_mutex_unlock(&g.lock);
	return r;
}

/* --- callbacks, children, events, nothing ------------------------------------------------------------ */

static CUresult set_host(CUgraphNode n, const CUDA_HOST_NODE_PARAMS *p)
{
	struct op *op;
	REQUIRE(p && p->fn, CUDA_ERROR_INVALID_VALUE);
	TRY(callback_op((struct callback){ .fn = p->fn, .data = p->userData }, &op));
	return replace(n, op);
}

CUresult cuGraphAddHostNode(NODE_ARGS, const CUDA_HOST_NODE_PARAMS *nodeParams) { ADD(CU_GRAPH_NODE_TYPE_HOST, set_host(n, nodeParams)); }

CUresult cuGraphHostNodeGetParams(CUgraphNode hNode, CUDA_HOST_NODE_PARAMS *nodeParams)
{
	TRY(of_type(hNode, CU_GRAPH_NODE_TYPE_HOST));
	REQUIRE(nodeParams, CUDA_ERROR_INVALID_VALUE);
	const struct callback *c = (const struct callback *)hNode->op->arg;
	*nodeParams = (CUDA_HOST_NODE_PARAMS){ c->fn, c->data };
	return CUDA_SUCCESS;
}

CUresult cuGraphHostNodeSetParams(CUgraphNode hNode, const CUDA_HOST_NODE_PARAMS *nodeParams)
{
	TRY(of_type(hNode, CU_GRAPH_NODE_TYPE_HOST));
	return set_host(hNode, nodeParams);
}

static CUresult set_child(CUgraphNode n, CUgraph child)
{
	REQUIRE(is_kind(child, K_GRAPH) && child != n->graph, CUDA_ERROR_INVALID_VALUE);
	for (CUgraphNode c = child->first; c; c = c->next) /* memory would be allocated twice, by the original and by the copy */
		REQUIRE(!c->memory, CUDA_ERROR_NOT_SUPPORTED);
	TRY(graph_clone(child, &n->child));
	n->child->parent = n;
	return CUDA_SUCCESS;
}

CUresult cuGraphAddChildGraphNode(NODE_ARGS, CUgraph childGraph) { ADD(CU_GRAPH_NODE_TYPE_GRAPH, set_child(n, childGraph)); }

CUresult cuGraphChildGraphNodeGetGraph(CUgraphNode hNode, CUgraph *phGraph)
{
	TRY(of_type(hNode, CU_GRAPH_NODE_TYPE_GRAPH));
	REQUIRE(phGraph, CUDA_ERROR_INVALID_VALUE);
	*phGraph = hNode->child;
	return CUDA_SUCCESS;
}

CUresult cuGraphAddEmptyNode(NODE_ARGS) { ADD(CU_GRAPH_NODE_TYPE_EMPTY, CUDA_SUCCESS); }

static CUresult set_event(CUgraphNode n, CUevent e)
{
	REQUIRE(is_kind(e, K_EVENT), CUDA_ERROR_INVALID_HANDLE);
	n->event = e;
	return CUDA_SUCCESS;
}

CUresult cuGraphAddEventRecordNode(NODE_ARGS, CUevent event) { ADD(CU_GRAPH_NODE_TYPE_EVENT_RECORD, set_event(n, event)); }
CUresult cuGraphAddEventWaitNode(NODE_ARGS, CUevent event) { ADD(CU_GRAPH_NODE_TYPE_WAIT_EVENT, set_event(n, event)); }

static CUresult get_event(CUgraphNode n, CUgraphNodeType type, CUevent *out)
{
	TRY(of_type(n, type));
	REQUIRE(out, CUDA_ERROR_INVALID_VALUE);
	*out = n->event;
	return CUDA_SUCCESS;
}

CUresult cuGraphEventRecordNodeGetEvent(CUgraphNode hNode, CUevent *event_out) { return get_event(hNode, CU_GRAPH_NODE_TYPE_EVENT_RECORD, event_out); }
CUresult cuGraphEventWaitNodeGetEvent(CUgraphNode hNode, CUevent *event_out) { return get_event(hNode, CU_GRAPH_NODE_TYPE_WAIT_EVENT, event_out); }

/* --- memory ------------------------------------------------------------------------------------------ */

static CUresult set_alloc(CUgraphNode n, CUDA_MEM_ALLOC_NODE_PARAMS *p)
{
	CUcontext on = NULL;
	CUresult err;
	REQUIRE(p && p->bytesize && p->poolProps.allocType == CU_MEM_ALLOCATION_TYPE_PINNED, CUDA_ERROR_INVALID_VALUE);
	REQUIRE(p->poolProps.location.type == CU_MEM_LOCATION_TYPE_DEVICE && !p->poolProps.handleTypes, CUDA_ERROR_NOT_SUPPORTED);
	REQUIRE(p->poolProps.location.id >= 0 && p->poolProps.location.id < g.ndev, CUDA_ERROR_INVALID_VALUE);
	for (CUcontext c = g.contexts; c && !on; c = c->next)
		on = c->dev->ordinal == p->poolProps.location.id ? c : NULL;
	REQUIRE(on, CUDA_ERROR_INVALID_CONTEXT);
	n->memory = graph_memory_new(on, p->bytesize, &err);
	TRY(err);
	p->dptr = graph_memory_address(n->memory);
	n->alloc = *p;
	n->alloc.accessDescs = NULL; /* the caller's array; peers are not told apart here */
	n->alloc.accessDescCount = 0;
	return CUDA_SUCCESS;
}

CUresult cuGraphAddMemAllocNode(NODE_ARGS, CUDA_MEM_ALLOC_NODE_PARAMS *nodeParams) { ADD(CU_GRAPH_NODE_TYPE_MEM_ALLOC, set_alloc(n, nodeParams)); }

static CUresult set_free(CUgraphNode n, CUdeviceptr p)
{
	struct graph_memory *m = graph_memory_find(p);
	REQUIRE(m, CUDA_ERROR_INVALID_VALUE);
	for (CUgraphNode other = n->graph->first; other; other = other->next) /* once in a graph */
		REQUIRE(other == n || other->type != CU_GRAPH_NODE_TYPE_MEM_FREE || other->freed != p, CUDA_ERROR_INVALID_VALUE);
	graph_memory_hold(m);
	n->memory = m;
	n->freed = p;
	return CUDA_SUCCESS;
}

CUresult cuGraphAddMemFreeNode(NODE_ARGS, CUdeviceptr dptr) { ADD(CU_GRAPH_NODE_TYPE_MEM_FREE, set_free(n, dptr)); }

CUresult cuGraphMemAllocNodeGetParams(CUgraphNode hNode, CUDA_MEM_ALLOC_NODE_PARAMS *params_out)
{
	TRY(of_type(hNode, CU_GRAPH_NODE_TYPE_MEM_ALLOC));
	REQUIRE(params_out, CUDA_ERROR_INVALID_VALUE);
	*params_out = hNode->alloc;
	return CUDA_SUCCESS;
}

CUresult cuGraphMemFreeNodeGetParams(CUgraphNode hNode, CUdeviceptr *dptr_out)
{
	TRY(of_type(hNode, CU_GRAPH_NODE_TYPE_MEM_FREE));
	REQUIRE(dptr_out, CUDA_ERROR_INVALID_VALUE);
	*dptr_out = hNode->freed;
	return CUDA_SUCCESS;
}

/* --- any kind ---------------------------------------------------------------------------------------- */

CUresult cuGraphAddNode(NODE_ARGS, CUgraphNodeParams *p)
{
	TRY(valid_graph(hGraph));
	REQUIRE(phGraphNode && p, CUDA_ERROR_INVALID_VALUE);
	switch (p->type) {
	case CU_GRAPH_NODE_TYPE_KERNEL:
		return cuGraphAddKernelNode_v2(phGraphNode, hGraph, dependencies, numDependencies, (const CUDA_KERNEL_NODE_PARAMS *)&p->kernel);
	case CU_GRAPH_NODE_TYPE_MEMCPY:
		return cuGraphAddMemcpyNode(phGraphNode, hGraph, dependencies, numDependencies, &p->memcpy.copyParams, p->memcpy.copyCtx);
	case CU_GRAPH_NODE_TYPE_MEMSET:
		return cuGraphAddMemsetNode(phGraphNode, hGraph, dependencies, numDependencies, (const CUDA_MEMSET_NODE_PARAMS *)&p->memset, p->memset.ctx);
	case CU_GRAPH_NODE_TYPE_HOST:
		return cuGraphAddHostNode(phGraphNode, hGraph, dependencies, numDependencies, (const CUDA_HOST_NODE_PARAMS *)&p->host);
	case CU_GRAPH_NODE_TYPE_GRAPH:
		return cuGraphAddChildGraphNode(phGraphNode, hGraph, dependencies, numDependencies, p->graph.graph);
	case CU_GRAPH_NODE_TYPE_EMPTY:
		return cuGraphAddEmptyNode(phGraphNode, hGraph, dependencies, numDependencies);
	case CU_GRAPH_NODE_TYPE_WAIT_EVENT:
		return cuGraphAddEventWaitNode(phGraphNode, hGraph, dependencies, numDependencies, p->eventWait.event);
	case CU_GRAPH_NODE_TYPE_EVENT_RECORD:
		return cuGraphAddEventRecordNode(phGraphNode, hGraph, dependencies, numDependencies, p->eventRecord.event);
	case CU_GRAPH_NODE_TYPE_MEM_ALLOC:
		return cuGraphAddMemAllocNode(phGraphNode, hGraph, dependencies, numDependencies, (CUDA_MEM_ALLOC_NODE_PARAMS *)&p->alloc);
	case CU_GRAPH_NODE_TYPE_MEM_FREE:
		return cuGraphAddMemFreeNode(phGraphNode, hGraph, dependencies, numDependencies, p->free.dptr);
	default:
		return CUDA_ERROR_NOT_SUPPORTED; /* semaphores, batches of values, conditions */
	}
}

CUresult cuGraphAddNode_v2(CUgraphNode *phGraphNode, CUgraph hGraph, const CUgraphNode *dependencies, const CUgraphEdgeData *dependencyData,
                           size_t numDependencies, CUgraphNodeParams *nodeParams)
{
	(void)dependencyData;
	return cuGraphAddNode(phGraphNode, hGraph, dependencies, numDependencies, nodeParams);
}
