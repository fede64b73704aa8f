/* node.h: what the parts of the simulated NVML know of each other.
 *
 *   node.c    the device files, handles, who is alive       device.c  what a GPU is and how it is used
 *   system.c  init, versions, error texts                   link.c    PCIe, NVLink, topology
 *   health.c  ECC, remaps, clocks, power, field values      event.c   event sets
 *   mig.c     MIG mode, profiles, MIG devices               instance.c  making and destroying instances
 *   caps.c    the files by which a process may use an instance
 *
 * The library only reads the device files, but for the utilization sampler's two words and MIG's instances. It
 * takes none of the mutexes in them: a monitor must not block because some process died. Numbers of dead slots are left out
 * instead of reaped.
 *
 * The root is found as the simulated libcuda finds it: relative to this file if a SIMULATED lies there, else
 * /run/kerf/sim. Descriptors stay open until exit, see driver/state.h.
 */
#ifndef KERF_SIM_NVML_NODE_H
#define KERF_SIM_NVML_NODE_H

#include "../driver/mig.h"
#include "abi.h"

#include <stdbool.h>
#include <stddef.h>

enum handle_kind { H_GPU = 0x4b47, H_MIG, H_GI, H_CI };

struct handle {
	enum handle_kind kind;
	unsigned n;             /* index in sim_gpu.mig, but for a GPU */
	struct gpu *gpu;
};

struct gpu {
	struct sim_gpu *s;
	unsigned index;         /* NVML's: among the GPUs that this process sees */
	struct handle self, mig[SIM_MAX_MIG_INSTANCES], gi[SIM_MAX_MIG_INSTANCES], ci[SIM_MAX_MIG_INSTANCES];
};

struct node {
	char root[4096];
	int ctl_fd;
	struct sim_ctl *ctl;
	unsigned count;
	unsigned driver_major;
	struct gpu gpu[SIM_MAX_GPUS];
};

extern struct node node;

nv_return node_open(void);
bool initialized(void);

/* The GPU of a handle for a call on it. Blocks while an injected hang lasts; then says whether the GPU can
 * be asked. enter_any takes MIG devices too; enter_fixed also answers for a lost GPU, whose fixed facts the
 * library knows anyway. */
nv_return enter(nv_device d, struct gpu **g);
nv_return enter_any(nv_device d, struct gpu **g);
nv_return enter_fixed(nv_device d, struct gpu **g);
struct handle *as_handle(void *p, enum handle_kind kind);

/* Starts a call on GPU d with further argument checks; declares g. */
#define ENTER(d, ok) ENTER_BY(enter, d, ok)
#define ENTER_BY(how, d, ok)                       \
	struct gpu *g;                             \
	do {                                       \
		nv_return r_ = how(d, &g);         \
		if (r_ != NV_SUCCESS)              \
			return r_;                 \
		if (!(ok))                         \
			return NV_INVALID_ARGUMENT; \
	} while (0)

/* A living process's use of a GPU. */
struct user { unsigned slot; int pid; const struct sim_use *use; };
unsigned users(const struct handle *of, struct user out[SIM_MAX_PROCS]); /* of a GPU, or of a MIG device alone */
uint64_t used_bytes(const struct handle *of);

uint64_t clock_ns(int id);
void fill_pci(struct nv_pci *p, unsigned domain, unsigned bus, unsigned device, unsigned function);
nv_return copy_text(const char *from, char *to, unsigned size);
void uuid_text(const char *kind, const uint8_t u[16], char out[48]);

/* mig.c */
struct sim_mig_instance *instance_of(const struct handle *h);
const struct sim_mig_profile *profile_of(const struct handle *h);
const struct sim_mig_profile *profile_by_id(const struct gpu *g, unsigned id);
uint32_t occupied(const struct gpu *g);     /* memory slices that instances take, a bit each */
bool shown(const struct handle *mig);       /* it is a MIG device that this process may use */
unsigned whole_profile(const struct handle *gi); /* of the compute instance that takes all of a GPU instance */
struct handle *enter_instance(nv_gpu_instance gi, nv_return *why);

/* caps.c */
bool may(unsigned cap);
bool cap_put(unsigned minor, unsigned gi, int ci); /* ci < 0: of the GPU instance */
void cap_drop(unsigned minor, unsigned gi, int ci);

#endif
