/* routes: fills its memory by cuMemAlloc as found in each way that programs find it, and says where it was refused. A limit
 * that holds for one way only would show. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

#include "options.h"
#include "tenant.h"

enum { PIECE = 64 << 20, GRANULE = 2 << 20, PIECES = 1 << 14 };

struct calls {
	CUresult (*alloc)(CUdeviceptr *p, size_t bytes);
	CUresult (*free)(CUdeviceptr p);
};

static void *driver; /* libcuda.so.1, by dlopen */

static struct calls find_linked(const struct tenant *tenant)
{
	(void)tenant;
	return (struct calls){cuMemAlloc_v2, cuMemFree_v2};
}

static struct calls by_dlsym(void *handle)
{
	struct calls calls;
	*(void **)&calls.alloc = dlsym(handle, "cuMemAlloc_v2");
	*(void **)&calls.free = dlsym(handle, "cuMemFree_v2");
	return calls;
}

static struct calls find_default(const struct tenant *tenant)
{
	(void)tenant;
	return by_dlsym(RTLD_DEFAULT);
}

static struct calls find_next(const struct tenant *tenant)
{
	(void)tenant;
	return by_dlsym(RTLD_NEXT);
}

static struct calls find_dlopen(const struct tenant *tenant)
{
	(void)tenant;
	return by_dlsym(driver);
}

static struct calls find_versioned(const struct tenant *tenant)
{
	struct calls calls;
	CUdriverProcAddressQueryResult status;
	CU(tenant, cuGetProcAddress_v2("cuMemAlloc", (void **)&calls.alloc, 12000, CU_GET_PROC_ADDRESS_DEFAULT, &status));
	CU(tenant, cuGetProcAddress_v2("cuMemFree", (void **)&calls.free, 12000, CU_GET_PROC_ADDRESS_DEFAULT, &status));
	return calls;
}

static struct calls find_by_found(const struct tenant *tenant)
{
	CUresult (*resolve)(const char *, void **, int, cuuint64_t, CUdriverProcAddressQueryResult *);
	struct calls calls;
	CUdriverProcAddressQueryResult status;
	*(void **)&resolve = dlsym(driver, "cuGetProcAddress_v2");
	CU(tenant, resolve("cuMemAlloc", (void **)&calls.alloc, 12000, CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM, &status));
	CU(tenant, resolve("cuMemFree", (void **)&calls.free, 12000, CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM, &status));
	return calls;
}

static const struct route {
	const char *name;
	struct calls (*find)(const struct tenant *tenant);
} ROUTES[] = {
	{"linked", find_linked},
	{"dlsym", find_default},
	{"next", find_next},
	{"dlopen", find_dlopen},
	{"resolved", find_versioned},
	{"resolved-by-found", find_by_found},
};
enum { ROUTE_COUNT = sizeof ROUTES / sizeof ROUTES[0] };

/* Takes until refused at the smallest size, gives all back, and says where it was refused. Returns 0 where that was as it should. */
static int fill(const struct tenant *tenant, const struct route *route)
{
	static CUdeviceptr piece[PIECES];
	struct calls calls = route->find(tenant);
	size_t count = 0, got = 0;
	CUresult result = CUDA_SUCCESS;
	if (!calls.alloc || !calls.free) {
		fprintf(stderr, "routes: %s finds no cuMemAlloc\n", route->name);
		return 1;
	}
	for (size_t bytes = PIECE; bytes >= GRANULE; bytes /= 2) {
		for (result = CUDA_SUCCESS; result == CUDA_SUCCESS && count < PIECES;) {
			result = calls.alloc(&piece[count], bytes);
			if (result == CUDA_SUCCESS)
				got += bytes, count++;
		}
		if (result != CUDA_ERROR_OUT_OF_MEMORY)
			break;
	}
	size_t left = tenant_free_bytes(tenant);
	while (count > 0)
		CU(tenant, calls.free(piece[--count]));
	char text[200];
	snprintf(text, sizeof text, "  %-18s %11s, %s left: %s (%d)", route->name, human_bytes(got), human_bytes(left), cu_name(result), result);
	tenant_say(tenant, "class", text, "\"class\":\"%s\",\"got\":%zu,\"left\":%zu,\"error\":%d", route->name, got, left, result);
	return result != CUDA_ERROR_OUT_OF_MEMORY || got == 0;
}

int main(int argc, char **argv)
{
	struct tenant tenant = {0};
	double wait = 1.5;
	int bad = 0;
	const struct option_row rows[] = {
		{"settle", OPTION_NUMBER, &wait, "seconds to wait at first for the context to be counted (1.5)"},
		{"json", OPTION_FLAG, &tenant.json, "lines of JSON"},
	};
	options_read(argc, argv, "fills its memory by cuMemAlloc, found in each way there is", rows, sizeof rows / sizeof rows[0]);
	driver = dlopen("libcuda.so.1", RTLD_NOW);
	if (!driver) {
		fprintf(stderr, "routes: libcuda.so.1 cannot be opened: %s\n", dlerror());
		return 1;
	}
	tenant_open(&tenant, "routes");
	sleep_seconds(wait);
	for (int i = 0; i < ROUTE_COUNT; i++)
		bad += fill(&tenant, &ROUTES[i]);
	tenant_close(&tenant);
	return bad != 0;
}
