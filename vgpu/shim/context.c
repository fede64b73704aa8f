/* context.c: what a context takes of a device, and what goes when it goes.
 *
 * policy.context_bytes is charged when a context is made. While it is 0 (kerfd has not learned it yet) kerfd is asked
 * to measure, so that the context counts in `implicit` before anything else is allocated. A context takes its linear
 * memory, arrays and imports with it when it is destroyed; memory of pools and cuMemCreate belongs to the device and
 * stays.
 */
#include "lease.h"
#include "swap.h"

#define MAX_PRIMARY 64

/* The driver counts who retained a primary context; we ask it whether one is active rather than count again. */
static struct { CUcontext ctx; uint64_t charged; } primary[MAX_PRIMARY];
static struct lock primary_lock;

static uint64_t context_bytes(const struct device *d)
{
	return load_relaxed(&d->share->policy->device[d->index].context_bytes);
}

static bool active(CUdevice dev)
{
	unsigned int flags;
	int is = 0;

	return !REAL(cuDevicePrimaryCtxGetState)(dev, &flags, &is) && is;
}

static void lost(const struct book *b)
{
	struct device *d = kerf_device(b->ordinal);

	if (b->kind == BOOK_IPC)
		kerf_add_imported(d, -(int64_t)b->bytes);
	else
		kerf_discharge(d, b->bytes);
	if (b->kind == BOOK_ARRAY || b->kind == BOOK_MIPMAP)
		kerf_holder_gone(b->key);
}

/* Before the driver ends a context: its address may be another thread's new context the moment after, and what that
 * one takes must not go with the old. No address has such a name, and no two contexts the same. No lock instead:
 * the driver waits for the context's work, which may wait for a thread that makes a context. */
static uint64_t set_aside(CUcontext ctx)
{
	static uint64_t names;
	uint64_t name = ~fetch_add(&names, 1);

	kerf_lane_context_gone(ctx);
	if (ctx)
		book_rename((uintptr_t)ctx, name);
	return name;
}

CUresult on_primary_retain(real_on_primary_retain real, CUcontext *ctx, CUdevice dev)
{
	struct device *d = kerf_device(dev);
	uint64_t bytes;
	bool fresh;
	CUresult r;

	if (!d || !ctx)
		return real(ctx, dev);
	lock(&primary_lock);
	fresh = !active(dev);
	bytes = fresh ? context_bytes(d) : 0;
	r = fresh ? kerf_keeper_first(d) : CUDA_SUCCESS;
	if (r == CUDA_SUCCESS && fresh)
		r = kerf_charge_apart(d, bytes);
	if (r == CUDA_SUCCESS) {
		r = real(ctx, dev);
		if (r) {
			kerf_discharge_apart(d, bytes);
		} else if (fresh && bytes == 0 && !kerf_measure(d)) {
			REAL(cuDevicePrimaryCtxRelease_v2)(dev);
			r = CUDA_ERROR_OUT_OF_MEMORY;
		} else {
			primary[dev].ctx = *ctx;
			primary[dev].charged += bytes;
			kerf_lane_context(*ctx, d);
		}
	}
	unlock(&primary_lock);
	return r;
}

static CUresult primary_ends(CUresult (*real)(CUdevice), CUdevice dev)
{
	struct device *d = kerf_device(dev);
	uint64_t name;
	CUresult r;

	if (!d)
		return real(dev);
	lock(&primary_lock);
	name = set_aside(primary[dev].ctx);
	kerf_swap_context_ends(primary[dev].ctx, name);
	r = real(dev);
	kerf_swap_context_ended(name, r == CUDA_SUCCESS && !active(dev));
	if (r == CUDA_SUCCESS && !active(dev)) {
		book_sweep(name, lost);
		kerf_discharge_apart(d, primary[dev].charged);
		primary[dev].charged = 0;
		primary[dev].ctx = NULL;
	} else {
		book_rename(name, (uintptr_t)primary[dev].ctx);
		if (primary[dev].ctx)
			kerf_lane_context(primary[dev].ctx, d);
	}
	unlock(&primary_lock);
	kerf_pools_refresh();
	return r;
}

CUresult on_primary_release(real_on_primary_release real, CUdevice dev)
{
	return primary_ends(real, dev);
}

CUresult on_primary_reset(real_on_primary_reset real, CUdevice dev)
{
	return primary_ends(real, dev);
}

/* --- contexts of the program's own ------------------------------------------------------------------------ */

/* A context that is being made, and what it is charged for. */
struct making { struct device *d; uint64_t bytes; };

/* Without a device or a place for the answer nothing is charged: the driver says what is wrong. */
static CUresult begin(struct making *m, const CUcontext *ctx, CUdevice dev)
{
	CUresult r;

	m->d = ctx ? kerf_device(dev) : NULL;
	m->bytes = m->d ? context_bytes(m->d) : 0;
	r = m->d ? kerf_keeper_first(m->d) : CUDA_SUCCESS;
	return m->d && !r ? kerf_charge_apart(m->d, m->bytes) : r;
}

/* book.extra counts attachments (cuCtxAttach, gone since CUDA 11 but still exported). */
static CUresult finish(const struct making *m, const CUcontext *ctx, CUresult r)
{
	struct book b = { .kind = BOOK_CONTEXT, .bytes = m->bytes, .extra = 1 };

	if (!m->d)
		return r;
	if (r == CUDA_SUCCESS) {
		b.key = (uintptr_t)*ctx;
		b.ordinal = m->d->ordinal;
		if ((m->bytes || kerf_measure(m->d)) && book_put(&b)) {
			kerf_lane_context(*ctx, m->d);
			return r;
		}
		REAL(cuCtxDestroy_v2)(*ctx);
		r = CUDA_ERROR_OUT_OF_MEMORY;
	}
	kerf_discharge_apart(m->d, m->bytes);
	return r;
}

CUresult on_ctx_create(real_on_ctx_create real, CUcontext *ctx, unsigned int flags, CUdevice dev)
{
	struct making m;
	CUresult r = begin(&m, ctx, dev);

	return r ? r : finish(&m, ctx, real(ctx, flags, dev));
}

CUresult on_ctx_create_v3(real_on_ctx_create_v3 real, CUcontext *ctx, CUexecAffinityParam *affinity, int n, unsigned int flags, CUdevice dev)
{
	struct making m;
	CUresult r = begin(&m, ctx, dev);

	return r ? r : finish(&m, ctx, real(ctx, affinity, n, flags, dev));
}

CUresult on_ctx_create_v4(real_on_ctx_create_v4 real, CUcontext *ctx, CUctxCreateParams *params, unsigned int flags, CUdevice dev)
{
	struct making m;
	CUresult r = begin(&m, ctx, dev);

	return r ? r : finish(&m, ctx, real(ctx, params, flags, dev));
}

static CUresult context_ends(CUresult (*real)(CUcontext), CUcontext ctx, bool detach)
{
	uint64_t name;
	struct book b;
	CUresult r;

	if (!book_take(BOOK_CONTEXT, (uintptr_t)ctx, &b))
		return real(ctx);
	if (detach && b.extra > 1) {
		r = real(ctx);
		b.extra -= r == CUDA_SUCCESS;
		book_put(&b);
		return r;
	}
	name = set_aside(ctx);
	kerf_swap_context_ends(ctx, name);
	r = real(ctx);
	kerf_swap_context_ended(name, r == CUDA_SUCCESS);
	if (r) {
		book_rename(name, (uintptr_t)ctx);
		book_put(&b);
		return r;
	}
	book_sweep(name, lost);
	kerf_discharge_apart(kerf_device(b.ordinal), b.bytes);
	return r;
}

CUresult on_ctx_destroy(real_on_ctx_destroy real, CUcontext ctx)
{
	return context_ends(real, ctx, false);
}

CUresult on_ctx_detach(real_on_ctx_detach real, CUcontext ctx)
{
	return context_ends(real, ctx, true);
}

CUresult on_ctx_attach(real_on_ctx_attach real, CUcontext *ctx, unsigned int flags)
{
	CUresult r = real(ctx, flags);
	struct book b;

	if (r == CUDA_SUCCESS && book_take(BOOK_CONTEXT, (uintptr_t)*ctx, &b)) {
		b.extra++;
		book_put(&b);
	}
	return r;
}
