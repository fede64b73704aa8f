/* overhead-probe: times single driver calls. An ordinary linked program; what libcuda.so.1 it finds is what
 * it measures. Package bench starts one on the driver and one under `kerf run`, and asks them by turns.
 *
 *   overhead-probe serve            reads lines "METRIC BATCHES BATCH"; answers two lines of nanoseconds a call:
 *                                   the mean of each batch, then each of as many single calls
 *   overhead-probe beside OTHERS    OTHERS processes with CUDA up; then cuInit of one fresh process, timed
 *   overhead-probe together OTHERS  OTHERS + 1 fresh processes at once; cuInit of each, timed
 *
 * The clock: the time-stamp counter where it is invariant, fenced on both sides so that the call's own work is
 * all inside; its own cost (the median of empty pairs) is taken off single calls and negligible in a batch. On
 * AMD's Zen the counter moves in steps of 10 ns: single calls are as coarse as that, means of batches are not.
 * Work for the GPU is waited for outside the timed part: a full queue would be measured as a slow call.
 * The process stays on one CPU, since the counters of two may differ and a migration costs more than a call. */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "bench/tenants/tenant.h"

enum { MOST_CALLS = 4096 };

/* --- the clock ----------------------------------------------------------------------------------------- */

static uint64_t clock_ns(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC_RAW, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

#if defined(__x86_64__)
#include <cpuid.h>
#include <x86intrin.h>

static int has_invariant_counter(void)
{
	unsigned a, b, c, d;
	return __get_cpuid(0x80000007, &a, &b, &c, &d) && (d & 1 << 8);
}

static inline uint64_t counter(void)
{
	_mm_lfence();
	uint64_t now = __rdtsc();
	_mm_lfence();
	return now;
}
#else
static int has_invariant_counter(void) { return 0; }
static inline uint64_t counter(void) { return clock_ns(); }
#endif

static int use_counter;
static double ns_per_tick = 1, empty_ns;

static inline uint64_t ticks(void) { return use_counter ? counter() : clock_ns(); }

static int by_size(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

static void calibrate(void)
{
	enum { PAIRS = 1001 };
	static double pair[PAIRS];
	use_counter = has_invariant_counter();
	if (use_counter) {
		uint64_t ns = clock_ns(), from = counter();
		while (clock_ns() - ns < 50000000)
			;
		uint64_t to = counter();
		ns_per_tick = (double)(clock_ns() - ns) / (double)(to - from);
	}
	for (int i = 0; i < PAIRS; i++) {
		uint64_t from = ticks();
		pair[i] = (double)(ticks() - from) * ns_per_tick;
	}
	qsort(pair, PAIRS, sizeof pair[0], by_size);
	empty_ns = pair[PAIRS / 2];
}

static void pin(void)
{
	cpu_set_t one;
	CPU_ZERO(&one);
	/* The last CPU that we may use: interrupts tend to be served by the first. */
	cpu_set_t allowed;
	if (sched_getaffinity(0, sizeof allowed, &allowed) != 0)
		return;
	for (int cpu = CPU_SETSIZE - 1; cpu >= 0; cpu--) {
		if (!CPU_ISSET(cpu, &allowed))
			continue;
		CPU_SET(cpu, &one);
		sched_setaffinity(0, sizeof one, &one); /* refused: noisier, still right */
		return;
	}
}

/* --- what is timed ------------------------------------------------------------------------------------- */

struct probe {
	struct tenant tenant;
	CUgraphExec graph;
	CUdeviceptr piece[MOST_CALLS];
	CUcontext context[MOST_CALLS];
};

enum { PIECE = 2 << 20 };

static void call_launch(struct probe *probe, int i)
{
	uint64_t microseconds = 0;
	void *args[] = {&microseconds};
	(void)i;
	CU(&probe->tenant, cuLaunchKernel(probe->tenant.spin, 1, 1, 1, 1, 1, 1, 0, NULL, args, NULL));
}

static void call_graph(struct probe *probe, int i)
{
	(void)i;
	CU(&probe->tenant, cuGraphLaunch(probe->graph, NULL));
}

static void call_alloc(struct probe *probe, int i) { CU(&probe->tenant, cuMemAlloc_v2(&probe->piece[i], PIECE)); }
static void call_free(struct probe *probe, int i) { CU(&probe->tenant, cuMemFree_v2(probe->piece[i])); }

static void call_alloc_free(struct probe *probe, int i)
{
	call_alloc(probe, i);
	call_free(probe, i);
}

/* The pool keeps what is freed: from the second call on no memory comes from the driver or goes back to it. */
static void call_async(struct probe *probe, int i)
{
	CU(&probe->tenant, cuMemAllocAsync(&probe->piece[i], PIECE, NULL));
	CU(&probe->tenant, cuMemFreeAsync(probe->piece[i], NULL));
}

/* All that the card says it has can never be had: the context is there. */
static void call_refuse(struct probe *probe, int i)
{
	if (cuMemAlloc_v2(&probe->piece[i], probe->tenant.total) == CUDA_ERROR_OUT_OF_MEMORY)
		return;
	fprintf(stderr, "overhead-probe: %zu bytes were not refused\n", probe->tenant.total);
	exit(1);
}

static void call_mem_info(struct probe *probe, int i)
{
	size_t free_bytes, total;
	(void)i;
	CU(&probe->tenant, cuMemGetInfo_v2(&free_bytes, &total));
}

static void call_resolve(struct probe *probe, int i)
{
	CUdriverProcAddressQueryResult status;
	void *address;
	(void)i;
	CU(&probe->tenant, cuGetProcAddress_v2("cuLaunchKernel", &address, 12000, CU_GET_PROC_ADDRESS_DEFAULT, &status));
}

static void call_context(struct probe *probe, int i)
{
	CU(&probe->tenant, cuCtxCreate_v2(&probe->context[i], 0, probe->tenant.device));
	CU(&probe->tenant, cuCtxDestroy_v2(probe->context[i]));
}

static void all_alloc(struct probe *probe, int count)
{
	for (int i = 0; i < count; i++)
		call_alloc(probe, i);
}

static void all_free(struct probe *probe, int count)
{
	for (int i = 0; i < count; i++)
		call_free(probe, i);
}

static void all_wait(struct probe *probe, int count)
{
	(void)count;
	CU(&probe->tenant, cuCtxSynchronize());
}

static void restore(struct probe *probe, int count)
{
	(void)count;
	CU(&probe->tenant, cuCtxSetCurrent(probe->tenant.context));
}

static const struct metric {
	const char *name;
	void (*call)(struct probe *probe, int i);
	void (*before)(struct probe *probe, int count); /* untimed, or NULL */
	void (*after)(struct probe *probe, int count);  /* untimed, or NULL */
} METRICS[] = {
	{"launch", call_launch, NULL, all_wait},
	{"graph", call_graph, NULL, all_wait},
	{"alloc", call_alloc, NULL, all_free},
	{"free", call_free, all_alloc, NULL},
	{"alloc-free", call_alloc_free, NULL, NULL},
	{"async", call_async, NULL, all_wait},
	{"refuse", call_refuse, NULL, NULL},
	{"mem-info", call_mem_info, NULL, NULL},
	{"resolve", call_resolve, NULL, NULL},
	{"context", call_context, NULL, restore},
};

static double time_batch(struct probe *probe, const struct metric *metric, int count)
{
	if (metric->before)
		metric->before(probe, count);
	uint64_t from = ticks();
	for (int i = 0; i < count; i++)
		metric->call(probe, i);
	double each = (double)(ticks() - from) * ns_per_tick / count;
	if (metric->after)
		metric->after(probe, count);
	return each;
}

static void time_calls(struct probe *probe, const struct metric *metric, int count, double *each)
{
	if (metric->before)
		metric->before(probe, count);
	for (int i = 0; i < count; i++) {
		uint64_t from = ticks();
		metric->call(probe, i);
		each[i] = (double)(ticks() - from) * ns_per_tick - empty_ns;
	}
	if (metric->after)
		metric->after(probe, count);
}

/* --- serve --------------------------------------------------------------------------------------------- */

static CUgraphExec one_kernel_graph(struct probe *probe)
{
	struct tenant *tenant = &probe->tenant;
	CUgraph graph;
	CUgraphExec exec;
	CUstream stream;
	CU(tenant, cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
	CU(tenant, cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
	tenant_spin(tenant, stream, 0);
	CU(tenant, cuStreamEndCapture(stream, &graph));
	CU(tenant, cuGraphInstantiateWithFlags(&exec, graph, 0));
	CU(tenant, cuGraphDestroy(graph));
	CU(tenant, cuStreamDestroy_v2(stream));
	return exec;
}

static void print_times(const double *times, int count)
{
	for (int i = 0; i < count; i++)
		printf("%.2f%c", times[i], i + 1 < count ? ' ' : '\n');
}

static void measure(struct probe *probe, const struct metric *metric, int batches, int batch)
{
	static double times[MOST_CALLS], calls[MOST_CALLS];
	time_batch(probe, metric, batch); /* the other process ran since: warm the caches */
	for (int i = 0; i < batches; i++) {
		times[i] = time_batch(probe, metric, batch);
		time_calls(probe, metric, batch, calls + i * batch);
	}
	print_times(times, batches);
	print_times(calls, batches * batch);
	fflush(stdout);
}

static const struct metric *find_metric(const char *name)
{
	for (size_t i = 0; i < sizeof METRICS / sizeof METRICS[0]; i++)
		if (strcmp(name, METRICS[i].name) == 0)
			return &METRICS[i];
	return NULL;
}

static int serve(void)
{
	static struct probe probe;
	char name[32];
	int batches, batch;
	pin();
	calibrate();
	tenant_open(&probe.tenant, "overhead-probe");
	probe.graph = one_kernel_graph(&probe);
	printf("card %s\n", probe.tenant.card);
	fflush(stdout);
	while (scanf("%31s %d %d", name, &batches, &batch) == 3) {
		const struct metric *metric = find_metric(name);
		if (!metric || batches < 1 || batch < 1 || batches > MOST_CALLS / batch) {
			fprintf(stderr, "overhead-probe: '%s %d %d': no such metric, or not 1 to %d calls\n", name, batches, batch, MOST_CALLS);
			return 2;
		}
		measure(&probe, metric, batches, batch);
	}
	CU(&probe.tenant, cuGraphExecDestroy(probe.graph));
	tenant_close(&probe.tenant);
	return 0;
}

/* --- process init ---------------------------------------------------------------------------------------
 * Each process is this program afresh, by exec: a forked copy would have the loader's work done already.
 * A child says "ready" with one byte on its standard output, waits until its standard input is closed, and
 * writes a double: the time of its cuInit. */

struct child {
	pid_t pid;
	int from;
};

static void fail(const char *what)
{
	fprintf(stderr, "overhead-probe: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void read_exactly(int from, void *into, size_t bytes)
{
	for (size_t got = 0; got < bytes;) {
		ssize_t n = read(from, (char *)into + got, bytes - got);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0) {
			fprintf(stderr, "overhead-probe: a child ended before its answer\n");
			exit(1);
		}
		got += (size_t)n;
	}
}

/* The child waits for the end of `gate`, which every child shares. */
static struct child start_child(int gate, const char *role)
{
	int out[2];
	if (pipe2(out, O_CLOEXEC) < 0)
		fail("pipe");
	struct child child = {.pid = fork(), .from = out[0]};
	if (child.pid < 0)
		fail("fork");
	if (child.pid == 0) {
		dup2(gate, STDIN_FILENO);
		dup2(out[1], STDOUT_FILENO);
		execl("/proc/self/exe", "overhead-probe", role, (char *)NULL);
		_exit(127);
	}
	close(out[1]);
	return child;
}

static void await_gate(void)
{
	char byte = 'r';
	if (write(STDOUT_FILENO, &byte, 1) != 1 || read(STDIN_FILENO, &byte, 1) != 0)
		exit(1);
}

/* A fresh process whose cuInit is timed. */
static int child_fresh(void)
{
	struct tenant tenant = {.name = "overhead-probe"};
	await_gate();
	uint64_t from = clock_ns();
	CU(&tenant, cuInit(0));
	double took = (double)(clock_ns() - from);
	return write(STDOUT_FILENO, &took, sizeof took) != sizeof took;
}

/* One of the others: CUDA is up before it says that it is ready. */
static int child_other(void)
{
	struct tenant tenant = {.name = "overhead-probe"};
	CU(&tenant, cuInit(0));
	await_gate();
	return 0;
}

static void make_gate(int gate[2])
{
	if (pipe2(gate, O_CLOEXEC) < 0)
		fail("pipe");
}

static void start_children(struct child *children, int count, int gate, const char *role)
{
	for (int i = 0; i < count; i++)
		children[i] = start_child(gate, role);
	for (int i = 0; i < count; i++)
		read_exactly(children[i].from, &(char){0}, 1);
}

static void end_children(struct child *children, int count)
{
	for (int i = 0; i < count; i++) {
		int status;
		close(children[i].from);
		if (waitpid(children[i].pid, &status, 0) != children[i].pid || status != 0) {
			fprintf(stderr, "overhead-probe: a child failed (status %d)\n", status);
			exit(1);
		}
	}
}

/* Opens the gate to `count` fresh processes and prints the time of each cuInit. */
static void time_fresh(int count)
{
	static struct child fresh[MOST_CALLS];
	static double took[MOST_CALLS];
	int gate[2];
	make_gate(gate);
	start_children(fresh, count, gate[0], "fresh");
	close(gate[0]);
	close(gate[1]);
	for (int i = 0; i < count; i++)
		read_exactly(fresh[i].from, &took[i], sizeof took[i]);
	print_times(took, count);
	end_children(fresh, count);
}

static int beside(int others)
{
	static struct child other[MOST_CALLS];
	int gate[2];
	make_gate(gate);
	start_children(other, others, gate[0], "other");
	time_fresh(1);
	close(gate[0]);
	close(gate[1]);
	end_children(other, others);
	return 0;
}

static int together(int others)
{
	time_fresh(others + 1);
	return 0;
}

int main(int argc, char **argv)
{
	const char *role = argc > 1 ? argv[1] : "";
	int others = argc > 2 ? atoi(argv[2]) : 0;
	if (strcmp(role, "serve") == 0)
		return serve();
	if (strcmp(role, "fresh") == 0)
		return child_fresh();
	if (strcmp(role, "other") == 0)
		return child_other();
	if (argc > 2 && others >= 0 && others < MOST_CALLS) {
		if (strcmp(role, "beside") == 0)
			return beside(others);
		if (strcmp(role, "together") == 0)
			return together(others);
	}
	fprintf(stderr, "overhead-probe: started by 'kerf bench run overhead'; serve, beside N or together N (N to %d)\n", MOST_CALLS - 1);
	return 2;
}
