/* gate.c: whether this process may submit work now.
 *
 * Fails open where there is no session: the real driver then refuses the work itself. An open gate is a relaxed
 * load and a branch in the generated export; what is here runs only when the gate is closed or when there are
 * several shares.
 */
#include "export.h"

#define RECHECK_MS 100 /* kerfd wakes the word; if it died between the two, nobody waits longer than this */

static const uint32_t *gate_of_current(uint64_t **launches)
{
	const struct hot *hot = load_acquire(&kerf_hot);
	struct device *d;
	CUresult why;

	if (hot->gate) {
		*launches = hot->launches;
		return hot->gate;
	}
	d = kerf_live() ? kerf_current_device(&why) : NULL;
	if (!d)
		return NULL;
	*launches = &d->share->slot->launches;
	return &d->share->policy->gate;
}

void kerf_gate_slow(bool count)
{
	static const struct timespec recheck = { 0, RECHECK_MS * 1000000l };
	uint64_t *launches = NULL;
	const uint32_t *gate;
	uint32_t word;

	if (kerf_depth) /* the driver's own submission inside a call that passed the gate */
		return;
	kerf_depth++;
	gate = gate_of_current(&launches);
	kerf_depth--;
	if (!gate)
		return;
	/* Not the private futex: kerfd wakes it through its own writable mapping of the page. */
	while ((word = load_relaxed(gate)) != 0)
		kerf_futex(gate, FUTEX_WAIT, word, &recheck);
	if (count)
		store_relaxed(launches, load_relaxed(launches) + 1);
}
