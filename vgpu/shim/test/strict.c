/* strict.c: asks for a call that no table knows, before and after cuInit, and for calls that the driver lacks. */
#include <dlfcn.h>
#include <stdio.h>

#include "cuabi.h"

typedef CUresult (*resolver)(const char *, void **, int, cuuint64_t, CUdriverProcAddressQueryResult *);

static void ask(resolver r, const char *name)
{
	CUdriverProcAddressQueryResult status = 9;
	void *p = NULL;
	CUresult got = r(name, &p, 15000, 0, &status);

	printf("%s %d %s %d\n", name, got, p ? "found" : "none", status);
}

int main(void)
{
	void *lib = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
	resolver r = lib ? (resolver)dlsym(lib, "cuGetProcAddress_v2") : NULL;
	CUresult (*init)(unsigned) = lib ? (CUresult (*)(unsigned))dlsym(lib, "cuInit") : NULL;
	CUresult (*missing)(CUdeviceptr) = lib ? (CUresult (*)(CUdeviceptr))dlsym(lib, "cuMemFree_v2") : NULL;

	if (!r || !init || !missing) {
		printf("FAIL %s\n", dlerror());
		return 1;
	}
	ask(r, "cuMemAllocFuture");
	printf("init %d\n", init(0));
	ask(r, "cuMemAllocFuture");
	ask(r, "cuInit");
	ask(r, "cuNeverWas");
	printf("missing %d\n", missing(0));
	return 0;
}
