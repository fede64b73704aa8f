/* module.c: modules, libraries, kernels. */
#include "test.h"

#include <math.h>

static void kernels(void)
{
	enum { N = 10000 };
	unsigned long long n = N, sum, want = 0;
	unsigned value = 3;
	float a = 2.5f;
	static float host[N];
	CUdeviceptr x, y, out;
	start();
	OK(cuMemAlloc_v2(&x, N * 4));
	OK(cuMemAlloc_v2(&y, N * 4));
	OK(cuMemAlloc_v2(&out, 8));
	OK(cuLaunchKernel(kernel("kerf_fill"), 32, 1, 1, 256, 1, 1, 0, NULL, (void *[]){ &x, &n, &value }, NULL));
	OK(cuLaunchKernel(kernel("kerf_copy"), 32, 1, 1, 256, 1, 1, 0, NULL, (void *[]){ &y, &x, &n }, NULL));
	OK(cuMemsetD8_v2(out, 0, 8));
	OK(cuLaunchKernel(kernel("kerf_checksum"), 32, 1, 1, 256, 1, 1, 0, NULL, (void *[]){ &out, &y, &n }, NULL));
	OK(cuMemcpyDtoH_v2(&sum, out, 8));
	want = 3ull * N;
	EQ(sum, want);
	for (int i = 0; i < N; i++)
		host[i] = (float)i;
	OK(cuMemcpyHtoD_v2(x, host, sizeof host));
	OK(cuMemcpyHtoD_v2(y, host, sizeof host));
	struct { CUdeviceptr y, x; unsigned long long n; float a; } packed = { y, x, n, a };
	size_t size = sizeof packed;
	void *extra[] = { CU_LAUNCH_PARAM_BUFFER_POINTER, &packed, CU_LAUNCH_PARAM_BUFFER_SIZE, &size, CU_LAUNCH_PARAM_END };
	OK(cuLaunchKernel(kernel("kerf_saxpy"), 32, 1, 1, 256, 1, 1, 0, NULL, NULL, extra));
	OK(cuMemcpyDtoH_v2(host, y, sizeof host));
	for (int i = 0; i < N; i++)
		CHECK(fabsf(host[i] - 3.5f * (float)i) < 1);
}

static void launches(void)
{
	unsigned long long us = 10;
	void *params[] = { &us };
	start();
	CUfunction f = kernel("kerf_spin");
	CUlaunchAttribute attr = { .id = CU_LAUNCH_ATTRIBUTE_COOPERATIVE, .value.cooperative = 1 };
	CUlaunchConfig config = { 1, 1, 1, 32, 1, 1, 0, NULL, &attr, 1 };
	OK(cuLaunchKernelEx(&config, f, params, NULL));
	OK(cuLaunchCooperativeKernel(f, 4, 1, 1, 32, 1, 1, 0, NULL, params));
	IS(cuLaunchCooperativeKernel(f, 1000000, 1, 1, 32, 1, 1, 0, NULL, params), CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE);
	IS(cuLaunchKernel(f, 0, 1, 1, 1, 1, 1, 0, NULL, params, NULL), CUDA_ERROR_INVALID_VALUE);
	IS(cuLaunchKernel(f, 1, 1, 1, 2048, 1, 1, 0, NULL, params, NULL), CUDA_ERROR_INVALID_VALUE);
	IS(cuLaunchKernel(NULL, 1, 1, 1, 1, 1, 1, 0, NULL, params, NULL), CUDA_ERROR_INVALID_HANDLE);
	IS(cuLaunchKernel(f, 1, 1, 1, 1, 1, 1, 0, NULL, NULL, NULL), CUDA_ERROR_INVALID_VALUE);
	OK(cuCtxSynchronize());
	EQ(my_use(0)->kernels, 2);
	EQ(my_use(0)->busy_compute_ns, 2 * (us * 1000 + gpu(0)->facts.launch_ns));
	int blocks, min, size;
	OK(cuOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, f, 256, 0));
	EQ(blocks, 8);
	OK(cuOccupancyMaxPotentialBlockSize(&min, &size, f, NULL, 0, 0));
}

static void illegal_address(void)
{
	unsigned long long n = 1000;
	unsigned v = 1;
	CUdeviceptr p, none = 0x1000;
	CUcontext c = start();
	OK(cuMemAlloc_v2(&p, MiB(2)));
	OK(cuLaunchKernel(kernel("kerf_fill"), 1, 1, 1, 1, 1, 1, 0, NULL, (void *[]){ &none, &n, &v }, NULL));
	IS(cuCtxSynchronize(), CUDA_ERROR_ILLEGAL_ADDRESS);
	IS(cuMemFree_v2(p), CUDA_ERROR_ILLEGAL_ADDRESS); /* the context is broken for good */
	(void)c;
	OK(cuDevicePrimaryCtxReset_v2(0));
	OK(cuDevicePrimaryCtxRetain(&c, 0));
	OK(cuCtxSetCurrent(c));
	OK(cuMemAlloc_v2(&p, MiB(2)));
}

static const char other[] =
	".version 7.0\n.target sm_80\n.address_size 64\n// .entry comment\n"
	".visible .global .align 4 .u32 counter = 5;\n.global .align 16 .b8 table[1000];\n"
	".visible .entry mine(.param .align 8 .b8 s[24], .param .u32 n)\n.maxntid 128, 1, 1\n{ .reg .u32 %r; { ret; } }\n"
	".func (.param .b32 r) helper(.param .b32 x) { ret; }\n";

static void modules(void)
{
	CUmodule m;
	CUfunction f, list[2];
	CUdeviceptr p;
	size_t n, at;
	unsigned count;
	start();
	OK(cuModuleLoadDataEx(&m, other, 0, NULL, NULL));
	OK(cuModuleGetFunctionCount(&count, m));
	EQ(count, 1);
	OK(cuModuleEnumerateFunctions(list, 2, m));
	OK(cuModuleGetFunction(&f, m, "mine"));
	CHECK(list[0] == f);
	IS(cuModuleGetFunction(&f, m, "helper"), CUDA_ERROR_NOT_FOUND);
	OK(cuFuncGetParamInfo(f, 1, &at, &n));
	EQ(at, 24);
	EQ(n, 4);
	IS(cuFuncGetParamInfo(f, 2, &at, &n), CUDA_ERROR_INVALID_VALUE);
	OK(cuModuleGetGlobal_v2(&p, &n, m, "table"));
	EQ(n, 1000);
	OK(cuMemsetD8_v2(p, 1, n));
	IS(cuModuleGetGlobal_v2(&p, &n, m, "nope"), CUDA_ERROR_NOT_FOUND);
	char params[24] = { 0 };
	unsigned k = 1;
	IS(cuLaunchKernel(f, 1, 1, 1, 1, 1, 1, 0, NULL, (void *[]){ params, &k }, NULL), CUDA_ERROR_NOT_SUPPORTED);
	OK(cuModuleUnload(m));
	IS(cuModuleUnload(m), CUDA_ERROR_INVALID_HANDLE);
	IS(cuModuleLoadData(&m, "\177ELF..............."), CUDA_ERROR_NO_BINARY_FOR_GPU);
	IS(cuModuleLoadData(&m, "\1\2\3 this is no image"), CUDA_ERROR_INVALID_IMAGE);
	IS(cuModuleLoadData(&m, "this is plain text"), CUDA_ERROR_INVALID_PTX);
	IS(cuModuleLoadData(&m, ".version 7.0 .target sm_80 .entry x() { "), CUDA_ERROR_INVALID_PTX);
	IS(cuModuleLoadData(&m, NULL), CUDA_ERROR_INVALID_VALUE);
	IS(cuModuleLoad(&m, "/no/such/file"), CUDA_ERROR_FILE_NOT_FOUND);
}

static void libraries(void)
{
	CUlibrary l, back;
	CUkernel k;
	CUfunction f;
	CUmodule m;
	unsigned count;
	unsigned long long us = 5;
	start();
	OK(cuLibraryLoadData(&l, ptx(), NULL, NULL, 0, NULL, NULL, 0));
	OK(cuLibraryGetKernelCount(&count, l));
	EQ(count, 5);
	OK(cuLibraryGetKernel(&k, l, "kerf_spin"));
	OK(cuKernelGetLibrary(&back, k));
	CHECK(back == l);
	OK(cuKernelGetFunction(&f, k));
	OK(cuLibraryGetModule(&m, l));
	OK(cuLaunchKernel((CUfunction)k, 1, 1, 1, 1, 1, 1, 0, NULL, (void *[]){ &us }, NULL));
	OK(cuLaunchKernel(f, 1, 1, 1, 1, 1, 1, 0, NULL, (void *[]){ &us }, NULL));
	OK(cuCtxSynchronize());
	IS(cuLibraryGetKernel(&k, l, "nope"), CUDA_ERROR_NOT_FOUND);
	OK(cuLibraryUnload(l));
	IS(cuLibraryUnload(l), CUDA_ERROR_INVALID_HANDLE);
}

const struct test module_tests[] = {
	{ "kernels", kernels }, { "launches", launches }, { "illegal_address", illegal_address }, { "modules", modules }, { "libraries", libraries }, { 0 },
};
