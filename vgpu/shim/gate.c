/* gate.c: whether this process may submit work now.
 *
 * Fails open where there is no session: the real driver then refuses the work itself. An open gate is a relaxed
 * load and a branch in the generated export; what is here runs only when the gate is not simply open, or when there
 * are several shares.
 *
 * A shared gate is open, but others wait, or may soon: what is queued ahead is then bounded, or a drain would last for
 * as long as the program was ahead of the GPU. What a stream captures is no work, and passes always.
 *
 * The one way past a shut gate: a thread that has read an open word and is not in the driver's call yet when the word
 * changes. It gets one submission through, and only at the first change from open; while the gate is shared, a drain
 * waits for threads inside.
 */
#include "lease.h"
#include "export.h"

#define RECHECK_MS 100 /* kerfd wakes the word; if it died between the two, nobody waits longer than this */

bool kerf_gate_lets(const struct keeper *k, uint32_t word)
{
	return word == KERF_GATE_OPEN || word == KERF_GATE_SHARED || (k && load_relaxed(&k->away));
}

static struct share *share_of_current(void)
{
	struct device *d;
	CUresult why;

	d = kerf_live() ? kerf_current_device(&why) : NULL;
	return d ? d->share : NULL;
}

/* Not the private futex: kerfd wakes it through its own writable mapping of the page. */
static void wait_at(struct keeper *k, const uint32_t *gate)
{
	static const struct timespec recheck = { 0, RECHECK_MS * 1000000l };
	uint32_t word;

	if (kerf_gate_lets(k, load_relaxed(gate)))
		return;
	fetch_add(&k->waiting, 1);
	while (!kerf_gate_lets(k, word = load_relaxed(gate))) {
		kerf_keeper_start(k);
		kerf_keeper_began(k);
		kerf_futex(gate, FUTEX_WAIT, word, &recheck);
	}
	fetch_add(&k->waiting, -1u);
}

/* What is captured names memory without using it, and passes; but the real driver may ask what an address is, and one whose
 * memory is out is not mapped. So in an over-committed share it waits like work, and is counted among those inside. */
static bool passes(const struct share *s, bool capturing)
{
	return capturing && !(load_relaxed(&s->policy->flags) & KERF_POLICY_OVERCOMMIT);
}

static void pause_ns(uint64_t ns)
{
	struct timespec t = { 0, (long)(ns < 900000000 ? ns : 900000000) };

	nanosleep(&t, NULL); /* cut short by a signal: the gate is looked at again */
}

/* Inside, or what is to be waited for before the next try. */
static uint64_t enter(struct pass *p, const uint32_t *gate)
{
	struct keeper *k = p->keeper;
	uint64_t ahead;
	uint32_t word;

	__atomic_fetch_add(&k->inside, 1, __ATOMIC_SEQ_CST);
	word = __atomic_load_n(gate, __ATOMIC_SEQ_CST);
	if (word != KERF_GATE_SHARED) {
		if (kerf_gate_lets(k, word))
			return 0;
		__atomic_fetch_sub(&k->inside, 1, __ATOMIC_SEQ_CST);
		return 1;
	}
	ahead = p->lane && p->key ? kerf_lane_ahead(p->lane) : 0;
	if (ahead)
		__atomic_fetch_sub(&k->inside, 1, __ATOMIC_SEQ_CST);
	return ahead;
}

void kerf_gate_slow(struct pass *p, bool count, struct at to)
{
	const uint32_t *gate;
	uint64_t ahead;
	struct share *s;
	bool capturing;

	p->keeper = NULL;
	if (kerf_depth) /* the driver's own submission inside a call that passed the gate */
		return;
	kerf_depth++;
	s = share_of_current();
	if (s && count)
		store_relaxed(&s->slot->launches, load_relaxed(&s->slot->launches) + 1);
	gate = s ? &s->policy->gate : NULL;
	if (gate && load_relaxed(gate) != KERF_GATE_OPEN && !passes(s, capturing = kerf_capturing(to.stream))) {
		p->keeper = kerf_keeper_of(s);
		p->lane = capturing ? NULL : kerf_lane_of(to.stream, to.per_thread, p->keeper);
		p->key = to.key;
		for (;;) {
			wait_at(p->keeper, gate);
			ahead = enter(p, gate);
			if (!ahead)
				break;
			fetch_add(&p->keeper->waiting, 1);
			if (ahead > 1)
				pause_ns(ahead);
			fetch_add(&p->keeper->waiting, -1u);
		}
		fetch_add(&p->keeper->submitted, 1);
		kerf_keeper_start(p->keeper);
		kerf_keeper_began(p->keeper);
	}
	kerf_depth--;
}

void kerf_gate_done(struct pass *p, CUresult r)
{
	if (!p->keeper)
		return;
	kerf_depth++;
	if (p->lane && r == CUDA_SUCCESS && load_relaxed(&p->keeper->share->policy->gate) != KERF_GATE_OPEN)
		kerf_lane_submitted(p->lane, p->key);
	__atomic_fetch_sub(&p->keeper->inside, 1, __ATOMIC_SEQ_CST);
	kerf_depth--;
}
