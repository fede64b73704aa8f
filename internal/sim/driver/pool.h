/* pool.h: pools as pool.c (what they do) and poolprops.c (what is asked of them, and sharing) know them. */
#ifndef KERF_SIM_POOL_H
#define KERF_SIM_POOL_H

#include "sim.h"

enum piece_state { FREE, USED, FREED /* its stream has not come to it yet */ };

struct piece {
	struct piece *next;         /* by offset; neighbours both FREE are merged */
	uint64_t offset, span;      /* in the segment */
	uint64_t size;              /* as asked for */
	uint64_t id;
	enum piece_state state;
	CUstream freed_in;
	uint64_t round;             /* raised when taken again: an old free does not count then */
};

struct segment {
	struct segment *next;
	CUmemoryPool pool;
	struct range *range;
	struct piece *pieces;
	unsigned busy;              /* pieces not FREE */
};

struct CUmemPoolHandle_st {
	struct object o;
	CUmemoryPool next;
	struct simdev *dev;
	CUmemPoolProps props;
	bool dying, imported;
	int fd;                     /* of a pool that can be shared: all its bytes; else -1 */
	uint64_t fd_end;
	uint64_t threshold, reserved, reserved_high, used, used_high;
	int reuse[3];
	CUmemAccess_flags access[SIM_MAX_GPUS];
	struct segment *segments;
};

CUresult valid_pool(CUmemoryPool p);
CUresult pool_new(struct simdev *d, const CUmemPoolProps *props, CUmemoryPool *out); /* under g.lock */

#endif
