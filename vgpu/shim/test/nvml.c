/* nvml.c: what NVML shows a tenant, one line a fact, for the test to compare. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../nvml.h"

typedef int (*any)();

static void *lib;

static any find(const char *name)
{
	any f = (any)dlsym(lib, name);

	if (!f) {
		printf("FAIL no %s\n", name);
		exit(1);
	}
	return f;
}

static void processes(const char *name, void *device, size_t size)
{
	char list[64 * 24];
	unsigned count = 0;
	int r = find(name)(device, &count, NULL);

	printf("%s asked %d %u", name, r, count);
	count = 64;
	r = find(name)(device, &count, list);
	printf(" got %d", r);
	for (unsigned i = 0; r == 0 && i < count; i++) {
		unsigned pid;
		unsigned long long used;

		memcpy(&pid, list + i * size, sizeof pid);
		memcpy(&used, list + i * size + 8, sizeof used);
		printf(" %u:%llu", pid, used);
	}
	printf("\n");
}

/* Arguments: UUIDs to ask for. */
int main(int argc, char **argv)
{
	struct process_sample samples[64];
	unsigned count = 0, index, n;
	void *device;
	char uuid[96];

	lib = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
	if (!lib || find("nvmlInit_v2")()) {
		printf("FAIL %s\n", lib ? "nvmlInit_v2" : dlerror());
		return 1;
	}
	printf("count %d", find("nvmlDeviceGetCount_v2")(&count));
	printf(" %u\n", count);
	for (unsigned i = 0; i <= count; i++) {
		struct memory m = { 0 };
		struct memory_v2 v2 = { .version = 2u << 24 | (unsigned)sizeof v2 };
		int r = find("nvmlDeviceGetHandleByIndex_v2")(i, &device);

		if (r) {
			printf("index %u: %d\n", i, r);
			continue;
		}
		find("nvmlDeviceGetUUID")(device, uuid, (unsigned)sizeof uuid);
		find("nvmlDeviceGetIndex")(device, &index);
		find("nvmlDeviceGetMemoryInfo")(device, &m);
		find("nvmlDeviceGetMemoryInfo_v2")(device, &v2);
		printf("index %u: %s %u %llu %llu %llu %llu %llu %llu\n", i, uuid, index, m.total, m.used, m.free, v2.total, v2.used, v2.reserved);
		processes("nvmlDeviceGetComputeRunningProcesses", device, 16);
		processes("nvmlDeviceGetComputeRunningProcesses_v2", device, 24);
		processes("nvmlDeviceGetComputeRunningProcesses_v3", device, 24);
		processes("nvmlDeviceGetGraphicsRunningProcesses_v3", device, 24);
		processes("nvmlDeviceGetMPSComputeRunningProcesses_v3", device, 24);
		for (unsigned k = 0; k < 8; k++) {
			void *mig, *card;

			if (find("nvmlDeviceGetMigDeviceHandleByIndex")(device, k, &mig))
				continue;
			find("nvmlDeviceGetUUID")(mig, uuid, (unsigned)sizeof uuid);
			find("nvmlDeviceGetMemoryInfo")(mig, &m);
			find("nvmlDeviceGetIndex")(mig, &index);
			find("nvmlDeviceGetDeviceHandleFromMigDeviceHandle")(mig, &card);
			printf("mig %u: %s %u %llu %llu %s\n", k, uuid, index, m.total, m.used, card == device ? "of it" : "of another");
			printf("mig ");
			processes("nvmlDeviceGetComputeRunningProcesses_v3", mig, 24);
		}
		n = 64;
		printf("samples %d", find("nvmlDeviceGetProcessUtilization")(device, samples, &n, 0ull));
		for (unsigned s = 0; s < n && s < 64; s++)
			printf(" %u", samples[s].pid);
		printf("\n");
	}
	for (int i = 1; i < argc; i++)
		printf("uuid %s: %d\n", argv[i], find("nvmlDeviceGetHandleByUUID")(argv[i], &device));
	return 0;
}
