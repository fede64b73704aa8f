/* state.h: the files that stand in for device nodes on a simulated node.
 *
 *   R/dev/nvidiactl   struct sim_ctl: the node, and which processes use its driver
 *   R/dev/nvidiaN     struct sim_gpu: GPU N's static facts and live state
 *   R/dev/nvidia-uvm  empty
 *
 * Every process maps them MAP_SHARED. internal/sim fills the static facts (and mirrors the structs in Go;
 * its parity test compiles this file), the simulated libcuda writes use, the simulated NVML reads, and
 * `kerf sim inject` writes faults. Zero means none or unknown throughout, so that an empty file of the right
 * size plus the static facts is a valid start. Words are little-endian and naturally aligned; padding is
 * spelt out. A change of layout raises SIM_VERSION.
 *
 * Who is alive. A process owns slot s while it holds the POSIX record lock (F_SETLK, write) on byte
 * SIM_SLOT_LOCK_BASE + s of nvidiactl: the kernel drops it when the process dies or execs, and a forked child
 * does not have it. Ask with F_OFD_GETLK, never F_GETLK: only the former also sees the caller's own lock (two
 * copies of a library in one process). l_pid of the answer is the owner's pid as the asker's pid namespace
 * sees it; sim_proc.pid is what the owner calls itself.
 *
 * The trap: closing *any* descriptor of nvidiactl drops all record locks that the process holds on it. So
 * whoever opens nvidiactl in a process that may also use CUDA keeps that descriptor until exit.
 *
 * Slots outlive their owners: a dead owner's numbers stand until someone reaps them. Reap = under ctl.lock,
 * find lock free, clear proc[s].pid, and zero use[s] in each GPU that one can see. Who sees only some of the GPUs
 * leaves stale numbers in the others: a reader counts use[s] only if proc[s] is alive and use[s].generation ==
 * proc[s].generation, and reaps it otherwise. Slots are taken from the lowest on and proc[s].generation is never
 * reset, so behind the first slot without one there is nothing to see.
 * Lock order: sim_ctl.lock, then sim_engine.lock.
 *
 * MIG. A GPU instance is in force while sim_mig_instance.used is set, and is a MIG device while .compute is too; each word is
 * written last when it is set and first when it is cleared, so a death leaves the instance or none. Who changes instances holds
 * the lock of byte SIM_MIG_LOCK of nvidiaN (an OFD lock), and so does a process for the first thing that it takes in one: who
 * destroys an instance sees it, or it sees that the instance is gone. A process uses one instance for its life.
 *   R/dev/nvidia-caps/nvidia-capN        who can open it has the capability (SIM_CAP_*)
 *   R/proc/driver/nvidia/capabilities/   which capability is which number, as the kernel driver tells
 */
#ifndef KERF_SIM_STATE_H
#define KERF_SIM_STATE_H

#include <stdint.h>

#define SIM_CTL_MAGIC      0x4c544353u /* "SCTL" */
#define SIM_GPU_MAGIC      0x55504753u /* "SGPU" */
#define SIM_VERSION        3u
#define SIM_MAX_GPUS       16
#define SIM_MAX_PROCS      512
#define SIM_MAX_EVENTS     64   /* Xid ring; event n is at index n % SIM_MAX_EVENTS */
#define SIM_MAX_RUNS       1024 /* the engines' log, a ring likewise */
#define SIM_MAX_NVLINKS    18
#define SIM_MAX_MIG_PROFILES  16
#define SIM_MAX_MIG_INSTANCES 8
#define SIM_SLOT_LOCK_BASE 0x40000000 /* offset of slot 0's lock byte in nvidiactl, beyond its end */
#define SIM_INIT_LOCK      0x3fffffff /* byte held while the mutexes of a fresh file are made */
#define SIM_MIG_LOCK       0x3ffffffe /* of nvidiaN: byte held while its instances are changed */

/* Capabilities by the driver's own numbering: 15 GPU instances a GPU, 8 compute instances each. */
#define SIM_CAP_CONFIG  1u /* may change instances */
#define SIM_CAP_MONITOR 2u
#define SIM_CAP_GI(minor, gi)     (3u + (minor) * 135u + (gi) * 9u)
#define SIM_CAP_CI(minor, gi, ci) (SIM_CAP_GI(minor, gi) + 1u + (ci))

/* A robust, process-shared pthread mutex. `ready` is 0 in a fresh file; the C libraries make the mutex on
 * first use, so Go writes zeroes. */
struct sim_lock { /* 64 bytes */
	uint8_t  mutex[40];     /* pthread_mutex_t of glibc on x86-64 */
	uint32_t ready;
	uint8_t  pad[20];
};

/* --- nvidiactl --------------------------------------------------------------------------------------- */

/* sim_ctl.flags */
#define SIM_ZERO_COST 0x1u /* null driver: work is checked, not done; nothing waits; memory has no bytes */

struct sim_proc { /* 64 bytes */
	int32_t  pid;           /* as the process itself sees it; 0: slot is free */
	uint32_t generation;    /* raised each time the slot is taken */
	uint64_t started;       /* CLOCK_REALTIME ns when the slot was taken */
	char     comm[16];
	uint8_t  pad[32];
};

struct sim_ctl {
	uint32_t magic, version;
	uint32_t size;          /* of this struct */
	uint32_t flags;
	uint32_t gpu_count;     /* of the node; a process sees those whose nvidiaN it can open */
	uint32_t cuda_version;  /* as cuDriverGetVersion: 13000 */
	char     driver_version[32]; /* 580.95.05 */
	char     nvml_version[32];   /* 13.580.95.05 */
	uint32_t event_futex;   /* futex word, raised with each event of any GPU, after the GPU's own */
	uint8_t  pad0[36];
	struct sim_lock lock;   /* guards proc[] */
	struct sim_proc proc[SIM_MAX_PROCS];
};

/* --- nvidiaN ----------------------------------------------------------------------------------------- */

#define SIM_LINK_GPU    0u
#define SIM_LINK_SWITCH 1u

struct sim_nvlink { /* 16 bytes */
	uint8_t  active, version;
	uint8_t  remote_type;   /* SIM_LINK_GPU or SIM_LINK_SWITCH */
	uint8_t  remote_link;
	uint32_t remote_domain;
	uint8_t  remote_bus, remote_device, remote_function, pad[5];
};

struct sim_mig_profile { /* 64 bytes */
	char     name[16];      /* 1g.18gb+me */
	uint64_t memory;
	uint32_t id;            /* the driver's number (19) */
	uint32_t slot;          /* NVML_GPU_INSTANCE_PROFILE_* */
	uint32_t sms, slices, copy_engines, max, size;
	uint32_t placements;    /* bit i: may start at memory slice i */
	uint8_t  pad[8];
};

struct sim_mig_instance { /* 48 bytes */
	uint8_t  uuid[16];      /* of the MIG device, which is the compute instance */
	uint32_t used;          /* 0: no GPU instance here */
	uint32_t profile;       /* index in mig_profile[] */
	uint32_t start;         /* memory slice */
	uint32_t gi, ci;        /* ids */
	uint32_t compute;       /* it has its compute instance, of the whole size */
	uint8_t  pad[8];
};

/* What does not change while the node runs, but for faults' doing. */
struct sim_facts {
	uint8_t  uuid[16];
	char     name[64], serial[32], vbios[32], board_part[32];
	char     brand[16], architecture[16];
	uint32_t minor;         /* N of nvidiaN */
	uint32_t cc_major, cc_minor;
	uint32_t sm_count;
	uint64_t memory_total;  /* bytes, as NVML's total */
	uint64_t memory_reserved; /* of it, by driver and firmware: never allocatable */
	uint64_t context_bytes; /* what each context takes */
	uint64_t bar1_total;
	uint32_t bus_width;     /* bits */
	uint32_t ecc_capable;
	uint32_t power_limit_mw, power_min_mw, power_max_mw;
	uint32_t sm_clock_mhz, memory_clock_mhz, video_clock_mhz;
	/* PCI */
	uint32_t pci_domain, pci_bus, pci_device, pci_function;
	uint32_t pci_id;        /* device << 16 | vendor, as NVML */
	uint32_t pci_subsystem_id;
	int32_t  numa_node;     /* -1: not known */
	uint32_t pcie_gen_max, pcie_width_max, pcie_gen, pcie_width;
	uint32_t pad0;
	/* Speeds. Bytes a second; 0: no time is taken. */
	uint64_t bw_h2d, bw_d2h, bw_d2d, bw_p2p;
	uint64_t timeslice_ns;  /* of the compute engine among contending processes; 0: 2 ms */
	uint64_t launch_ns;     /* latency of each kernel */
	/* NVLink and MIG */
	uint32_t nvlink_count;
	uint32_t mig_capable;
	uint64_t p2p_mask;      /* bit i: peer access to GPU i (of the node) is possible */
	struct sim_nvlink nvlink[SIM_MAX_NVLINKS];
	uint32_t mig_profile_count, pad1;
	struct sim_mig_profile mig_profile[SIM_MAX_MIG_PROFILES];
	uint8_t  reserved[256];
};

/* One process's use of this GPU. Written by its owner alone while it lives, without a lock. What the GPU holds in all
 * is the sum over the slots that are alive (see above): there is no total that a death could leave wrong. */
struct sim_use { /* 128 bytes */
	uint64_t used;          /* bytes of device memory in all, contexts included: what NVML reports */
	uint64_t context;       /* of it: contexts */
	uint64_t managed;       /* of it: managed memory */
	uint32_t contexts;      /* count */
	uint32_t generation;    /* sim_proc.generation of the writer: if it differs, these numbers are a dead owner's */
	uint64_t busy_compute_ns, busy_h2d_ns, busy_d2h_ns; /* engine time had: the ground truth for shares */
	uint64_t kernels, copies, launch_errors;            /* counts */
	uint64_t allocs, frees, refused;                    /* counts; refused: out of memory */
	uint32_t mig;           /* index in sim_gpu.mig + 1 of the instance that it is all in; 0: the whole GPU */
	uint32_t mps;           /* pid of the MPS server whose client the process is here; 0: of none */
	uint64_t mps_limit;     /* bytes of device memory that the server lets it have; 0: no limit */
	uint32_t mps_percent;   /* of the threads, 1 to 100 */
	uint8_t  pad[4];
};

/* The compute engine is owned by one slot at a time, for a slice; the clients of one MPS server own it together, whichever of
 * them is named, and their kernels run at once. Times are CLOCK_MONOTONIC ns, and run on
 * the engine's own cursor, which may trail the real clock by a late wake-up but never runs ahead of it: so
 * that engine time stays exact though sleeps are not. */
struct sim_engine { /* 192 bytes */
	struct sim_lock lock;
	uint32_t owner;         /* slot + 1; 0: idle */
	uint32_t grant;         /* futex word, raised at each change of owner */
	uint64_t cursor;        /* the engine has run until here */
	uint64_t slice_end;     /* the owner loses it here if others want it; overdue by 5 ms it is taken */
	uint64_t busy_ns;       /* in all */
	uint64_t want[SIM_MAX_PROCS / 64]; /* bit s: slot s has work */
	uint64_t since;         /* the owner, or the clients of its MPS server, have it from here on */
	uint8_t  pad[24];
};

/* A copy engine is a timeline: a copy takes the next free stretch of it, in pieces of at most 1 ms. */
struct sim_copy_engine { /* 64 bytes */
	uint64_t cursor, busy_ns, bytes;
	uint8_t  pad[40];
};

/* What an engine did: a kernel, or the piece of one that was done in a slice. Written without a lock, seq last. */
struct sim_run { /* 32 bytes */
	uint64_t seq;           /* 1, 2, …, as sim_event's */
	uint64_t start, end;    /* engine time */
	uint32_t slot;
	uint32_t rate;          /* of the engine's speed, in thousandths */
};

/* Injected faults. */
#define SIM_FAULT_LOST 0x1u /* fallen off the bus: new contexts 46, old ones 719; NVML: GPU is lost */
#define SIM_FAULT_HANG 0x2u /* work never ends until this is cleared */

struct sim_event { /* 64 bytes */
	uint64_t seq;           /* 1, 2, …; equal to its place in the ring's order once the rest is written */
	uint64_t time_ns;       /* CLOCK_REALTIME */
	uint32_t xid;
	int32_t  pid;           /* host's pid, 0: none */
	uint64_t type;          /* an nvmlEventType bit */
	char     message[32];
};

struct sim_health { /* 384 bytes */
	uint32_t faults;        /* SIM_FAULT_* */
	uint32_t recovery_action; /* nvmlDeviceGpuRecoveryAction_t: 0 none, 1 reset, 2 reboot, 3 drain P2P, 4 drain and reset */
	uint32_t ecc_mode, ecc_pending;
	uint64_t ecc_volatile_corrected, ecc_volatile_uncorrected;
	uint64_t ecc_aggregate_corrected, ecc_aggregate_uncorrected;
	uint32_t remap_corrected, remap_uncorrected, remap_pending, remap_failed;
	uint32_t retired_sbe, retired_dbe, retired_pending;
	uint32_t temperature_c, temperature_memory_c;
	uint32_t power_mw;
	uint32_t sm_clock_mhz, memory_clock_mhz; /* now */
	uint32_t utilization_gpu, utilization_memory; /* percent, last sampled */
	uint64_t energy_mj;
	uint64_t throttle_reasons;
	uint64_t util_sampled_ns, util_sampled_busy; /* the sampler's own: busy_ns of the compute engine at that time */
	uint64_t pcie_replays;
	uint32_t persistence, compute_mode, fan_percent, performance_state;
	uint64_t nvml_hang_until_ns; /* CLOCK_MONOTONIC: until then NVML's calls on this GPU block */
	uint8_t  reserved[216];
};

struct sim_gpu {
	uint32_t magic, version;
	uint32_t size;          /* of this struct */
	uint32_t reserved0;
	uint8_t  pad0[48];
	struct sim_facts facts;
	uint8_t  pad1[8];
	/* live */
	uint32_t mig_mode, mig_mode_pending;
	uint64_t mig_made;      /* compute instances ever made, from which their UUIDs come */
	uint8_t  pad2[112];
	struct sim_engine compute;
	struct sim_copy_engine h2d, d2h;
	struct sim_health health;
	uint64_t event_seq;     /* newest event; 0: none yet */
	uint64_t event_futex;   /* low word: futex, raised with each event */
	uint8_t  pad3[48];
	struct sim_event event[SIM_MAX_EVENTS];
	struct sim_mig_instance mig[SIM_MAX_MIG_INSTANCES];
	struct sim_engine mig_compute[SIM_MAX_MIG_INSTANCES]; /* each has SMs of its own; the copy engines are the GPU's */
	struct sim_use use[SIM_MAX_PROCS];
	uint64_t run_seq;       /* newest in the log; 0: none yet */
	uint8_t  pad4[56];
	struct sim_run run[SIM_MAX_RUNS];
};

_Static_assert(sizeof(struct sim_lock) == 64, "sim_lock");
_Static_assert(sizeof(struct sim_proc) == 64, "sim_proc");

_Static_assert(sizeof(struct sim_nvlink) == 16, "sim_nvlink");
_Static_assert(sizeof(struct sim_mig_profile) == 64, "sim_mig_profile");
_Static_assert(sizeof(struct sim_mig_instance) == 48, "sim_mig_instance");
_Static_assert(sizeof(struct sim_use) == 128, "sim_use");
_Static_assert(sizeof(struct sim_engine) == 192, "sim_engine");
_Static_assert(sizeof(struct sim_copy_engine) == 64, "sim_copy_engine");
_Static_assert(sizeof(struct sim_event) == 64, "sim_event");
_Static_assert(sizeof(struct sim_run) == 32, "sim_run");
_Static_assert(sizeof(struct sim_health) == 384, "sim_health");
_Static_assert(sizeof(struct sim_ctl) == 192 + 64 * SIM_MAX_PROCS, "sim_ctl");
_Static_assert(sizeof(struct sim_gpu) == 9024 + 128 * SIM_MAX_PROCS + 32 * SIM_MAX_RUNS, "sim_gpu");

#endif
