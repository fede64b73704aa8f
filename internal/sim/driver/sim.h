/* sim.h: what the parts of the simulated CUDA driver know of each other.
 *
 *   state.c    the device files: slots, accounts, reaping       engine.c   whose turn it is on a GPU, for how long
 *   visible.c  which devices this process has                  mps.c      whether it is a client of an MPS server
 *   init.c     cuInit, versions, errors                         queue.c    streams' work, and the threads that do it
 *   resolve.c  cuGetProcAddress                                 stream.c event.c copy.c launch.c capture.c graph*.c
 *   device.c context.c                                          module.c   PTX text; kernels.c what the kernels do
 *   addr.c     the device address space                         memory.c vmm.c pool.c array.c ipc.c external.c
 *
 * Locks. g.lock guards every object and table of this process; it is held for moments only, never while
 * waiting for work or touching a tenant's bytes. Locks in the device files come after it (see state.h).
 *
 * Objects that a program holds handles of are never given back to malloc, only recycled among their kind
 * (object.c), so that a stale handle is answered with an error and not a crash.
 */
#ifndef KERF_SIM_H
#define KERF_SIM_H

#define CUAPI extern __attribute__((visibility("default")))
#include "../../cuda/cuabi.h"
#include "state.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stddef.h>

#include "oldlibc.h"

#define KIB(n) ((uint64_t)(n) << 10)
#define MIB(n) ((uint64_t)(n) << 20)
#define GRANULE MIB(2)          /* of device memory, physical and virtual */
#define SMALL_LIMIT MIB(1)      /* below it an allocation is cut from a block of one granule */
#define SMALL_UNIT 512u
#define PITCH_ALIGN 512u

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)
#define hidden __attribute__((visibility("hidden")))

static inline uint64_t round_up(uint64_t n, uint64_t to) { return (n + to - 1) / to * to; }

/* --- objects (object.c) ------------------------------------------------------------------------------ */

enum kind {
	K_FREE = 0, K_CONTEXT = 0x51a1, K_STREAM, K_EVENT, K_MODULE, K_FUNCTION, K_LIBRARY, K_POOL, K_ARRAY, K_MIPMAP,
	K_EXTERNAL, K_GRAPH, K_NODE, K_EXEC, K_PHYS, K_END
};

struct object { uint32_t kind; uint32_t reserved; struct object *next; };

void *object_new(enum kind kind, size_t size); /* zeroed; NULL: no host memory. Under g.lock */
void object_free(void *obj);                   /* under g.lock */
#define is_kind(obj, k) ((obj) != NULL && ((const struct object *)(const void *)(obj))->kind == (k))

/* --- devices and the process ------------------------------------------------------------------------- */

struct phys;
struct range;
struct op;

enum unit_kind { UNIT_COMPUTE, UNIT_H2D, UNIT_D2H, UNIT_HOST, UNIT_COUNT };

/* A unit is one engine of a GPU as this process uses it (UNIT_HOST: the CPU, for callbacks): a thread, and the
 * streams whose next work is for it. */
struct unit {
	struct simdev *dev;
	enum unit_kind kind;
	bool running;               /* its thread exists */
	pthread_cond_t work;
	struct CUstream_st *first;  /* ready streams, by priority, then first come */
};

struct simdev {
	CUdevice ordinal;           /* as this process counts */
	unsigned node_index;        /* N of nvidiaN */
	struct sim_gpu *gpu;
	struct sim_use *use;        /* this process's */
	unsigned mig;               /* the MIG instance + 1 that this device is; 0: the whole GPU */
	const struct sim_mig_profile *profile; /* the instance's; NULL: the whole GPU */
	struct sim_engine *engine;  /* its compute engine */
	uint64_t mps_cursor;        /* until when this process has used it, in engine time */
	uint8_t uuid[16];           /* the MIG device's, else the GPU's */
	struct CUctx_st *primary;
	unsigned primary_refs, primary_flags;
	int memfd;                  /* bytes of linear memory; sparse, offsets are never used twice */
	uint64_t memfd_end;
	struct unit unit[UNIT_COUNT];
	CUmemoryPool default_pool, current_pool;
	struct graph_memory *graph_memory;
	uint64_t graph_reserved, graph_reserved_high, graph_used, graph_used_high;
};

struct process {
	pthread_mutex_t lock;
	bool ready, forked, zero_cost;
	bool mps_lost;              /* the MPS server whose client it was is dead */
	struct sim_ctl *ctl;
	int ctl_fd;
	unsigned slot;
	uint32_t generation;
	int ndev;
	struct simdev dev[SIM_MAX_GPUS];
	pthread_cond_t done;        /* some work has ended */
	uint64_t next_id;           /* of contexts, streams, buffers */
	uint64_t stream_base;       /* where a new stream starts to count */
	struct CUctx_st *contexts;
	CUmemoryPool pools;
	struct CUstream_st *parked; /* streams whose next work waits for another's */
	unsigned global_captures;
	char root[512];
};
extern hidden struct process g;

int memory_file(const char *name); /* a memfd, closed on exec; -1 if there is none to be had */
uint64_t now_ns(void); /* CLOCK_MONOTONIC */
void sleep_until(uint64_t t);

/* mps.c */
CUresult mps_join(void);     /* joins the MPS server, if there is one; once the process has its slot */

/* state.c */
CUresult state_open(void);
int state_version(void);     /* CUDA's, as 13000; known before cuInit */
bool slot_alive(unsigned slot);
void state_reap(void);
int lock_shared(struct sim_lock *l); /* 0, or EOWNERDEAD: what it guards may be half-written; the caller repairs */
void unlock_shared(struct sim_lock *l);
enum charge { CHARGE_MEMORY, CHARGE_CONTEXT, CHARGE_MANAGED };
CUresult charge(struct simdev *d, enum charge what, uint64_t bytes);
void discharge(struct simdev *d, enum charge what, uint64_t bytes);
uint64_t capacity(const struct simdev *d); /* bytes that can be allocated at all */
uint32_t sm_count(const struct simdev *d);
uint64_t free_bytes(struct simdev *d);

/* Says whether what this process had there went with its MPS server. */
static inline bool mps_lost(const struct simdev *d) { return __atomic_load_n(&g.mps_lost, __ATOMIC_RELAXED) && d->use->mps; }

static inline uint32_t faults(const struct simdev *d) { return __atomic_load_n(&d->gpu->health.faults, __ATOMIC_RELAXED); }

/* --- contexts (context.c) ---------------------------------------------------------------------------- */

struct CUctx_st {
	struct object o;
	struct simdev *dev;
	CUcontext next;
	bool dead, primary;
	unsigned version, flags;
	uint64_t id;
	CUresult sticky;            /* once a kernel failed, every call in this context says so */
	size_t limit[7];
	CUfunc_cache cache;
	CUsharedconfig shared;
	struct CUstream_st *legacy; /* the NULL stream */
	struct CUstream_st *streams;
	struct range *ranges;       /* allocations to free with the context */
	struct range *blocks;       /* blocks of small allocations with room */
	unsigned captures;          /* of blocking streams, which the NULL stream must not disturb */
	uint64_t peers;             /* bit: ordinal whose memory is reachable */
	uint64_t charged;
};

/* Says whether calls may go on: CUDA_SUCCESS, or NOT_INITIALIZED before cuInit and in a forked child. */
static inline CUresult ready(void) { return likely(g.ready && !g.forked) ? CUDA_SUCCESS : CUDA_ERROR_NOT_INITIALIZED; }

extern hidden __thread CUcontext tls_current;
extern hidden __thread bool tls_per_thread; /* NULL means the thread's own stream during this call */
CUresult current(CUcontext *out);           /* the usable current context, or why there is none */
CUresult usable(CUcontext c);
CUresult device_of(CUdevice dev, struct simdev **out);
CUstream thread_stream(CUcontext c);        /* the calling thread's own; NULL: no host memory. Under g.lock */

#define TRY(call) do { CUresult try_ = (call); if (unlikely(try_ != CUDA_SUCCESS)) return try_; } while (0)
/* Returns what a call gives that must be made under g.lock. */
#define LOCKED(call)                   \
	do {                               \
		TRY(ready());                  \
		pthread_mutex_lock(&g.lock);   \
		CUresult locked_ = (call);     \
		pthread_mutex_unlock(&g.lock); \
		return locked_;                \
	} while (0)
#define REQUIRE(cond, code) do { if (unlikely(!(cond))) return (code); } while (0)

/* --- the device address space (addr.c) --------------------------------------------------------------- */

/* Bytes of device memory, apart from any address. Counted: handles and mappings. */
struct phys {
	struct object o;
	struct simdev *dev;
	int fd;                     /* what is mapped; own unless it is the device's memfd */
	bool own_fd, imported, shareable, released;
	uint64_t offset, size, charged;
	unsigned refs;              /* handles, as cuMemRelease counts them */
	unsigned maps;
	CUmemAllocationProp prop;
};

enum range_kind { R_LINEAR, R_BLOCK, R_RESERVED, R_MAP, R_POOL, R_IPC, R_EXTERNAL, R_ARRAY, R_GRAPH, R_MODULE, R_MANAGED, R_HOST, R_REGISTERED };

struct block; /* bookkeeping of a block of small allocations */
struct advice { bool read_mostly; CUmemLocation preferred, prefetched; }; /* of managed memory */

struct range {
	enum range_kind kind;
	CUdeviceptr base;
	uint64_t size;              /* as asked for */
	uint64_t span;              /* of addresses taken */
	uint64_t id;
	struct simdev *dev;
	CUcontext ctx;
	struct phys *phys;
	uint64_t phys_offset;
	uint64_t charged;
	unsigned flags;             /* of host memory; of managed memory */
	uint64_t readable, writable; /* VMM: bit per ordinal */
	struct block *block;
	struct segment *segment;    /* R_POOL: what of it is in use */
	struct range *reservation;  /* R_MAP: what it lies in */
	struct graph_memory *graph; /* R_GRAPH */
	bool sync_memops;
	struct advice advice;
	struct range *next, **prev; /* in the list of its owner */
};

/* What an address belongs to: a range, or one small allocation in a block. */
struct span { struct range *range; CUdeviceptr base; uint64_t size; uint64_t id; };

CUresult addr_init(void);
CUresult addr_reserve(uint64_t span, uint64_t align, CUdeviceptr hint, CUdeviceptr *out);
void addr_unreserve(CUdeviceptr base, uint64_t span);
void addr_set(CUdeviceptr base, uint64_t span, struct range *r);
CUresult addr_map(CUdeviceptr base, uint64_t size, const struct phys *p, uint64_t offset);
void addr_unmap(CUdeviceptr base, uint64_t size);
bool addr_find(CUdeviceptr p, struct span *out);
struct range *addr_range(CUdeviceptr p);    /* of the private range, whatever it is */
bool addr_accessible(const struct simdev *d, CUdeviceptr p, uint64_t n, bool write); /* may work on it be submitted? */
bool addr_backed(CUdeviceptr p, uint64_t n); /* does work find bytes there now? */
void *addr_bytes(CUdeviceptr p);            /* where this process can touch them */
bool addr_is_device(CUdeviceptr p);         /* in the private range, mapped or not */
void host_add(struct range *r);
void host_remove(struct range *r);
bool host_find(CUdeviceptr p, struct span *out);

struct phys *phys_new(struct simdev *d, uint64_t size, bool shareable, CUresult *err); /* charges */
void phys_put(struct phys *p);              /* frees once no handle and no mapping is left */
struct range *range_new(struct simdev *d, CUcontext c, enum range_kind kind, uint64_t size, CUresult *err);
struct range *range_adopt(struct simdev *d, CUcontext c, enum range_kind kind, struct phys *p, uint64_t offset, uint64_t size, CUresult *err);
void range_free(struct range *r);
void range_link(struct range **list, struct range *r);
void range_unlink(struct range *r);
CUresult small_alloc(CUcontext c, uint64_t size, CUdeviceptr *out);
CUresult small_free(struct range *block, CUdeviceptr p);
void context_free_memory(CUcontext c);

/* --- streams and work (queue.c) ---------------------------------------------------------------------- */

/* A point in a stream's work that others wait for: an event's record. */
struct mark { unsigned refs; bool done; uint64_t time; };
struct mark *mark_new(void);
void mark_put(struct mark *m);

struct capture;

struct CUstream_st {
	struct object o;
	CUcontext ctx;
	CUstream next;              /* in the context */
	CUstream ready_next;        /* in a unit's list, or among the parked */
	unsigned flags;
	int priority;
	uint64_t id;
	struct op *head, *tail;
	uint64_t submitted, completed; /* counts of ops; a new stream starts beyond all that any had */
	uint64_t clock;             /* when its last op ended, in engine time */
	bool in_unit, parked, dying, legacy;
	struct capture *capture;    /* NULL: not capturing */
	CUgraphNode *deps; size_t ndeps; /* what the next captured node follows */
};

enum op_unit { OP_COMPUTE = UNIT_COMPUTE, OP_H2D, OP_D2H, OP_HOST, OP_NOW };

/* One piece of work. OP_NOW takes no time and runs under g.lock as soon as what it awaits has come; the others
 * run on their unit's thread without it. `run` may return an error, which breaks the context. */
struct op {
	struct op *next;
	enum op_unit unit;
	CUstream stream;
	uint64_t ready;             /* when it was submitted */
	uint64_t cost;              /* ns of the engine */
	uint64_t bytes;             /* of copies */
	struct mark *fires, *awaits; /* may be NULL; held */
	CUstream await; uint64_t await_count; /* that stream must have done so much */
	bool (*poll)(struct op *);  /* has its turn come? Nobody tells: asked again and again */
	CUresult (*run)(struct op *);
	void (*drop)(struct op *);  /* frees what the op holds; run or not */
	CUgraphNodeType type;       /* what it is in a graph */
	size_t arg_size;
	_Alignas(16) unsigned char arg[];
};

struct op *op_new(enum op_unit unit, CUgraphNodeType type, size_t arg_size);
struct op *op_clone(const struct op *op);
void op_discard(struct op *op);
void op_submit(CUstream s, struct op *op);  /* under g.lock; takes the op. Honours the NULL stream's rules */
void queue_advance(void);                   /* under g.lock: something changed that parked streams may wait for */
void wait_idle_stream(CUstream s);          /* under g.lock, which it lets go while it waits; so do the next two */
void wait_idle_context(CUcontext c);
void wait_mark(struct mark *m);
static inline bool stream_idle(CUstream s) { return s->completed == s->submitted; }
CUresult stream_of(CUstream h, CUstream *out); /* a handle's stream, NULL and the special ones included. Under g.lock */
CUresult submit(CUstream h, struct op *op); /* finds the stream, captures or submits; takes the op in any case */
CUresult submit_wait(CUstream h, struct op *op); /* the same, and waits for it */

/* engine.c: each sleeps through `cost` ns of the engine and returns when it ended, in engine time. */
uint64_t engine_compute(struct simdev *d, uint64_t earliest, uint64_t cost);
void engine_release(struct simdev *d);
uint64_t engine_copy(struct simdev *d, enum unit_kind which, uint64_t earliest, uint64_t cost, uint64_t bytes);
void wait_while_hung(const struct simdev *d);

struct CUevent_st {
	struct object o;
	CUcontext ctx;
	unsigned flags;
	struct mark *mark;          /* of the last record; NULL: never recorded */
	struct capture *capture;    /* where it was last recorded, if that was a capture */
	CUgraphNode *nodes; size_t node_count; /* what that record stands for */
};

/* --- capture and graphs ------------------------------------------------------------------------------ */

static inline bool capturing(CUstream s) { return s->capture != NULL; }
void capture_leave(CUstream s);                           /* the stream takes no further part */
void capture_forget(struct capture *c);                  /* an event, or a stream, no longer refers to it */
CUresult capture_op(CUstream s, struct op *op);          /* takes the op */
CUresult capture_invalidate(CUstream s);                 /* a call that cannot be captured: ends the capture's hopes, and says so */
CUresult capture_alloc(CUstream s, struct simdev *d, uint64_t size, CUdeviceptr *out);
CUresult capture_free(CUstream s, CUdeviceptr p);
CUresult capture_event(CUstream s, CUevent e);           /* a record in a capturing stream */
CUresult capture_wait(CUstream s, CUevent e);            /* a wait that joins s to e's capture, or stays in it */
CUresult capture_disturbed(CUcontext c);                /* the NULL stream was used beside a capture */
CUresult capture_forbids(void);                          /* a call that is unsafe while this thread's or any capture runs */

/* --- stream-ordered memory (pool.c) ------------------------------------------------------------------ */

bool pool_trim_all(struct simdev *d);       /* gives up what pools keep in reserve; says whether that was anything */
void pool_synchronized(struct simdev *d);   /* a wait ended: pools may keep no more than their threshold */
void pool_drop_all(struct simdev *d);       /* the device's last context ended */
bool pool_find(struct range *r, CUdeviceptr p, struct span *out);
CUmemoryPool pool_of(const struct range *r);
CUresult pool_free_now(struct range *r, CUdeviceptr p); /* cuMemFree of it; nothing uses it any more */

/* --- memory of graphs (graphmem.c) ------------------------------------------------------------------- */

struct graph_memory *graph_memory_new(CUcontext c, uint64_t size, CUresult *err); /* an address; bytes come with a launch */
struct graph_memory *graph_memory_find(CUdeviceptr p);
CUdeviceptr graph_memory_address(const struct graph_memory *m);
void graph_memory_hold(struct graph_memory *m);
void graph_memory_put(struct graph_memory *m);
CUresult graph_memory_back(struct graph_memory *m);       /* takes bytes for it, if it has none */
CUresult graph_memory_use(struct graph_memory *m, bool auto_free); /* a launch allocates it */
CUresult graph_memory_free(struct graph_memory *m);       /* a launch, or the program, frees it */
bool graph_memory_trim(struct simdev *d);                 /* bytes of what is not in use */

/* --- arrays (array.c) and copies (copy.c) ------------------------------------------------------------- */

struct CUarray_st {
	struct object o;
	CUcontext ctx;
	CUDA_ARRAY3D_DESCRIPTOR desc;
	CUdeviceptr at;             /* its first byte; 0: not mapped (deferred mapping) */
	bool owns;                  /* the memory; a level's belongs to its mipmap */
	uint64_t pitch, slice;      /* bytes of a row and of a layer */
	uint64_t rows, layers;      /* at least 1 */
	CUarray next;               /* levels of one mipmap */
};

CUresult array_layout(CUarray a, const CUDA_ARRAY3D_DESCRIPTOR *desc); /* checks the descriptor; pitch, slice, rows, layers */
CUresult mipmap_at(CUcontext c, const CUDA_ARRAY3D_DESCRIPTOR *desc, unsigned levels, CUdeviceptr at, uint64_t room, CUmipmappedArray *out);

struct side { /* one end of a copy: where its first byte is, and how its rows lie */
	CUdeviceptr at;
	uint64_t pitch, slice;
	bool host, pageable;
	struct simdev *dev;         /* NULL: host */
};
struct copy { struct side src, dst; uint64_t width, height, depth; };

struct fill { CUdeviceptr at; uint64_t pitch, width, height; uint32_t value; unsigned element; };

/* Both under g.lock: check the parameters and make the op, or say what is wrong with them. */
CUresult copy_op_3d(const CUDA_MEMCPY3D *p, struct op **out, bool *pageable, bool *host);
CUresult fill_op(const struct simdev *d, struct fill f, struct op **out);

struct launch { CUfunction f; unsigned grid[3], block[3], shared; unsigned char bytes[]; }; /* the arg of a kernel's op */
struct callback { CUhostFn fn; CUstreamCallback stream_fn; CUstream handle; void *data; }; /* of a callback's */
CUresult kernel_op(const struct launch *shape, void **params, void **extra, struct op **out);
CUresult callback_op(struct callback c, struct op **out);

/* --- kernels ----------------------------------------------------------------------------------------- */

struct kernel { /* one of the simulator's own implementations */
	const char *name;
	unsigned nparams;
	unsigned char size[6];      /* of each parameter */
	uint64_t (*cost)(const struct simdev *, void *const *args);
	CUresult (*run)(const struct simdev *, void *const *args);
};
const struct kernel *kernel_find(const char *name);

#define MAX_PARAMS 64

struct CUfunc_st { /* a CUkernel is the same object */
	struct object o;
	CUmodule module;
	CUfunction next;
	const struct kernel *impl;  /* NULL: an entry that the simulator does not know */
	unsigned nparams, param_bytes;
	unsigned param_size[MAX_PARAMS], param_offset[MAX_PARAMS];
	int attribute[16];
	char name[256];
};

struct global { struct global *next; uint64_t size; CUdeviceptr at; char name[256]; };

struct CUmod_st {
	struct object o;
	CUcontext ctx;              /* NULL: of a library, where globals are made on first use */
	CUlibrary library;
	CUfunction functions; unsigned count;
	struct global *globals;
};

struct CUlib_st { struct object o; CUmodule module; };

/* ptx.c: fills a module's functions and globals from PTX text. */
CUresult ptx_parse(CUmodule m, const char *text);

#endif
