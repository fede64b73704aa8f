/* meter.c: for how long this process's work was on the GPU during a lease, by the GPU's own clock.
 *
 * A tenant holds the GPU from the opening of its gate to the end of its last work, and for part of that time the GPU has
 * nothing to do: until a thread that waited at the gate has woken up and submitted, and wherever a thread is late to submit
 * more. On a busy machine that is milliseconds of every lease, and more of a lease of long kernels than of one of short ones
 * or the other way about; who is charged by the time held has then less of the GPU than its share.
 *
 * A burst is what a lane does without a pause. Before its first submission a timed event goes in; when a submission finds that
 * the newest marker has passed, the burst ended with that marker. So a burst costs one event beside the markers, and nothing
 * is asked of single kernels. Where a marker is missing the burst counts on to the moment at which its end was seen: this
 * errs towards work, never towards idleness. kerfd bounds what is believed (lease_credit.go).
 *
 * Lanes work at the same time. Their bursts are laid on one line by this machine's clock at their beginning, when the lane was
 * empty and its event went through at once, and what they cover together is the work.
 */
#include "lane.h"

#include <string.h>

/* Sorted, and apart from each other. Where there is no room for one more, the pause before it counts as work. */
static void add_span(struct keeper *k, uint64_t from, uint64_t to)
{
	struct span *span = k->span;
	unsigned low = 0, high;

	while (low < k->spans && span[low].to < from)
		low++;
	for (high = low; high < k->spans && span[high].from <= to; high++) {
		from = span[high].from < from ? span[high].from : from;
		to = span[high].to > to ? span[high].to : to;
	}
	if (high == low && k->spans == KERF_SPANS && low > 0) {
		span[low - 1].to = to;
		return;
	}
	if (high == low && k->spans == KERF_SPANS)
		high = low + 1, to = span[low].to;
	memmove(&span[low + 1], &span[high], (k->spans - high) * sizeof *span);
	k->spans += low + 1 - high;
	span[low] = (struct span){ from, to };
}

void kerf_meter_end(struct lane *l, uint64_t now)
{
	struct burst *b = &l->burst;
	uint64_t ns = now - b->from;
	CUcontext popped;
	float ms;

	if (!b->from)
		return;
	if (b->timed && b->last && !l->open.n && !REAL(cuCtxPushCurrent_v2)(l->ctx)) {
		if (!REAL(cuEventElapsedTime)(&ms, b->start, b->last) && ms >= 0 && (double)ms * 1e6 < (double)ns)
			ns = (uint64_t)((double)ms * 1e6);
		REAL(cuCtxPopCurrent_v2)(&popped);
	}
	if (l->keeper)
		add_span(l->keeper, b->from, b->from + ns);
	b->from = 0;
}

/* What has no marker behind it may be at work still; and a query for each segment is enough. */
void kerf_meter_begin(struct lane *l)
{
	struct burst *b = &l->burst;

	if (b->from && (l->open.n || !b->last || REAL(cuEventQuery)(b->last) == CUDA_ERROR_NOT_READY))
		return;
	kerf_meter_end(l, kerf_now());
	b->last = NULL;
	b->timed = kerf_lane_event(l, &b->start, CU_EVENT_DEFAULT) && kerf_lane_record(l, b->start);
	b->from = kerf_now();
}

uint64_t kerf_meter_read(struct keeper *k)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < k->spans; i++)
		sum += k->span[i].to - k->span[i].from;
	k->spans = 0;
	return sum;
}
