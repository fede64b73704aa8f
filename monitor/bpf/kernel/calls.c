/* Probes on functions of libcuda and libnccl. They are hit as often as a program launches kernels, so that nothing is told one by one:
 * counts and a histogram, each CPU its own. */
#include "kernel.h"

char _license[] SEC("license") = "Dual MIT/GPL";

enum call { LAUNCH, SYNC, COLLECTIVE, CALLS };

struct {
	NUMBER(type, PERCPU_ARRAY);
	NUMBER(max_entries, CALLS);
	TYPE(key, u32);
	TYPE(value, u64);
} calls SEC(".maps");

/* waits is how long synchronizations took: how many took less than 2^index µs, and at last all their µs. */
#define BUCKETS 36
struct {
	NUMBER(type, PERCPU_ARRAY);
	NUMBER(max_entries, BUCKETS + 1);
	TYPE(key, u32);
	TYPE(value, u64);
} waits SEC(".maps");

/* waiting is since when a thread has been in a synchronization, by pid and thread. */
struct {
	NUMBER(type, LRU_HASH);
	NUMBER(max_entries, 8192);
	TYPE(key, u64);
	TYPE(value, u64);
} waiting SEC(".maps");

/* launched is when a process last launched anything, by pid. */
struct {
	NUMBER(type, LRU_HASH);
	NUMBER(max_entries, 8192);
	TYPE(key, u32);
	TYPE(value, u64);
} launched SEC(".maps");

INLINE void count(u32 call)
{
	u64 *n = map_lookup(&calls, &call);
	if (n)
		(*n)++;
}

SEC("uprobe") int launch(void)
{
	u32 pid = pid_tgid() >> 32;
	u64 now = boot_ns();
	count(LAUNCH);
	u64 *last = map_lookup(&launched, &pid);
	if (last)
		*last = now;
	else
		map_update(&launched, &pid, &now, 0);
	return 0;
}

SEC("uprobe") int collective(void)
{
	count(COLLECTIVE);
	return 0;
}

SEC("uprobe") int sync_begin(void)
{
	u64 thread = pid_tgid(), now = boot_ns();
	count(SYNC);
	map_update(&waiting, &thread, &now, 0);
	return 0;
}

SEC("uprobe") int sync_end(void)
{
	u64 thread = pid_tgid();
	u64 *begun = map_lookup(&waiting, &thread);
	if (!begun)
		return 0;
	u64 us = (boot_ns() - *begun) / 1000;
	map_delete(&waiting, &thread);
	u32 bucket = 0;
#pragma unroll
	for (int i = 0; i < BUCKETS - 1; i++)
		if (us >> i)
			bucket = i + 1;
	u64 *n = map_lookup(&waits, &bucket);
	if (n)
		(*n)++;
	bucket = BUCKETS;
	n = map_lookup(&waits, &bucket);
	if (n)
		*n += us;
	return 0;
}
