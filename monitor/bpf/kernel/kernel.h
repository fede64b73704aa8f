/* What the probes use of the kernel: types, helpers by their number, and the fields of structures that libbpf calls CO-RE relocates.
 * It stands for vmlinux.h and libbpf's headers, of which the probes need a few lines. */
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int s32;

#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))

/* linux/bpf.h: enum bpf_map_type, flags. A field of a map's definition is a pointer to an array of so many, or to a value of the type. */
enum { HASH = 1, PERCPU_ARRAY = 6, LRU_HASH = 9, RINGBUF = 27 };
enum { NOEXIST = 1 };
#define NUMBER(name, n) int (*name)[n]
#define TYPE(name, t) t *name

static void *(*const map_lookup)(void *map, const void *key) = (void *)1;
static long (*const map_update)(void *map, const void *key, const void *value, u64 flags) = (void *)2;
static long (*const map_delete)(void *map, const void *key) = (void *)3;
static u64 (*const pid_tgid)(void) = (void *)14;
static u64 (*const current_task)(void) = (void *)35;
static long (*const read_kernel)(void *to, u32 size, const void *from) = (void *)113;
static long (*const read_kernel_str)(void *to, u32 size, const void *from) = (void *)115;
static u64 (*const boot_ns)(void) = (void *)125;
static void *(*const ring_reserve)(void *ring, u64 size, u64 flags) = (void *)131;
static void (*const ring_submit)(void *record, u64 flags) = (void *)132;

/* The loader finds the field's true place in the running kernel's BTF, by the names. */
struct task_struct {
	int exit_code;
} __attribute__((preserve_access_index));
