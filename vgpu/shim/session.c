/* session.c: attach this process to its shares, once, when the tenant calls cuInit. */
#define _GNU_SOURCE
#include "shim.h"
#include "lease.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>

#ifndef ATTACH_PATIENCE_S
#define ATTACH_PATIENCE_S 10 /* kerfd may be restarting; after this the process gets no GPU (fail closed) */
#endif

/* A forked child must know that it is one before it trusts any state here. The kernel zeroes this page in the
 * child, so no handler runs at fork and a vfork or a raw clone is covered too. The lock of attach lives here as
 * well: a child forked while another thread held it finds it free. */
struct wiped {
	struct lock attach;
	uint32_t attached;
	struct hot hot;
};

static struct wiped *page;
static uint32_t page_failed;
static uint32_t ever_attached; /* survives fork: tells a child of an attached process from a fresh one */
static pid_t attached_pid;     /* where the kernel knows no MADV_WIPEONFORK (before 4.14) */

static struct share shares[KERF_MAX_SHARES];
static int nshares;
static struct device devices[KERF_MAX_ORDINALS];
static int ndevices;

static const struct hot cold;
const struct hot *kerf_hot = &cold;

static struct wiped *get_page(void)
{
	struct wiped *seen = load_acquire(&page), *mine;

	if (likely(seen))
		return seen;
	mine = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (mine == MAP_FAILED)
		return NULL;
#ifdef MADV_WIPEONFORK
	if (madvise(mine, 4096, MADV_WIPEONFORK))
#endif
		store_relaxed(&page_failed, 1);
	if (!swap_if(&page, &seen, mine)) {
		munmap(mine, 4096);
		return seen;
	}
	return mine;
}

bool kerf_live(void)
{
	struct wiped *w = load_acquire(&page);

	if (!w || !load_acquire(&w->attached))
		return false;
	return likely(!load_relaxed(&page_failed)) || getpid() == attached_pid;
}

/* A child of an attached process: CUDA cannot be used after fork, and the driver says so with this code. */
static bool orphan(void)
{
	return load_relaxed(&ever_attached) && !kerf_live();
}

CUresult kerf_not_live(void)
{
	return CUDA_ERROR_NOT_INITIALIZED;
}

struct device *kerf_device(CUdevice ordinal)
{
	return ordinal >= 0 && ordinal < ndevices ? &devices[ordinal] : NULL;
}

int kerf_device_count(void)
{
	return ndevices;
}

struct device *kerf_current_device(CUresult *why)
{
	CUdevice ordinal = 0;

	*why = REAL(cuCtxGetDevice)(&ordinal);
	if (*why)
		return NULL;
	if (!kerf_device(ordinal))
		*why = CUDA_ERROR_INVALID_DEVICE;
	return kerf_device(ordinal);
}

uint64_t kerf_current_context(void)
{
	CUcontext ctx = NULL;

	REAL(cuCtxGetCurrent)(&ctx);
	return (uintptr_t)ctx;
}

/* Programs resolve names before cuInit, when nothing is mapped yet: then the pages are read for this question alone. */
static bool strict_before_attach(void)
{
	struct share found[KERF_MAX_SHARES];
	char why[448];
	int n = share_scan(found, KERF_MAX_SHARES, false, why, sizeof why);
	bool strict = n < 0; /* no share: fails closed, as cuInit will */

	for (int i = 0; i < n; i++)
		strict |= (found[i].policy->flags & KERF_POLICY_STRICT) != 0;
	if (n > 0)
		share_unmap(found, n);
	return strict;
}

bool kerf_strict(void)
{
	if (!kerf_live())
		return strict_before_attach();
	for (int i = 0; i < nshares; i++)
		if (load_relaxed(&shares[i].policy->flags) & KERF_POLICY_STRICT)
			return true;
	return false;
}

/* Counted before attach, written to the slot by publish. */
static uint64_t unknown_before;

void kerf_count_unknown(void)
{
	fetch_add(kerf_live() ? &shares[0].slot->unknown : &unknown_before, 1);
}

/* --- the socket ---------------------------------------------------------------------------------------- */

static int connect_share(const struct share *s)
{
	struct sockaddr_un to = { .sun_family = AF_UNIX };
	char path[sizeof KERF_ROOT + 64];
	int fd, dir = -1, rc;

	kerf_format(path, sizeof path, KERF_ROOT "/shares/%s/socket", s->id);
	if (strlen(path) < sizeof to.sun_path) {
		strcpy(to.sun_path, path);
	} else { /* a socket's address has 107 bytes: go through the directory */
		*strrchr(path, '/') = 0;
		dir = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
		kerf_format(to.sun_path, sizeof to.sun_path, "/proc/self/fd/%d/socket", dir);
	}
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (fd >= 0 && (rc = connect(fd, (struct sockaddr *)&to, sizeof to)) != 0) {
		rc = errno;
		close(fd);
		fd = -1;
		errno = rc;
	}
	if (dir >= 0) {
		rc = errno;
		close(dir);
		errno = rc;
	}
	return fd;
}

static bool ask(int fd, const struct share *s, uint32_t kind, uint32_t driver_version, struct kerf_welcome *w)
{
	struct kerf_hello h = {
		.magic = KERF_REGION_MAGIC, .version = KERF_REGION_VERSION,
		.kind = kind, .driver_version = driver_version, .usage = (uintptr_t)s->usage,
	};
	struct pollfd p = { .fd = fd, .events = POLLIN };

	prctl(PR_GET_NAME, h.comm);
	if (send(fd, &h, sizeof h, MSG_NOSIGNAL) != (ssize_t)sizeof h)
		return false;
	while (poll(&p, 1, 2000) < 0)
		if (errno != EINTR)
			return false;
	memset(w, 0, sizeof *w);
	if (recv(fd, w, sizeof *w, MSG_DONTWAIT) != (ssize_t)sizeof *w)
		return false;
	w->reason[KERF_REASON_LEN - 1] = 0;
	return w->magic == KERF_REGION_MAGIC;
}

static void pause_ms(long ms)
{
	struct timespec t = { ms / 1000, ms % 1000 * 1000000 };

	while (nanosleep(&t, &t) && errno == EINTR)
		;
}

static int64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static bool attach_share(struct share *s, uint32_t driver_version, char *why, size_t len)
{
	int64_t end = now_ms() + ATTACH_PATIENCE_S * 1000;
	struct kerf_welcome w;
	int fd, last = 0;

	for (long wait = 10;; wait = wait < 500 ? wait * 2 : 500) {
		fd = connect_share(s);
		if (fd >= 0) {
			bool answered = ask(fd, s, KERF_HELLO_ATTACH, driver_version, &w);
			close(fd);
			if (answered)
				break;
			last = EPIPE;
		} else {
			last = errno;
			if (last == EACCES || last == EPERM)
				end = 0;
		}
		if (now_ms() + wait > end) {
			kerf_format(why, len, "kerfd does not answer on " KERF_ROOT "/shares/%s/socket (%s): no GPU is given; check that kerfd runs (systemctl status kerfd)", s->id, strerror(last));
			return false;
		}
		pause_ms(wait);
	}
	if (w.version != KERF_REGION_VERSION)
		kerf_format(why, len, "kerfd speaks version %u on " KERF_ROOT "/shares/%s/socket, this shim speaks %u: restart the container", w.version, s->id, KERF_REGION_VERSION);
	else if (w.status != KERF_WELCOME_OK)
		kerf_format(why, len, "share %s refused this process (code %u): %s", s->id, w.status, w.reason);
	else if (w.slot >= KERF_MAX_SLOTS || s->usage->slot[w.slot].generation != w.generation)
		kerf_format(why, len, "share %s gave slot %u generation %u, which its usage page does not show: the page is not the one of kerfd; restart the container", s->id, w.slot, w.generation);
	else {
		s->slot = &s->usage->slot[w.slot];
		s->generation = w.generation;
		s->enter = s->slot->enter;
		s->leave = s->slot->leave;
		return true;
	}
	return false;
}

int kerf_lease_connect(const struct share *s)
{
	struct kerf_welcome w;
	int fd = connect_share(s);

	if (fd >= 0 && !(ask(fd, s, KERF_HELLO_LEASE, 0, &w) && w.status == KERF_WELCOME_OK)) {
		close(fd);
		fd = -1;
	}
	return fd;
}

/* Failing is no harm that lasts: kerfd is away or busy then, and finds the context within a second of its return. */
bool kerf_measure(struct device *d)
{
	const struct kerf_policy_device *p = &d->share->policy->device[d->index];
	struct kerf_welcome w;
	int fd;

	if (load_relaxed(&p->context_bytes) == 0 && (fd = connect_share(d->share)) >= 0) {
		ask(fd, d->share, KERF_HELLO_MEASURE, 0, &w);
		close(fd);
	}
	/* Not share_room, which never shows more than the limit. */
	return load_relaxed(&d->share->usage->sum[d->index].charged) + load_relaxed(&p->implicit) <= load_relaxed(&p->limit);
}

/* --- cuInit -------------------------------------------------------------------------------------------- */

static bool map_devices(char *why, size_t len)
{
	int n = 0;

	REAL(cuDeviceGetCount)(&n);
	if (n > KERF_MAX_ORDINALS) {
		kerf_format(why, len, "the driver shows %d GPUs, this shim knows %d at most", n, KERF_MAX_ORDINALS);
		return false;
	}
	for (int i = 0; i < n; i++) {
		struct device *d = &devices[i];
		char text[KERF_UUID_TEXT];
		CUuuid u;

		memset(d, 0, sizeof *d);
		d->ordinal = i;
		memset(&u, 0, sizeof u);
		if (!REAL(cuDeviceGetUuid_v2) || REAL(cuDeviceGetUuid_v2)(&u, i))
			REAL(cuDeviceGetUuid)(&u, i);
		if (!share_find(shares, nshares, (const uint8_t *)&u, &d->share, &d->index)) {
			uuid_text("GPU-", (const uint8_t *)&u, text);
			kerf_format(why, len, "the driver shows %s, which no share under " KERF_ROOT "/shares grants: no GPU is given; another GPU's device node is in this container", text);
			return false;
		}
	}
	ndevices = n;
	return true;
}

static bool attach_all(char *why, size_t len)
{
	int version = 0;

	REAL(cuDriverGetVersion)(&version);
	for (int i = 0; i < nshares; i++)
		if (!attach_share(&shares[i], (uint32_t)version, why, len))
			return false;
	return true;
}

static void publish(struct wiped *w)
{
	fetch_add(&shares[0].slot->unknown, load_relaxed(&unknown_before));
	kerf_keeper_reset(shares, nshares);
	w->hot.gate = nshares == 1 ? &shares[0].policy->gate : NULL;
	w->hot.launches = nshares == 1 ? &shares[0].slot->launches : NULL;
	store_release(&kerf_hot, (const struct hot *)&w->hot);
	attached_pid = getpid();
	store_relaxed(&ever_attached, 1);
	store_release(&w->attached, 1);
}

static CUresult first_init(struct wiped *w, CUresult (*real)(unsigned), unsigned flags)
{
	char why[448];
	CUresult r;

	nshares = share_scan(shares, KERF_MAX_SHARES, true, why, sizeof why);
	if (nshares < 0) {
		nshares = 0;
		kerf_say(why);
		return CUDA_ERROR_SYSTEM_NOT_READY;
	}
	r = kerf_init_mps(real, flags, shares, nshares);
	if (r == CUDA_SUCCESS && !(kerf_check_mps(shares, nshares, why, sizeof why) && map_devices(why, sizeof why) && attach_all(why, sizeof why))) {
		kerf_say(why);
		r = CUDA_ERROR_SYSTEM_NOT_READY;
	}
	if (r != CUDA_SUCCESS) {
		share_unmap(shares, nshares);
		nshares = 0;
		ndevices = 0;
		return r;
	}
	publish(w);
	return CUDA_SUCCESS;
}

CUresult on_init(real_on_init real, unsigned flags)
{
	struct wiped *w = get_page();
	CUresult r;

	if (!w) {
		kerf_say("no memory for one page of state; raise the container's memory limit");
		return CUDA_ERROR_SYSTEM_NOT_READY;
	}
	if (orphan())
		return CUDA_ERROR_NOT_INITIALIZED;
	if (kerf_live())
		return real(flags);
	lock(&w->attach);
	r = kerf_live() ? real(flags) : first_init(w, real, flags);
	unlock(&w->attach);
	return r;
}
