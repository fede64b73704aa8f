/* graph.c: capture, graphs, graph memory. */
#include "test.h"

#include <pthread.h>

static uint64_t graph_mem(CUgraphMem_attribute a)
{
	cuuint64_t v;
	OK(cuDeviceGetGraphMemAttribute(0, a, &v));
	return v;
}

static int calls;
static void count(void *arg) { (void)arg; calls++; }

static void by_hand(void)
{
	CUgraph g, child, clone;
	CUgraphNode fill, copy, host, empty, kid, spin, all[16], found;
	CUgraphExec e;
	CUdeviceptr p, q;
	CUstream s;
	size_t n;
	unsigned long long us = 1000;
	unsigned v;
	start();
	OK(cuMemAlloc_v2(&p, 4096));
	OK(cuMemAlloc_v2(&q, 4096));
	OK(cuStreamCreate(&s, CU_STREAM_NON_BLOCKING));
	OK(cuGraphCreate(&g, 0));
	OK(cuGraphCreate(&child, 0));
	OK(cuGraphAddEmptyNode(&empty, child, NULL, 0));
	CUDA_MEMSET_NODE_PARAMS set = { .dst = p, .value = 0x55, .elementSize = 4, .width = 1024, .height = 1 };
	OK(cuGraphAddMemsetNode(&fill, g, NULL, 0, &set, NULL));
	CUDA_MEMCPY3D c = { .srcMemoryType = CU_MEMORYTYPE_DEVICE, .srcDevice = p, .dstMemoryType = CU_MEMORYTYPE_DEVICE, .dstDevice = q,
	                    .WidthInBytes = 4096, .Height = 1, .Depth = 1 };
	OK(cuGraphAddMemcpyNode(&copy, g, &fill, 1, &c, NULL));
	CUDA_HOST_NODE_PARAMS fn = { count, NULL };
	OK(cuGraphAddHostNode(&host, g, &copy, 1, &fn));
	OK(cuGraphAddChildGraphNode(&kid, g, &host, 1, child));
	CUDA_KERNEL_NODE_PARAMS k = { .func = kernel("kerf_spin"), 1, 1, 1, 1, 1, 1, .kernelParams = (void *[]){ &us } };
	OK(cuGraphAddKernelNode_v2(&spin, g, NULL, 0, &k));
	n = 16;
	OK(cuGraphGetNodes(g, all, &n));
	EQ(n, 5);
	n = 16;
	OK(cuGraphGetRootNodes(g, all, &n));
	EQ(n, 2);
	OK(cuGraphGetEdges(g, NULL, NULL, &n));
	EQ(n, 3);
	OK(cuGraphAddDependencies(g, &spin, &fill, 1));
	IS(cuGraphAddDependencies(g, &spin, &fill, 1), CUDA_ERROR_INVALID_VALUE);
	OK(cuGraphClone(&clone, g));
	OK(cuGraphNodeFindInClone(&found, copy, clone));
	CHECK(found != copy);
	OK(cuGraphInstantiateWithFlags(&e, g, 0));
	for (int i = 0; i < 3; i++)
		OK(cuGraphLaunch(e, s));
	OK(cuStreamSynchronize(s));
	EQ(calls, 3);
	OK(cuMemcpyDtoH_v2(&v, q + 4092, 4));
	EQ(v, 0x55);
	EQ(my_use(0)->kernels, 3);
	us = 5000;
	OK(cuGraphExecKernelNodeSetParams_v2(e, spin, &k));
	uint64_t busy = my_use(0)->busy_compute_ns;
	OK(cuGraphLaunch(e, s));
	OK(cuStreamSynchronize(s));
	CHECK(my_use(0)->busy_compute_ns - busy >= 5000000);
	CUgraphExecUpdateResultInfo info;
	set.value = 0x66;
	OK(cuGraphMemsetNodeSetParams(fill, &set));
	OK(cuGraphExecUpdate_v2(e, g, &info));
	OK(cuGraphLaunch(e, s));
	OK(cuStreamSynchronize(s));
	OK(cuMemcpyDtoH_v2(&v, q, 4));
	EQ(v, 0x66);
	OK(cuGraphDestroyNode(host));
	IS(cuGraphExecUpdate_v2(e, g, &info), CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE);
	EQ(info.result, CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED);
	OK(cuGraphExecDestroy(e));
	IS(cuGraphExecDestroy(e), CUDA_ERROR_INVALID_VALUE);
	OK(cuGraphAddDependencies(g, &copy, &spin, 1)); /* a circle */
	IS(cuGraphInstantiateWithFlags(&e, g, 0), CUDA_ERROR_INVALID_VALUE);
	OK(cuGraphDestroy(g));
	OK(cuGraphDestroy(clone));
	OK(cuGraphDestroy(child));
	IS(cuGraphDestroy(child), CUDA_ERROR_INVALID_VALUE);
}

static void captured(void)
{
	CUstream s, t;
	CUevent fork_, join;
	CUgraph g;
	CUgraphExec e;
	CUdeviceptr p;
	CUstreamCaptureStatus status;
	size_t n;
	unsigned v[2];
	start();
	kernel("kerf_spin");
	OK(cuMemAlloc_v2(&p, 8));
	OK(cuMemsetD8_v2(p, 0, 8));
	OK(cuCtxSynchronize());
	OK(cuStreamCreate(&s, CU_STREAM_NON_BLOCKING));
	OK(cuStreamCreate(&t, CU_STREAM_NON_BLOCKING));
	OK(cuEventCreate(&fork_, 0));
	OK(cuEventCreate(&join, 0));
	OK(cuStreamBeginCapture_v2(s, CU_STREAM_CAPTURE_MODE_GLOBAL));
	IS(cuStreamBeginCapture_v2(s, CU_STREAM_CAPTURE_MODE_GLOBAL), CUDA_ERROR_ILLEGAL_STATE);
	OK(cuMemsetD32Async(p, 1, 1, s));
	OK(cuEventRecord(fork_, s));
	OK(cuStreamWaitEvent(t, fork_, 0));
	OK(cuStreamIsCapturing(t, &status));
	EQ(status, CU_STREAM_CAPTURE_STATUS_ACTIVE);
	OK(cuMemsetD32Async(p + 4, 2, 1, t));
	spin_async(t, 100);
	OK(cuEventRecord(join, t));
	OK(cuStreamWaitEvent(s, join, 0));
	OK(cuLaunchHostFunc(s, count, NULL));
	IS(cuEventQuery(join), CUDA_ERROR_CAPTURED_EVENT);
	OK(cuStreamEndCapture(s, &g));
	OK(cuStreamIsCapturing(t, &status));
	EQ(status, CU_STREAM_CAPTURE_STATUS_NONE);
	n = 0;
	OK(cuGraphGetNodes(g, NULL, &n));
	EQ(n, 4);
	OK(cuMemcpyDtoH_v2(v, p, 8));
	EQ(v[0], 0); /* nothing ran yet */
	OK(cuGraphInstantiateWithFlags(&e, g, 0));
	OK(cuGraphDestroy(g));
	OK(cuGraphLaunch(e, s));
	OK(cuStreamSynchronize(s));
	OK(cuMemcpyDtoH_v2(v, p, 8));
	CHECK(v[0] == 1 && v[1] == 2);
	OK(cuGraphExecDestroy(e));
}

static void capture_errors(void)
{
	CUstream s, t, block;
	CUevent e;
	CUgraph g;
	CUdeviceptr p;
	start();
	OK(cuMemAlloc_v2(&p, 8));
	OK(cuStreamCreate(&s, CU_STREAM_NON_BLOCKING));
	OK(cuStreamCreate(&t, CU_STREAM_NON_BLOCKING));
	OK(cuStreamCreate(&block, CU_STREAM_DEFAULT));
	OK(cuEventCreate(&e, 0));
	IS(cuStreamBeginCapture_v2(NULL, CU_STREAM_CAPTURE_MODE_GLOBAL), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
	IS(cuStreamEndCapture(s, &g), CUDA_ERROR_ILLEGAL_STATE);
	OK(cuStreamBeginCapture_v2(s, CU_STREAM_CAPTURE_MODE_GLOBAL)); /* a wait is no work */
	IS(cuStreamSynchronize(s), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
	IS(cuMemsetD32Async(p, 1, 1, s), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
	IS(cuStreamEndCapture(s, &g), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
	CHECK(g == NULL);
	OK(cuStreamBeginCapture_v2(s, CU_STREAM_CAPTURE_MODE_GLOBAL)); /* allocating may wait */
	IS(cuMemAlloc_v2(&p, 8), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
	IS(cuStreamEndCapture(s, &g), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
	OK(cuStreamBeginCapture_v2(s, CU_STREAM_CAPTURE_MODE_RELAXED));
	OK(cuMemAlloc_v2(&p, 8));
	OK(cuStreamEndCapture(s, &g));
	OK(cuGraphDestroy(g));
	OK(cuStreamBeginCapture_v2(s, CU_STREAM_CAPTURE_MODE_GLOBAL)); /* a branch that never comes back */
	OK(cuEventRecord(e, s));
	OK(cuStreamWaitEvent(t, e, 0));
	OK(cuMemsetD32Async(p, 1, 1, t));
	IS(cuStreamEndCapture(t, &g), CUDA_ERROR_STREAM_CAPTURE_UNMATCHED);
	IS(cuStreamEndCapture(s, &g), CUDA_ERROR_STREAM_CAPTURE_UNJOINED);
	OK(cuStreamBeginCapture_v2(block, CU_STREAM_CAPTURE_MODE_RELAXED)); /* the NULL stream would have to wait for it */
	IS(cuMemsetD32Async(p, 1, 1, NULL), CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
	IS(cuStreamEndCapture(block, &g), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
	OK(cuEventCreate(&e, 0));
	OK(cuEventRecord(e, t));
	OK(cuStreamBeginCapture_v2(s, CU_STREAM_CAPTURE_MODE_RELAXED));
	IS(cuStreamWaitEvent(s, e, 0), CUDA_ERROR_STREAM_CAPTURE_ISOLATION);
	IS(cuStreamEndCapture(s, &g), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
	OK(cuCtxSynchronize());
}

static void memory_nodes(void)
{
	CUgraph g;
	CUgraphNode alloc, set, release;
	CUgraphExec e;
	CUstream s;
	start();
	uint64_t used = my_use(0)->used;
	OK(cuStreamCreate(&s, CU_STREAM_NON_BLOCKING));
	OK(cuGraphCreate(&g, 0));
	CUDA_MEM_ALLOC_NODE_PARAMS a = { .poolProps = { .allocType = CU_MEM_ALLOCATION_TYPE_PINNED, .location = { CU_MEM_LOCATION_TYPE_DEVICE, 0 } },
	                                 .bytesize = MiB(10) };
	OK(cuGraphAddMemAllocNode(&alloc, g, NULL, 0, &a));
	CHECK(a.dptr);
	CUDA_MEMSET_NODE_PARAMS m = { .dst = a.dptr, .value = 9, .elementSize = 1, .width = MiB(10), .height = 1 };
	OK(cuGraphAddMemsetNode(&set, g, &alloc, 1, &m, NULL));
	OK(cuGraphAddMemFreeNode(&release, g, &set, 1, a.dptr));
	IS(cuGraphAddMemFreeNode(&release, g, &set, 1, a.dptr), CUDA_ERROR_INVALID_VALUE);
	IS(cuGraphDestroyNode(alloc), CUDA_ERROR_NOT_SUPPORTED);
	OK(cuGraphInstantiateWithFlags(&e, g, 0));
	EQ(my_use(0)->used, used); /* bytes come with the launch */
	OK(cuGraphLaunch(e, s));
	EQ(my_use(0)->used, used + MiB(10));
	EQ(graph_mem(CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT), MiB(10));
	EQ(graph_mem(CU_GRAPH_MEM_ATTR_USED_MEM_CURRENT), 0);
	EQ(graph_mem(CU_GRAPH_MEM_ATTR_USED_MEM_HIGH), MiB(10));
	OK(cuGraphLaunch(e, s));
	OK(cuStreamSynchronize(s));
	EQ(my_use(0)->used, used + MiB(10)); /* kept for the next launch */
	OK(cuDeviceGraphMemTrim(0));
	EQ(my_use(0)->used, used);
	OK(cuGraphUpload(e, s));
	EQ(my_use(0)->used, used + MiB(10));
	OK(cuGraphExecDestroy(e));
	OK(cuGraphDestroy(g));
	EQ(my_use(0)->used, used);
}

/* A graph allocates, the program frees. */
static void memory_that_leaves(void)
{
	CUgraph g;
	CUgraphExec e;
	CUstream s;
	CUdeviceptr p;
	unsigned char v;
	start();
	uint64_t used = my_use(0)->used;
	OK(cuStreamCreate(&s, CU_STREAM_NON_BLOCKING));
	OK(cuStreamBeginCapture_v2(s, CU_STREAM_CAPTURE_MODE_GLOBAL));
	OK(cuMemAllocAsync(&p, MiB(4), s));
	OK(cuMemsetD8Async(p, 42, MiB(4), s));
	OK(cuStreamEndCapture(s, &g));
	OK(cuGraphInstantiateWithFlags(&e, g, 0));
	OK(cuGraphLaunch(e, s));
	IS(cuGraphLaunch(e, s), CUDA_ERROR_INVALID_VALUE); /* not freed yet */
	OK(cuMemcpyDtoHAsync_v2(&v, p + 1000, 1, s));
	EQ(v, 42);
	EQ(graph_mem(CU_GRAPH_MEM_ATTR_USED_MEM_CURRENT), MiB(4));
	OK(cuGraphExecDestroy(e));
	OK(cuGraphDestroy(g));
	EQ(my_use(0)->used, used + MiB(4)); /* it outlives its graph */
	OK(cuMemFreeAsync(p, s));
	OK(cuStreamSynchronize(s));
	EQ(my_use(0)->used, used);
	OK(cuStreamBeginCapture_v2(s, CU_STREAM_CAPTURE_MODE_GLOBAL));
	OK(cuMemAllocAsync(&p, MiB(4), s));
	OK(cuStreamEndCapture(s, &g));
	OK(cuGraphInstantiateWithFlags(&e, g, CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH));
	OK(cuGraphLaunch(e, s));
	OK(cuGraphLaunch(e, s));
	OK(cuStreamSynchronize(s));
	EQ(my_use(0)->used, used + MiB(4));
	OK(cuMemFree_v2(p));
}

static void graph_limit(void)
{
	CUgraph g;
	CUgraphNode n;
	CUgraphExec e;
	CUdeviceptr hog;
	size_t free_, total;
	start();
	OK(cuMemGetInfo_v2(&free_, &total));
	OK(cuMemAlloc_v2(&hog, free_ - MiB(4)));
	OK(cuGraphCreate(&g, 0));
	CUDA_MEM_ALLOC_NODE_PARAMS a = { .poolProps = { .allocType = CU_MEM_ALLOCATION_TYPE_PINNED, .location = { CU_MEM_LOCATION_TYPE_DEVICE, 0 } },
	                                 .bytesize = MiB(10) };
	OK(cuGraphAddMemAllocNode(&n, g, NULL, 0, &a));
	OK(cuGraphInstantiateWithFlags(&e, g, 0));
	IS(cuGraphLaunch(e, NULL), CUDA_ERROR_OUT_OF_MEMORY);
	OK(cuMemFree_v2(hog));
	OK(cuGraphLaunch(e, NULL));
	OK(cuMemFree_v2(a.dptr));
}

const struct test graph_tests[] = {
	{ "by_hand", by_hand }, { "captured", captured }, { "capture_errors", capture_errors }, { "memory_nodes", memory_nodes },
	{ "memory_that_leaves", memory_that_leaves }, { "graph_limit", graph_limit }, { 0 },
};
