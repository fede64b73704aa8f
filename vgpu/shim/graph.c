/* graph.c: memory of graphs with allocation nodes. The driver takes it when such a graph is launched or uploaded,
 * keeps it for the next launch, and says per device how much it holds (its reserved bytes): that is what is charged.
 *
 * Which graphs allocate is found once, when one is instantiated, and only in a process that has made an allocation
 * node at all: for every other the launch of a graph stays the gate and a branch.
 */
#include "shim.h"

#include <sys/mman.h>

#define MAX_GPUS  32
#define MAX_DEPTH 8 /* child graphs within child graphs */

static uint32_t graph_memory;      /* an allocation node exists or has existed */
static uint64_t charged[MAX_GPUS]; /* under graphs_lock */
static struct lock graphs_lock;

void kerf_note_graph_memory(void)
{
	store_relaxed(&graph_memory, 1);
}

static uint64_t attribute(struct device *d, CUgraphMem_attribute a)
{
	cuuint64_t v = 0;

	return REAL(cuDeviceGetGraphMemAttribute)(d->ordinal, a, &v) ? 0 : v;
}

/* With graphs_lock held. Memory that is there is charged even over the limit. */
static void refresh(struct device *d)
{
	uint64_t now = attribute(d, CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT), *was = &charged[d->ordinal];

	if (now > *was)
		kerf_charge_anyway(d, now - *was);
	else
		kerf_discharge(d, *was - now);
	*was = now;
}

void kerf_graphs_refresh(void)
{
	if (likely(!load_relaxed(&graph_memory)))
		return;
	lock(&graphs_lock);
	for (int i = 0; i < kerf_device_count(); i++)
		refresh(kerf_device(i));
	unlock(&graphs_lock);
}

/* With graphs_lock held. */
static void trim(struct device *d)
{
	REAL(cuDeviceGraphMemTrim)(d->ordinal);
	refresh(d);
}

void kerf_graphs_trim(struct device *d)
{
	if (!load_relaxed(&graph_memory) || !trylock(&graphs_lock))
		return;
	trim(d);
	unlock(&graphs_lock);
}

/* --- what a graph may take ------------------------------------------------------------------------------- */

struct need { uint64_t bytes[MAX_GPUS]; };

/* Room for a parameter struct of a later CUDA version. */
union alloc_params { CUDA_MEM_ALLOC_NODE_PARAMS params; char room[512]; };

static void need_of(CUgraph graph, struct need *need, int depth);

static void need_of_node(CUgraphNode node, struct need *need, int depth)
{
	CUgraphNodeType type;
	union alloc_params a;
	CUgraph child;

	if (REAL(cuGraphNodeGetType)(node, &type))
		return;
	if (type == CU_GRAPH_NODE_TYPE_GRAPH && depth < MAX_DEPTH && !REAL(cuGraphChildGraphNodeGetGraph)(node, &child))
		need_of(child, need, depth + 1);
	if (type == CU_GRAPH_NODE_TYPE_MEM_ALLOC && !REAL(cuGraphMemAllocNodeGetParams)(node, &a.params)) {
		int id = a.params.poolProps.location.id;

		if (a.params.poolProps.location.type == CU_MEM_LOCATION_TYPE_DEVICE && id >= 0 && id < MAX_GPUS)
			need->bytes[id] += kerf_pages(a.params.bytesize);
	}
}

static void need_of(CUgraph graph, struct need *need, int depth)
{
	CUgraphNode *nodes;
	size_t n = 0, bytes;

	if (REAL(cuGraphGetNodes)(graph, NULL, &n) || n == 0)
		return;
	bytes = n * sizeof *nodes;
	nodes = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (nodes == MAP_FAILED)
		return;
	if (!REAL(cuGraphGetNodes)(graph, nodes, &n))
		for (size_t i = 0; i < n; i++)
			need_of_node(nodes[i], need, depth);
	munmap(nodes, bytes);
}

static uint64_t exec_key(CUgraphExec exec, int ordinal)
{
	return (uintptr_t)exec * MAX_GPUS + (unsigned)ordinal;
}

static void forget(CUgraphExec exec)
{
	struct book b;

	for (int i = 0; i < kerf_device_count(); i++)
		book_take(BOOK_EXEC, exec_key(exec, i), &b);
}

/* A charge made before the driver's call, to be corrected after it to what the driver holds. */
struct charge { struct device *d; uint64_t ahead; };

/* book.extra of an executable graph */
#define LAUNCHED  1u
#define AUTO_FREE 2u /* what is left of its last launch is freed by the next */

/* Whether a graph finds its memory in what the driver holds: it did before, and that much is not in use, or is in
 * use by its own last launch. Whose use it is cannot be asked; taking another graph's for this one's costs a charge
 * after the launch instead of before it. */
static bool finds_its_memory(struct device *d, uint64_t bytes, uint64_t history)
{
	uint64_t used = attribute(d, CU_GRAPH_MEM_ATTR_USED_MEM_CURRENT), has = charged[d->ordinal];

	if (history & AUTO_FREE && used >= bytes)
		used -= bytes;
	return history & LAUNCHED && has >= used + bytes;
}

/* With graphs_lock held. A first launch is charged in full, since the driver need not reuse what other graphs left;
 * where there is no room, that is given back first. */
static CUresult charge_ahead(struct charge *c, uint64_t bytes, uint64_t history)
{
	refresh(c->d);
	c->ahead = 0;
	if (finds_its_memory(c->d, bytes, history))
		return CUDA_SUCCESS;
	if (kerf_charge(c->d, bytes)) {
		trim(c->d);
		if (kerf_charge(c->d, bytes))
			return CUDA_ERROR_OUT_OF_MEMORY;
	}
	c->ahead = bytes;
	return CUDA_SUCCESS;
}

static void settle(const struct charge *c)
{
	charged[c->d->ordinal] += c->ahead;
	refresh(c->d);
}

/* --- instantiate -------------------------------------------------------------------------------------------- */

/* One of the three calls that make an executable graph. */
struct maker {
	real_on_instantiate plain;
	real_on_instantiate_flags with_flags;
	real_on_instantiate_params with_params;
	CUgraphExec *exec;
	CUgraph graph;
	CUgraphNode *node;
	char *log;
	size_t n;
	unsigned long long flags;
	CUDA_GRAPH_INSTANTIATE_PARAMS *params;
};

static CUresult make(const struct maker *m)
{
	if (m->plain)
		return m->plain(m->exec, m->graph, m->node, m->log, m->n);
	if (m->with_flags)
		return m->with_flags(m->exec, m->graph, m->flags);
	return m->with_params(m->exec, m->graph, m->params);
}

static CUresult record(CUgraphExec exec, const struct need *need, unsigned long long flags)
{
	for (int i = 0; i < kerf_device_count(); i++) {
		struct book b = { .key = exec_key(exec, i), .kind = BOOK_EXEC, .ordinal = i, .bytes = need->bytes[i] };

		b.extra = flags & CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH ? AUTO_FREE : 0;
		if (b.bytes && !book_put(&b)) {
			forget(exec);
			REAL(cuGraphExecDestroy)(exec);
			return CUDA_ERROR_OUT_OF_MEMORY;
		}
	}
	return CUDA_SUCCESS;
}

static CUresult instantiate(const struct maker *m)
{
	struct need need = { { 0 } };
	struct charge charges[MAX_GPUS];
	int n = 0;
	CUresult r = CUDA_SUCCESS;

	if (likely(!load_relaxed(&graph_memory)))
		return make(m);
	need_of(m->graph, &need, 0);
	lock(&graphs_lock);
	if (m->flags & CUDA_GRAPH_INSTANTIATE_FLAG_UPLOAD)
		for (int i = 0; i < kerf_device_count() && r == CUDA_SUCCESS; i++)
			if (need.bytes[i]) {
				charges[n].d = kerf_device(i);
				r = charge_ahead(&charges[n], need.bytes[i], 0);
				n += r == CUDA_SUCCESS;
			}
	if (r == CUDA_SUCCESS)
		r = make(m);
	while (n)
		settle(&charges[--n]);
	unlock(&graphs_lock);
	return r ? r : record(*m->exec, &need, m->flags);
}

CUresult on_instantiate(real_on_instantiate real, CUgraphExec *exec, CUgraph graph, CUgraphNode *node, char *log, size_t n)
{
	struct maker m = { .plain = real, .exec = exec, .graph = graph, .node = node, .log = log, .n = n };

	return instantiate(&m);
}

CUresult on_instantiate_flags(real_on_instantiate_flags real, CUgraphExec *exec, CUgraph graph, unsigned long long flags)
{
	struct maker m = { .with_flags = real, .exec = exec, .graph = graph, .flags = flags };

	return instantiate(&m);
}

CUresult on_instantiate_params(real_on_instantiate_params real, CUgraphExec *exec, CUgraph graph, CUDA_GRAPH_INSTANTIATE_PARAMS *params)
{
	struct maker m = { .with_params = real, .exec = exec, .graph = graph, .params = params };

	if (params)
		m.flags = params->flags;
	return instantiate(&m);
}

/* --- launch, upload, destroy --------------------------------------------------------------------------------- */

/* After the driver took the launch: one that was refused left no memory for the next to find. */
static void remember(CUgraphExec exec)
{
	struct book b;

	for (int i = 0; i < kerf_device_count(); i++)
		if (book_get(BOOK_EXEC, exec_key(exec, i), &b)) {
			b.extra |= LAUNCHED;
			book_put(&b);
		}
}

CUresult on_graph_launch(real_on_graph_launch real, CUgraphExec exec, CUstream stream)
{
	struct charge charges[MAX_GPUS];
	CUresult r = CUDA_SUCCESS;
	struct book b;
	int n = 0;

	if (likely(!load_relaxed(&graph_memory)))
		return real(exec, stream);
	lock(&graphs_lock);
	for (int i = 0; i < kerf_device_count() && r == CUDA_SUCCESS; i++) {
		if (!book_get(BOOK_EXEC, exec_key(exec, i), &b))
			continue;
		charges[n].d = kerf_device(i);
		r = charge_ahead(&charges[n], b.bytes, b.extra);
		n += r == CUDA_SUCCESS;
	}
	if (r == CUDA_SUCCESS)
		r = real(exec, stream);
	if (r == CUDA_SUCCESS)
		remember(exec);
	while (n)
		settle(&charges[--n]);
	unlock(&graphs_lock);
	return r;
}

CUresult on_exec_destroy(real_on_exec_destroy real, CUgraphExec exec)
{
	CUresult r;

	if (load_relaxed(&graph_memory))
		forget(exec);
	r = real(exec);
	kerf_graphs_refresh();
	return r;
}

CUresult on_graph_trim(real_on_graph_trim real, CUdevice dev)
{
	CUresult r = real(dev);

	kerf_graphs_refresh();
	return r;
}

CUresult on_add_mem_node(real_on_add_mem_node real, CUgraphNode *node, CUgraph graph, const CUgraphNode *deps, size_t n, CUDA_MEM_ALLOC_NODE_PARAMS *params)
{
	kerf_note_graph_memory();
	return real(node, graph, deps, n, params);
}

CUresult on_add_node(real_on_add_node real, CUgraphNode *node, CUgraph graph, const CUgraphNode *deps, size_t n, CUgraphNodeParams *params)
{
	if (params && params->type == CU_GRAPH_NODE_TYPE_MEM_ALLOC)
		kerf_note_graph_memory();
	return real(node, graph, deps, n, params);
}

CUresult on_add_node_v2(real_on_add_node_v2 real, CUgraphNode *node, CUgraph graph, const CUgraphNode *deps, const CUgraphEdgeData *edges, size_t n, CUgraphNodeParams *params)
{
	if (params && params->type == CU_GRAPH_NODE_TYPE_MEM_ALLOC)
		kerf_note_graph_memory();
	return real(node, graph, deps, edges, n, params);
}
