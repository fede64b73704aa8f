/* swap_host.c: the pool of page-locked host memory that swapped bytes lie in.
 *
 * Regions are mapped as they are needed: of 2 MiB pages where the system has some set aside (few entries for the card's
 * address translation, and page-locking them is quick), else of whatever the kernel makes of MADV_HUGEPAGE; or they are a file
 * that kerfd gave. A region is page-locked once, on its first use, by the context that moves then, for all contexts. It
 * is unlocked when that context ends and locked again by the next: the bytes stay.
 *
 * Memory of the process itself counts against its container's memory limit: a region that is mapped may be more
 * than the limit allows once its pages are touched, and the kernel then kills. So kerfd gives files whose pages are there
 * already, on its own account, and sets host_limit to next to nothing.
 */
#define _GNU_SOURCE
#include "swap.h"

#include <sys/mman.h>

#ifndef MAP_HUGE_2MB
#define MAP_HUGE_2MB (21 << 26)
#endif

#define REGION      (256 * MIB)
#define MAX_REGIONS 1024
#define UNITS_MAX   65536u /* of PIECE: 128 GiB in one region */

struct host_region {
	char *at;
	uint64_t bytes, used;
	CUcontext locked_by;   /* NULL: not page-locked */
	uint64_t refused;      /* the move at which page-locking failed: its copies are slower, and right; the next one tries again */
	uint8_t *taken;        /* by unit of PIECE */
	uint32_t hint;
};

static struct host_region *regions[MAX_REGIONS]; /* NULL: free entry */
static uint64_t total;
static uint64_t move;      /* their count */

static struct host_region *add(char *at, uint64_t bytes)
{
	size_t n = sizeof(struct host_region) + bytes / PIECE;
	struct host_region *r;
	int i = 0;

	while (i < MAX_REGIONS && regions[i])
		i++;
	if (i == MAX_REGIONS)
		return NULL;
	r = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (r == MAP_FAILED)
		return NULL;
	*r = (struct host_region){ .at = at, .bytes = bytes, .taken = (uint8_t *)(r + 1) };
	madvise(at, bytes, MADV_DONTFORK); /* the card writes to these pages: a child must not get copies of them */
	madvise(at, bytes, MADV_DONTDUMP);
	regions[i] = r;
	total += bytes;
	return r;
}

static void drop(int i)
{
	struct host_region *r = regions[i];

	if (r->locked_by)
		REAL(cuMemHostUnregister)(r->at);
	total -= r->bytes;
	munmap(r->at, r->bytes);
	munmap(r, sizeof *r + r->bytes / PIECE);
	regions[i] = NULL;
}

/* Address space aligned to a huge page, or the kernel makes none of it. */
static char *map_aligned(uint64_t bytes)
{
	char *at = mmap(NULL, bytes + PIECE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	uint64_t before;

	if (at == MAP_FAILED)
		return NULL;
	before = -(uintptr_t)at & (PIECE - 1);
	if (before)
		munmap(at, before);
	munmap(at + before + bytes, PIECE - before);
	madvise(at + before, bytes, MADV_HUGEPAGE);
	return at + before;
}

static struct host_region *grow(uint64_t bytes, uint64_t limit)
{
	uint64_t want = bytes > REGION ? bytes : REGION;
	struct host_region *r;
	char *at;

	if (limit && (total > limit || bytes > limit - total))
		return NULL;
	if (limit && want > limit - total)
		want = (limit - total) & ~(PIECE - 1);
	if (want < bytes || want / PIECE > UNITS_MAX)
		return NULL;
	at = mmap(NULL, want, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_HUGE_2MB, -1, 0);
	if (at == MAP_FAILED && (at = map_aligned(want)) == NULL)
		return NULL;
	r = add(at, want);
	if (!r)
		munmap(at, want);
	return r;
}

static bool fit(struct host_region *r, uint32_t units, uint32_t *out)
{
	uint32_t n = (uint32_t)(r->bytes / PIECE), run = 0;

	while (r->hint < n && r->taken[r->hint])
		r->hint++;
	for (uint32_t i = r->hint; i < n; i++) {
		run = r->taken[i] ? 0 : run + 1;
		if (run == units) {
			*out = i + 1 - units;
			return true;
		}
	}
	return false;
}

bool host_take(uint64_t bytes, uint64_t limit, struct host_run *out)
{
	uint32_t units = (uint32_t)(bytes / PIECE), at = 0;
	struct host_region *r = NULL;

	if (bytes / PIECE > UNITS_MAX)
		return false;
	for (int i = 0; i < MAX_REGIONS && !r; i++)
		if (regions[i] && regions[i]->bytes - regions[i]->used >= bytes && fit(regions[i], units, &at))
			r = regions[i];
	if (!r && !((r = grow(bytes, limit)) && fit(r, units, &at)))
		return false;
	for (uint32_t i = at; i < at + units; i++)
		r->taken[i] = 1;
	r->used += bytes;
	*out = (struct host_run){ r, r->at + at * PIECE };
	return true;
}

void host_put(struct host_run *run, uint64_t bytes)
{
	struct host_region *r = run->region;
	uint32_t at;

	if (!r)
		return;
	at = (uint32_t)(((char *)run->at - r->at) / (ptrdiff_t)PIECE);
	for (uint32_t i = at; i < at + bytes / PIECE; i++)
		r->taken[i] = 0;
	if (at < r->hint)
		r->hint = at;
	r->used -= bytes;
	*run = (struct host_run){ NULL, NULL };
}

void host_pin(const struct host_run *run, CUcontext ctx)
{
	struct host_region *r = run->region;

	if (r->locked_by || r->refused == move)
		return;
	if (STEP(REAL(cuMemHostRegister_v2)(r->at, r->bytes, CU_MEMHOSTREGISTER_PORTABLE)))
		r->refused = move;
	else
		r->locked_by = ctx;
}

void host_pin_all(CUcontext ctx)
{
	for (int i = 0; i < MAX_REGIONS; i++)
		if (regions[i])
			host_pin(&(struct host_run){ regions[i], regions[i]->at }, ctx);
}

/* The context is current nowhere that counts: unregistering works by address. */
void host_context_ends(CUcontext ctx)
{
	CUcontext popped;
	bool pushed = false;

	for (int i = 0; i < MAX_REGIONS; i++) {
		if (!regions[i] || regions[i]->locked_by != ctx)
			continue;
		if (!pushed && REAL(cuCtxPushCurrent_v2)(ctx))
			return;
		pushed = true;
		REAL(cuMemHostUnregister)(regions[i]->at);
		regions[i]->locked_by = NULL;
	}
	if (pushed)
		REAL(cuCtxPopCurrent_v2)(&popped);
}

uint64_t host_bytes(void)
{
	return total;
}

void host_move_begins(void)
{
	move++;
}

uint64_t host_locked(void)
{
	uint64_t bytes = 0;

	for (int i = 0; i < MAX_REGIONS; i++)
		bytes += regions[i] && regions[i]->locked_by ? regions[i]->bytes : 0;
	return bytes;
}

bool kerf_host_give(int fd, uint64_t bytes)
{
	char *at;
	bool ok;

	bytes &= ~(PIECE - 1);
	if (!bytes || bytes / PIECE > UNITS_MAX)
		return false;
	at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (at == MAP_FAILED)
		return false;
	lock(&swap_lock);
	ok = add(at, bytes) != NULL;
	unlock(&swap_lock);
	if (!ok)
		munmap(at, bytes);
	return ok;
}

void kerf_host_trim(void)
{
	CUcontext popped;

	lock(&swap_lock);
	for (int i = 0; i < MAX_REGIONS; i++) {
		CUcontext by;

		if (!regions[i] || regions[i]->used)
			continue;
		by = regions[i]->locked_by;
		if (by && REAL(cuCtxPushCurrent_v2)(by))
			continue;
		drop(i);
		if (by)
			REAL(cuCtxPopCurrent_v2)(&popped);
	}
	unlock(&swap_lock);
}
