/* lease.h: what the gate, the streams' books and the keeper know of each other.
 *
 *   gate.c    the slow path of the gate: wait while it is shut, bound what is queued while others wait
 *   lane.c    the streams of this process: which there are, which capture, and whether they have work
 *   queue.c   what was submitted to each, and about how long that takes
 *   meter.c   for how long they worked
 *   keeper.c  the thread that tells kerfd of work and drains, one for each share
 *
 * Lock order: kerf_lanes_lock, then keeper.tell. Calls of the driver are made under kerf_lanes_lock, but none that runs the tenant's code.
 * Waiting is done without it.
 */
#ifndef KERF_LEASE_H
#define KERF_LEASE_H

#include "session.h"

/* What kerfd ordered of one device's memory, and what it was told of it. The keeper's alone, but for asking and refused. */
struct orders {
	uint64_t out, in;      /* bytes still to be moved */
	uint64_t given, done;  /* the number of the last order: had, carried out */
	uint32_t asking;       /* threads that wait for memory */
	uint32_t refused;      /* count of KERF_LEASE_REFUSED */
	struct kerf_lease told; /* under keeper.tell */
};

#define KERF_SPANS 64

struct span { uint64_t from, to; }; /* CLOCK_MONOTONIC ns */

/* A share's leases, as this process sees them. */
struct keeper {
	struct share *share;
	int fd;                /* the connection; -1: none */
	uint32_t started;      /* its thread exists */
	uint32_t away;         /* kerfd is not there, and the gate does not hold without it */
	uint32_t waiting;      /* threads that have work and may not submit it */
	uint32_t inside;       /* threads between the gate and the end of the driver's call */
	uint32_t told;         /* kerfd knows of work */
	uint64_t submitted;    /* count, while the gate is shared */
	struct lock tell;      /* guards told and fd against each other */
	uint32_t lost;         /* there is no connection, and a try to have one has failed */
	uint32_t news;         /* a futex word: it changes when who waits for memory should look again */
	uint32_t unsaid;       /* a report of memory that the socket had no room for */
	uint64_t hosts;        /* the number of the last KERF_LEASE_HOST or TRIM that was dealt with; under tell */
	struct orders orders[KERF_MAX_DEVICES];
	unsigned spans;
	struct span span[KERF_SPANS]; /* when there was work since the last drain, in order; under kerf_lanes_lock */
};

/* What a submission that passed a shared gate leaves behind when it is done. */
struct pass {
	struct keeper *keeper; /* NULL: nothing is to be done */
	struct lane *lane;     /* NULL: of no stream, or one that captures */
	uint64_t key;          /* what is launched, for its price; 0: what takes no time of the GPU */
};

struct keeper *kerf_keeper_of(const struct share *s); /* NULL: none of this process's shares */
bool kerf_keeper_start(struct keeper *k);             /* at most one thread; without leases none. false: it cannot be made, and the gate holds without it */
CUresult kerf_keeper_first(struct device *d);         /* before a context is made */
void kerf_keeper_reset(struct share *shares, int n);  /* at attach */
void kerf_keeper_context(struct device *d);           /* a context was made: work may come */
void kerf_keeper_began(struct keeper *k);
bool kerf_gate_lets(const struct keeper *k, uint32_t word); /* may work be submitted, by this word? */
uint64_t kerf_now(void);                              /* CLOCK_MONOTONIC, ns */

/* --- memory that kerfd moves: swap_lease.c. On the keeper's thread --------------------------------------------- */

void kerf_orders_start(const struct share *s);        /* at attach */
void kerf_orders_heard(struct keeper *k, const struct kerf_lease *m, int fd); /* fd: came with it, or -1; stays the caller's */
bool kerf_orders_wait(const struct keeper *k);        /* for the work to end: something is to be moved out */
bool kerf_orders_open(const struct keeper *k);        /* something is to be done */
void kerf_orders_carry_out(struct keeper *k);
void kerf_orders_report(struct keeper *k, bool anew); /* anew: kerfd may know nothing */
void kerf_orders_news(struct keeper *k);

/* --- lanes ------------------------------------------------------------------------------------------------ */

void kerf_lane_context(CUcontext ctx, struct device *d);
void kerf_lane_context_gone(CUcontext ctx);           /* before the driver ends it */
bool kerf_capturing(CUstream stream);
struct lane *kerf_lane_of(CUstream stream, bool per_thread, struct keeper *k);
uint64_t kerf_lane_ahead(struct lane *l);             /* ns to wait before more may be submitted to it; 0: now */
void kerf_lane_submitted(struct lane *l, uint64_t key);
void kerf_lanes_untracked(struct keeper *k);          /* work went to any of them */
bool kerf_lanes_idle(struct keeper *k, bool marked);  /* marked: the gate is shut, so that the default streams can be asked by a marker */
void kerf_lanes_mark(struct keeper *k);               /* draining: markers behind all that has none */
uint64_t kerf_lanes_drained(struct keeper *k);        /* all is done: forget what was queued. ns of work since the drain before */

#endif
