/* export.h: what an exported call does before its handler, by class of api.def. Included by hooks.gen.c alone.
 *
 * The C name is kerf_x_<symbol>, the assembler's the symbol's: so a prototype here need not repeat the header's
 * word for word, and nothing inside the shim can call an export by accident.
 */
#ifndef KERF_EXPORT_H
#define KERF_EXPORT_H

#include "session.h"

void kerf_gate_slow(bool count);

#define EXPORT(symbol, params) \
	CUresult kerf_x_##symbol params __asm__(#symbol) __attribute__((visibility("default"))); \
	CUresult kerf_x_##symbol params

/* A driver without the symbol: the shim exports it all the same, and answers as a driver that cannot. */
#define FIND(symbol) \
	fn_##symbol real = REAL(symbol); \
	if (unlikely(!real)) \
		return CUDA_ERROR_NOT_SUPPORTED

#define GUARDED(call) __extension__({ CUresult r_; kerf_depth++; r_ = (call); kerf_depth--; r_; })

#define INIT(symbol, handler, params, args, with_real) \
	EXPORT(symbol, params) { FIND(symbol); return kerf_depth ? real args : GUARDED(handler with_real); }
#define RESOLVE INIT

#define ALLOC(symbol, handler, params, args, with_real) \
	EXPORT(symbol, params) { \
		FIND(symbol); \
		if (kerf_depth) return real args; \
		if (unlikely(!kerf_live())) return kerf_not_live(); \
		return GUARDED(handler with_real); \
	}

#define FREE(symbol, handler, params, args, with_real) \
	EXPORT(symbol, params) { \
		FIND(symbol); \
		if (kerf_depth || unlikely(!kerf_live())) return real args; \
		return GUARDED(handler with_real); \
	}
#define QUERY FREE

#define UNKNOWN(symbol, params, args) \
	EXPORT(symbol, params) { \
		FIND(symbol); \
		if (kerf_depth) return real args; \
		if (kerf_strict()) return CUDA_ERROR_NOT_SUPPORTED; \
		kerf_count_unknown(); \
		return real args; \
	}

/* The gate: two loads, a relaxed load of the policy page's word, a branch. */
static inline __attribute__((always_inline)) void kerf_gate(bool count)
{
	const struct hot *hot = load_relaxed(&kerf_hot);
	const uint32_t *gate = hot->gate;

	if (unlikely(!gate || load_relaxed(gate)))
		kerf_gate_slow(count);
	else if (count)
		store_relaxed(hot->launches, load_relaxed(hot->launches) + 1);
}

#define GATED(symbol, count, params, args) \
	EXPORT(symbol, params) { FIND(symbol); kerf_gate(count); return real args; }
#define LAUNCH(symbol, params, args) GATED(symbol, true, params, args)
#define SUBMIT(symbol, params, args) GATED(symbol, false, params, args)

#define GATED_ON(symbol, count, handler, params, args, with_real) \
	EXPORT(symbol, params) { \
		FIND(symbol); \
		if (kerf_depth) return real args; \
		kerf_gate(count); \
		if (unlikely(!kerf_live())) return real args; \
		return GUARDED(handler with_real); \
	}
#define LAUNCH_ON(symbol, handler, params, args, with_real) GATED_ON(symbol, true, handler, params, args, with_real)
#define SUBMIT_ON(symbol, handler, params, args, with_real) GATED_ON(symbol, false, handler, params, args, with_real)

#endif
