/* look: says what a tenant sees of its GPUs, by the CUDA driver and by NVML, one line a GPU. With --seconds it then
 * works for so long in small beats (allocate, write, read back, free) and says how long the longest one took: a
 * daemon that restarts, or a neighbour that misbehaves, would show there. */
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include "options.h"
#include "tenant.h"

/* --- NVML, which no tenant links: it is opened as nvidia-smi does ------------------------------------- */

struct nvml_memory {
	unsigned long long total, free, used;
};

struct nvml {
	unsigned count;
	char word[64]; /* what went wrong; empty: nothing */
	int (*by_uuid)(const char *uuid, void **device);
	int (*memory)(void *device, struct nvml_memory *memory);
};

static struct nvml open_nvml(void)
{
	struct nvml nvml = {0};
	void *library = dlopen("libnvidia-ml.so.1", RTLD_NOW);
	int (*init)(void), (*count)(unsigned *);
	int result = 0;
	if (!library) {
		snprintf(nvml.word, sizeof nvml.word, "libnvidia-ml.so.1 cannot be opened");
		return nvml;
	}
	*(void **)&init = dlsym(library, "nvmlInit_v2");
	*(void **)&count = dlsym(library, "nvmlDeviceGetCount_v2");
	*(void **)&nvml.by_uuid = dlsym(library, "nvmlDeviceGetHandleByUUID");
	*(void **)&nvml.memory = dlsym(library, "nvmlDeviceGetMemoryInfo");
	if (!init || !count || !nvml.by_uuid || !nvml.memory)
		snprintf(nvml.word, sizeof nvml.word, "libnvidia-ml.so.1 lacks calls");
	else if ((result = init()) != 0 || (result = count(&nvml.count)) != 0)
		snprintf(nvml.word, sizeof nvml.word, "NVML error %d", result);
	return nvml;
}

/* What NVML says of the GPU's memory; all 0 where it has none of that name. */
static struct nvml_memory nvml_memory_of(const struct nvml *nvml, const char *uuid)
{
	struct nvml_memory memory = {0};
	void *device;
	if (!nvml->word[0] && nvml->by_uuid(uuid, &device) == 0 && nvml->memory(device, &memory) != 0)
		memset(&memory, 0, sizeof memory);
	return memory;
}

/* --- one look ------------------------------------------------------------------------------------------ */

static void uuid_text(CUdevice device, const struct tenant *tenant, char text[48])
{
	CUuuid uuid;
	size_t at = (size_t)sprintf(text, "GPU-");
	CU(tenant, cuDeviceGetUuid_v2(&uuid, device)); /* _v2: a MIG instance's own */
	for (size_t i = 0; i < sizeof uuid.bytes; i++) {
		if (i == 4 || i == 6 || i == 8 || i == 10)
			text[at++] = '-';
		at += (size_t)sprintf(text + at, "%02x", (unsigned char)uuid.bytes[i]);
	}
}

static void look_at(const struct tenant *tenant, const struct nvml *nvml, int index, int count)
{
	char uuid[48], name[128] = "", text[320];
	size_t total = 0, info_free = 0, info_total = 0;
	CUdevice device;
	CUcontext context;
	CU(tenant, cuDeviceGet(&device, index));
	CU(tenant, cuDeviceGetName(name, sizeof name, device));
	CU(tenant, cuDeviceTotalMem_v2(&total, device));
	uuid_text(device, tenant, uuid);
	CU(tenant, cuDevicePrimaryCtxRetain(&context, device));
	CU(tenant, cuCtxSetCurrent(context));
	CU(tenant, cuMemGetInfo_v2(&info_free, &info_total));
	CU(tenant, cuCtxSetCurrent(tenant->context));
	struct nvml_memory memory = nvml_memory_of(nvml, uuid);
	snprintf(text, sizeof text, "look: GPU %d of %d, %s: %s by cuMemGetInfo, %s by cuDeviceTotalMem, %s by NVML, which sees %u GPUs%s%s",
	         index, count, uuid, human_bytes(info_total), human_bytes(total), human_bytes(memory.total), nvml->count,
	         nvml->word[0] ? ": " : "", nvml->word);
	tenant_say(tenant, "look", text,
	           "\"index\":%d,\"count\":%d,\"uuid\":\"%s\",\"name\":\"%s\",\"total\":%zu,\"info_total\":%zu,\"info_free\":%zu,"
	           "\"nvml_total\":%llu,\"nvml_free\":%llu,\"nvml_used\":%llu,\"nvml_count\":%u,\"nvml_error\":\"%s\"",
	           index, count, uuid, name, total, info_total, info_free, memory.total, memory.free, memory.used, nvml->count, nvml->word);
	CU(tenant, cuDevicePrimaryCtxRelease_v2(device));
}

/* --- the beats ----------------------------------------------------------------------------------------- */

enum { BEAT_BYTES = 2 << 20, BEAT_CHECKED = 64 << 10 };

struct beats {
	uint64_t count;
	double longest, longest_at; /* seconds; when, after the first one */
};

static void beat(struct tenant *tenant, uint32_t seed)
{
	CUdeviceptr p;
	CU(tenant, cuMemAlloc_v2(&p, BEAT_BYTES));
	tenant_fill(tenant, p, BEAT_CHECKED, seed);
	tenant_verify(tenant, p, BEAT_CHECKED, seed);
	CU(tenant, cuMemFree_v2(p));
}

static struct beats keep_beating(struct tenant *tenant, double seconds, double pause)
{
	struct beats beats = {0};
	double start = now_seconds();
	for (double began = start; !tenant_stop && began - start < seconds; began = now_seconds()) {
		beat(tenant, (uint32_t)beats.count++);
		double took = now_seconds() - began;
		if (took > beats.longest) {
			beats.longest = took;
			beats.longest_at = began - start;
		}
		sleep_seconds(pause);
	}
	return beats;
}

static void report(const struct tenant *tenant, const struct beats *beats)
{
	char text[200];
	snprintf(text, sizeof text, "look: %llu beats, the longest %.1f ms after %.1f s, %llu wrong", (unsigned long long)beats->count,
	         beats->longest * 1e3, beats->longest_at, (unsigned long long)tenant->wrong);
	tenant_say(tenant, "report", text, "\"limit\":%zu,\"beats\":%llu,\"longest_ms\":%.3f,\"longest_at\":%.3f,\"verified\":%llu,\"wrong\":%llu",
	           tenant->total, (unsigned long long)beats->count, beats->longest * 1e3, beats->longest_at,
	           (unsigned long long)tenant->verified, (unsigned long long)tenant->wrong);
}

int main(int argc, char **argv)
{
	struct tenant tenant = {0};
	double seconds = 0, pause = 0.01;
	int count = 0;
	const struct option_row rows[] = {
		{"seconds", OPTION_NUMBER, &seconds, "how long to work afterwards, until SIGTERM at most (0: not at all)"},
		{"pause", OPTION_NUMBER, &pause, "seconds between two beats (0.01)"},
		{"json", OPTION_FLAG, &tenant.json, "lines of JSON"},
	};
	options_read(argc, argv, "says what it sees of its GPUs", rows, sizeof rows / sizeof rows[0]);
	tenant_stop_on_signals();
	tenant_open(&tenant, "look");
	struct nvml nvml = open_nvml();
	CU(&tenant, cuDeviceGetCount(&count));
	for (int i = 0; i < count; i++)
		look_at(&tenant, &nvml, i, count);
	if (seconds > 0) {
		struct beats beats = keep_beating(&tenant, seconds, pause);
		report(&tenant, &beats);
	}
	tenant_close(&tenant);
	return tenant.wrong != 0 || nvml.word[0] != 0;
}
