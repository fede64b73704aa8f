/* visible.h: which devices a process has, see visible.c. */
#ifndef KERF_SIM_VISIBLE_H
#define KERF_SIM_VISIBLE_H

#include "sim.h"
#include "mig.h"

struct visible { struct sim_gpu *gpu; unsigned mig; /* instance + 1; 0: the whole GPU */ };

/* Of the n GPUs seen, those that the list names; NULL: it was not given. */
int visible_devices(const char *list, struct sim_gpu *const *seen, int n, struct visible out[SIM_MAX_GPUS]);

#endif
