/* kernels.c: the kernels that the simulator knows, by name. internal/cuda/kernels.ptx has the same in PTX.
 *
 *   kerf_spin(u64 us)                        holds the compute engine for us microseconds
 *   kerf_fill(u32 *dst, u64 n, u32 value)    dst[i] = value
 *   kerf_copy(u32 *dst, const u32 *src, u64 n)
 *   kerf_checksum(u64 *out, const u32 *src, u64 n)   *out += the sum of src[i]: zero *out first
 *   kerf_saxpy(float *y, const float *x, u64 n, float a)   y[i] = a·x[i] + y[i]
 *
 * All but spin stride over the whole grid, so any launch shape does all n elements.
 */
#include "sim.h"

#include <string.h>

static uint64_t u64_of(void *p) { uint64_t v; memcpy(&v, p, sizeof v); return v; }
static uint32_t u32_of(void *p) { uint32_t v; memcpy(&v, p, sizeof v); return v; }
static float float_of(void *p) { float v; memcpy(&v, p, sizeof v); return v; }

/* Memory that a kernel touches and may not: the context breaks, as on a GPU. */
static void *touch(const struct simdev *d, uint64_t p, uint64_t bytes, bool write)
{
	pthread_mutex_lock(&g.lock);
	bool ok = addr_accessible(d, p, bytes, write);
	pthread_mutex_unlock(&g.lock);
	return ok && addr_backed(p, bytes) ? addr_bytes(p) : NULL;
}

static uint64_t stream_time(const struct simdev *d, uint64_t bytes)
{
	uint64_t rate = d->gpu->facts.bw_d2d;
	return rate ? (uint64_t)((double)bytes * 1e9 / (double)rate) : 0;
}

static uint64_t spin_cost(const struct simdev *d, void *const *a) { (void)d; return u64_of(a[0]) * 1000; }
static CUresult spin(const struct simdev *d, void *const *a) { (void)d; (void)a; return CUDA_SUCCESS; }

static uint64_t fill_cost(const struct simdev *d, void *const *a) { return stream_time(d, 4 * u64_of(a[1])); }
static CUresult fill(const struct simdev *d, void *const *a)
{
	uint64_t n = u64_of(a[1]);
	uint32_t value = u32_of(a[2]), *dst = touch(d, u64_of(a[0]), 4 * n, true);
	REQUIRE(dst, CUDA_ERROR_ILLEGAL_ADDRESS);
	for (uint64_t i = 0; i < n; i++)
		dst[i] = value;
	return CUDA_SUCCESS;
}

static uint64_t copy_cost(const struct simdev *d, void *const *a) { return stream_time(d, 8 * u64_of(a[2])); }
static CUresult copy(const struct simdev *d, void *const *a)
{
	uint64_t n = u64_of(a[2]);
	void *dst = touch(d, u64_of(a[0]), 4 * n, true), *src = touch(d, u64_of(a[1]), 4 * n, false);
	REQUIRE(dst && src, CUDA_ERROR_ILLEGAL_ADDRESS);
	memmove(dst, src, 4 * n);
	return CUDA_SUCCESS;
}

static uint64_t checksum_cost(const struct simdev *d, void *const *a) { return stream_time(d, 4 * u64_of(a[2])); }
static CUresult checksum(const struct simdev *d, void *const *a)
{
	uint64_t n = u64_of(a[2]), sum = 0, *out = touch(d, u64_of(a[0]), 8, true);
	const uint32_t *src = touch(d, u64_of(a[1]), 4 * n, false);
	REQUIRE(out && src, CUDA_ERROR_ILLEGAL_ADDRESS);
	for (uint64_t i = 0; i < n; i++)
		sum += src[i];
	__atomic_fetch_add(out, sum, __ATOMIC_RELAXED);
	return CUDA_SUCCESS;
}

static uint64_t saxpy_cost(const struct simdev *d, void *const *a) { return stream_time(d, 12 * u64_of(a[2])); }
static CUresult saxpy(const struct simdev *d, void *const *a)
{
	uint64_t n = u64_of(a[2]);
	float k = float_of(a[3]), *y = touch(d, u64_of(a[0]), 4 * n, true);
	const float *x = touch(d, u64_of(a[1]), 4 * n, false);
	REQUIRE(y && x, CUDA_ERROR_ILLEGAL_ADDRESS);
	for (uint64_t i = 0; i < n; i++)
		y[i] = (float)((double)k * (double)x[i] + (double)y[i]); /* as one rounding, nearly: no libm for an fma */
	return CUDA_SUCCESS;
}

static const struct kernel kernels[] = {
	{ "kerf_spin", 1, { 8 }, spin_cost, spin },
	{ "kerf_fill", 3, { 8, 8, 4 }, fill_cost, fill },
	{ "kerf_copy", 3, { 8, 8, 8 }, copy_cost, copy },
	{ "kerf_checksum", 3, { 8, 8, 8 }, checksum_cost, checksum },
	{ "kerf_saxpy", 4, { 8, 8, 8, 4 }, saxpy_cost, saxpy },
};

const struct kernel *kernel_find(const char *name)
{
	for (size_t i = 0; i < sizeof kernels / sizeof kernels[0]; i++)
		if (strcmp(kernels[i].name, name) == 0)
			return &kernels[i];
	return NULL;
}
