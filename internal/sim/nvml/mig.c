/* mig.c: MIG as the profile cut it. Instances can be asked for, not made or destroyed; each GPU instance
 * has one compute instance of its whole size. */
#define _GNU_SOURCE
#include "node.h"

#include <stdio.h>
#include <string.h>

const struct sim_mig_instance *instance_of(const struct handle *h) { return &h->gpu->s->mig[h->n]; }
const struct sim_mig_profile *profile_of(const struct handle *h) { return &h->gpu->s->facts.mig_profile[instance_of(h)->profile % SIM_MAX_MIG_PROFILES]; }

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
	if (index >= SIM_MAX_MIG_INSTANCES || !g->s->mig_mode || !g->s->mig[index].used)
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

static const struct sim_mig_profile *by_id(const struct gpu *g, unsigned id)
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
	const struct sim_mig_profile *p = by_id(g, id);
	return p ? versioned_profile(p, out) : NV_NOT_SUPPORTED;
}

NVML nv_return nvmlDeviceGetGpuInstancePossiblePlacements_v2(nv_device d, unsigned id, struct nv_placement *out, unsigned *count)
{
	ENTER(d, count);
	const struct sim_mig_profile *p = by_id(g, id);
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

/* Memory slices in use. */
static uint32_t occupied(const struct gpu *g)
{
	uint32_t mask = 0;
	for (unsigned i = 0; i < SIM_MAX_MIG_INSTANCES; i++)
		if (g->s->mig[i].used)
			mask |= ((1u << profile_of(&g->mig[i])->size) - 1) << g->s->mig[i].start;
	return mask;
}

NVML nv_return nvmlDeviceGetGpuInstanceRemainingCapacity(nv_device d, unsigned id, unsigned *count)
{
	ENTER(d, count);
	const struct sim_mig_profile *p = by_id(g, id);
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
	if (!by_id(g, id) || !g->s->mig_mode)
		return NV_NOT_SUPPORTED;
	*count = 0;
	for (unsigned i = 0; i < SIM_MAX_MIG_INSTANCES; i++)
		if (g->s->mig[i].used && profile_of(&g->mig[i])->id == id)
			out[(*count)++] = &g->gi[i];
	return NV_SUCCESS;
}

NVML nv_return nvmlDeviceGetGpuInstanceById(nv_device d, unsigned id, nv_gpu_instance *out)
{
	ENTER(d, out);
	if (!g->s->mig_mode)
		return NV_NOT_SUPPORTED;
	for (unsigned i = 0; i < SIM_MAX_MIG_INSTANCES; i++)
		if (g->s->mig[i].used && g->s->mig[i].gi == id) {
			*out = &g->gi[i];
			return NV_SUCCESS;
		}
	return NV_NOT_FOUND;
}

NVML nv_return nvmlGpuInstanceGetInfo(nv_gpu_instance gi, struct nv_gi_info *out)
{
	struct handle *h = initialized() ? as_handle(gi, H_GI) : NULL;
	if (!h || !out)
		return NV_INVALID_ARGUMENT;
	*out = (struct nv_gi_info){ &h->gpu->self, instance_of(h)->gi, profile_of(h)->id, { instance_of(h)->start, profile_of(h)->size } };
	return NV_SUCCESS;
}

NVML nv_return nvmlGpuInstanceGetComputeInstanceById(nv_gpu_instance gi, unsigned id, nv_compute_instance *out)
{
	struct handle *h = initialized() ? as_handle(gi, H_GI) : NULL;
	if (!h || !out)
		return NV_INVALID_ARGUMENT;
	if (id != instance_of(h)->ci)
		return NV_NOT_FOUND;
	*out = &h->gpu->ci[h->n];
	return NV_SUCCESS;
}

NVML nv_return nvmlComputeInstanceGetInfo_v2(nv_compute_instance ci, struct nv_ci_info *out)
{
	struct handle *h = initialized() ? as_handle(ci, H_CI) : NULL;
	if (!h || !out)
		return NV_INVALID_ARGUMENT;
	*out = (struct nv_ci_info){ &h->gpu->self, &h->gpu->gi[h->n], instance_of(h)->ci, 0, { 0, profile_of(h)->slices } };
	return NV_SUCCESS;
}
