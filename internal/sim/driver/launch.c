/* launch.c: kernel launches of every kind, and occupancy. */
#include "sim.h"

#include <string.h>

/* --- a launch as an op ------------------------------------------------------------------------------- */

static void pointers(const struct launch *l, void **args)
{
	for (unsigned i = 0; i < l->f->nparams; i++)
		args[i] = (void *)(l->bytes + l->f->param_offset[i]);
}

static CUresult run_kernel(struct op *op)
{
	const struct launch *l = (const struct launch *)op->arg;
	const struct simdev *d = op->stream->ctx->dev;
	void *args[MAX_PARAMS];
	pointers(l, args);
	__atomic_fetch_add(&op->stream->ctx->dev->use->kernels, 1, __ATOMIC_RELAXED);
	return l->f->impl->run(d, args);
}

/* cuLaunchKernel's `extra`: the parameters in one buffer. */
static CUresult unpack_extra(CUfunction f, void **extra, unsigned char *to)
{
	const void *buffer = NULL;
	size_t size = 0;
	for (int i = 0; extra[i] != CU_LAUNCH_PARAM_END; i += 2) {
		if (extra[i] == CU_LAUNCH_PARAM_BUFFER_POINTER)
			buffer = extra[i + 1];
		else if (extra[i] == CU_LAUNCH_PARAM_BUFFER_SIZE)
			size = *(const size_t *)extra[i + 1];
		else
			return CUDA_ERROR_INVALID_VALUE;
	}
	REQUIRE((buffer || !f->nparams) && size >= f->param_bytes, CUDA_ERROR_INVALID_VALUE);
	memcpy(to, buffer, f->param_bytes);
	return CUDA_SUCCESS;
}

static bool shape_ok(const struct launch *l)
{
	const unsigned *grid = l->grid, *block = l->block;
	return grid[0] && grid[1] && grid[2] && grid[0] <= INT32_MAX && grid[1] <= 65535 && grid[2] <= 65535 && block[0] && block[1] && block[2] &&
	       block[0] <= 1024 && block[1] <= 1024 && block[2] <= 64 && (uint64_t)block[0] * block[1] * block[2] <= 1024 && l->shared <= 166912;
}

CUresult kernel_op(const struct launch *shape, void **params, void **extra, struct op **out)
{
	CUfunction f = shape->f;
	void *args[MAX_PARAMS];
	REQUIRE(is_kind(f, K_FUNCTION), CUDA_ERROR_INVALID_HANDLE);
	REQUIRE(shape_ok(shape), CUDA_ERROR_INVALID_VALUE);
	REQUIRE(f->impl, CUDA_ERROR_NOT_SUPPORTED);
	REQUIRE(!(params && extra), CUDA_ERROR_INVALID_VALUE);
	REQUIRE(params || extra || !f->nparams, CUDA_ERROR_INVALID_VALUE);
	struct op *op = op_new(OP_COMPUTE, CU_GRAPH_NODE_TYPE_KERNEL, sizeof(struct launch) + f->param_bytes);
	REQUIRE(op, CUDA_ERROR_OUT_OF_MEMORY);
	struct launch *l = (struct launch *)op->arg;
	*l = *shape;
	for (unsigned i = 0; params && i < f->nparams; i++)
		memcpy(l->bytes + f->param_offset[i], params[i], f->param_size[i]);
	if (extra) {
		CUresult r = unpack_extra(f, extra, l->bytes);
		if (r != CUDA_SUCCESS) {
			op_discard(op);
			return r;
		}
	}
	pointers(l, args);
	const struct simdev *d = tls_current ? tls_current->dev : &g.dev[0];
	op->run = run_kernel;
	op->cost = d->gpu->facts.launch_ns + f->impl->cost(d, args);
	*out = op;
	return CUDA_SUCCESS;
}

/* --- the calls --------------------------------------------------------------------------------------- */

static CUresult launch(const struct launch *shape, CUstream h, void **params, void **extra)
{
	struct op *op;
	CUcontext c;
	TRY(current(&c));
	TRY(kernel_op(shape, params, extra, &op));
	return submit(h, op);
}

/* In the null driver a launch is checked and counted, unless its stream is being captured. */
static inline bool null_launch(CUfunction f, CUstream h, CUresult *r)
{
	if (likely(!g.zero_cost))
		return false;
	*r = unlikely(g.forked) ? CUDA_ERROR_NOT_INITIALIZED : unlikely(!tls_current) ? CUDA_ERROR_INVALID_CONTEXT : CUDA_SUCCESS;
	if (unlikely(!is_kind(f, K_FUNCTION)))
		*r = CUDA_ERROR_INVALID_HANDLE;
	return !((uintptr_t)h > 2 && h->capture);
}

CUresult cuLaunchKernel(CUfunction f, unsigned int gridDimX, unsigned int gridDimY, unsigned int gridDimZ, unsigned int blockDimX,
                        unsigned int blockDimY, unsigned int blockDimZ, unsigned int sharedMemBytes, CUstream hStream, void **kernelParams,
                        void **extra)
{
	CUresult r;
	if (null_launch(f, hStream, &r))
		return r;
	struct launch shape = { f, { gridDimX, gridDimY, gridDimZ }, { blockDimX, blockDimY, blockDimZ }, sharedMemBytes };
	return launch(&shape, hStream, kernelParams, extra);
}

static CUresult cooperative_fits(CUfunction f, const unsigned grid[3])
{
	CUcontext c;
	TRY(current(&c));
	REQUIRE(is_kind(f, K_FUNCTION), CUDA_ERROR_INVALID_HANDLE);
	REQUIRE((uint64_t)grid[0] * grid[1] * grid[2] <= (uint64_t)sm_count(c->dev) * 32, CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE);
	return CUDA_SUCCESS;
}

CUresult cuLaunchCooperativeKernel(CUfunction f, unsigned int gridDimX, unsigned int gridDimY, unsigned int gridDimZ, unsigned int blockDimX,
                                   unsigned int blockDimY, unsigned int blockDimZ, unsigned int sharedMemBytes, CUstream hStream,
                                   void **kernelParams)
{
	unsigned grid[] = { gridDimX, gridDimY, gridDimZ };
	TRY(cooperative_fits(f, grid));
	return cuLaunchKernel(f, gridDimX, gridDimY, gridDimZ, blockDimX, blockDimY, blockDimZ, sharedMemBytes, hStream, kernelParams, NULL);
}

CUresult cuLaunchCooperativeKernelMultiDevice(CUDA_LAUNCH_PARAMS *launchParamsList, unsigned int numDevices, unsigned int flags)
{
	TRY(ready());
	REQUIRE(launchParamsList && numDevices && flags <= 3, CUDA_ERROR_INVALID_VALUE);
	return CUDA_ERROR_NOT_SUPPORTED; /* gone since CUDA 13 */
}

CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction f, void **kernelParams, void **extra)
{
	CUresult r;
	TRY(ready());
	REQUIRE(config && (config->attrs || !config->numAttrs), CUDA_ERROR_INVALID_VALUE);
	if (null_launch(f, config->hStream, &r))
		return r;
	const struct launch shape = { f, { config->gridDimX, config->gridDimY, config->gridDimZ },
	                              { config->blockDimX, config->blockDimY, config->blockDimZ }, config->sharedMemBytes };
	const unsigned *grid = shape.grid;
	for (unsigned i = 0; i < config->numAttrs; i++) {
		const CUlaunchAttribute *a = &config->attrs[i];
		if (a->id == CU_LAUNCH_ATTRIBUTE_COOPERATIVE && a->value.cooperative)
			TRY(cooperative_fits(f, grid));
		if (a->id == CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION) {
			unsigned x = a->value.clusterDim.x, y = a->value.clusterDim.y, z = a->value.clusterDim.z;
			REQUIRE(x && y && z && x * y * z <= 16 && grid[0] % x == 0 && grid[1] % y == 0 && grid[2] % z == 0, CUDA_ERROR_INVALID_CLUSTER_SIZE);
		}
		if (a->id == CU_LAUNCH_ATTRIBUTE_LAUNCH_COMPLETION_EVENT)
			TRY(cuEventRecord(a->value.launchCompletionEvent.event, config->hStream));
	}
	return launch(&shape, config->hStream, kernelParams, extra);
}

/* --- occupancy --------------------------------------------------------------------------------------- */

CUresult cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *numBlocks, CUfunction func, int blockSize, size_t dynamicSMemSize,
                                                              unsigned int flags)
{
	CUcontext c;
	TRY(current(&c));
	REQUIRE(numBlocks && blockSize > 0 && flags <= 1, CUDA_ERROR_INVALID_VALUE);
	REQUIRE(is_kind(func, K_FUNCTION), CUDA_ERROR_INVALID_HANDLE);
	int n = blockSize > 1024 ? 0 : 2048 / blockSize;
	if (dynamicSMemSize && n > (int)(167936 / dynamicSMemSize))
		n = (int)(167936 / dynamicSMemSize);
	*numBlocks = n > 32 ? 32 : n;
	return CUDA_SUCCESS;
}

CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *numBlocks, CUfunction func, int blockSize, size_t dynamicSMemSize)
{
	return cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(numBlocks, func, blockSize, dynamicSMemSize, 0);
}

CUresult cuOccupancyMaxPotentialBlockSizeWithFlags(int *minGridSize, int *blockSize, CUfunction func, CUoccupancyB2DSize blockSizeToDynamicSMemSize,
                                                   size_t dynamicSMemSize, int blockSizeLimit, unsigned int flags)
{
	CUcontext c;
	int blocks;
	REQUIRE(minGridSize && blockSize, CUDA_ERROR_INVALID_VALUE);
	TRY(current(&c));
	int size = blockSizeLimit > 0 && blockSizeLimit < 1024 ? blockSizeLimit : 1024;
	size_t shared = blockSizeToDynamicSMemSize ? blockSizeToDynamicSMemSize(size) : dynamicSMemSize;
	TRY(cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(&blocks, func, size, shared, flags));
	*blockSize = size;
	*minGridSize = blocks * (int)sm_count(c->dev);
	return CUDA_SUCCESS;
}

CUresult cuOccupancyMaxPotentialBlockSize(int *minGridSize, int *blockSize, CUfunction func, CUoccupancyB2DSize blockSizeToDynamicSMemSize,
                                          size_t dynamicSMemSize, int blockSizeLimit)
{
	return cuOccupancyMaxPotentialBlockSizeWithFlags(minGridSize, blockSize, func, blockSizeToDynamicSMemSize, dynamicSMemSize, blockSizeLimit, 0);
}

CUresult cuOccupancyAvailableDynamicSMemPerBlock(size_t *dynamicSmemSize, CUfunction func, int numBlocks, int blockSize)
{
	CUcontext c;
	TRY(current(&c));
	REQUIRE(dynamicSmemSize && numBlocks > 0 && blockSize > 0, CUDA_ERROR_INVALID_VALUE);
	REQUIRE(is_kind(func, K_FUNCTION), CUDA_ERROR_INVALID_HANDLE);
	*dynamicSmemSize = 166912 / (size_t)numBlocks;
	return CUDA_SUCCESS;
}
