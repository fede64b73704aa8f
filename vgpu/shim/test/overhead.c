/* overhead.c: nanoseconds a call, the median of rounds. One line: init launch alloc+free info. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "cuabi.h"

#define ROUNDS 200
#define CALLS  1000

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

#define MEDIAN(call) __extension__({ \
	static double t_[ROUNDS]; \
	for (int r_ = 0; r_ < ROUNDS; r_++) { \
		double start_ = now(); \
		for (int i_ = 0; i_ < CALLS; i_++) { call; } \
		t_[r_] = (now() - start_) / CALLS; \
	} \
	qsort(t_, ROUNDS, sizeof t_[0], compare); \
	t_[ROUNDS / 2]; })

int main(void)
{
	void *lib = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
	__typeof__(&cuInit) init = (__typeof__(&cuInit))dlsym(lib, "cuInit");
	__typeof__(&cuLaunchKernel) launch = (__typeof__(&cuLaunchKernel))dlsym(lib, "cuLaunchKernel");
	__typeof__(&cuMemAlloc_v2) alloc = (__typeof__(&cuMemAlloc_v2))dlsym(lib, "cuMemAlloc_v2");
	__typeof__(&cuMemFree_v2) release = (__typeof__(&cuMemFree_v2))dlsym(lib, "cuMemFree_v2");
	__typeof__(&cuMemGetInfo_v2) info = (__typeof__(&cuMemGetInfo_v2))dlsym(lib, "cuMemGetInfo_v2");
	double start = now(), started;
	CUdeviceptr p;
	size_t f, t;

	if (init(0))
		return 1;
	started = now() - start;
	printf("%.0f ", started);
	printf("%.1f ", MEDIAN(launch(NULL, 1, 1, 1, 1, 1, 1, 0, NULL, NULL, NULL)));
	printf("%.1f ", MEDIAN(if (alloc(&p, 4096) || release(p)) return 1));
	printf("%.1f\n", MEDIAN(info(&f, &t)));
	return 0;
}
