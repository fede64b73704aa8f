/* engine.c: whose turn it is on a GPU, and for how long.
 *
 * The compute engine belongs to one process at a time. It keeps it for a slice; at the slice's end it goes to
 * the next process with work, round robin, and a kernel that is not done goes on in its next slice. A process
 * without work gives it up at once. Contexts of one process share its turns, kernel by kernel.
 *
 * Time is the engine's own (its cursor), not the sleeper's: a piece of work that starts at t and takes c ends
 * at t + c however late this thread wakes, and the next may start there, in the past. So engine time is exact,
 * and shares can be asserted to the nanosecond. A cursor that falls far behind (an idle engine, a stopped
 * owner) is pulled forward, since lost time is not owed to anyone.
 */
#define _GNU_SOURCE
#include "sim.h"

#include <errno.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define DEFAULT_SLICE 2000000u  /* 2 ms */
#define GRACE 5000000u          /* an owner that late at its slice's end is dead, stopped or starved: others go on */
#define MAX_LAG 8000000u        /* how far behind the clock the cursor may be */
#define COPY_PIECE 1000000u     /* copies of several processes alternate in pieces of 1 ms */
#define HUNG_POLL 1000000u

static uint64_t max64(uint64_t a, uint64_t b) { return a > b ? a : b; }
static uint64_t min64(uint64_t a, uint64_t b) { return a < b ? a : b; }

static uint64_t slice(const struct simdev *d)
{
	return d->gpu->facts.timeslice_ns ? d->gpu->facts.timeslice_ns : DEFAULT_SLICE;
}

static void futex_wake(uint32_t *word) { syscall(SYS_futex, word, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0); }

static void futex_wait_until(uint32_t *word, uint32_t seen, uint64_t t)
{
	struct timespec ts = { (time_t)(t / 1000000000u), (long)(t % 1000000000u) };
	syscall(SYS_futex, word, FUTEX_WAIT_BITSET, seen, &ts, NULL, FUTEX_BITSET_MATCH_ANY);
}

void wait_while_hung(const struct simdev *d)
{
	while ((faults(d) & (SIM_FAULT_HANG | SIM_FAULT_LOST)) == SIM_FAULT_HANG) {
		struct timespec ts = { 0, HUNG_POLL };
		nanosleep(&ts, NULL);
	}
}

/* --- ownership; all under e->lock -------------------------------------------------------------------- */

static void set_want(struct sim_engine *e, unsigned s, bool on)
{
	if (on)
		e->want[s / 64] |= (uint64_t)1 << s % 64;
	else
		e->want[s / 64] &= ~((uint64_t)1 << s % 64);
}

/* The next process after `from` that has work, `from` itself last; 0: none. As slot + 1. */
static uint32_t next_wanting(struct sim_engine *e, unsigned from)
{
	for (unsigned i = 1; i <= SIM_MAX_PROCS; i++) {
		unsigned s = (from + i) % SIM_MAX_PROCS;
		if (s % 64 == 0 && !e->want[s / 64] && i + 64 <= SIM_MAX_PROCS) {
			i += 63; /* nobody in this word */
			continue;
		}
		if (!(e->want[s / 64] >> s % 64 & 1))
			continue;
		if (s == g.slot || slot_alive(s))
			return s + 1;
		set_want(e, s, false);
	}
	return 0;
}

static void hand_to(struct simdev *d, uint32_t owner)
{
	struct sim_engine *e = d->engine;
	e->owner = owner;
	e->slice_end = e->cursor + slice(d);
	__atomic_fetch_add(&e->grant, 1, __ATOMIC_RELEASE);
	futex_wake(&e->grant);
}

static void pull_cursor(struct sim_engine *e, uint64_t earliest)
{
	uint64_t now = now_ns();
	e->cursor = max64(e->cursor, now > MAX_LAG ? now - MAX_LAG : 0);
	if (e->cursor < earliest)
		e->cursor = earliest;
}

/* Takes the lock and comes back holding it, as owner. */
static void acquire(struct simdev *d, uint64_t earliest)
{
	struct sim_engine *e = d->engine;
	uint32_t me = g.slot + 1;
	lock_shared(&e->lock);
	set_want(e, g.slot, true);
	while (e->owner != me) {
		bool hung = faults(d) & SIM_FAULT_HANG;
		uint64_t overdue = e->slice_end + GRACE, now = now_ns();
		if (e->owner == 0 || (now >= overdue && !hung)) {
			e->cursor = e->owner ? max64(e->cursor, e->slice_end) : e->cursor;
			pull_cursor(e, earliest);
			hand_to(d, me);
			break;
		}
		uint32_t seen = __atomic_load_n(&e->grant, __ATOMIC_ACQUIRE);
		unlock_shared(&e->lock);
		futex_wait_until(&e->grant, seen, hung ? now + HUNG_POLL : overdue);
		lock_shared(&e->lock);
	}
}

void engine_release(struct simdev *d)
{
	struct sim_engine *e = d->engine;
	lock_shared(&e->lock);
	set_want(e, g.slot, false);
	if (e->owner == g.slot + 1)
		hand_to(d, next_wanting(e, g.slot));
	unlock_shared(&e->lock);
}

uint64_t engine_compute(struct simdev *d, uint64_t earliest, uint64_t cost)
{
	struct sim_engine *e = d->engine;
	uint64_t end = earliest;
	do {
		acquire(d, end);
		pull_cursor(e, 0);
		uint64_t start = max64(e->cursor, end);
		if (start >= e->slice_end) {
			uint32_t next = next_wanting(e, g.slot);
			e->cursor = start;
			hand_to(d, next);
			unlock_shared(&e->lock);
			if (next != g.slot + 1)
				continue;
			lock_shared(&e->lock);
			if (e->owner != g.slot + 1) {
				unlock_shared(&e->lock);
				continue;
			}
		}
		uint64_t piece = min64(cost, e->slice_end - start);
		unlock_shared(&e->lock);
		sleep_until(start + piece);
		wait_while_hung(d);
		lock_shared(&e->lock);
		end = start + piece;
		cost -= piece;
		e->cursor = max64(e->cursor, end);
		e->busy_ns += piece;
		__atomic_fetch_add(&d->use->busy_compute_ns, piece, __ATOMIC_RELAXED);
		if (e->owner == g.slot + 1 && e->cursor >= e->slice_end)
			hand_to(d, next_wanting(e, g.slot));
		unlock_shared(&e->lock);
	} while (cost && !(faults(d) & SIM_FAULT_LOST));
	return end;
}

/* --- copies ------------------------------------------------------------------------------------------ */

/* The next free stretch of the timeline. Its end; lock-free, so that no death can block it. */
static uint64_t book(struct sim_copy_engine *e, uint64_t earliest, uint64_t length)
{
	uint64_t now = now_ns(), seen = __atomic_load_n(&e->cursor, __ATOMIC_RELAXED), end;
	do {
		end = max64(max64(seen, earliest), now > MAX_LAG ? now - MAX_LAG : 0) + length;
	} while (!__atomic_compare_exchange_n(&e->cursor, &seen, end, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
	return end;
}

uint64_t engine_copy(struct simdev *d, enum unit_kind which, uint64_t earliest, uint64_t cost, uint64_t bytes)
{
	struct sim_copy_engine *e = which == UNIT_H2D ? &d->gpu->h2d : &d->gpu->d2h;
	uint64_t *busy = which == UNIT_H2D ? &d->use->busy_h2d_ns : &d->use->busy_d2h_ns;
	uint64_t end = earliest;
	while (cost && !(faults(d) & SIM_FAULT_LOST)) {
		uint64_t piece = min64(cost, COPY_PIECE);
		end = book(e, end, piece);
		sleep_until(end);
		cost -= piece;
		__atomic_fetch_add(&e->busy_ns, piece, __ATOMIC_RELAXED);
		__atomic_fetch_add(busy, piece, __ATOMIC_RELAXED);
	}
	__atomic_fetch_add(&e->bytes, bytes, __ATOMIC_RELAXED);
	wait_while_hung(d);
	return end;
}
