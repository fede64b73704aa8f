/* graphmem.c: memory that graphs allocate. A node has its address from the start; bytes come when the graph is
 * uploaded or first launched, and stay until the device's graph memory is trimmed. Nodes do not share bytes. */
#include "sim.h"

#include <stdlib.h>

struct graph_memory {
	struct graph_memory *next;  /* of the device */
	struct range *range;        /* R_GRAPH; its phys is NULL until backed */
	unsigned refs;              /* nodes, of graphs and of instantiated ones */
	bool used;                  /* allocated by a launch, not freed yet */
};

struct graph_memory *graph_memory_new(CUcontext c, uint64_t size, CUresult *err)
{
	struct graph_memory *m = calloc(1, sizeof *m);
	struct range *r = calloc(1, sizeof *r);
	*err = CUDA_ERROR_OUT_OF_MEMORY;
	if (m && r) {
		*r = (struct range){ .kind = R_GRAPH, .size = size, .span = round_up(size, GRANULE), .id = ++g.next_id, .dev = c->dev, .ctx = c, .graph = m };
		*err = addr_reserve(r->span, GRANULE, 0, &r->base);
	}
	if (*err != CUDA_SUCCESS) {
		free(m);
		free(r);
		return NULL;
	}
	addr_set(r->base, r->span, r);
	m->range = r;
	m->refs = 1;
	m->next = c->dev->graph_memory;
	c->dev->graph_memory = m;
	return m;
}

struct graph_memory *graph_memory_find(CUdeviceptr p)
{
	struct span s;
	return addr_find(p, &s) && s.range->kind == R_GRAPH && s.base == p ? s.range->graph : NULL;
}

CUdeviceptr graph_memory_address(const struct graph_memory *m) { return m->range->base; }
void graph_memory_hold(struct graph_memory *m) { m->refs++; }

static void unback(struct graph_memory *m)
{
	struct range *r = m->range;
	if (!r->phys)
		return;
	addr_unmap(r->base, r->span);
	r->phys->maps--;
	phys_put(r->phys);
	r->phys = NULL;
	r->dev->graph_reserved -= r->span;
}

static void end(struct graph_memory *m)
{
	struct range *r = m->range;
	for (struct graph_memory **at = &r->dev->graph_memory; *at; at = &(*at)->next)
		if (*at == m) {
			*at = m->next;
			break;
		}
	unback(m);
	addr_set(r->base, r->span, NULL);
	addr_unreserve(r->base, r->span);
	free(r);
	free(m);
}

/* What a program still uses outlives the graph that allocated it. */
void graph_memory_put(struct graph_memory *m)
{
	if (--m->refs == 0 && !m->used)
		end(m);
}

CUresult graph_memory_back(struct graph_memory *m)
{
	CUresult err;
	struct range *r = m->range;
	struct simdev *d = r->dev;
	if (r->phys)
		return CUDA_SUCCESS;
	struct phys *p = phys_new(d, r->size, false, &err);
	if (!p && err == CUDA_ERROR_OUT_OF_MEMORY && pool_trim_all(d))
		p = phys_new(d, r->size, false, &err);
	if (!p)
		return err;
	if ((err = addr_map(r->base, r->span, p, 0)) != CUDA_SUCCESS) {
		phys_put(p);
		return err;
	}
	p->maps++;
	r->phys = p;
	d->graph_reserved += r->span;
	if (d->graph_reserved > d->graph_reserved_high)
		d->graph_reserved_high = d->graph_reserved;
	return CUDA_SUCCESS;
}

CUresult graph_memory_use(struct graph_memory *m, bool auto_free)
{
	REQUIRE(!m->used || auto_free, CUDA_ERROR_INVALID_VALUE);
	TRY(graph_memory_back(m));
	struct simdev *d = m->range->dev;
	if (!m->used)
		d->graph_used += m->range->span;
	m->used = true;
	if (d->graph_used > d->graph_used_high)
		d->graph_used_high = d->graph_used;
	return CUDA_SUCCESS;
}

CUresult graph_memory_free(struct graph_memory *m)
{
	REQUIRE(m->used, CUDA_ERROR_INVALID_VALUE);
	m->used = false;
	m->range->dev->graph_used -= m->range->span;
	if (m->refs == 0)
		end(m);
	return CUDA_SUCCESS;
}

/* Work may still run on what a launch has freed; then nothing can be given up. */
bool graph_memory_trim(struct simdev *d)
{
	bool any = false;
	for (CUcontext c = g.contexts; c; c = c->next) {
		if (c->dev != d)
			continue;
		if (!stream_idle(c->legacy))
			return false;
		for (CUstream s = c->streams; s; s = s->next)
			if (!stream_idle(s))
				return false;
	}
	for (struct graph_memory *m = d->graph_memory; m; m = m->next)
		if (!m->used && m->range->phys) {
			unback(m);
			any = true;
		}
	return any;
}

/* --- the calls --------------------------------------------------------------------------------------- */

CUresult cuDeviceGraphMemTrim(CUdevice device)
{
	struct simdev *d;
	TRY(device_of(device, &d));
	pthread_mutex_lock(&g.lock);
	graph_memory_trim(d);
	pthread_mutex_unlock(&g.lock);
	return CUDA_SUCCESS;
}

CUresult cuDeviceGetGraphMemAttribute(CUdevice device, CUgraphMem_attribute attr, void *value)
{
	struct simdev *d;
	REQUIRE(value, CUDA_ERROR_INVALID_VALUE);
	TRY(device_of(device, &d));
	switch (attr) {
	case CU_GRAPH_MEM_ATTR_USED_MEM_CURRENT:     *(cuuint64_t *)value = d->graph_used; return CUDA_SUCCESS;
	case CU_GRAPH_MEM_ATTR_USED_MEM_HIGH:        *(cuuint64_t *)value = d->graph_used_high; return CUDA_SUCCESS;
	case CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT: *(cuuint64_t *)value = d->graph_reserved; return CUDA_SUCCESS;
	case CU_GRAPH_MEM_ATTR_RESERVED_MEM_HIGH:    *(cuuint64_t *)value = d->graph_reserved_high; return CUDA_SUCCESS;
	}
	return CUDA_ERROR_INVALID_VALUE;
}

CUresult cuDeviceSetGraphMemAttribute(CUdevice device, CUgraphMem_attribute attr, void *value)
{
	struct simdev *d;
	REQUIRE(value && *(const cuuint64_t *)value == 0, CUDA_ERROR_INVALID_VALUE);
	TRY(device_of(device, &d));
	if (attr == CU_GRAPH_MEM_ATTR_USED_MEM_HIGH)
		d->graph_used_high = d->graph_used;
	else if (attr == CU_GRAPH_MEM_ATTR_RESERVED_MEM_HIGH)
		d->graph_reserved_high = d->graph_reserved;
	else
		return CUDA_ERROR_INVALID_VALUE;
	return CUDA_SUCCESS;
}
