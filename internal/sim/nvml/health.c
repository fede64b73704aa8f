/* health.c: ECC, remapped rows, clocks, power, temperature, and field values. */
#define _GNU_SOURCE
#include "node.h"

#include <string.h>
#include <time.h>

/* --- memory errors ----------------------------------------------------------------------------------- */

enum { CORRECTED = 0, UNCORRECTED = 1 };
enum { VOLATILE = 0, AGGREGATE = 1 };

static uint64_t ecc_count(const struct sim_health *h, unsigned type, unsigned counter)
{
	if (type == CORRECTED)
		return counter == VOLATILE ? h->ecc_volatile_corrected : h->ecc_aggregate_corrected;
	return counter == VOLATILE ? h->ecc_volatile_uncorrected : h->ecc_aggregate_uncorrected;
}

NVML nv_return nvmlDeviceGetEccMode(nv_device d, unsigned *current, unsigned *pending)
{
	ENTER(d, current && pending);
	if (!g->s->facts.ecc_capable)
		return NV_NOT_SUPPORTED;
	*current = g->s->health.ecc_mode;
	*pending = g->s->health.ecc_pending;
	return NV_SUCCESS;
}

NVML nv_return nvmlDeviceGetDefaultEccMode(nv_device d, unsigned *mode)
{
	ENTER(d, mode);
	*mode = 1;
	return g->s->facts.ecc_capable ? NV_SUCCESS : NV_NOT_SUPPORTED;
}

NVML nv_return nvmlDeviceGetTotalEccErrors(nv_device d, unsigned type, unsigned counter, unsigned long long *count)
{
	ENTER(d, count && type < 2 && counter < 2);
	if (!g->s->health.ecc_mode)
		return NV_NOT_SUPPORTED;
	*count = ecc_count(&g->s->health, type, counter);
	return NV_SUCCESS;
}

/* Injected errors are errors of device memory. */
NVML nv_return nvmlDeviceGetMemoryErrorCounter(nv_device d, unsigned type, unsigned counter, unsigned where, unsigned long long *count)
{
	enum { DEVICE_MEMORY = 2, LOCATIONS = 8 };
	ENTER(d, count && type < 2 && counter < 2 && where < LOCATIONS);
	if (!g->s->health.ecc_mode)
		return NV_NOT_SUPPORTED;
	*count = where == DEVICE_MEMORY ? ecc_count(&g->s->health, type, counter) : 0;
	return NV_SUCCESS;
}

NVML nv_return nvmlDeviceGetDetailedEccErrors(nv_device d, unsigned type, unsigned counter, struct nv_ecc_counts *out)
{
	ENTER(d, out && type < 2 && counter < 2);
	if (!g->s->health.ecc_mode)
		return NV_NOT_SUPPORTED;
	*out = (struct nv_ecc_counts){ .device = ecc_count(&g->s->health, type, counter) };
	return NV_SUCCESS;
}

NVML nv_return nvmlDeviceGetSramEccErrorStatus(nv_device d, struct nv_sram_v1 *out)
{
	ENTER(d, out);
	if (!version_is(out->version, struct nv_sram_v1, 1))
		return NV_VERSION_MISMATCH;
	unsigned version = out->version;
	*out = (struct nv_sram_v1){ .version = version };
	return g->s->health.ecc_mode ? NV_SUCCESS : NV_NOT_SUPPORTED;
}

NVML nv_return nvmlDeviceGetRemappedRows(nv_device d, unsigned *corrected, unsigned *uncorrected, unsigned *pending, unsigned *failed)
{
	ENTER(d, corrected && uncorrected && pending && failed);
	const struct sim_health *h = &g->s->health;
	if (!g->s->facts.ecc_capable || g->s->mig_mode)
		return NV_NOT_SUPPORTED;
	*corrected = h->remap_corrected;
	*uncorrected = h->remap_uncorrected;
	*pending = h->remap_pending;
	*failed = h->remap_failed;
	return NV_SUCCESS;
}

NVML nv_return nvmlDeviceGetRowRemapperHistogram(nv_device d, struct nv_row_histogram *out)
{
	ENTER(d, out);
	if (!g->s->facts.ecc_capable)
		return NV_NOT_SUPPORTED;
	const unsigned banks = 640;
	*out = (struct nv_row_histogram){ .max = banks };
	if (g->s->health.remap_failed)
		*out = (struct nv_row_histogram){ .max = banks - 1, .none = 1 };
	return NV_SUCCESS;
}

/* Cards with row remapping retire no pages, as real ones since Ampere. */
NVML nv_return nvmlDeviceGetRetiredPages(nv_device d, unsigned cause, unsigned *count, unsigned long long *addresses)
{
	(void)addresses;
	ENTER(d, count && cause < 2);
	if (g->s->facts.cc_major >= 8)
		return NV_NOT_SUPPORTED;
	*count = 0;
	return NV_SUCCESS;
}

NVML nv_return nvmlDeviceGetRetiredPages_v2(nv_device d, unsigned cause, unsigned *count, unsigned long long *addresses, unsigned long long *times)
{
	(void)times;
	return nvmlDeviceGetRetiredPages(d, cause, count, addresses);
}

NVML nv_return nvmlDeviceGetRetiredPagesPendingStatus(nv_device d, unsigned *pending)
{
	ENTER(d, pending);
	*pending = g->s->health.retired_pending;
	return g->s->facts.cc_major >= 8 ? NV_NOT_SUPPORTED : NV_SUCCESS;
}

/* --- clocks, power, temperature ---------------------------------------------------------------------- */

static bool busy(const struct gpu *g) { return __atomic_load_n(&g->s->compute.owner, __ATOMIC_RELAXED) != 0; }

/* MHz of graphics, SM, memory, video. */
static nv_return clock_now(const struct gpu *g, unsigned type, unsigned *mhz)
{
	const struct sim_facts *f = &g->s->facts;
	const unsigned now[] = {
		busy(g) ? f->sm_clock_mhz : g->s->health.sm_clock_mhz, busy(g) ? f->sm_clock_mhz : g->s->health.sm_clock_mhz,
		g->s->health.memory_clock_mhz, f->video_clock_mhz,
	};
	if (type > 3)
		return NV_INVALID_ARGUMENT;
	*mhz = now[type];
	return NV_SUCCESS;
}

NVML nv_return nvmlDeviceGetClockInfo(nv_device d, unsigned type, unsigned *mhz)
{
	ENTER(d, mhz);
	return clock_now(g, type, mhz);
}

NVML nv_return nvmlDeviceGetMaxClockInfo(nv_device d, unsigned type, unsigned *mhz)
{
	ENTER(d, mhz && type <= 3);
	const struct sim_facts *f = &g->s->facts;
	const unsigned best[] = { f->sm_clock_mhz, f->sm_clock_mhz, f->memory_clock_mhz, f->video_clock_mhz };
	*mhz = best[type];
	return NV_SUCCESS;
}

NVML nv_return nvmlDeviceGetClock(nv_device d, unsigned type, unsigned id, unsigned *mhz)
{
	ENTER(d, mhz && id <= 3);
	return id == 0 ? clock_now(g, type, mhz) : nvmlDeviceGetMaxClockInfo(d, type, mhz);
}

NVML nv_return nvmlDeviceGetApplicationsClock(nv_device d, unsigned type, unsigned *mhz) { return nvmlDeviceGetMaxClockInfo(d, type, mhz); }
NVML nv_return nvmlDeviceGetDefaultApplicationsClock(nv_device d, unsigned type, unsigned *mhz) { return nvmlDeviceGetMaxClockInfo(d, type, mhz); }

enum { REASON_IDLE = 1, ALL_REASONS = 0x7ff };

NVML nv_return nvmlDeviceGetCurrentClocksEventReasons(nv_device d, unsigned long long *reasons)
{
	ENTER(d, reasons);
	*reasons = g->s->health.throttle_reasons;
	if (!*reasons && !busy(g))
		*reasons = REASON_IDLE;
	return NV_SUCCESS;
}

NVML nv_return nvmlDeviceGetCurrentClocksThrottleReasons(nv_device d, unsigned long long *reasons)
{
	return nvmlDeviceGetCurrentClocksEventReasons(d, reasons);
}

NVML nv_return nvmlDeviceGetSupportedClocksEventReasons(nv_device d, unsigned long long *reasons)
{
	ENTER(d, reasons);
	*reasons = ALL_REASONS;
	return NV_SUCCESS;
}

NVML nv_return nvmlDeviceGetSupportedClocksThrottleReasons(nv_device d, unsigned long long *reasons)
{
	return nvmlDeviceGetSupportedClocksEventReasons(d, reasons);
}

static unsigned power_mw(const struct gpu *g) { return busy(g) ? g->s->facts.power_limit_mw * 9 / 10 : g->s->health.power_mw; }

#define NUMBER(function, type, expr)                   \
	NVML nv_return function(nv_device d, type *out) \
	{                                              \
		ENTER(d, out);                         \
		*out = (type)(expr);                   \
		return NV_SUCCESS;                     \
	}
NUMBER(nvmlDeviceGetPowerUsage, unsigned, power_mw(g))
NUMBER(nvmlDeviceGetPowerManagementMode, unsigned, 1)
NUMBER(nvmlDeviceGetPowerManagementLimit, unsigned, g->s->facts.power_limit_mw)
NUMBER(nvmlDeviceGetPowerManagementDefaultLimit, unsigned, g->s->facts.power_limit_mw)
NUMBER(nvmlDeviceGetEnforcedPowerLimit, unsigned, g->s->facts.power_limit_mw)
NUMBER(nvmlDeviceGetPerformanceState, unsigned, g->s->health.performance_state)
NUMBER(nvmlDeviceGetPowerState, unsigned, g->s->health.performance_state)
NUMBER(nvmlDeviceGetFanSpeed, unsigned, g->s->health.fan_percent)
NUMBER(nvmlDeviceGetNumFans, unsigned, 0)

/* At rest all the time, plus what the compute engine took. */
static uint64_t energy_mj(const struct gpu *g)
{
	const struct sim_facts *f = &g->s->facts;
	uint64_t busy_ms = __atomic_load_n(&g->s->compute.busy_ns, __ATOMIC_RELAXED) / 1000000u;
	uint64_t up_ms = clock_ns(CLOCK_MONOTONIC) / 1000000u;
	return g->s->health.energy_mj + up_ms * g->s->health.power_mw / 1000u + busy_ms * f->power_limit_mw / 1000u;
}
NUMBER(nvmlDeviceGetTotalEnergyConsumption, unsigned long long, energy_mj(g))

NVML nv_return nvmlDeviceGetPowerManagementLimitConstraints(nv_device d, unsigned *min, unsigned *max)
{
	ENTER(d, min && max);
	*min = g->s->facts.power_min_mw;
	*max = g->s->facts.power_max_mw;
	return NV_SUCCESS;
}

NVML nv_return nvmlDeviceGetTemperature(nv_device d, unsigned sensor, unsigned *celsius)
{
	ENTER(d, celsius && sensor == 0);
	*celsius = g->s->health.temperature_c;
	return NV_SUCCESS;
}

NVML nv_return nvmlDeviceGetTemperatureV(nv_device d, struct nv_temperature_v1 *t)
{
	ENTER(d, t);
	if (!version_is(t->version, struct nv_temperature_v1, 1))
		return NV_VERSION_MISMATCH;
	t->celsius = (int)g->s->health.temperature_c;
	return t->sensor == 0 ? NV_SUCCESS : NV_INVALID_ARGUMENT;
}

enum { SHUTDOWN_C = 92, SLOWDOWN_C = 89, MEMORY_MAX_C = 95, GPU_MAX_C = 87 };

NVML nv_return nvmlDeviceGetTemperatureThreshold(nv_device d, unsigned which, unsigned *celsius)
{
	static const unsigned limit[] = { SHUTDOWN_C, SLOWDOWN_C, MEMORY_MAX_C, GPU_MAX_C };
	ENTER(d, celsius);
	if (which >= sizeof limit / sizeof limit[0])
		return NV_NOT_SUPPORTED;
	*celsius = limit[which];
	return NV_SUCCESS;
}

/* --- field values ------------------------------------------------------------------------------------ */

static void uint_value(struct nv_field *f, unsigned v)
{
	f->type = NV_VALUE_UINT;
	f->value.ull = 0;
	f->value.u = v;
}

static void ull_value(struct nv_field *f, unsigned long long v)
{
	f->type = NV_VALUE_ULL;
	f->value.ull = v;
}

/* Fields of one NVLink; f->scope says which. */
static nv_return link_field(const struct gpu *g, struct nv_field *f)
{
	static const unsigned mbps[] = { 0, 20000, 25000, 25000, 26562, 53125 }; /* by generation */
	if (f->scope >= g->s->facts.nvlink_count)
		return NV_INVALID_ARGUMENT;
	const struct sim_nvlink *l = &g->s->facts.nvlink[f->scope];
	switch (f->id) {
	case 164: uint_value(f, l->active && l->version < 6 ? mbps[l->version] : 0); break;
	case 165: uint_value(f, l->active); break;
	case 166: uint_value(f, l->version); break;
	case 146: uint_value(f, l->remote_link); break;
	default: ull_value(f, 0); break; /* throughput and error counters */
	}
	return NV_SUCCESS;
}

static unsigned links_to_switches(const struct gpu *g)
{
	unsigned n = 0;
	for (unsigned i = 0; i < g->s->facts.nvlink_count; i++)
		n += g->s->facts.nvlink[i].active && g->s->facts.nvlink[i].remote_type == SIM_LINK_SWITCH;
	return n;
}

enum { FIELD_RECOVERY_ACTION = 230, RECOVERY_SINCE = 565 /* driver branch */ };

static nv_return field(const struct gpu *g, struct nv_field *f)
{
	const struct sim_health *h = &g->s->health;
	const struct sim_facts *c = &g->s->facts;
	switch (f->id) {
	case 1: uint_value(f, h->ecc_mode); break;
	case 2: uint_value(f, h->ecc_pending); break;
	case 3: case 11: ull_value(f, h->ecc_volatile_corrected); break;
	case 4: case 12: ull_value(f, h->ecc_volatile_uncorrected); break;
	case 5: case 22: ull_value(f, h->ecc_aggregate_corrected); break;
	case 6: case 23: ull_value(f, h->ecc_aggregate_uncorrected); break;
	case 29: ull_value(f, h->retired_sbe); break;
	case 30: ull_value(f, h->retired_dbe); break;
	case 31: ull_value(f, h->retired_pending); break;
	case 82: uint_value(f, h->temperature_memory_c); break;
	case 83: ull_value(f, energy_mj(g)); break;
	case 91: uint_value(f, c->nvlink_count); break;
	case 94: ull_value(f, h->pcie_replays); break;
	case 95: ull_value(f, 0); break;
	case 142: uint_value(f, h->remap_corrected); break;
	case 143: uint_value(f, h->remap_uncorrected); break;
	case 144: uint_value(f, h->remap_pending); break;
	case 145: uint_value(f, h->remap_failed); break;
	case 147: uint_value(f, links_to_switches(g)); break;
	case 170: uint_value(f, 0); break;
	case 185: case 186: uint_value(f, power_mw(g)); break;
	case 187: uint_value(f, c->power_min_mw); break;
	case 188: uint_value(f, c->power_max_mw); break;
	case 189: case 190: case 192: uint_value(f, c->power_limit_mw); break;
	case 226: uint_value(f, h->recovery_action == 1); break;
	case 227: uint_value(f, h->recovery_action == 4); break;
	case 138: case 139: case 140: case 141: case 146: case 161: case 162: case 163: case 164: case 165: case 166:
		return link_field(g, f);
	case FIELD_RECOVERY_ACTION:
		if (node.driver_major < RECOVERY_SINCE)
			return NV_NOT_SUPPORTED;
		uint_value(f, __atomic_load_n(&h->recovery_action, __ATOMIC_RELAXED));
		break;
	default:
		return NV_NOT_SUPPORTED;
	}
	return NV_SUCCESS;
}

/* The call succeeds if the GPU can be asked; each value says for itself whether it is one. */
NVML nv_return nvmlDeviceGetFieldValues(nv_device d, int count, struct nv_field *values)
{
	ENTER(d, count > 0 && values);
	for (int i = 0; i < count; i++) {
		values[i].time_us = (long long)(clock_ns(CLOCK_REALTIME) / 1000);
		values[i].latency_us = 0;
		values[i].result = field(g, &values[i]);
	}
	return NV_SUCCESS;
}
