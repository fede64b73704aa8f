/* storm: processes that allocate and free as fast as they can, and are killed with SIGKILL at random moments.
 *
 *   storm KILLS CHILDREN SEED   runs CHILDREN storms at a time, kills KILLS of them, ends the rest in order and prints
 *                               "kills N started N operations N wait_us N control_us N"
 *
 * A wait is the time of a call that was neither spent running nor, by /proc/thread-self/schedstat, waiting for a processor: on a
 * busy machine that last part says nothing of locks. What the machine takes besides (a hypervisor's other guests) is
 * seen by a control beside the storms, which makes no calls at all: its longest wait is control_us. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include "internal/cuda/cuabi.h"

struct shared {
	uint64_t operations, wait_ns, control_ns, ready, stop;
};

static struct shared *shared;
static int schedstat = -1;

static uint64_t now(clockid_t clock)
{
	struct timespec t;
	clock_gettime(clock, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static uint64_t queued(void)
{
	char text[96] = {0};
	unsigned long long run = 0, wait = 0;
	if (pread(schedstat, text, sizeof text - 1, 0) > 0)
		sscanf(text, "%llu %llu", &run, &wait);
	return wait;
}

/* Raises the longest wait. Every call of the storm goes through here. */
#define TIMED(call) TIMED_AS(&shared->wait_ns, call)
#define TIMED_AS(longest, call) ({ \
	uint64_t w = now(CLOCK_MONOTONIC), c = now(CLOCK_THREAD_CPUTIME_ID), q = queued(); \
	CUresult r_ = (call); \
	w = now(CLOCK_MONOTONIC) - w; c = now(CLOCK_THREAD_CPUTIME_ID) - c; q = queued() - q; \
	note(longest, w, c + q); r_; })

static void note(uint64_t *longest, uint64_t wall, uint64_t explained)
{
	uint64_t wait = wall > explained ? wall - explained : 0, old = __atomic_load_n(longest, __ATOMIC_RELAXED);
	while (wait > old && !__atomic_compare_exchange_n(longest, &old, wait, 1, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
}

static CUresult nothing(void)
{
	for (volatile int i = 0; i < 2000; i++) {} /* about as long as a call */
	return CUDA_SUCCESS;
}

static int control(void)
{
	schedstat = open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC);
	while (!__atomic_load_n(&shared->stop, __ATOMIC_RELAXED))
		TIMED_AS(&shared->control_ns, nothing());
	return 0;
}

static int storm(unsigned seed)
{
	enum { HELD = 32 };
	CUdeviceptr held[HELD] = {0};
	CUdevice device;
	CUcontext context;
	if (cuInit(0) || cuDeviceGet(&device, 0))
		return 3;
	/* A context has its price, which the other storms of the share may have taken at the moment. */
	for (CUresult r; (r = cuDevicePrimaryCtxRetain(&context, device)) != CUDA_SUCCESS; usleep(1000))
		if (r != CUDA_ERROR_OUT_OF_MEMORY)
			return 3;
	if (cuCtxSetCurrent(context))
		return 3;
	schedstat = open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC);
	__atomic_fetch_add(&shared->ready, 1, __ATOMIC_RELAXED);
	for (; !__atomic_load_n(&shared->stop, __ATOMIC_RELAXED); __atomic_fetch_add(&shared->operations, 1, __ATOMIC_RELAXED)) {
		unsigned i = (unsigned)rand_r(&seed) % HELD;
		if (held[i]) {
			if (TIMED(cuMemFree_v2(held[i])) != CUDA_SUCCESS)
				return 4;
			held[i] = 0;
			continue;
		}
		size_t bytes = (size_t)(1 + rand_r(&seed) % (64 << 20));
		CUresult r = rand_r(&seed) % 4 ? TIMED(cuMemAlloc_v2(&held[i], bytes)) : TIMED(cuMemAllocManaged(&held[i], bytes, CU_MEM_ATTACH_GLOBAL));
		if (r == CUDA_ERROR_OUT_OF_MEMORY)
			held[i] = 0;
		else if (r != CUDA_SUCCESS)
			return 5;
	}
	return 0; /* without a free: the driver's and kerfd's part */
}

static pid_t launch(const char *what)
{
	pid_t pid = fork();
	if (pid == 0) {
		execl("/proc/self/exe", "storm", "child", what, (char *)NULL);
		_exit(127);
	}
	return pid;
}

static pid_t launch_storm(unsigned seed)
{
	char text[16];
	snprintf(text, sizeof text, "%u", seed);
	return launch(text);
}

int main(int argc, char **argv)
{
	int child = argc == 3 && strcmp(argv[1], "child") == 0;
	if (!child && argc != 4)
		return 64;
	if (!child) { /* inherited by every storm through exec as descriptor 9 */
		int fd = memfd_create("storm", 0);
		if (fd < 0 || ftruncate(fd, sizeof *shared) || dup2(fd, 9) < 0)
			return 2;
	}
	shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED, 9, 0);
	if (shared == MAP_FAILED)
		return 2;
	if (child) {
		prctl(PR_SET_PDEATHSIG, SIGKILL); /* no storm outlives the test */
		return *argv[2] == 'c' ? control() : storm((unsigned)atoi(argv[2]));
	}

	unsigned kills = (unsigned)atoi(argv[1]), children = (unsigned)atoi(argv[2]), seed = (unsigned)atoi(argv[3]);
	pid_t pid[64]; /* the last in use is the control's */
	for (unsigned i = 0; i < children; i++)
		pid[i] = launch_storm(seed * 1000 + i);
	pid[children] = launch("control");
	for (unsigned k = 0; k < kills; k++) {
		struct timespec pause = {0, rand_r(&seed) % 60000000}; /* before, in, or well after the start of CUDA */
		unsigned victim = (unsigned)rand_r(&seed) % children;
		int status;
		nanosleep(&pause, NULL);
		if (kill(pid[victim], SIGKILL) || waitpid(pid[victim], &status, 0) < 0)
			return 6;
		if (!WIFSIGNALED(status)) {
			fprintf(stderr, "storm: a process ended by itself with %d\n", WEXITSTATUS(status));
			return 7;
		}
		pid[victim] = launch_storm((unsigned)rand_r(&seed));
	}
	__atomic_store_n(&shared->stop, 1, __ATOMIC_RELAXED);
	for (unsigned i = 0; i <= children; i++) {
		int status;
		if (waitpid(pid[i], &status, 0) < 0 || !WIFEXITED(status) || WEXITSTATUS(status)) {
			fprintf(stderr, "storm: a survivor ended with status %#x\n", status);
			return 8;
		}
	}
	printf("kills %u started %llu operations %llu wait_us %llu control_us %llu\n", kills, (unsigned long long)shared->ready,
	       (unsigned long long)shared->operations, (unsigned long long)(shared->wait_ns / 1000), (unsigned long long)(shared->control_ns / 1000));
	return 0;
}
