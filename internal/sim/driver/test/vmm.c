/* vmm.c: virtual memory management, pools, arrays, external memory. */
#define _GNU_SOURCE
#include "test.h"

#include <sys/mman.h>

static CUmemAllocationProp prop_of(int device)
{
	return (CUmemAllocationProp){ .type = CU_MEM_ALLOCATION_TYPE_PINNED, .requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
	                              .location = { CU_MEM_LOCATION_TYPE_DEVICE, device } };
}

static void access_to(CUdeviceptr p, size_t n)
{
	CUmemAccessDesc d = { .location = { CU_MEM_LOCATION_TYPE_DEVICE, 0 }, .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE };
	OK(cuMemSetAccess(p, n, &d, 1));
}

static void remap_keeps_bytes(void)
{
	CUmemAllocationProp prop = prop_of(0), back;
	CUmemGenericAllocationHandle h, again;
	CUdeviceptr a, b;
	size_t g, n = MiB(4);
	unsigned v;
	unsigned long long flags;
	start();
	uint64_t used = my_use(0)->used;
	OK(cuMemGetAllocationGranularity(&g, &prop, CU_MEM_ALLOC_GRANULARITY_MINIMUM));
	EQ(g, MiB(2));
	OK(cuMemAddressReserve(&a, 4 * n, 0, 0, 0));
	OK(cuMemAddressReserve(&b, n, 0, 0, 0));
	EQ(my_use(0)->used, used);
	IS(cuMemCreate(&h, n + 1, &prop, 0), CUDA_ERROR_INVALID_VALUE);
	OK(cuMemCreate(&h, n, &prop, 0));
	EQ(my_use(0)->used, used + n);
	OK(cuMemMap(a, n, 0, h, 0));
	IS(cuMemMap(a, n, 0, h, 0), CUDA_ERROR_INVALID_VALUE);
	IS(cuMemMap(b, 2 * n, 0, h, 0), CUDA_ERROR_INVALID_VALUE);
	IS(cuMemsetD32_v2(a, 1, 4), CUDA_ERROR_INVALID_VALUE); /* no access yet */
	access_to(a, n);
	CUmemLocation here = prop.location;
	OK(cuMemGetAccess(&flags, &here, a));
	EQ(flags, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
	OK(cuMemsetD32_v2(a, 0xabcd, n / 4));
	OK(cuCtxSynchronize());
	OK(cuMemGetAllocationPropertiesFromHandle(&back, h));
	EQ(back.location.id, 0);
	OK(cuMemRetainAllocationHandle(&again, (void *)(a + 100)));
	CHECK(again == h);
	OK(cuMemRelease(again));
	OK(cuMemUnmap(a, n));
	IS(cuMemUnmap(a, n), CUDA_ERROR_INVALID_VALUE);
	IS(cuMemcpyDtoH_v2(&v, a, 4), CUDA_ERROR_INVALID_VALUE);
	OK(cuMemMap(b, n, 0, h, 0)); /* elsewhere */
	access_to(b, n);
	OK(cuMemcpyDtoH_v2(&v, b + n - 4, 4));
	EQ(v, 0xabcd);
	OK(cuMemUnmap(b, n));
	OK(cuMemMap(a, n / 2, n / 2, h, 0)); /* and back, the second half in front */
	OK(cuMemMap(a + n / 2, n / 2, 0, h, 0));
	access_to(a, n);
	OK(cuMemcpyDtoH_v2(&v, a + n / 2 - 2, 4)); /* across the two */
	EQ(v, 0xabcd0000u); /* the upper half of one word, the lower of the next */
	OK(cuMemRelease(h));
	IS(cuMemRelease(h), CUDA_ERROR_INVALID_VALUE);
	EQ(my_use(0)->used, used + n); /* mapped still */
	IS(cuMemAddressFree(a, 4 * n), CUDA_ERROR_INVALID_VALUE);
	OK(cuMemUnmap(a, n));
	EQ(my_use(0)->used, used);
	IS(cuMemAddressFree(a, n), CUDA_ERROR_INVALID_VALUE);
	OK(cuMemAddressFree(a, 4 * n));
	OK(cuMemAddressFree(b, n));
	prop.location.id = 99;
	IS(cuMemCreate(&h, n, &prop, 0), CUDA_ERROR_INVALID_DEVICE);
}

static void vmm_limit(void)
{
	CUmemAllocationProp prop = prop_of(0);
	CUmemGenericAllocationHandle h, k;
	size_t free_, total;
	start();
	OK(cuMemGetInfo_v2(&free_, &total));
	free_ = free_ / MiB(2) * MiB(2);
	OK(cuMemCreate(&h, free_, &prop, 0));
	IS(cuMemCreate(&k, MiB(2), &prop, 0), CUDA_ERROR_OUT_OF_MEMORY);
	OK(cuMemRelease(h));
	OK(cuMemCreate(&k, MiB(2), &prop, 0));
	OK(cuMemRelease(k));
}

static uint64_t pool_get(CUmemoryPool p, CUmemPool_attribute a)
{
	cuuint64_t v;
	OK(cuMemPoolGetAttribute(p, a, &v));
	return v;
}

static void pools(void)
{
	CUmemoryPool p;
	CUstream s;
	CUdeviceptr a, b, c;
	cuuint64_t keep = UINT64_MAX, zero = 0;
	start();
	uint64_t used = my_use(0)->used;
	OK(cuStreamCreate(&s, CU_STREAM_NON_BLOCKING));
	OK(cuDeviceGetDefaultMemPool(&p, 0));
	OK(cuMemAllocAsync(&a, MiB(3), s));
	EQ(pool_get(p, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT), MiB(32));
	EQ(pool_get(p, CU_MEMPOOL_ATTR_USED_MEM_CURRENT), MiB(3));
	EQ(my_use(0)->used, used + MiB(32));
	OK(cuMemAllocAsync(&b, MiB(40), s));
	EQ(pool_get(p, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT), MiB(96));
	OK(cuMemsetD8Async(a, 1, MiB(3), s));
	spin_async(s, 10000);
	OK(cuMemFreeAsync(a, s));
	IS(cuMemFreeAsync(a, s), CUDA_ERROR_INVALID_VALUE);
	OK(cuMemAllocAsync(&c, MiB(3), s)); /* the same stream gets it again at once */
	EQ(c, a);
	OK(cuMemFreeAsync(c, s));
	OK(cuMemFreeAsync(b, s));
	EQ(pool_get(p, CU_MEMPOOL_ATTR_USED_MEM_CURRENT), 0);
	EQ(my_use(0)->used, used + MiB(96));
	OK(cuStreamSynchronize(s)); /* threshold 0: all goes back */
	EQ(pool_get(p, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT), 0);
	EQ(my_use(0)->used, used);
	EQ(pool_get(p, CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH), MiB(96));
	OK(cuMemPoolSetAttribute(p, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &keep));
	OK(cuMemAllocAsync(&a, MiB(1), s));
	OK(cuMemFreeAsync(a, s));
	OK(cuStreamSynchronize(s));
	EQ(my_use(0)->used, used + MiB(32));
	OK(cuMemPoolTrimTo(p, 0));
	EQ(my_use(0)->used, used);
	OK(cuMemPoolSetAttribute(p, CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH, &zero));
	EQ(pool_get(p, CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH), 0);
	OK(cuMemAllocAsync(&a, MiB(1), s));
	OK(cuMemFree_v2(a)); /* the plain free will do */
	IS(cuMemFree_v2(a), CUDA_ERROR_INVALID_VALUE);
	size_t free_, total;
	OK(cuMemPoolTrimTo(p, 0));
	OK(cuMemGetInfo_v2(&free_, &total));
	free_ = free_ / MiB(2) * MiB(2);
	OK(cuMemAllocAsync(&a, free_, s)); /* up to the very last granule */
	IS(cuMemAllocAsync(&b, 1, s), CUDA_ERROR_OUT_OF_MEMORY);
	OK(cuMemFreeAsync(a, s));
	OK(cuStreamSynchronize(s)); /* the threshold keeps it, */
	EQ(my_use(0)->used, used + free_);
	OK(cuMemAlloc_v2(&b, MiB(100))); /* but no allocation fails for it */
	OK(cuMemFree_v2(b));
	IS(cuMemPoolDestroy(p), CUDA_ERROR_INVALID_VALUE);
}

static void own_pool(void)
{
	CUmemPoolProps props = { .allocType = CU_MEM_ALLOCATION_TYPE_PINNED, .location = { CU_MEM_LOCATION_TYPE_DEVICE, 0 }, .maxSize = MiB(64) };
	CUmemoryPool p, was, now;
	CUdeviceptr a, b;
	start();
	uint64_t used = my_use(0)->used;
	OK(cuMemPoolCreate(&p, &props));
	OK(cuMemAllocFromPoolAsync(&a, MiB(60), p, NULL));
	IS(cuMemAllocFromPoolAsync(&b, MiB(60), p, NULL), CUDA_ERROR_OUT_OF_MEMORY);
	OK(cuPointerGetAttribute(&now, CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE, a));
	CHECK(now == p);
	OK(cuMemPoolDestroy(p)); /* goes with its last allocation */
	EQ(my_use(0)->used, used + MiB(64));
	OK(cuMemFreeAsync(a, NULL));
	OK(cuCtxSynchronize());
	EQ(my_use(0)->used, used);
	OK(cuDeviceGetMemPool(&was, 0));
	OK(cuMemPoolCreate(&p, &props));
	OK(cuDeviceSetMemPool(0, p));
	OK(cuDeviceGetMemPool(&now, 0));
	CHECK(now == p);
	OK(cuMemPoolDestroy(p));
	OK(cuDeviceGetMemPool(&now, 0));
	CHECK(now == was);
	props.location.type = CU_MEM_LOCATION_TYPE_HOST;
	IS(cuMemPoolCreate(&p, &props), CUDA_ERROR_NOT_SUPPORTED);
}

static void arrays(void)
{
	CUDA_ARRAY3D_DESCRIPTOR d = { 100, 50, 3, CU_AD_FORMAT_FLOAT, 1, 0 }, got;
	CUDA_ARRAY_MEMORY_REQUIREMENTS need;
	CUarray a, b;
	static float in[100 * 50 * 3], out[100 * 50 * 3];
	start();
	uint64_t used = my_use(0)->used;
	OK(cuArray3DCreate_v2(&a, &d));
	CHECK(my_use(0)->used > used);
	for (int i = 0; i < 100 * 50 * 3; i++)
		in[i] = (float)i;
	CUDA_MEMCPY3D to = { .srcMemoryType = CU_MEMORYTYPE_HOST, .srcHost = in, .srcPitch = 400, .srcHeight = 50, .dstMemoryType = CU_MEMORYTYPE_ARRAY,
	                     .dstArray = a, .WidthInBytes = 400, .Height = 50, .Depth = 3 };
	OK(cuMemcpy3D_v2(&to));
	CUDA_MEMCPY3D from = { .srcMemoryType = CU_MEMORYTYPE_ARRAY, .srcArray = a, .dstMemoryType = CU_MEMORYTYPE_HOST, .dstHost = out, .dstPitch = 400,
	                       .dstHeight = 50, .WidthInBytes = 400, .Height = 50, .Depth = 3 };
	OK(cuMemcpy3D_v2(&from));
	CHECK(memcmp(in, out, sizeof in) == 0);
	OK(cuArray3DGetDescriptor_v2(&got, a));
	CHECK(memcmp(&got, &d, sizeof d) == 0);
	to.dstXInBytes = 4;
	IS(cuMemcpy3D_v2(&to), CUDA_ERROR_INVALID_VALUE);
	CUDA_ARRAY_DESCRIPTOR flat = { 1000, 0, CU_AD_FORMAT_UNSIGNED_INT8, 4 };
	OK(cuArrayCreate_v2(&b, &flat));
	OK(cuMemcpyHtoA_v2(b, 8, in, 400));
	OK(cuMemcpyAtoH_v2(out, b, 8, 400));
	CHECK(memcmp(in, out, 400) == 0);
	IS(cuMemcpyAtoH_v2(out, b, 4000, 1), CUDA_ERROR_INVALID_VALUE);
	OK(cuArrayDestroy(a));
	IS(cuArrayDestroy(a), CUDA_ERROR_INVALID_HANDLE);
	OK(cuArrayDestroy(b));
	EQ(my_use(0)->used, used);
	d.Flags = CUDA_ARRAY3D_DEFERRED_MAPPING;
	d.Width = 1 << 14;
	OK(cuArray3DCreate_v2(&a, &d));
	EQ(my_use(0)->used, used);
	OK(cuArrayGetMemoryRequirements(&need, a, 0));
	EQ(need.size, MiB(10)); /* 16384·50·3·4 bytes in granules */
	OK(cuArrayDestroy(a));
	d.Flags = 0;
	OK(cuArray3DCreate_v2(&a, &d));
	EQ(my_use(0)->used, used + need.size);
	IS(cuArrayGetMemoryRequirements(&need, a, 0), CUDA_ERROR_INVALID_VALUE);
	OK(cuArrayDestroy(a));
	d.NumChannels = 3;
	IS(cuArray3DCreate_v2(&a, &d), CUDA_ERROR_INVALID_VALUE);
}

static void mipmaps(void)
{
	CUDA_ARRAY3D_DESCRIPTOR d = { 1024, 1024, 0, CU_AD_FORMAT_UNSIGNED_INT8, 4, 0 }, got;
	CUmipmappedArray m;
	CUarray level;
	start();
	uint64_t used = my_use(0)->used;
	OK(cuMipmappedArrayCreate(&m, &d, 11));
	EQ(my_use(0)->used, used + MiB(6));
	OK(cuMipmappedArrayGetLevel(&level, m, 10));
	OK(cuArray3DGetDescriptor_v2(&got, level));
	EQ(got.Width, 1);
	IS(cuMipmappedArrayGetLevel(&level, m, 11), CUDA_ERROR_INVALID_VALUE);
	IS(cuArrayDestroy(level), CUDA_ERROR_INVALID_HANDLE);
	OK(cuMipmappedArrayDestroy(m));
	EQ(my_use(0)->used, used);
	IS(cuMipmappedArrayCreate(&m, &d, 12), CUDA_ERROR_INVALID_VALUE);
}

static void external(void)
{
	CUexternalMemory m;
	CUdeviceptr p;
	unsigned v = 0;
	start();
	uint64_t used = my_use(0)->used;
	int fd = memfd_create("vulkan", 0);
	CHECK(ftruncate(fd, (off_t)MiB(4)) == 0);
	CUDA_EXTERNAL_MEMORY_HANDLE_DESC d = { .type = CU_EXTERNAL_MEMORY_HANDLE_TYPE_OPAQUE_FD, .handle.fd = dup(fd), .size = MiB(8) };
	IS(cuImportExternalMemory(&m, &d), CUDA_ERROR_INVALID_VALUE); /* more than there is */
	d.size = MiB(4);
	OK(cuImportExternalMemory(&m, &d));
	EQ(my_use(0)->used, used + MiB(4));
	CUDA_EXTERNAL_MEMORY_BUFFER_DESC b = { .offset = MiB(2), .size = MiB(2) };
	OK(cuExternalMemoryGetMappedBuffer(&p, m, &b));
	EQ(my_use(0)->used, used + MiB(4)); /* once */
	OK(cuMemsetD32_v2(p, 77, 100));
	OK(cuCtxSynchronize());
	CHECK(pread(fd, &v, 4, (off_t)MiB(2)) == 4 && v == 77);
	OK(cuMemFree_v2(p));
	OK(cuDestroyExternalMemory(m));
	EQ(my_use(0)->used, used);
}

const struct test vmm_tests[] = {
	{ "remap_keeps_bytes", remap_keeps_bytes }, { "vmm_limit", vmm_limit }, { "pools", pools }, { "own_pool", own_pool },
	{ "arrays", arrays }, { "mipmaps", mipmaps }, { "external", external }, { 0 },
};
