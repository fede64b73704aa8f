/* account.c: charge a device before the driver takes memory, discharge after it gave it back.
 *
 * Three records change together: this process's books (private), its slot, and the share's sum (both in pages
 * that the tenant can write). Nothing read from those pages can raise the limit: the sum never counts for less
 * than this process's own charge, and a slot that differs from the books refuses everything from then on. Every
 * check here fails closed: no room, a page that does not add up, a revoked grant are all out of memory.
 *
 * The share's lock is private to the process; between processes there is only the compare-and-swap on the sum.
 * A process killed between `enter` and `leave` leaves them unequal, and kerfd then recomputes the sum.
 */
#include "shim.h"

/* The slot says what we last wrote. Anything else was written by someone else. */
static bool slot_agrees(struct share *s, struct device *d)
{
	struct kerf_slot *slot = s->slot;

	return load_relaxed(&slot->generation) == s->generation && load_relaxed(&slot->enter) == s->enter &&
	       load_relaxed(&slot->leave) == s->leave && load_relaxed(&slot->charged[d->index]) == d->own;
}

static void tampered(struct share *s)
{
	s->tampered = true;
	if (load_relaxed(&s->slot->generation) != s->generation)
		return; /* the slot is another process's by now */
	fetch_add(&s->slot->mismatch, 1);
	__atomic_fetch_or(&s->slot->flags, KERF_SLOT_TAMPERED, __ATOMIC_RELAXED);
}

/* `enter` first, then the change (release), then `leave` (release): the order in which kerfd may see them. */
static void enter(struct share *s)
{
	store_relaxed(&s->slot->enter, ++s->enter);
}

static void leave(struct share *s)
{
	store_release(&s->slot->leave, ++s->leave);
}

/* Adds to the sum if it stays under the limit. Compare-and-swap rather than add-then-check: an overshoot that is
 * taken back could refuse another process that was within the limit. */
static bool add_to_sum(struct device *d, uint64_t bytes, bool force)
{
	const struct kerf_policy_device *p = &d->share->policy->device[d->index];
	uint64_t *sum = &d->share->usage->sum[d->index].charged;
	uint64_t limit = load_relaxed(&p->limit), implicit = load_relaxed(&p->implicit);
	uint64_t seen = load_acquire(sum), base;

	do {
		if (seen < d->own) {
			tampered(d->share);
			if (!force)
				return false;
		}
		base = seen > d->own ? seen : d->own;
		if (!force && (bytes > limit || implicit > limit - bytes || base > limit - bytes - implicit))
			return false;
	} while (!swap_if(sum, &seen, base + bytes));
	return true;
}

/* Nothing at all is refused too where everything is: a context whose price is not known yet is charged as that. */
static CUresult charge(struct device *d, uint64_t bytes, bool force)
{
	struct share *s = d->share;
	bool ok;

	lock(&s->lock);
	if (unlikely(!slot_agrees(s, d)))
		tampered(s);
	ok = !s->tampered && !(load_relaxed(&s->policy->flags) & (KERF_POLICY_TAMPERED | KERF_POLICY_REVOKED));
	if (bytes && likely(ok || force)) {
		enter(s);
		store_release(&s->slot->charged[d->index], d->own + bytes);
		ok = add_to_sum(d, bytes, force);
		if (ok)
			d->own += bytes;
		else
			store_release(&s->slot->charged[d->index], d->own);
		leave(s);
	}
	if (!ok)
		fetch_add(&s->slot->refused, 1);
	unlock(&s->lock);
	return ok ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

void kerf_reclaim(struct device *d)
{
	kerf_pools_trim(d);
	kerf_graphs_trim(d);
}

CUresult kerf_charge(struct device *d, uint64_t bytes)
{
	CUresult r = charge(d, bytes, false);

	if (likely(r == CUDA_SUCCESS))
		return r;
	kerf_reclaim(d);
	return charge(d, bytes, false);
}

void kerf_charge_anyway(struct device *d, uint64_t bytes)
{
	charge(d, bytes, true);
}

void kerf_discharge(struct device *d, uint64_t bytes)
{
	struct share *s = d->share;
	uint64_t *sum = &s->usage->sum[d->index].charged, seen;

	if (bytes == 0)
		return;
	lock(&s->lock);
	if (unlikely(!slot_agrees(s, d)))
		tampered(s);
	d->own -= bytes < d->own ? bytes : d->own;
	if (load_relaxed(&s->slot->generation) == s->generation) {
		enter(s);
		store_release(&s->slot->charged[d->index], d->own);
		seen = load_acquire(sum);
		while (!swap_if(sum, &seen, seen > bytes ? seen - bytes : 0))
			;
		leave(s);
	}
	unlock(&s->lock);
}

CUresult kerf_recharge(struct device *d, uint64_t from, uint64_t to)
{
	if (to > from)
		return kerf_charge(d, to - from);
	kerf_discharge(d, from - to);
	return CUDA_SUCCESS;
}

uint64_t kerf_room(struct device *d)
{
	struct room r = share_room(d->share, d->index);
	uint64_t own = load_relaxed(&d->own);

	if (r.used < own)
		r.used = own;
	return r.used < r.limit ? r.limit - r.used : 0;
}

void kerf_add_host_pinned(int64_t bytes)
{
	struct device *d = kerf_device(0);

	if (d)
		fetch_add(&d->share->slot->host_pinned, (uint64_t)bytes);
}

void kerf_add_imported(struct device *d, int64_t bytes)
{
	fetch_add(&d->share->slot->imported, (uint64_t)bytes);
}
