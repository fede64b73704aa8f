/* session.h: what the launch path reads. */
#ifndef KERF_SESSION_H
#define KERF_SESSION_H

#include "shim.h"

/* Lives in a page that a fork zeroes, so a child never counts into its parent's slot. */
struct hot {
	const uint32_t *gate; /* the share's gate word; NULL: not attached, or more shares than one */
	uint64_t *launches;
};

extern const struct hot *kerf_hot;

#endif
