/* context.c: primary and explicit contexts, and the stack of them that each thread has. */
#define _GNU_SOURCE
#include "sim.h"

#include <stdlib.h>
#include <string.h>

#define STACK_DEPTH 64

/* Two words of TLS only: the library is dlopen'ed, and static TLS is scarce there. */
__thread CUcontext tls_current __attribute__((tls_model("initial-exec")));
__thread bool tls_per_thread __attribute__((tls_model("initial-exec")));
static __thread struct stack { CUcontext below[STACK_DEPTH]; unsigned depth; } *tls_stack;
static pthread_key_t stack_key;
static pthread_once_t stack_once = PTHREAD_ONCE_INIT;

static void make_key(void) { pthread_key_create(&stack_key, free); }

static struct stack *stack(void)
{
	if (!tls_stack) {
		pthread_once(&stack_once, make_key);
		tls_stack = calloc(1, sizeof *tls_stack);
		pthread_setspecific(stack_key, tls_stack);
	}
	return tls_stack;
}

CUresult usable(CUcontext c)
{
	REQUIRE(c, CUDA_ERROR_INVALID_CONTEXT);
	REQUIRE(!c->dead, CUDA_ERROR_CONTEXT_IS_DESTROYED);
	if (unlikely(faults(c->dev) & SIM_FAULT_LOST) && c->sticky == CUDA_SUCCESS)
		c->sticky = CUDA_ERROR_LAUNCH_FAILED;
	if (unlikely(mps_lost(c->dev)) && c->sticky == CUDA_SUCCESS)
		c->sticky = CUDA_ERROR_MPS_RPC_FAILURE;
	return c->sticky;
}

CUresult current(CUcontext *out)
{
	TRY(ready());
	*out = tls_current;
	return usable(tls_current);
}

static bool is_context(CUcontext c) { return is_kind(c, K_CONTEXT); }

/* --- making and ending them -------------------------------------------------------------------------- */

static CUstream legacy_stream(CUcontext c)
{
	CUstream s = object_new(K_STREAM, sizeof *s);
	if (s) {
		s->ctx = c;
		s->legacy = true;
		s->id = 1;
	}
	return s;
}

/* Under g.lock. */
static CUresult create(struct simdev *d, unsigned flags, unsigned version, CUcontext *out)
{
	REQUIRE(!(faults(d) & SIM_FAULT_LOST), CUDA_ERROR_DEVICE_UNAVAILABLE);
	CUcontext c = object_new(K_CONTEXT, sizeof *c);
	REQUIRE(c, CUDA_ERROR_OUT_OF_MEMORY);
	CUresult r = charge(d, CHARGE_CONTEXT, d->gpu->facts.context_bytes);
	if (r == CUDA_SUCCESS && !(c->legacy = legacy_stream(c))) {
		discharge(d, CHARGE_CONTEXT, d->gpu->facts.context_bytes);
		r = CUDA_ERROR_OUT_OF_MEMORY;
	}
	if (r != CUDA_SUCCESS) {
		object_free(c);
		return r;
	}
	c->dev = d;
	c->charged = d->gpu->facts.context_bytes;
	c->flags = flags;
	c->version = version;
	c->id = ++g.next_id;
	c->limit[CU_LIMIT_STACK_SIZE] = 1024;
	c->limit[CU_LIMIT_PRINTF_FIFO_SIZE] = MIB(1);
	c->limit[CU_LIMIT_MALLOC_HEAP_SIZE] = MIB(8);
	c->limit[CU_LIMIT_DEV_RUNTIME_SYNC_DEPTH] = 2;
	c->limit[CU_LIMIT_DEV_RUNTIME_PENDING_LAUNCH_COUNT] = 2048;
	c->limit[CU_LIMIT_MAX_L2_FETCH_GRANULARITY] = 64;
	c->next = g.contexts;
	g.contexts = c;
	*out = c;
	return CUDA_SUCCESS;
}

/* Ends a context: its work is waited for, its memory given back. The object stays, dead: other threads may
 * have it current, and must be told. Under g.lock. */
static void destroy(CUcontext c)
{
	wait_idle_context(c);
	c->dead = true;
	for (CUcontext *at = &g.contexts; *at; at = &(*at)->next)
		if (*at == c) {
			*at = c->next;
			break;
		}
	context_free_memory(c);
	bool last = true;
	for (CUcontext other = g.contexts; other; other = other->next)
		last &= other->dev != c->dev;
	if (last)
		pool_drop_all(c->dev);
	discharge(c->dev, CHARGE_CONTEXT, c->charged);
}

static void push(CUcontext c)
{
	struct stack *s = stack();
	if (s && s->depth < STACK_DEPTH)
		s->below[s->depth++] = tls_current;
	tls_current = c;
}

static CUresult create_current(CUcontext *pctx, unsigned flags, CUdevice dev, unsigned version)
{
	struct simdev *d;
	REQUIRE(pctx && !(flags & ~(unsigned)CU_CTX_FLAGS_MASK), CUDA_ERROR_INVALID_VALUE);
	TRY(device_of(dev, &d));
	pthread_mutex_lock(&g.lock);
	CUresult r = create(d, flags, version, pctx);
	pthread_mutex_unlock(&g.lock);
	if (r == CUDA_SUCCESS)
		push(*pctx);
	return r;
}

CUresult cuCtxCreate_v2(CUcontext *pctx, unsigned int flags, CUdevice dev) { return create_current(pctx, flags, dev, 3020); }

CUresult cuCtxCreate_v3(CUcontext *pctx, CUexecAffinityParam *paramsArray, int numParams, unsigned int flags, CUdevice dev)
{
	TRY(ready());
	REQUIRE(numParams == 0 && !paramsArray, CUDA_ERROR_UNSUPPORTED_EXEC_AFFINITY);
	return create_current(pctx, flags, dev, 3020);
}

CUresult cuCtxCreate_v4(CUcontext *pctx, CUctxCreateParams *ctxCreateParams, unsigned int flags, CUdevice dev)
{
	TRY(ready());
	if (ctxCreateParams) {
		REQUIRE(ctxCreateParams->numExecAffinityParams == 0, CUDA_ERROR_UNSUPPORTED_EXEC_AFFINITY);
		REQUIRE(!ctxCreateParams->cigParams, CUDA_ERROR_NOT_SUPPORTED);
	}
	return create_current(pctx, flags, dev, 3020);
}

CUresult cuCtxDestroy_v2(CUcontext ctx)
{
	TRY(ready());
	REQUIRE(is_context(ctx), CUDA_ERROR_INVALID_CONTEXT);
	pthread_mutex_lock(&g.lock);
	CUresult r = ctx->dead ? CUDA_ERROR_CONTEXT_IS_DESTROYED : ctx->primary ? CUDA_ERROR_INVALID_CONTEXT : CUDA_SUCCESS;
	if (r == CUDA_SUCCESS)
		destroy(ctx);
	pthread_mutex_unlock(&g.lock);
	if (r == CUDA_SUCCESS && tls_current == ctx)
		cuCtxPopCurrent_v2(NULL);
	return r;
}

CUresult cuCtxDestroy(CUcontext ctx) { return cuCtxDestroy_v2(ctx); }

CUresult cuCtxAttach(CUcontext *pctx, unsigned int flags)
{
	TRY(ready());
	REQUIRE(pctx && flags == 0, CUDA_ERROR_INVALID_VALUE);
	return current(pctx);
}

CUresult cuCtxDetach(CUcontext ctx)
{
	TRY(ready());
	REQUIRE(is_context(ctx) && ctx == tls_current, CUDA_ERROR_INVALID_CONTEXT);
	return cuCtxDestroy_v2(ctx);
}

/* --- primary contexts -------------------------------------------------------------------------------- */

CUresult cuDevicePrimaryCtxRetain(CUcontext *pctx, CUdevice dev)
{
	struct simdev *d;
	CUresult r = CUDA_SUCCESS;
	REQUIRE(pctx, CUDA_ERROR_INVALID_VALUE);
	TRY(device_of(dev, &d));
	pthread_mutex_lock(&g.lock);
	if (!d->primary) {
		r = create(d, d->primary_flags, 3020, &d->primary);
		if (r == CUDA_SUCCESS)
			d->primary->primary = true;
	} else if (faults(d) & SIM_FAULT_LOST) {
		r = CUDA_ERROR_DEVICE_UNAVAILABLE;
	}
	if (r == CUDA_SUCCESS) {
		d->primary_refs++;
		*pctx = d->primary;
	}
	pthread_mutex_unlock(&g.lock);
	return r;
}

static void drop_primary(struct simdev *d)
{
	CUcontext c = d->primary;
	d->primary = NULL;
	d->primary_refs = 0;
	if (c)
		destroy(c);
}

CUresult cuDevicePrimaryCtxRelease_v2(CUdevice dev)
{
	struct simdev *d;
	TRY(device_of(dev, &d));
	pthread_mutex_lock(&g.lock);
	CUresult r = d->primary_refs ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
	if (r == CUDA_SUCCESS && --d->primary_refs == 0)
		drop_primary(d);
	pthread_mutex_unlock(&g.lock);
	return r;
}

CUresult cuDevicePrimaryCtxRelease(CUdevice dev) { return cuDevicePrimaryCtxRelease_v2(dev); }

CUresult cuDevicePrimaryCtxReset_v2(CUdevice dev)
{
	struct simdev *d;
	TRY(device_of(dev, &d));
	pthread_mutex_lock(&g.lock);
	drop_primary(d); /* and with it the references to it */
	pthread_mutex_unlock(&g.lock);
	return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxReset(CUdevice dev) { return cuDevicePrimaryCtxReset_v2(dev); }

CUresult cuDevicePrimaryCtxSetFlags_v2(CUdevice dev, unsigned int flags)
{
	struct simdev *d;
	TRY(device_of(dev, &d));
	REQUIRE(!(flags & ~(unsigned)CU_CTX_FLAGS_MASK), CUDA_ERROR_INVALID_VALUE);
	pthread_mutex_lock(&g.lock);
	d->primary_flags = flags;
	if (d->primary)
		d->primary->flags = flags;
	pthread_mutex_unlock(&g.lock);
	return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxSetFlags(CUdevice dev, unsigned int flags) { return cuDevicePrimaryCtxSetFlags_v2(dev, flags); }

CUresult cuDevicePrimaryCtxGetState(CUdevice dev, unsigned int *flags, int *active)
{
	struct simdev *d;
	TRY(device_of(dev, &d));
	REQUIRE(flags && active, CUDA_ERROR_INVALID_VALUE);
	*flags = d->primary_flags;
	*active = d->primary != NULL;
	return CUDA_SUCCESS;
}

/* --- which is current -------------------------------------------------------------------------------- */

CUresult cuCtxPushCurrent_v2(CUcontext ctx)
{
	TRY(ready());
	REQUIRE(is_context(ctx), CUDA_ERROR_INVALID_CONTEXT);
	push(ctx);
	return CUDA_SUCCESS;
}

CUresult cuCtxPopCurrent_v2(CUcontext *pctx)
{
	TRY(ready());
	REQUIRE(tls_current, CUDA_ERROR_INVALID_CONTEXT);
	struct stack *s = stack();
	if (pctx)
		*pctx = tls_current;
	tls_current = s && s->depth ? s->below[--s->depth] : NULL;
	return CUDA_SUCCESS;
}

CUresult cuCtxPushCurrent(CUcontext ctx) { return cuCtxPushCurrent_v2(ctx); }
CUresult cuCtxPopCurrent(CUcontext *pctx) { return cuCtxPopCurrent_v2(pctx); }

CUresult cuCtxSetCurrent(CUcontext ctx)
{
	TRY(ready());
	REQUIRE(!ctx || is_context(ctx), CUDA_ERROR_INVALID_CONTEXT);
	if (!ctx && tls_current)
		return cuCtxPopCurrent_v2(NULL);
	tls_current = ctx;
	return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext *pctx)
{
	TRY(ready());
	REQUIRE(pctx, CUDA_ERROR_INVALID_VALUE);
	*pctx = tls_current;
	return CUDA_SUCCESS;
}

/* --- properties -------------------------------------------------------------------------------------- */

CUresult cuCtxGetDevice(CUdevice *device)
{
	TRY(ready());
	REQUIRE(device, CUDA_ERROR_INVALID_VALUE);
	REQUIRE(tls_current, CUDA_ERROR_INVALID_CONTEXT);
	*device = tls_current->dev->ordinal;
	return CUDA_SUCCESS;
}

/* The calls of 13.0 that name a context take NULL for the current one. */
static CUresult named(CUcontext ctx, CUcontext *out)
{
	TRY(ready());
	if (!ctx)
		ctx = tls_current;
	REQUIRE(is_context(ctx), CUDA_ERROR_INVALID_CONTEXT);
	*out = ctx;
	return usable(ctx);
}

CUresult cuCtxGetDevice_v2(CUdevice *device, CUcontext ctx)
{
	REQUIRE(device, CUDA_ERROR_INVALID_VALUE);
	TRY(named(ctx, &ctx));
	*device = ctx->dev->ordinal;
	return CUDA_SUCCESS;
}

CUresult cuCtxGetFlags(unsigned int *flags)
{
	CUcontext c;
	REQUIRE(flags, CUDA_ERROR_INVALID_VALUE);
	TRY(current(&c));
	*flags = c->flags;
	return CUDA_SUCCESS;
}

CUresult cuCtxSetFlags(unsigned int flags)
{
	CUcontext c;
	TRY(current(&c));
	REQUIRE(!(flags & ~(unsigned)CU_CTX_FLAGS_MASK), CUDA_ERROR_INVALID_VALUE);
	c->flags = flags;
	return CUDA_SUCCESS;
}

CUresult cuCtxGetId(CUcontext ctx, unsigned long long *ctxId)
{
	REQUIRE(ctxId, CUDA_ERROR_INVALID_VALUE);
	TRY(named(ctx, &ctx));
	*ctxId = ctx->id;
	return CUDA_SUCCESS;
}

CUresult cuCtxGetApiVersion(CUcontext ctx, unsigned int *version)
{
	REQUIRE(version, CUDA_ERROR_INVALID_VALUE);
	TRY(named(ctx, &ctx));
	*version = ctx->version;
	return CUDA_SUCCESS;
}

CUresult cuCtxSynchronize_v2(CUcontext ctx)
{
	TRY(named(ctx, &ctx));
	TRY(capture_forbids());
	pthread_mutex_lock(&g.lock);
	wait_idle_context(ctx);
	pool_synchronized(ctx->dev);
	pthread_mutex_unlock(&g.lock);
	return usable(ctx);
}

CUresult cuCtxSynchronize(void)
{
	CUcontext c;
	TRY(current(&c));
	return cuCtxSynchronize_v2(c);
}

CUresult cuCtxSetLimit(CUlimit limit, size_t value)
{
	CUcontext c;
	TRY(current(&c));
	REQUIRE((unsigned)limit <= CU_LIMIT_PERSISTING_L2_CACHE_SIZE, CUDA_ERROR_UNSUPPORTED_LIMIT);
	c->limit[limit] = value;
	return CUDA_SUCCESS;
}

CUresult cuCtxGetLimit(size_t *pvalue, CUlimit limit)
{
	CUcontext c;
	TRY(current(&c));
	REQUIRE(pvalue, CUDA_ERROR_INVALID_VALUE);
	REQUIRE((unsigned)limit <= CU_LIMIT_PERSISTING_L2_CACHE_SIZE, CUDA_ERROR_UNSUPPORTED_LIMIT);
	*pvalue = c->limit[limit];
	return CUDA_SUCCESS;
}

CUresult cuCtxGetCacheConfig(CUfunc_cache *pconfig)
{
	CUcontext c;
	TRY(current(&c));
	REQUIRE(pconfig, CUDA_ERROR_INVALID_VALUE);
	*pconfig = c->cache;
	return CUDA_SUCCESS;
}

CUresult cuCtxSetCacheConfig(CUfunc_cache config)
{
	CUcontext c;
	TRY(current(&c));
	REQUIRE((unsigned)config <= CU_FUNC_CACHE_PREFER_EQUAL, CUDA_ERROR_INVALID_VALUE);
	c->cache = config;
	return CUDA_SUCCESS;
}

CUresult cuCtxGetSharedMemConfig(CUsharedconfig *pConfig)
{
	CUcontext c;
	TRY(current(&c));
	REQUIRE(pConfig, CUDA_ERROR_INVALID_VALUE);
	*pConfig = CU_SHARED_MEM_CONFIG_FOUR_BYTE_BANK_SIZE;
	return CUDA_SUCCESS;
}

CUresult cuCtxSetSharedMemConfig(CUsharedconfig config)
{
	CUcontext c;
	TRY(current(&c));
	REQUIRE((unsigned)config <= CU_SHARED_MEM_CONFIG_EIGHT_BYTE_BANK_SIZE, CUDA_ERROR_INVALID_VALUE);
	return CUDA_SUCCESS; /* banks are of one width since Maxwell */
}

CUresult cuCtxGetStreamPriorityRange(int *leastPriority, int *greatestPriority)
{
	CUcontext c;
	TRY(current(&c));
	if (leastPriority)
		*leastPriority = 0;
	if (greatestPriority)
		*greatestPriority = -5;
	return CUDA_SUCCESS;
}

CUresult cuCtxResetPersistingL2Cache(void)
{
	CUcontext c;
	return current(&c);
}

CUresult cuCtxGetExecAffinity(CUexecAffinityParam *pExecAffinity, CUexecAffinityType type)
{
	CUcontext c;
	TRY(current(&c));
	REQUIRE(pExecAffinity && type == CU_EXEC_AFFINITY_TYPE_SM_COUNT, CUDA_ERROR_INVALID_VALUE);
	pExecAffinity->type = type;
	pExecAffinity->param.smCount.val = sm_count(c->dev);
	return CUDA_SUCCESS;
}

CUresult cuCtxEnablePeerAccess(CUcontext peerContext, unsigned int Flags)
{
	CUcontext c;
	TRY(current(&c));
	REQUIRE(is_context(peerContext), CUDA_ERROR_INVALID_CONTEXT);
	REQUIRE(Flags == 0, CUDA_ERROR_INVALID_VALUE);
	REQUIRE(c->dev->gpu->facts.p2p_mask >> peerContext->dev->node_index & 1, CUDA_ERROR_PEER_ACCESS_UNSUPPORTED);
	uint64_t bit = (uint64_t)1 << peerContext->dev->ordinal;
	REQUIRE(!(c->peers & bit), CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED);
	c->peers |= bit;
	return CUDA_SUCCESS;
}

CUresult cuCtxDisablePeerAccess(CUcontext peerContext)
{
	CUcontext c;
	TRY(current(&c));
	REQUIRE(is_context(peerContext), CUDA_ERROR_INVALID_CONTEXT);
	uint64_t bit = (uint64_t)1 << peerContext->dev->ordinal;
	REQUIRE(c->peers & bit, CUDA_ERROR_PEER_ACCESS_NOT_ENABLED);
	c->peers &= ~bit;
	return CUDA_SUCCESS;
}
