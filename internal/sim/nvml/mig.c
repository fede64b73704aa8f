/* mig.c: MIG mode, what a GPU can be cut into, what it is cut into, and the devices that come of it. */
#define _GNU_SOURCE
#include "node.h"

#include <stdio.h>
#include <string.h>

struct sim_mig_instance *instance_of(const struct handle *h) { return &h->gpu->s->mig[h->n]; }
const struct sim_mig_profile *profile_of(const struct handle *h) { return &h->gpu->s->facts.mig_profile[instance_of(h)->profile % SIM_MAX_MIG_PROFILES]; }

bool shown(const struct handle *mig)
{
	return mig->gpu->s->mig_mode && sim_mig_usable(node.root, mig->gpu->s, instance_of(mig));
}

NVML nv_return nvmlDeviceGetMigMode(nv_device d, unsigned *current, unsigned *pending)
{
	ENTER(d, current && pending);
	if (!g->s->facts.mig_capable)
		return NV_NOT_SUPPORTED;
	*current = g->s->mig_mode;
	*pending = g->s->mig_mode_pending;
	return NV_SUCCESS;
}

NVML nv_return nvmlDeviceGetMaxMigDeviceCount(nv_device d, unsigned *count)
{
	ENTER(d, count);
	*count = g->s->facts.mig_capable ? 7 : 0;
	return NV_SUCCESS;
}

NVML nv_return nvmlDeviceIsMigDeviceHandle(nv_device d, unsigned *is)
{
	ENTER_BY(enter_any, d, is);
	*is = d->kind == H_MIG;
	return NV_SUCCESS;
}

NVML nv_return nvmlDeviceGetMigDeviceHandleByIndex(nv_device d, unsigned index, nv_device *mig)
{
	ENTER(d, mig);
	if (index >= SIM_MAX_MIG_INSTANCES || !shown(&g->mig[index]))
		return NV_NOT_FOUND;
	*mig = &g->mig[index];
	return NV_SUCCESS;
}

NVML nv_return nvmlDeviceGetDeviceHandleFromMigDeviceHandle(nv_device mig, nv_device *d)
{
	ENTER_BY(enter_any, mig, d && mig->kind == H_MIG);
	*d = &g->self;
	return NV_SUCCESS;
}

NVML nv_return nvmlDeviceGetGpuInstanceId(nv_device mig, unsigned *id)
{
	ENTER_BY(enter_any, mig, id && mig->kind == H_MIG);
	*id = instance_of(mig)->gi;
	return NV_SUCCESS;
}

NVML nv_return nvmlDeviceGetComputeInstanceId(nv_device mig, unsigned *id)
{
	ENTER_BY(enter_any, mig, id && mig->kind == H_MIG);
	*id = instance_of(mig)->ci;
	return NV_SUCCESS;
}

NVML nv_return nvmlDeviceGetAttributes_v2(nv_device mig, struct nv_attributes *out)
{
	ENTER_BY(enter_any, mig, out);
	if (mig->kind != H_MIG)
		return NV_NOT_SUPPORTED;
	const struct sim_mig_profile *p = profile_of(mig);
	*out = (struct nv_attributes){
		.sms = p->sms, .copy_engines = p->copy_engines, .gi_slices = p->slices, .ci_slices = p->slices, .memory_mb = p->memory >> 20,
	};
	return NV_SUCCESS;
}

NVML nv_return nvmlDeviceGetAttributes(nv_device mig, struct nv_attributes *out) { return nvmlDeviceGetAttributes_v2(mig, out); }

/* --- profiles ---------------------------------------------------------------------------------------- */

static const struct sim_mig_profile *by_slot(const struct gpu *g, unsigned slot)
{
	for (unsigned i = 0; i < g->s->facts.mig_profile_count; i++)
		if (g->s->facts.mig_profile[i].slot == slot)
			return &g->s->facts.mig_profile[i];
	return NULL;
}

const struct sim_mig_profile *profile_by_id(const struct gpu *g, unsigned id)
{
	for (unsigned i = 0; i < g->s->facts.mig_profile_count; i++)
		if (g->s->facts.mig_profile[i].id == id)
			return &g->s->facts.mig_profile[i];
	return NULL;
}

NVML nv_return nvmlDeviceGetGpuInstanceProfileInfo(nv_device d, unsigned slot, struct nv_gi_profile *out)
{
	ENTER(d, out);
	const struct sim_mig_profile *p = by_slot(g, slot);
	if (!p)
		return NV_NOT_SUPPORTED;
	*out = (struct nv_gi_profile){
		.id = p->id, .slices = p->slices, .count = p->max, .sms = p->sms, .copy_engines = p->copy_engines, .memory_mb = p->memory >> 20,
	};
	return NV_SUCCESS;
}

static nv_return versioned_profile(const struct sim_mig_profile *p, struct nv_gi_profile_v2 *out)
{
	unsigned version = out->version;
	if (version_is(version, struct nv_gi_profile_v2, 2)) {
		*out = (struct nv_gi_profile_v2){
			.version = version, .id = p->id, .slices = p->slices, .count = p->max, .sms = p->sms,
			.copy_engines = p->copy_engines, .memory_mb = p->memory >> 20,
		};
		snprintf(out->name, sizeof out->name, "MIG %s", p->name);
		return NV_SUCCESS;
	}
	if (version_is(version, struct nv_gi_profile_v3, 3)) {
		struct nv_gi_profile_v3 *v3 = (struct nv_gi_profile_v3 *)(void *)out;
		*v3 = (struct nv_gi_profile_v3){
			.version = version, .id = p->id, .slices = p->slices, .count = p->max, .sms = p->sms,
			.copy_engines = p->copy_engines, .memory_mb = p->memory >> 20,
		};
		snprintf(v3->name, sizeof v3->name, "MIG %s", p->name);
		return NV_SUCCESS;
	}
	return NV_VERSION_MISMATCH;
}

NVML nv_return nvmlDeviceGetGpuInstanceProfileInfoV(nv_device d, unsigned slot, struct nv_gi_profile_v2 *out)
{
	ENTER(d, out);
	const struct sim_mig_profile *p = by_slot(g, slot);
	return p ? versioned_profile(p, out) : NV_NOT_SUPPORTED;
}

NVML nv_return nvmlDeviceGetGpuInstanceProfileInfoByIdV(nv_device d, unsigned id, struct nv_gi_profile_v2 *out)
{
	ENTER(d, out);
	const struct sim_mig_profile *p = profile_by_id(g, id);
	return p ? versioned_profile(p, out) : NV_NOT_SUPPORTED;
}

NVML nv_return nvmlDeviceGetGpuInstancePossiblePlacements_v2(nv_device d, unsigned id, struct nv_placement *out, unsigned *count)
{
	ENTER(d, count);
	const struct sim_mig_profile *p = profile_by_id(g, id);
	if (!p || !g->s->mig_mode)
		return NV_NOT_SUPPORTED;
	unsigned room = out ? *count : 0, n = 0;
	for (unsigned start = 0; start < 32; start++) {
		if (!(p->placements >> start & 1))
			continue;
		if (n < room)
			out[n] = (struct nv_placement){ start, p->size };
		n++;
	}
	*count = n;
	return out && n > room ? NV_INSUFFICIENT_SIZE : NV_SUCCESS;
}

NVML nv_return nvmlDeviceGetGpuInstancePossiblePlacements(nv_device d, unsigned id, struct nv_placement *out, unsigned *count)
{
	return nvmlDeviceGetGpuInstancePossiblePlacements_v2(d, id, out, count);
}

uint32_t occupied(const struct gpu *g)
{
	uint32_t mask = 0;
	for (unsigned i = 0; i < SIM_MAX_MIG_INSTANCES; i++)
		if (sim_instance(&g->s->mig[i]))
			mask |= ((1u << profile_of(&g->mig[i])->size) - 1) << g->s->mig[i].start;
	return mask;
}

NVML nv_return nvmlDeviceGetGpuInstanceRemainingCapacity(nv_device d, unsigned id, unsigned *count)
{
	ENTER(d, count);
	const struct sim_mig_profile *p = profile_by_id(g, id);
	if (!p || !g->s->mig_mode)
		return NV_NOT_SUPPORTED;
	uint32_t taken = occupied(g), mask = (1u << p->size) - 1;
	*count = 0;
	for (unsigned start = 0; start < 32 && *count < p->max; start++)
		if (p->placements >> start & 1 && !(taken & mask << start)) {
			taken |= mask << start;
			++*count;
		}
	return NV_SUCCESS;
}

/* --- instances --------------------------------------------------------------------------------------- */

NVML nv_return nvmlDeviceGetGpuInstances(nv_device d, unsigned id, nv_gpu_instance *out, unsigned *count)
{
	ENTER(d, out && count);
	if (!profile_by_id(g, id) || !g->s->mig_mode)
		return NV_NOT_SUPPORTED;
	*count = 0;
	for (unsigned i = 0; i < SIM_MAX_MIG_INSTANCES; i++)
		if (sim_instance(&g->s->mig[i]) && profile_of(&g->mig[i])->id == id)
			out[(*count)++] = &g->gi[i];
	return NV_SUCCESS;
}

NVML nv_return nvmlDeviceGetGpuInstanceById(nv_device d, unsigned id, nv_gpu_instance *out)
{
	ENTER(d, out);
	if (!g->s->mig_mode)
		return NV_NOT_SUPPORTED;
	for (unsigned i = 0; i < SIM_MAX_MIG_INSTANCES; i++)
		if (sim_instance(&g->s->mig[i]) && g->s->mig[i].gi == id) {
			*out = &g->gi[i];
			return NV_SUCCESS;
		}
	return NV_NOT_FOUND;
}

struct handle *enter_instance(nv_gpu_instance gi, nv_return *why)
{
	struct handle *h = as_handle(gi, H_GI);
	struct gpu *g;
	*why = !initialized() ? NV_UNINITIALIZED : h && sim_instance(instance_of(h)) ? enter(&h->gpu->self, &g) : NV_INVALID_ARGUMENT;
	return *why == NV_SUCCESS ? h : NULL;
}

/* Starts a call on a GPU instance; declares h. */
#define ENTER_GI(gi, ok)                                   \
	nv_return why_;                                    \
	struct handle *h = enter_instance(gi, &why_);      \
	do {                                               \
		if (!h)                                    \
			return why_;                       \
		if (!(ok))                                 \
			return NV_INVALID_ARGUMENT;        \
	} while (0)

NVML nv_return nvmlGpuInstanceGetInfo(nv_gpu_instance gi, struct nv_gi_info *out)
{
	ENTER_GI(gi, out);
	*out = (struct nv_gi_info){ &h->gpu->self, instance_of(h)->gi, profile_of(h)->id, { instance_of(h)->start, profile_of(h)->size } };
	return NV_SUCCESS;
}

/* --- compute instances: one, of the GPU instance's whole size ---------------------------------------- */

/* NVML_COMPUTE_INSTANCE_PROFILE_* by slices; it is the driver's number of the profile, too. */
unsigned whole_profile(const struct handle *h)
{
	static const unsigned by_slices[] = { 0, 0, 1, 2, 3, 3, 6, 4, 5 };
	return by_slices[profile_of(h)->slices % (sizeof by_slices / sizeof by_slices[0])];
}

static struct nv_ci_profile_v3 compute_profile(const struct handle *h)
{
	const struct sim_mig_profile *p = profile_of(h);
	struct nv_ci_profile_v3 out = { .id = whole_profile(h), .slices = p->slices, .count = 1, .sms = p->sms, .copy_engines = p->copy_engines };
	snprintf(out.name, sizeof out.name, "MIG %s", p->name);
	return out;
}

NVML nv_return nvmlGpuInstanceGetComputeInstanceProfileInfo(nv_gpu_instance gi, unsigned profile, unsigned engines, struct nv_ci_profile *out)
{
	ENTER_GI(gi, out && engines == 0);
	if (profile != whole_profile(h))
		return NV_NOT_SUPPORTED;
	struct nv_ci_profile_v3 p = compute_profile(h);
	memcpy(out, &p.id, sizeof *out);
	return NV_SUCCESS;
}

NVML nv_return nvmlGpuInstanceGetComputeInstanceProfileInfoV(nv_gpu_instance gi, unsigned profile, unsigned engines, struct nv_ci_profile_v2 *out)
{
	ENTER_GI(gi, out && engines == 0);
	if (profile != whole_profile(h))
		return NV_NOT_SUPPORTED;
	struct nv_ci_profile_v3 p = compute_profile(h);
	p.version = out->version;
	if (version_is(p.version, struct nv_ci_profile_v2, 2))
		memcpy(out, &p, sizeof *out);
	else if (version_is(p.version, struct nv_ci_profile_v3, 3))
		memcpy(out, &p, sizeof p);
	else
		return NV_VERSION_MISMATCH;
	return NV_SUCCESS;
}

NVML nv_return nvmlGpuInstanceGetComputeInstanceRemainingCapacity(nv_gpu_instance gi, unsigned id, unsigned *count)
{
	ENTER_GI(gi, count);
	if (id != whole_profile(h))
		return NV_NOT_SUPPORTED;
	*count = !sim_mig_device(instance_of(h));
	return NV_SUCCESS;
}

NVML nv_return nvmlGpuInstanceGetComputeInstancePossiblePlacements(nv_gpu_instance gi, unsigned id, struct nv_placement *out, unsigned *count)
{
	ENTER_GI(gi, count);
	if (id != whole_profile(h))
		return NV_NOT_SUPPORTED;
	unsigned room = out ? *count : 1;
	*count = 1;
	if (out && room)
		*out = (struct nv_placement){ 0, profile_of(h)->slices };
	return room ? NV_SUCCESS : NV_INSUFFICIENT_SIZE;
}

NVML nv_return nvmlGpuInstanceGetComputeInstances(nv_gpu_instance gi, unsigned id, nv_compute_instance *out, unsigned *count)
{
	ENTER_GI(gi, out && count);
	if (id != whole_profile(h))
		return NV_NOT_SUPPORTED;
	*count = sim_mig_device(instance_of(h));
	if (*count)
		*out = &h->gpu->ci[h->n];
	return NV_SUCCESS;
}

NVML nv_return nvmlGpuInstanceGetComputeInstanceById(nv_gpu_instance gi, unsigned id, nv_compute_instance *out)
{
	ENTER_GI(gi, out);
	if (!sim_mig_device(instance_of(h)) || id != instance_of(h)->ci)
		return NV_NOT_FOUND;
	*out = &h->gpu->ci[h->n];
	return NV_SUCCESS;
}

NVML nv_return nvmlComputeInstanceGetInfo_v2(nv_compute_instance ci, struct nv_ci_info *out)
{
	struct handle *c = initialized() ? as_handle(ci, H_CI) : NULL;
	ENTER_GI(c && sim_mig_device(instance_of(c)) ? &c->gpu->gi[c->n] : NULL, out);
	*out = (struct nv_ci_info){ &h->gpu->self, h, instance_of(h)->ci, whole_profile(h), { 0, profile_of(h)->slices } };
	return NV_SUCCESS;
}

NVML nv_return nvmlComputeInstanceGetInfo(nv_compute_instance ci, struct nv_ci_info *out) { return nvmlComputeInstanceGetInfo_v2(ci, out); }
