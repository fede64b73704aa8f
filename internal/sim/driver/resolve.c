/* resolve.c: cuGetProcAddress: which symbol answers to a name, for a CUDA version and a stream flag.
 * The table is generated from internal/cuda/entrypoints.tsv; a driver knows the rows up to its own version. */
#include "sim.h"

#include <string.h>

enum stream { ANY, LEGACY, PTSZ };

struct entry { const char *name; void *symbol; int since; enum stream stream; };

#define ENTRY(name, symbol, since, stream) { name, (void *)symbol, since, stream },
#define DECLARE(symbol) extern __attribute__((visibility("default"))) char symbol##_entry[] __asm__(#symbol);
#include "entries.gen.h"

static const struct entry *first_named(const char *name)
{
	size_t lo = 0, hi = sizeof entries / sizeof entries[0];
	while (lo < hi) {
		size_t mid = (lo + hi) / 2;
		if (strcmp(entries[mid].name, name) < 0)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo < sizeof entries / sizeof entries[0] && strcmp(entries[lo].name, name) == 0 ? &entries[lo] : NULL;
}

static void *lookup(const char *name, int asked, enum stream stream, CUdriverProcAddressQueryResult *status)
{
	const struct entry *end = entries + sizeof entries / sizeof entries[0], *best = NULL, *e = first_named(name);
	int driver = state_version();
	bool known = false;
	for (; e && e < end && strcmp(e->name, name) == 0; e++) {
		if (e->since > driver)
			continue;
		known = true;
		if ((e->stream == ANY || e->stream == stream) && e->since <= asked && (!best || e->since >= best->since))
			best = e;
	}
	*status = best ? CU_GET_PROC_ADDRESS_SUCCESS : known ? CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
	return best ? best->symbol : NULL;
}

/* As measured on NVIDIA's 550: _v2 succeeds with a NULL address and says why in the status; the first version
 * fails with NOT_FOUND and leaves the address as it was. */
static CUresult resolve(const char *symbol, int cudaVersion, cuuint64_t flags, void **pfn, CUdriverProcAddressQueryResult *status)
{
	const cuuint64_t all = CU_GET_PROC_ADDRESS_LEGACY_STREAM | CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM;
	REQUIRE(symbol && pfn && !(flags & ~all), CUDA_ERROR_INVALID_VALUE);
	*pfn = lookup(symbol, cudaVersion, flags & CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM ? PTSZ : LEGACY, status);
	return CUDA_SUCCESS;
}

CUresult cuGetProcAddress_v2(const char *symbol, void **pfn, int cudaVersion, cuuint64_t flags, CUdriverProcAddressQueryResult *symbolStatus)
{
	CUdriverProcAddressQueryResult status;
	TRY(resolve(symbol, cudaVersion, flags, pfn, &status));
	if (symbolStatus)
		*symbolStatus = status;
	return CUDA_SUCCESS;
}

CUresult cuGetProcAddress(const char *symbol, void **pfn, int cudaVersion, cuuint64_t flags)
{
	CUdriverProcAddressQueryResult status;
	void *p = NULL;
	REQUIRE(pfn, CUDA_ERROR_INVALID_VALUE);
	TRY(resolve(symbol, cudaVersion, flags, &p, &status));
	REQUIRE(p, CUDA_ERROR_NOT_FOUND);
	*pfn = p;
	return CUDA_SUCCESS;
}
