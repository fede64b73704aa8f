/* node.c: finding and mapping the device files, handles, and who is alive. See node.h. */
#define _GNU_SOURCE
#include "node.h"

#include <fcntl.h>
#include <limits.h>
#include <link.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define FIXED_ROOT "/run/kerf/sim" /* what a tenant sees */

struct node node = { .ctl_fd = -1 };

uint64_t clock_ns(int id)
{
	struct timespec t;
	clock_gettime((clockid_t)id, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* --- opening ----------------------------------------------------------------------------------------- */

/* Sets node.root to the directory four levels above file, where that is a simulated node. */
static bool root_above(const char *file)
{
	char path[PATH_MAX], mark[PATH_MAX + 16];
	if (snprintf(path, sizeof path, "%s", file) >= (int)sizeof path)
		return false;
	for (int up = 0; up < 4; up++) {
		char *slash = strrchr(path, '/');
		if (!slash)
			return false;
		*slash = 0;
	}
	snprintf(mark, sizeof mark, "%s/SIMULATED", path);
	if (access(mark, F_OK) != 0) /* stat and dladdr of today's glibc would not load in an old image */
		return false;
	snprintf(node.root, sizeof node.root, "%s", path);
	return true;
}

/* Copies the name of the loaded object that holds this code. */
static int own_name(struct dl_phdr_info *info, size_t size, void *out)
{
	(void)size;
	uintptr_t here = (uintptr_t)own_name;
	for (int i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *p = &info->dlpi_phdr[i];
		if (p->p_type != PT_LOAD || here - (info->dlpi_addr + p->p_vaddr) >= p->p_memsz)
			continue;
		snprintf(out, PATH_MAX, "%s", info->dlpi_name);
		return 1;
	}
	return 0;
}

static void find_root(void)
{
	char name[PATH_MAX] = "", real[PATH_MAX];
	dl_iterate_phdr(own_name, name);
	if (realpath(name, real) && root_above(real))
		return;
	if (root_above(name)) /* a link to a shared copy: then the link's own place counts */
		return;
	strcpy(node.root, FIXED_ROOT);
}

static void *map_device(const char *name, size_t size, int *fd_out)
{
	char path[sizeof node.root + 32];
	snprintf(path, sizeof path, "%s/dev/%s", node.root, name);
	int fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return NULL;
	void *p = MAP_FAILED;
	if (lseek(fd, 0, SEEK_END) >= (off_t)size)
		p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (fd_out)
		*fd_out = fd; /* nvidiactl is never closed: that would drop this process's slot lock */
	else
		close(fd);
	return p == MAP_FAILED ? NULL : p;
}

static void adopt(struct sim_gpu *s)
{
	struct gpu *g = &node.gpu[node.count];
	g->s = s;
	g->index = node.count++;
	g->self = (struct handle){ H_GPU, 0, g };
	for (unsigned i = 0; i < SIM_MAX_MIG_INSTANCES; i++) {
		g->mig[i] = (struct handle){ H_MIG, i, g };
		g->gi[i] = (struct handle){ H_GI, i, g };
		g->ci[i] = (struct handle){ H_CI, i, g };
	}
}

/* The kernel module must be of the library's version, as NVIDIA's must: after an upgrade without a reboot it is not. Where there is no
 * /proc of the driver, as in a tenant's view, there is nothing to compare. */
static bool module_matches(const struct sim_ctl *ctl)
{
	char path[sizeof node.root + 32], text[256];
	snprintf(path, sizeof path, "%s/proc/driver/nvidia/version", node.root);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return true;
	ssize_t n = read(fd, text, sizeof text - 1);
	close(fd);
	text[n > 0 ? n : 0] = 0;
	return strstr(text, ctl->driver_version) != NULL;
}

/* Maps the node once and for good. Under the lock of system.c. */
nv_return node_open(void)
{
	if (node.ctl)
		return NV_SUCCESS;
	find_root();
	struct sim_ctl *ctl = map_device("nvidiactl", sizeof *ctl, &node.ctl_fd);
	if (!ctl)
		return NV_DRIVER_NOT_LOADED;
	if (ctl->magic != SIM_CTL_MAGIC || ctl->version != SIM_VERSION || !module_matches(ctl))
		return NV_LIB_RM_VERSION_MISMATCH;
	for (int i = 0; i < SIM_MAX_GPUS; i++) {
		char name[32];
		snprintf(name, sizeof name, "nvidia%d", i);
		struct sim_gpu *s = map_device(name, sizeof *s, NULL);
		if (s && s->magic == SIM_GPU_MAGIC && s->version == SIM_VERSION)
			adopt(s);
	}
	node.driver_major = (unsigned)strtoul(ctl->driver_version, NULL, 10);
	node.ctl = ctl;
	return NV_SUCCESS;
}

/* --- handles ----------------------------------------------------------------------------------------- */

/* Any pointer may come as a handle; only those into node.gpu are looked at. */
struct handle *as_handle(void *p, enum handle_kind kind)
{
	uintptr_t at = (uintptr_t)p, from = (uintptr_t)node.gpu, to = (uintptr_t)(node.gpu + node.count);
	if (at < from || at >= to || at % _Alignof(struct handle))
		return NULL;
	struct handle *h = p;
	return h->kind == kind && h->gpu == &node.gpu[(at - from) / sizeof node.gpu[0]] ? h : NULL;
}

/* A hung GPU answers late. The bound is read again and again, so that clearing the fault frees the call. */
static void sit_out_hang(const struct sim_gpu *s)
{
	const struct timespec nap = { .tv_nsec = 5 * 1000 * 1000 };
	while (__atomic_load_n(&s->health.nvml_hang_until_ns, __ATOMIC_RELAXED) > clock_ns(CLOCK_MONOTONIC))
		nanosleep(&nap, NULL);
}

static nv_return enter_kind(nv_device d, struct gpu **g, bool mig, bool fixed)
{
	if (!initialized())
		return NV_UNINITIALIZED;
	struct handle *h = as_handle(d, H_GPU);
	if (!h && mig)
		h = as_handle(d, H_MIG);
	if (!h)
		return as_handle(d, H_MIG) ? NV_NOT_SUPPORTED : NV_INVALID_ARGUMENT;
	*g = h->gpu;
	if (h->kind == H_MIG && !shown(h))
		return NV_NOT_FOUND; /* destroyed since */
	if (fixed)
		return NV_SUCCESS;
	sit_out_hang(h->gpu->s);
	bool lost = __atomic_load_n(&h->gpu->s->health.faults, __ATOMIC_ACQUIRE) & SIM_FAULT_LOST;
	return lost ? NV_GPU_IS_LOST : NV_SUCCESS;
}

nv_return enter(nv_device d, struct gpu **g) { return enter_kind(d, g, false, false); }
nv_return enter_any(nv_device d, struct gpu **g) { return enter_kind(d, g, true, false); }
nv_return enter_fixed(nv_device d, struct gpu **g) { return enter_kind(d, g, true, true); }

/* --- who is alive ------------------------------------------------------------------------------------ */

/* The owner of a slot in our pid namespace; 0: nobody, or nobody that we can see. */
static int owner(unsigned slot)
{
	struct flock fl = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = SIM_SLOT_LOCK_BASE + slot, .l_len = 1 };
	if (fcntl(node.ctl_fd, F_OFD_GETLK, &fl) != 0 || fl.l_type == F_UNLCK)
		return 0;
	return fl.l_pid;
}

unsigned users(const struct handle *of, struct user out[SIM_MAX_PROCS])
{
	const struct gpu *g = of->gpu;
	unsigned n = 0;
	for (unsigned s = 0; s < SIM_MAX_PROCS; s++) {
		const struct sim_proc *p = &node.ctl->proc[s];
		const struct sim_use *u = &g->s->use[s];
		if (__atomic_load_n(&p->pid, __ATOMIC_ACQUIRE) == 0 || u->generation != p->generation || (!u->used && !u->contexts))
			continue;
		if (of->kind != H_GPU && u->mig != of->n + 1)
			continue;
		int pid = owner(s);
		if (pid)
			out[n++] = (struct user){ s, pid, u };
	}
	return n;
}

uint64_t used_bytes(const struct handle *of)
{
	struct user u[SIM_MAX_PROCS];
	uint64_t sum = 0;
	for (unsigned i = 0, n = users(of, u); i < n; i++)
		sum += __atomic_load_n(&u[i].use->used, __ATOMIC_RELAXED);
	return sum;
}

/* --- texts ------------------------------------------------------------------------------------------- */

void fill_pci(struct nv_pci *p, unsigned domain, unsigned bus, unsigned device, unsigned function)
{
	memset(p, 0, sizeof *p);
	p->domain = domain;
	p->bus = bus;
	p->device = device;
	snprintf(p->bus_id_legacy, sizeof p->bus_id_legacy, "%04X:%02X:%02X.%X", domain & 0xffff, bus & 0xff, device & 0x1f, function & 7);
	snprintf(p->bus_id, sizeof p->bus_id, "%08X:%02X:%02X.%X", domain, bus & 0xff, device & 0x1f, function & 7);
}

nv_return copy_text(const char *from, char *to, unsigned size)
{
	size_t need = strlen(from) + 1;
	if (!to)
		return NV_INVALID_ARGUMENT;
	if (need > size)
		return NV_INSUFFICIENT_SIZE;
	memcpy(to, from, need);
	return NV_SUCCESS;
}

void uuid_text(const char *kind, const uint8_t u[16], char out[48])
{
	snprintf(out, 48, "%s-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", kind, u[0], u[1], u[2], u[3], u[4],
	         u[5], u[6], u[7], u[8], u[9], u[10], u[11], u[12], u[13], u[14], u[15]);
}
