/* mps.c: a process as the client of an MPS server.
 *
 * In cuInit a process looks for a control daemon, at CUDA_MPS_PIPE_DIRECTORY or in /tmp/nvidia-mps, and goes on without where
 * nobody answers. The daemon names a server, its limits and its GPU, and hands over a descriptor that hangs up when the server
 * ends; then every context of this process on that GPU is broken. See ../mps/control.c for the other side.
 */
#define _GNU_SOURCE
#include "sim.h"

#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

struct server { unsigned pid, percent; unsigned long long limit; char gpu[64]; };

static int dial(void)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	const char *dir = getenv("CUDA_MPS_PIPE_DIRECTORY");
	int n = snprintf(a.sun_path, sizeof a.sun_path, "%s/control", dir ? dir : "/tmp/nvidia-mps");
	int fd = n < (int)sizeof a.sun_path ? socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0) : -1;
	if (fd >= 0 && connect(fd, (struct sockaddr *)&a, sizeof a) != 0) {
		close(fd);
		return -1;
	}
	return fd;
}

/* The answer comes at once, or when the server of another user has ended. */
static bool receive(int fd, struct server *s, int *lifeline)
{
	char text[256], control[CMSG_SPACE(sizeof(int))];
	struct iovec io = { text, sizeof text - 1 };
	struct msghdr m = { .msg_iov = &io, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control };
	ssize_t n = recvmsg(fd, &m, MSG_CMSG_CLOEXEC);
	struct cmsghdr *c = n > 0 ? CMSG_FIRSTHDR(&m) : NULL;
	if (!c || c->cmsg_type != SCM_RIGHTS)
		return false;
	memcpy(lifeline, CMSG_DATA(c), sizeof *lifeline);
	text[n] = 0;
	return sscanf(text, "server %u %u %llu %63s", &s->pid, &s->percent, &s->limit, s->gpu) == 4 && s->pid && s->percent;
}

static bool serves(const struct server *s, const struct simdev *d)
{
	char text[48], index[16];
	const uint8_t *u = d->gpu->facts.uuid;
	int n = snprintf(text, sizeof text, "GPU-");
	for (int i = 0; i < 16; i++)
		n += snprintf(text + n, sizeof text - (size_t)n, "%s%02x", i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", u[i]);
	snprintf(index, sizeof index, "%u", d->node_index);
	return strcmp(s->gpu, "all") == 0 || strcmp(s->gpu, text) == 0 || strcmp(s->gpu, index) == 0;
}

static void *watch(void *arg)
{
	struct pollfd p = { .fd = (int)(intptr_t)arg };
	while (poll(&p, 1, -1) < 0 || !p.revents)
		;
	__atomic_store_n(&g.mps_lost, true, __ATOMIC_RELAXED);
	return NULL;
}

static bool start_watch(int lifeline)
{
	sigset_t all, old;
	pthread_t thread;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	bool ok = pthread_create(&thread, NULL, watch, (void *)(intptr_t)lifeline) == 0;
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (ok)
		pthread_detach(thread);
	return ok;
}

/* The least of what the server allows and what the program asks for itself. */
static uint32_t percent_of(const struct server *s)
{
	const char *own = getenv("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE");
	long asked = own ? strtol(own, NULL, 10) : 0;
	return asked >= 1 && asked < (long)s->percent ? (uint32_t)asked : s->percent;
}

CUresult mps_join(void)
{
	struct server s;
	int lifeline = -1, fd = dial(); /* it stays open: by it the daemon knows that we live */
	if (fd < 0)
		return CUDA_SUCCESS;
	if (send(fd, "client", 6, MSG_NOSIGNAL) != 6 || !receive(fd, &s, &lifeline) || !start_watch(lifeline)) {
		close(fd);
		return CUDA_ERROR_MPS_CONNECTION_FAILED;
	}
	for (int i = 0; i < g.ndev; i++) {
		struct simdev *d = &g.dev[i];
		if (d->mig || !serves(&s, d))
			continue;
		d->use->mps_percent = percent_of(&s);
		d->use->mps_limit = s.limit;
		__atomic_store_n(&d->use->mps, s.pid, __ATOMIC_RELEASE);
	}
	return CUDA_SUCCESS;
}
