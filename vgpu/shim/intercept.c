/* intercept.c: finding the real driver's functions, and answering cuGetProcAddress with ours in their place.
 *
 * The real driver is this library's DT_NEEDED under a private name, so the loader has mapped it already, in this
 * namespace, and every name that the shim does not define falls through to it. The resolver is asked first,
 * always; if the address that it returns is one that we stand in for, the tenant gets ours. No name, version or
 * stream flag is guessed, so a driver newer than this file resolves as it likes.
 */
#define _GNU_SOURCE
#include "shim.h"
#include "names.h"

#include <dlfcn.h>
#include <string.h>
#include <sys/mman.h>

#ifndef KERF_REAL_CUDA
#define KERF_REAL_CUDA "libkerfreal-cuda.so.1"
#endif

__thread unsigned kerf_depth __attribute__((tls_model("initial-exec")));

static void *driver(void)
{
	static void *handle;
	void *h = load_acquire(&handle);

	if (h)
		return h;
	h = dlopen(KERF_REAL_CUDA, RTLD_LAZY | RTLD_NOLOAD);
	if (!h)
		kerf_say(KERF_REAL_CUDA " is not loaded beside the shim: no GPU is given; check that " KERF_ROOT "/driver holds the driver's libcuda.so.1 under this name");
	store_release(&handle, h);
	return h;
}

void *kerf_resolve(enum hook_id id)
{
	struct hook *h = &kerf_hooks[id];
	void *handle, *real;

	if (load_relaxed(&h->missing))
		return NULL;
	handle = driver();
	real = handle ? dlsym(handle, h->symbol) : NULL;
	if (!real)
		store_relaxed(&h->missing, true);
	store_release(&h->real, real);
	return real;
}

/* --- address of the driver's → ours ---------------------------------------------------------------------- */

#define MAP_SIZE 2048u /* more than twice the addresses, which gen keeps under 1,000 */

struct pair { void *real, *export; };
static struct pair *map;

static uint32_t slot_of(const void *p)
{
	return (uint32_t)(((uintptr_t)p >> 4) * 0x9e3779b97f4a7c15ull >> 32) & (MAP_SIZE - 1);
}

static void map_add(struct pair *m, void *real, void *export)
{
	uint32_t i = slot_of(real);

	while (m[i].real && m[i].real != real)
		i = (i + 1) & (MAP_SIZE - 1);
	m[i] = (struct pair){ real, export };
}

/* Both what dlsym gives and what the resolver gives for each intercepted symbol: in the drivers measured (535,
 * 550) they are the same address, but nothing promises it. */
static struct pair *map_build(void)
{
	fn_cuGetProcAddress_v2 ask = REAL(cuGetProcAddress_v2);
	struct pair *m = mmap(NULL, MAP_SIZE * sizeof *m, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	_Static_assert(HOOKS * 2 < MAP_SIZE / 2, "the map would be crowded: double MAP_SIZE");
	if (m == MAP_FAILED)
		return NULL;
	for (enum hook_id id = 0; id < HOOKS; id++) {
		struct hook *h = &kerf_hooks[id];
		CUdriverProcAddressQueryResult status;
		void *real = kerf_real(id), *said = NULL;

		if (!real || !h->export)
			continue;
		map_add(m, real, h->export);
		/* Without its own row, an older driver answers for the row before: dlsym's answer tells whether it has it. */
		if (ask && !ask(h->name, &said, h->since, (cuuint64_t)h->flag, &status) && said)
			map_add(m, said, h->export);
	}
	return m;
}

static struct pair *get_map(void)
{
	struct pair *seen = load_acquire(&map), *mine;

	if (likely(seen))
		return seen;
	mine = map_build();
	if (!mine || swap_if(&map, &seen, mine))
		return mine;
	munmap(mine, MAP_SIZE * sizeof *mine);
	return seen;
}

static void *ours(void *real)
{
	struct pair *m = get_map();

	if (!m)
		return NULL; /* no memory for the map: better no function than one without a limit */
	for (uint32_t i = slot_of(real); m[i].real; i = (i + 1) & (MAP_SIZE - 1))
		if (m[i].real == real)
			return m[i].export;
	return real;
}

/* --- names that no table has -------------------------------------------------------------------------------- */

static bool known(const char *name)
{
	size_t lo = 0, hi = kerf_names_len;

	while (lo < hi) {
		size_t mid = (lo + hi) / 2;
		int c = strcmp(name, kerf_names[mid]);

		if (c == 0)
			return true;
		if (c < 0)
			hi = mid;
		else
			lo = mid + 1;
	}
	return false;
}

/* A call newer than this shim may allocate. Strict: it does not exist here. Else it is used and counted. */
static bool refuse_unknown(const char *name)
{
	if (known(name))
		return false;
	if (kerf_strict())
		return true;
	kerf_count_unknown();
	return false;
}

CUresult on_resolve(real_on_resolve real, const char *name, void **fn, int version, cuuint64_t flags)
{
	CUresult r = real(name, fn, version, flags);

	if (r || !fn || !*fn)
		return r;
	if (refuse_unknown(name)) {
		*fn = NULL;
		return CUDA_ERROR_NOT_FOUND;
	}
	*fn = ours(*fn);
	return *fn ? r : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult on_resolve_v2(real_on_resolve_v2 real, const char *name, void **fn, int version, cuuint64_t flags, CUdriverProcAddressQueryResult *status)
{
	CUresult r = real(name, fn, version, flags, status);

	if (r || !fn || !*fn)
		return r;
	if (refuse_unknown(name)) {
		*fn = NULL;
		if (status)
			*status = CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
		return status ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
	}
	*fn = ours(*fn);
	return *fn ? r : CUDA_ERROR_OUT_OF_MEMORY;
}
