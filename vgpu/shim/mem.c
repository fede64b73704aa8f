/* mem.c: linear, pitched and managed memory, and page-locked host memory.
 *
 * Linear memory of over-committed shares is swap.h's. Their managed memory stays the driver's, which moves it by itself when
 * the card is full: it is charged in full, and never swapped by us.
 */
#include "swap.h"

/* Books an allocation that the driver made and the device is charged for. Without memory for the entry the
 * allocation could never be discharged, so it is refused instead. */
static CUresult record(struct device *d, CUdeviceptr p, uint64_t bytes)
{
	struct book b = { .key = p, .kind = BOOK_LINEAR, .ordinal = d->ordinal, .bytes = bytes, .context = kerf_current_context() };

	if (book_put(&b))
		return CUDA_SUCCESS;
	REAL(cuMemFree_v2)(p);
	kerf_discharge(d, bytes);
	return CUDA_ERROR_OUT_OF_MEMORY;
}

static CUresult begin(struct device **d, uint64_t bytes)
{
	CUresult r;

	*d = kerf_current_device(&r);
	return *d ? kerf_charge(*d, bytes) : r;
}

/* What every allocating call does; they differ in their types. Arguments that are not `valid` are the driver's to
 * refuse. Charges `bound`, calls, and on success does `settle`, which enters it in the books. */
#define ALLOCATE(valid, bound, call, settle) \
	struct device *d; \
	uint64_t bytes; \
	CUresult r; \
	if (!(valid)) \
		return call; \
	bytes = bound; \
	r = begin(&d, bytes); \
	if (r) \
		return r; \
	r = call; \
	if (r == CUDA_SUCCESS) \
		return settle; \
	kerf_discharge(d, bytes); \
	return r

/* The device that serves it from memory that can be swapped; NULL: the driver serves it, or says what is wrong. */
static struct device *swapping(bool valid)
{
	CUresult why;
	struct device *d = valid ? kerf_current_device(&why) : NULL;

	return d && unlikely(kerf_swappable(d)) ? d : NULL;
}

CUresult on_alloc(real_on_alloc real, CUdeviceptr *p, size_t n)
{
	struct device *by = swapping(p && n);

	if (by)
		return kerf_swap_alloc(by, p, n);
	ALLOCATE(p && n, kerf_physical(n), real(p, n), record(d, *p, bytes));
}

CUresult on_alloc_v1(real_on_alloc_v1 real, CUdeviceptr_v1 *p, unsigned int n)
{
	ALLOCATE(p && n, kerf_physical(n), real(p, n), record(d, *p, bytes));
}

CUresult on_alloc_managed(real_on_alloc_managed real, CUdeviceptr *p, size_t n, unsigned int flags)
{
	ALLOCATE(p && n, kerf_physical(n), real(p, n, flags), record(d, *p, bytes));
}

/* The driver chooses the pitch: charge for the widest one in use (512 bytes' alignment), then correct. */
static uint64_t pitched_bound(uint64_t width, uint64_t height)
{
	uint64_t pitch = (width + 511) & ~511ull;

	if (width > UINT64_MAX / 2 || (height && pitch > UINT64_MAX / 4 / height))
		return UINT64_MAX / 2;
	return kerf_physical(pitch * height);
}

static CUresult settle_pitched(struct device *d, CUdeviceptr p, uint64_t charged, uint64_t pitch, uint64_t height)
{
	uint64_t bytes = kerf_physical(pitch * height);

	if (kerf_recharge(d, charged, bytes)) {
		REAL(cuMemFree_v2)(p);
		kerf_discharge(d, charged);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	return record(d, p, bytes);
}

/* Rows of 512 bytes' alignment, as drivers make them. */
static CUresult swapping_pitched(struct device *d, CUdeviceptr *p, size_t *pitch, size_t width, size_t height)
{
	size_t row = (width + 511) & ~(size_t)511;
	CUresult r;

	if (pitched_bound(width, height) >= UINT64_MAX / 2)
		return CUDA_ERROR_OUT_OF_MEMORY;
	r = kerf_swap_alloc(d, p, row * height);
	if (r == CUDA_SUCCESS)
		*pitch = row;
	return r;
}

CUresult on_alloc_pitch(real_on_alloc_pitch real, CUdeviceptr *p, size_t *pitch, size_t width, size_t height, unsigned int element)
{
	struct device *by = swapping(p && pitch && width && height && (element == 4 || element == 8 || element == 16));

	if (by)
		return swapping_pitched(by, p, pitch, width, height);
	ALLOCATE(p && pitch && width && height, pitched_bound(width, height), real(p, pitch, width, height, element),
		 settle_pitched(d, *p, bytes, *pitch, height));
}

CUresult on_alloc_pitch_v1(real_on_alloc_pitch_v1 real, CUdeviceptr_v1 *p, unsigned int *pitch, unsigned int width, unsigned int height, unsigned int element)
{
	ALLOCATE(p && pitch && width && height, pitched_bound(width, height), real(p, pitch, width, height, element),
		 settle_pitched(d, *p, bytes, *pitch, height));
}

/* The entry leaves the books before the driver frees: the address may be another thread's the moment it is free. */
static void settle_free(struct book *b, CUresult r)
{
	if (r)
		book_put(b);
	else
		kerf_discharge(kerf_device(b->ordinal), b->bytes);
}

CUresult on_free(real_on_free real, CUdeviceptr p)
{
	struct book b;
	CUresult r;

	if (book_take(BOOK_LINEAR, p, &b)) {
		r = real(p);
		settle_free(&b, r);
		return r;
	}
	if (book_take(BOOK_ASYNC, p, &b))
		return kerf_async_freed(&b, real(p));
	if (kerf_swap_free(p, &r))
		return r;
	return real(p);
}

CUresult on_free_v1(real_on_free_v1 real, CUdeviceptr_v1 p)
{
	struct book b;
	CUresult r;

	if (!book_take(BOOK_LINEAR, p, &b))
		return real(p);
	r = real(p);
	settle_free(&b, r);
	return r;
}

/* --- host memory ------------------------------------------------------------------------------------------ */

/* Fails open: it is counted, not limited, so an entry that cannot be written costs a count and nothing else. */
static CUresult host_taken(CUresult r, const void *p, size_t n)
{
	struct book b = { .key = (uintptr_t)p, .kind = BOOK_HOST, .bytes = n };

	if (r == CUDA_SUCCESS && book_put(&b))
		kerf_add_host_pinned((int64_t)n);
	return r;
}

CUresult on_alloc_host(real_on_alloc_host real, void **p, size_t n)
{
	CUresult r = real(p, n);

	return host_taken(r, r ? NULL : *p, n);
}

CUresult on_alloc_host_v1(real_on_alloc_host_v1 real, void **p, unsigned int n)
{
	CUresult r = real(p, n);

	return host_taken(r, r ? NULL : *p, n);
}

CUresult on_host_alloc(real_on_host_alloc real, void **p, size_t n, unsigned int flags)
{
	CUresult r = real(p, n, flags);

	return host_taken(r, r ? NULL : *p, n);
}

CUresult on_host_register(real_on_host_register real, void *p, size_t n, unsigned int flags)
{
	return host_taken(real(p, n, flags), p, n);
}

CUresult on_free_host(real_on_free_host real, void *p)
{
	struct book b;
	bool booked = book_take(BOOK_HOST, (uintptr_t)p, &b);
	CUresult r = real(p);

	if (booked && r)
		book_put(&b);
	else if (booked)
		kerf_add_host_pinned(-(int64_t)b.bytes);
	return r;
}
