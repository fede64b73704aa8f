/* process.c: several processes: accounts, deaths, shares of the engine, IPC, fork, faults. */
#define _GNU_SOURCE
#include "test.h"

#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>

/* Waits for something that another process does; the bound is far beyond what it takes. */
static void until(bool (*done)(void), const char *what)
{
	double t0 = now_ms();
	while (!done()) {
		if (now_ms() - t0 > 30000)
			FAIL("%s did not happen", what);
		poll(NULL, 0, 1);
	}
}

/* --- accounts ---------------------------------------------------------------------------------------- */

static void storm_part(void)
{
	CUdeviceptr p[32] = { 0 };
	unsigned seed = (unsigned)atoi(test_arg);
	start();
	for (;;) {
		int i = (int)(rand_r(&seed) % 32);
		if (p[i]) {
			OK(cuMemFree_v2(p[i]));
			p[i] = 0;
		} else {
			CUresult r = cuMemAlloc_v2(&p[i], (size_t)1 << (8 + rand_r(&seed) % 22));
			CHECK(r == CUDA_SUCCESS || r == CUDA_ERROR_OUT_OF_MEMORY);
		}
	}
}

static uint64_t total_used(void)
{
	uint64_t sum = 0;
	for (int s = 0; s < SIM_MAX_PROCS; s++)
		if (ctl->proc[s].pid && gpu(0)->use[s].generation == ctl->proc[s].generation)
			sum += gpu(0)->use[s].used;
	return sum;
}

static void accounts_end_at_zero(void)
{
	enum { N = 8, ROUNDS = 60 };
	pid_t pid[N];
	char arg[16];
	unsigned seed = 1;
	start();
	uint64_t mine = my_use(0)->used;
	for (int i = 0; i < N; i++) {
		snprintf(arg, sizeof arg, "%d", i + 1);
		pid[i] = spawn("-storm", arg);
	}
	for (int round = 0; round < ROUNDS; round++) {
		poll(NULL, 0, (int)(rand_r(&seed) % 8));
		int i = (int)(rand_r(&seed) % N);
		CHECK(kill(pid[i], SIGKILL) == 0);
		EQ(finish(pid[i]), 128 + SIGKILL);
		snprintf(arg, sizeof arg, "%d", round + 100);
		pid[i] = spawn("-storm", arg);
	}
	for (int i = 0; i < N; i++) {
		CHECK(kill(pid[i], SIGKILL) == 0);
		finish(pid[i]);
	}
	size_t free_, total;
	OK(cuMemGetInfo_v2(&free_, &total));
	EQ(total - free_, mine);
	EQ(total_used(), mine);
}

/* --- shares ------------------------------------------------------------------------------------------ */

static bool go(void) { return gpu(0)->health.persistence == 77; } /* a word nobody else writes */

static void contend_part(void)
{
	unsigned long long us = strtoull(test_arg, NULL, 10);
	start();
	kernel("kerf_spin");
	until(go, "the start");
	for (int batch = 0; go(); batch++) {
		for (int i = 0; i < 20; i++)
			spin_async(NULL, us);
		CUevent e;
		OK(cuEventCreate(&e, 0));
		OK(cuEventRecord(e, NULL));
		for (int i = 0; i < 20; i++) /* always work in the queue while the first half is waited for */
			spin_async(NULL, us);
		OK(cuEventSynchronize(e));
		OK(cuEventDestroy_v2(e));
	}
	OK(cuCtxSynchronize());
}

static int owners(uint64_t busy[8])
{
	int n = 0;
	for (int s = 0; s < SIM_MAX_PROCS && n < 8; s++)
		if (ctl->proc[s].pid && ctl->proc[s].pid != getpid() && gpu(0)->use[s].context && alive(s))
			busy[n++] = gpu(0)->use[s].busy_compute_ns;
	return n;
}

static bool two_are_there(void) { uint64_t busy[8]; return owners(busy) == 2; }
static uint64_t busy_before;
static bool enough(void) { return gpu(0)->compute.busy_ns - busy_before > 600000000; }

/* Short kernels against long ones, and yet each has half of the engine: a slice is a slice. */
static void shares_are_even(void)
{
	uint64_t busy[8];
	pid_t a = spawn("-contend", "200"), b = spawn("-contend", "9000");
	until(two_are_there, "the start of two tenants");
	busy_before = gpu(0)->compute.busy_ns;
	gpu(0)->health.persistence = 77;
	until(enough, "600 ms of engine time");
	EQ(owners(busy), 2);
	gpu(0)->health.persistence = 0;
	EQ(finish(a), 0);
	EQ(finish(b), 0);
	double share = (double)busy[0] / (double)(busy[0] + busy[1]);
	if (share < 0.4 || share > 0.6)
		FAIL("shares are %.3f and %.3f", share, 1 - share);
}

/* An owner of the engine that is killed or stopped holds nobody up. */
static void hold_part(void)
{
	start();
	spin_async(NULL, 60000000);
	OK(cuCtxSynchronize());
}

static bool held(void) { return gpu(0)->compute.owner != 0 && gpu(0)->compute.busy_ns > 0; }

static void dead_owner(void)
{
	start();
	spin_async(NULL, 10);
	OK(cuCtxSynchronize());
	for (int sig = 0; sig < 2; sig++) {
		gpu(0)->compute.busy_ns = 0;
		pid_t p = spawn("-hold", "");
		until(held, "the engine's being taken");
		CHECK(kill(p, sig ? SIGSTOP : SIGKILL) == 0);
		double t0 = now_ms();
		spin_async(NULL, 1000);
		OK(cuCtxSynchronize());
		if (now_ms() - t0 > 500)
			FAIL("waited %.0f ms", now_ms() - t0);
		kill(p, SIGKILL);
		finish(p);
	}
}

/* --- IPC --------------------------------------------------------------------------------------------- */

static void ipc_part(void)
{
	CUipcMemHandle h;
	CUdeviceptr p;
	unsigned v;
	for (unsigned i = 0; i < sizeof h; i++)
		CHECK(sscanf(test_arg + 2 * i, "%2hhx", (unsigned char *)&h.reserved[i]) == 1);
	start();
	uint64_t used = my_use(0)->used;
	OK(cuIpcOpenMemHandle_v2(&p, h, CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS));
	EQ(my_use(0)->used, used); /* charged where it was made */
	OK(cuMemcpyDtoH_v2(&v, p + 400, 4));
	EQ(v, 0x1111);
	OK(cuMemsetD32_v2(p + 400, 0x2222, 1));
	OK(cuCtxSynchronize());
	IS(cuMemFree_v2(p), CUDA_ERROR_INVALID_VALUE);
	OK(cuIpcCloseMemHandle(p));
	IS(cuIpcCloseMemHandle(p), CUDA_ERROR_INVALID_VALUE);
}

static void ipc(void)
{
	size_t sizes[] = { MiB(6), 1000 };
	start();
	for (int i = 0; i < 2; i++) {
		CUdeviceptr pad, p, q;
		CUipcMemHandle h;
		char arg[129];
		unsigned v;
		OK(cuMemAlloc_v2(&pad, 3000));
		OK(cuMemAlloc_v2(&p, sizes[i]));
		OK(cuMemsetD32_v2(p, 0x1111, 200));
		OK(cuCtxSynchronize());
		OK(cuIpcGetMemHandle(&h, p));
		IS(cuIpcOpenMemHandle_v2(&q, h, CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS), CUDA_ERROR_INVALID_CONTEXT);
		for (unsigned k = 0; k < sizeof h; k++)
			snprintf(arg + 2 * k, 3, "%02x", (unsigned char)h.reserved[k]);
		EQ(finish(spawn("-ipc", arg)), 0);
		OK(cuMemcpyDtoH_v2(&v, p + 400, 4));
		EQ(v, 0x2222);
		OK(cuMemFree_v2(p));
	}
	CUipcMemHandle junk = { { 0 } };
	CUdeviceptr q;
	IS(cuIpcOpenMemHandle_v2(&q, junk, CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS), CUDA_ERROR_INVALID_VALUE);
	IS(cuIpcGetMemHandle(&junk, 0x1234), CUDA_ERROR_INVALID_VALUE);
}

/* Descriptors of VMM memory and of pools, inherited by number. */
static void fd_part(void)
{
	int fd, pool_fd;
	unsigned v;
	char hex[129];
	CUmemPoolPtrExportData data;
	CUmemGenericAllocationHandle h;
	CUmemoryPool pool;
	CUdeviceptr p;
	CHECK(sscanf(test_arg, "%d %d %128s", &fd, &pool_fd, hex) == 3);
	for (unsigned i = 0; i < sizeof data; i++)
		CHECK(sscanf(hex + 2 * i, "%2hhx", &data.reserved[i]) == 1);
	start();
	uint64_t used = my_use(0)->used;
	OK(cuMemImportFromShareableHandle(&h, (void *)(intptr_t)fd, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR));
	OK(cuMemAddressReserve(&p, MiB(2), 0, 0, 0));
	OK(cuMemMap(p, MiB(2), 0, h, 0));
	CUmemAccessDesc d = { .location = { CU_MEM_LOCATION_TYPE_DEVICE, 0 }, .flags = CU_MEM_ACCESS_FLAGS_PROT_READ };
	OK(cuMemSetAccess(p, MiB(2), &d, 1));
	OK(cuMemcpyDtoH_v2(&v, p + MiB(1), 4));
	EQ(v, 0x77);
	IS(cuMemsetD32_v2(p, 1, 1), CUDA_ERROR_INVALID_VALUE); /* to be read only */
	OK(cuMemPoolImportFromShareableHandle(&pool, (void *)(intptr_t)pool_fd, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
	OK(cuMemPoolImportPointer(&p, pool, &data));
	OK(cuMemcpyDtoH_v2(&v, p, 4));
	EQ(v, 0x88);
	IS(cuMemAllocFromPoolAsync(&p, 1, pool, NULL), CUDA_ERROR_INVALID_VALUE);
	EQ(my_use(0)->used, used);
}

static void shared_descriptors(void)
{
	CUmemAllocationProp prop = { .type = CU_MEM_ALLOCATION_TYPE_PINNED, .requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
	                             .location = { CU_MEM_LOCATION_TYPE_DEVICE, 0 } };
	CUmemPoolProps props = { .allocType = CU_MEM_ALLOCATION_TYPE_PINNED, .handleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
	                         .location = { CU_MEM_LOCATION_TYPE_DEVICE, 0 } };
	CUmemAccessDesc d = { .location = prop.location, .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE };
	CUmemGenericAllocationHandle h;
	CUmemoryPool pool;
	CUmemPoolPtrExportData data;
	CUdeviceptr p, q;
	int fd, pool_fd;
	char arg[256];
	start();
	OK(cuMemCreate(&h, MiB(2), &prop, 0));
	OK(cuMemAddressReserve(&p, MiB(2), 0, 0, 0));
	OK(cuMemMap(p, MiB(2), 0, h, 0));
	OK(cuMemSetAccess(p, MiB(2), &d, 1));
	OK(cuMemsetD32_v2(p, 0x77, MiB(2) / 4));
	OK(cuMemExportToShareableHandle(&fd, h, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
	OK(cuMemPoolCreate(&pool, &props));
	OK(cuMemAllocFromPoolAsync(&q, 5000, pool, NULL));
	OK(cuMemAllocFromPoolAsync(&q, 5000, pool, NULL));
	OK(cuMemsetD32_v2(q, 0x88, 100));
	OK(cuCtxSynchronize());
	OK(cuMemPoolExportToShareableHandle(&pool_fd, pool, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
	OK(cuMemPoolExportPointer(&data, q));
	fd = dup(fd); /* dup: without close-on-exec */
	pool_fd = dup(pool_fd);
	int n = snprintf(arg, sizeof arg, "%d %d ", fd, pool_fd);
	for (unsigned k = 0; k < sizeof data; k++)
		n += snprintf(arg + n, 3, "%02x", data.reserved[k]);
	EQ(finish(spawn("-fd", arg)), 0);
	IS(cuMemImportFromShareableHandle(&h, (void *)(intptr_t)0, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR), CUDA_ERROR_INVALID_VALUE);
}

/* --- fork and exec ----------------------------------------------------------------------------------- */

static void fork_after_init(void)
{
	CUdeviceptr p;
	unsigned v = 5;
	start();
	OK(cuMemAlloc_v2(&p, MiB(8)));
	OK(cuMemcpyHtoD_v2(p, &v, 4));
	uint64_t used = my_use(0)->used;
	pid_t pid = fork();
	if (pid == 0) {
		CUcontext c;
		size_t n;
		IS(cuInit(0), CUDA_ERROR_NOT_INITIALIZED);
		IS(cuCtxGetCurrent(&c), CUDA_ERROR_NOT_INITIALIZED);
		IS(cuMemGetInfo_v2(&n, &n), CUDA_ERROR_NOT_INITIALIZED);
		IS(cuMemAlloc_v2(&p, 1), CUDA_ERROR_NOT_INITIALIZED);
		_exit(0);
	}
	EQ(finish(pid), 0);
	EQ(my_use(0)->used, used);
	EQ(finish(spawn("devices", "")), 0); /* a child that execs is a new process */
	OK(cuMemcpyDtoH_v2(&v, p, 4));
	EQ(v, 5);
	OK(cuMemFree_v2(p));
}

static void fork_before_init(void)
{
	int n;
	OK(cuDriverGetVersion(&n)); /* opens the node's file, no more */
	pid_t pid = fork();
	if (pid == 0) {
		CUdeviceptr p;
		start();
		OK(cuMemAlloc_v2(&p, MiB(2)));
		_exit(0);
	}
	EQ(finish(pid), 0);
	start(); /* reaps the dead */
	CUdeviceptr p;
	OK(cuMemAlloc_v2(&p, MiB(2)));
	EQ(total_used(), my_use(0)->used); /* the child's is gone */
}

/* --- faults ------------------------------------------------------------------------------------------ */

static void lost(void)
{
	CUcontext c;
	CUdeviceptr p;
	start();
	OK(cuMemAlloc_v2(&p, MiB(2)));
	spin_async(NULL, 30000);
	__atomic_fetch_or(&gpu(0)->health.faults, SIM_FAULT_LOST, __ATOMIC_RELAXED);
	IS(cuCtxSynchronize(), CUDA_ERROR_LAUNCH_FAILED);
	IS(cuMemFree_v2(p), CUDA_ERROR_LAUNCH_FAILED);
	IS(cuCtxCreate_v2(&c, 0, 0), CUDA_ERROR_DEVICE_UNAVAILABLE);
	OK(cuCtxCreate_v2(&c, 0, 1)); /* the others are well */
	OK(cuMemAlloc_v2(&p, MiB(2)));
	__atomic_fetch_and(&gpu(0)->health.faults, ~SIM_FAULT_LOST, __ATOMIC_RELAXED);
}

static void hang_part(void)
{
	start();
	spin_async(NULL, 1000);
	OK(cuCtxSynchronize());
}

static bool hang_part_waits(void)
{
	uint64_t busy[8];
	return owners(busy) == 1;
}

static void hang(void)
{
	start();
	spin_async(NULL, 100);
	OK(cuCtxSynchronize());
	__atomic_fetch_or(&gpu(0)->health.faults, SIM_FAULT_HANG, __ATOMIC_RELAXED);
	CUevent e;
	OK(cuEventCreate(&e, 0));
	spin_async(NULL, 100);
	OK(cuEventRecord(e, NULL));
	pid_t p = spawn("-hang", "");
	until(hang_part_waits, "the start of another tenant");
	poll(NULL, 0, 30);
	IS(cuEventQuery(e), CUDA_ERROR_NOT_READY);
	CHECK(kill(p, SIGKILL) == 0); /* what hangs can be killed */
	EQ(finish(p), 128 + SIGKILL);
	__atomic_fetch_and(&gpu(0)->health.faults, ~SIM_FAULT_HANG, __ATOMIC_RELAXED);
	OK(cuEventSynchronize(e));
}

/* --- the null driver --------------------------------------------------------------------------------- */

static void zero_cost(void)
{
	CUdeviceptr p;
	CUstream s;
	CUgraph g;
	CUgraphExec e;
	ctl->flags |= SIM_ZERO_COST;
	start();
	uint64_t used = my_use(0)->used;
	double t0 = now_ms();
	spin_async(NULL, 100000000);
	OK(cuCtxSynchronize());
	OK(cuStreamCreate(&s, 0));
	OK(cuMemAlloc_v2(&p, MiB(64)));
	EQ(my_use(0)->used, used + MiB(64));
	OK(cuMemsetD8_v2(p, 1, MiB(64)));
	OK(cuMemFree_v2(p));
	OK(cuMemAllocAsync(&p, MiB(64), s));
	OK(cuMemFreeAsync(p, s));
	OK(cuStreamBeginCapture_v2(s, CU_STREAM_CAPTURE_MODE_GLOBAL));
	spin_async(s, 100000000);
	OK(cuStreamEndCapture(s, &g));
	OK(cuGraphInstantiateWithFlags(&e, g, 0));
	OK(cuGraphLaunch(e, s));
	OK(cuStreamSynchronize(s));
	EQ(my_use(0)->used, used);
	CHECK(now_ms() - t0 < 10000);
	ctl->flags &= ~SIM_ZERO_COST;
}

const struct test process_tests[] = {
	{ "accounts_end_at_zero", accounts_end_at_zero }, { "-storm", storm_part }, { "shares_are_even", shares_are_even }, { "-contend", contend_part },
	{ "dead_owner", dead_owner }, { "-hold", hold_part }, { "ipc", ipc }, { "-ipc", ipc_part }, { "shared_descriptors", shared_descriptors },
	{ "-fd", fd_part }, { "fork_after_init", fork_after_init }, { "fork_before_init", fork_before_init }, { "lost", lost }, { "hang", hang },
	{ "-hang", hang_part }, { "zero_cost", zero_cost }, { 0 },
};
