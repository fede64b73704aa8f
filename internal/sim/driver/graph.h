/* graph.h: graphs, their nodes, and what is made of them to be launched. */
#ifndef KERF_SIM_GRAPH_H
#define KERF_SIM_GRAPH_H

#include "sim.h"

struct CUgraphNode_st {
	struct object o;
	CUgraph graph;
	CUgraphNode next;           /* in the graph, in order of creation */
	CUgraphNodeType type;
	CUgraphNode *deps; size_t ndeps;
	CUgraphNode original;       /* what this was cloned from */
	unsigned seen;              /* for walks */
	struct op *op;              /* work: kernel, memcpy, memset, host, value; else NULL */
	CUDA_MEMCPY3D memcpy;       /* as asked for; zero where captured */
	CUevent event;
	CUgraph child;              /* a clone, owned */
	struct graph_memory *memory; /* allocated or freed here; held. NULL in a free node of other memory */
	CUDA_MEM_ALLOC_NODE_PARAMS alloc;
	CUdeviceptr freed;
};

struct CUgraph_st {
	struct object o;
	CUcontext ctx;
	CUgraphNode first, *tail;
	size_t count;
	CUgraphNode parent;         /* the node whose child this is */
	unsigned walk;
};

struct step { /* one node of an instantiated graph, children dissolved */
	CUgraphNode node;           /* of the graph that it was made from; may be gone */
	CUgraphNodeType type;
	size_t ndeps;
	struct op *op;
	CUevent event;
	struct graph_memory *memory;
	CUdeviceptr freed;
};

struct CUgraphExec_st {
	struct object o;
	CUcontext ctx;
	cuuint64_t flags;
	struct step *steps;
	size_t count;
	bool has_memory, has_host;
	struct mark *last;          /* end of the launch before: launches of one exec follow each other */
};

/* All under g.lock. */
CUresult graph_new(CUcontext c, CUgraph *out);
void graph_free(CUgraph graph);
CUresult graph_clone(CUgraph from, CUgraph *out);
CUresult node_new(CUgraph graph, CUgraphNodeType type, const CUgraphNode *deps, size_t ndeps, CUgraphNode *out);
void node_free(CUgraphNode n); /* and takes it out of its graph */
CUresult node_set_deps(CUgraphNode n, const CUgraphNode *deps, size_t ndeps);
bool node_depends(CUgraphNode n, CUgraphNode on); /* directly */
CUresult graph_order(CUgraph graph, CUgraphNode *out); /* count nodes, each after what it depends on; INVALID_VALUE for a circle */
CUresult valid_graph(CUgraph graph);
CUresult valid_node(CUgraphNode n);
CUresult memcpy_node_op(const CUDA_MEMCPY3D *p, struct op **out);
CUresult kernel_node_op(const CUDA_KERNEL_NODE_PARAMS *p, struct op **out);

#endif
