#include "tenant.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>
#include <unistd.h>

#include "options.h"

/* The kernels as PTX text, NUL-terminated; the path is set by build.mk. */
__asm__(".section .rodata\n"
	"kernels_ptx: .incbin \"" KERNELS_PTX "\"\n"
	".byte 0\n"
	".previous");
extern const char kernels_ptx[] __attribute__((visibility("hidden")));

enum { THREADS = 256 };

volatile sig_atomic_t tenant_stop;

static void on_stop(int number)
{
	(void)number;
	tenant_stop = 1;
}

void tenant_stop_on_signals(void)
{
	/* No SA_RESTART: a sleep ends at once. SA_RESETHAND: the second signal kills, should the GPU hang. */
	struct sigaction action = {.sa_handler = on_stop, .sa_flags = (int)SA_RESETHAND};
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGINT, &action, NULL);
}

double now_seconds(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

void sleep_seconds(double seconds)
{
	struct timespec wait = {.tv_sec = (time_t)seconds};
	wait.tv_nsec = (long)((seconds - (double)wait.tv_sec) * 1e9);
	nanosleep(&wait, NULL);
}

const char *cu_name(CUresult result)
{
	const char *name = NULL;
	if (cuGetErrorName(result, &name) != CUDA_SUCCESS || !name)
		return "unknown error";
	return name;
}

void cu_check(const struct tenant *tenant, CUresult result, const char *call)
{
	if (result == CUDA_SUCCESS)
		return;
	fprintf(stderr, "%s: %.*s: %s (%d)\n", tenant->name, (int)strcspn(call, "("), call, cu_name(result), result);
	exit(1);
}

static void load_kernels(struct tenant *tenant)
{
	CUmodule module;
	CU(tenant, cuModuleLoadData(&module, kernels_ptx));
	struct { const char *name; CUfunction *into; } wanted[] = {
		{"kerf_fill", &tenant->fill}, {"kerf_checksum", &tenant->checksum},
		{"kerf_spin", &tenant->spin},
	};
	for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++)
		CU(tenant, cuModuleGetFunction(wanted[i].into, module, wanted[i].name));
}

void tenant_open(struct tenant *tenant, const char *name)
{
	int devices = 0;
	tenant->name = name;
	CU(tenant, cuInit(0));
	CU(tenant, cuDeviceGetCount(&devices));
	if (devices == 0) {
		fprintf(stderr, "%s: no GPU: cuDeviceGetCount says 0\n", name);
		exit(1);
	}
	CU(tenant, cuDeviceGet(&tenant->device, 0));
	CU(tenant, cuDeviceGetName(tenant->card, sizeof tenant->card, tenant->device));
	tenant->simulated = strcasestr(tenant->card, "simulated") != NULL;
	CU(tenant, cuDevicePrimaryCtxRetain(&tenant->context, tenant->device));
	CU(tenant, cuCtxSetCurrent(tenant->context));
	load_kernels(tenant);
	CU(tenant, cuMemAlloc_v2(&tenant->sum, sizeof(uint64_t)));
	CU(tenant, cuMemGetInfo_v2(&tenant->free_at_start, &tenant->total));
}

void tenant_close(struct tenant *tenant)
{
	CU(tenant, cuMemFree_v2(tenant->sum));
	CU(tenant, cuDevicePrimaryCtxRelease_v2(tenant->device));
}

size_t tenant_free_bytes(const struct tenant *tenant)
{
	size_t free_bytes, total;
	CU(tenant, cuMemGetInfo_v2(&free_bytes, &total));
	return free_bytes;
}

static void launch(struct tenant *tenant, CUfunction kernel, unsigned blocks, CUstream stream, void **args)
{
	CU(tenant, cuLaunchKernel(kernel, blocks, 1, 1, THREADS, 1, 1, 0, stream, args, NULL));
}

static unsigned blocks_for(uint64_t words)
{
	uint64_t blocks = (words + THREADS - 1) / THREADS;
	return blocks < 1024 ? (unsigned)blocks : 1024; /* the kernels stride over what is left */
}

/* The word of a seed: never 0, and different for all seeds, so that fresh or another's memory cannot pass. */
static uint32_t word_of(uint32_t seed)
{
	uint32_t word = (seed + 1) * 2654435761u;
	return word ? word : 1;
}

void tenant_fill(struct tenant *tenant, CUdeviceptr p, size_t bytes, uint32_t seed)
{
	uint64_t words = bytes / sizeof(uint32_t);
	uint32_t word = word_of(seed);
	void *args[] = {&p, &words, &word};
	launch(tenant, tenant->fill, blocks_for(words), NULL, args);
}

void tenant_pattern(uint32_t *words, size_t bytes, uint32_t seed)
{
	for (size_t i = 0; i < bytes / sizeof *words; i++)
		words[i] = word_of(seed);
}

int tenant_verify(struct tenant *tenant, CUdeviceptr p, size_t bytes, uint32_t seed)
{
	uint64_t words = bytes / sizeof(uint32_t), sum = 0;
	void *args[] = {&tenant->sum, &p, &words};
	CU(tenant, cuMemsetD32_v2(tenant->sum, 0, 2));
	launch(tenant, tenant->checksum, blocks_for(words), NULL, args);
	CU(tenant, cuMemcpyDtoH_v2(&sum, tenant->sum, sizeof sum));
	tenant->verified++;
	if (sum == words * word_of(seed))
		return 0;
	tenant->wrong++;
	fprintf(stderr, "%s: WRONG DATA: %zu bytes at 0x%llx of seed %u sum to 0x%llx\n", tenant->name, bytes, p, seed,
	        (unsigned long long)sum);
	return 1;
}

void tenant_spin(struct tenant *tenant, CUstream stream, uint64_t microseconds)
{
	void *args[] = {&microseconds};
	launch(tenant, tenant->spin, 1, stream, args);
}

/* Chunks of at most 64 MiB, equal, and of whole granules where they are that large, so that nothing is lost to
 * the driver's rounding. */
static void divide(struct holding *holding, size_t bytes)
{
	enum { CHUNK = 64 << 20, GRANULE = 2 << 20 };
	holding->count = (bytes + CHUNK - 1) / CHUNK;
	size_t each = holding->count ? bytes / holding->count : 0;
	holding->chunk_bytes = each & ~(size_t)(each >= GRANULE ? GRANULE - 1 : 3);
	if (holding->chunk_bytes == 0)
		holding->count = 0;
	if (holding->touched > holding->chunk_bytes)
		holding->touched = holding->chunk_bytes;
}

void holding_take(struct tenant *tenant, struct holding *holding, size_t bytes, uint32_t seed)
{
	if (bytes == 0)
		bytes = tenant->free_at_start / 5 * 4;
	divide(holding, bytes);
	holding->seed = seed;
	holding->chunk = calloc(holding->count ? holding->count : 1, sizeof *holding->chunk);
	if (!holding->chunk) {
		fprintf(stderr, "%s: out of host memory\n", tenant->name);
		exit(1);
	}
	for (size_t i = 0; i < holding->count; i++) {
		CU(tenant, cuMemAlloc_v2(&holding->chunk[i], holding->chunk_bytes));
		tenant_fill(tenant, holding->chunk[i], holding->touched, seed << 16 | (uint32_t)i);
	}
	CU(tenant, cuCtxSynchronize());
	char text[400];
	size_t held = holding->count * holding->chunk_bytes;
	snprintf(text, sizeof text, "%s: holds %s of %s on %s", tenant->name, human_bytes(held), human_bytes(tenant->total),
	         tenant->card);
	tenant_say(tenant, "holding", text, "\"limit\":%zu,\"held\":%zu", tenant->total, held);
}

int holding_verify_one(struct tenant *tenant, const struct holding *holding, size_t turn)
{
	if (holding->count == 0)
		return 0;
	size_t i = turn % holding->count;
	return tenant_verify(tenant, holding->chunk[i], holding->touched, holding->seed << 16 | (uint32_t)i);
}

int holding_verify(struct tenant *tenant, const struct holding *holding)
{
	int wrong = 0;
	for (size_t i = 0; i < holding->count; i++)
		wrong += holding_verify_one(tenant, holding, i);
	return wrong;
}

void holding_release(struct tenant *tenant, struct holding *holding)
{
	for (size_t i = 0; i < holding->count; i++)
		CU(tenant, cuMemFree_v2(holding->chunk[i]));
	free(holding->chunk);
	*holding = (struct holding){0};
}

void tenant_say(const struct tenant *tenant, const char *event, const char *text, const char *members, ...)
{
	if (tenant->json) {
		printf("{\"tenant\":\"%s\",\"event\":\"%s\",\"pid\":%d,\"simulated\":%s,\"card\":\"%s\",", tenant->name, event,
		       (int)getpid(), tenant->simulated ? "true" : "false", tenant->card);
		va_list values;
		va_start(values, members);
		vprintf(members, values);
		va_end(values);
		puts("}");
	} else {
		printf("%s%s\n", text, tenant->simulated ? " [simulated GPU]" : "");
	}
	fflush(stdout); /* somebody may wait for this line at the other end of a pipe */
}
