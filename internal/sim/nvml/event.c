/* event.c: event sets. An event lies in its GPU's ring; a set remembers how far it has read each ring. */
#define _GNU_SOURCE
#include "node.h"

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

struct event_set {
	pthread_mutex_t lock;
	uint64_t types[SIM_MAX_GPUS];  /* registered; 0: not this GPU */
	uint64_t cursor[SIM_MAX_GPUS]; /* the last event that was looked at */
};

enum { ALL_SINCE_535 = 0x1 | 0x2 | 0x4 | 0x8 | 0x10, SINCE_565 = 0x4000 | 0x8000 };

static uint64_t supported(void) { return ALL_SINCE_535 | (node.driver_major >= 565 ? SINCE_565 : 0); }

NVML nv_return nvmlEventSetCreate(nv_event_set *set)
{
	if (!initialized())
		return NV_UNINITIALIZED;
	if (!set)
		return NV_INVALID_ARGUMENT;
	*set = calloc(1, sizeof **set);
	if (!*set)
		return NV_MEMORY;
	pthread_mutex_init(&(*set)->lock, NULL);
	return NV_SUCCESS;
}

NVML nv_return nvmlEventSetFree(nv_event_set set)
{
	if (!set)
		return NV_INVALID_ARGUMENT;
	pthread_mutex_destroy(&set->lock);
	free(set);
	return NV_SUCCESS;
}

NVML nv_return nvmlDeviceGetSupportedEventTypes(nv_device d, unsigned long long *types)
{
	ENTER(d, types);
	*types = supported();
	return NV_SUCCESS;
}

NVML nv_return nvmlDeviceRegisterEvents(nv_device d, unsigned long long types, nv_event_set set)
{
	ENTER(d, set);
	if (types & ~supported())
		return NV_NOT_SUPPORTED;
	pthread_mutex_lock(&set->lock);
	if (!set->types[g->index])
		set->cursor[g->index] = __atomic_load_n(&g->s->event_seq, __ATOMIC_ACQUIRE);
	set->types[g->index] |= types;
	pthread_mutex_unlock(&set->lock);
	return NV_SUCCESS;
}

/* The next event of one GPU for this set. Events that were overwritten before they were read are lost, as
 * with the real driver's queue. */
static bool next_of(struct event_set *set, struct gpu *g, struct nv_event *out)
{
	uint64_t *cursor = &set->cursor[g->index];
	uint64_t newest = __atomic_load_n(&g->s->event_seq, __ATOMIC_ACQUIRE);
	if (newest - *cursor > SIM_MAX_EVENTS && newest > *cursor)
		*cursor = newest - SIM_MAX_EVENTS;
	while (*cursor < newest) {
		const struct sim_event *slot = &g->s->event[(*cursor + 1) % SIM_MAX_EVENTS];
		uint64_t seq = __atomic_load_n(&slot->seq, __ATOMIC_ACQUIRE);
		if (seq != *cursor + 1) {
			if (seq < *cursor + 1)
				return false; /* still being written: its writer wakes us */
			(*cursor)++;
			continue;
		}
		struct sim_event e = *slot;
		(*cursor)++;
		if (!(e.type & set->types[g->index]))
			continue;
		*out = (struct nv_event){ &g->self, e.type, e.xid, ~0u, ~0u };
		return true;
	}
	return false;
}

static bool next(struct event_set *set, struct nv_event *out)
{
	bool found = false;
	pthread_mutex_lock(&set->lock);
	for (unsigned i = 0; i < node.count && !found; i++)
		found = set->types[i] && next_of(set, &node.gpu[i], out);
	pthread_mutex_unlock(&set->lock);
	return found;
}

NVML nv_return nvmlEventSetWait_v2(nv_event_set set, struct nv_event *data, unsigned timeout_ms)
{
	if (!initialized())
		return NV_UNINITIALIZED;
	if (!set || !data)
		return NV_INVALID_ARGUMENT;
	uint64_t deadline = clock_ns(CLOCK_MONOTONIC) + (uint64_t)timeout_ms * 1000000u;
	for (;;) {
		uint32_t word = __atomic_load_n(&node.ctl->event_futex, __ATOMIC_ACQUIRE);
		if (next(set, data))
			return NV_SUCCESS;
		uint64_t now = clock_ns(CLOCK_MONOTONIC);
		if (now >= deadline)
			return NV_TIMEOUT;
		uint64_t left = deadline - now;
		struct timespec t = { (time_t)(left / 1000000000u), (long)(left % 1000000000u) };
		syscall(SYS_futex, &node.ctl->event_futex, FUTEX_WAIT, word, &t, NULL, 0);
	}
}

/* The struct of the first version ended before the instances. */
NVML nv_return nvmlEventSetWait(nv_event_set set, struct nv_event *data, unsigned timeout_ms)
{
	struct nv_event e;
	if (!data)
		return NV_INVALID_ARGUMENT;
	nv_return r = nvmlEventSetWait_v2(set, &e, timeout_ms);
	if (r == NV_SUCCESS) {
		data->device = e.device;
		data->type = e.type;
		data->data = e.data;
	}
	return r;
}
