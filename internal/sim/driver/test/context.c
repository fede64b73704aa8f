/* context.c: starting up, devices, contexts. */
#include "test.h"

static void before_init(void)
{
	int n;
	CUcontext c;
	IS(cuDeviceGetCount(&n), CUDA_ERROR_NOT_INITIALIZED);
	IS(cuCtxGetCurrent(&c), CUDA_ERROR_NOT_INITIALIZED);
	OK(cuDriverGetVersion(&n));
	EQ(n, ctl->cuda_version);
	IS(cuInit(1), CUDA_ERROR_INVALID_VALUE);
	OK(cuInit(0));
	OK(cuInit(0));
}

static void devices(void)
{
	int n, v;
	char name[128];
	CUuuid uuid;
	CUdevice d;
	size_t bytes;
	OK(cuInit(0));
	OK(cuDeviceGetCount(&n));
	EQ(n, ctl->gpu_count);
	IS(cuDeviceGetCount(NULL), CUDA_ERROR_INVALID_VALUE);
	for (int i = 0; i < n; i++) {
		const struct sim_facts *f = &gpu(i)->facts;
		OK(cuDeviceGet(&d, i));
		OK(cuDeviceGetName(name, sizeof name, d));
		CHECK(strcmp(name, f->name) == 0);
		OK(cuDeviceGetUuid_v2(&uuid, d));
		CHECK(memcmp(uuid.bytes, f->uuid, 16) == 0);
		OK(cuDeviceTotalMem_v2(&bytes, d));
		EQ(bytes, f->memory_total - f->memory_reserved);
		OK(cuDeviceGetAttribute(&v, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, d));
		EQ(v, f->sm_count);
		OK(cuDeviceGetPCIBusId(name, sizeof name, d));
		OK(cuDeviceGetByPCIBusId(&v, name));
		EQ(v, i);
	}
	IS(cuDeviceGet(&d, n), CUDA_ERROR_INVALID_DEVICE);
	IS(cuDeviceGet(&d, -1), CUDA_ERROR_INVALID_DEVICE);
	IS(cuDeviceGetAttribute(&v, (CUdevice_attribute)99999, 0), CUDA_ERROR_INVALID_VALUE);
	IS(cuDeviceGetName(name, sizeof name, n), CUDA_ERROR_INVALID_DEVICE);
	const char *text;
	OK(cuGetErrorName(CUDA_ERROR_OUT_OF_MEMORY, &text));
	CHECK(strcmp(text, "CUDA_ERROR_OUT_OF_MEMORY") == 0);
	IS(cuGetErrorName((CUresult)12345, &text), CUDA_ERROR_INVALID_VALUE);
}

static void visible(void)
{
	int n;
	CUuuid uuid;
	setenv("CUDA_VISIBLE_DEVICES", "1,0,7777,1", 1); /* what follows the first bad word is not read */
	OK(cuInit(0));
	OK(cuDeviceGetCount(&n));
	EQ(n, 2);
	OK(cuDeviceGetUuid(&uuid, 0));
	CHECK(memcmp(uuid.bytes, gpu(1)->facts.uuid, 16) == 0);
}

static void visible_uuid(void)
{
	const uint8_t *u = gpu(1)->facts.uuid;
	char list[64];
	int n;
	CUuuid uuid;
	snprintf(list, sizeof list, "GPU-%02x%02x%02x%02x-%02x%02x", u[0], u[1], u[2], u[3], u[4], u[5]);
	setenv("CUDA_VISIBLE_DEVICES", list, 1);
	OK(cuInit(0));
	OK(cuDeviceGetCount(&n));
	EQ(n, 1);
	OK(cuDeviceGetUuid(&uuid, 0));
	CHECK(memcmp(uuid.bytes, u, 16) == 0);
}

static void visible_none(void)
{
	setenv("CUDA_VISIBLE_DEVICES", "", 1);
	IS(cuInit(0), CUDA_ERROR_NO_DEVICE);
}

static void contexts(void)
{
	CUcontext a, b, c;
	CUdeviceptr p;
	unsigned flags;
	int active;
	OK(cuInit(0));
	IS(cuMemAlloc_v2(&p, 1), CUDA_ERROR_INVALID_CONTEXT);
	OK(cuCtxGetCurrent(&c));
	CHECK(c == NULL);
	IS(cuCtxPopCurrent_v2(&c), CUDA_ERROR_INVALID_CONTEXT);
	OK(cuCtxCreate_v2(&a, CU_CTX_SCHED_BLOCKING_SYNC, 0));
	EQ(my_use(0)->contexts, 1);
	EQ(my_use(0)->context, gpu(0)->facts.context_bytes);
	OK(cuCtxCreate_v4(&b, NULL, 0, 1));
	OK(cuCtxGetCurrent(&c));
	CHECK(c == b);
	CUdevice d;
	OK(cuCtxGetDevice(&d));
	EQ(d, 1);
	OK(cuCtxPopCurrent_v2(&c));
	CHECK(c == b);
	OK(cuCtxGetCurrent(&c));
	CHECK(c == a);
	OK(cuCtxGetFlags(&flags));
	EQ(flags, CU_CTX_SCHED_BLOCKING_SYNC);
	IS(cuCtxCreate_v2(NULL, 0, 0), CUDA_ERROR_INVALID_VALUE);
	IS(cuCtxCreate_v2(&c, 0, 99), CUDA_ERROR_INVALID_DEVICE);
	OK(cuMemAlloc_v2(&p, MiB(4)));
	OK(cuCtxPushCurrent_v2(b));
	OK(cuCtxDestroy_v2(a));
	IS(cuCtxDestroy_v2(a), CUDA_ERROR_CONTEXT_IS_DESTROYED);
	EQ(my_use(0)->used, 0);
	OK(cuCtxDestroy_v2(b));
	IS(cuMemAlloc_v2(&p, 1), CUDA_ERROR_CONTEXT_IS_DESTROYED); /* a lies below b on the stack */
	OK(cuDevicePrimaryCtxGetState(0, &flags, &active));
	EQ(active, 0);
	IS(cuDevicePrimaryCtxRelease_v2(0), CUDA_ERROR_INVALID_CONTEXT);
	OK(cuDevicePrimaryCtxRetain(&a, 0));
	OK(cuDevicePrimaryCtxRetain(&b, 0));
	CHECK(a == b);
	OK(cuDevicePrimaryCtxRelease_v2(0));
	OK(cuCtxSetCurrent(a));
	OK(cuMemAlloc_v2(&p, 100));
	OK(cuDevicePrimaryCtxRelease_v2(0));
	IS(cuMemFree_v2(p), CUDA_ERROR_CONTEXT_IS_DESTROYED);
	EQ(my_use(0)->used, 0);
}

static void limits(void)
{
	size_t v;
	start();
	OK(cuCtxSetLimit(CU_LIMIT_STACK_SIZE, 4096));
	OK(cuCtxGetLimit(&v, CU_LIMIT_STACK_SIZE));
	EQ(v, 4096);
	IS(cuCtxGetLimit(&v, (CUlimit)77), CUDA_ERROR_UNSUPPORTED_LIMIT);
}

static void resolve(void)
{
	struct { const char *name; int version; cuuint64_t flags; void *want; int status; } rows[] = {
		{ "cuMemAlloc", 12000, 0, (void *)cuMemAlloc_v2, 0 },
		{ "cuMemcpyHtoD", 12000, 2, (void *)cuMemcpyHtoD_v2_ptds, 0 },
		{ "cuMemcpyHtoD", 12000, 1, (void *)cuMemcpyHtoD_v2, 0 },
		{ "cuCtxCreate", 11000, 0, (void *)cuCtxCreate_v2, 0 },
		{ "cuCtxCreate", 12040, 0, (void *)cuCtxCreate_v3, 0 },
		{ "cuCtxCreate", 12050, 0, (void *)cuCtxCreate_v4, 0 },
		{ "cuMemAllocAsync", 11000, 0, NULL, CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT },
		{ "cuLaunchKernel", 13000, 2, (void *)cuLaunchKernel_ptsz, 0 },
		{ "cuNoSuchCall", 13000, 0, NULL, CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND },
		{ "cuGraphAddNode", 13040, 0, (void *)cuGraphAddNode_v2, 0 }, /* _v3 is of 13.4, this driver of 13.0 */
	};
	for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
		void *p = (void *)1, *q = (void *)1;
		CUdriverProcAddressQueryResult status;
		OK(cuGetProcAddress_v2(rows[i].name, &p, rows[i].version, rows[i].flags, &status));
		if (p != rows[i].want || (int)status != rows[i].status)
			FAIL("%s at %d: %p status %d", rows[i].name, rows[i].version, p, (int)status);
		IS(cuGetProcAddress(rows[i].name, &q, rows[i].version, rows[i].flags), rows[i].want ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND);
	}
	void *p;
	IS(cuGetProcAddress_v2("cuInit", &p, 12000, 4, NULL), CUDA_ERROR_INVALID_VALUE);
	const void *table;
	CUuuid id = { { 0 } };
	IS(cuGetExportTable(&table, &id), CUDA_ERROR_NOT_FOUND);
}

const struct test context_tests[] = {
	{ "before_init", before_init }, { "devices", devices }, { "visible", visible }, { "visible_uuid", visible_uuid },
	{ "visible_none", visible_none }, { "contexts", contexts }, { "limits", limits }, { "resolve", resolve }, { 0 },
};
