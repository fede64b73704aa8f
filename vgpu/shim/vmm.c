/* vmm.c: cuMemCreate and its handles. Physical memory is charged when it is made and discharged when nothing
 * refers to it any more: its handle's references and its mappings are counted here as the driver counts them.
 *
 * Memory imported from another process is charged there. Memory that this process exported and imports again is
 * its own: the driver gives it a new handle, which must keep the old charge alive, or export, import, release
 * would be a way round the limit. The two cannot be told apart by the handle, so an import while an export of
 * ours is alive counts as a reference to each of those exports.
 */
#define _GNU_SOURCE
#include "swap.h"

#include <sys/mman.h>

struct chunk {
	struct device *device; /* NULL: host memory */
	uint64_t bytes;
	uint32_t handles;      /* references held by handles */
	uint32_t maps;         /* mappings, and arrays that it was mapped into */
	bool imported, exported, pins; /* pins: an import that keeps exports of ours charged */
	struct chunk *next;    /* in the list of exported or of free ones */
};

static struct lock vmm_lock;  /* guards every chunk, and the entries of handles and mappings */
static struct chunk *spare, *exports;
static uint64_t pinned_by_imports; /* imports alive while an export of ours was */

static struct chunk *new_chunk(void)
{
	struct chunk *c;

	if (!spare) {
		c = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (c == MAP_FAILED)
			return NULL;
		for (size_t i = 0; i < 65536 / sizeof *c; i++) {
			c[i].next = spare;
			spare = &c[i];
		}
	}
	c = spare;
	spare = c->next;
	*c = (struct chunk){ .handles = 1 };
	return c;
}

static void unexport(struct chunk *c)
{
	for (struct chunk **at = &exports; *at; at = &(*at)->next)
		if (*at == c) {
			*at = c->next;
			return;
		}
}

static void import_gone(void);

/* With vmm_lock held. */
static void drop(struct chunk *c)
{
	bool pins;

	if (c->handles || c->maps || (c->exported && pinned_by_imports))
		return;
	if (c->exported)
		unexport(c);
	if (c->imported)
		kerf_add_imported(c->device, -(int64_t)c->bytes);
	else if (c->device)
		kerf_discharge(c->device, c->bytes);
	else
		kerf_add_host_pinned(-(int64_t)c->bytes);
	pins = c->pins;
	c->next = spare;
	spare = c;
	if (pins)
		import_gone();
}

static void import_gone(void)
{
	struct chunk *c, *next;

	if (--pinned_by_imports)
		return;
	for (c = exports; c; c = next) {
		next = c->next;
		drop(c);
	}
}

static bool set(enum book_kind kind, uint64_t key, struct chunk *c, uint64_t bytes)
{
	struct book b = { .key = key, .kind = kind, .bytes = bytes, .extra = (uintptr_t)c };

	return book_put(&b);
}

static struct chunk *get(enum book_kind kind, uint64_t key)
{
	struct book b;

	return book_get(kind, key, &b) ? (struct chunk *)(uintptr_t)b.extra : NULL;
}

/* Enters a new handle of memory that is charged, or counted, already. */
static CUresult enter(CUmemGenericAllocationHandle handle, struct chunk proto)
{
	struct chunk *c;
	bool ok;

	lock(&vmm_lock);
	c = new_chunk();
	ok = c && set(BOOK_HANDLE, handle, c, proto.bytes);
	if (ok) {
		proto.handles = 1;
		*c = proto;
		c->pins = c->imported && exports;
		pinned_by_imports += c->pins;
	} else if (c) {
		c->next = spare;
		spare = c;
	}
	unlock(&vmm_lock);
	return ok ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult on_mem_create(real_on_mem_create real, CUmemGenericAllocationHandle *handle, size_t n, const CUmemAllocationProp *prop, unsigned long long flags)
{
	bool on_device = prop && prop->location.type == CU_MEM_LOCATION_TYPE_DEVICE;
	struct chunk c = { .device = on_device ? kerf_device(prop->location.id) : NULL, .bytes = kerf_pages(n) };
	CUresult r;

	if (!handle || !prop || (on_device && !c.device))
		return real(handle, n, prop, flags);
	if (on_device && (r = kerf_charge(c.device, c.bytes)))
		return r;
	r = real(handle, n, prop, flags);
	if (r == CUDA_SUCCESS && (r = enter(*handle, c)))
		REAL(cuMemRelease)(*handle);
	if (r && on_device)
		kerf_discharge(c.device, c.bytes);
	else if (r == CUDA_SUCCESS && !on_device)
		kerf_add_host_pinned((int64_t)c.bytes);
	return r;
}

CUresult on_mem_release(real_on_mem_release real, CUmemGenericAllocationHandle handle)
{
	struct chunk *c;
	struct book b;
	CUresult r;

	/* The lock is held across the driver's call: the handle's number may be another thread's right after it. */
	lock(&vmm_lock);
	r = real(handle);
	c = r ? NULL : get(BOOK_HANDLE, handle);
	if (c && --c->handles == 0)
		book_take(BOOK_HANDLE, handle, &b);
	if (c)
		drop(c);
	unlock(&vmm_lock);
	if (r == CUDA_SUCCESS && !c) /* a multicast object */
		kerf_holder_gone(handle);
	return r;
}

/* The memory mapped at an address, which may lie within a mapping. */
static struct chunk *mapped_at(CUdeviceptr p)
{
	struct chunk *c = get(BOOK_MAPPING, p);
	CUdeviceptr base;
	size_t n;

	return c || REAL(cuMemGetAddressRange_v2)(&base, &n, p) ? c : get(BOOK_MAPPING, base);
}

CUresult on_mem_retain(real_on_mem_retain real, CUmemGenericAllocationHandle *handle, void *p)
{
	struct chunk *c, *mapped;
	CUresult r;

	if (kerf_swap_owns((uintptr_t)p)) /* to its tenant it is cuMemAlloc's, which has no handle */
		return CUDA_ERROR_INVALID_VALUE;
	lock(&vmm_lock);
	r = real(handle, p);
	if (r == CUDA_SUCCESS) {
		c = get(BOOK_HANDLE, *handle);
		mapped = c ? c : mapped_at((uintptr_t)p);
		if (mapped && (c || set(BOOK_HANDLE, *handle, mapped, mapped->bytes)))
			mapped->handles++;
	}
	unlock(&vmm_lock);
	return r;
}

CUresult on_mem_map(real_on_mem_map real, CUdeviceptr p, size_t n, size_t offset, CUmemGenericAllocationHandle handle, unsigned long long flags)
{
	struct chunk *c;
	CUresult r;

	lock(&vmm_lock);
	c = get(BOOK_HANDLE, handle);
	r = real(p, n, offset, handle, flags);
	if (r == CUDA_SUCCESS && c) {
		if (set(BOOK_MAPPING, p, c, n)) {
			c->maps++;
			if (c->imported && !c->bytes) {
				c->bytes = n;
				kerf_add_imported(c->device, (int64_t)n);
			}
		} else {
			REAL(cuMemUnmap)(p, n);
			r = CUDA_ERROR_OUT_OF_MEMORY;
		}
	}
	unlock(&vmm_lock);
	return r;
}

/* The driver unmaps whole mappings only, so those of the range lie end to end. */
CUresult on_mem_unmap(real_on_mem_unmap real, CUdeviceptr p, size_t n)
{
	struct book b;
	CUresult r;

	if (kerf_swap_owns(p))
		return CUDA_ERROR_INVALID_VALUE;
	lock(&vmm_lock);
	r = real(p, n);
	for (CUdeviceptr at = p; r == CUDA_SUCCESS && at < p + n; at += b.bytes) {
		struct chunk *c;

		if (!book_take(BOOK_MAPPING, at, &b) || !b.bytes)
			break;
		c = (struct chunk *)(uintptr_t)b.extra;
		c->maps--;
		drop(c);
	}
	unlock(&vmm_lock);
	return r;
}

CUresult on_mem_export(real_on_mem_export real, void *out, CUmemGenericAllocationHandle handle, CUmemAllocationHandleType type, unsigned long long flags)
{
	struct chunk *c;
	CUresult r = real(out, handle, type, flags);

	if (r)
		return r;
	lock(&vmm_lock);
	c = get(BOOK_HANDLE, handle);
	if (c && !c->imported && !c->exported) {
		c->exported = true;
		c->next = exports;
		exports = c;
	}
	unlock(&vmm_lock);
	return r;
}

/* An import's size cannot be asked for: it is counted when it is mapped. */
CUresult on_mem_import(real_on_mem_import real, CUmemGenericAllocationHandle *handle, void *in, CUmemAllocationHandleType type)
{
	struct chunk c = { .imported = true, .device = kerf_device(0) }, *have;
	CUmemAllocationProp prop;
	CUresult r = real(handle, in, type);

	if (r)
		return r;
	lock(&vmm_lock);
	have = get(BOOK_HANDLE, *handle);
	if (have)
		have->handles++;
	unlock(&vmm_lock);
	if (have)
		return r;
	if (!REAL(cuMemGetAllocationPropertiesFromHandle)(&prop, *handle) && prop.location.type == CU_MEM_LOCATION_TYPE_DEVICE && kerf_device(prop.location.id))
		c.device = kerf_device(prop.location.id);
	r = enter(*handle, c);
	if (r)
		REAL(cuMemRelease)(*handle);
	return r;
}

/* --- what else holds memory: sparse arrays and multicast objects --------------------------------------------- */

/* Memory mapped into an array or bound to a multicast object stays taken after its handle is released. It counts
 * until the holder goes: an unmap or unbind names a range, not the memory, and which of several it frees is not
 * followed. Charged too long, never too short. */
static uint64_t holds;

static void hold(uint64_t holder, struct chunk *c)
{
	struct book b = { .key = ++holds, .kind = BOOK_HELD, .context = holder, .extra = (uintptr_t)c };

	if (c && book_put(&b)) /* no memory for the entry: counts as long as its handle or mapping, as it would natively */
		c->maps++;
}

static void let_go(const struct book *b)
{
	struct chunk *c = (struct chunk *)(uintptr_t)b->extra;

	if (b->kind != BOOK_HELD)
		return;
	lock(&vmm_lock);
	c->maps--;
	drop(c);
	unlock(&vmm_lock);
}

void kerf_holder_gone(uint64_t holder)
{
	if (load_relaxed(&holds))
		book_sweep(holder, let_go);
}

CUresult on_map_array(real_on_map_array real, CUarrayMapInfo *list, unsigned int count, CUstream stream)
{
	CUresult r;

	lock(&vmm_lock);
	r = real(list, count, stream);
	for (unsigned int i = 0; r == CUDA_SUCCESS && i < count; i++)
		if (list[i].memOperationType == CU_MEM_OPERATION_TYPE_MAP)
			hold((uintptr_t)list[i].resource.array, get(BOOK_HANDLE, list[i].memHandle.memHandle));
	unlock(&vmm_lock);
	return r;
}

CUresult on_bind_mem(real_on_bind_mem real, CUmemGenericAllocationHandle group, size_t at, CUmemGenericAllocationHandle handle, size_t offset, size_t n, unsigned long long flags)
{
	CUresult r;

	lock(&vmm_lock);
	r = real(group, at, handle, offset, n, flags);
	if (r == CUDA_SUCCESS)
		hold(group, get(BOOK_HANDLE, handle));
	unlock(&vmm_lock);
	return r;
}

CUresult on_bind_mem_v2(real_on_bind_mem_v2 real, CUmemGenericAllocationHandle group, CUdevice dev, size_t at, CUmemGenericAllocationHandle handle, size_t offset, size_t n, unsigned long long flags)
{
	CUresult r;

	lock(&vmm_lock);
	r = real(group, dev, at, handle, offset, n, flags);
	if (r == CUDA_SUCCESS)
		hold(group, get(BOOK_HANDLE, handle));
	unlock(&vmm_lock);
	return r;
}

CUresult on_bind_addr(real_on_bind_addr real, CUmemGenericAllocationHandle group, size_t at, CUdeviceptr p, size_t n, unsigned long long flags)
{
	CUresult r;

	if (kerf_swap_owns(p))
		return CUDA_ERROR_INVALID_VALUE;
	lock(&vmm_lock);
	r = real(group, at, p, n, flags);
	if (r == CUDA_SUCCESS)
		hold(group, mapped_at(p));
	unlock(&vmm_lock);
	return r;
}

CUresult on_bind_addr_v2(real_on_bind_addr_v2 real, CUmemGenericAllocationHandle group, CUdevice dev, size_t at, CUdeviceptr p, size_t n, unsigned long long flags)
{
	CUresult r;

	if (kerf_swap_owns(p))
		return CUDA_ERROR_INVALID_VALUE;
	lock(&vmm_lock);
	r = real(group, dev, at, p, n, flags);
	if (r == CUDA_SUCCESS)
		hold(group, mapped_at(p));
	unlock(&vmm_lock);
	return r;
}
