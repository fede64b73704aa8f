/* memory.c: linear, pitched, managed and page-locked memory; copies and fills; pointers. */
#include "test.h"

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>

static void linear(void)
{
	CUdeviceptr p, q, base;
	size_t free0, free1, total, size;
	uint64_t used;
	start();
	used = my_use(0)->used;
	OK(cuMemGetInfo_v2(&free0, &total));
	EQ(total, gpu(0)->facts.memory_total - gpu(0)->facts.memory_reserved);
	OK(cuMemAlloc_v2(&p, MiB(1)));
	EQ(my_use(0)->used, used + MiB(2)); /* granules */
	OK(cuMemGetInfo_v2(&free1, NULL));
	EQ(free0 - free1, MiB(2));
	OK(cuMemAlloc_v2(&q, MiB(3) + 1));
	EQ(my_use(0)->used, used + MiB(6));
	OK(cuMemGetAddressRange_v2(&base, &size, q + 12345));
	EQ(base, q);
	EQ(size, MiB(3) + 1);
	IS(cuMemFree_v2(p + 512), CUDA_ERROR_INVALID_VALUE);
	OK(cuMemFree_v2(p));
	IS(cuMemFree_v2(p), CUDA_ERROR_INVALID_VALUE);
	OK(cuMemFree_v2(q));
	OK(cuMemFree_v2(0));
	EQ(my_use(0)->used, used);
	IS(cuMemAlloc_v2(&p, 0), CUDA_ERROR_INVALID_VALUE);
	IS(cuMemAlloc_v2(NULL, 1), CUDA_ERROR_INVALID_VALUE);
	IS(cuMemFree_v2(0x12345000), CUDA_ERROR_INVALID_VALUE);
	IS(cuMemAlloc_v2(&p, total), CUDA_ERROR_OUT_OF_MEMORY);
	OK(cuMemAlloc_v2(&p, free0 / MiB(2) * MiB(2)));
	IS(cuMemAlloc_v2(&q, 1), CUDA_ERROR_OUT_OF_MEMORY); /* less than a granule is left */
	OK(cuMemGetInfo_v2(&free1, NULL));
	CHECK(free1 < MiB(2));
	EQ(my_use(0)->refused, 2);
	OK(cuMemFree_v2(p));
	EQ(my_use(0)->used, used);
}

static void small(void)
{
	enum { N = 5000 };
	static CUdeviceptr p[N];
	uint64_t used;
	start();
	used = my_use(0)->used;
	for (int i = 0; i < N; i++) {
		OK(cuMemAlloc_v2(&p[i], 1000));
		EQ(p[i] % 512, 0);
		OK(cuMemsetD32_v2(p[i], (unsigned)i, 250));
	}
	EQ(my_use(0)->used - used, MiB(2) * ((N + 2047) / 2048)); /* 1 KiB each of blocks of 2 MiB */
	for (int i = 0; i < N; i++) {
		unsigned v[250];
		OK(cuMemcpyDtoH_v2(v, p[i], sizeof v));
		CHECK(v[0] == (unsigned)i && v[249] == (unsigned)i);
	}
	for (int i = 0; i < N; i += 2)
		OK(cuMemFree_v2(p[i]));
	for (int i = 0; i < N; i += 2)
		OK(cuMemAlloc_v2(&p[i], 512));
	for (int i = 0; i < N; i++)
		OK(cuMemFree_v2(p[i]));
	EQ(my_use(0)->used, used);
}

static void pitched(void)
{
	CUdeviceptr p;
	size_t pitch;
	char in[10 * 100], out[10 * 100];
	start();
	OK(cuMemAllocPitch_v2(&p, &pitch, 100, 10, 4));
	EQ(pitch % 512, 0);
	for (size_t i = 0; i < sizeof in; i++)
		in[i] = (char)(i * 7);
	CUDA_MEMCPY2D to = { .srcMemoryType = CU_MEMORYTYPE_HOST, .srcHost = in, .srcPitch = 100, .dstMemoryType = CU_MEMORYTYPE_DEVICE,
	                     .dstDevice = p, .dstPitch = pitch, .WidthInBytes = 100, .Height = 10 };
	OK(cuMemcpy2D_v2(&to));
	CUDA_MEMCPY2D from = { .srcMemoryType = CU_MEMORYTYPE_DEVICE, .srcDevice = p, .srcPitch = pitch, .dstMemoryType = CU_MEMORYTYPE_HOST,
	                       .dstHost = out, .dstPitch = 100, .WidthInBytes = 100, .Height = 10 };
	OK(cuMemcpy2DUnaligned_v2(&from));
	CHECK(memcmp(in, out, sizeof in) == 0);
	OK(cuMemsetD2D8_v2(p, pitch, 9, 100, 10));
	OK(cuMemcpy2D_v2(&from));
	for (size_t i = 0; i < sizeof out; i++)
		CHECK(out[i] == 9);
	IS(cuMemAllocPitch_v2(&p, &pitch, 100, 10, 3), CUDA_ERROR_INVALID_VALUE);
	from.srcPitch = 50;
	IS(cuMemcpy2D_v2(&from), CUDA_ERROR_INVALID_VALUE);
	OK(cuMemFree_v2(p));
}

static void managed(void)
{
	CUdeviceptr p;
	int is;
	uint64_t used;
	start();
	used = my_use(0)->used;
	OK(cuMemAllocManaged(&p, MiB(1) + 1, CU_MEM_ATTACH_GLOBAL));
	EQ(my_use(0)->used, used + MiB(2));
	EQ(my_use(0)->managed, MiB(2));
	((char *)p)[MiB(1)] = 5; /* the CPU reaches it */
	OK(cuMemsetD8_v2(p, 7, 16));
	OK(cuCtxSynchronize());
	CHECK(((char *)p)[15] == 7);
	OK(cuPointerGetAttribute(&is, CU_POINTER_ATTRIBUTE_IS_MANAGED, p + 3));
	EQ(is, 1);
	OK(cuMemAdvise(p, 100, CU_MEM_ADVISE_SET_PREFERRED_LOCATION, 0));
	OK(cuMemRangeGetAttribute(&is, sizeof is, CU_MEM_RANGE_ATTRIBUTE_PREFERRED_LOCATION, p, 100));
	EQ(is, 0);
	OK(cuMemPrefetchAsync(p, MiB(1), CU_DEVICE_CPU, NULL));
	OK(cuMemRangeGetAttribute(&is, sizeof is, CU_MEM_RANGE_ATTRIBUTE_LAST_PREFETCH_LOCATION, p, 100));
	EQ(is, CU_DEVICE_CPU);
	IS(cuMemPrefetchAsync(p, MiB(3), 0, NULL), CUDA_ERROR_INVALID_VALUE);
	IS(cuMemAdvise(p, 100, CU_MEM_ADVISE_SET_PREFERRED_LOCATION, 99), CUDA_ERROR_INVALID_DEVICE);
	OK(cuStreamAttachMemAsync(NULL, p, 0, CU_MEM_ATTACH_GLOBAL));
	IS(cuMemAllocManaged(&p, 1, 99), CUDA_ERROR_INVALID_VALUE);
	OK(cuMemFree_v2(p));
	EQ(my_use(0)->used, used);
	EQ(my_use(0)->managed, 0);
}

static void pinned(void)
{
	void *h;
	CUdeviceptr d;
	unsigned flags, type;
	uint64_t used;
	static char page[8192];
	start();
	used = my_use(0)->used;
	OK(cuMemHostAlloc(&h, 5000, CU_MEMHOSTALLOC_PORTABLE));
	memset(h, 3, 5000);
	EQ(my_use(0)->used, used);
	OK(cuMemHostGetDevicePointer_v2(&d, h, 0));
	OK(cuMemHostGetFlags(&flags, h));
	OK(cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, d));
	EQ(type, CU_MEMORYTYPE_HOST);
	OK(cuMemFreeHost(h));
	IS(cuMemFreeHost(h), CUDA_ERROR_INVALID_VALUE);
	OK(cuMemHostRegister_v2(page, sizeof page, 0));
	IS(cuMemHostRegister_v2(page, sizeof page, 0), CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
	OK(cuMemHostUnregister(page));
	IS(cuMemHostUnregister(page), CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED);
}

static sigjmp_buf fault;
static void on_fault(int sig) { (void)sig; siglongjmp(fault, 1); }

static void wild_use_faults(void)
{
	CUdeviceptr p;
	start();
	OK(cuMemAlloc_v2(&p, MiB(2)));
	signal(SIGSEGV, on_fault);
	if (sigsetjmp(fault, 1) == 0) {
		*(volatile char *)p = 1;
		FAIL("a device pointer can be written by the CPU");
	}
	signal(SIGSEGV, SIG_DFL);
}

static void copies(void)
{
	enum { N = 3 << 20 };
	unsigned char *in = malloc(N), *out = malloc(N);
	CUdeviceptr p, q;
	CUcontext c = start();
	CHECK(in && out);
	for (int i = 0; i < N; i++)
		in[i] = (unsigned char)(i * 31 >> 3);
	OK(cuMemAlloc_v2(&p, N));
	OK(cuMemAlloc_v2(&q, N));
	OK(cuMemcpyHtoD_v2(p, in, N));
	OK(cuMemcpyDtoD_v2(q, p, N));
	OK(cuMemcpyDtoH_v2(out, q, N));
	CHECK(memcmp(in, out, N) == 0);
	memset(out, 0, N);
	OK(cuMemcpy((CUdeviceptr)out, p, N));
	CHECK(memcmp(in, out, N) == 0);
	OK(cuMemsetD16_v2(q, 0x1234, N / 2));
	OK(cuMemcpyPeer(q, c, p, c, N / 2));
	OK(cuMemcpyAsync((CUdeviceptr)out, q, N, NULL));
	OK(cuCtxSynchronize());
	CHECK(memcmp(in, out, N / 2) == 0 && out[N - 1] == 0x12 && out[N - 2] == 0x34);
	IS(cuMemcpyHtoD_v2(p, in, N + 1), CUDA_ERROR_INVALID_VALUE);
	IS(cuMemcpyHtoD_v2((CUdeviceptr)in, in, 16), CUDA_ERROR_INVALID_VALUE);
	IS(cuMemsetD32_v2(p + 1, 0, 4), CUDA_ERROR_INVALID_VALUE);
	IS(cuMemsetD8_v2(p, 0, N + 1), CUDA_ERROR_INVALID_VALUE);
	OK(cuMemcpyHtoD_v2(p, in, 0));
	CUstream s;
	OK(cuStreamCreate(&s, CU_STREAM_NON_BLOCKING));
	CUmemcpyAttributes attr = { .srcAccessOrder = CU_MEMCPY_SRC_ACCESS_ORDER_STREAM };
	size_t idx = 0, sizes[2] = { 100, 200 }, fail = 77;
	CUdeviceptr dsts[2] = { q, q + 100 }, srcs[2] = { p + 1000, p + 1100 };
	OK(cuMemcpyBatchAsync(dsts, srcs, sizes, 2, &attr, &idx, 1, &fail, s));
	OK(cuStreamSynchronize(s));
	OK(cuMemcpyDtoH_v2(out, q, 300));
	CHECK(memcmp(out, in + 1000, 300) == 0);
	OK(cuMemFree_v2(p));
	OK(cuMemFree_v2(q));
	free(in);
	free(out);
}

static void copy_3d(void)
{
	enum { W = 16, H = 5, D = 3 };
	unsigned char in[W * H * D], out[W * H * D];
	CUdeviceptr p;
	start();
	for (int i = 0; i < W * H * D; i++)
		in[i] = (unsigned char)i;
	OK(cuMemAlloc_v2(&p, 32 * 8 * D));
	CUDA_MEMCPY3D m = { .srcMemoryType = CU_MEMORYTYPE_HOST, .srcHost = in, .srcPitch = W, .srcHeight = H, .dstMemoryType = CU_MEMORYTYPE_DEVICE,
	                    .dstDevice = p, .dstPitch = 32, .dstHeight = 8, .WidthInBytes = W, .Height = H, .Depth = D };
	OK(cuMemcpy3D_v2(&m));
	CUDA_MEMCPY3D back = { .srcMemoryType = CU_MEMORYTYPE_DEVICE, .srcDevice = p, .srcPitch = 32, .srcHeight = 8, .dstMemoryType = CU_MEMORYTYPE_HOST,
	                       .dstHost = out, .dstPitch = W, .dstHeight = H, .WidthInBytes = W, .Height = H, .Depth = D };
	OK(cuMemcpy3D_v2(&back));
	CHECK(memcmp(in, out, sizeof in) == 0);
}

static void *storm(void *arg)
{
	CUcontext c = arg;
	CUdeviceptr p[8];
	OK(cuCtxSetCurrent(c));
	for (int round = 0; round < 200; round++) {
		for (int i = 0; i < 8; i++)
			OK(cuMemAlloc_v2(&p[i], (size_t)1 << (8 + (i * 5 + round) % 15)));
		for (int i = 0; i < 8; i++)
			OK(cuMemFree_v2(p[i]));
	}
	return NULL;
}

static void threads(void)
{
	enum { N = 64 };
	pthread_t t[N];
	CUcontext c = start();
	uint64_t used = my_use(0)->used;
	for (int i = 0; i < N; i++)
		CHECK(pthread_create(&t[i], NULL, storm, c) == 0);
	for (int i = 0; i < N; i++)
		pthread_join(t[i], NULL);
	EQ(my_use(0)->used, used);
	EQ(my_use(0)->allocs, my_use(0)->frees);
}

const struct test memory_tests[] = {
	{ "linear", linear }, { "small", small }, { "pitched", pitched }, { "managed", managed }, { "pinned", pinned },
	{ "wild_use_faults", wild_use_faults }, { "copies", copies }, { "copy_3d", copy_3d }, { "threads", threads }, { 0 },
};
