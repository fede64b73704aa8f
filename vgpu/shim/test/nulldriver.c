/* nulldriver.c: a driver that does nothing, at once: what is left when a call through the shim is timed is the shim. */
#include <string.h>

#include "cuabi.h"

#define API __attribute__((visibility("default")))

static CUdeviceptr next = 1ull << 32;

API CUresult cuInit(unsigned flags) { (void)flags; return CUDA_SUCCESS; }
API CUresult cuDriverGetVersion(int *v) { *v = 12040; return CUDA_SUCCESS; }
API CUresult cuDeviceGetCount(int *n) { *n = 1; return CUDA_SUCCESS; }
API CUresult cuDeviceGetUuid_v2(CUuuid *u, CUdevice dev) { (void)dev; memset(u, 1, sizeof *u); return CUDA_SUCCESS; }
API CUresult cuCtxGetDevice(CUdevice *dev) { *dev = 0; return CUDA_SUCCESS; }
API CUresult cuCtxGetCurrent(CUcontext *ctx) { *ctx = (CUcontext)8; return CUDA_SUCCESS; }
API CUresult cuMemAlloc_v2(CUdeviceptr *p, size_t n) { *p = next; next += (n + 511) & ~511ull; return CUDA_SUCCESS; }
API CUresult cuMemFree_v2(CUdeviceptr p) { (void)p; return CUDA_SUCCESS; }
API CUresult cuMemGetInfo_v2(size_t *f, size_t *t) { *f = *t = 0; return CUDA_SUCCESS; }
API CUresult cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, CUstream s, void **params, void **extra)
{
	(void)f, (void)gx, (void)gy, (void)gz, (void)bx, (void)by, (void)bz, (void)shared, (void)s, (void)params, (void)extra;
	return CUDA_SUCCESS;
}
