/* mig.c: parts of the tests of MIG, which need another node than the rest: drivertest runs them with CUDA_VISIBLE_DEVICES set, and
 * compares what they print. */
#include "test.h"

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

/* An instance that is destroyed before it is used is not used, nor what comes in its place. */
static void late(void)
{
	CUcontext c;
	OK(cuInit(0));
	printf("ready\n");
	fflush(stdout);
	while (getchar() != EOF)
		;
	printf("context %d\n", (int)cuDevicePrimaryCtxRetain(&c, 0));
}

const struct test mig_tests[] = { { "-mig-list", list }, { "-mig-fill", fill }, { "-mig-late", late }, { 0 } };
