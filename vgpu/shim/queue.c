/* queue.c: about how much work is queued in a stream while others wait, and what ends it.
 *
 * Work that passes a shared gate is priced: by function, by executable graph, by kind and size of copy. Behind every half
 * millisecond of it an event is recorded, and when the event has passed, the price is corrected by the time that it took
 * since the one before. What only marks or waits has no price, or it would take half of its neighbour's. Prices are only for
 * the queue's bound; a tenant pays for time, not for estimates.
 *
 * Markers are timed, for meter.c: at 2.5 us each that is half a percent of the work before them. They are not of single
 * kernels unless those are that long.
 */
#include "lane.h"

#include <string.h>

#define SEGMENT_NS  500000u   /* of work between two markers */
#define SEGMENT_MAX 256       /* submissions between two markers */
#define HIGH_NS     4000000u  /* queued ahead: no more than this */
#define LOW_NS      2000000u  /* and on again below this, which must outlast a thread's waking up */
#define UNKNOWN_NS  1000000u  /* price of what was never seen */
#define SHORTEST_NS 50000u    /* sleep */
#define LONGEST_NS  1000000u
#define PRICES      1024

static struct { uint64_t key, ns; } price[PRICES]; /* under kerf_lanes_lock */

static uint64_t price_of(uint64_t key)
{
	unsigned i = kerf_lane_hash(key) % PRICES;

	return price[i].key == key ? price[i].ns : UNKNOWN_NS;
}

static void learn(uint64_t key, uint64_t ns)
{
	unsigned i = kerf_lane_hash(key) % PRICES;

	if (price[i].key != key)
		price[i].ns = ns;
	else
		price[i].ns = (price[i].ns * 3 + ns) / 4;
	price[i].key = key;
}

/* An event asked about while any thread captures would end that capture, unless the asking thread says that it knows. */
static CUstreamCaptureMode relax(void)
{
	CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_RELAXED;

	if (!REAL(cuThreadExchangeStreamCaptureMode) || REAL(cuThreadExchangeStreamCaptureMode)(&mode))
		return CU_STREAM_CAPTURE_MODE_RELAXED;
	return mode;
}

static void unrelax(CUstreamCaptureMode mode)
{
	if (mode != CU_STREAM_CAPTURE_MODE_RELAXED)
		REAL(cuThreadExchangeStreamCaptureMode)(&mode);
}

static struct segment *at(struct lane *l, unsigned i)
{
	return &l->ring[(l->head + i) % RING];
}

static uint64_t worth(const struct segment *g)
{
	return g->key ? g->n * price_of(g->key) : g->ns;
}

/* Takes off what has passed, and learns from it. Who was late to look sees several pass at once, and spreads the time. Where all
 * has passed the GPU may have stood still for part of that time, so that it says no more than what the work took at most. */
void kerf_queue_reap(struct lane *l, uint64_t now)
{
	uint64_t spent = now - l->since, sum = 0;
	unsigned done = 0;

	while (done < l->count && REAL(cuEventQuery)(at(l, done)->marker) != CUDA_ERROR_NOT_READY)
		sum += worth(at(l, done++));
	if (!done)
		return;
	for (unsigned i = 0; i < done; i++) {
		struct segment *g = at(l, i);

		if (g->key && sum && (done < l->count || spent < sum))
			learn(g->key, (uint64_t)((double)worth(g) / (double)g->n * (double)spent / (double)sum) + 1);
	}
	l->head = (l->head + done) % RING;
	l->count -= done;
	l->since = now;
}

static uint64_t queued(struct lane *l, uint64_t now)
{
	uint64_t sum = worth(&l->open), first, ran = now - l->since;

	for (unsigned i = 0; i < l->count; i++)
		sum += worth(at(l, i));
	first = l->count ? worth(at(l, 0)) : worth(&l->open);
	return sum - (ran < first ? ran : first);
}

static bool too_much(struct lane *l, uint64_t rest)
{
	return l->count && (rest > (l->full ? LOW_NS : HIGH_NS) || l->count == RING);
}

/* The driver is asked only where the books say that it is too much, and by meter.c once a segment. */
uint64_t kerf_lane_ahead(struct lane *l)
{
	uint64_t now, rest, wait = 0;
	CUstreamCaptureMode mode;

	lock(&kerf_lanes_lock);
	if (l->id) {
		now = kerf_now();
		mode = relax();
		rest = queued(l, now);
		if (too_much(l, rest)) {
			kerf_queue_reap(l, now);
			rest = queued(l, now);
		}
		l->full = too_much(l, rest);
		if (l->full) {
			wait = rest > LOW_NS ? rest - LOW_NS : 0;
			wait = wait < SHORTEST_NS ? SHORTEST_NS : wait > LONGEST_NS ? LONGEST_NS : wait;
			if (l->open.n)
				kerf_queue_mark(l, now); /* the thread may come back late: then it can be told when this ended */
		} else {
			kerf_meter_begin(l);
		}
		unrelax(mode);
	}
	unlock(&kerf_lanes_lock);
	return wait;
}

/* A full ring goes on without a marker: the next one stands for this work too. */
void kerf_queue_mark(struct lane *l, uint64_t now)
{
	struct segment *g = at(l, l->count);
	CUevent e;

	if (l->count == RING || !kerf_lane_event(l, &g->marker, CU_EVENT_DEFAULT) || !kerf_lane_record(l, g->marker))
		return;
	e = g->marker;
	*g = l->open;
	g->marker = e;
	memset(&l->open, 0, sizeof l->open);
	l->burst.last = e;
	if (l->count++ == 0)
		l->since = now;
}

void kerf_lane_submitted(struct lane *l, uint64_t key)
{
	struct segment *g = &l->open;
	uint64_t now;

	lock(&kerf_lanes_lock);
	if (l->id)
		l->touched = true;
	if (l->id && key) {
		now = kerf_now();
		if (g->n && g->key != key)
			g->ns = worth(g), g->key = 0;
		else
			g->key = key;
		g->n++;
		g->ns += price_of(key);
		if (!l->count && g->n == 1)
			l->since = now;
		if (worth(g) >= SEGMENT_NS || g->n >= SEGMENT_MAX)
			kerf_queue_mark(l, now);
	}
	unlock(&kerf_lanes_lock);
}

void kerf_queue_forget(struct lane *l)
{
	l->full = false;
	l->head = l->count = 0;
	memset(&l->open, 0, sizeof l->open);
}
