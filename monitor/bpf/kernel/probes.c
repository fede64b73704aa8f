/* Probes on the kernel's tracepoints. Each tells of something rare in a record of the ring buffer; what cannot be told for lack of room
 * is counted. Where a tracepoint has its fields differs from kernel to kernel: user space reads it from tracefs and sets the constants. */
#include "kernel.h"

/* The kernel gives reading of its memory to programs that may also be had under the GPL. */
char _license[] SEC("license") = "Dual MIT/GPL";

enum kind { OOM = 1, EXIT, MEMORY, AER, BLOCK, KINDS };

/* event is one record; event.go reads it. */
struct event {
	u64 at; /* since boot, in ns */
	u32 kind;
	u32 pid;
	s32 code; /* a signal, an errno, a severity */
	u32 dev;  /* a disk's number; a memory controller's */
	u64 count;
	char text[64];
};

struct event *unused_event __attribute__((unused));

struct stat {
	u64 hits, lost;
};

struct {
	NUMBER(type, RINGBUF);
	NUMBER(max_entries, 64 * 1024);
} events SEC(".maps");

/* stats is by kind. */
struct {
	NUMBER(type, PERCPU_ARRAY);
	NUMBER(max_entries, KINDS);
	TYPE(key, u32);
	TYPE(value, struct stat);
} stats SEC(".maps");

/* watched are the processes that have a GPU, by pid: the others' ends are nobody's business here. */
struct {
	NUMBER(type, HASH);
	NUMBER(max_entries, 8192);
	TYPE(key, u32);
	TYPE(value, u8);
} watched SEC(".maps");

/* A disk that fails tells so thousands of times a second: told once a second, with how often it was. */
struct disk {
	u64 told, count;
};

struct {
	NUMBER(type, LRU_HASH);
	NUMBER(max_entries, 256);
	TYPE(key, u32);
	TYPE(value, struct disk);
} disks SEC(".maps");

INLINE struct stat *stat_of(u32 kind)
{
	struct stat *s = map_lookup(&stats, &kind);
	return s;
}

/* begin counts a hit, and makes its record; NULL: there was no room, which is counted too. */
INLINE struct event *begin(u32 kind)
{
	struct stat *s = stat_of(kind);
	if (!s)
		return 0;
	s->hits++;
	struct event *e = ring_reserve(&events, sizeof(*e), 0);
	if (!e) {
		s->lost++;
		return 0;
	}
	__builtin_memset(e, 0, sizeof(*e));
	e->at = boot_ns();
	e->kind = kind;
	return e;
}

/* text reads a string of a tracepoint: its field says how far from the record's begin it is, in the lower half. */
INLINE void text(struct event *e, const void *ctx, u16 field)
{
	u32 where = 0;
	read_kernel(&where, sizeof(where), ctx + field);
	read_kernel_str(e->text, sizeof(e->text), ctx + (where & 0xffff));
}

const volatile u16 oom_pid;

SEC("tracepoint") int oom(const void *ctx)
{
	struct event *e = begin(OOM);
	if (!e)
		return 0;
	read_kernel(&e->pid, sizeof(e->pid), ctx + oom_pid);
	ring_submit(e, 0);
	return 0;
}

/* Signals that a program gets for its own fault: ILL TRAP ABRT BUS FPE SEGV SYS. */
#define CRASHES (1u << 4 | 1u << 5 | 1u << 6 | 1u << 7 | 1u << 8 | 1u << 11 | 1u << 31)

SEC("tracepoint") int crash(void)
{
	u32 pid = pid_tgid() >> 32;
	if (!map_lookup(&watched, &pid))
		return 0;
	const struct task_struct *task = (const void *)current_task();
	u32 code = 0;
	read_kernel(&code, sizeof(code), &task->exit_code);
	u32 signal = code & 0x7f;
	/* All threads of a process end with the same code. Who takes the entry away is the one that tells. */
	if (signal > 31 || !(1u << signal & CRASHES) || map_delete(&watched, &pid))
		return 0;
	struct event *e = begin(EXIT);
	if (!e)
		return 0;
	e->pid = pid;
	e->code = signal;
	ring_submit(e, 0);
	return 0;
}

const volatile u16 memory_type, memory_count, memory_controller, memory_label;

SEC("tracepoint") int memory(const void *ctx)
{
	struct event *e = begin(MEMORY);
	if (!e)
		return 0;
	u16 count = 0;
	u8 controller = 0;
	read_kernel(&e->code, sizeof(e->code), ctx + memory_type);
	read_kernel(&count, sizeof(count), ctx + memory_count);
	read_kernel(&controller, sizeof(controller), ctx + memory_controller);
	e->count = count;
	e->dev = controller;
	text(e, ctx, memory_label);
	ring_submit(e, 0);
	return 0;
}

const volatile u16 aer_device, aer_status, aer_severity;

SEC("tracepoint") int aer(const void *ctx)
{
	struct event *e = begin(AER);
	if (!e)
		return 0;
	u8 severity = 0;
	u32 status = 0;
	read_kernel(&severity, sizeof(severity), ctx + aer_severity);
	read_kernel(&status, sizeof(status), ctx + aer_status);
	e->code = severity;
	e->count = status;
	text(e, ctx, aer_device);
	ring_submit(e, 0);
	return 0;
}

#define SECOND 1000000000ull

const volatile u16 block_dev, block_error;

SEC("tracepoint") int block(const void *ctx)
{
	s32 error = 0;
	u32 dev = 0;
	read_kernel(&error, sizeof(error), ctx + block_error);
	if (!error) /* the older tracepoint tells of every request */
		return 0;
	read_kernel(&dev, sizeof(dev), ctx + block_dev);
	struct disk *d = map_lookup(&disks, &dev);
	if (!d) {
		struct disk fresh = {};
		map_update(&disks, &dev, &fresh, NOEXIST);
		d = map_lookup(&disks, &dev);
		if (!d)
			return 0;
	}
	__sync_fetch_and_add(&d->count, 1);
	u64 now = boot_ns();
	if (d->told && now - d->told < SECOND) {
		struct stat *s = stat_of(BLOCK);
		if (s)
			s->hits++;
		return 0;
	}
	d->told = now;
	struct event *e = begin(BLOCK);
	if (!e)
		return 0;
	e->code = error;
	e->dev = dev;
	e->count = d->count;
	ring_submit(e, 0);
	return 0;
}
