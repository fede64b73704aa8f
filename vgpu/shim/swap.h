/* swap.h: memory of over-committed shares, which can leave the card and come back at the same address.
 *
 * In a share with KERF_POLICY_OVERCOMMIT, cuMemAlloc and cuMemAllocPitch are served from CUDA's virtual memory: an *area* is
 * one reserved range of addresses for as long as the allocation lives, and *pieces* of physical memory (multiples of 2 MiB) are
 * mapped into it and unmapped. Allocations under 1 MiB share areas of one piece (slabs), cut in granules of 512 bytes. A
 * piece is fresh (it has no bytes yet), resident, or out (its bytes are in the host pool). Nothing else of a tenant
 * moves, and all of it counts as charged: contexts, pools (cuMemAllocAsync), graphs' memory, arrays, imports, the
 * tenant's own cuMemCreate, 32-bit pointers. Managed memory is the driver's to move.
 *
 *   swap.c       out, in, and the questions of the books    swap_area.c  areas, pieces     swap_alloc.c  allocation and free
 *   swap_host.c  the pool of page-locked host memory        swap_info.c  what a pointer is, since the driver would say it wrong
 *
 * What whoever drives this must do (swap_lease.c and keeper.c do, by order of kerfd)
 *
 *   Thread.    kerf_swap_out and kerf_swap_in may be called on any thread of the process (the keeper), without a context; they
 *              block until the bytes have moved. One of them runs at a time, and meanwhile cuMemAlloc and cuMemFree of
 *              the tenant wait for it. For several GPUs at once, they take turns: the PCIe link of each is idle then.
 *   Gate.      Out: the share's gate is shut, no thread is between the gate and the driver's call that it guards, and all
 *              work that was submitted has ended; so from before the call until the matching in has returned. The second
 *              does not follow from the first: a launch reads the gate, then submits. A gate that is SHARED counts who is inside
 *              (keeper.inside), one that is OPEN counts nobody: while anything of a share may be out, its word is SHARED or
 *              SHUT. And a shut gate stays shut while kerfd is away (keeper.away must not let past it), or all is brought
 *              in first. Work that meets a piece which is out is an illegal address, and ends the context. In: the gate is
 *              shut, and opens after. A tenant runs with all of its memory or not at all.
 *              What passes the gate at any time, or knows no gate, must not need the bytes: a capture notes addresses down, and
 *              so does the making of a graph's nodes; but the real driver may ask what a copy's or a memset's address is, and
 *              an address whose memory is out is not mapped. Such calls should wait until the memory is in.
 *   Order.     Evict(bytes) → kerf_swap_out, BringIn(bytes) → kerf_swap_in. `moved` counts whole pieces: it can be less than
 *              was asked for (min_resident, pinned areas, an error, no host memory) and, out, more by less than one
 *              piece. changed() of the arbiter, if it is set, tells where memory is after every change and every piece that
 *              has moved, so that another process's in can begin while this out goes on; swap_lock is held then: it
 *              must neither wait nor call anything here.
 *   Ahead.     Page-locking host memory takes longer than a copy to it. kerf_host_pin locks what kerfd gave; what cannot be locked
 *              is tried again at the next move.
 *   Asking.    With kerf_swap_arbiter set, ask() is called before an allocation is made and on its thread, with no lock held; its
 *              pieces are there, and fresh: say so, wait until BringIn has come and kerf_swap_whole(d), return success: two
 *              threads may ask at once, and the first answer need not be for the first asker. CUDA_ERROR_OUT_OF_MEMORY on
 *              Refuse. Bytes are those of whole pieces, not those charged. Without an arbiter an allocation takes what
 *              the card has free. swap_lease.c does all this.
 *   Errors.    Whatever is returned, every byte is right and every piece is whole, on one side or the other. An out that finds
 *              host memory for a part (host_limit, or no more to be had) moves that; for none, it is out of memory. A copy that failed leaves its piece where it was.
 *   Death.     Nothing to do: the host pool is this process's memory, and the driver takes back the rest.
 *   Captures.  Both calls are safe while a stream is being captured: they use streams of their own that block with no other, under
 *              CU_STREAM_CAPTURE_MODE_RELAXED. Closing the gate never completes a capture, so do not wait for one.
 *
 * The order of eviction within a process is least recently brought in first, large allocations before slabs: which memory a
 * kernel touches is not known, and since a tenant runs only with all of it, the order changes no traffic. Clean pieces are
 * copied out like others: what a kernel wrote is not known either.
 *
 * A piece's place in the host pool is overwritten from end to end before it is read, so it needs no zeroing within the process; a
 * file of kerfd's that goes to another share must be zeroed by kerfd.
 *
 * Lock order: swap_lock, then share.lock. swap_lock is held across calls of the driver that run nothing of the tenant's: it
 * makes, maps, copies and frees what the tenant's work does not use. Waiting for that work is done without it.
 */
#ifndef KERF_SWAP_H
#define KERF_SWAP_H

#include "shim.h"

#define PIECE       (2 * MIB)   /* physical memory is in multiples of this */
#ifndef PIECE_SMALL
#define PIECE_SMALL (32 * MIB)  /* an allocation up to this is one piece */
#endif
#define PIECE_LARGE (256 * MIB) /* no piece is larger: mapping costs by the piece, partial eviction wastes by the piece */
#define GRANULE     512u        /* of a slab */
#define GRANULES    (PIECE / GRANULE)

/* --- for others ------------------------------------------------------------------------------------------ */

CUresult kerf_swap_out(struct device *d, uint64_t bytes, uint64_t *moved);
CUresult kerf_swap_in(struct device *d, uint64_t bytes, uint64_t *moved);

struct swap_counts { uint64_t resident, swapped, fresh, pinned, host, locked, areas; }; /* bytes, and a count of areas */
void kerf_swap_look(struct device *d, struct swap_counts *out);
bool kerf_swap_whole(struct device *d); /* nothing is out, and nothing is still to be made */

struct swap_arbiter {
	CUresult (*ask)(struct device *d);
	void (*changed)(struct device *d, uint64_t resident, uint64_t absent);
};
extern const struct swap_arbiter *kerf_swap_arbiter; /* NULL: none. Set before the first allocation */

bool kerf_swappable(struct device *d); /* its share is over-committed, and the driver can */
CUresult kerf_swap_alloc(struct device *d, CUdeviceptr *p, size_t n);
bool kerf_swap_free(CUdeviceptr p, CUresult *r); /* false: not one of ours */
bool kerf_swap_owns(CUdeviceptr p);
void kerf_swap_peer(int of, int with); /* a context of the one device was enabled to reach the other's memory */

/* A context is about to end; it has ended, or has not after all. The name is its own for ever, its address is not. */
void kerf_swap_context_ends(CUcontext ctx, uint64_t name);
void kerf_swap_context_ended(uint64_t name, bool gone);

/* A file of whole pages that kerfd gives this process for its host pool. The descriptor stays the caller's. */
bool kerf_host_give(int fd, uint64_t bytes);
void kerf_host_pin(struct device *d); /* page-locks what is not yet, ahead of need */
void kerf_host_trim(void); /* regions that hold nothing go back to whom they came from; pinning them again costs time */
uint64_t host_bytes(void);
void kerf_swap_report(struct device *d); /* has the arbiter told */

/* --- among the files --------------------------------------------------------------------------------------- */

enum piece_state { PIECE_FRESH, PIECE_RESIDENT, PIECE_OUT };

struct host_region;
struct host_run { struct host_region *region; void *at; };

struct piece {
	CUdeviceptr at;
	uint64_t size;
	enum piece_state state;
	struct host_run host;           /* its bytes when out, and while they move */
	struct area *area;
	struct piece *next;             /* of the area */
	struct piece *newer, **older;   /* in the device's list: first is who came in first */
	struct piece *chosen;           /* of one move */
};

struct slab { uint16_t used, hint; uint16_t length[GRANULES]; uint32_t bytes[GRANULES]; uint64_t taken[GRANULES / 64]; };

struct area {
	CUdeviceptr base;
	uint64_t span, bytes, charged, id; /* addresses; as asked for; charged, of a slab in sum */
	struct device *device;
	CUcontext ctx;
	uint64_t ends;                  /* the name of its context that is being destroyed */
	bool pinned, sync_memops;
	struct slab *slab;              /* NULL: one allocation */
	struct piece *pieces;
};

struct stock { /* one device's; under swap_lock */
	struct piece *first, **last;
	uint64_t resident, swapped, fresh, charged, moved; /* charged: of areas alone */
	uint64_t peers;                 /* bit: the ordinal may reach this device's memory */
	bool probed, able;
};

extern struct lock swap_lock;
extern uint32_t swap_used; /* an area has existed: until then nothing here is looked at */
struct stock *swap_stock(struct device *d);
void swap_tell(struct device *d);  /* writes the session's residency */
struct area *swap_find(CUdeviceptr p);          /* the area around p. All under swap_lock */
struct area *swap_area_at(size_t i);            /* by address; NULL: there are no more */
struct area *swap_area_made(struct device *d, CUcontext ctx, uint64_t bytes, CUresult *r); /* the arbiter is asked: the lock is let go meanwhile */
CUresult swap_area_delete(struct area *a);
bool swap_span(CUdeviceptr p, CUdeviceptr *base, uint64_t *bytes, struct area **a); /* of the allocation around p */
void swap_newest(struct piece *p);
bool swap_cut(struct piece *p, uint64_t bytes); /* of what is not there: the rest becomes a piece of its own */
void swap_join(struct piece *p);                /* the reverse, with what follows it, where that makes one piece again */
CUresult swap_make(struct piece *p);            /* fresh or out → mapped, contents undefined; the state is the caller's to set */
CUresult swap_unmake(struct piece *p);          /* the reverse */
void swap_state(struct piece *p, enum piece_state to); /* and the sums */

bool host_take(uint64_t bytes, uint64_t limit, struct host_run *out);
void host_put(struct host_run *run, uint64_t bytes);
void host_move_begins(void);
void host_pin(const struct host_run *run, CUcontext ctx); /* page-locks its region if it is not yet, and did not fail in this move; ctx is current */
uint64_t host_locked(void);
void host_context_ends(CUcontext ctx);
void host_pin_all(CUcontext ctx);
void swap_mover_ends(CUcontext ctx); /* its streams go with it */

/* One step of a move, where a test may fail or kill the process. */
#ifdef KERF_SWAP_DOOR
bool swap_step_fails(void);
#define STEP(call) (swap_step_fails() ? CUDA_ERROR_UNKNOWN : (call))
#else
#define STEP(call) (call)
#endif

#endif
