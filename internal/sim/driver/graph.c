/* graph.c: graphs as values: nodes, edges, copies. What nodes do is in graphnode.c, launching in graphexec.c. */
#include "graph.h"

#include <stdlib.h>
#include <string.h>

CUresult valid_graph(CUgraph graph)
{
	TRY(ready());
	return is_kind(graph, K_GRAPH) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult valid_node(CUgraphNode n)
{
	TRY(ready());
	return is_kind(n, K_NODE) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult graph_new(CUcontext c, CUgraph *out)
{
	CUgraph graph = object_new(K_GRAPH, sizeof *graph);
	REQUIRE(graph, CUDA_ERROR_OUT_OF_MEMORY);
	graph->ctx = c;
	graph->tail = &graph->first;
	*out = graph;
	return CUDA_SUCCESS;
}

CUresult node_set_deps(CUgraphNode n, const CUgraphNode *deps, size_t ndeps)
{
	CUgraphNode *copy = NULL;
	for (size_t i = 0; i < ndeps; i++)
		REQUIRE(is_kind(deps[i], K_NODE) && deps[i]->graph == n->graph, CUDA_ERROR_INVALID_VALUE);
	if (ndeps) {
		copy = malloc(ndeps * sizeof *copy);
		REQUIRE(copy, CUDA_ERROR_OUT_OF_MEMORY);
		memcpy(copy, deps, ndeps * sizeof *copy);
	}
	free(n->deps);
	n->deps = copy;
	n->ndeps = ndeps;
	return CUDA_SUCCESS;
}

CUresult node_new(CUgraph graph, CUgraphNodeType type, const CUgraphNode *deps, size_t ndeps, CUgraphNode *out)
{
	REQUIRE(deps || !ndeps, CUDA_ERROR_INVALID_VALUE);
	CUgraphNode n = object_new(K_NODE, sizeof *n);
	REQUIRE(n, CUDA_ERROR_OUT_OF_MEMORY);
	n->graph = graph;
	n->type = type;
	CUresult r = node_set_deps(n, deps, ndeps);
	if (r != CUDA_SUCCESS) {
		object_free(n);
		return r;
	}
	*graph->tail = n;
	graph->tail = &n->next;
	graph->count++;
	*out = n;
	return CUDA_SUCCESS;
}

static void clear(CUgraphNode n)
{
	if (n->op)
		op_discard(n->op);
	if (n->child)
		graph_free(n->child);
	if (n->memory)
		graph_memory_put(n->memory);
	free(n->deps);
	object_free(n);
}

void node_free(CUgraphNode n)
{
	CUgraph graph = n->graph;
	for (CUgraphNode *at = &graph->first; *at; at = &(*at)->next)
		if (*at == n) {
			*at = n->next;
			if (!*at)
				graph->tail = at;
			break;
		}
	for (CUgraphNode m = graph->first; m; m = m->next)
		for (size_t i = 0; i < m->ndeps;)
			if (m->deps[i] == n)
				m->deps[i] = m->deps[--m->ndeps];
			else
				i++;
	graph->count--;
	clear(n);
}

void graph_free(CUgraph graph)
{
	for (CUgraphNode n = graph->first, next; n; n = next) {
		next = n->next;
		clear(n);
	}
	object_free(graph);
}

bool node_depends(CUgraphNode n, CUgraphNode on)
{
	for (size_t i = 0; i < n->ndeps; i++)
		if (n->deps[i] == on)
			return true;
	return false;
}

/* Nodes in rounds: each round takes those whose dependencies were all taken before. */
CUresult graph_order(CUgraph graph, CUgraphNode *out)
{
	unsigned walk = ++graph->walk;
	size_t done = 0, before;
	for (CUgraphNode n = graph->first; n; n = n->next)
		n->seen = 0;
	do {
		before = done;
		for (CUgraphNode n = graph->first; n; n = n->next) {
			bool ready_ = n->seen != walk;
			for (size_t i = 0; i < n->ndeps && ready_; i++)
				ready_ = n->deps[i]->seen == walk;
			if (ready_) {
				n->seen = walk;
				out[done++] = n;
			}
		}
	} while (done > before && done < graph->count);
	return done == graph->count ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

static CUresult copy_node(CUgraphNode from, CUgraph to, CUgraphNode *out)
{
	CUgraphNode n;
	TRY(node_new(to, from->type, NULL, 0, &n));
	n->original = from;
	n->memcpy = from->memcpy;
	n->event = from->event;
	n->alloc = from->alloc;
	n->freed = from->freed;
	*out = n;
	if (from->op)
		REQUIRE(n->op = op_clone(from->op), CUDA_ERROR_OUT_OF_MEMORY);
	if (from->child) {
		TRY(graph_clone(from->child, &n->child));
		n->child->parent = n;
	}
	if (from->memory) {
		graph_memory_hold(from->memory);
		n->memory = from->memory;
	}
	return CUDA_SUCCESS;
}

static CUgraphNode find_clone(CUgraph graph, CUgraphNode original)
{
	for (CUgraphNode n = graph->first; n; n = n->next)
		if (n->original == original)
			return n;
	return NULL;
}

CUresult graph_clone(CUgraph from, CUgraph *out)
{
	CUgraph to;
	CUgraphNode n;
	CUresult r = graph_new(from->ctx, &to);
	REQUIRE(r == CUDA_SUCCESS, r);
	for (CUgraphNode f = from->first; f && r == CUDA_SUCCESS; f = f->next)
		r = copy_node(f, to, &n);
	for (CUgraphNode f = from->first; f && r == CUDA_SUCCESS; f = f->next) {
		n = find_clone(to, f);
		r = node_set_deps(n, NULL, 0);
		CUgraphNode *deps = f->ndeps ? malloc(f->ndeps * sizeof *deps) : NULL;
		for (size_t i = 0; i < f->ndeps && deps; i++)
			deps[i] = find_clone(to, f->deps[i]);
		if (f->ndeps)
			r = deps ? node_set_deps(n, deps, f->ndeps) : CUDA_ERROR_OUT_OF_MEMORY;
		free(deps);
	}
	if (r != CUDA_SUCCESS)
		graph_free(to);
	else
		*out = to;
	return r;
}

/* --- the calls --------------------------------------------------------------------------------------- */

CUresult cuGraphCreate(CUgraph *phGraph, unsigned int flags)
{
	TRY(ready());
	REQUIRE(phGraph && flags == 0, CUDA_ERROR_INVALID_VALUE);
	LOCKED(graph_new(tls_current, phGraph));
}

static CUresult destroy(CUgraph graph)
{
	REQUIRE(!graph->parent, CUDA_ERROR_INVALID_VALUE);
	graph_free(graph);
	return CUDA_SUCCESS;
}

CUresult cuGraphDestroy(CUgraph hGraph)
{
	TRY(valid_graph(hGraph));
	LOCKED(destroy(hGraph));
}

CUresult cuGraphClone(CUgraph *phGraphClone, CUgraph originalGraph)
{
	TRY(valid_graph(originalGraph));
	REQUIRE(phGraphClone, CUDA_ERROR_INVALID_VALUE);
	LOCKED(graph_clone(originalGraph, phGraphClone));
}

CUresult cuGraphNodeFindInClone(CUgraphNode *phNode, CUgraphNode hOriginalNode, CUgraph hClonedGraph)
{
	TRY(valid_graph(hClonedGraph));
	TRY(valid_node(hOriginalNode));
	REQUIRE(phNode, CUDA_ERROR_INVALID_VALUE);
	*phNode = find_clone(hClonedGraph, hOriginalNode);
	return *phNode ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

/* Lists are given as far as there is room; without room, only counted. */
struct list { CUgraphNode *out; size_t room, n; };

static void put(struct list *l, CUgraphNode n)
{
	if (l->out && l->n < l->room)
		l->out[l->n] = n;
	l->n++;
}

static CUresult finish(struct list *l, size_t *count)
{
	for (size_t i = l->n; l->out && i < l->room; i++)
		l->out[i] = NULL;
	*count = l->out && l->room < l->n ? l->room : l->n;
	return CUDA_SUCCESS;
}

static CUresult get_nodes(CUgraph graph, CUgraphNode *nodes, size_t *count, bool roots)
{
	TRY(valid_graph(graph));
	REQUIRE(count, CUDA_ERROR_INVALID_VALUE);
	struct list l = { nodes, *count, 0 };
	for (CUgraphNode n = graph->first; n; n = n->next)
		if (!roots || !n->ndeps)
			put(&l, n);
	return finish(&l, count);
}

CUresult cuGraphGetNodes(CUgraph hGraph, CUgraphNode *nodes, size_t *numNodes) { return get_nodes(hGraph, nodes, numNodes, false); }
CUresult cuGraphGetRootNodes(CUgraph hGraph, CUgraphNode *rootNodes, size_t *numRootNodes) { return get_nodes(hGraph, rootNodes, numRootNodes, true); }

CUresult cuGraphGetEdges(CUgraph hGraph, CUgraphNode *from, CUgraphNode *to, size_t *numEdges)
{
	TRY(valid_graph(hGraph));
	REQUIRE(numEdges && !from == !to, CUDA_ERROR_INVALID_VALUE);
	struct list f = { from, *numEdges, 0 }, t = { to, *numEdges, 0 };
	for (CUgraphNode n = hGraph->first; n; n = n->next)
		for (size_t i = 0; i < n->ndeps; i++) {
			put(&f, n->deps[i]);
			put(&t, n);
		}
	finish(&f, numEdges);
	return finish(&t, numEdges);
}

CUresult cuGraphNodeGetDependencies(CUgraphNode hNode, CUgraphNode *dependencies, size_t *numDependencies)
{
	TRY(valid_node(hNode));
	REQUIRE(numDependencies, CUDA_ERROR_INVALID_VALUE);
	struct list l = { dependencies, *numDependencies, 0 };
	for (size_t i = 0; i < hNode->ndeps; i++)
		put(&l, hNode->deps[i]);
	return finish(&l, numDependencies);
}

CUresult cuGraphNodeGetDependentNodes(CUgraphNode hNode, CUgraphNode *dependentNodes, size_t *numDependentNodes)
{
	TRY(valid_node(hNode));
	REQUIRE(numDependentNodes, CUDA_ERROR_INVALID_VALUE);
	struct list l = { dependentNodes, *numDependentNodes, 0 };
	for (CUgraphNode n = hNode->graph->first; n; n = n->next)
		if (node_depends(n, hNode))
			put(&l, n);
	return finish(&l, numDependentNodes);
}

static CUresult add_dependencies(const CUgraphNode *from, const CUgraphNode *to, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		CUgraphNode f = from[i], t = to[i];
		REQUIRE(is_kind(f, K_NODE) && is_kind(t, K_NODE) && f->graph == t->graph && f != t && !node_depends(t, f), CUDA_ERROR_INVALID_VALUE);
		CUgraphNode *deps = malloc((t->ndeps + 1) * sizeof *deps);
		REQUIRE(deps, CUDA_ERROR_OUT_OF_MEMORY);
		if (t->ndeps)
			memcpy(deps, t->deps, t->ndeps * sizeof *deps);
		deps[t->ndeps] = f;
		CUresult r = node_set_deps(t, deps, t->ndeps + 1);
		free(deps);
		TRY(r);
	}
	return CUDA_SUCCESS;
}

CUresult cuGraphAddDependencies(CUgraph hGraph, const CUgraphNode *from, const CUgraphNode *to, size_t numDependencies)
{
	TRY(valid_graph(hGraph));
	REQUIRE((from && to) || !numDependencies, CUDA_ERROR_INVALID_VALUE);
	LOCKED(add_dependencies(from, to, numDependencies));
}

static CUresult remove_dependencies(const CUgraphNode *from, const CUgraphNode *to, size_t n)
{
	for (size_t k = 0; k < n; k++) {
		CUgraphNode t = to[k];
		REQUIRE(is_kind(t, K_NODE) && node_depends(t, from[k]), CUDA_ERROR_INVALID_VALUE);
		for (size_t i = 0; i < t->ndeps; i++)
			if (t->deps[i] == from[k])
				t->deps[i] = t->deps[--t->ndeps];
	}
	return CUDA_SUCCESS;
}

CUresult cuGraphRemoveDependencies(CUgraph hGraph, const CUgraphNode *from, const CUgraphNode *to, size_t numDependencies)
{
	TRY(valid_graph(hGraph));
	REQUIRE((from && to) || !numDependencies, CUDA_ERROR_INVALID_VALUE);
	LOCKED(remove_dependencies(from, to, numDependencies));
}

CUresult cuGraphNodeGetType(CUgraphNode hNode, CUgraphNodeType *type)
{
	TRY(valid_node(hNode));
	REQUIRE(type, CUDA_ERROR_INVALID_VALUE);
	*type = hNode->type;
	return CUDA_SUCCESS;
}

static CUresult destroy_node(CUgraphNode n)
{
	/* As the real driver: what allocates or frees memory cannot be taken out again. */
	REQUIRE(n->type != CU_GRAPH_NODE_TYPE_MEM_ALLOC && n->type != CU_GRAPH_NODE_TYPE_MEM_FREE, CUDA_ERROR_NOT_SUPPORTED);
	node_free(n);
	return CUDA_SUCCESS;
}

CUresult cuGraphDestroyNode(CUgraphNode hNode)
{
	TRY(valid_node(hNode));
	LOCKED(destroy_node(hNode));
}

/* --- the forms with edge data, which is plain here --------------------------------------------------- */

static void plain(CUgraphEdgeData *data, const size_t *n)
{
	if (data)
		memset(data, 0, *n * sizeof *data);
}

CUresult cuGraphGetEdges_v2(CUgraph hGraph, CUgraphNode *from, CUgraphNode *to, CUgraphEdgeData *edgeData, size_t *numEdges)
{
	TRY(cuGraphGetEdges(hGraph, from, to, numEdges));
	plain(edgeData, numEdges);
	return CUDA_SUCCESS;
}

CUresult cuGraphNodeGetDependencies_v2(CUgraphNode hNode, CUgraphNode *dependencies, CUgraphEdgeData *edgeData, size_t *numDependencies)
{
	TRY(cuGraphNodeGetDependencies(hNode, dependencies, numDependencies));
	plain(edgeData, numDependencies);
	return CUDA_SUCCESS;
}

CUresult cuGraphNodeGetDependentNodes_v2(CUgraphNode hNode, CUgraphNode *dependentNodes, CUgraphEdgeData *edgeData, size_t *numDependentNodes)
{
	TRY(cuGraphNodeGetDependentNodes(hNode, dependentNodes, numDependentNodes));
	plain(edgeData, numDependentNodes);
	return CUDA_SUCCESS;
}

CUresult cuGraphAddDependencies_v2(CUgraph hGraph, const CUgraphNode *from, const CUgraphNode *to, const CUgraphEdgeData *edgeData, size_t numDependencies)
{
	(void)edgeData;
	return cuGraphAddDependencies(hGraph, from, to, numDependencies);
}

CUresult cuGraphRemoveDependencies_v2(CUgraph hGraph, const CUgraphNode *from, const CUgraphNode *to, const CUgraphEdgeData *edgeData, size_t numDependencies)
{
	(void)edgeData;
	return cuGraphRemoveDependencies(hGraph, from, to, numDependencies);
}
