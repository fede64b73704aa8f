/* state.c: the device files: finding and mapping them, slots, accounts, reaping. See state.h for the rules. */
#define _GNU_SOURCE
#include "visible.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define FIXED_ROOT "/run/kerf/sim" /* what a tenant sees */
#define DEFAULT_CUDA 13000         /* of a driver without a node, which answers all the same */

struct process g = { .lock = PTHREAD_MUTEX_INITIALIZER, .done = PTHREAD_COND_INITIALIZER, .ctl_fd = -1 };

/* --- locks in files ---------------------------------------------------------------------------------- */

_Static_assert(sizeof(pthread_mutex_t) <= sizeof(((struct sim_lock *)0)->mutex), "pthread_mutex_t");

static bool byte_lock(int fd, off_t at, short type, int cmd)
{
	struct flock fl = { .l_type = type, .l_whence = SEEK_SET, .l_start = at, .l_len = 1 };
	return fcntl(fd, cmd, &fl) == 0;
}

/* Fresh files come with zeroed locks. Two processes may get here at once, so a byte lock decides. */
static void make_lock(struct sim_lock *l)
{
	if (__atomic_load_n(&l->ready, __ATOMIC_ACQUIRE))
		return;
	byte_lock(g.ctl_fd, SIM_INIT_LOCK, F_WRLCK, F_SETLKW);
	if (!__atomic_load_n(&l->ready, __ATOMIC_ACQUIRE)) {
		pthread_mutexattr_t a;
		pthread_mutexattr_init(&a);
		pthread_mutexattr_setpshared(&a, PTHREAD_PROCESS_SHARED);
		pthread_mutexattr_setrobust(&a, PTHREAD_MUTEX_ROBUST);
		pthread_mutex_init((pthread_mutex_t *)l->mutex, &a);
		pthread_mutexattr_destroy(&a);
		__atomic_store_n(&l->ready, 1, __ATOMIC_RELEASE);
	}
	byte_lock(g.ctl_fd, SIM_INIT_LOCK, F_UNLCK, F_SETLK);
}

int lock_shared(struct sim_lock *l)
{
	int rc = pthread_mutex_lock((pthread_mutex_t *)l->mutex);
	if (unlikely(rc == EOWNERDEAD))
		pthread_mutex_consistent((pthread_mutex_t *)l->mutex);
	return rc;
}

void unlock_shared(struct sim_lock *l) { pthread_mutex_unlock((pthread_mutex_t *)l->mutex); }

/* --- slots ------------------------------------------------------------------------------------------- */

bool slot_alive(unsigned slot)
{
	struct flock fl = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = SIM_SLOT_LOCK_BASE + slot, .l_len = 1 };
	if (fcntl(g.ctl_fd, F_OFD_GETLK, &fl) != 0)
		return true; /* not known: never take from the living */
	return fl.l_type != F_UNLCK;
}

static bool stale(const struct sim_gpu *gpu, unsigned s)
{
	const struct sim_proc *p = &g.ctl->proc[s];
	return p->pid == 0 || gpu->use[s].generation != p->generation;
}

/* Slots are taken from the lowest on and keep their generation: behind the first that never had an owner, none had. */
static unsigned slots_ever(void)
{
	unsigned s = 0;
	while (s < SIM_MAX_PROCS && __atomic_load_n(&g.ctl->proc[s].generation, __ATOMIC_RELAXED))
		s++;
	return s;
}

/* Drops from a GPU's books what dead owners left. Under ctl.lock: no slot changes hands meanwhile. */
static void sweep(struct sim_gpu *gpu)
{
	for (unsigned s = 0, n = slots_ever(); s < n; s++)
		if (gpu->use[s].generation && stale(gpu, s))
			memset(&gpu->use[s], 0, sizeof gpu->use[s]);
}

static void reap_slots(void)
{
	for (unsigned s = 0, n = slots_ever(); s < n; s++)
		if (g.ctl->proc[s].pid && !slot_alive(s))
			g.ctl->proc[s].pid = 0;
	for (int i = 0; i < g.ndev; i++)
		sweep(g.dev[i].gpu);
}

/* A look without locks: is there anything on this GPU's books that a dead process left? */
static bool anything_left(const struct simdev *d)
{
	for (unsigned s = 0, n = slots_ever(); s < n; s++)
		if (d->gpu->use[s].used && (stale(d->gpu, s) || (s != g.slot && !slot_alive(s))))
			return true;
	return false;
}

void state_reap(void)
{
	lock_shared(&g.ctl->lock);
	reap_slots();
	unlock_shared(&g.ctl->lock);
}

static void sign_slot(unsigned s)
{
	struct sim_proc *p = &g.ctl->proc[s];
	struct timespec t;
	clock_gettime(CLOCK_REALTIME, &t);
	g.slot = s;
	g.generation = ++p->generation ? p->generation : ++p->generation; /* 0 is nobody's */
	p->started = (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
	memset(p->comm, 0, sizeof p->comm);
	strncpy(p->comm, program_invocation_short_name, sizeof p->comm - 1);
	__atomic_store_n(&p->pid, (int32_t)getpid(), __ATOMIC_RELEASE);
}

static CUresult take_slot(void)
{
	CUresult r = CUDA_ERROR_OPERATING_SYSTEM;
	lock_shared(&g.ctl->lock);
	reap_slots();
	for (unsigned s = 0; s < SIM_MAX_PROCS && r != CUDA_SUCCESS; s++)
		if (!g.ctl->proc[s].pid && !slot_alive(s) && byte_lock(g.ctl_fd, SIM_SLOT_LOCK_BASE + s, F_WRLCK, F_SETLK)) {
			sign_slot(s);
			r = CUDA_SUCCESS;
		}
	for (int i = 0; i < g.ndev && r == CUDA_SUCCESS; i++) {
		struct sim_use *use = g.dev[i].use = &g.dev[i].gpu->use[g.slot];
		memset(use, 0, sizeof *use);
		use->mig = g.dev[i].mig;
		__atomic_store_n(&use->generation, g.generation, __ATOMIC_RELEASE);
	}
	unlock_shared(&g.ctl->lock);
	return r;
}

/* --- accounts ---------------------------------------------------------------------------------------- */

uint64_t capacity(const struct simdev *d)
{
	return d->profile ? d->profile->memory : d->gpu->facts.memory_total - d->gpu->facts.memory_reserved;
}

uint32_t sm_count(const struct simdev *d) { return d->profile ? d->profile->sms : d->gpu->facts.sm_count; }

static uint64_t sum_used(const struct simdev *d)
{
	uint64_t sum = 0;
	for (unsigned s = 0, n = slots_ever(); s < n; s++)
		if (!stale(d->gpu, s) && d->gpu->use[s].mig == d->mig)
			sum += __atomic_load_n(&d->gpu->use[s].used, __ATOMIC_RELAXED);
	return sum;
}

/* Without a lock, so that no death and no preemption holds others up: each process writes its own slot only, first
 * adds and then looks whether all of it fits. Two that reach for the last bytes at once may both be refused. */
static bool try_charge(struct simdev *d, uint64_t bytes)
{
	if (bytes > capacity(d) || (d->use->mps_limit && d->use->used + bytes > d->use->mps_limit))
		return false;
	__atomic_fetch_add(&d->use->used, bytes, __ATOMIC_SEQ_CST);
	if (sum_used(d) <= capacity(d))
		return true;
	__atomic_fetch_sub(&d->use->used, bytes, __ATOMIC_SEQ_CST);
	return false;
}

static void add(uint64_t *word, uint64_t n) { __atomic_fetch_add(word, n, __ATOMIC_RELAXED); }

static CUresult charge_now(struct simdev *d, enum charge what, uint64_t bytes)
{
	if (unlikely(!try_charge(d, bytes))) {
		state_reap();
		if (!try_charge(d, bytes)) {
			add(&d->use->refused, 1);
			return CUDA_ERROR_OUT_OF_MEMORY;
		}
	}
	if (what == CHARGE_CONTEXT) {
		add(&d->use->context, bytes);
		__atomic_fetch_add(&d->use->contexts, 1, __ATOMIC_RELAXED);
	} else {
		add(&d->use->allocs, 1);
		add(&d->use->managed, what == CHARGE_MANAGED ? bytes : 0);
	}
	return CUDA_SUCCESS;
}

/* Is the instance that this process began with still there, and no other in its place? */
static bool instance_there(const struct simdev *d)
{
	const struct sim_mig_instance *in = &d->gpu->mig[d->mig - 1];
	return sim_mig_device(in) && memcmp(in->uuid, d->uuid, sizeof d->uuid) == 0;
}

/* The first thing that this process takes in a MIG instance: see state.h. */
static CUresult charge_first(struct simdev *d, enum charge what, uint64_t bytes)
{
	int lock = sim_mig_lock(g.root, d->node_index);
	REQUIRE(lock >= 0, CUDA_ERROR_OPERATING_SYSTEM);
	CUresult r = instance_there(d) ? charge_now(d, what, bytes) : CUDA_ERROR_DEVICE_UNAVAILABLE;
	sim_mig_unlock(lock);
	return r;
}

CUresult charge(struct simdev *d, enum charge what, uint64_t bytes)
{
	bool first = d->mig && !d->use->used && !d->use->contexts;
	return unlikely(first) ? charge_first(d, what, bytes) : charge_now(d, what, bytes);
}

void discharge(struct simdev *d, enum charge what, uint64_t bytes)
{
	__atomic_fetch_sub(&d->use->used, bytes, __ATOMIC_SEQ_CST);
	if (what == CHARGE_CONTEXT) {
		add(&d->use->context, -bytes);
		__atomic_fetch_sub(&d->use->contexts, 1, __ATOMIC_RELAXED);
	} else {
		add(&d->use->frees, 1);
		add(&d->use->managed, what == CHARGE_MANAGED ? -bytes : 0);
	}
}

uint64_t free_bytes(struct simdev *d)
{
	if (!g.zero_cost && anything_left(d))
		state_reap();
	uint64_t used = sum_used(d);
	return used < capacity(d) ? capacity(d) - used : 0;
}

/* --- opening ----------------------------------------------------------------------------------------- */

static bool has_marker(const char *root)
{
	char path[PATH_MAX];
	return snprintf(path, sizeof path, "%s/SIMULATED", root) < (int)sizeof path && access(path, F_OK) == 0;
}

/* The library lies at R/usr/lib/<triplet>/libcuda.so.<version>, which may be a link to one shared copy: so the
 * place it was loaded from is looked at before the place that it really is. A tenant's copy lies elsewhere. */
static bool root_above(const char *file)
{
	char path[PATH_MAX];
	const char *slash = strrchr(file, '/');
	if (!slash || snprintf(path, sizeof path, "%.*s/../../..", (int)(slash - file), file) >= (int)sizeof path)
		return false;
	char *root = realpath(path, NULL);
	bool ok = root && has_marker(root) && strlen(root) < sizeof g.root;
	if (ok)
		strcpy(g.root, root);
	free(root);
	return ok;
}

static void find_root(void)
{
	Dl_info info;
	strcpy(g.root, FIXED_ROOT);
	if (!dladdr((void *)find_root, &info) || !info.dli_fname || root_above(info.dli_fname))
		return;
	char *real = realpath(info.dli_fname, NULL);
	if (real)
		root_above(real);
	free(real);
}

static void *map_file(const char *name, size_t size, int *fd_out)
{
	char path[PATH_MAX];
	snprintf(path, sizeof path, "%s/dev/%s", g.root, name);
	int fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return NULL;
	void *p = MAP_FAILED;
	if (lseek(fd, 0, SEEK_END) >= (off_t)size)
		p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (fd_out && p != MAP_FAILED)
		*fd_out = fd;
	else
		close(fd); /* never nvidiactl once a slot is held, see state.h */
	return p == MAP_FAILED ? NULL : p;
}

static void close_gpus(struct sim_gpu **gpu)
{
	for (int i = 0; i < SIM_MAX_GPUS; i++)
		if (gpu[i])
			munmap(gpu[i], sizeof *gpu[i]);
}

static void adopt_device(int ordinal, struct visible v)
{
	struct simdev *d = &g.dev[ordinal];
	const struct sim_mig_instance *in = v.mig ? &v.gpu->mig[v.mig - 1] : NULL;
	d->ordinal = ordinal;
	d->node_index = v.gpu->facts.minor;
	d->gpu = v.gpu;
	d->mig = v.mig;
	d->profile = in ? &v.gpu->facts.mig_profile[in->profile % SIM_MAX_MIG_PROFILES] : NULL;
	d->engine = in ? &v.gpu->mig_compute[v.mig - 1] : &v.gpu->compute;
	memcpy(d->uuid, in ? in->uuid : v.gpu->facts.uuid, sizeof d->uuid);
	d->memfd = -1;
	make_lock(&d->engine->lock);
	for (int u = 0; u < UNIT_COUNT; u++) {
		d->unit[u].dev = d;
		d->unit[u].kind = (enum unit_kind)u;
	}
}

static CUresult open_gpus(void)
{
	struct sim_gpu *gpu[SIM_MAX_GPUS] = { 0 }, *seen[SIM_MAX_GPUS];
	struct visible devices[SIM_MAX_GPUS];
	int n = 0;
	for (int i = 0; i < SIM_MAX_GPUS; i++) {
		char name[32];
		snprintf(name, sizeof name, "nvidia%d", i);
		struct sim_gpu *p = map_file(name, sizeof *p, NULL);
		if (p && (p->magic != SIM_GPU_MAGIC || p->version != SIM_VERSION)) {
			munmap(p, sizeof *p);
			close_gpus(gpu);
			return CUDA_ERROR_SYSTEM_DRIVER_MISMATCH;
		}
		if (p)
			seen[n++] = gpu[i] = p;
	}
	int count = visible_devices(getenv("CUDA_VISIBLE_DEVICES"), seen, n, devices);
	for (int i = 0; i < count; i++)
		adopt_device(i, devices[i]);
	g.ndev = count;
	return count ? CUDA_SUCCESS : CUDA_ERROR_NO_DEVICE; /* unused mappings stay: a failed cuInit may be tried again, rarely */
}

static CUresult open_ctl(void)
{
	if (g.ctl)
		return CUDA_SUCCESS;
	find_root();
	g.ctl = map_file("nvidiactl", sizeof *g.ctl, &g.ctl_fd);
	return g.ctl ? CUDA_SUCCESS : CUDA_ERROR_NO_DEVICE;
}

int state_version(void)
{
	pthread_mutex_lock(&g.lock);
	int v = open_ctl() == CUDA_SUCCESS && g.ctl->magic == SIM_CTL_MAGIC ? (int)g.ctl->cuda_version : DEFAULT_CUDA;
	pthread_mutex_unlock(&g.lock);
	return v;
}

CUresult state_open(void)
{
	TRY(open_ctl());
	if (g.ctl->magic != SIM_CTL_MAGIC || g.ctl->version != SIM_VERSION)
		return CUDA_ERROR_SYSTEM_DRIVER_MISMATCH;
	g.zero_cost = g.ctl->flags & SIM_ZERO_COST;
	make_lock(&g.ctl->lock);
	TRY(open_gpus());
	TRY(take_slot());
	return mps_join();
}
