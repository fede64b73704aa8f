/* routes.h: the driver's functions, found by the route that a test names. Included by one program each.
 *
 *   linked    by the program's own DT_NEEDED (compiled with -DLINKED)
 *   next      by dlsym(RTLD_NEXT) in a library of LD_PRELOAD (preload.c), in a linked program
 *   dlopen    RTLD_LOCAL and dlsym      deepbind  the same with RTLD_DEEPBIND      dlmopen  in a new namespace
 *   gpa1-F    cuGetProcAddress with flag F        gpa2-F    cuGetProcAddress_v2 with flag F
 */
#ifndef ROUTES_H
#define ROUTES_H

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuabi.h"

/* symbol, the name that the resolver is asked for, and the version for which it answers with the symbol */
#define CALLS(X) \
	X(cuInit, cuInit, 2000) X(cuDeviceGet, cuDeviceGet, 2000) X(cuDeviceGetCount, cuDeviceGetCount, 2000) \
	X(cuDeviceTotalMem_v2, cuDeviceTotalMem, 3020) X(cuMemGetInfo_v2, cuMemGetInfo, 3020) \
	X(cuDevicePrimaryCtxRetain, cuDevicePrimaryCtxRetain, 7000) X(cuDevicePrimaryCtxReset_v2, cuDevicePrimaryCtxReset, 11000) \
	X(cuDevicePrimaryCtxRelease_v2, cuDevicePrimaryCtxRelease, 11000) X(cuCtxSetCurrent, cuCtxSetCurrent, 4000) \
	X(cuCtxCreate_v2, cuCtxCreate, 3020) X(cuCtxDestroy_v2, cuCtxDestroy, 4000) X(cuCtxSynchronize, cuCtxSynchronize, 2000) \
	X(cuMemAlloc_v2, cuMemAlloc, 3020) X(cuMemAllocPitch_v2, cuMemAllocPitch, 3020) X(cuMemAllocManaged, cuMemAllocManaged, 6000) \
	X(cuMemFree_v2, cuMemFree, 3020) X(cuMemHostAlloc, cuMemHostAlloc, 2020) X(cuMemAllocHost_v2, cuMemAllocHost, 3020) \
	X(cuMemHostRegister_v2, cuMemHostRegister, 6050) X(cuMemHostUnregister, cuMemHostUnregister, 4000) X(cuMemFreeHost, cuMemFreeHost, 2000) \
	X(cuMemAllocAsync, cuMemAllocAsync, 11020) X(cuMemAllocFromPoolAsync, cuMemAllocFromPoolAsync, 11020) \
	X(cuMemFreeAsync, cuMemFreeAsync, 11020) X(cuMemPoolCreate, cuMemPoolCreate, 11020) X(cuMemPoolDestroy, cuMemPoolDestroy, 11020) \
	X(cuMemPoolTrimTo, cuMemPoolTrimTo, 11020) X(cuMemPoolSetAttribute, cuMemPoolSetAttribute, 11020) X(cuMemPoolGetAttribute, cuMemPoolGetAttribute, 11020) \
	X(cuDeviceGetDefaultMemPool, cuDeviceGetDefaultMemPool, 11020) \
	X(cuMemCreate, cuMemCreate, 10020) X(cuMemRelease, cuMemRelease, 10020) X(cuMemMap, cuMemMap, 10020) X(cuMemUnmap, cuMemUnmap, 10020) \
	X(cuMemAddressReserve, cuMemAddressReserve, 10020) X(cuMemAddressFree, cuMemAddressFree, 10020) \
	X(cuMemRetainAllocationHandle, cuMemRetainAllocationHandle, 11000) \
	X(cuMemExportToShareableHandle, cuMemExportToShareableHandle, 10020) \
	X(cuMemImportFromShareableHandle, cuMemImportFromShareableHandle, 10020) \
	X(cuArrayCreate_v2, cuArrayCreate, 3020) X(cuArray3DCreate_v2, cuArray3DCreate, 3020) X(cuArrayDestroy, cuArrayDestroy, 2000) \
	X(cuMipmappedArrayCreate, cuMipmappedArrayCreate, 5000) X(cuMipmappedArrayDestroy, cuMipmappedArrayDestroy, 5000) \
	X(cuImportExternalMemory, cuImportExternalMemory, 10000) X(cuDestroyExternalMemory, cuDestroyExternalMemory, 10000) \
	X(cuIpcGetMemHandle, cuIpcGetMemHandle, 4010) X(cuIpcOpenMemHandle_v2, cuIpcOpenMemHandle, 11000) X(cuIpcCloseMemHandle, cuIpcCloseMemHandle, 4010) \
	X(cuStreamCreate, cuStreamCreate, 2000) X(cuStreamDestroy_v2, cuStreamDestroy, 4000) X(cuStreamSynchronize, cuStreamSynchronize, 2000) \
	X(cuStreamBeginCapture_v2, cuStreamBeginCapture, 10010) X(cuStreamEndCapture, cuStreamEndCapture, 10000) \
	X(cuGraphCreate, cuGraphCreate, 10000) X(cuGraphDestroy, cuGraphDestroy, 10000) X(cuGraphExecDestroy, cuGraphExecDestroy, 10000) \
	X(cuGraphAddMemAllocNode, cuGraphAddMemAllocNode, 11040) X(cuGraphInstantiateWithFlags, cuGraphInstantiateWithFlags, 11040) \
	X(cuGraphLaunch, cuGraphLaunch, 10000) X(cuDeviceGraphMemTrim, cuDeviceGraphMemTrim, 11040) \
	X(cuMemsetD8_v2, cuMemsetD8, 3020)

#define DECLARE(symbol, name, since) static __typeof__(&symbol) p_##symbol;
CALLS(DECLARE)

/* A per-thread-stream twin of a blocking copy is only answered from 7000 on. */
#define AT_LEAST(since) ((since) < 7000 ? 7000 : (since))

static void die(const char *what, long code)
{
	printf("FAIL %s: %ld\n", what, code);
	fflush(stdout);
	_Exit(1);
}

static void *open_driver(const char *route)
{
	void *lib;

	if (!strcmp(route, "dlmopen"))
		lib = dlmopen(LM_ID_NEWLM, "libcuda.so.1", RTLD_NOW);
	else
		lib = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL | (strcmp(route, "deepbind") ? 0 : RTLD_DEEPBIND));
	if (!lib)
		die(dlerror(), 0);
	return lib;
}

typedef CUresult (*gpa1_t)(const char *, void **, int, cuuint64_t);
typedef CUresult (*gpa2_t)(const char *, void **, int, cuuint64_t, CUdriverProcAddressQueryResult *);

static void *find(const char *route, const char *symbol, const char *name, int since)
{
	static void *lib;
	void *p = NULL;

	if (!strcmp(route, "next")) {
		void *(*next)(const char *) = (void *(*)(const char *))dlsym(RTLD_DEFAULT, "kerf_test_next");

		return next ? next(symbol) : NULL;
	}
	if (!lib)
		lib = open_driver(route);
	if (!strncmp(route, "gpa1-", 5))
		((gpa1_t)dlsym(lib, "cuGetProcAddress"))(name, &p, since, (cuuint64_t)atoi(route + 5));
	else if (!strncmp(route, "gpa2-", 5))
		((gpa2_t)dlsym(lib, "cuGetProcAddress_v2"))(name, &p, since, (cuuint64_t)atoi(route + 5), NULL);
	else
		p = dlsym(lib, symbol);
	return p;
}

static void find_all(const char *route)
{
#ifdef LINKED
#define LINK(symbol, name, since) p_##symbol = symbol;
	if (!strcmp(route, "linked")) {
		CALLS(LINK)
		return;
	}
#endif
#define FIND(symbol, name, since) \
	p_##symbol = (__typeof__(p_##symbol))find(route, #symbol, #name, strstr(route, "-2") ? AT_LEAST(since) : (since)); \
	if (!p_##symbol) die("no " #symbol " by route", 0);
	CALLS(FIND)
}

/* A driver call that must succeed. */
#define CU(call, ...) do { CUresult r_ = p_##call(__VA_ARGS__); if (r_) die(#call, r_); } while (0)

#endif
