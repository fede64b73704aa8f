/* export.h: what an exported call does before its handler, by class of api.def. Included by hooks.gen.c alone.
 *
 * The C name is kerf_x_<symbol>, the assembler's the symbol's: so a prototype here need not repeat the header's
 * word for word, and nothing inside the shim can call an export by accident.
 */
#ifndef KERF_EXPORT_H
#define KERF_EXPORT_H

#include "lease.h"

struct at { CUstream stream; uint64_t key; bool per_thread; };

void kerf_gate_slow(struct pass *p, bool count, struct at to);
void kerf_gate_done(struct pass *p, CUresult r);

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

/* The gate: two loads, a relaxed load of the policy page's word, a branch. False: the slow path decides. */
static inline __attribute__((always_inline)) bool kerf_gate(bool count)
{
	const struct hot *hot = load_relaxed(&kerf_hot);
	const uint32_t *gate = hot->gate;

	if (unlikely(!gate || load_relaxed(gate)))
		return false;
	if (count)
		store_relaxed(hot->launches, load_relaxed(hot->launches) + 1);
	return true;
}

/* To which stream work goes, what tells its price (0: it has none), and whether the NULL stream is the thread's own. Looked at on the slow path alone. */
#define AT(stream, key, per_thread) ((struct at){ (stream), (uint64_t)(key), per_thread })
#define CONFIG_STREAM(config) ((config) ? (config)->hStream : NULL)
#define CALL_KEY(symbol, bytes) ((uint64_t)H_##symbol << 8 | (unsigned)(64 - __builtin_clzll((uint64_t)(bytes) | 1)))

#define THROUGH_GATE(count, at, call) __extension__({ \
	struct pass pass_; \
	CUresult through_; \
	kerf_gate_slow(&pass_, count, at); \
	through_ = (call); \
	kerf_gate_done(&pass_, through_); \
	through_; })

#define GATED(symbol, count, at, params, args) \
	EXPORT(symbol, params) { \
		FIND(symbol); \
		if (likely(kerf_gate(count))) return real args; \
		return THROUGH_GATE(count, at, real args); \
	}
#define LAUNCH(symbol, at, params, args) GATED(symbol, true, at, params, args)
#define SUBMIT(symbol, at, params, args) GATED(symbol, false, at, params, args)
#define MARK SUBMIT

#define GATED_ON(symbol, count, at, handler, params, args, with_real) \
	EXPORT(symbol, params) { \
		FIND(symbol); \
		if (kerf_depth) return real args; \
		if (unlikely(!kerf_gate(count))) \
			return THROUGH_GATE(count, at, kerf_live() ? GUARDED(handler with_real) : real args); \
		return GUARDED(handler with_real); \
	}
#define LAUNCH_ON(symbol, at, handler, params, args, with_real) GATED_ON(symbol, true, at, handler, params, args, with_real)
#define SUBMIT_ON(symbol, at, handler, params, args, with_real) GATED_ON(symbol, false, at, handler, params, args, with_real)

#endif
