/* mig.c: parts of the tests of MIG, which need another node than the rest: drivertest runs them with CUDA_VISIBLE_DEVICES set, and
 * compares what they print. */
#include "test.h"

#include <dlfcn.h>

static void print_uuid(const char *what, const CUuuid *u)
{
	printf(" %s=", what);
	for (int i = 0; i < 4; i++)
		printf("%02x", (unsigned char)u->bytes[i]);
}

/* What this process has for devices. */
static void list(void)
{
	int n = 0, sms;
	CUresult r = cuInit(0);
	printf("init %d\n", (int)r);
	if (r != CUDA_SUCCESS)
		return;
	OK(cuDeviceGetCount(&n));
	for (int i = 0; i < n; i++) {
		char name[96];
		size_t total;
		CUuuid v1, v2;
		OK(cuDeviceGetName(name, sizeof name, i));
		OK(cuDeviceGetUuid(&v1, i));
		OK(cuDeviceGetUuid_v2(&v2, i));
		OK(cuDeviceTotalMem_v2(&total, i));
		OK(cuDeviceGetAttribute(&sms, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, i));
		printf("%s: %zu MiB, %d SMs", name, total >> 20, sms);
		print_uuid("gpu", &v1);
		print_uuid("device", &v2);
		printf("\n");
	}
}

/* Takes all there is, works in it, and holds it until standard input ends. */
static void fill(void)
{
	size_t free_bytes, total, got = 0;
	CUdeviceptr p, first = 0;
	unsigned long long n = 1 << 20;
	unsigned value = 7, back = 0;
	start();
	OK(cuMemGetInfo_v2(&free_bytes, &total));
	while (cuMemAlloc_v2(&p, MiB(64)) == CUDA_SUCCESS) {
		first = first ? first : p;
		got += 64;
	}
	CHECK(free_bytes / MiB(1) - got < 64);
	OK(cuLaunchKernel(kernel("kerf_fill"), 1, 1, 1, 32, 1, 1, 0, NULL, (void *[]){ &first, &n, &value }, NULL));
	OK(cuMemcpyDtoH_v2(&back, first + 4 * (n - 1), 4));
	EQ(back, 7);
	printf("holds %zu of %zu\n", got, total / MiB(1));
	fflush(stdout);
	while (getchar() != EOF)
		;
}

/* --- through the simulated NVML, in the same process -------------------------------------------------- */

#ifdef __aarch64__
#define TRIPLET "aarch64-linux-gnu"
#else
#define TRIPLET "x86_64-linux-gnu"
#endif

static int (*nvml(const char *name))()
{
	static void *lib;
	char path[4096];
	snprintf(path, sizeof path, "%s/usr/lib/" TRIPLET "/libnvidia-ml.so.1", root);
	lib = lib ? lib : dlopen(path, RTLD_NOW | RTLD_LOCAL);
	CHECK(lib);
	int (*f)() = (int (*)())dlsym(lib, name);
	CHECK(f);
	return f;
}

#define SMALLEST 19u /* the profile 1g.10gb: its compute instance has profile 0 */

struct instance { void *card, *gi, *ci; };

static struct instance find_instance(void)
{
	struct instance in;
	unsigned count = 7;
	void *all[7];
	EQ(nvml("nvmlInit_v2")(), 0);
	EQ(nvml("nvmlDeviceGetHandleByIndex_v2")(0u, &in.card), 0);
	EQ(nvml("nvmlDeviceGetGpuInstances")(in.card, SMALLEST, all, &count), 0);
	EQ(count, 1);
	in.gi = all[0];
	EQ(nvml("nvmlGpuInstanceGetComputeInstanceById")(in.gi, 0u, &in.ci), 0);
	return in;
}

/* An instance is not destroyed while this process has anything in it; once it is destroyed, the process has no device any more,
 * whatever comes in its place. */
static void gone(void)
{
	struct { unsigned start, size; } at = { 6, 1 };
	struct instance in = find_instance();
	CUmemAllocationProp prop = { .type = CU_MEM_ALLOCATION_TYPE_PINNED, .location = { CU_MEM_LOCATION_TYPE_DEVICE, 0 } };
	CUmemGenericAllocationHandle h;
	CUcontext c;
	OK(cuInit(0));
	OK(cuDevicePrimaryCtxRetain(&c, 0));
	EQ(nvml("nvmlComputeInstanceDestroy")(in.ci), 19);
	OK(cuDevicePrimaryCtxRelease_v2(0));
	EQ(nvml("nvmlComputeInstanceDestroy")(in.ci), 0);
	IS(cuDevicePrimaryCtxRetain(&c, 0), CUDA_ERROR_DEVICE_UNAVAILABLE);
	EQ(nvml("nvmlGpuInstanceDestroy")(in.gi), 0);
	EQ(nvml("nvmlDeviceCreateGpuInstanceWithPlacement")(in.card, SMALLEST, &at, &in.gi), 0);
	EQ(nvml("nvmlGpuInstanceCreateComputeInstance")(in.gi, 0u, &in.ci), 0);
	IS(cuDevicePrimaryCtxRetain(&c, 0), CUDA_ERROR_DEVICE_UNAVAILABLE);
	IS(cuMemCreate(&h, MiB(2), &prop, 0), CUDA_ERROR_DEVICE_UNAVAILABLE);
	printf("ok\n");
}

const struct test mig_tests[] = { { "-mig-list", list }, { "-mig-fill", fill }, { "-mig-gone", gone }, { 0 } };
