/* swap-probe: how fast the shim's swap engine moves memory, against a plain copy of the same bytes to page-locked memory, both in
 * this run. The engine is the shim's own objects, linked in and called directly; the driver is what libcuda.so.1 is found.
 *
 *   swap-probe [--mib N] [--rounds N] [--least PERCENT]
 *
 * Times are of whole moves: copies, mapping and unmapping. The first move out also makes and page-locks the host memory; it is
 * told apart. Ends with 1 if a byte is wrong, or if the median of a direction is less than PERCENT of the copy's. On a
 * simulated GPU the copies take the time that the profile says, and the ratio is a test of the engine's overlap alone.
 */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bench/tenants/tenant.h"
#include "vgpu/shim/swap.h"

/* --- what the engine finds around it in the shim ------------------------------------------------------------------ */

static struct kerf_policy policy = { .device_count = 1, .flags = KERF_POLICY_OVERCOMMIT };
static struct kerf_usage usage;
static struct share share = { .policy = &policy, .usage = &usage, .slot = usage.slot, .generation = 1 };
static struct device device = { .share = &share };

__thread unsigned kerf_depth __attribute__((tls_model("initial-exec")));
static char program[] = "swap-probe";

#define NAME(call) [H_##call] = { .symbol = #call }
struct hook kerf_hooks[HOOKS] = {
	NAME(cuCtxGetCurrent), NAME(cuCtxPopCurrent_v2), NAME(cuCtxPushCurrent_v2), NAME(cuCtxSynchronize), NAME(cuMemAddressFree),
	NAME(cuMemAddressReserve), NAME(cuMemAlloc_v2), NAME(cuMemCreate), NAME(cuMemFree_v2), NAME(cuMemGetAllocationGranularity),
	NAME(cuMemHostRegister_v2), NAME(cuMemHostUnregister), NAME(cuMemMap), NAME(cuMemRelease), NAME(cuMemSetAccess), NAME(cuMemUnmap),
	NAME(cuMemcpyDtoHAsync_v2), NAME(cuMemcpyHtoDAsync_v2), NAME(cuStreamCreate), NAME(cuStreamDestroy_v2), NAME(cuStreamSynchronize),
	NAME(cuThreadExchangeStreamCaptureMode),
};

void *kerf_resolve(enum hook_id id)
{
	struct hook *hook = &kerf_hooks[id];
	void *real = hook->symbol ? dlsym(RTLD_DEFAULT, hook->symbol) : NULL;

	if (!real) {
		fprintf(stderr, "%s: libcuda.so.1 has no %s\n", program, hook->symbol ? hook->symbol : "such call");
		exit(1);
	}
	__atomic_store_n(&hook->real, real, __ATOMIC_RELEASE);
	return real;
}

struct device *kerf_device(CUdevice ordinal) { return ordinal == 0 ? &device : NULL; }
int kerf_device_count(void) { return 1; }
CUresult kerf_charge_apart(struct device *d, uint64_t bytes) { d->own += bytes; return CUDA_SUCCESS; }
void kerf_discharge_apart(struct device *d, uint64_t bytes) { d->own -= bytes; }

uint64_t kerf_current_context(void)
{
	CUcontext ctx = NULL;

	cuCtxGetCurrent(&ctx);
	return (uintptr_t)ctx;
}

/* --- measuring ---------------------------------------------------------------------------------------------------- */

static struct tenant tenant;

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static int by_size(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static double median(double *v, int n)
{
	qsort(v, (size_t)n, sizeof *v, by_size);
	return v[n / 2];
}

enum { COPY_OUT, COPY_IN, SWAP_OUT, SWAP_IN, KINDS, MOST_ROUNDS = 64 };
static const char *const kinds[KINDS] = { "copy out", "copy in", "swap out", "swap in" };

static void move(CUresult (*how)(struct device *, uint64_t, uint64_t *), uint64_t bytes)
{
	uint64_t moved = 0;

	CU(&tenant, how(&device, UINT64_MAX, &moved));
	if (moved == bytes)
		return;
	fprintf(stderr, "%s: %llu of %llu bytes moved\n", program, (unsigned long long)moved, (unsigned long long)bytes);
	exit(1);
}

static double timed(int kind, CUdeviceptr p, void *host, uint64_t bytes)
{
	double from = now();

	if (kind == COPY_OUT)
		CU(&tenant, cuMemcpyDtoHAsync_v2(host, p, bytes, NULL));
	else if (kind == COPY_IN)
		CU(&tenant, cuMemcpyHtoDAsync_v2(p, host, bytes, NULL));
	else
		move(kind == SWAP_OUT ? kerf_swap_out : kerf_swap_in, bytes);
	CU(&tenant, cuCtxSynchronize());
	return (double)bytes / (now() - from) / 1e9;
}

/* What swap_area.c counts on: a free of the driver's own memory waits for all work of the context. */
static int free_waits(void)
{
	CUdeviceptr p;
	CUstream stream;
	double from;

	CU(&tenant, cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
	CU(&tenant, cuMemAlloc_v2(&p, GRANULE));
	from = now();
	tenant_spin(&tenant, stream, 100000);
	CU(&tenant, cuMemFree_v2(p));
	return now() - from > 0.095;
}

static void usage_error(void)
{
	fprintf(stderr, "usage: %s [--mib N] [--rounds N] [--least PERCENT]\n", program);
	exit(2);
}

int main(int argc, char **argv)
{
	uint64_t bytes = 1024 * MIB;
	int rounds = 7, least = 0, bad = 0;
	static double rate[KINDS][MOST_ROUNDS];
	double first, got[KINDS];
	CUdeviceptr p;
	void *host;

	for (int i = 1; i + 1 < argc || i < argc; i += 2) {
		long n = i + 1 < argc ? atol(argv[i + 1]) : 0;

		if (n <= 0)
			usage_error();
		if (!strcmp(argv[i], "--mib"))
			bytes = (uint64_t)n * MIB & ~(PIECE - 1);
		else if (!strcmp(argv[i], "--rounds") && n <= MOST_ROUNDS)
			rounds = (int)n;
		else if (!strcmp(argv[i], "--least"))
			least = (int)n;
		else
			usage_error();
	}
	tenant_open(&tenant, program);
	if (!kerf_swappable(&device)) {
		fprintf(stderr, "%s: this driver has no virtual memory of 2 MiB pages\n", program);
		return 77;
	}
	CU(&tenant, cuMemHostAlloc(&host, bytes, 0));
	CU(&tenant, kerf_swap_alloc(&device, &p, bytes));
	tenant_fill(&tenant, p, bytes, 4711);
	CU(&tenant, cuCtxSynchronize());
	first = timed(SWAP_OUT, p, NULL, bytes);
	timed(SWAP_IN, p, NULL, bytes);
	timed(COPY_OUT, p, host, bytes);
	for (int round = 0; round < rounds; round++)
		for (int kind = 0; kind < KINDS; kind++)
			rate[kind][round] = timed(kind, p, host, bytes);
	bad = !tenant_verify(&tenant, p, bytes, 4711) ? 0 : 1;
	printf("%s, %llu MiB in %llu MiB pieces and less, medians of %d; %s\n", tenant.card, (unsigned long long)(bytes / MIB), PIECE_LARGE / MIB, rounds,
	       free_waits() ? "a free waits for work" : "A FREE DOES NOT WAIT FOR WORK");
	for (int kind = 0; kind < KINDS; kind++) {
		got[kind] = median(rate[kind], rounds);
		printf("%-9s %6.2f GB/s (%.2f to %.2f)\n", kinds[kind], got[kind], rate[kind][0], rate[kind][rounds - 1]);
	}
	for (int kind = SWAP_OUT; kind < KINDS; kind++)
		bad |= got[kind] * 100 < got[kind - SWAP_OUT] * least ? 2 : 0;
	if (bad & 1)
		printf("bytes are wrong\n");
	CU(&tenant, kerf_swap_free(p, &(CUresult){ 0 }) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE);
	printf("%sswap out %.0f %% and in %.0f %% of a page-locked copy (%.1f and %.1f GB/s); the first out %.1f GB/s\n", tenant.simulated ? "simulated: " : "",
	       100 * got[SWAP_OUT] / got[COPY_OUT], 100 * got[SWAP_IN] / got[COPY_IN], got[COPY_OUT], got[COPY_IN], first);
	return bad != 0;
}
