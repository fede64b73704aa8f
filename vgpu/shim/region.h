/* region.h: the pages that kerfd and the shim share, and the words they say on the share's socket.
 *
 * A share's directory, as a tenant sees it under KERF_ROOT/shares/<id>/:
 *
 *   policy   struct kerf_policy, written by kerfd alone; the tenant has it read-only.
 *   usage    struct kerf_usage, written by the tenant's processes; kerfd folds the slots of dead ones.
 *   socket   SOCK_SEQPACKET: one kerf_hello in, one kerf_welcome out, then closed by both; after KERF_HELLO_LEASE it
 *            stays, and carries kerf_lease both ways.
 *
 * A process maps usage before it says hello and as long as it is attached, whole and once for each copy of the shim: kerfd
 * reads /proc/PID/maps to see which sessions are gone after an exec.
 *
 * vgpu/region mirrors every struct in Go; its parity test compiles this file and compares each offset.
 * All words are little-endian and naturally aligned; a change of layout raises KERF_REGION_VERSION.
 *
 * Who may believe what. Usage is tenant-writable, so nothing in it can raise a limit: each process also
 * keeps its own charges in private memory and compares (a mismatch is refused and reported), and kerfd
 * compares the sums with NVML every second and publishes the difference as `implicit` in the policy.
 */
#ifndef KERF_REGION_H
#define KERF_REGION_H

#include <stdint.h>

#define KERF_REGION_MAGIC   0x4652454bu /* "KERF" */
#define KERF_REGION_VERSION 2u
#define KERF_MAX_DEVICES    16
#define KERF_MAX_SLOTS      512
#define KERF_REASON_LEN     232

/* kerf_policy.flags */
#define KERF_POLICY_STRICT    0x1u /* refuse calls that allocate and are not known, instead of counting them */
#define KERF_POLICY_TAMPERED  0x2u /* usage did not add up: no further allocation in this share */
#define KERF_POLICY_REVOKED   0x4u /* the grant has ended: no new session, no further allocation */
#define KERF_POLICY_SIMULATED 0x8u /* the GPUs are simulated */
#define KERF_POLICY_OVERCOMMIT 0x10u /* linear memory can be swapped out to the host; set before the first attach, and never changed */
#define KERF_POLICY_LEASES 0x20u /* GPU time is leased: the gate opens and shuts, and kerfd must be told of work */
#define KERF_POLICY_HOLD   0x40u /* while kerfd is away a gate that it left shut stays shut; else it opens. OVERCOMMIT implies it */
#define KERF_POLICY_MPS    0x80u /* the share is of tier mps: the process must be a client of the MPS server at KERF_ROOT/mps */

/* kerf_policy.gate. Any other value is taken as shut. */
#define KERF_GATE_OPEN   0u /* nobody else wants the GPU: submit, nothing is watched */
#define KERF_GATE_SHUT   1u
#define KERF_GATE_SHARED 2u /* submit, but no more than a few milliseconds ahead: others wait, or may soon */

/* kerf_policy_device.flags */
#define KERF_DEVICE_MIG 0x1u /* uuid names a MIG device: MIG-…, not GPU-… */

struct kerf_policy_device { /* 128 bytes */
	uint8_t  uuid[16];      /* as cuDeviceGetUuid_v2 gives it: a MIG device's own */
	uint64_t limit;         /* bytes: charged + implicit never exceed it */
	uint64_t guaranteed;    /* bytes: limit, unless the share may burst */
	uint64_t implicit;      /* bytes that NVML sees in this share's processes beyond what they charged; kerfd, each second */
	uint64_t context_bytes; /* bytes that one context takes here, charged when one is created; 0: not learned yet */
	uint32_t cores;         /* percent of GPU time, 0: best effort */
	uint32_t flags;         /* KERF_DEVICE_* */
	uint64_t min_resident;  /* bytes of this device that a process of an over-committed share never swaps out */
	uint64_t host_limit;    /* bytes of host memory that one process may take by itself for what it swaps out, besides what kerfd gives; 0: no limit */
	uint64_t fixed_limit;   /* bytes that an over-committed share may have of memory that cannot be moved, contexts apart; 0: no limit */
	uint8_t  reserved[48];
};

struct kerf_policy {
	uint32_t magic, version;
	uint32_t size;          /* of this struct */
	uint32_t device_count;
	uint32_t flags;
	uint32_t reserved0;
	uint64_t epoch;         /* raised by kerfd after each change */
	char     share[40];     /* the share's id, NUL-terminated */
	uint8_t  pad0[56];
	uint32_t gate;          /* KERF_GATE_*. Alone in its cache line: read on every launch, and a futex word */
	uint8_t  pad1[60];
	struct kerf_policy_device device[KERF_MAX_DEVICES];
	/* The host's pid of each slot's process, 0 where free: what NVML's process lists are filtered by. */
	int32_t  host_pid[KERF_MAX_SLOTS];
};

/* One process's counters. All are bytes unless said. `enter` is raised before and `leave` after each change
 * of charged[] and sum[], so that kerfd can tell a process that was killed between the two words. */
struct kerf_slot { /* 256 bytes */
	uint32_t generation;    /* set by kerfd at attach; 0: free */
	uint32_t flags;         /* KERF_SLOT_* */
	uint64_t enter, leave;  /* count of operations */
	uint64_t charged[KERF_MAX_DEVICES];
	uint64_t host_pinned;   /* page-locked host memory; never counted against a device */
	uint64_t imported;      /* device memory of other processes mapped here; charged where it was created */
	uint64_t launches;      /* count; one writer in a hurry: may lose some under threads */
	uint64_t refused;       /* count of allocations refused at the limit */
	uint64_t unknown;       /* count of calls that may allocate and are not known */
	uint64_t mismatch;      /* count of times the slot differed from the process's private books */
	uint8_t  reserved[56];
};
#define KERF_SLOT_TAMPERED 0x1u /* the process found its slot changed under it */

struct kerf_usage_sum { uint64_t charged; uint8_t pad[56]; };

/* Where the swappable memory of one process of an over-committed share is. Bytes as the card holds them: whole pages, so
 * small allocations count here for more than they are charged. The rest of what is charged (contexts, pools, arrays,
 * graphs, the tenant's own cuMemCreate) stays on the card. Of the slot only if the generations are equal. */
struct kerf_residency { /* 448 bytes */
	uint32_t generation;    /* the slot's */
	uint32_t reserved0;
	uint64_t host;          /* bytes of page-locked host memory taken for swapping, filled or not */
	uint8_t  pad[48];
	uint64_t resident[KERF_MAX_DEVICES];
	uint64_t swapped[KERF_MAX_DEVICES];
	uint64_t moved[KERF_MAX_DEVICES]; /* bytes that were copied in or out, ever */
};

struct kerf_usage {
	uint32_t magic, version;
	uint32_t size;
	uint32_t reserved0;
	uint8_t  pad0[48];
	struct kerf_usage_sum sum[KERF_MAX_DEVICES]; /* of the whole share */
	struct kerf_slot slot[KERF_MAX_SLOTS];
	struct kerf_residency residency[KERF_MAX_SLOTS];
};

/* --- the socket -------------------------------------------------------------------------------------- */

#define KERF_HELLO_ATTACH 1u
#define KERF_HELLO_NOTE   2u /* tell kerfd of something worth a line in its log; answered like attach */
/* A context was made while policy.context_bytes was 0: kerfd reads NVML, and answers once `implicit` counts the context. */
#define KERF_HELLO_MEASURE 3u
/* The connection of an attached process for its leases. It lasts as long as the process does, or until it calls exec. */
#define KERF_HELLO_LEASE 4u

struct kerf_hello {
	uint32_t magic, version;  /* region version: a shim and a kerfd of different versions refuse each other */
	uint32_t kind;
	uint32_t driver_version;  /* as cuDriverGetVersion, 0 where not known */
	uint64_t usage;           /* where this copy of the shim mapped the usage page: it names the session in /proc/PID/maps */
	char     comm[16];
	char     note[64];
};

#define KERF_WELCOME_OK       0u
#define KERF_WELCOME_VERSION  1u /* region versions differ */
#define KERF_WELCOME_FULL     2u /* no free slot */
#define KERF_WELCOME_REVOKED  3u
#define KERF_WELCOME_DENIED   4u /* the peer could not be identified */

struct kerf_welcome {
	uint32_t magic, version;
	uint32_t status;
	uint32_t slot;
	uint32_t generation;      /* equal to slot[slot].generation */
	uint32_t reserved0;
	char     reason[KERF_REASON_LEN]; /* one line: what was asked, what was found, what to do */
};

/* kerf_lease.kind: by kerfd */
#define KERF_LEASE_WATCH 1u /* flags 1: say when work begins and ends; 0: no more */
#define KERF_LEASE_DRAIN 2u /* the gate is shut: answer DRAINED when all that was submitted has ended; flags 1: some went unwatched */
/* by the process */
#define KERF_LEASE_BEGAN   3u /* it waits at the gate, or was seen to submit */
#define KERF_LEASE_ENDED   4u /* it has submitted nothing for a while, and all is done */
#define KERF_LEASE_DRAINED 5u /* flags: microseconds for which it had work since the drain before, at least 1; 0: it cannot tell */
/* of over-committed shares, by kerfd */
#define KERF_LEASE_OUT     6u /* move bytes of a device out, once all that was submitted has ended; the gate is shut */
#define KERF_LEASE_IN      7u /* move bytes in, or make them */
#define KERF_LEASE_REFUSED 8u /* what is asked for can never be had: fail it */
#define KERF_LEASE_HOST    9u /* bytes of host memory to move to: a file comes with the message, by SCM_RIGHTS */
#define KERF_LEASE_TRIM   10u /* give back what of that holds nothing */
/* by the process */
#define KERF_LEASE_MEMORY 11u /* what it has of a device; flags 1: some of absent is asked for, and a thread waits for it */

struct kerf_lease {
	uint32_t kind;
	uint32_t flags;
	uint64_t lease;          /* DRAIN, DRAINED: which. OUT, IN: a number that grows with each, by device; HOST, TRIM likewise, for all devices. MEMORY: the last of OUT and IN that was carried out */
	uint64_t at;             /* DRAINED: when the work ended, CLOCK_MONOTONIC ns. MEMORY: the last of HOST and TRIM that was dealt with */
	uint32_t device;         /* its place in the policy */
	uint32_t reserved0;
	uint64_t memory;         /* bytes. OUT, IN, HOST: so many; MEMORY: resident, whole pages as the card holds them */
	uint64_t absent;         /* MEMORY: out, or not made yet */
	uint64_t host;           /* MEMORY: bytes of host memory that it has to move to, filled or not, for all devices together */
};

#endif
