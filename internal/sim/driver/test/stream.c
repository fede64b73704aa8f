/* stream.c: streams, events, callbacks, time. */
#include "test.h"

#include <pthread.h>

static void asynchronous(void)
{
	CUstream s;
	CUevent a, b;
	float ms;
	start();
	OK(cuStreamCreate(&s, CU_STREAM_NON_BLOCKING));
	OK(cuEventCreate(&a, 0));
	OK(cuEventCreate(&b, 0));
	kernel("kerf_spin");
	double t0 = now_ms();
	OK(cuEventRecord(a, s));
	spin_async(s, 50000);
	OK(cuEventRecord(b, s));
	CHECK(now_ms() - t0 < 45); /* the launch did not wait */
	IS(cuStreamQuery(s), CUDA_ERROR_NOT_READY);
	IS(cuEventQuery(b), CUDA_ERROR_NOT_READY);
	IS(cuEventElapsedTime(&ms, a, b), CUDA_ERROR_NOT_READY);
	OK(cuEventSynchronize(b));
	CHECK(now_ms() - t0 >= 50);
	OK(cuStreamQuery(s));
	OK(cuEventElapsedTime(&ms, a, b));
	CHECK(ms >= 50 && ms < 60); /* engine time, not this thread's */
	OK(cuStreamDestroy_v2(s));
	IS(cuStreamDestroy_v2(s), CUDA_ERROR_INVALID_HANDLE);
	OK(cuEventDestroy_v2(a));
	IS(cuEventDestroy_v2(a), CUDA_ERROR_INVALID_HANDLE);
	OK(cuEventDestroy_v2(b));
	IS(cuStreamCreate(&s, 99), CUDA_ERROR_INVALID_VALUE);
	IS(cuStreamCreate(NULL, 0), CUDA_ERROR_INVALID_VALUE);
}

/* Copies overlap compute; two kernels do not overlap each other. */
static void overlap(void)
{
	CUstream s, t;
	CUdeviceptr p;
	void *h;
	size_t n = MiB(64);
	start();
	OK(cuStreamCreate(&s, CU_STREAM_NON_BLOCKING));
	OK(cuStreamCreate(&t, CU_STREAM_NON_BLOCKING));
	OK(cuMemAlloc_v2(&p, n));
	OK(cuMemHostAlloc(&h, n, 0));
	CUevent e[4];
	float kernel_ms, copy_ms, both;
	for (int i = 0; i < 4; i++)
		OK(cuEventCreate(&e[i], 0));
	OK(cuEventRecord(e[0], s));
	spin_async(s, 30000);
	OK(cuEventRecord(e[1], s));
	OK(cuEventRecord(e[2], t));
	OK(cuMemcpyHtoDAsync_v2(p, h, n, t));
	OK(cuEventRecord(e[3], t));
	OK(cuCtxSynchronize());
	OK(cuEventElapsedTime(&kernel_ms, e[0], e[1]));
	OK(cuEventElapsedTime(&copy_ms, e[2], e[3]));
	OK(cuEventElapsedTime(&both, e[0], e[3]));
	CHECK(kernel_ms >= 30 && kernel_ms < 35);
	CHECK(copy_ms >= 1.2 && copy_ms < 10); /* 64 MiB at 55 GB/s */
	CHECK(both < kernel_ms);
	EQ(my_use(0)->busy_h2d_ns / 1000, n * 1000000 / gpu(0)->facts.bw_h2d);
	spin_async(s, 20000);
	spin_async(t, 20000);
	OK(cuEventRecord(e[1], s));
	OK(cuEventRecord(e[3], t));
	OK(cuCtxSynchronize());
	OK(cuEventElapsedTime(&both, e[1], e[3]));
	CHECK(both >= 20 || both <= -20);
}

static void wait_event(void)
{
	CUstream s, t;
	CUevent e;
	CUdeviceptr p;
	unsigned v = 0;
	start();
	OK(cuStreamCreate(&s, CU_STREAM_NON_BLOCKING));
	OK(cuStreamCreate(&t, CU_STREAM_NON_BLOCKING));
	OK(cuEventCreate(&e, CU_EVENT_DISABLE_TIMING));
	OK(cuMemAlloc_v2(&p, 4));
	OK(cuStreamWaitEvent(t, e, 0)); /* never recorded: nothing to wait for */
	OK(cuStreamSynchronize(t));
	OK(cuMemsetD32_v2(p, 1, 1));
	OK(cuCtxSynchronize());
	spin_async(s, 20000);
	OK(cuMemsetD32Async(p, 2, 1, s));
	OK(cuEventRecord(e, s));
	OK(cuStreamWaitEvent(t, e, 0));
	OK(cuEventRecord(e, s)); /* the wait keeps what it was told */
	OK(cuEventDestroy_v2(e));
	OK(cuMemcpyDtoHAsync_v2(&v, p, 4, t));
	OK(cuStreamSynchronize(t));
	EQ(v, 2);
}

/* The NULL stream waits for blocking streams and they for it; not so the non-blocking. */
static void legacy(void)
{
	CUstream block, free_;
	CUdeviceptr p;
	unsigned v = 0;
	start();
	OK(cuStreamCreate(&block, CU_STREAM_DEFAULT));
	OK(cuStreamCreate(&free_, CU_STREAM_NON_BLOCKING));
	OK(cuMemAlloc_v2(&p, 4));
	spin_async(block, 20000);
	OK(cuMemsetD32Async(p, 7, 1, block));
	OK(cuMemcpyDtoH_v2(&v, p, 4));
	EQ(v, 7);
	spin_async(NULL, 20000);
	OK(cuMemsetD32Async(p, 8, 1, NULL));
	OK(cuMemcpyDtoHAsync_v2(&v, p, 4, block));
	OK(cuStreamSynchronize(block));
	EQ(v, 8);
	spin_async(free_, 30000);
	OK(cuMemcpyDtoH_v2(&v, p, 4));
	EQ(v, 8);
	OK(cuStreamSynchronize(CU_STREAM_LEGACY));
	OK(cuStreamSynchronize_ptsz(NULL));
	OK(cuStreamSynchronize(CU_STREAM_PER_THREAD));
	unsigned long long a, b;
	OK(cuStreamGetId_ptsz(NULL, &a));
	OK(cuStreamGetId(CU_STREAM_PER_THREAD, &b));
	EQ(a, b);
	OK(cuStreamGetId(NULL, &b));
	CHECK(a != b);
	OK(cuCtxSynchronize());
}

static int called[3];
static void host_fn(void *arg) { called[*(int *)arg] = 1; }
static void callback(CUstream s, CUresult r, void *arg) { CHECK(s != NULL && r == CUDA_SUCCESS); called[*(int *)arg] = 1; }

static void callbacks(void)
{
	CUstream s;
	int zero = 0, one = 1;
	start();
	OK(cuStreamCreate(&s, CU_STREAM_NON_BLOCKING));
	spin_async(s, 10000);
	OK(cuLaunchHostFunc(s, host_fn, &zero));
	OK(cuStreamAddCallback(s, callback, &one, 0));
	CHECK(!called[0]);
	OK(cuStreamSynchronize(s));
	CHECK(called[0] && called[1]);
	IS(cuLaunchHostFunc(s, NULL, NULL), CUDA_ERROR_INVALID_VALUE);
}

static void values(void)
{
	CUstream s;
	CUdeviceptr p;
	void *h;
	start();
	OK(cuStreamCreate(&s, CU_STREAM_NON_BLOCKING));
	OK(cuMemAlloc_v2(&p, 16));
	OK(cuMemsetD8_v2(p, 0, 16));
	OK(cuCtxSynchronize());
	OK(cuMemHostAlloc(&h, 64, 0));
	memset(h, 0, 64);
	OK(cuStreamWaitValue32_v2(s, (CUdeviceptr)h, 5, CU_STREAM_WAIT_VALUE_GEQ));
	OK(cuStreamWriteValue64_v2(s, p, 0x123456789abcull, 0));
	IS(cuStreamQuery(s), CUDA_ERROR_NOT_READY);
	__atomic_store_n((uint32_t *)h, 6, __ATOMIC_RELEASE);
	OK(cuStreamSynchronize(s));
	uint64_t v;
	OK(cuMemcpyDtoH_v2(&v, p, 8));
	EQ(v, 0x123456789abcull);
	IS(cuStreamWaitValue32_v2(s, 0, 1, 0), CUDA_ERROR_INVALID_VALUE);
}

static void *default_stream_of_thread(void *arg)
{
	unsigned long long *id = arg;
	OK(cuCtxSetCurrent((CUcontext)(uintptr_t)*id));
	OK(cuStreamGetId_ptsz(NULL, id));
	return NULL;
}

static void per_thread(void)
{
	pthread_t t;
	CUcontext c = start();
	unsigned long long other = (uintptr_t)c, mine;
	CHECK(pthread_create(&t, NULL, default_stream_of_thread, &other) == 0);
	pthread_join(t, NULL);
	OK(cuStreamGetId_ptsz(NULL, &mine));
	CHECK(mine != other);
}

static void many(void)
{
	enum { N = 40 };
	CUstream s[N];
	CUdeviceptr p;
	unsigned v[N];
	start();
	OK(cuMemAlloc_v2(&p, N * 4));
	for (int i = 0; i < N; i++)
		OK(cuStreamCreateWithPriority(&s[i], i & 1, -(i % 6)));
	for (int round = 0; round < 20; round++)
		for (int i = 0; i < N; i++)
			OK(cuMemsetD32Async(p + 4 * (unsigned)i, (unsigned)(round * N + i), 1, s[i]));
	OK(cuCtxSynchronize());
	OK(cuMemcpyDtoH_v2(v, p, sizeof v));
	for (int i = 0; i < N; i++)
		EQ(v[i], 19 * N + i);
	for (int i = 0; i < N; i++) {
		spin_async(s[i], 100);
		OK(cuStreamDestroy_v2(s[i])); /* its work still ends */
	}
	OK(cuCtxSynchronize());
}

const struct test stream_tests[] = {
	{ "asynchronous", asynchronous }, { "overlap", overlap }, { "wait_event", wait_event }, { "legacy", legacy }, { "callbacks", callbacks },
	{ "values", values }, { "per_thread", per_thread }, { "many", many }, { 0 },
};
