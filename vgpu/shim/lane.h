/* lane.h: a stream of this process, as lane.c, queue.c and meter.c share it. All of it under kerf_lanes_lock. */
#ifndef KERF_LANE_H
#define KERF_LANE_H

#include "lease.h"

#define RING 64

struct segment {
	CUevent marker;
	uint64_t key;      /* 0: of several kinds */
	uint64_t ns;       /* by the prices when it was submitted */
	uint32_t n;
};

/* What a lane has done without a pause. */
struct burst {
	uint64_t from;     /* CLOCK_MONOTONIC ns; 0: none, the lane has nothing to do */
	CUevent start;     /* timed, in the stream before the first of it */
	bool timed;        /* start is in */
	CUevent last;      /* the newest marker of it, or NULL */
};

struct lane {
	struct lane *next;      /* in its bucket */
	struct lane *all;       /* every lane ever made; they are used again, never freed */
	uint64_t id;            /* 0: free. A stream's handle; or a context's legacy stream; or a thread's own */
	CUcontext ctx;
	CUstream stream;        /* as this process's calls name it */
	struct keeper *keeper;
	bool touched;           /* may have work */
	bool full;
	bool marked;            /* drain: the marker is in */
	CUevent drain;
	unsigned head, count;   /* of ring: markers that have not passed */
	uint64_t since;         /* when the head began to run, about */
	struct burst burst;
	struct segment open;    /* what has no marker behind it yet */
	struct segment ring[RING];
};

extern struct lock kerf_lanes_lock;

unsigned kerf_lane_hash(uint64_t key);

/* Of the lane's own context, which need not be the caller's. */
bool kerf_lane_event(struct lane *l, CUevent *e, unsigned flags); /* makes it, unless it is there */
bool kerf_lane_record(struct lane *l, CUevent e);                 /* false: it is not in */

void kerf_queue_reap(struct lane *l, uint64_t now);
void kerf_queue_mark(struct lane *l, uint64_t now); /* a marker behind what has none */
void kerf_queue_forget(struct lane *l);             /* all is done */

void kerf_meter_begin(struct lane *l);              /* something is about to be submitted */
void kerf_meter_end(struct lane *l, uint64_t now);  /* all of the burst is done */
uint64_t kerf_meter_read(struct keeper *k);         /* ns in which any lane worked, since the last reading */

#endif
