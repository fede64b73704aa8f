/* exercise.c: calls the simulated NVML with good and bad arguments, from several threads, under the
 * sanitizers. Usage: exercise LIBNVIDIA-ML. It checks little of the answers (go-nvml's tests do): it is here
 * for what the sanitizers say. */
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../abi.h"

static void *lib;
static int failed;

static void *named(const char *name)
{
	void *f = dlsym(lib, name);
	if (!f) {
		fprintf(stderr, "exercise: %s is missing\n", name);
		exit(1);
	}
	return f;
}

/* Calls name(device, …) with room for any answer; all arguments after the device are pointers or numbers. */
#define ASK(name, ...) ((int (*)())named(name))(__VA_ARGS__)
#define EXPECT(want, name, ...)                                                          \
	do {                                                                             \
		int got = ASK(name, __VA_ARGS__);                                        \
		if (got != (want)) {                                                     \
			fprintf(stderr, "exercise: %s: %d, want %d\n", name, got, want); \
			failed = 1;                                                      \
		}                                                                        \
	} while (0)

static const char *const with_one_pointer[] = {
	"nvmlDeviceGetMemoryInfo", "nvmlDeviceGetBAR1MemoryInfo", "nvmlDeviceGetUtilizationRates", "nvmlDeviceGetPciInfo_v3", "nvmlDeviceGetIndex",
	"nvmlDeviceGetMinorNumber", "nvmlDeviceGetBrand", "nvmlDeviceGetArchitecture", "nvmlDeviceGetNumGpuCores", "nvmlDeviceGetMemoryBusWidth",
	"nvmlDeviceGetCurrPcieLinkGeneration", "nvmlDeviceGetCurrPcieLinkWidth", "nvmlDeviceGetPcieReplayCounter", "nvmlDeviceGetPowerUsage",
	"nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetPersistenceMode", "nvmlDeviceGetComputeMode",
	"nvmlDeviceGetMaxMigDeviceCount", "nvmlDeviceGetSupportedEventTypes", "nvmlDeviceGetRowRemapperHistogram", "nvmlDeviceGetPerformanceState",
};

static void ask_all(nv_device d)
{
	_Alignas(16) char room[4096];
	char text[96];
	for (size_t i = 0; i < sizeof with_one_pointer / sizeof with_one_pointer[0]; i++) {
		EXPECT(NV_SUCCESS, with_one_pointer[i], d, room);
		EXPECT(NV_INVALID_ARGUMENT, with_one_pointer[i], d, (void *)NULL);
	}
	EXPECT(NV_SUCCESS, "nvmlDeviceGetName", d, text, 96u);
	EXPECT(NV_INSUFFICIENT_SIZE, "nvmlDeviceGetName", d, text, 3u);
	EXPECT(NV_INSUFFICIENT_SIZE, "nvmlDeviceGetUUID", d, text, 10u);
	EXPECT(NV_SUCCESS, "nvmlDeviceGetSerial", d, text, 30u);
	unsigned count = 0;
	ASK("nvmlDeviceGetComputeRunningProcesses_v3", d, &count, (void *)NULL);
	unsigned long set[4];
	EXPECT(NV_SUCCESS, "nvmlDeviceGetCpuAffinity", d, 4u, set);
	struct nv_memory_v2 memory = { .version = 7 };
	EXPECT(NV_VERSION_MISMATCH, "nvmlDeviceGetMemoryInfo_v2", d, &memory);
	struct nv_field fields[320];
	for (unsigned i = 0; i < 320; i++)
		fields[i] = (struct nv_field){ .id = i, .scope = i % 40 };
	EXPECT(NV_SUCCESS, "nvmlDeviceGetFieldValues", d, 320, fields);
	EXPECT(NV_INVALID_ARGUMENT, "nvmlDeviceGetFieldValues", d, -1, fields);
	for (unsigned link = 0; link < 40; link++)
		ASK("nvmlDeviceGetNvLinkRemotePciInfo_v2", d, link, room);
	for (unsigned slot = 0; slot < 32; slot++)
		ASK("nvmlDeviceGetGpuInstanceProfileInfo", d, slot, room);
	struct nv_placement places[2];
	count = 2;
	EXPECT(NV_INSUFFICIENT_SIZE, "nvmlDeviceGetGpuInstancePossiblePlacements_v2", d, 19u, places, &count);
	for (unsigned i = 0; i < 16; i++) {
		nv_device mig;
		if (ASK("nvmlDeviceGetMigDeviceHandleByIndex", d, i, &mig) == NV_SUCCESS)
			EXPECT(NV_SUCCESS, "nvmlDeviceGetName", mig, text, 96u);
	}
}

static void *worker(void *arg)
{
	for (int round = 0; round < 50; round++)
		ask_all(arg);
	return NULL;
}

/* Makes and destroys instances beside others who do; the answer of each call is right or "no room". */
static void *churn(void *arg)
{
	for (int round = 0; round < 100; round++) {
		nv_gpu_instance gi;
		nv_compute_instance ci;
		struct nv_gi_info info;
		int r = ASK("nvmlDeviceCreateGpuInstance", arg, round % 2 ? 19u : 14u, &gi);
		if (r != NV_SUCCESS) {
			failed |= r != NV_INSUFFICIENT_RESOURCES;
			continue;
		}
		EXPECT(NV_SUCCESS, "nvmlGpuInstanceGetInfo", gi, &info);
		EXPECT(NV_SUCCESS, "nvmlGpuInstanceCreateComputeInstance", gi, info.placement.size - 1, &ci);
		EXPECT(NV_IN_USE, "nvmlGpuInstanceDestroy", gi);
		EXPECT(NV_SUCCESS, "nvmlComputeInstanceDestroy", ci);
		EXPECT(NV_SUCCESS, "nvmlGpuInstanceDestroy", gi);
	}
	return NULL;
}

static void bad_instances(nv_device d)
{
	nv_gpu_instance gi;
	struct nv_gi_info info;
	char junk[64] = "";
	unsigned count;
	EXPECT(NV_INVALID_ARGUMENT, "nvmlDeviceCreateGpuInstance", d, 19u, (void *)NULL);
	EXPECT(NV_INVALID_ARGUMENT, "nvmlDeviceCreateGpuInstanceWithPlacement", d, 19u, (void *)NULL, &gi);
	EXPECT(NV_INVALID_ARGUMENT, "nvmlGpuInstanceDestroy", (void *)NULL);
	EXPECT(NV_INVALID_ARGUMENT, "nvmlGpuInstanceDestroy", (void *)junk);
	EXPECT(NV_INVALID_ARGUMENT, "nvmlComputeInstanceDestroy", (void *)junk);
	EXPECT(NV_INVALID_ARGUMENT, "nvmlGpuInstanceGetInfo", d, &info);
	EXPECT(NV_INVALID_ARGUMENT, "nvmlGpuInstanceGetComputeInstancePossiblePlacements", (void *)junk, 0u, (void *)NULL, &count);
	EXPECT(NV_SUCCESS, "nvmlDeviceGetGpuInstanceRemainingCapacity", d, 19u, &count);
	if (count != 7) {
		fprintf(stderr, "exercise: room for %u of 7 instances\n", count);
		failed = 1;
	}
}

int main(int argc, char **argv)
{
	lib = argc == 2 ? dlopen(argv[1], RTLD_NOW) : NULL;
	if (!lib) {
		fprintf(stderr, "exercise: %s\n", dlerror());
		return 1;
	}
	nv_device d = NULL;
	char junk[256] = "";
	EXPECT(NV_UNINITIALIZED, "nvmlDeviceGetHandleByIndex_v2", 0u, &d);
	EXPECT(NV_UNINITIALIZED, "nvmlDeviceGetName", d, junk, 96u);
	EXPECT(NV_SUCCESS, "nvmlInit_v2");
	EXPECT(NV_INVALID_ARGUMENT, "nvmlDeviceGetHandleByIndex_v2", 999u, &d);
	EXPECT(NV_INVALID_ARGUMENT, "nvmlDeviceGetName", (nv_device)(void *)junk, junk, 96u);
	EXPECT(NV_SUCCESS, "nvmlDeviceGetHandleByIndex_v2", 7u, &d);
	EXPECT(NV_INVALID_ARGUMENT, "nvmlDeviceGetName", (nv_device)((char *)d + 4), junk, 96u);

	nv_event_set events;
	struct nv_event e;
	EXPECT(NV_SUCCESS, "nvmlEventSetCreate", &events);
	EXPECT(NV_NOT_SUPPORTED, "nvmlDeviceRegisterEvents", d, ~0ull, events);
	EXPECT(NV_SUCCESS, "nvmlDeviceRegisterEvents", d, 8ull, events);
	EXPECT(NV_TIMEOUT, "nvmlEventSetWait_v2", events, &e, 1u);
	EXPECT(NV_SUCCESS, "nvmlEventSetFree", events);

	pthread_t threads[4];
	for (int i = 0; i < 4; i++)
		pthread_create(&threads[i], NULL, worker, d);
	for (int i = 0; i < 4; i++)
		pthread_join(threads[i], NULL);
	EXPECT(NV_SUCCESS, "nvmlDeviceGetHandleByIndex_v2", 6u, &d);
	for (int i = 0; i < 4; i++)
		pthread_create(&threads[i], NULL, churn, d);
	for (int i = 0; i < 4; i++)
		pthread_join(threads[i], NULL);
	bad_instances(d);
	EXPECT(NV_SUCCESS, "nvmlShutdown");
	EXPECT(NV_UNINITIALIZED, "nvmlShutdown");
	return failed;
}
