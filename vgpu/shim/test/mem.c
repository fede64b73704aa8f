/* mem.c: one class of allocation by one route, up to the limit and back to zero.
 *
 *   mem ROUTE CLASS
 */
#include "pages.h"

#define GRANULE (2ul << 20)
#define CHUNK   (64ul << 20)
#define STEP    (32ul << 20) /* by which a pool grows: at the limit less than that can be left */
#define MOST    4096

static CUdevice dev;
static CUstream stream;
static CUmemoryPool pool;
static CUmemAllocationProp prop = { .type = CU_MEM_ALLOCATION_TYPE_PINNED, .location = { CU_MEM_LOCATION_TYPE_DEVICE, 0 } };

struct item { uint64_t handle, extra; size_t n; };

static CUresult take_linear(struct item *i) { return p_cuMemAlloc_v2((CUdeviceptr *)&i->handle, i->n); }
static CUresult give_linear(struct item *i) { return p_cuMemFree_v2(i->handle); }

static CUresult take_managed(struct item *i) { return p_cuMemAllocManaged((CUdeviceptr *)&i->handle, i->n, CU_MEM_ATTACH_GLOBAL); }

static CUresult take_pitched(struct item *i)
{
	size_t pitch;

	return p_cuMemAllocPitch_v2((CUdeviceptr *)&i->handle, &pitch, 65536, i->n / 65536, 4);
}

static CUresult take_async(struct item *i)
{
	CUresult r = p_cuMemAllocAsync((CUdeviceptr *)&i->handle, i->n, stream);

	return r ? r : p_cuStreamSynchronize(stream);
}

static CUresult take_from_pool(struct item *i)
{
	CUresult r = p_cuMemAllocFromPoolAsync((CUdeviceptr *)&i->handle, i->n, pool, stream);

	return r ? r : p_cuStreamSynchronize(stream);
}

static CUresult give_async(struct item *i)
{
	CUresult r = p_cuMemFreeAsync(i->handle, stream);

	return r ? r : p_cuStreamSynchronize(stream);
}

static CUresult take_vmm(struct item *i) { return p_cuMemCreate((CUmemGenericAllocationHandle *)&i->handle, i->n, &prop, 0); }
static CUresult give_vmm(struct item *i) { return p_cuMemRelease(i->handle); }

/* Released while mapped: it stays taken until it is unmapped. */
static CUresult take_mapped(struct item *i)
{
	CUresult r = take_vmm(i);

	if (r)
		return r;
	CU(cuMemAddressReserve, (CUdeviceptr *)&i->extra, i->n, 0, 0, 0);
	CU(cuMemMap, i->extra, i->n, 0, i->handle, 0);
	return p_cuMemRelease(i->handle);
}

static CUresult give_mapped(struct item *i)
{
	CU(cuMemUnmap, i->extra, i->n);
	return p_cuMemAddressFree(i->extra, i->n);
}

static CUresult take_array(struct item *i)
{
	CUDA_ARRAY_DESCRIPTOR d = { .Width = 1024, .Height = i->n / 4096, .Format = CU_AD_FORMAT_FLOAT, .NumChannels = 1 };

	return p_cuArrayCreate_v2((CUarray *)&i->handle, &d);
}

static CUresult take_array3d(struct item *i)
{
	CUDA_ARRAY3D_DESCRIPTOR d = { .Width = 512, .Height = 512, .Depth = i->n >> 20, .Format = CU_AD_FORMAT_FLOAT, .NumChannels = 1 };

	return p_cuArray3DCreate_v2((CUarray *)&i->handle, &d);
}

static CUresult give_array(struct item *i) { return p_cuArrayDestroy((CUarray)i->handle); }

static CUresult take_mipmap(struct item *i)
{
	CUDA_ARRAY3D_DESCRIPTOR d = { .Width = 1024, .Height = i->n / 4096, .Format = CU_AD_FORMAT_FLOAT, .NumChannels = 1 };

	return p_cuMipmappedArrayCreate((CUmipmappedArray *)&i->handle, &d, 1);
}

static CUresult give_mipmap(struct item *i) { return p_cuMipmappedArrayDestroy((CUmipmappedArray)i->handle); }

/* A graph whose only node allocates: the memory is taken by the launch and kept until it is freed and trimmed. */
static CUresult launch_graph(struct item *i, CUgraph graph, CUdeviceptr p)
{
	CUgraphExec exec;
	CUresult r = p_cuGraphInstantiateWithFlags(&exec, graph, 0);

	if (r == CUDA_SUCCESS) {
		r = p_cuGraphLaunch(exec, stream);
		if (r == CUDA_SUCCESS)
			r = p_cuStreamSynchronize(stream);
		CU(cuGraphExecDestroy, exec);
	}
	CU(cuGraphDestroy, graph);
	i->handle = p;
	return r;
}

static CUresult take_graph(struct item *i)
{
	CUDA_MEM_ALLOC_NODE_PARAMS a = { .poolProps = { .allocType = CU_MEM_ALLOCATION_TYPE_PINNED, .location = { CU_MEM_LOCATION_TYPE_DEVICE, 0 } }, .bytesize = i->n };
	CUgraph graph;
	CUgraphNode node;

	CU(cuGraphCreate, &graph, 0);
	CU(cuGraphAddMemAllocNode, &node, graph, NULL, 0, &a);
	return launch_graph(i, graph, a.dptr);
}

static CUresult take_captured(struct item *i)
{
	CUdeviceptr p;
	CUgraph graph;

	CU(cuStreamBeginCapture_v2, stream, CU_STREAM_CAPTURE_MODE_GLOBAL);
	CU(cuMemAllocAsync, &p, i->n, stream);
	CU(cuStreamEndCapture, stream, &graph);
	return launch_graph(i, graph, p);
}

static CUresult give_graph(struct item *i)
{
	CU(cuMemFree_v2, i->handle);
	return p_cuDeviceGraphMemTrim(dev);
}

static CUresult take_external(struct item *i)
{
	CUDA_EXTERNAL_MEMORY_HANDLE_DESC d = { .type = CU_EXTERNAL_MEMORY_HANDLE_TYPE_OPAQUE_FD, .size = i->n };
	CUresult r;

	d.handle.fd = memfd_create("kerf-test", 0);
	if (d.handle.fd < 0 || ftruncate(d.handle.fd, (off_t)i->n))
		die("memfd", d.handle.fd);
	r = p_cuImportExternalMemory((CUexternalMemory *)&i->handle, &d);
	if (r)
		close(d.handle.fd);
	return r;
}

static CUresult give_external(struct item *i) { return p_cuDestroyExternalMemory((CUexternalMemory)i->handle); }

static const struct class {
	const char *name;
	CUresult (*take)(struct item *), (*give)(struct item *);
} classes[] = {
	{ "linear", take_linear, give_linear },
	{ "managed", take_managed, give_linear },
	{ "pitched", take_pitched, give_linear },
	{ "async", take_async, give_async },
	{ "from-pool", take_from_pool, give_async },
	{ "vmm", take_vmm, give_vmm },
	{ "mapped", take_mapped, give_mapped },
	{ "array", take_array, give_array },
	{ "array3d", take_array3d, give_array },
	{ "mipmap", take_mipmap, give_mipmap },
	{ "graph", take_graph, give_graph },
	{ "captured", take_captured, give_graph },
	{ "external", take_external, give_external },
};

static struct item items[MOST];
static int held;

static CUresult take(const struct class *c, size_t n)
{
	struct item *i = &items[held];
	CUresult r;

	if (held == MOST)
		die("more allocations than the limit has room for", held);
	*i = (struct item){ .n = n };
	r = c->take(i);
	if (r == CUDA_SUCCESS)
		held++;
	agree(c->name);
	return r;
}

static void fill(const struct class *c, size_t n)
{
	CUresult r;

	while ((r = take(c, n)) == CUDA_SUCCESS)
		;
	if (r != CUDA_ERROR_OUT_OF_MEMORY)
		die("refused with another error than out of memory", r);
}

static void drain(const struct class *c)
{
	while (held) {
		CUresult r = c->give(&items[--held]);

		if (r)
			die("give back", r);
	}
	CU(cuCtxSynchronize);
	if (pool)
		CU(cuMemPoolTrimTo, pool, 0);
	agree(c->name);
}

/* By the driver's own count: the pool has never had more than the limit left for it, not for the length of a call either. */
static void never_over(CUmemoryPool of, uint64_t before)
{
	cuuint64_t high = 0;

	CU(cuMemPoolGetAttribute, of, CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH, &high);
	if (high == 0 || before + high > policy->device[0].limit)
		die("the pool once held more than the limit", (long)high);
}

static void to_the_limit(const struct class *c)
{
	uint64_t before = charged(), limit = policy->device[0].limit;
	CUmemoryPool of = pool;

	if (c->take == take_async)
		CU(cuDeviceGetDefaultMemPool, &of, dev);

	for (int round = 0; round < 2; round++) { /* twice: what the first left behind would be missing in the second */
		fill(c, CHUNK);
		fill(c, GRANULE);
		if (of)
			never_over(of, before);
		if (limit - charged() >= (of ? STEP : GRANULE))
			die("refused with room left", (long)(limit - charged()));
		if (limit - before >= (of ? STEP : GRANULE) && !held)
			die("nothing was given", 0);
		drain(c);
		if (charged() != before)
			die("bytes left after the last was freed", (long)(charged() - before));
	}
}

int main(int argc, char **argv)
{
	CUmemPoolProps props = { .allocType = CU_MEM_ALLOCATION_TYPE_PINNED, .location = { CU_MEM_LOCATION_TYPE_DEVICE, 0 } };
	CUcontext ctx;

	if (argc < 3)
		die("usage: mem ROUTE CLASS", 0);
	find_all(argv[1]);
	map_pages();
	open_both_nvml();
	CU(cuInit, 0);
	CU(cuDeviceGet, &dev, 0);
	CU(cuDevicePrimaryCtxRetain, &ctx, dev);
	CU(cuCtxSetCurrent, ctx);
	CU(cuStreamCreate, &stream, 0);
	if (!strcmp(argv[2], "from-pool"))
		CU(cuMemPoolCreate, &pool, &props);
	for (size_t i = 0; i < sizeof classes / sizeof classes[0]; i++)
		if (!strcmp(argv[2], classes[i].name))
			to_the_limit(&classes[i]);
	if (pool)
		CU(cuMemPoolDestroy, pool);
	CU(cuStreamDestroy_v2, stream);
	CU(cuDevicePrimaryCtxRelease_v2, dev);
	if (charged() != 0)
		die("bytes left after the context's end", (long)charged());
	printf("ok\n");
	return 0;
}
