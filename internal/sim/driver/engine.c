/* engine.c: whose turn it is on a GPU, and for how long.
 *
 * The compute engine belongs to one process at a time. It keeps it for a slice; at the slice's end it goes to
 * the next process with work, round robin, and a kernel that is not done goes on in its next slice. A process
 * without work gives it up at once. Contexts of one process share its turns, kernel by kernel.
 *
 * The clients of one MPS server take their turns together, and run at once while they have it, each on a timeline of its
 * own: at the rate of its active thread percentage, and where these are more than a whole engine, at its part of one.
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
#define SHARED_PIECE 1000000u   /* how long an MPS client keeps its rate before it looks who runs beside it */
#define HUNG_POLL 1000000u
#define WHOLE 1000u             /* the engine's speed, in thousandths */

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

/* Do two processes have their turns together? */
static bool together(const struct simdev *d, unsigned a, unsigned b)
{
	uint32_t server = d->gpu->use[a].mps;
	return a == b || (server && server == d->gpu->use[b].mps);
}

static bool owns(const struct simdev *d) { return d->engine->owner && together(d, d->engine->owner - 1, g.slot); }

static bool wanting(struct sim_engine *e, unsigned s)
{
	if (!(e->want[s / 64] >> s % 64 & 1))
		return false;
	if (s == g.slot || slot_alive(s))
		return true;
	set_want(e, s, false);
	return false;
}

/* One of several that have their turns together stands for them all: or they would have as many turns as they are. */
static bool stands_for_others(const struct simdev *d, unsigned s)
{
	for (unsigned i = 0; d->gpu->use[s].mps && i < s; i++)
		if (together(d, i, s) && wanting(d->engine, i))
			return false;
	return true;
}

/* The next process after `from` that has work, `from` itself and those of its server last; 0: none. As slot + 1. */
static uint32_t next_wanting(const struct simdev *d, unsigned from)
{
	struct sim_engine *e = d->engine;
	uint32_t own = 0;
	for (unsigned i = 1; i <= SIM_MAX_PROCS; i++) {
		unsigned s = (from + i) % SIM_MAX_PROCS;
		if (s % 64 == 0 && !e->want[s / 64] && i + 64 <= SIM_MAX_PROCS) {
			i += 63; /* nobody in this word */
			continue;
		}
		if (!wanting(e, s))
			continue;
		if (together(d, from, s))
			own = s + 1;
		else if (stands_for_others(d, s))
			return s + 1;
	}
	return own;
}

/* What this process may take of the engine now, in thousandths: its percentage, or its part where all together want more. */
static uint32_t rate(const struct simdev *d)
{
	uint32_t own = d->use->mps_percent, sum = 0;
	if (!d->use->mps)
		return WHOLE;
	for (unsigned s = 0; s < SIM_MAX_PROCS; s++)
		if ((s % 64 || d->engine->want[s / 64]) && together(d, s, g.slot) && wanting(d->engine, s))
			sum += d->gpu->use[s].mps_percent;
	return own * WHOLE / (sum > 100 ? sum : 100);
}

static void note_run(struct simdev *d, uint64_t start, uint64_t end, uint32_t rate)
{
	uint64_t seq = __atomic_add_fetch(&d->gpu->run_seq, 1, __ATOMIC_RELAXED);
	struct sim_run *r = &d->gpu->run[seq % SIM_MAX_RUNS];
	__atomic_store_n(&r->seq, 0, __ATOMIC_RELEASE);
	r->start = start;
	r->end = end;
	r->slot = g.slot;
	r->rate = rate;
	__atomic_store_n(&r->seq, seq, __ATOMIC_RELEASE);
}

static void hand_to(struct simdev *d, uint32_t owner)
{
	struct sim_engine *e = d->engine;
	if (!e->owner || !owner || !together(d, e->owner - 1, owner - 1))
		e->since = e->cursor;
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
	while (!owns(d)) {
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
	if (owns(d)) {
		uint32_t next = next_wanting(d, g.slot);
		if (!next || !together(d, next - 1, g.slot))
			hand_to(d, next);
		else if (e->owner == g.slot + 1)
			e->owner = next; /* the slice goes on */
	}
	unlock_shared(&e->lock);
}

/* Where the next piece begins. Under e->lock, as owner. MPS clients do not wait for each other. */
static uint64_t piece_start(struct simdev *d, uint64_t earliest)
{
	struct sim_engine *e = d->engine;
	uint64_t now = now_ns(), late = now > MAX_LAG ? now - MAX_LAG : 0;
	if (!d->use->mps) {
		pull_cursor(e, 0);
		return max64(e->cursor, earliest);
	}
	return max64(max64(d->mps_cursor, earliest), max64(e->since, late));
}

/* Gives the engine on at the slice's end. Under e->lock; false: somebody else has it now. */
static bool renew(struct simdev *d, uint64_t start)
{
	struct sim_engine *e = d->engine;
	if (start < e->slice_end)
		return true;
	e->cursor = max64(e->cursor, start);
	hand_to(d, next_wanting(d, e->owner - 1));
	return owns(d);
}

uint64_t engine_compute(struct simdev *d, uint64_t earliest, uint64_t cost)
{
	struct sim_engine *e = d->engine;
	uint64_t end = earliest;
	do {
		acquire(d, end);
		uint64_t start = piece_start(d, end);
		if (!renew(d, start)) {
			unlock_shared(&e->lock);
			continue;
		}
		uint32_t speed = rate(d);
		uint64_t piece = min64((cost * WHOLE + speed - 1) / speed, e->slice_end - start);
		if (d->use->mps)
			piece = min64(piece, SHARED_PIECE);
		unlock_shared(&e->lock);
		sleep_until(start + piece);
		wait_while_hung(d);
		lock_shared(&e->lock);
		uint64_t done = min64(cost, piece * speed / WHOLE);
		end = d->mps_cursor = start + piece;
		cost -= done;
		e->cursor = max64(e->cursor, end);
		e->busy_ns += done;
		__atomic_fetch_add(&d->use->busy_compute_ns, done, __ATOMIC_RELAXED);
		if (e->owner == g.slot + 1 && e->cursor >= e->slice_end)
			hand_to(d, next_wanting(d, g.slot));
		unlock_shared(&e->lock);
		note_run(d, start, end, speed);
	} while (cost && !(faults(d) & SIM_FAULT_LOST) && !mps_lost(d));
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
