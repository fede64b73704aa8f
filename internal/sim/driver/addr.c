/* addr.c: the device address space of this process.
 *
 * Two equal stretches of the process's addresses are set aside: D, which no access may touch, gives out the
 * device pointers, and S, at a fixed distance, is where the bytes are mapped for the simulator itself. So a
 * program that dereferences a device pointer faults, as on a real machine, and the simulator finds the bytes
 * by adding a constant. Managed and host memory lie outside; their device pointer is their host pointer.
 *
 * Bytes are ranges of sparse memfds: one per device, whose offsets are handed out once and punched out when
 * freed, and one of its own for what may be exported as a descriptor. Same bytes at another address is a map.
 */
#define _GNU_SOURCE
#include "sim.h"
#include "share.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SPACE ((uint64_t)8 << 40)
#define GRANULES (SPACE / GRANULE)
#define SMALL_UNITS (GRANULE / SMALL_UNIT)

struct gap { CUdeviceptr base; uint64_t span; struct gap *next; };

static CUdeviceptr space;            /* D */
static uint64_t shadow;              /* S − D */
static struct range **page;          /* by granule of D */
static struct gap *gaps;             /* free stretches, by address, never adjacent */
static struct range **host;          /* ranges outside D, by address */
static size_t host_count, host_room;

CUresult addr_init(void)
{
	/* Several copies of the library may live in one process: each takes the next free place. */
	for (uint64_t at = (uint64_t)0x20 << 40; at + 2 * SPACE <= (uint64_t)0x50 << 40; at += 2 * SPACE) {
		void *p = mmap((void *)at, 2 * SPACE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
		if (p == MAP_FAILED)
			continue;
		if ((uint64_t)p != at) { /* a kernel before 4.17 takes it for a hint */
			munmap(p, 2 * SPACE);
			continue;
		}
		madvise(p, 2 * SPACE, MADV_DONTFORK);
		madvise(p, 2 * SPACE, MADV_DONTDUMP);
		page = mmap(NULL, GRANULES * sizeof *page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		gaps = malloc(sizeof *gaps);
		if (page == MAP_FAILED || !gaps)
			return CUDA_ERROR_OUT_OF_MEMORY;
		space = at;
		shadow = SPACE;
		*gaps = (struct gap){ space, SPACE, NULL };
		return CUDA_SUCCESS;
	}
	return CUDA_ERROR_OUT_OF_MEMORY;
}

bool addr_is_device(CUdeviceptr p) { return p >= space && p - space < SPACE; }
void *addr_bytes(CUdeviceptr p) { return (void *)(addr_is_device(p) ? p + shadow : p); }

/* --- addresses --------------------------------------------------------------------------------------- */

static CUresult cut(struct gap **at, CUdeviceptr base, uint64_t span)
{
	struct gap *gp = *at;
	uint64_t before = base - gp->base, after = gp->base + gp->span - (base + span);
	if (before && after) {
		struct gap *tail = malloc(sizeof *tail);
		REQUIRE(tail, CUDA_ERROR_OUT_OF_MEMORY);
		*tail = (struct gap){ base + span, after, gp->next };
		gp->span = before;
		gp->next = tail;
	} else if (before) {
		gp->span = before;
	} else if (after) {
		gp->base = base + span;
		gp->span = after;
	} else {
		*at = gp->next;
		free(gp);
	}
	return CUDA_SUCCESS;
}

CUresult addr_reserve(uint64_t span, uint64_t align, CUdeviceptr hint, CUdeviceptr *out)
{
	if (align < GRANULE)
		align = GRANULE;
	for (int pass = hint ? 0 : 1; pass < 2; pass++)
		for (struct gap **at = &gaps; *at; at = &(*at)->next) {
			CUdeviceptr base = pass == 0 ? hint : round_up((*at)->base, align);
			if (base < (*at)->base || base - (*at)->base > (*at)->span || (*at)->span - (base - (*at)->base) < span)
				continue;
			TRY(cut(at, base, span));
			*out = base;
			return CUDA_SUCCESS;
		}
	return CUDA_ERROR_OUT_OF_MEMORY;
}

void addr_unreserve(CUdeviceptr base, uint64_t span)
{
	struct gap **at = &gaps, *prev = NULL;
	while (*at && (*at)->base < base) {
		prev = *at;
		at = &(*at)->next;
	}
	struct gap *next = *at;
	if (prev && prev->base + prev->span == base) {
		prev->span += span;
	} else {
		struct gap *fresh = malloc(sizeof *fresh);
		if (!fresh)
			return; /* the addresses are lost, nothing else */
		*fresh = (struct gap){ base, span, next };
		*at = prev = fresh;
	}
	if (next && prev->base + prev->span == next->base) {
		prev->span += next->span;
		prev->next = next->next;
		free(next);
	}
}

void addr_set(CUdeviceptr base, uint64_t span, struct range *r)
{
	for (uint64_t i = (base - space) / GRANULE, n = span / GRANULE; n--; i++)
		page[i] = r;
}

CUresult addr_map(CUdeviceptr base, uint64_t size, const struct phys *p, uint64_t offset)
{
	if (g.zero_cost)
		return CUDA_SUCCESS;
	void *at = mmap(addr_bytes(base), size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, p->fd, (off_t)(p->offset + offset));
	REQUIRE(at != MAP_FAILED, CUDA_ERROR_OPERATING_SYSTEM);
	madvise(at, size, MADV_DONTFORK);
	return CUDA_SUCCESS;
}

void addr_unmap(CUdeviceptr base, uint64_t size)
{
	if (g.zero_cost)
		return;
	void *at = mmap(addr_bytes(base), size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
	if (at != MAP_FAILED)
		madvise(at, size, MADV_DONTFORK);
}

/* --- bytes ------------------------------------------------------------------------------------------- */

/* By number: glibc has had the function since 2.27 only. */
int memory_file(const char *name) { return (int)syscall(SYS_memfd_create, name, MFD_CLOEXEC); }

static CUresult place(struct phys *p, bool own)
{
	struct simdev *d = p->dev;
	p->fd = -1;
	if (g.zero_cost)
		return CUDA_SUCCESS;
	if (own) {
		p->fd = memory_file("kerf-sim-memory");
		p->own_fd = true;
		return p->fd >= 0 ? share_mark(p->fd, d, p->size) : CUDA_ERROR_OPERATING_SYSTEM;
	}
	if (d->memfd < 0) {
		d->memfd = memory_file("kerf-sim-device");
		if (d->memfd < 0 || ftruncate(d->memfd, INT64_MAX & ~(off_t)(GRANULE - 1)) != 0)
			return CUDA_ERROR_OPERATING_SYSTEM;
	}
	p->fd = d->memfd;
	p->offset = d->memfd_end;
	d->memfd_end += round_up(p->size, GRANULE);
	return CUDA_SUCCESS;
}

struct phys *phys_new(struct simdev *d, uint64_t size, bool shareable, CUresult *err)
{
	struct phys *p = object_new(K_PHYS, sizeof *p);
	if (!p) {
		*err = CUDA_ERROR_OUT_OF_MEMORY;
		return NULL;
	}
	p->dev = d;
	p->size = round_up(size, GRANULE);
	p->shareable = shareable;
	if ((*err = charge(d, CHARGE_MEMORY, p->size)) != CUDA_SUCCESS) {
		object_free(p);
		return NULL;
	}
	p->charged = p->size;
	if ((*err = place(p, shareable)) != CUDA_SUCCESS) {
		phys_put(p);
		return NULL;
	}
	return p;
}

void phys_put(struct phys *p)
{
	if (p->refs || p->maps)
		return;
	if (p->own_fd && p->fd >= 0)
		close(p->fd);
	else if (p->fd >= 0 && !p->imported)
		fallocate(p->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)p->offset, (off_t)p->size);
	if (p->charged)
		discharge(p->dev, CHARGE_MEMORY, p->charged);
	object_free(p);
}

/* --- ranges ------------------------------------------------------------------------------------------ */

void range_link(struct range **list, struct range *r)
{
	r->next = *list;
	r->prev = list;
	if (r->next)
		r->next->prev = &r->next;
	*list = r;
}

void range_unlink(struct range *r)
{
	if (!r->prev)
		return;
	*r->prev = r->next;
	if (r->next)
		r->next->prev = r->prev;
	r->prev = NULL;
}

/* Takes over p: on failure it is put. */
struct range *range_adopt(struct simdev *d, CUcontext c, enum range_kind kind, struct phys *p, uint64_t offset, uint64_t size, CUresult *err)
{
	struct range *r = calloc(1, sizeof *r);
	p->maps++;
	if (!r) {
		*err = CUDA_ERROR_OUT_OF_MEMORY;
		goto no_range;
	}
	*r = (struct range){ .kind = kind, .size = size, .span = round_up(size, GRANULE), .id = ++g.next_id, .dev = d, .ctx = c,
	                     .phys = p, .phys_offset = offset };
	if ((*err = addr_reserve(r->span, GRANULE, 0, &r->base)) != CUDA_SUCCESS)
		goto no_address;
	if ((*err = addr_map(r->base, r->span, p, offset)) != CUDA_SUCCESS)
		goto no_map;
	addr_set(r->base, r->span, r);
	if (c)
		range_link(&c->ranges, r);
	return r;
no_map:
	addr_unreserve(r->base, r->span);
no_address:
	free(r);
no_range:
	p->maps--;
	phys_put(p);
	return NULL;
}

struct range *range_new(struct simdev *d, CUcontext c, enum range_kind kind, uint64_t size, CUresult *err)
{
	struct phys *p = phys_new(d, size, false, err);
	return p ? range_adopt(d, c, kind, p, 0, size, err) : NULL;
}

void range_free(struct range *r)
{
	range_unlink(r);
	addr_set(r->base, r->span, NULL);
	addr_unmap(r->base, r->span);
	addr_unreserve(r->base, r->span);
	r->phys->maps--;
	phys_put(r->phys);
	free(r->block);
	free(r);
}

/* --- small allocations ------------------------------------------------------------------------------- */

struct block {
	unsigned free_units;
	unsigned hint;                  /* no free unit lies below it */
	uint16_t length[SMALL_UNITS];   /* in units at the first unit of an allocation; 0 elsewhere */
	uint32_t size[SMALL_UNITS];     /* as asked for, likewise */
	uint8_t taken[SMALL_UNITS];
};

static struct block *spare_block; /* a program with one small allocation at a time should not pay for a page table each time */

static struct block *block_new(void)
{
	struct block *b = spare_block ? spare_block : calloc(1, sizeof *b);
	spare_block = NULL;
	if (b)
		b->free_units = SMALL_UNITS;
	return b;
}

/* An empty one is as good as new: everything in it is zero again but where its search begins. */
static void block_free(struct range *r)
{
	if (r->block->free_units == SMALL_UNITS && !spare_block) {
		r->block->hint = 0;
		spare_block = r->block;
		r->block = NULL;
	}
	range_free(r);
}

static bool fit(struct block *b, unsigned units, unsigned *out)
{
	unsigned run = 0;
	if (b->free_units < units)
		return false;
	while (b->hint < SMALL_UNITS && b->taken[b->hint])
		b->hint++;
	for (unsigned i = b->hint; i < SMALL_UNITS; i++) {
		run = b->taken[i] ? 0 : run + 1;
		if (run == units) {
			*out = i + 1 - units;
			return true;
		}
	}
	return false;
}

CUresult small_alloc(CUcontext c, uint64_t size, CUdeviceptr *out)
{
	unsigned units = (unsigned)((size + SMALL_UNIT - 1) / SMALL_UNIT), at = 0;
	CUresult err;
	struct range *r;
	for (r = c->blocks; r && !fit(r->block, units, &at); r = r->next)
		;
	if (!r) {
		r = range_new(c->dev, NULL, R_BLOCK, GRANULE, &err);
		if (!r)
			return err;
		r->ctx = c;
		r->block = block_new();
		if (!r->block) {
			range_free(r);
			return CUDA_ERROR_OUT_OF_MEMORY;
		}
		range_link(&c->blocks, r);
		at = 0;
	}
	struct block *b = r->block;
	b->length[at] = (uint16_t)units;
	b->size[at] = (uint32_t)size;
	b->free_units -= units;
	memset(b->taken + at, 1, units);
	*out = r->base + (uint64_t)at * SMALL_UNIT;
	return CUDA_SUCCESS;
}

CUresult small_free(struct range *r, CUdeviceptr p)
{
	struct block *b = r->block;
	unsigned at = (unsigned)((p - r->base) / SMALL_UNIT);
	REQUIRE((p - r->base) % SMALL_UNIT == 0 && b->length[at], CUDA_ERROR_INVALID_VALUE);
	memset(b->taken + at, 0, b->length[at]);
	b->free_units += b->length[at];
	b->length[at] = 0;
	if (at < b->hint)
		b->hint = at;
	if (b->free_units == SMALL_UNITS)
		block_free(r);
	return CUDA_SUCCESS;
}

static bool find_small(struct range *r, CUdeviceptr p, struct span *out)
{
	const struct block *b = r->block;
	for (unsigned at = (unsigned)((p - r->base) / SMALL_UNIT) + 1; at-- > 0;) {
		if (!b->taken[at])
			return false;
		if (!b->length[at])
			continue;
		CUdeviceptr base = r->base + (uint64_t)at * SMALL_UNIT;
		*out = (struct span){ r, base, b->size[at], r->id << 12 | at };
		return p - base < b->size[at];
	}
	return false;
}

/* --- finding ----------------------------------------------------------------------------------------- */

static size_t host_index(CUdeviceptr p)
{
	size_t lo = 0, hi = host_count;
	while (lo < hi) {
		size_t mid = (lo + hi) / 2;
		if (host[mid]->base <= p)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

void host_add(struct range *r)
{
	if (host_count == host_room) {
		size_t room = host_room ? 2 * host_room : 64;
		struct range **more = realloc(host, room * sizeof *host);
		if (!more)
			abort(); /* no host memory for a pointer: nothing sensible is left to do */
		host = more;
		host_room = room;
	}
	size_t i = host_index(r->base);
	memmove(host + i + 1, host + i, (host_count - i) * sizeof *host);
	host[i] = r;
	host_count++;
}

void host_remove(struct range *r)
{
	size_t i = host_index(r->base) - 1;
	memmove(host + i, host + i + 1, (host_count - i - 1) * sizeof *host);
	host_count--;
}

bool host_find(CUdeviceptr p, struct span *out)
{
	size_t i = host_index(p);
	if (i == 0 || p - host[i - 1]->base >= host[i - 1]->size)
		return false;
	*out = (struct span){ host[i - 1], host[i - 1]->base, host[i - 1]->size, host[i - 1]->id };
	return true;
}

struct range *addr_range(CUdeviceptr p) { return addr_is_device(p) ? page[(p - space) / GRANULE] : NULL; }

bool addr_find(CUdeviceptr p, struct span *out)
{
	if (!addr_is_device(p))
		return host_find(p, out);
	struct range *r = page[(p - space) / GRANULE];
	if (!r)
		return false;
	if (r->kind == R_BLOCK)
		return find_small(r, p, out);
	if (r->kind == R_POOL)
		return pool_find(r, p, out);
	*out = (struct span){ r, r->base, r->size, r->id };
	return p - r->base < r->size;
}

/* A run of addresses may cross mappings that lie side by side, as it may on a GPU. */
bool addr_accessible(const struct simdev *d, CUdeviceptr p, uint64_t n, bool write)
{
	while (n) {
		struct span s;
		if (!addr_find(p, &s) || s.range->kind == R_RESERVED)
			return false;
		if (s.range->kind == R_MAP && d && !((write ? s.range->writable : s.range->readable) >> d->ordinal & 1))
			return false;
		uint64_t here = s.base + s.size - p;
		if (here >= n)
			return true;
		p += here;
		n -= here;
	}
	return true;
}

/* Work comes to its memory later than it was submitted: it may be unmapped by then, or graph memory not yet there. */
bool addr_backed(CUdeviceptr p, uint64_t n)
{
	if (!addr_is_device(p))
		return true;
	pthread_mutex_lock(&g.lock);
	struct range *r = NULL;
	for (CUdeviceptr q = p; q < p + n; q = r->base + r->span) {
		r = addr_range(q);
		if (!r || r->kind == R_RESERVED || !r->phys)
			break;
	}
	bool ok = r && r->kind != R_RESERVED && r->phys;
	pthread_mutex_unlock(&g.lock);
	return ok;
}
