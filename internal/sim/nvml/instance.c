/* instance.c: MIG mode is switched, and instances are made and destroyed, one at a time a GPU: under the lock of driver/mig.h, which
 * goes with its holder. The word that puts an instance in force is written last, and first when it ends, so that a death on the way
 * leaves the instance or none.
 *
 * Who may: whoever can open the capability of the configuration, which is root on the node and nobody in a container.
 */
#define _GNU_SOURCE
#include "node.h"

#include <string.h>

/* Takes the lock of a GPU's instances. */
static nv_return begin(const struct gpu *g, int *lock)
{
	if (!may(SIM_CAP_CONFIG))
		return NV_NO_PERMISSION;
	*lock = sim_mig_lock(node.root, g->s->facts.minor);
	return *lock < 0 ? NV_UNKNOWN : NV_SUCCESS;
}

static bool anybody_in(const struct handle *of)
{
	struct user u[SIM_MAX_PROCS];
	return users(of, u) > 0;
}

/* --- the mode ---------------------------------------------------------------------------------------- */

/* What becomes of the wish: the mode changes at once on a GPU that nobody uses, and waits for a reset on another. */
static nv_return switch_mode(struct gpu *g, unsigned mode)
{
	if (mode == g->s->mig_mode) {
		g->s->mig_mode_pending = mode;
		return NV_SUCCESS;
	}
	if (occupied(g))
		return NV_IN_USE;
	g->s->mig_mode_pending = mode;
	if (anybody_in(&g->self))
		return NV_IN_USE;
	g->s->mig_mode = mode;
	return NV_SUCCESS;
}

NVML nv_return nvmlDeviceSetMigMode(nv_device d, unsigned mode, nv_return *activation)
{
	int lock;
	ENTER(d, activation && mode <= 1);
	if (!g->s->facts.mig_capable)
		return NV_NOT_SUPPORTED;
	nv_return r = begin(g, &lock);
	if (r != NV_SUCCESS)
		return r;
	*activation = switch_mode(g, mode);
	sim_mig_unlock(lock);
	return NV_SUCCESS;
}

/* --- GPU instances ----------------------------------------------------------------------------------- */

static uint32_t slices(unsigned start, unsigned size) { return ((1u << size) - 1) << start; }

/* One number for each place that an instance can have, as the driver has 15 of them. */
static unsigned gi_id(unsigned start, unsigned size)
{
	switch (size) {
	case 8:  return 0;
	case 4:  return 1 + start / 4;
	case 2:  return 3 + start / 2;
	default: return 7 + start;
	}
}

static bool too_many(const struct gpu *g, const struct sim_mig_profile *p)
{
	unsigned n = 0;
	for (unsigned i = 0; i < SIM_MAX_MIG_INSTANCES; i++)
		n += sim_instance(&g->s->mig[i]) && profile_of(&g->gi[i]) == p;
	return n >= p->max;
}

/* The first place where the profile fits. */
static bool find_start(const struct gpu *g, const struct sim_mig_profile *p, unsigned *start)
{
	uint32_t taken = occupied(g);
	for (*start = 0; *start < 32; ++*start)
		if (p->placements >> *start & 1 && !(taken & slices(*start, p->size)))
			return true;
	return false;
}

static nv_return make_at(struct gpu *g, const struct sim_mig_profile *p, unsigned start, nv_gpu_instance *out)
{
	unsigned i = 0;
	while (i < SIM_MAX_MIG_INSTANCES && g->s->mig[i].used)
		i++;
	if (i == SIM_MAX_MIG_INSTANCES || too_many(g, p) || occupied(g) & slices(start, p->size))
		return NV_INSUFFICIENT_RESOURCES;
	struct sim_mig_instance *in = &g->s->mig[i];
	*in = (struct sim_mig_instance){ .profile = (uint32_t)(p - g->s->facts.mig_profile), .start = start, .gi = gi_id(start, p->size) };
	if (!cap_put(g->s->facts.minor, in->gi, -1))
		return NV_UNKNOWN;
	__atomic_store_n(&in->used, 1, __ATOMIC_RELEASE);
	*out = &g->gi[i];
	return NV_SUCCESS;
}

/* at: NULL, then the first place that is free. */
static nv_return make(nv_device d, unsigned id, const struct nv_placement *at, nv_gpu_instance *out)
{
	unsigned start;
	int lock;
	ENTER(d, out);
	if (!g->s->mig_mode)
		return NV_NOT_SUPPORTED;
	const struct sim_mig_profile *p = profile_by_id(g, id);
	if (!p || (at && (at->start >= 32 || !(p->placements >> at->start & 1) || at->size != p->size)))
		return NV_INVALID_ARGUMENT;
	nv_return r = begin(g, &lock);
	if (r != NV_SUCCESS)
		return r;
	if (at)
		start = at->start;
	r = at || find_start(g, p, &start) ? make_at(g, p, start, out) : NV_INSUFFICIENT_RESOURCES;
	sim_mig_unlock(lock);
	return r;
}

NVML nv_return nvmlDeviceCreateGpuInstance(nv_device d, unsigned id, nv_gpu_instance *out) { return make(d, id, NULL, out); }

NVML nv_return nvmlDeviceCreateGpuInstanceWithPlacement(nv_device d, unsigned id, const struct nv_placement *at, nv_gpu_instance *out)
{
	return at ? make(d, id, at, out) : NV_INVALID_ARGUMENT;
}

NVML nv_return nvmlGpuInstanceDestroy(nv_gpu_instance gi)
{
	int lock;
	nv_return r;
	struct handle *h = enter_instance(gi, &r);
	if (!h || (r = begin(h->gpu, &lock)) != NV_SUCCESS)
		return r;
	struct sim_mig_instance *in = instance_of(h);
	if (!in->used) {
		r = NV_INVALID_ARGUMENT; /* another was faster */
	} else if (in->compute) {
		r = NV_IN_USE;
	} else {
		__atomic_store_n(&in->used, 0, __ATOMIC_RELEASE);
		cap_drop(h->gpu->s->facts.minor, in->gi, -1);
	}
	sim_mig_unlock(lock);
	return r;
}

/* --- compute instances ------------------------------------------------------------------------------- */

static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15u;
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
	x = (x ^ x >> 27) * 0x94d049bb133111ebu;
	return x ^ x >> 31;
}

/* Never the same twice on a node: nobody may take a new instance for the one that was there before. */
static void name_device(struct sim_gpu *s, uint8_t uuid[16])
{
	uint64_t half[2], n = ++s->mig_made;
	memcpy(half, s->facts.uuid, sizeof half);
	half[0] = mix(half[0] ^ n);
	half[1] = mix(half[1] ^ mix(n));
	memcpy(uuid, half, sizeof half);
	uuid[6] = (uint8_t)((uuid[6] & 0x0f) | 0x50);
	uuid[8] = (uint8_t)((uuid[8] & 0x3f) | 0x80);
}

static nv_return make_compute(nv_gpu_instance gi, unsigned id, const struct nv_placement *at, nv_compute_instance *out)
{
	int lock;
	nv_return r;
	struct handle *h = enter_instance(gi, &r);
	if (!h)
		return r;
	if (!out || id != whole_profile(h) || (at && (at->start != 0 || at->size != profile_of(h)->slices)))
		return NV_INVALID_ARGUMENT;
	if ((r = begin(h->gpu, &lock)) != NV_SUCCESS)
		return r;
	struct sim_mig_instance *in = instance_of(h);
	if (!in->used) {
		r = NV_INVALID_ARGUMENT;
	} else if (in->compute) {
		r = NV_INSUFFICIENT_RESOURCES;
	} else if (!cap_put(h->gpu->s->facts.minor, in->gi, (int)in->ci)) {
		r = NV_UNKNOWN;
	} else {
		name_device(h->gpu->s, in->uuid);
		__atomic_store_n(&in->compute, 1, __ATOMIC_RELEASE);
		*out = &h->gpu->ci[h->n];
	}
	sim_mig_unlock(lock);
	return r;
}

NVML nv_return nvmlGpuInstanceCreateComputeInstance(nv_gpu_instance gi, unsigned id, nv_compute_instance *out)
{
	return make_compute(gi, id, NULL, out);
}

NVML nv_return nvmlGpuInstanceCreateComputeInstanceWithPlacement(nv_gpu_instance gi, unsigned id, const struct nv_placement *at, nv_compute_instance *out)
{
	return at ? make_compute(gi, id, at, out) : NV_INVALID_ARGUMENT;
}

NVML nv_return nvmlComputeInstanceDestroy(nv_compute_instance ci)
{
	int lock;
	nv_return r;
	struct handle *c = initialized() ? as_handle(ci, H_CI) : NULL;
	struct handle *h = c ? enter_instance(&c->gpu->gi[c->n], &r) : NULL;
	if (!c)
		return initialized() ? NV_INVALID_ARGUMENT : NV_UNINITIALIZED;
	if (!h || (r = begin(h->gpu, &lock)) != NV_SUCCESS)
		return r;
	struct sim_mig_instance *in = instance_of(h);
	if (!sim_mig_device(in)) {
		r = NV_INVALID_ARGUMENT;
	} else if (anybody_in(c)) {
		r = NV_IN_USE;
	} else {
		__atomic_store_n(&in->compute, 0, __ATOMIC_RELEASE);
		cap_drop(h->gpu->s->facts.minor, in->gi, (int)in->ci);
	}
	sim_mig_unlock(lock);
	return r;
}
