/* session.h: what the launch path reads, and what session.c and visible.c share. */
#ifndef KERF_SESSION_H
#define KERF_SESSION_H

#include "shim.h"

/* Lives in a page that a fork zeroes, so a child never counts into its parent's slot. */
struct hot {
	const uint32_t *gate; /* the share's gate word; NULL: not attached, or more shares than one */
	uint64_t *launches;
};

extern const struct hot *kerf_hot;

#define KERF_MAX_ORDINALS 32

/* A connection for the leases of an attached process; -1: kerfd is away, or has none. */
int kerf_lease_connect(const struct share *s);

/* Calls the real cuInit with CUDA_VISIBLE_DEVICES set to the granted GPUs that the tenant's own value chooses. */
CUresult kerf_init_visible(real_on_init real, unsigned flags, const struct share *shares, int nshares);

/* Likewise, and in a share of tier mps as the client of its card's MPS server. */
CUresult kerf_init_mps(real_on_init real, unsigned flags, const struct share *shares, int nshares);
bool kerf_check_mps(const struct share *shares, int nshares, char *why, size_t len); /* false: it is none; one line in why */

#endif
