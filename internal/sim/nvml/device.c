/* device.c: which GPUs there are, what they are, and how they are used. */
#define _GNU_SOURCE
#include "node.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

/* --- finding ----------------------------------------------------------------------------------------- */

NVML nv_return nvmlDeviceGetCount_v2(unsigned *count)
{
	if (!initialized())
		return NV_UNINITIALIZED;
	if (!count)
		return NV_INVALID_ARGUMENT;
	*count = node.count;
	return NV_SUCCESS;
}

NVML nv_return nvmlDeviceGetCount(unsigned *count) { return nvmlDeviceGetCount_v2(count); }

static nv_return found(struct gpu *g, nv_device *device)
{
	nv_return r = enter(&g->self, &g);
	if (r == NV_SUCCESS)
		*device = &g->self;
	return r;
}

NVML nv_return nvmlDeviceGetHandleByIndex_v2(unsigned index, nv_device *device)
{
	if (!initialized())
		return NV_UNINITIALIZED;
	if (!device || index >= node.count)
		return NV_INVALID_ARGUMENT;
	return found(&node.gpu[index], device);
}

NVML nv_return nvmlDeviceGetHandleByIndex(unsigned index, nv_device *device) { return nvmlDeviceGetHandleByIndex_v2(index, device); }

NVML nv_return nvmlDeviceGetHandleByUUID(const char *uuid, nv_device *device)
{
	char text[48];
	if (!initialized())
		return NV_UNINITIALIZED;
	if (!uuid || !device)
		return NV_INVALID_ARGUMENT;
	for (unsigned i = 0; i < node.count; i++) {
		struct gpu *g = &node.gpu[i];
		uuid_text("GPU", g->s->facts.uuid, text);
		if (strcasecmp(text, uuid) == 0)
			return found(g, device);
		for (unsigned j = 0; j < SIM_MAX_MIG_INSTANCES; j++) {
			uuid_text("MIG", g->s->mig[j].uuid, text);
			if (strcasecmp(text, uuid) == 0 && shown(&g->mig[j])) {
				*device = &g->mig[j];
				return NV_SUCCESS;
			}
		}
	}
	return NV_NOT_FOUND;
}

NVML nv_return nvmlDeviceGetHandleByUUIDV(const struct nv_uuid_v1 *uuid, nv_device *device)
{
	char text[48];
	if (!uuid || !device)
		return NV_INVALID_ARGUMENT;
	if (!version_is(uuid->version, struct nv_uuid_v1, 1))
		return NV_VERSION_MISMATCH;
	if (uuid->type == 1) {
		snprintf(text, sizeof text, "%.41s", uuid->value.text);
		return nvmlDeviceGetHandleByUUID(text, device);
	}
	if (uuid->type != 2)
		return NV_INVALID_ARGUMENT;
	uuid_text("GPU", uuid->value.bytes, text);
	return nvmlDeviceGetHandleByUUID(text, device);
}

NVML nv_return nvmlDeviceGetHandleBySerial(const char *serial, nv_device *device)
{
	if (!initialized())
		return NV_UNINITIALIZED;
	if (!serial || !device)
		return NV_INVALID_ARGUMENT;
	for (unsigned i = 0; i < node.count; i++)
		if (strcmp(node.gpu[i].s->facts.serial, serial) == 0)
			return found(&node.gpu[i], device);
	return NV_NOT_FOUND;
}

NVML nv_return nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, nv_device *device)
{
	unsigned domain, bus, dev, function = 0;
	if (!initialized())
		return NV_UNINITIALIZED;
	if (!bus_id || !device)
		return NV_INVALID_ARGUMENT;
	if (sscanf(bus_id, "%x:%x:%x.%x", &domain, &bus, &dev, &function) < 3) {
		domain = 0;
		if (sscanf(bus_id, "%x:%x.%x", &bus, &dev, &function) < 2)
			return NV_INVALID_ARGUMENT;
	}
	for (unsigned i = 0; i < node.count; i++) {
		const struct sim_facts *f = &node.gpu[i].s->facts;
		if (f->pci_domain == domain && f->pci_bus == bus && f->pci_device == dev)
			return found(&node.gpu[i], device);
	}
	return NV_NOT_FOUND;
}

NVML nv_return nvmlDeviceGetHandleByPciBusId(const char *bus_id, nv_device *device)
{
	return nvmlDeviceGetHandleByPciBusId_v2(bus_id, device);
}

/* --- what it is -------------------------------------------------------------------------------------- */

NVML nv_return nvmlDeviceGetUUID(nv_device d, char *uuid, unsigned length)
{
	char text[48];
	ENTER_BY(enter_fixed, d, uuid);
	if (d->kind == H_MIG)
		uuid_text("MIG", instance_of(d)->uuid, text);
	else
		uuid_text("GPU", g->s->facts.uuid, text);
	return copy_text(text, uuid, length);
}

NVML nv_return nvmlDeviceGetIndex(nv_device d, unsigned *index)
{
	ENTER_BY(enter_fixed, d, index);
	*index = d->kind == H_MIG ? d->n : g->index;
	return NV_SUCCESS;
}

NVML nv_return nvmlDeviceGetMinorNumber(nv_device d, unsigned *minor)
{
	ENTER_BY(enter_fixed, d, minor);
	*minor = g->s->facts.minor;
	return NV_SUCCESS;
}

NVML nv_return nvmlDeviceGetModuleId(nv_device d, unsigned *id)
{
	ENTER(d, id);
	*id = g->s->facts.minor;
	return NV_SUCCESS;
}

NVML nv_return nvmlDeviceGetName(nv_device d, char *name, unsigned length)
{
	char text[96];
	ENTER_BY(enter_any, d, name);
	snprintf(text, sizeof text, "%s", g->s->facts.name);
	if (d->kind == H_MIG) {
		char *mark = strstr(text, " (simulated)");
		snprintf(text, sizeof text, "%.*s MIG %s (simulated)", mark ? (int)(mark - text) : 40, g->s->facts.name, profile_of(d)->name);
	}
	return copy_text(text, name, length);
}

/* One line for each fact that is a text of the device file. */
#define TEXT(function, field)                                            \
	NVML nv_return function(nv_device d, char *text, unsigned length) \
	{                                                                \
		ENTER(d, text);                                          \
		return copy_text(g->s->facts.field, text, length);       \
	}
TEXT(nvmlDeviceGetSerial, serial)
TEXT(nvmlDeviceGetVbiosVersion, vbios)
TEXT(nvmlDeviceGetBoardPartNumber, board_part)

NVML nv_return nvmlDeviceGetGspFirmwareVersion(nv_device d, char *version)
{
	ENTER(d, version);
	return copy_text(node.ctl->driver_version, version, sizeof node.ctl->driver_version);
}

NVML nv_return nvmlDeviceGetGspFirmwareMode(nv_device d, unsigned *enabled, unsigned *by_default)
{
	ENTER(d, enabled && by_default);
	*enabled = *by_default = 1;
	return NV_SUCCESS;
}

struct word { const char *text; unsigned number; };

static nv_return number_of(const struct word *table, size_t n, const char *text, unsigned *out)
{
	for (size_t i = 0; i < n; i++)
		if (strcmp(table[i].text, text) == 0) {
			*out = table[i].number;
			return NV_SUCCESS;
		}
	return NV_UNKNOWN;
}

NVML nv_return nvmlDeviceGetBrand(nv_device d, unsigned *brand)
{
	static const struct word brands[] = { { "tesla", 2 }, { "geforce", 5 }, { "rtx", 13 }, { "nvidia", 14 } };
	ENTER(d, brand);
	return number_of(brands, sizeof brands / sizeof brands[0], g->s->facts.brand, brand);
}

NVML nv_return nvmlDeviceGetArchitecture(nv_device d, unsigned *arch)
{
	static const struct word archs[] = { { "volta", 5 }, { "turing", 6 }, { "ampere", 7 }, { "ada", 8 }, { "hopper", 9 }, { "blackwell", 10 } };
	ENTER_BY(enter_any, d, arch);
	return number_of(archs, sizeof archs / sizeof archs[0], g->s->facts.architecture, arch);
}

NVML nv_return nvmlDeviceGetCudaComputeCapability(nv_device d, int *major, int *minor)
{
	ENTER_BY(enter_any, d, major && minor);
	*major = (int)g->s->facts.cc_major;
	*minor = (int)g->s->facts.cc_minor;
	return NV_SUCCESS;
}

NVML nv_return nvmlDeviceGetNumGpuCores(nv_device d, unsigned *cores)
{
	ENTER(d, cores);
	const struct sim_facts *f = &g->s->facts;
	bool small = f->cc_major == 7 || (f->cc_minor == 0 && (f->cc_major == 6 || f->cc_major == 8));
	*cores = f->sm_count * (small ? 64 : 128);
	return NV_SUCCESS;
}

/* Facts that are one number of the device file. */
#define NUMBER(function, type, expr)                   \
	NVML nv_return function(nv_device d, type *out) \
	{                                              \
		ENTER(d, out);                         \
		*out = (type)(expr);                   \
		return NV_SUCCESS;                     \
	}
NUMBER(nvmlDeviceGetMemoryBusWidth, unsigned, g->s->facts.bus_width)
NUMBER(nvmlDeviceGetBoardId, unsigned, g->s->facts.pci_domain << 16 | g->s->facts.pci_bus << 8)
NUMBER(nvmlDeviceGetMultiGpuBoard, unsigned, 0)
NUMBER(nvmlDeviceGetDisplayMode, unsigned, 0)
NUMBER(nvmlDeviceGetDisplayActive, unsigned, 0)
NUMBER(nvmlDeviceGetPersistenceMode, unsigned, g->s->health.persistence)
NUMBER(nvmlDeviceGetComputeMode, unsigned, g->s->health.compute_mode)
NUMBER(nvmlDeviceGetVirtualizationMode, unsigned, 0)
NUMBER(nvmlDeviceGetAccountingMode, unsigned, 0)
NUMBER(nvmlDeviceGetIrqNum, unsigned, 100 + g->index)

NVML nv_return nvmlDeviceGetNumaNodeId(nv_device d, unsigned *id)
{
	ENTER(d, id);
	if (g->s->facts.numa_node < 0)
		return NV_NOT_SUPPORTED;
	*id = (unsigned)g->s->facts.numa_node;
	return NV_SUCCESS;
}

/* --- memory and processes ---------------------------------------------------------------------------- */

static struct nv_memory_v2 memory_of(nv_device d, struct gpu *g)
{
	struct nv_memory_v2 m = { 0 };
	m.total = d->kind == H_MIG ? profile_of(d)->memory : g->s->facts.memory_total;
	m.reserved = d->kind == H_MIG ? 0 : g->s->facts.memory_reserved;
	m.used = used_bytes(d);
	m.free = m.used + m.reserved < m.total ? m.total - m.reserved - m.used : 0;
	return m;
}

NVML nv_return nvmlDeviceGetMemoryInfo(nv_device d, struct nv_memory *out)
{
	ENTER_BY(enter_any, d, out);
	struct nv_memory_v2 m = memory_of(d, g);
	*out = (struct nv_memory){ m.total, m.free, m.total - m.free }; /* version 1 counts the reserved part as used */
	return NV_SUCCESS;
}

NVML nv_return nvmlDeviceGetMemoryInfo_v2(nv_device d, struct nv_memory_v2 *out)
{
	ENTER_BY(enter_any, d, out);
	if (!version_is(out->version, struct nv_memory_v2, 2))
		return NV_VERSION_MISMATCH;
	unsigned version = out->version;
	*out = memory_of(d, g);
	out->version = version;
	return NV_SUCCESS;
}

NVML nv_return nvmlDeviceGetBAR1MemoryInfo(nv_device d, struct nv_bar1 *out)
{
	ENTER(d, out);
	*out = (struct nv_bar1){ g->s->facts.bar1_total, g->s->facts.bar1_total, 0 };
	return NV_SUCCESS;
}

/* What a list call answers for room entries where n are needed. */
static nv_return listed(unsigned *count, unsigned room, unsigned n)
{
	*count = n;
	return n > room ? NV_INSUFFICIENT_SIZE : NV_SUCCESS;
}

/* The instance that a process is in; none: all ones. */
static const struct sim_mig_instance *place_of(const struct gpu *g, const struct sim_use *u)
{
	return u->mig && u->mig <= SIM_MAX_MIG_INSTANCES ? &g->s->mig[u->mig - 1] : NULL;
}
static unsigned gi_of(const struct gpu *g, const struct sim_use *u) { return place_of(g, u) ? place_of(g, u)->gi : ~0u; }
static unsigned ci_of(const struct gpu *g, const struct sim_use *u) { return place_of(g, u) ? place_of(g, u)->ci : ~0u; }

/* Clients of an MPS server have a list of their own. */
static unsigned of_kind(struct user *u, unsigned n, bool mps)
{
	unsigned kept = 0;
	for (unsigned i = 0; i < n; i++)
		if ((__atomic_load_n(&u[i].use->mps, __ATOMIC_ACQUIRE) != 0) == mps)
			u[kept++] = u[i];
	return kept;
}

static nv_return processes(nv_device d, bool mps, unsigned *count, struct nv_process *infos, struct nv_process_v1 *infos_v1)
{
	struct user u[SIM_MAX_PROCS];
	ENTER_BY(enter_any, d, count && (*count == 0 || infos || infos_v1));
	unsigned room = *count, n = of_kind(u, users(d, u), mps);
	for (unsigned i = 0; i < n && i < room; i++) {
		unsigned pid = (unsigned)u[i].pid;
		unsigned long long used = __atomic_load_n(&u[i].use->used, __ATOMIC_RELAXED);
		if (infos)
			infos[i] = (struct nv_process){ pid, used, gi_of(g, u[i].use), ci_of(g, u[i].use) };
		else
			infos_v1[i] = (struct nv_process_v1){ pid, used };
	}
	return listed(count, room, n);
}

/* Whole names: the generator of unsupported.c looks for them. */
#define LIST_V1(function, mps) NVML nv_return function(nv_device d, unsigned *n, struct nv_process_v1 *p) { return processes(d, mps, n, NULL, p); }
#define LIST(function, mps)    NVML nv_return function(nv_device d, unsigned *n, struct nv_process *p) { return processes(d, mps, n, p, NULL); }
LIST_V1(nvmlDeviceGetComputeRunningProcesses, false)
LIST(nvmlDeviceGetComputeRunningProcesses_v2, false)
LIST(nvmlDeviceGetComputeRunningProcesses_v3, false)
LIST_V1(nvmlDeviceGetMPSComputeRunningProcesses, true)
LIST(nvmlDeviceGetMPSComputeRunningProcesses_v2, true)
LIST(nvmlDeviceGetMPSComputeRunningProcesses_v3, true)

/* Graphics are not simulated. */
#define EMPTY_LIST(function)                                              \
	NVML nv_return function(nv_device d, unsigned *count, void *infos) \
	{                                                                 \
		(void)infos;                                              \
		ENTER_BY(enter_any, d, count);                            \
		*count = 0;                                               \
		return NV_SUCCESS;                                        \
	}
EMPTY_LIST(nvmlDeviceGetGraphicsRunningProcesses)
EMPTY_LIST(nvmlDeviceGetGraphicsRunningProcesses_v2)
EMPTY_LIST(nvmlDeviceGetGraphicsRunningProcesses_v3)

/* --- utilization ------------------------------------------------------------------------------------- */

#define SAMPLE_NS 100000000u

static unsigned percent(uint64_t part, uint64_t whole)
{
	uint64_t p = whole ? part * 100 / whole : 0;
	return p > 100 ? 100 : (unsigned)p;
}

/* The sampler is whoever asks: once a sample is old enough the next one is taken from the engine's busy
 * time. Askers may race for it; each then publishes a true sample of nearly the same stretch. */
NVML nv_return nvmlDeviceGetUtilizationRates(nv_device d, struct nv_utilization *out)
{
	ENTER(d, out);
	struct sim_health *h = &g->s->health;
	uint64_t now = clock_ns(CLOCK_MONOTONIC), then = __atomic_load_n(&h->util_sampled_ns, __ATOMIC_RELAXED);
	if (now - then >= SAMPLE_NS && __atomic_compare_exchange_n(&h->util_sampled_ns, &then, now, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
		uint64_t busy = __atomic_load_n(&g->s->compute.busy_ns, __ATOMIC_RELAXED);
		uint64_t before = __atomic_exchange_n(&h->util_sampled_busy, busy, __ATOMIC_RELAXED);
		h->utilization_gpu = then ? percent(busy - before, now - then) : 0;
		h->utilization_memory = h->utilization_gpu / 2; /* no memory system is simulated */
	}
	*out = (struct nv_utilization){ h->utilization_gpu, h->utilization_memory };
	return NV_SUCCESS;
}

/* Per process since this process last asked. */
NVML nv_return nvmlDeviceGetProcessUtilization(nv_device d, struct nv_process_sample *samples, unsigned *count, unsigned long long last_seen)
{
	static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	static struct { uint64_t at, busy; uint32_t generation; } seen[SIM_MAX_GPUS][SIM_MAX_PROCS]; /* under lock */
	struct user u[SIM_MAX_PROCS];
	(void)last_seen;
	ENTER(d, count && (*count == 0 || samples));
	unsigned room = *count, n = users(&g->self, u);
	if (n == 0)
		return NV_NOT_FOUND;
	if (n > room)
		return listed(count, room, n);
	pthread_mutex_lock(&lock);
	uint64_t now = clock_ns(CLOCK_MONOTONIC), wall = clock_ns(CLOCK_REALTIME) / 1000;
	for (unsigned i = 0; i < n; i++) {
		typeof(&seen[0][0]) s = &seen[g->index][u[i].slot];
		uint64_t busy = __atomic_load_n(&u[i].use->busy_compute_ns, __ATOMIC_RELAXED);
		bool known = s->generation == u[i].use->generation;
		samples[i] = (struct nv_process_sample){ .pid = (unsigned)u[i].pid, .time_us = wall, .sm = known ? percent(busy - s->busy, now - s->at) : 0 };
		s->at = now;
		s->busy = busy;
		s->generation = u[i].use->generation;
	}
	pthread_mutex_unlock(&lock);
	*count = n;
	return NV_SUCCESS;
}

/* Encoders, decoders and the rest are there, and idle. */
#define IDLE(function)                                                       \
	NVML nv_return function(nv_device d, unsigned *percent, unsigned *us) \
	{                                                                    \
		ENTER(d, percent && us);                                     \
		*percent = 0;                                                \
		*us = SAMPLE_NS / 1000;                                      \
		return NV_SUCCESS;                                           \
	}
IDLE(nvmlDeviceGetEncoderUtilization)
IDLE(nvmlDeviceGetDecoderUtilization)
IDLE(nvmlDeviceGetJpgUtilization)
IDLE(nvmlDeviceGetOfaUtilization)
