/* share.h: memory that goes to another process as a descriptor. Behind the bytes, the file says what it is. */
#ifndef KERF_SIM_SHARE_H
#define KERF_SIM_SHARE_H

#include "sim.h"

#define SHARE_TRAILER 40 /* bytes of a file beyond the memory it holds */

CUresult share_mark(int fd, const struct simdev *d, uint64_t size);
CUresult share_read(int fd, struct simdev **d, uint64_t *size);
struct phys *share_adopt(struct simdev *d, int fd, uint64_t offset, uint64_t size); /* keeps a copy of fd */

#endif
