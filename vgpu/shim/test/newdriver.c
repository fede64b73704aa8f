/* newdriver.c: a driver of the future with one call that no table knows, and without most calls of the past. Stands
 * behind the shim in the tests of unknown and of missing calls.
 */
#include <dlfcn.h>
#include <string.h>

#include "cuabi.h"

#define API __attribute__((visibility("default")))

API CUresult cuMemAllocFuture(CUdeviceptr *p, size_t n);
API CUresult cuInit(unsigned flags) { (void)flags; return CUDA_SUCCESS; }
API CUresult cuDriverGetVersion(int *v) { *v = 15000; return CUDA_SUCCESS; }
API CUresult cuDeviceGetCount(int *n) { *n = 1; return CUDA_SUCCESS; }
API CUresult cuDeviceGetUuid_v2(CUuuid *u, CUdevice dev) { (void)dev; memset(u, 1, sizeof *u); return CUDA_SUCCESS; }
API CUresult cuMemAllocFuture(CUdeviceptr *p, size_t n) { *p = n; return CUDA_SUCCESS; }

API CUresult cuGetProcAddress_v2(const char *name, void **fn, int version, cuuint64_t flags, CUdriverProcAddressQueryResult *status)
{
	void *self = dlopen("libkerfreal-cuda.so.1", RTLD_LAZY | RTLD_NOLOAD);

	(void)version;
	(void)flags;
	*fn = dlsym(self, name);
	if (status)
		*status = *fn ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
	return CUDA_SUCCESS;
}
