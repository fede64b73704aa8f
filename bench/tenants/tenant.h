/* tenant.h: what the tenant programs share: a GPU opened, memory that is checked, a report.
 *
 * Tenants are ordinary linked programs of the CUDA driver API: nothing in them knows of Kerf, and the same
 * binary runs on a simulated and on a real GPU. Each value that a tenant writes is read back and compared,
 * so that a byte of one tenant in the memory of another would show.
 */
#ifndef KERF_TENANT_H
#define KERF_TENANT_H

#include <signal.h>
#include <stddef.h>
#include <stdint.h>

#include "internal/cuda/cuabi.h"

struct tenant {
	const char *name;
	int json;             /* lines of JSON on stdout in place of text */
	int simulated;        /* the card says that it is */
	char card[256];
	size_t total;         /* bytes that cuMemGetInfo says the card has: in a slice, the limit */
	size_t free_at_start; /* with this context there */
	CUdevice device;
	CUcontext context;
	CUfunction fill, checksum, spin;
	CUdeviceptr sum;      /* where checksum leaves its result */
	uint64_t verified, wrong; /* regions read back, and how many were not as written */
};

/* Ends the process with 1 and a line that names the call and the driver's word for the error. */
#define CU(tenant, call) cu_check(tenant, call, #call)
void cu_check(const struct tenant *tenant, CUresult result, const char *call);

/* The driver's name for an error; never NULL. */
const char *cu_name(CUresult result);

/* cuInit, the first device, a context, the kernels. Ends the process where one of them fails. */
void tenant_open(struct tenant *tenant, const char *name);
void tenant_close(struct tenant *tenant);

/* Free bytes by cuMemGetInfo. */
size_t tenant_free_bytes(const struct tenant *tenant);

/* Writes the word of `seed` over bytes (a multiple of 4) at p by a kernel, or on the host. tenant_verify reads
 * it back from the GPU by another kernel, counts in verified and wrong, and returns 0 where it is as written. */
void tenant_fill(struct tenant *tenant, CUdeviceptr p, size_t bytes, uint32_t seed);
void tenant_pattern(uint32_t *words, size_t bytes, uint32_t seed);
int tenant_verify(struct tenant *tenant, CUdeviceptr p, size_t bytes, uint32_t seed);

/* Keeps the GPU busy for so many microseconds, in the stream. */
void tenant_spin(struct tenant *tenant, CUstream stream, uint64_t microseconds);

/* Memory held in chunks, the first `touched` bytes of each of which carry a pattern: a tenant may hold more
 * than the machine of a simulated GPU has. */
struct holding {
	CUdeviceptr *chunk;
	size_t count, chunk_bytes, touched;
	uint32_t seed;
};

/* Allocates `bytes` in chunks and fills them. Ends the process where less is to be had. */
void holding_take(struct tenant *tenant, struct holding *holding, size_t bytes, uint32_t seed);
/* Verifies every chunk, or the one whose turn it is. Returns how many were wrong. */
int holding_verify(struct tenant *tenant, const struct holding *holding);
int holding_verify_one(struct tenant *tenant, const struct holding *holding, size_t turn);
void holding_release(struct tenant *tenant, struct holding *holding);

/* Set by SIGTERM and SIGINT: the main loop ends, and the report is still given. */
extern volatile sig_atomic_t tenant_stop;
void tenant_stop_on_signals(void);

/* Seconds on a clock that only moves forward. */
double now_seconds(void);
void sleep_seconds(double seconds);

/* One line on stdout: `text` and the word "simulated" where the card is or, where json is set, an object of
 * "tenant", "event", "simulated", "card" and then `members`, a printf format. */
void tenant_say(const struct tenant *tenant, const char *event, const char *text, const char *members, ...)
	__attribute__((format(printf, 4, 5)));

#endif
