/* behave.c: what a process does to itself, and what its accounts must say after. One scenario a run.
 *
 *   behave SCENARIO [ARGUMENT]      prints "ok", or "FAIL …" and exits 1
 */
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>

#include "pages.h"

#define GRANULE (2ul << 20)

static void start(void)
{
	CUcontext ctx;

	CU(cuInit, 0);
	CU(cuDevicePrimaryCtxRetain, &ctx, 0);
	CU(cuCtxSetCurrent, ctx);
}

static void expect(const char *what, long got, long want)
{
	if (got == want)
		return;
	printf("FAIL %s: %ld, want %ld\n", what, got, want);
	fflush(stdout);
	_Exit(1);
}

static CUdeviceptr take(size_t n)
{
	CUdeviceptr p;

	CU(cuMemAlloc_v2, &p, n);
	return p;
}

static int wait_for(pid_t child)
{
	int status;

	if (waitpid(child, &status, 0) != child)
		die("waitpid", child);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* A child forked before cuInit is a process like any other. */
static void fork_before(const char *arg)
{
	pid_t child;

	(void)arg;
	child = fork();
	start();
	take(8 * GRANULE);
	if (child == 0)
		_Exit(0);
	expect("child", wait_for(child), 0);
	CU(cuMemGetInfo_v2, &(size_t){ 0 }, &(size_t){ 0 });
}

/* After cuInit CUDA is not usable in a child. It gets the driver's own error, and touches nothing of its parent's. */
static void fork_after(const char *arg)
{
	uint64_t before;
	pid_t child;

	(void)arg;
	start();
	take(8 * GRANULE);
	before = charged();
	child = fork();
	if (child == 0) {
		CUdeviceptr p;

		expect("cuMemAlloc in the child", p_cuMemAlloc_v2(&p, 512), CUDA_ERROR_NOT_INITIALIZED);
		expect("cuInit in the child", p_cuInit(0), CUDA_ERROR_NOT_INITIALIZED);
		expect("cuMemsetD8 in the child is the driver's", p_cuMemsetD8_v2(0, 0, 1) != CUDA_SUCCESS, 1);
		_Exit(0);
	}
	expect("child", wait_for(child), 0);
	expect("charged after the child", (long)charged(), (long)before);
	take(GRANULE);
	expect("the parent goes on", (long)(charged() - before), (long)GRANULE);
}

/* Many threads want more than there is: exactly the limit is given. */
#define THREADS 64

static void *grab(void *count)
{
	CUcontext ctx;
	CUdeviceptr p;
	CUresult r;

	CU(cuDevicePrimaryCtxRetain, &ctx, 0);
	CU(cuCtxSetCurrent, ctx);
	while ((r = p_cuMemAlloc_v2(&p, GRANULE)) == CUDA_SUCCESS)
		__atomic_fetch_add((long *)count, 1, __ATOMIC_RELAXED);
	expect("refusal", r, CUDA_ERROR_OUT_OF_MEMORY);
	return NULL;
}

static void threads(const char *arg)
{
	pthread_t t[THREADS];
	long granules, got = 0;

	(void)arg;
	start();
	granules = (long)((policy->device[0].limit - charged()) / GRANULE);
	for (int i = 0; i < THREADS; i++)
		if (pthread_create(&t[i], NULL, grab, &got))
			die("pthread_create", i);
	for (int i = 0; i < THREADS; i++)
		pthread_join(t[i], NULL);
	expect("granules given", got, granules);
	agree("threads");
}

/* All threads call cuInit at once: one session. */
static void *init_only(void *unused)
{
	(void)unused;
	CU(cuInit, 0);
	return NULL;
}

static void init_race(const char *arg)
{
	pthread_t t[THREADS];
	int sessions = 0;

	(void)arg;
	for (int i = 0; i < THREADS; i++)
		if (pthread_create(&t[i], NULL, init_only, NULL))
			die("pthread_create", i);
	for (int i = 0; i < THREADS; i++)
		pthread_join(t[i], NULL);
	for (int i = 0; i < KERF_MAX_SLOTS; i++)
		sessions += policy->host_pid[i] == getpid();
	expect("sessions", sessions, 1);
}

/* Becomes another program with memory in hand: that one begins anew. */
static void exec_again(const char *arg)
{
	start();
	take(8 * GRANULE);
	if (arg)
		return;
	execl("/proc/self/exe", "behave", "exec", "second", NULL);
	die("execl", 0);
}

static void setuid_child(const char *arg)
{
	pid_t child;

	if (arg) {
		expect("uid", (long)getuid(), 65534);
		start();
		take(GRANULE);
		return;
	}
	child = fork();
	if (child == 0) {
		if (setgid(65534) || setuid(65534))
			die("setuid", 0);
		execl("/proc/self/exe", "behave", "setuid", "child", NULL);
		die("execl", 0);
	}
	expect("child", wait_for(child), 0);
}

/* Whatever a tenant writes into its usage page, it gets no more than its limit. */
static void scribble(const char *arg)
{
	size_t given;
	CUdeviceptr p;
	int i;

	start();
	take(64 * GRANULE);
	for (i = 0; i < KERF_MAX_SLOTS && policy->host_pid[i] != getpid(); i++)
		;
	given = charged();
	if (!strcmp(arg, "sum"))
		usage->sum[0].charged = 0;
	else if (!strcmp(arg, "slot"))
		usage->slot[i].charged[0] = 0;
	else if (!strcmp(arg, "all"))
		memset(usage, 0, sizeof *usage);
	else
		memset(usage, 0xff, sizeof *usage);
	while (p_cuMemAlloc_v2(&p, GRANULE) == CUDA_SUCCESS)
		given += GRANULE;
	if (given > policy->device[0].limit)
		die("the limit rose to", (long)given);
	if (!strcmp(arg, "sum") || !strcmp(arg, "slot"))
		expect("flagged", usage->slot[i].flags & KERF_SLOT_TAMPERED, KERF_SLOT_TAMPERED);
}

/* Work waits while the gate is shut. kerfd's stand-in shuts it when it reads "shut?" and opens it after "wait". */
static void gate(const char *arg)
{
	CUdeviceptr p;
	char line[16];

	(void)arg;
	start();
	p = take(GRANULE);
	CU(cuMemsetD8_v2, p, 1, 64);
	printf("shut?\n");
	fflush(stdout);
	if (!fgets(line, sizeof line, stdin))
		die("stdin", 0);
	printf("wait\n");
	fflush(stdout);
	CU(cuMemsetD8_v2, p, 2, 64);
	expect("gate after the call", (long)policy->gate, 0);
}

/* Lists what is seen, for the test to compare. */
static void devices(const char *arg)
{
	int n = 0, (*uuid)(CUuuid *, CUdevice) = (int (*)(CUuuid *, CUdevice))find("dlopen", "cuDeviceGetUuid_v2", "cuDeviceGetUuid", 11040);
	const char *env = getenv("CUDA_VISIBLE_DEVICES");

	(void)arg;
	CU(cuInit, 0);
	CU(cuDeviceGetCount, &n);
	for (int i = 0; i < n; i++) {
		CUuuid u;
		size_t total;

		expect("uuid", uuid(&u, i), 0);
		CU(cuDeviceTotalMem_v2, &total, i);
		for (int b = 0; b < 16; b++)
			printf("%02x", (unsigned char)u.bytes[b]);
		printf(" %zu\n", total);
	}
	printf("env %s\n", env ? env : "-");
}

/* Allocates and frees until it is killed. */
static void storm(const char *arg)
{
	CUdeviceptr p[64] = { 0 };
	unsigned seed = (unsigned)getpid();

	(void)arg;
	start();
	printf("started\n");
	fflush(stdout);
	for (;;) {
		CUdeviceptr *at = &p[(unsigned)rand_r(&seed) % 64];

		if (*at) {
			CU(cuMemFree_v2, *at);
			*at = 0;
		} else if (p_cuMemAlloc_v2(at, (size_t)rand_r(&seed) % (8 * GRANULE) + 1)) {
			*at = 0;
		}
	}
}

/* A context's end takes its memory with it; a reset too. */
static void contexts(const char *arg)
{
	uint64_t cost = policy->device[0].context_bytes, base;
	CUcontext own;

	(void)arg;
	start();
	expect("one context", (long)charged(), (long)cost);
	take(8 * GRANULE);
	base = charged();
	CU(cuCtxCreate_v2, &own, 0, 0);
	expect("two contexts", (long)(charged() - base), (long)cost);
	take(16 * GRANULE);
	agree("second context");
	CU(cuCtxDestroy_v2, own);
	expect("after the second", (long)charged(), (long)base);
	CU(cuDevicePrimaryCtxReset_v2, 0);
	expect("after the reset", (long)charged(), 0);
}

static void host(const char *arg)
{
	static char page[8192] __attribute__((aligned(4096)));
	void *a, *b;
	int i;

	(void)arg;
	start();
	for (i = 0; i < KERF_MAX_SLOTS && policy->host_pid[i] != getpid(); i++)
		;
	CU(cuMemHostAlloc, &a, 10000, 0);
	CU(cuMemAllocHost_v2, &b, 20000);
	CU(cuMemHostRegister_v2, page, sizeof page, 0);
	expect("pinned", (long)usage->slot[i].host_pinned, 38192);
	CU(cuMemFreeHost, a);
	CU(cuMemFreeHost, b);
	CU(cuMemHostUnregister, page);
	expect("pinned after", (long)usage->slot[i].host_pinned, 0);
}

/* Export, import, release the original: the bytes stay charged as long as the import lives. */
static void reimport(const char *arg)
{
	CUmemAllocationProp prop = {
		.type = CU_MEM_ALLOCATION_TYPE_PINNED, .location = { CU_MEM_LOCATION_TYPE_DEVICE, 0 },
		.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
	};
	CUmemGenericAllocationHandle first, second;
	uint64_t base;
	int fd = -1;

	(void)arg;
	start();
	base = charged();
	CU(cuMemCreate, &first, 8 * GRANULE, &prop, 0);
	CU(cuMemExportToShareableHandle, &fd, first, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0);
	CU(cuMemImportFromShareableHandle, &second, (void *)(intptr_t)fd, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
	close(fd);
	CU(cuMemRelease, first);
	expect("charged while the import lives", (long)(charged() - base), (long)(8 * GRANULE));
	CU(cuMemRelease, second);
	expect("charged after", (long)charged(), (long)base);
}

/* Legacy IPC between two processes: charged once, where it was made. */
static void ipc(const char *arg)
{
	CUipcMemHandle handle;
	int to[2], slot;
	CUdeviceptr p;
	pid_t child;

	(void)arg;
	if (pipe(to))
		die("pipe", 0);
	child = fork();
	if (child == 0) {
		close(to[1]);
		if (read(to[0], &handle, sizeof handle) != (ssize_t)sizeof handle)
			die("read", 0);
		start();
		uint64_t base = charged();
		CU(cuIpcOpenMemHandle_v2, &p, handle, 1);
		for (slot = 0; slot < KERF_MAX_SLOTS && policy->host_pid[slot] != getpid(); slot++)
			;
		expect("charged by the importer", (long)charged(), (long)base);
		expect("imported", (long)usage->slot[slot].imported, (long)(8 * GRANULE));
		CU(cuIpcCloseMemHandle, p);
		expect("imported after", (long)usage->slot[slot].imported, 0);
		_Exit(0);
	}
	start();
	p = take(8 * GRANULE);
	CU(cuIpcGetMemHandle, &handle, p);
	if (write(to[1], &handle, sizeof handle) != (ssize_t)sizeof handle)
		die("write", 0);
	expect("child", wait_for(child), 0);
}

/* A pool keeps what was freed to it, charged, and gives it up before another allocation is refused. */
static void pool_kept(const char *arg)
{
	uint64_t base, most = UINT64_MAX, room;
	CUmemoryPool pool;
	CUdeviceptr p;

	(void)arg;
	start();
	base = charged();
	CU(cuDeviceGetDefaultMemPool, &pool, 0);
	CU(cuMemPoolSetAttribute, pool, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &most);
	CU(cuMemAllocAsync, &p, 256 * GRANULE, NULL);
	CU(cuMemFreeAsync, p, NULL);
	CU(cuStreamSynchronize, NULL);
	if (charged() < base + 256 * GRANULE)
		die("the pool kept nothing", (long)charged());
	agree("pool");
	room = policy->device[0].limit - base;
	CU(cuMemAlloc_v2, &p, room);
	expect("given what the pool had", (long)charged(), (long)policy->device[0].limit);
	agree("after the pool gave way");
	CU(cuMemFree_v2, p);
	expect("after", (long)charged(), (long)base);
}

/* A graph that needs most of the limit is launched again and again: its memory is charged once. */
static void graph_again(const char *arg)
{
	CUDA_MEM_ALLOC_NODE_PARAMS a = { .poolProps = { .allocType = CU_MEM_ALLOCATION_TYPE_PINNED, .location = { CU_MEM_LOCATION_TYPE_DEVICE, 0 } } };
	CUgraphNode node;
	CUgraphExec exec, other;
	CUgraph graph;
	uint64_t base;

	(void)arg;
	start();
	base = charged();
	a.bytesize = (policy->device[0].limit - base) / 3 * 2 / GRANULE * GRANULE;
	CU(cuGraphCreate, &graph, 0);
	CU(cuGraphAddMemAllocNode, &node, graph, NULL, 0, &a);
	CU(cuGraphInstantiateWithFlags, &exec, graph, CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH);
	for (int i = 0; i < 5; i++) {
		CU(cuGraphLaunch, exec, NULL);
		CU(cuStreamSynchronize, NULL);
		expect("charged", (long)(charged() - base), (long)a.bytesize);
		agree("graph");
	}
	CU(cuMemFree_v2, a.dptr);
	CU(cuGraphInstantiateWithFlags, &other, graph, CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH);
	CU(cuGraphLaunch, other, NULL);
	CU(cuStreamSynchronize, NULL);
	expect("charged with a second graph", (long)(charged() - base), (long)a.bytesize);
	agree("second graph");
	CU(cuMemFree_v2, a.dptr);
	CU(cuGraphExecDestroy, exec);
	CU(cuGraphExecDestroy, other);
	CU(cuGraphDestroy, graph);
	CU(cuDeviceGraphMemTrim, 0);
	expect("after", (long)charged(), (long)base);
}

/* A pool grows by more than the limit has room for, in a stream that another thread is to release after a sync of its
 * own: that one must not wait for the first. */
static CUresult refused;
static CUstream waiting;

static void *refuse_pool(void *ctx)
{
	CUdeviceptr p;

	CU(cuCtxSetCurrent, ctx);
	refused = p_cuMemAllocAsync(&p, GRANULE, waiting);
	return NULL;
}

static void pool_waits(const char *arg)
{
	CUresult (*wait_value)(CUstream, CUdeviceptr, cuuint32_t, unsigned) =
		(CUresult (*)(CUstream, CUdeviceptr, cuuint32_t, unsigned))find("dlopen", "cuStreamWaitValue32_v2", "cuStreamWaitValue32", 11070);
	uint32_t *word;
	uint64_t base;
	CUcontext ctx;
	CUstream other;
	pthread_t t;
	int slot;

	(void)arg;
	alarm(30);
	start();
	CU(cuDevicePrimaryCtxRetain, &ctx, 0);
	for (slot = 0; slot < KERF_MAX_SLOTS && policy->host_pid[slot] != getpid(); slot++)
		;
	CU(cuMemHostAlloc, (void **)&word, sizeof *word, 2); /* CU_MEMHOSTALLOC_DEVICEMAP */
	*word = 0;
	CU(cuStreamCreate, &waiting, CU_STREAM_NON_BLOCKING);
	CU(cuStreamCreate, &other, CU_STREAM_NON_BLOCKING);
	take(policy->device[0].limit - charged() - 2 * GRANULE);
	base = charged();
	expect("cuStreamWaitValue32", wait_value(waiting, (uintptr_t)word, 1, CU_STREAM_WAIT_VALUE_EQ), CUDA_SUCCESS);
	if (pthread_create(&t, NULL, refuse_pool, ctx))
		die("pthread_create", 0);
	while (!__atomic_load_n(&usage->slot[slot].refused, __ATOMIC_RELAXED))
		;
	CU(cuStreamSynchronize, other);
	__atomic_store_n(word, 1, __ATOMIC_RELEASE);
	pthread_join(t, NULL);
	expect("the pool's growth", refused, CUDA_ERROR_OUT_OF_MEMORY);
	expect("charged after", (long)charged(), (long)base);
	agree("after the pool gave back");
}

/* A graph that was refused has no memory to find: what another one left is not its own. */
static void graph_refused(const char *arg)
{
	CUDA_MEM_ALLOC_NODE_PARAMS a[2] = { { .poolProps = { .allocType = CU_MEM_ALLOCATION_TYPE_PINNED, .location = { CU_MEM_LOCATION_TYPE_DEVICE, 0 } } } };
	CUgraphExec exec[2];
	CUgraphNode node;
	CUgraph graph[2];
	uint64_t base;

	(void)arg;
	start();
	base = charged();
	a[0].bytesize = (policy->device[0].limit - base) / 3 * 2 / GRANULE * GRANULE;
	a[1] = a[0];
	for (int i = 0; i < 2; i++) {
		CU(cuGraphCreate, &graph[i], 0);
		CU(cuGraphAddMemAllocNode, &node, graph[i], NULL, 0, &a[i]);
		CU(cuGraphInstantiateWithFlags, &exec[i], graph[i], 0);
	}
	CU(cuGraphLaunch, exec[0], NULL);
	expect("no room for both", p_cuGraphLaunch(exec[1], NULL), CUDA_ERROR_OUT_OF_MEMORY);
	CU(cuStreamSynchronize, NULL);
	CU(cuMemFree_v2, a[0].dptr);
	CU(cuGraphLaunch, exec[1], NULL);
	expect("charged", (long)(charged() - base), (long)a[0].bytesize);
	CU(cuStreamSynchronize, NULL);
	agree("second graph");
}

/* Holds memory until it is told to end. */
static void hold(const char *arg)
{
	char line[16];

	(void)arg;
	start();
	take(8 * GRANULE);
	printf("holding\n");
	fflush(stdout);
	if (!fgets(line, sizeof line, stdin))
		die("stdin", 0);
}

static const struct { const char *name; void (*run)(const char *); } scenarios[] = {
	{ "fork-before", fork_before }, { "fork-after", fork_after }, { "threads", threads }, { "init-race", init_race },
	{ "exec", exec_again }, { "setuid", setuid_child }, { "scribble", scribble }, { "gate", gate }, { "devices", devices },
	{ "storm", storm }, { "contexts", contexts }, { "host", host }, { "reimport", reimport }, { "ipc", ipc },
	{ "hold", hold }, { "pool-kept", pool_kept }, { "graph-again", graph_again },
	{ "pool-waits", pool_waits }, { "graph-refused", graph_refused },
};

int main(int argc, char **argv)
{
	if (argc < 2)
		die("usage: behave SCENARIO [ARGUMENT]", 0);
	find_all("dlopen");
	map_pages();
	if (strcmp(argv[1], "devices"))
		open_both_nvml();
	for (size_t i = 0; i < sizeof scenarios / sizeof scenarios[0]; i++)
		if (!strcmp(argv[1], scenarios[i].name)) {
			scenarios[i].run(argv[2]);
			printf("ok\n");
			return 0;
		}
	die("no such scenario", 0);
}
