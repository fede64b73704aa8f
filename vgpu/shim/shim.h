/* shim.h: what the parts of the CUDA shim know of each other.
 *
 *   intercept.c  the real driver's symbols, the resolver          (calls no part but session)
 *   session.c    attach to the shares at cuInit                   share.c  the pages
 *   visible.c    which GPUs the driver shows
 *   account.c    charge and discharge                             books.c  what this process holds
 *   mem.c pool.c vmm.c array.c graph.c context.c import.c         one class of allocation each
 *   info.c       what a tenant is told                            gate.c   whether it may submit work
 *   lane.c keeper.c   GPU time by turns: the streams to drain, the words with kerfd (lease.h)
 *   swap*.c      linear memory of over-committed shares, which can leave the card (swap.h)
 *
 * Every handler is called by a generated export (hooks.gen.c) that has passed the recursion guard. Lock order:
 * a class's own lock, then a shard of the books, then share.lock; a class takes another's lock only by trylock
 * (kerf_reclaim). swap_lock is a class's own. No lock is held across a call that can run the tenant's code; share.lock and the books' locks
 * are held across no call at all.
 */
#ifndef KERF_SHIM_H
#define KERF_SHIM_H

#include "../../internal/cuda/cuabi.h"
#include "prim.h"
#include "share.h"

#define MIB (1024ull * 1024)

/* --- devices ------------------------------------------------------------------------------------------ */

/* One GPU that this process sees, by CUDA ordinal. */
struct device {
	struct share *share;
	unsigned index;  /* in the share's pages */
	int ordinal;
	uint64_t own;    /* bytes this process has charged: the truth that its slot is compared with; under share.lock */
	uint64_t fixed;  /* of them those that cannot leave the card, but for contexts; under share.lock */
};

struct device *kerf_device(CUdevice ordinal); /* NULL: none such */
struct device *kerf_current_device(CUresult *why); /* of the current context; NULL with the real driver's error */
int kerf_device_count(void);

/* --- session ------------------------------------------------------------------------------------------ */

bool kerf_live(void);             /* this process, not its parent, is attached */
CUresult kerf_not_live(void);     /* what an allocating call returns when it is not */
bool kerf_strict(void);
void kerf_count_unknown(void);    /* a call that may allocate and that no table knows */

/* --- accounts ----------------------------------------------------------------------------------------- */

CUresult kerf_charge(struct device *d, uint64_t bytes);        /* fails closed: CUDA_ERROR_OUT_OF_MEMORY */
CUresult kerf_charge_apart(struct device *d, uint64_t bytes);  /* of what is not held to fixed_limit: memory that can be moved, contexts */
void kerf_discharge_apart(struct device *d, uint64_t bytes);
void kerf_charge_anyway(struct device *d, uint64_t bytes);     /* memory that the driver took already */
void kerf_discharge(struct device *d, uint64_t bytes);
CUresult kerf_recharge(struct device *d, uint64_t from, uint64_t to); /* fails with `from` still charged */
uint64_t kerf_room(struct device *d);                          /* bytes left under the limit */
bool kerf_measure(struct device *d);                           /* after a context of unknown price was made; false: over the limit */
void kerf_add_host_pinned(int64_t bytes);
void kerf_add_imported(struct device *d, int64_t bytes);

/* What the driver takes for a linear allocation: pages of 2 MiB from 1 MiB on, else 512 bytes of a shared page. */
static inline uint64_t kerf_physical(uint64_t bytes)
{
	uint64_t unit = bytes >= MIB ? 2 * MIB : 512;
	return bytes > UINT64_MAX - unit ? UINT64_MAX / 2 : (bytes + unit - 1) & ~(unit - 1);
}

static inline uint64_t kerf_pages(uint64_t bytes)
{
	return bytes > UINT64_MAX / 2 ? UINT64_MAX / 2 : (bytes + 2 * MIB - 1) & ~(2 * MIB - 1);
}

/* --- books -------------------------------------------------------------------------------------------- */

enum book_kind {
	BOOK_NONE, BOOK_LINEAR, BOOK_ASYNC, BOOK_HOST, BOOK_HANDLE, BOOK_MAPPING, BOOK_ARRAY, BOOK_MIPMAP, BOOK_CONTEXT,
	BOOK_IPC, BOOK_EXTERNAL, BOOK_EXEC, BOOK_HELD
};

struct book {
	uint64_t key;
	enum book_kind kind;
	int ordinal;
	uint64_t bytes;   /* charged for it */
	uint64_t extra;   /* the class's own: a pointer or a count */
	uint64_t context; /* or array, or multicast object, that it dies with; 0: outlives them */
};

bool book_put(const struct book *b);                                  /* false: no memory for the entry */
bool book_take(enum book_kind kind, uint64_t key, struct book *out);  /* finds and removes */
bool book_get(enum book_kind kind, uint64_t key, struct book *out);
void book_sweep(uint64_t context, void (*gone)(const struct book *)); /* removes what dies with a context */
void book_rename(uint64_t from, uint64_t to);                         /* what dies with a context, dies with another */
uint64_t kerf_current_context(void);

/* --- the classes, towards each other -------------------------------------------------------------------- */

void kerf_pools_refresh(void);                /* after anything that may have given pool memory back */
void kerf_graphs_refresh(void);               /* the same for graphs' memory */
void kerf_note_graph_memory(void);            /* a memory node exists: graph launches are looked at from now on */
void kerf_reclaim(struct device *d);          /* give unused pool and graph memory back to the driver: before refusing */
void kerf_pools_trim(struct device *d);
void kerf_graphs_trim(struct device *d);

void kerf_holder_gone(uint64_t holder);       /* an array or multicast object that memory was mapped into */

/* Frees that meet a pointer of another class than theirs. */
CUresult kerf_async_freed(struct book *b, CUresult result);

#include "hooks.gen.h"

#endif
