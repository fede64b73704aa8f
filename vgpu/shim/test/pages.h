/* pages.h: what a test reads of its share and of NVML, to compare with what the driver says. */
#ifndef PAGES_H
#define PAGES_H

#include <fcntl.h>
#include <glob.h>
#include <sys/mman.h>
#include <unistd.h>

#include "region.h"
#include "routes.h"

static const struct kerf_policy *policy;
static struct kerf_usage *usage;

static void *map_file(const char *pattern, size_t size, int writable)
{
	glob_t g;
	void *p;
	int fd;

	if (glob(pattern, 0, NULL, &g) || g.gl_pathc < 1)
		die(pattern, 0);
	fd = open(g.gl_pathv[0], writable ? O_RDWR : O_RDONLY);
	p = mmap(NULL, size, PROT_READ | (writable ? PROT_WRITE : 0), MAP_SHARED, fd, 0);
	if (p == MAP_FAILED)
		die("map a page", fd);
	close(fd);
	globfree(&g);
	return p;
}

static void map_pages(void)
{
	policy = map_file("/run/kerf/shares/*/policy", sizeof *policy, 0);
	usage = map_file("/run/kerf/shares/*/usage", sizeof *usage, 1);
}

static uint64_t charged(void) { return __atomic_load_n(&usage->sum[0].charged, __ATOMIC_SEQ_CST); }

/* --- NVML through the shim, and the simulator's own behind it ------------------------------------------------ */

struct nvml_memory { unsigned long long total, free, used; };
struct nvml { int (*init)(void); int (*by_index)(unsigned, void **); int (*memory)(void *, struct nvml_memory *); void *device; };

static struct nvml open_nvml(const char *path)
{
	void *lib = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	struct nvml n;

	if (!lib)
		die(dlerror(), 0);
	n.init = (int (*)(void))dlsym(lib, "nvmlInit_v2");
	n.by_index = (int (*)(unsigned, void **))dlsym(lib, "nvmlDeviceGetHandleByIndex_v2");
	n.memory = (int (*)(void *, struct nvml_memory *))dlsym(lib, "nvmlDeviceGetMemoryInfo");
	if (n.init() || n.by_index(0, &n.device))
		die(path, 1);
	return n;
}

static struct nvml slice, card;
static unsigned long long reserved; /* what the card holds for itself */

/* Before cuInit. */
static void open_both_nvml(void)
{
	struct nvml_memory m;

	slice = open_nvml("libnvidia-ml.so.1");
	card = open_nvml("/run/kerf/driver/libkerfreal-nvidia-ml.so.1");
	if (card.memory(card.device, &m))
		die("nvmlDeviceGetMemoryInfo", 0);
	reserved = m.used;
}

/* One truth in four places: the usage page, cuMemGetInfo, NVML through the shim, and the card itself. */
static void agree(const char *when)
{
	struct nvml_memory m, whole;
	size_t free_bytes, total;
	uint64_t limit = policy->device[0].limit, sum;

	CU(cuMemGetInfo_v2, &free_bytes, &total);
	sum = charged();
	if (slice.memory(slice.device, &m) || card.memory(card.device, &whole))
		die("nvmlDeviceGetMemoryInfo", 1);
	whole.used -= reserved;
	if (total != limit || total - free_bytes != sum || m.total != limit || m.used != sum || m.free != limit - sum || whole.used != sum) {
		printf("FAIL %s: limit %lu charged %lu; cuMemGetInfo total %zu free %zu; NVML total %llu used %llu free %llu; the card holds %llu\n",
		       when, limit, sum, total, free_bytes, m.total, m.used, m.free, whole.used);
		fflush(stdout);
		_Exit(1);
	}
}

#endif
