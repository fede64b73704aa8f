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

/* What a share's other processes have that cannot be moved, as they say themselves: a liar gets no more under the limit of the
 * share, but may stand in another tenant's way. Each is taken to have one context. */
static uint64_t fixed_of_others(const struct device *d)
{
	const struct share *s = d->share;
	uint64_t context = load_relaxed(&s->policy->device[d->index].context_bytes), sum = 0;

	for (int i = 0; i < KERF_MAX_SLOTS; i++) {
		const struct kerf_slot *slot = &s->usage->slot[i];
		const struct kerf_residency *r = &s->usage->residency[i];
		uint32_t generation = load_relaxed(&slot->generation);
		uint64_t apart = context, charged = __atomic_load_n(&slot->charged[d->index], __ATOMIC_SEQ_CST);

		if (slot == s->slot || generation == 0)
			continue;
		if (load_relaxed(&r->generation) == generation)
			apart += load_relaxed(&r->resident[d->index]) + load_relaxed(&r->swapped[d->index]);
		sum += charged > apart ? charged - apart : 0;
	}
	return sum;
}

/* Memory that stays on an over-committed card takes the room that others were promised: they could never be in again. Asked after the
 * charge is in the slot, where the share's other processes see it: of two at once at most both are refused. */
static bool over_fixed(struct device *d, uint64_t bytes)
{
	uint64_t limit = load_relaxed(&d->share->policy->device[d->index].fixed_limit), others;

	if (likely(limit == 0))
		return false;
	__atomic_fetch_add(&d->share->slot->charged[d->index], 0, __ATOMIC_SEQ_CST); /* ours is seen before the others are read */
	others = fixed_of_others(d);
	return bytes > limit || d->fixed > limit - bytes || others > limit - bytes - d->fixed;
}

static void say_fixed(void)
{
	kerf_say("out of memory: pools (cuMemAllocAsync), arrays, managed memory, graphs' memory and cuMemCreate cannot leave an over-committed GPU, and the share has as much of it as the others' promises leave; use cuMemAlloc, or see kerf explain");
}

static void take_from_sum(struct device *d, uint64_t bytes)
{
	uint64_t *sum = &d->share->usage->sum[d->index].charged, seen = load_acquire(sum);

	while (!swap_if(sum, &seen, seen > bytes ? seen - bytes : 0))
		;
}

enum how { FIXED, APART, FORCED };

/* Nothing at all is refused too where everything is: a context whose price is not known yet is charged as that. */
static CUresult charge(struct device *d, uint64_t bytes, enum how how)
{
	struct share *s = d->share;
	bool ok, force = how == FORCED, full = false;

	lock(&s->lock);
	if (unlikely(!slot_agrees(s, d)))
		tampered(s);
	ok = !s->tampered && !(load_relaxed(&s->policy->flags) & (KERF_POLICY_TAMPERED | KERF_POLICY_REVOKED));
	if (bytes && likely(ok || force)) {
		enter(s);
		store_release(&s->slot->charged[d->index], d->own + bytes);
		ok = add_to_sum(d, bytes, force);
		full = ok && how == FIXED && over_fixed(d, bytes);
		if (full)
			take_from_sum(d, bytes);
		ok = ok && !full;
		d->fixed += ok && how != APART ? bytes : 0;
		if (ok)
			d->own += bytes;
		else
			store_release(&s->slot->charged[d->index], d->own);
		leave(s);
	}
	if (!ok)
		fetch_add(&s->slot->refused, 1);
	unlock(&s->lock);
	if (unlikely(full))
		say_fixed();
	return ok ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

void kerf_reclaim(struct device *d)
{
	kerf_pools_trim(d);
	kerf_graphs_trim(d);
}

static CUresult charge_or_reclaim(struct device *d, uint64_t bytes, enum how how)
{
	CUresult r = charge(d, bytes, how);

	if (likely(r == CUDA_SUCCESS))
		return r;
	kerf_reclaim(d);
	return charge(d, bytes, how);
}

CUresult kerf_charge(struct device *d, uint64_t bytes)
{
	return charge_or_reclaim(d, bytes, FIXED);
}

CUresult kerf_charge_apart(struct device *d, uint64_t bytes)
{
	return charge_or_reclaim(d, bytes, APART);
}

void kerf_charge_anyway(struct device *d, uint64_t bytes)
{
	charge(d, bytes, FORCED);
}

static void discharge(struct device *d, uint64_t bytes, enum how how)
{
	struct share *s = d->share;

	if (bytes == 0)
		return;
	lock(&s->lock);
	if (unlikely(!slot_agrees(s, d)))
		tampered(s);
	d->own -= bytes < d->own ? bytes : d->own;
	if (how != APART)
		d->fixed -= bytes < d->fixed ? bytes : d->fixed;
	if (load_relaxed(&s->slot->generation) == s->generation) {
		enter(s);
		store_release(&s->slot->charged[d->index], d->own);
		take_from_sum(d, bytes);
		leave(s);
	}
	unlock(&s->lock);
}

void kerf_discharge(struct device *d, uint64_t bytes)
{
	discharge(d, bytes, FIXED);
}

void kerf_discharge_apart(struct device *d, uint64_t bytes)
{
	discharge(d, bytes, APART);
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
