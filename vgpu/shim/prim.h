/* prim.h: atomics, a lock for private memory, and the thread-local recursion guard. */
#ifndef KERF_PRIM_H
#define KERF_PRIM_H

#include <linux/futex.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define likely(x)   __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

#define load_relaxed(p)     __atomic_load_n((p), __ATOMIC_RELAXED)
#define load_acquire(p)     __atomic_load_n((p), __ATOMIC_ACQUIRE)
#define store_relaxed(p, v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)
#define store_release(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
#define fetch_add(p, v)     __atomic_fetch_add((p), (v), __ATOMIC_RELAXED)
#define swap_if(p, old, v)  __atomic_compare_exchange_n((p), (old), (v), false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)

#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))

/* How many frames of the shim are on this thread's stack. A driver that calls its own exported names lands in
 * the shim again, since the shim comes first in ELF scope; inner calls go straight through. Initial-exec, since
 * the general model allocates on first use, which is not safe everywhere a driver call is; one word, since a
 * dlopen'ed library's initial-exec storage comes out of a small reserve. */
extern __thread unsigned kerf_depth __attribute__((tls_model("initial-exec")));

static inline long kerf_futex(const uint32_t *word, int op, uint32_t val, const struct timespec *timeout)
{
	return syscall(SYS_futex, word, op, val, timeout, NULL, 0);
}

/* A mutex for memory of this process alone, never for shared pages: 0 free, 1 held, 2 held with waiters. */
struct lock { uint32_t word; };

static inline void lock(struct lock *l)
{
	uint32_t seen = 0;
	if (likely(swap_if(&l->word, &seen, 1)))
		return;
	while (__atomic_exchange_n(&l->word, 2, __ATOMIC_ACQUIRE) != 0)
		kerf_futex(&l->word, FUTEX_WAIT_PRIVATE, 2, NULL);
}

static inline bool trylock(struct lock *l)
{
	uint32_t seen = 0;

	return swap_if(&l->word, &seen, 1);
}

static inline void unlock(struct lock *l)
{
	if (unlikely(__atomic_exchange_n(&l->word, 0, __ATOMIC_RELEASE) == 2))
		kerf_futex(&l->word, FUTEX_WAKE_PRIVATE, 1, NULL);
}

#endif
