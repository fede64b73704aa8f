/* swap_lease.c: memory that moves by kerfd's order, and what kerfd is told of it.
 *
 * A report says what there is, not what has changed: one that was lost is made good by the next, and after a restart of
 * kerfd the first says all. It is sent with swap_lock held, so that none overtakes a newer one; the socket never waits, and
 * what it had no room for the keeper says again.
 *
 * While kerfd is away nothing moves, and the gate holds. An allocation then takes what the card has free, or waits until
 * kerfd is back, but not for ever.
 */
#define _GNU_SOURCE
#include "lease.h"
#include "swap.h"

#include <string.h>
#include <sys/socket.h>

#define LOOK_AGAIN_MS 100
#define PATIENCE_NS   30000000000ull /* for a kerfd that is away: longer than any restart */

static struct device *device_of(const struct keeper *k, uint32_t index)
{
	for (int i = 0; i < kerf_device_count(); i++)
		if (kerf_device(i)->share == k->share && (uint32_t)kerf_device(i)->index == index)
			return kerf_device(i);
	return NULL;
}

/* --- reports -------------------------------------------------------------------------------------------------- */

static void tell(struct keeper *k, uint32_t device, uint64_t resident, uint64_t absent)
{
	struct orders *o = &k->orders[device];
	struct kerf_lease m = { .kind = KERF_LEASE_MEMORY, .device = device, .memory = resident, .absent = absent, .host = host_bytes() };

	lock(&k->tell);
	m.at = k->hosts;
	m.flags = load_relaxed(&o->asking) != 0;
	m.lease = load_relaxed(&o->done);
	if (k->fd >= 0 && memcmp(&m, &o->told, sizeof m)) {
		if (send(k->fd, &m, sizeof m, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)sizeof m)
			o->told = m;
		else
			store_relaxed(&k->unsaid, 1);
	}
	unlock(&k->tell);
}

static void changed(struct device *d, uint64_t resident, uint64_t absent)
{
	struct keeper *k = kerf_keeper_of(d->share);

	if (k)
		tell(k, (uint32_t)d->index, resident, absent);
}

static void dealt_with(struct keeper *k, uint64_t number)
{
	lock(&k->tell);
	k->hosts = number;
	unlock(&k->tell);
}

/* What the kerfd before ordered and knew. */
static void forget(struct keeper *k, struct orders *o)
{
	lock(&k->tell);
	o->out = o->in = o->given = 0;
	store_relaxed(&o->done, 0);
	memset(&o->told, 0, sizeof o->told);
	unlock(&k->tell);
}

/* kerfd waits for a word on each of the share's devices, those too that this process does not see. */
void kerf_orders_report(struct keeper *k, bool anew)
{
	uint32_t count = load_relaxed(&k->share->policy->device_count);

	if (!(load_relaxed(&k->share->policy->flags) & KERF_POLICY_OVERCOMMIT))
		return;
	store_relaxed(&k->unsaid, 0);
	if (anew)
		dealt_with(k, 0);
	for (uint32_t i = 0; i < count && i < KERF_MAX_DEVICES; i++) {
		struct device *d = device_of(k, i);

		if (anew)
			forget(k, &k->orders[i]);
		if (d)
			kerf_swap_report(d);
		else
			tell(k, i, 0, 0);
	}
}

void kerf_orders_news(struct keeper *k)
{
	fetch_add(&k->news, 1);
	kerf_futex(&k->news, FUTEX_WAKE, INT32_MAX, NULL);
}

/* --- allocations ----------------------------------------------------------------------------------------------- */

/* What the card has free, for a process whose memory is all there otherwise. */
static bool fill_alone(struct device *d)
{
	struct swap_counts c;
	uint64_t moved;

	kerf_swap_look(d, &c);
	if (c.swapped == 0)
		kerf_swap_in(d, UINT64_MAX, &moved);
	return kerf_swap_whole(d);
}

static CUresult wait_for_memory(struct keeper *k, struct device *d, const struct orders *o)
{
	static const struct timespec again = { 0, LOOK_AGAIN_MS * 1000000l };
	uint32_t refused = load_relaxed(&o->refused);
	uint64_t end = 0;

	kerf_swap_report(d);
	for (;;) {
		uint32_t word = load_acquire(&k->news);

		if (kerf_swap_whole(d))
			return CUDA_SUCCESS;
		if (load_relaxed(&o->refused) != refused)
			return CUDA_ERROR_OUT_OF_MEMORY;
		if (load_relaxed(&k->lost)) {
			if (fill_alone(d))
				return CUDA_SUCCESS;
			end = end ? end : kerf_now() + PATIENCE_NS;
			if (kerf_now() > end)
				return CUDA_ERROR_OUT_OF_MEMORY;
		} else {
			end = 0;
		}
		kerf_futex(&k->news, FUTEX_WAIT, word, &again);
	}
}

static CUresult ask(struct device *d)
{
	struct keeper *k = kerf_keeper_of(d->share);
	struct orders *o = k ? &k->orders[d->index] : NULL;
	CUresult r;

	if (!k) /* another share of this process is over-committed, and this one is not */
		return fill_alone(d) ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
	kerf_depth++;
	r = kerf_keeper_first(d);
	fetch_add(&o->asking, 1);
	if (r == CUDA_SUCCESS)
		r = wait_for_memory(k, d, o);
	fetch_add(&o->asking, -1u);
	kerf_depth--;
	return r;
}

void kerf_orders_start(const struct share *s)
{
	static const struct swap_arbiter arbiter = { ask, changed };

	if (~load_relaxed(&s->policy->flags) & (KERF_POLICY_OVERCOMMIT | KERF_POLICY_LEASES))
		return;
	kerf_swap_arbiter = &arbiter;
}

/* --- orders ---------------------------------------------------------------------------------------------------- */

void kerf_orders_heard(struct keeper *k, const struct kerf_lease *m, int fd)
{
	struct orders *o = &k->orders[m->device % KERF_MAX_DEVICES];
	struct device *d = device_of(k, m->device);

	if (!d)
		return;
	switch (m->kind) {
	case KERF_LEASE_OUT:
		o->out += m->memory;
		o->given = m->lease > o->given ? m->lease : o->given;
		break;
	case KERF_LEASE_IN:
		o->in += m->memory;
		o->given = m->lease > o->given ? m->lease : o->given;
		break;
	case KERF_LEASE_REFUSED:
		fetch_add(&o->refused, 1);
		kerf_orders_news(k);
		break;
	case KERF_LEASE_HOST:
		if (fd >= 0 && kerf_host_give(fd, m->memory))
			kerf_host_pin(d);
		dealt_with(k, m->lease);
		kerf_swap_report(d);
		break;
	case KERF_LEASE_TRIM:
		kerf_host_trim();
		dealt_with(k, m->lease);
		kerf_swap_report(d);
		break;
	}
}

bool kerf_orders_wait(const struct keeper *k)
{
	for (int i = 0; i < KERF_MAX_DEVICES; i++)
		if (k->orders[i].out)
			return true;
	return false;
}

bool kerf_orders_open(const struct keeper *k)
{
	for (int i = 0; i < KERF_MAX_DEVICES; i++)
		if (k->orders[i].out || k->orders[i].in)
			return true;
	return false;
}

/* Work runs behind a gate that is not shut: an order to move memory out that comes then is an old one, and is left. kerfd sees
 * that nothing moved. */
void kerf_orders_carry_out(struct keeper *k)
{
	bool shut = __atomic_load_n(&k->share->policy->gate, __ATOMIC_SEQ_CST) == KERF_GATE_SHUT;
	uint64_t moved;

	for (int i = 0; i < kerf_device_count(); i++) {
		struct device *d = kerf_device(i);
		struct orders *o = &k->orders[d->index];

		if (d->share != k->share || !(o->out || o->in))
			continue;
		if (o->out && shut)
			kerf_swap_out(d, o->out, &moved);
		if (o->in)
			kerf_swap_in(d, o->in, &moved);
		o->out = o->in = 0;
		store_relaxed(&o->done, o->given);
		kerf_swap_report(d);
		kerf_orders_news(k);
	}
}
