/* crasher: holds GPU memory and dies without giving any of it back, in a way that is asked for. */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "options.h"
#include "tenant.h"

static void die_segfault(void)
{
	volatile int *volatile nowhere = NULL; /* twice volatile, or the compiler makes of it what it likes */
	*nowhere = 1;
}

static void die_kill(void) { kill(getpid(), SIGKILL); }
static void die_abort(void) { abort(); }
static void die_exit(void) { exit(0); }   /* atexit handlers run, nothing was freed */
static void die_quick(void) { _exit(0); } /* they do not run either */

static const struct way {
	const char *name, *about;
	void (*die)(void);
	int storm; /* in the middle of allocations by another thread */
} WAYS[] = {
	{"kill", "SIGKILL itself in a storm of allocations", die_kill, 1},
	{"segfault", "a bad pointer, in a storm of allocations", die_segfault, 1},
	{"abort", "abort() while holding", die_abort, 0},
	{"exit", "exit(0) without freeing", die_exit, 0},
	{"_exit", "_exit(0) without freeing", die_quick, 0},
};
enum { WAY_COUNT = sizeof WAYS / sizeof WAYS[0] };

static const struct way *find_way(const char *name)
{
	for (int i = 0; i < WAY_COUNT; i++)
		if (strcmp(name, WAYS[i].name) == 0)
			return &WAYS[i];
	fprintf(stderr, "crasher: --how %s: the ways are", name);
	for (int i = 0; i < WAY_COUNT; i++)
		fprintf(stderr, "%s %s (%s)", i ? "," : "", WAYS[i].name, WAYS[i].about);
	fputc('\n', stderr);
	exit(2);
}

struct fuse {
	const struct way *way;
	double seconds;
};

static void *burn(void *argument)
{
	const struct fuse *fuse = argument;
	sleep_seconds(fuse->seconds);
	fuse->way->die();
	return NULL;
}

/* Allocates and frees small and large pieces until something ends the process. */
static void storm(struct tenant *tenant)
{
	enum { PIECES = 64 };
	CUdeviceptr piece[PIECES] = {0};
	uint32_t random = (uint32_t)getpid() * 2654435761u | 1;
	for (;;) {
		random ^= random << 13, random ^= random >> 17, random ^= random << 5;
		CUdeviceptr *p = &piece[random % PIECES];
		if (*p) {
			CU(tenant, cuMemFree_v2(*p));
			*p = 0;
			continue;
		}
		size_t bytes = (size_t)512 << (random >> 8) % 13; /* 512 B to 2 MiB */
		CUresult result = cuMemAlloc_v2(p, bytes);
		if (result == CUDA_ERROR_OUT_OF_MEMORY)
			*p = 0; /* full: keep freeing */
		else
			cu_check(tenant, result, "cuMemAlloc");
	}
}

int main(int argc, char **argv)
{
	struct tenant tenant = {0};
	struct holding held = {.touched = 64 << 10};
	uint64_t memory = 128 << 20;
	const char *how = "kill";
	struct fuse fuse = {.seconds = 0.05};
	const struct option_row rows[] = {
		{"how", OPTION_WORD, &how, "kill, segfault, abort, exit or _exit (kill)"},
		{"memory", OPTION_BYTES, &memory, "bytes to hold when it dies (128Mi)"},
		{"after", OPTION_NUMBER, &fuse.seconds, "seconds until then (0.05)"},
		{"json", OPTION_FLAG, &tenant.json, "lines of JSON"},
	};
	options_read(argc, argv, "holds GPU memory and dies without giving it back", rows, sizeof rows / sizeof rows[0]);
	fuse.way = find_way(how);
	setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0}); /* a core file would be as large as what is held */
	tenant_open(&tenant, "crasher");
	holding_take(&tenant, &held, memory, 4);
	if (!fuse.way->storm) {
		sleep_seconds(fuse.seconds);
		fuse.way->die();
	}
	pthread_t thread;
	if (pthread_create(&thread, NULL, burn, &fuse) != 0) {
		fprintf(stderr, "crasher: no thread to be had: %s\n", strerror(errno));
		return 1;
	}
	storm(&tenant);
}
