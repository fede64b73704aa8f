/* keeper.c: a thread for each share whose GPU time is leased. It tells kerfd when this process has work and when it has none,
 * and answers a drain when all that was submitted has ended.
 *
 * It exists only where the policy says that there are leases, from the first context on. It sleeps in poll unless kerfd asked
 * it to watch or to drain. The connection is inherited by a fork, whose child does not use it, and closed by exec.
 *
 * While kerfd is away a shut gate counts as open, unless the policy says to hold: `away` is this process's own word, set when
 * the connection ends and cleared when there is a new one. A kerfd that is there and says nothing is not away.
 *
 * The thread is made by the C library's pthread_create, found at run time: the symbol's version is newer than the oldest
 * library that this must load into. The shim is never unloaded (-z nodelete), since a thread may be in it.
 */
#define _GNU_SOURCE
#include "lease.h"

#include <dlfcn.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#define DRAIN_POLL_NS  50000
#define WATCH_POLL_NS  250000
#define IDLE_POLLS     3          /* without work, before it is said to have ended */
#define AGAIN_MS       50         /* between two tries to reach kerfd */

static struct keeper keepers[KERF_MAX_SHARES];
static int nkeepers;

/* What one connection's thread knows. */
struct watch {
	struct keeper *k;
	bool on;
	bool draining;
	bool loose;      /* some of the work was not watched */
	uint64_t lease;
	uint64_t seen;   /* of keeper.submitted */
	unsigned idle;   /* polls in a row */
};

struct keeper *kerf_keeper_of(const struct share *s)
{
	for (int i = 0; i < nkeepers; i++)
		if (keepers[i].share == s)
			return &keepers[i];
	return NULL;
}

void kerf_keeper_reset(struct share *shares, int n)
{
	memset(keepers, 0, sizeof keepers);
	for (int i = 0; i < n; i++) {
		keepers[i].share = &shares[i];
		keepers[i].fd = -1;
		kerf_orders_start(&shares[i]);
	}
	nkeepers = n;
}

static void say(struct keeper *k, struct kerf_lease m)
{
	if (k->fd >= 0)
		send(k->fd, &m, sizeof m, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static void tell(struct keeper *k, bool work)
{
	if (load_relaxed(&k->told) == work)
		return;
	lock(&k->tell);
	if (k->told != work && k->fd >= 0) {
		say(k, (struct kerf_lease){ .kind = work ? KERF_LEASE_BEGAN : KERF_LEASE_ENDED });
		store_relaxed(&k->told, work);
	}
	unlock(&k->tell);
}

void kerf_keeper_began(struct keeper *k)
{
	tell(k, true);
}

/* --- the connection -------------------------------------------------------------------------------------------- */

/* A gate that is shut stays shut while kerfd is away. */
static bool holds(const struct keeper *k)
{
	return load_relaxed(&k->share->policy->flags) & (KERF_POLICY_HOLD | KERF_POLICY_OVERCOMMIT);
}

static void let_go(struct keeper *k)
{
	store_relaxed(&k->lost, 1);
	kerf_orders_news(k);
	if (holds(k) || load_relaxed(&k->away))
		return;
	store_relaxed(&k->away, 1);
	kerf_futex(&k->share->policy->gate, FUTEX_WAKE, INT32_MAX, NULL);
}

static void set_fd(struct keeper *k, int fd)
{
	lock(&k->tell);
	if (k->fd >= 0)
		close(k->fd);
	k->fd = fd;
	store_relaxed(&k->told, 0);
	unlock(&k->tell);
}

static void heard(struct watch *w, const struct kerf_lease *m, int fd)
{
	switch (m->kind) {
	case KERF_LEASE_WATCH:
		w->on = m->flags & 1;
		w->idle = 0;
		if (w->on)
			kerf_lanes_untracked(w->k);
		break;
	case KERF_LEASE_DRAIN:
		w->draining = true;
		w->lease = m->lease;
		w->loose = m->flags & 1;
		if (w->loose)
			kerf_lanes_untracked(w->k);
		break;
	default:
		kerf_orders_heard(w->k, m, fd);
	}
}

/* A message, and the file that came with it or -1. */
static ssize_t receive(int from, struct kerf_lease *m, int *fd)
{
	union { char space[CMSG_SPACE(sizeof(int))]; struct cmsghdr align; } control;
	struct iovec data = { m, sizeof *m };
	struct msghdr h = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control };
	ssize_t n = recvmsg(from, &h, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	struct cmsghdr *c = n < 0 ? NULL : CMSG_FIRSTHDR(&h);

	*fd = -1;
	if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS && c->cmsg_len == CMSG_LEN(sizeof *fd))
		memcpy(fd, CMSG_DATA(c), sizeof *fd);
	return n;
}

/* Reads what there is; false: the connection has ended. */
static bool listen_to(struct watch *w)
{
	struct kerf_lease m;
	ssize_t n;
	int fd;

	while ((n = receive(w->k->fd, &m, &fd)) == (ssize_t)sizeof m) {
		heard(w, &m, fd);
		if (fd >= 0)
			close(fd);
	}
	return n < 0 && (errno == EAGAIN || errno == EINTR);
}

static bool quiet(struct keeper *k)
{
	return __atomic_load_n(&k->inside, __ATOMIC_SEQ_CST) == 0;
}

static void drain(struct watch *w)
{
	struct keeper *k = w->k;
	struct kerf_lease m = { .kind = KERF_LEASE_DRAINED, .lease = w->lease, .at = kerf_now() };
	uint64_t micros;

	if (!quiet(k))
		return;
	kerf_lanes_mark(k);
	if (!kerf_lanes_idle(k, true))
		return;
	w->draining = false;
	w->idle = 0;
	micros = kerf_lanes_drained(k) / 1000;
	if (!w->loose)
		m.flags = micros < 1 ? 1 : micros < UINT32_MAX ? (uint32_t)micros : UINT32_MAX;
	lock(&k->tell);
	say(k, m);
	unlock(&k->tell);
}

static void look(struct watch *w)
{
	struct keeper *k = w->k;
	uint64_t submitted = load_relaxed(&k->submitted);
	bool busy = submitted != w->seen || load_relaxed(&k->waiting) || !quiet(k);

	w->seen = submitted;
	if (busy || !kerf_lanes_idle(k, false)) {
		w->idle = 0;
		tell(k, true);
	} else if (++w->idle >= IDLE_POLLS) {
		tell(k, false);
	}
}

/* Sleeps until kerfd says something or it is time to look. Only what was heard says that the connection has ended. */
static bool turn(struct watch *w)
{
	struct pollfd p = { .fd = w->k->fd, .events = POLLIN };
	bool waits = w->draining || kerf_orders_open(w->k) || load_relaxed(&w->k->unsaid);
	struct timespec t = { 0, waits ? DRAIN_POLL_NS : WATCH_POLL_NS };
	bool looks = w->on || (load_relaxed(&w->k->told) && !load_relaxed(&w->k->waiting)); /* a thread may be on its way to the gate */
	int n = ppoll(&p, 1, waits || looks ? &t : NULL, NULL);

	if (n > 0 && !listen_to(w))
		return false;
	if (load_relaxed(&w->k->unsaid))
		kerf_orders_report(w->k, false);
	if (kerf_orders_open(w->k) && !w->draining && (!kerf_orders_wait(w->k) || (quiet(w->k) && kerf_lanes_idle(w->k, true))))
		kerf_orders_carry_out(w->k);
	if (w->draining)
		drain(w);
	else if (looks)
		look(w);
	return true;
}

static void *keep(void *arg)
{
	struct keeper *k = arg;
	CUstreamCaptureMode relaxed = CU_STREAM_CAPTURE_MODE_RELAXED;
	static const struct timespec again = { 0, AGAIN_MS * 1000000l };

	kerf_depth++; /* for good: the driver's own calls of exported names are none of the tenant's */
	prctl(PR_SET_NAME, "kerf-keeper");
	prctl(PR_SET_TIMERSLACK, 1000ul);
	if (REAL(cuThreadExchangeStreamCaptureMode))
		REAL(cuThreadExchangeStreamCaptureMode)(&relaxed);
	for (;;) {
		struct watch w = { .k = k };
		int fd = kerf_lease_connect(k->share);

		if (fd < 0) {
			let_go(k);
			nanosleep(&again, NULL);
			continue;
		}
		set_fd(k, fd);
		store_relaxed(&k->away, 0);
		store_relaxed(&k->lost, 0);
		kerf_orders_report(k, true);
		if (load_relaxed(&k->waiting))
			tell(k, true);
		while (turn(&w))
			;
		set_fd(k, -1);
		let_go(k);
	}
	return NULL;
}

static bool make_thread(struct keeper *k)
{
	int (*create)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
	int (*detach)(pthread_t);
	sigset_t every, before;
	pthread_t thread;
	bool made;

	*(void **)&create = dlsym(RTLD_DEFAULT, "pthread_create");
	*(void **)&detach = dlsym(RTLD_DEFAULT, "pthread_detach");
	sigfillset(&every); /* signals are the program's business */
	sigprocmask(SIG_SETMASK, &every, &before);
	made = create && detach && create(&thread, NULL, keep, k) == 0;
	if (made)
		detach(thread);
	sigprocmask(SIG_SETMASK, &before, NULL);
	return made;
}

/* Without the thread nobody answers for this process. Where the gate may open then, it does, and kerfd does not count on the process.
 * Where it holds, it would hold for ever: so the thread is tried for again at the next occasion, and no context is made before. */
bool kerf_keeper_start(struct keeper *k)
{
	if (likely(load_relaxed(&k->started)) || !(load_relaxed(&k->share->policy->flags) & KERF_POLICY_LEASES) || __atomic_exchange_n(&k->started, 1, __ATOMIC_RELAXED))
		return true;
	if (make_thread(k))
		return true;
	let_go(k);
	if (!holds(k))
		return true;
	store_relaxed(&k->started, 0);
	return false;
}

CUresult kerf_keeper_first(struct device *d)
{
	struct keeper *k = kerf_keeper_of(d->share);

	if (!k || kerf_keeper_start(k))
		return CUDA_SUCCESS;
	kerf_say("no GPU context: the share's memory is over-committed, which needs one thread in this process, and none can be made; raise the limit of processes (ulimit -u, or pids.max of the container)");
	return CUDA_ERROR_OPERATING_SYSTEM;
}

void kerf_keeper_context(struct device *d)
{
	struct keeper *k = kerf_keeper_of(d->share);

	if (k)
		kerf_keeper_start(k);
}
