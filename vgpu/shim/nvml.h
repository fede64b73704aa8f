/* nvml.h: the few types of NVML that its shim reads, in our own words, and the exports. */
#ifndef KERF_NVML_H
#define KERF_NVML_H

#include "prim.h"
#include "share.h"

typedef struct nvmlDevice_st *nvmlDevice_t;
typedef enum {
	NVML_SUCCESS = 0, NVML_ERROR_UNINITIALIZED = 1, NVML_ERROR_INVALID_ARGUMENT = 2, NVML_ERROR_NOT_SUPPORTED = 3, NVML_ERROR_NO_PERMISSION = 4,
	NVML_ERROR_NOT_FOUND = 6, NVML_ERROR_INSUFFICIENT_SIZE = 7, NVML_ERROR_FUNCTION_NOT_FOUND = 13,
	NVML_ERROR_MEMORY = 20
} nvmlReturn_t;

struct memory { unsigned long long total, free, used; };
struct memory_v2 { unsigned int version; unsigned long long total, reserved, free, used; };

struct process { unsigned int pid; unsigned long long used; };
struct process_v2 { unsigned int pid; unsigned long long used; unsigned int gpu_instance, compute_instance; };
struct process_detail { unsigned int pid; unsigned long long used; unsigned int gpu_instance, compute_instance; unsigned long long protected; };
struct process_details { unsigned int version, mode, count; struct process_detail *list; };
struct process_sample { unsigned int pid; unsigned long long at; unsigned int sm, memory, encoder, decoder; };
struct process_utilization { unsigned long long at; unsigned int pid, sm, memory, encoder, decoder, jpeg, flow; };
struct process_utilizations { unsigned int version, count; unsigned long long since; struct process_utilization *list; };

_Static_assert(sizeof(struct process) == 16 && sizeof(struct process_v2) == 24, "process lists");
_Static_assert(sizeof(struct process_detail) == 32 && sizeof(struct process_details) == 24, "process details");
_Static_assert(sizeof(struct process_sample) == 32 && sizeof(struct process_utilization) == 40, "utilization");
_Static_assert(sizeof(struct memory_v2) == 40 && sizeof(struct process_utilizations) == 24, "memory, utilizations");

#include "nvml_hooks.gen.h"

/* The recursion guard: NVML's own calls to its exported names land here too. */
#define HOOK(symbol, handler, params, args, with_real) \
	nvmlReturn_t kerf_x_##symbol params __asm__(#symbol) __attribute__((visibility("default"))); \
	nvmlReturn_t kerf_x_##symbol params \
	{ \
		fn_##symbol real = REAL(symbol); \
		nvmlReturn_t r; \
		if (unlikely(!real)) return NVML_ERROR_FUNCTION_NOT_FOUND; \
		if (kerf_depth) return real args; \
		kerf_depth++; \
		r = handler with_real; \
		kerf_depth--; \
		return r; \
	}

#endif
