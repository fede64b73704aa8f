/* link.c: PCIe, NVLink and what lies between two GPUs. */
#define _GNU_SOURCE
#include "node.h"

#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* --- PCI --------------------------------------------------------------------------------------------- */

NVML nv_return nvmlDeviceGetPciInfo_v3(nv_device d, struct nv_pci *pci)
{
	ENTER_BY(enter_fixed, d, pci);
	const struct sim_facts *f = &g->s->facts;
	fill_pci(pci, f->pci_domain, f->pci_bus, f->pci_device, f->pci_function);
	pci->pci_id = f->pci_id;
	pci->subsystem_id = f->pci_subsystem_id;
	return NV_SUCCESS;
}

NVML nv_return nvmlDeviceGetPciInfo_v2(nv_device d, struct nv_pci *pci) { return nvmlDeviceGetPciInfo_v3(d, pci); }

#define NUMBER(function, expr)                             \
	NVML nv_return function(nv_device d, unsigned *out) \
	{                                                  \
		ENTER(d, out);                             \
		*out = (unsigned)(expr);                   \
		return NV_SUCCESS;                         \
	}
NUMBER(nvmlDeviceGetCurrPcieLinkGeneration, g->s->facts.pcie_gen)
NUMBER(nvmlDeviceGetCurrPcieLinkWidth, g->s->facts.pcie_width)
NUMBER(nvmlDeviceGetMaxPcieLinkGeneration, g->s->facts.pcie_gen_max)
NUMBER(nvmlDeviceGetGpuMaxPcieLinkGeneration, g->s->facts.pcie_gen_max)
NUMBER(nvmlDeviceGetMaxPcieLinkWidth, g->s->facts.pcie_width_max)
NUMBER(nvmlDeviceGetPcieReplayCounter, g->s->health.pcie_replays)

/* MT/s of a lane by generation. */
static unsigned speed(unsigned gen)
{
	static const unsigned mts[] = { 0, 2500, 5000, 8000, 16000, 32000, 64000 };
	return gen < sizeof mts / sizeof mts[0] ? mts[gen] : 0;
}
NUMBER(nvmlDeviceGetPcieSpeed, speed(g->s->facts.pcie_gen))

NVML nv_return nvmlDeviceGetPcieLinkMaxSpeed(nv_device d, unsigned *out)
{
	ENTER(d, out);
	*out = g->s->facts.pcie_gen_max; /* NVML's enum of speeds is the generation */
	return NV_SUCCESS;
}

/* KB/s since this process last asked, from the copy engines' byte counts. */
NVML nv_return nvmlDeviceGetPcieThroughput(nv_device d, unsigned counter, unsigned *out)
{
	static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	static struct { uint64_t at, bytes; } seen[SIM_MAX_GPUS][2]; /* under lock */
	ENTER(d, out && counter < 2);
	/* 0: sent by the GPU, 1: received by it */
	uint64_t bytes = __atomic_load_n(counter == 0 ? &g->s->d2h.bytes : &g->s->h2d.bytes, __ATOMIC_RELAXED);
	pthread_mutex_lock(&lock);
	uint64_t now = clock_ns(CLOCK_MONOTONIC);
	typeof(&seen[0][0]) s = &seen[g->index][counter];
	*out = s->at && now > s->at ? (unsigned)((bytes - s->bytes) * 1000000u / (now - s->at)) : 0;
	s->at = now;
	s->bytes = bytes;
	pthread_mutex_unlock(&lock);
	return NV_SUCCESS;
}

/* --- topology ---------------------------------------------------------------------------------------- */

/* The resolved sysfs path of a GPU, from the root complex on; empty where the node has no /sys. */
static void path_of(const struct gpu *g, char out[PATH_MAX])
{
	char link[sizeof node.root + 64], real[PATH_MAX];
	const struct sim_facts *f = &g->s->facts;
	out[0] = 0;
	snprintf(link, sizeof link, "%s/sys/bus/pci/devices/%04x:%02x:%02x.%x", node.root, f->pci_domain, f->pci_bus, f->pci_device, f->pci_function);
	if (!realpath(link, real))
		return;
	char *from = strstr(real, "/pci");
	if (from)
		snprintf(out, PATH_MAX, "%s/", from + 1);
}

/* NVML's levels. */
enum { INTERNAL = 0, SINGLE = 10, MULTIPLE = 20, HOSTBRIDGE = 30, NODE = 40, SYSTEM = 50 };

static unsigned parts(const char *p)
{
	unsigned n = 0;
	for (; *p; p++)
		n += *p == '/';
	return n;
}

static int level(const struct gpu *a, const struct gpu *b)
{
	char pa[PATH_MAX], pb[PATH_MAX];
	if (a == b)
		return INTERNAL;
	path_of(a, pa);
	path_of(b, pb);
	unsigned shared = 0, end = 0; /* whole components in common, and where they end */
	for (unsigned i = 0; pa[i] && pa[i] == pb[i]; i++)
		if (pa[i] == '/') {
			shared++;
			end = i + 1;
		}
	if (shared == 0) {
		int na = a->s->facts.numa_node, nb = b->s->facts.numa_node;
		return na >= 0 && na == nb ? NODE : SYSTEM;
	}
	if (shared == 1)
		return HOSTBRIDGE;
	return parts(pa + end) <= 2 && parts(pb + end) <= 2 ? SINGLE : MULTIPLE;
}

NVML nv_return nvmlDeviceGetTopologyCommonAncestor(nv_device d1, nv_device d2, int *out)
{
	ENTER(d1, out);
	struct gpu *other;
	nv_return r = enter(d2, &other);
	if (r != NV_SUCCESS)
		return r;
	*out = level(g, other);
	return NV_SUCCESS;
}

NVML nv_return nvmlDeviceGetTopologyNearestGpus(nv_device d, int at, unsigned *count, nv_device *array)
{
	ENTER(d, count && (*count == 0 || array));
	unsigned room = *count, n = 0;
	for (unsigned i = 0; i < node.count; i++) {
		if (&node.gpu[i] == g || level(g, &node.gpu[i]) != at)
			continue;
		if (n < room)
			array[n] = &node.gpu[i].self;
		n++;
	}
	*count = n;
	return room && n > room ? NV_INSUFFICIENT_SIZE : NV_SUCCESS;
}

NVML nv_return nvmlDeviceOnSameBoard(nv_device d1, nv_device d2, int *same)
{
	ENTER(d1, same && as_handle(d2, H_GPU));
	*same = g == as_handle(d2, H_GPU)->gpu;
	return NV_SUCCESS;
}

NVML nv_return nvmlDeviceGetP2PStatus(nv_device d1, nv_device d2, unsigned index, unsigned *status)
{
	enum { OK = 0, NOT_SUPPORTED = 5 };
	ENTER(d1, status && as_handle(d2, H_GPU) && index < 5);
	const struct gpu *other = as_handle(d2, H_GPU)->gpu;
	bool peers = g->s->facts.p2p_mask >> other->s->facts.minor & 1;
	bool nvlink = g->s->facts.nvlink_count && other->s->facts.nvlink_count;
	*status = peers && (index != 2 /* over NVLink */ || nvlink) ? OK : NOT_SUPPORTED;
	return NV_SUCCESS;
}

/* A kernel list, "0-47,96-143", as bits of a set. */
static void set_bits(const char *list, unsigned long *set, unsigned words)
{
	const unsigned per = 8 * sizeof *set;
	memset(set, 0, words * sizeof *set);
	for (char *end; *list; list = *end == ',' ? end + 1 : end) {
		unsigned long from = strtoul(list, &end, 10), to = from;
		if (end == list)
			return;
		if (*end == '-')
			to = strtoul(end + 1, &end, 10);
		for (; from <= to && from < (unsigned long)words * per; from++)
			set[from / per] |= 1ul << from % per;
	}
}

NVML nv_return nvmlDeviceGetCpuAffinity(nv_device d, unsigned words, unsigned long *set)
{
	char path[sizeof node.root + 96], list[4096] = "";
	ENTER(d, set && words);
	const struct sim_facts *f = &g->s->facts;
	snprintf(path, sizeof path, "%s/sys/bus/pci/devices/%04x:%02x:%02x.%x/local_cpulist", node.root, f->pci_domain, f->pci_bus, f->pci_device, f->pci_function);
	FILE *file = fopen(path, "re");
	if (!file)
		return NV_NOT_SUPPORTED;
	size_t n = fread(list, 1, sizeof list - 1, file);
	fclose(file);
	list[n] = 0;
	set_bits(list, set, words);
	return NV_SUCCESS;
}

NVML nv_return nvmlDeviceGetCpuAffinityWithinScope(nv_device d, unsigned words, unsigned long *set, unsigned scope)
{
	(void)scope;
	return nvmlDeviceGetCpuAffinity(d, words, set);
}

NVML nv_return nvmlDeviceGetMemoryAffinity(nv_device d, unsigned words, unsigned long *set, unsigned scope)
{
	(void)scope;
	ENTER(d, set && words);
	memset(set, 0, words * sizeof *set);
	if (g->s->facts.numa_node >= 0 && (unsigned)g->s->facts.numa_node < words * 8 * sizeof *set)
		set[g->s->facts.numa_node / 64] |= 1ul << g->s->facts.numa_node % 64;
	return NV_SUCCESS;
}

/* --- NVLink ------------------------------------------------------------------------------------------ */

static nv_return link_of(nv_device d, unsigned link, const void *out, struct sim_nvlink **l)
{
	ENTER(d, out);
	if (g->s->facts.nvlink_count == 0)
		return NV_NOT_SUPPORTED;
	if (link >= g->s->facts.nvlink_count)
		return NV_INVALID_ARGUMENT;
	*l = &g->s->facts.nvlink[link];
	return NV_SUCCESS;
}

#define OF_LINK(out)                                      \
	struct sim_nvlink *l;                             \
	do {                                              \
		nv_return r_ = link_of(d, link, out, &l); \
		if (r_ != NV_SUCCESS)                     \
			return r_;                        \
	} while (0)

NVML nv_return nvmlDeviceGetNvLinkState(nv_device d, unsigned link, unsigned *active)
{
	OF_LINK(active);
	*active = l->active;
	return NV_SUCCESS;
}

NVML nv_return nvmlDeviceGetNvLinkVersion(nv_device d, unsigned link, unsigned *version)
{
	OF_LINK(version);
	*version = l->version;
	return NV_SUCCESS;
}

NVML nv_return nvmlDeviceGetNvLinkCapability(nv_device d, unsigned link, unsigned capability, unsigned *out)
{
	enum { SLI_BRIDGE = 4, VALID = 5 };
	OF_LINK(out);
	if (capability > VALID)
		return NV_INVALID_ARGUMENT;
	*out = capability != SLI_BRIDGE;
	return NV_SUCCESS;
}

NVML nv_return nvmlDeviceGetNvLinkRemotePciInfo_v2(nv_device d, unsigned link, struct nv_pci *pci)
{
	OF_LINK(pci);
	if (!l->active)
		return NV_NOT_SUPPORTED;
	fill_pci(pci, l->remote_domain, l->remote_bus, l->remote_device, l->remote_function);
	return NV_SUCCESS;
}

NVML nv_return nvmlDeviceGetNvLinkRemotePciInfo(nv_device d, unsigned link, struct nv_pci *pci)
{
	return nvmlDeviceGetNvLinkRemotePciInfo_v2(d, link, pci);
}

NVML nv_return nvmlDeviceGetNvLinkRemoteDeviceType(nv_device d, unsigned link, unsigned *type)
{
	OF_LINK(type);
	*type = l->remote_type == SIM_LINK_SWITCH ? 2 : 0;
	return NV_SUCCESS;
}

NVML nv_return nvmlDeviceGetNvLinkErrorCounter(nv_device d, unsigned link, unsigned counter, unsigned long long *count)
{
	OF_LINK(count);
	if (counter > 4)
		return NV_INVALID_ARGUMENT;
	*count = 0;
	return NV_SUCCESS;
}

NVML nv_return nvmlDeviceResetNvLinkErrorCounters(nv_device d, unsigned link)
{
	OF_LINK(d);
	(void)l;
	return NV_SUCCESS;
}
