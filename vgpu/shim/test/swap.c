/* swap.c: a tenant of an over-committed share, whose shim has a door for tests (door.h): between its own calls it evicts
 * itself and comes back.
 *
 *   swap SCENARIO KERNELS [ARGUMENT…]     KERNELS: internal/cuda/kernels.ptx
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <glob.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "cuabi.h"
#include "region.h"

#define MIB  (1ul << 20)
#define ALL  UINT64_MAX
#define LEN(a) (sizeof(a) / sizeof((a)[0]))

struct swap_counts { uint64_t resident, swapped, fresh, pinned, host, locked, areas; };
struct device;
struct swap_arbiter { CUresult (*ask)(struct device *); void (*changed)(struct device *, uint64_t, uint64_t); };

static CUresult (*door_out)(int, uint64_t, uint64_t *), (*door_in)(int, uint64_t, uint64_t *);
static void (*door_look)(int, struct swap_counts *), (*door_trim)(void), (*door_arbiter)(const struct swap_arbiter *);
static uint64_t (*door_steps)(long, long);
static bool (*door_whole)(int);
static bool (*door_give)(int, uint64_t);

#define OK(call) do { CUresult r_ = (call); if (r_) { printf("%s:%d: ", __func__, __LINE__); die(#call, r_); } } while (0)
#define CHECK(what) do { if (!(what)) { printf("%s:%d: ", __func__, __LINE__); die(#what, 0); } } while (0)

static CUdevice dev;
static CUcontext ctx;
static CUfunction fill, copy, spin;
static struct { const char *ptx; int argc; char **argv; } options;

static const struct kerf_policy *policy;
static struct kerf_usage *usage;

static void die(const char *what, long code)
{
	printf("FAIL %s: %ld\n", what, code);
	fflush(stdout);
	_Exit(1);
}

static void *map_file(const char *pattern, size_t size)
{
	void *p = MAP_FAILED;
	glob_t g;
	int fd;

	if (!glob(pattern, 0, NULL, &g) && (fd = open(g.gl_pathv[0], O_RDONLY)) >= 0)
		p = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED)
		die(pattern, 0);
	return p;
}

static uint64_t charged(void) { return __atomic_load_n(&usage->sum[0].charged, __ATOMIC_SEQ_CST); }

static void find_door(void)
{
	void *lib = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
	struct { const char *name; void *to; } doors[] = {
		{ "kerf_door_out", &door_out }, { "kerf_door_in", &door_in }, { "kerf_door_look", &door_look }, { "kerf_door_trim", &door_trim },
		{ "kerf_door_steps", &door_steps }, { "kerf_door_arbiter", &door_arbiter }, { "kerf_door_give", &door_give },
		{ "kerf_door_whole", &door_whole },
	};

	for (size_t i = 0; lib && i < LEN(doors); i++)
		*(void **)doors[i].to = dlsym(lib, doors[i].name);
	if (!door_out || !door_give)
		die("the library has no door", 0);
}

static void load_kernels(void)
{
	static char text[1 << 16];
	FILE *f = fopen(options.ptx, "r");
	CUmodule module;

	if (!f || !fread(text, 1, sizeof text - 1, f))
		die(options.ptx, 0);
	fclose(f);
	OK(cuModuleLoadData(&module, text));
	OK(cuModuleGetFunction(&fill, module, "kerf_fill"));
	OK(cuModuleGetFunction(&copy, module, "kerf_copy"));
	OK(cuModuleGetFunction(&spin, module, "kerf_spin"));
}

/* nothreads.c is preloaded. The keeper cannot be made, and so no context: nobody would move this process's memory. Then it can. */
static void threadless(void)
{
	void (*allow)(void);
	CUcontext own;

	*(void **)&allow = dlsym(RTLD_DEFAULT, "kerf_test_allow_threads");
	CHECK(allow);
	OK(cuInit(0));
	for (int round = 0; round < 2; round++) {
		CHECK(cuDevicePrimaryCtxRetain(&own, 0) == CUDA_ERROR_OPERATING_SYSTEM);
		CHECK(cuCtxCreate_v2(&own, 0, 0) == CUDA_ERROR_OPERATING_SYSTEM);
	}
	allow();
	OK(cuDevicePrimaryCtxRetain(&own, 0));
	printf("ok\n");
	fflush(stdout);
	_Exit(0);
}

static void start(void)
{
	OK(cuInit(0));
	OK(cuDeviceGet(&dev, 0));
	OK(cuDevicePrimaryCtxRetain(&ctx, dev));
	OK(cuCtxSetCurrent(ctx));
	load_kernels();
	policy = map_file("/run/kerf/shares/*/policy", sizeof *policy);
	usage = map_file("/run/kerf/shares/*/usage", sizeof *usage);
}

static struct swap_counts look(void)
{
	struct swap_counts c;

	door_look(0, &c);
	return c;
}

static uint64_t out(uint64_t bytes)
{
	uint64_t moved;

	OK(cuCtxSynchronize());
	OK(door_out(0, bytes, &moved));
	return moved;
}

static uint64_t in(uint64_t bytes)
{
	uint64_t moved;

	OK(door_in(0, bytes, &moved));
	return moved;
}

static void launch_fill(CUdeviceptr p, uint64_t words, uint32_t value, CUstream s)
{
	void *args[] = { &p, &words, &value };

	OK(cuLaunchKernel(fill, 4, 1, 1, 64, 1, 1, 0, s, args, NULL));
}

static void launch_copy(CUdeviceptr to, CUdeviceptr from, uint64_t words, CUstream s)
{
	void *args[] = { &to, &from, &words };

	OK(cuLaunchKernel(copy, 4, 1, 1, 64, 1, 1, 0, s, args, NULL));
}

/* --- what a tenant holds, with what must be in it --------------------------------------------------------------- */

struct buffer { CUdeviceptr p; size_t n; unsigned char *want; };

static uint64_t state = 88172645463325252ull;

static uint64_t rnd(uint64_t below)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state % below;
}

static void scribble(struct buffer *b, size_t at, size_t n)
{
	for (size_t i = 0; i < n; i++)
		b->want[at + i] = (unsigned char)(rnd(256));
	OK(cuMemcpyHtoD_v2(b->p + at, b->want + at, n));
}

static struct buffer take(size_t n)
{
	struct buffer b = { .n = n, .want = malloc(n) };
	size_t step = n / 64 ? n / 64 : 1;

	OK(cuMemAlloc_v2(&b.p, n));
	memset(b.want, 0, n);
	for (size_t i = 0; i < n; i += step)
		b.want[i] = (unsigned char)rnd(256);
	OK(cuMemcpyHtoD_v2(b.p, b.want, n));
	return b;
}

static void give(struct buffer *b)
{
	OK(cuMemFree_v2(b->p));
	free(b->want);
	*b = (struct buffer){ 0 };
}

static void verify(const struct buffer *b, size_t at, size_t n)
{
	static __thread unsigned char *seen;
	static __thread size_t room;

	if (n > room) {
		free(seen);
		seen = malloc(room = n);
	}
	OK(cuMemcpyDtoH_v2(seen, b->p + at, n));
	if (memcmp(seen, b->want + at, n)) {
		size_t i = 0;

		while (seen[i] == b->want[at + i])
			i++;
		printf("FAIL: byte %zu of %zu at %llx is %02x, must be %02x\n", at + i, b->n, (unsigned long long)b->p, seen[i], b->want[at + i]);
		fflush(stdout);
		_Exit(1);
	}
}

/* --- scenarios --------------------------------------------------------------------------------------------------- */

static void ask(const struct buffer *b)
{
	CUdeviceptr base = 0, start_of = 0, p = b->p + b->n / 2;
	size_t n = 0, range = 0;
	unsigned type = 0, ipc = 9, mapped = 0;
	int ordinal = -1;
	CUcontext in_ctx = NULL;
	CUpointer_attribute which[] = { CU_POINTER_ATTRIBUTE_RANGE_START_ADDR, CU_POINTER_ATTRIBUTE_RANGE_SIZE, CU_POINTER_ATTRIBUTE_MEMORY_TYPE,
		CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, CU_POINTER_ATTRIBUTE_CONTEXT, CU_POINTER_ATTRIBUTE_MAPPED };
	void *to[] = { &start_of, &range, &type, &ordinal, &in_ctx, &mapped };

	OK(cuMemGetAddressRange_v2(&base, &n, p));
	CHECK(base == b->p && n == b->n);
	OK(cuPointerGetAttributes(LEN(which), which, to, p));
	CHECK(start_of == b->p && range == b->n && type == CU_MEMORYTYPE_DEVICE && ordinal == 0 && in_ctx == ctx && mapped == 1);
	OK(cuPointerGetAttribute(&ipc, CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE, p));
	CHECK(ipc == 0);
}

static void basic(void)
{
	static const size_t sizes[] = { 1, 512, 513, 100000, MIB - 1, MIB, MIB + 1, 2 * MIB, 5 * MIB + 3, 9 * MIB };
	struct buffer b[LEN(sizes)];
	uint64_t before, total = 0;
	size_t free_before, free_now, slice_total, pitch;
	struct swap_counts c;
	CUdeviceptr extra, pitched;
	CUmemGenericAllocationHandle handle;
	CUipcMemHandle ipc;

	before = charged();
	for (size_t i = 0; i < LEN(sizes); i++) {
		b[i] = take(sizes[i]);
		CHECK(b[i].p % 512 == 0);
		total += sizes[i] < MIB ? (sizes[i] + 511) / 512 * 512 : (sizes[i] + 2 * MIB - 1) / (2 * MIB) * 2 * MIB;
	}
	CHECK(charged() - before == total);
	OK(cuMemGetInfo_v2(&free_before, &slice_total));
	CHECK(slice_total == policy->device[0].limit && free_before == slice_total - charged());
	for (int round = 0; round < 3; round++) {
		c = look();
		CHECK(c.swapped == 0 && c.resident > 0);
		CHECK(out(ALL) == c.resident);
		CHECK(look().resident == 0 && look().swapped == c.resident);
		CHECK(usage->residency[0].generation == usage->slot[0].generation && usage->residency[0].swapped[0] == c.resident && usage->residency[0].resident[0] == 0);
		for (size_t i = 0; i < LEN(sizes); i++)
			ask(&b[i]);
		OK(cuMemGetInfo_v2(&free_now, &slice_total));
		CHECK(free_now == free_before);
		CHECK(in(ALL) == c.resident);
		CHECK(usage->residency[0].resident[0] == c.resident && usage->residency[0].swapped[0] == 0);
		for (size_t i = 0; i < LEN(sizes); i++) {
			ask(&b[i]);
			verify(&b[i], 0, b[i].n);
		}
	}
	CHECK(cuMemFree_v2(b[8].p + 512) == CUDA_ERROR_INVALID_VALUE);
	CHECK(cuMemUnmap(b[7].p, 2 * MIB) == CUDA_ERROR_INVALID_VALUE);
	CHECK(cuMemRetainAllocationHandle(&handle, (void *)b[7].p) == CUDA_ERROR_INVALID_VALUE);
	CHECK(cuIpcGetMemHandle(&ipc, b[7].p) == CUDA_ERROR_NOT_SUPPORTED);
	CHECK(cuMemAlloc_v2(&extra, 0) == CUDA_ERROR_INVALID_VALUE && cuMemAlloc_v2(NULL, 5) == CUDA_ERROR_INVALID_VALUE);
	CHECK(cuMemAlloc_v2(&extra, policy->device[0].limit) == CUDA_ERROR_OUT_OF_MEMORY);
	OK(cuMemAllocPitch_v2(&pitched, &pitch, 1000, 3000, 4));
	CHECK(pitch == 1024);
	CHECK(cuMemAllocPitch_v2(&extra, &pitch, 1000, 3000, 5) == CUDA_ERROR_INVALID_VALUE);
	out(ALL);
	OK(cuMemFree_v2(pitched));
	for (size_t i = 0; i < LEN(sizes); i += 2)
		give(&b[i]); /* while they are out */
	in(ALL);
	for (size_t i = 1; i < LEN(sizes); i += 2) {
		verify(&b[i], 0, b[i].n);
		give(&b[i]);
	}
	CHECK(charged() == before && look().areas == 0 && look().resident == 0 && look().swapped == 0);
	door_trim();
	CHECK(look().host == 0);
}

/* A context takes its memory with it, wherever that is. */
static void contexts(void)
{
	CUcontext own;
	CUdeviceptr p[3];
	uint64_t before, moved;

	take(3 * MIB);
	before = charged();
	for (int round = 0; round < 4; round++) {
		OK(cuCtxCreate_v2(&own, 0, dev));
		for (size_t i = 0; i < LEN(p); i++)
			OK(cuMemAlloc_v2(&p[i], i ? i * 3 * MIB : 700));
		if (round & 1) {
			OK(cuCtxSynchronize());
			OK(door_out(0, round & 2 ? ALL : 4 * MIB, &moved));
		}
		OK(cuCtxDestroy_v2(own));
		OK(cuCtxSetCurrent(ctx));
		CHECK(charged() == before && look().areas == 1);
		in(ALL);
		CHECK(look().swapped == 0);
	}
}

/* Partial eviction, its floor, and the limit of host memory. The policy says min_resident and host_limit. */
static void partial(void)
{
	struct buffer b[6];
	struct swap_counts c;
	uint64_t moved, least = policy->device[0].min_resident, fixed = charged();
	int on = 1;

	for (size_t i = 0; i < LEN(b); i++)
		b[i] = take((i + 1) * 4 * MIB);
	c = look();
	moved = out(10 * MIB);
	CHECK(moved >= 10 * MIB && moved <= 12 * MIB);
	CHECK(in(3 * MIB) == 2 * MIB); /* never more than asked */
	in(ALL);
	CHECK(look().resident == c.resident);
	CHECK(in(ALL) == 0);
	out(ALL);
	CHECK(look().resident + fixed >= least && look().resident + fixed < least + 6 * MIB);
	in(ALL);
	OK(cuPointerSetAttribute(&on, CU_POINTER_ATTRIBUTE_SYNC_MEMOPS, b[5].p));
	CHECK(look().pinned == 24 * MIB);
	out(ALL);
	verify(&b[5], 0, b[5].n); /* it is there */
	in(ALL);
	for (size_t i = 0; i < LEN(b); i++)
		verify(&b[i], 0, b[i].n);
}

static void poor(void)
{
	struct buffer b[6];
	struct swap_counts c;
	uint64_t moved;

	for (size_t i = 0; i < LEN(b); i++)
		b[i] = take((i + 1) * 4 * MIB);
	c = look();
	OK(door_out(0, ALL, &moved)); /* as much as there is host memory for */
	CHECK(moved > policy->device[0].host_limit / 2 && moved <= policy->device[0].host_limit);
	CHECK(look().resident == c.resident - moved && look().swapped == moved);
	CHECK(door_out(0, ALL, &moved) == CUDA_ERROR_OUT_OF_MEMORY && moved == 0);
	in(ALL);
	for (size_t i = 0; i < LEN(b); i++)
		verify(&b[i], 0, b[i].n);
}

/* Every step of out and of in fails once; what is where then is whole. */
static void steps(void)
{
	struct buffer b[5];
	uint64_t moved, n, total;

	for (size_t i = 0; i < LEN(b); i++)
		b[i] = take((2 * i + 1) * MIB);
	total = look().resident;
	out(ALL); /* the streams exist from now on */
	in(ALL);
	door_steps(0, 0);
	out(ALL);
	in(ALL);
	n = door_steps(0, 0);
	CHECK(n > 30);
	for (uint64_t k = 1; k <= n + 1; k++) {
		CUresult first, second = CUDA_SUCCESS;

		OK(cuCtxSynchronize());
		door_steps((long)k, 0);
		first = door_out(0, ALL, &moved);
		CHECK(look().resident + look().swapped == total && look().swapped == moved);
		if (first == CUDA_SUCCESS)
			second = door_in(0, ALL, &moved);
		CHECK(look().resident + look().swapped == total);
		CHECK((first || second) == (k <= n));
		door_steps(0, 0);
		in(ALL);
		CHECK(look().resident == total);
		for (size_t i = 0; i < LEN(b); i++)
			verify(&b[i], 0, b[i].n);
	}
}

/* Dies at the step that the argument says. */
static void killed(void)
{
	struct buffer b[5];
	uint64_t moved;

	for (size_t i = 0; i < LEN(b); i++)
		b[i] = take((2 * i + 1) * MIB);
	OK(cuCtxSynchronize());
	door_steps(0, atol(options.argv[0]));
	OK(door_out(0, ALL, &moved));
	OK(door_in(0, ALL, &moved));
	CHECK(door_steps(0, 0) < (uint64_t)atol(options.argv[0]));
}

/* --- at random --------------------------------------------------------------------------------------------------- */

#define BUFFERS 24
#define STREAMS 3

static struct buffer held[BUFFERS];
static CUstream stream[STREAMS];

/* A graph over buffers of its own, made before the first eviction: word i of `to` becomes `from`'s, then a tail is set. */
static struct { struct buffer from, to; CUgraphExec exec; size_t n; } graph;

static void make_graph(void)
{
	CUgraph g;

	graph.n = 3 * MIB;
	graph.from = take(graph.n);
	graph.to = take(graph.n);
	OK(cuStreamBeginCapture_v2(stream[0], CU_STREAM_CAPTURE_MODE_GLOBAL));
	launch_copy(graph.to.p, graph.from.p, graph.n / 8, stream[0]);
	OK(cuMemcpyDtoDAsync_v2(graph.to.p + graph.n / 2, graph.from.p + graph.n / 2, graph.n / 4, stream[0]));
	OK(cuMemsetD8Async(graph.to.p + graph.n / 4 * 3, 0x5a, graph.n / 4, stream[0]));
	OK(cuStreamEndCapture(stream[0], &g));
	OK(cuGraphInstantiateWithFlags(&graph.exec, g, 0));
}

static void replay(void)
{
	scribble(&graph.from, rnd(graph.n - 1000), 1000);
	OK(cuGraphLaunch(graph.exec, stream[1]));
	memcpy(graph.to.want, graph.from.want, graph.n / 4 * 3);
	memset(graph.to.want + graph.n / 4 * 3, 0x5a, graph.n / 4);
	OK(cuStreamSynchronize(stream[1]));
	verify(&graph.to, 0, graph.n);
}

static struct buffer *some(void)
{
	for (int tries = 0; tries < 100; tries++) {
		struct buffer *b = &held[rnd(BUFFERS)];

		if (b->p)
			return b;
	}
	return NULL;
}

static void act(void)
{
	struct buffer *b = some(), *other = some(), *slot = &held[rnd(BUFFERS)];
	CUstream s = stream[rnd(STREAMS)];
	size_t n, at;

	switch (rnd(8)) {
	case 0:
		if (!slot->p)
			*slot = take(rnd(3) ? rnd(300000) + 1 : rnd(6 * MIB) + 1);
		return;
	case 1:
		if (slot->p)
			give(slot);
		return;
	case 2:
		if (b) {
			at = rnd(b->n);
			scribble(b, at, rnd(b->n - at < 4096 ? b->n - at : 4096) + (b->n - at < 2));
		}
		return;
	case 3: /* through an event from one stream to another */
		if (b && other && b != other && b->n >= 8 && other->n >= 8) {
			CUevent done;

			n = (b->n < other->n ? b->n : other->n) / 4 * 4;
			OK(cuEventCreate(&done, CU_EVENT_DISABLE_TIMING));
			launch_fill(b->p, n / 4, 0x11223344, s);
			OK(cuEventRecord(done, s));
			OK(cuStreamWaitEvent(stream[0], done, 0));
			OK(cuMemcpyDtoDAsync_v2(other->p, b->p, n, stream[0]));
			OK(cuEventDestroy_v2(done));
			OK(cuStreamSynchronize(stream[0]));
			for (size_t i = 0; i < n; i += 4)
				memcpy(b->want + i, "\x44\x33\x22\x11", 4);
			memcpy(other->want, b->want, n);
		}
		return;
	case 4:
		if (b) {
			unsigned char v = (unsigned char)rnd(256);

			OK(cuMemsetD8Async(b->p, v, b->n, s));
			memset(b->want, v, b->n);
			OK(cuStreamSynchronize(s));
		}
		return;
	case 5:
		replay();
		return;
	case 6:
		if (b) {
			at = rnd(b->n);
			verify(b, at, rnd(b->n - at) + 1);
		}
		return;
	default:
		if (b && b->n > 64) {
			CUDA_MEMCPY2D c = { .srcMemoryType = CU_MEMORYTYPE_HOST, .srcHost = b->want, .srcPitch = 16, .dstMemoryType = CU_MEMORYTYPE_DEVICE,
				.dstDevice = b->p, .dstPitch = 16, .WidthInBytes = 7, .Height = b->n / 16 > 50 ? 50 : b->n / 16 };

			for (size_t i = 0; i < c.Height; i++)
				memset(b->want + 16 * i, (int)rnd(256), 7);
			OK(cuMemcpy2D_v2(&c));
		}
	}
}

static void verify_all(void)
{
	verify(&graph.to, 0, graph.n);
	for (int i = 0; i < BUFFERS; i++)
		if (held[i].p)
			verify(&held[i], 0, held[i].n);
}

static void at_random(void)
{
	long cycles = atol(options.argv[0]);
	CUdeviceptr was[BUFFERS];

	state += (uint64_t)atol(options.argv[1]) * 0x9e3779b97f4a7c15ull;
	for (int i = 0; i < STREAMS; i++)
		OK(cuStreamCreate(&stream[i], CU_STREAM_NON_BLOCKING));
	make_graph();
	for (long i = 0; i < cycles; i++) {
		uint64_t moved = 0;

		for (uint64_t n = rnd(6); n--;)
			act();
		for (int k = 0; k < BUFFERS; k++)
			was[k] = held[k].p;
		moved = out(rnd(3) ? rnd(look().resident + 1) : ALL);
		if (rnd(4) == 0) { /* what a thread that meets no gate may do meanwhile */
			struct buffer *b = some();
			CUdeviceptr p;

			if (b && rnd(2)) {
				was[b - held] = 0;
				give(b);
			}
			OK(cuMemAlloc_v2(&p, rnd(3 * MIB) + 1));
			if (b && b->p)
				ask(b);
			OK(cuMemFree_v2(p));
		}
		for (int parts = (int)rnd(3); parts--;)
			in(rnd(moved + 1));
		in(ALL);
		CHECK(look().swapped == 0 && look().fresh == 0);
		for (int k = 0; k < BUFFERS; k++)
			CHECK(was[k] == held[k].p);
		if (i % 50 == 0)
			verify_all();
	}
	verify_all();
	replay();
	for (int i = 0; i < BUFFERS; i++)
		if (held[i].p)
			give(&held[i]);
	give(&graph.from);
	give(&graph.to);
	CHECK(look().areas == 0 && look().resident == 0);
}

/* --- with others ------------------------------------------------------------------------------------------------- */

/* Takes turns with another process, which has as much: neither fits beside the other. Arguments: lock file, MiB, turns. */
static void turns(void)
{
	int fd = open(options.argv[0], O_RDWR | O_CREAT | O_CLOEXEC, 0666);
	size_t mib = (size_t)atol(options.argv[1]), each = 16 * MIB, n = mib * MIB / each;
	long turn, count = atol(options.argv[2]);
	CUdeviceptr p[256];
	uint64_t moved = 0, seed = (uint64_t)getpid() << 8;
	struct timespec nap = { 0, 1000000 };

	for (turn = 0; turn < count; turn++) {
		CHECK(fd >= 0 && !flock(fd, LOCK_EX));
		if (turn == 0)
			for (size_t i = 0; i < n; i++)
				OK(cuMemAlloc_v2(&p[i], each));
		moved += in(ALL);
		CHECK(look().swapped == 0);
		for (size_t i = 0; i < n; i++) {
			uint32_t words[3];

			for (int k = 0; turn && k < 3; k++) {
				OK(cuMemcpyDtoH_v2(&words[k], p[i] + (k < 2 ? (size_t)k * each / 2 : each - 4), 4));
				CHECK(words[k] == (uint32_t)(seed + i * 7 + (uint64_t)turn - 1));
			}
			launch_fill(p[i], each / 4, (uint32_t)(seed + i * 7 + (uint64_t)turn), NULL);
		}
		moved += out(ALL);
		CHECK(!flock(fd, LOCK_UN));
		nanosleep(&nap, NULL);
	}
	printf("%ld turns, %lu MiB moved\n", count, (unsigned long)(moved / MIB));
}

static volatile int stop;

static void *churn(void *arg)
{
	uint64_t seed = (uint64_t)(uintptr_t)arg;
	CUdeviceptr p[16] = { 0 };

	OK(cuCtxSetCurrent(ctx));
	while (!stop) {
		int i = (int)(seed = seed * 6364136223846793005ull + 1442695040888963407ull, seed >> 60);
		size_t n;

		if (p[i]) {
			CUdeviceptr base;

			OK(cuMemGetAddressRange_v2(&base, &n, p[i]));
			CHECK(base == p[i]);
			OK(cuMemFree_v2(p[i]));
			p[i] = 0;
		} else {
			OK(cuMemAlloc_v2(&p[i], (seed >> 40) % (seed & 1024 ? 3 * MIB : 5000) + 1));
		}
	}
	for (int i = 0; i < 16; i++)
		if (p[i])
			OK(cuMemFree_v2(p[i]));
	return NULL;
}

/* Allocations on other threads while everything goes out and comes back. */
static void threads(void)
{
	struct buffer b = take(5 * MIB);
	pthread_t t[4];
	uint64_t moved;

	for (size_t i = 0; i < LEN(t); i++)
		pthread_create(&t[i], NULL, churn, (void *)(i * 77 + 1));
	for (int i = 0; i < 60; i++) {
		OK(door_out(0, i % 3 ? 3 * MIB : ALL, &moved));
		OK(door_in(0, ALL, &moved));
		verify(&b, 0, b.n);
	}
	stop = 1;
	for (size_t i = 0; i < LEN(t); i++)
		pthread_join(t[i], NULL);
	in(ALL);
	verify(&b, 0, b.n);
	CHECK(look().areas == 1);
}

static void *move_all(void *arg)
{
	uint64_t moved;

	(void)arg;
	OK(door_out(0, ALL, &moved)); /* with no context, while another thread captures in the strictest mode */
	OK(door_in(0, ALL, &moved));
	return NULL;
}

static void capture(void)
{
	CUgraph g;

	OK(cuStreamCreate(&stream[0], CU_STREAM_NON_BLOCKING));
	graph.from = take(4 * MIB);
	graph.to = take(4 * MIB);
	for (int round = 0; round < 3; round++) {
		pthread_t t;

		OK(cuCtxSynchronize());
		OK(cuStreamBeginCapture_v2(stream[0], CU_STREAM_CAPTURE_MODE_GLOBAL));
		launch_copy(graph.to.p, graph.from.p, MIB / 2, stream[0]);
		pthread_create(&t, NULL, move_all, NULL);
		pthread_join(t, NULL);
		launch_copy(graph.to.p + 2 * MIB, graph.from.p + 2 * MIB, MIB / 2, stream[0]);
		OK(cuStreamEndCapture(stream[0], &g));
		OK(cuGraphInstantiateWithFlags(&graph.exec, g, 0));
		scribble(&graph.from, 0, 4 * MIB);
		memcpy(graph.to.want, graph.from.want, 4 * MIB);
		OK(cuGraphLaunch(graph.exec, stream[0]));
		OK(cuStreamSynchronize(stream[0]));
		verify(&graph.to, 0, 4 * MIB);
	}
}

static uint64_t here, away; /* as told */
static unsigned asks, told;
static bool refusing;

static void *bring_in(void *arg)
{
	uint64_t moved;

	(void)arg;
	OK(door_in(0, ALL, &moved));
	return NULL;
}

static CUresult on_ask(struct device *d)
{
	pthread_t t;

	(void)d;
	if (refusing)
		return CUDA_ERROR_OUT_OF_MEMORY;
	asks++;
	CHECK(away == 0 && look().fresh > 0); /* what is asked for is there, and told by who asks */
	pthread_create(&t, NULL, bring_in, NULL); /* as the session's thread does */
	pthread_join(t, NULL);
	return door_whole(0) ? CUDA_SUCCESS : CUDA_ERROR_UNKNOWN;
}

static void on_changed(struct device *d, uint64_t resident, uint64_t absent)
{
	(void)d;
	here = resident;
	away = absent;
	told++;
}

static bool told_right(void) { return here == look().resident && away == look().swapped + look().fresh; }

static void arbiter(void)
{
	static const struct swap_arbiter a = { on_ask, on_changed };
	struct buffer b[4];
	CUdeviceptr none;
	uint64_t before = charged();
	unsigned n;

	door_arbiter(&a);
	for (size_t i = 0; i < LEN(b); i++)
		b[i] = take(i ? i * 3 * MIB : 100);
	CHECK(asks == LEN(b) && told_right() && here > 18 * MIB);
	refusing = true;
	CHECK(cuMemAlloc_v2(&none, 4 * MIB) == CUDA_ERROR_OUT_OF_MEMORY);
	CHECK(told_right() && look().fresh == 0);
	give(&b[1]);
	CHECK(told_right());
	n = told;
	CHECK(out(ALL) == away && told_right() && here == 0);
	CHECK(told >= n + 3); /* piece by piece */
	for (size_t i = 0; i < LEN(b); i++)
		if (b[i].p)
			give(&b[i]);
	CHECK(told_right() && here + away == 0 && charged() == before);
}

/* A file of kerfd's, and memory of another device that this one may reach. */
static void given(void)
{
	int fd = (int)syscall(SYS_memfd_create, "pool", 0);
	struct buffer b;

	CHECK(fd >= 0 && !ftruncate(fd, 64 * MIB) && door_give(fd, 64 * MIB));
	b = take(40 * MIB);
	out(ALL);
	CHECK(look().host == 64 * MIB);
	in(ALL);
	verify(&b, 0, b.n);
	out(ALL);
	door_trim();
	CHECK(look().host == 64 * MIB); /* it is in use */
	in(ALL);
	verify(&b, 0, b.n);
	door_trim();
	CHECK(look().host == 0);
}

/* Host memory that could not be page-locked once is not slow for ever. */
static void locks(void)
{
	struct buffer b = take(20 * MIB);

	door_steps(3, 0); /* after the making of two streams */
	out(ALL);
	CHECK(look().host && look().locked == 0);
	in(ALL);
	CHECK(look().locked == look().host);
	verify(&b, 0, b.n);
}

static void peers(void)
{
	struct buffer b = take(5 * MIB);
	CUcontext two;
	CUdeviceptr there;
	unsigned char *seen = malloc(b.n);

	OK(cuDevicePrimaryCtxRetain(&two, 1));
	OK(cuCtxSetCurrent(two));
	OK(cuMemAlloc_v2(&there, b.n));
	OK(cuCtxEnablePeerAccess(ctx, 0));
	for (int round = 0; round < 3; round++) {
		OK(cuCtxSetCurrent(ctx));
		out(ALL);
		in(ALL);
		scribble(&b, rnd(MIB), 5000);
		OK(cuCtxSetCurrent(two));
		OK(cuMemcpyPeer(there, two, b.p, ctx, b.n));
		OK(cuMemcpyDtoH_v2(seen, there, b.n));
		CHECK(!memcmp(seen, b.want, b.n));
	}
}

/* A free waits for the work that may use the memory; cuMemFreeAsync of it is right, too. */
static void waits(void)
{
	struct timespec a, z;
	struct buffer b = take(3 * MIB), c = take(3000);
	uint64_t us = 200000;
	void *args[] = { &us };

	OK(cuStreamCreate(&stream[0], CU_STREAM_NON_BLOCKING));
	for (int round = 0; round < 2; round++) {
		clock_gettime(CLOCK_MONOTONIC, &a);
		OK(cuLaunchKernel(spin, 1, 1, 1, 1, 1, 1, 0, stream[0], args, NULL));
		OK(round ? cuMemFree_v2(c.p) : cuMemFreeAsync(b.p, stream[0]));
		clock_gettime(CLOCK_MONOTONIC, &z);
		CHECK((z.tv_sec - a.tv_sec) * 1000000 + (z.tv_nsec - a.tv_nsec) / 1000 > 190000);
	}
}

static const struct { const char *name; void (*run)(void); } scenarios[] = {
	{ "basic", basic }, { "contexts", contexts }, { "partial", partial }, { "poor", poor }, { "steps", steps }, { "killed", killed },
	{ "random", at_random }, { "turns", turns }, { "threads", threads }, { "capture", capture }, { "arbiter", arbiter }, { "given", given },
	{ "locks", locks }, { "peers", peers }, { "waits", waits },
};

int main(int argc, char **argv)
{
	if (argc < 3)
		return 2;
	options.ptx = argv[2];
	options.argc = argc - 3;
	options.argv = argv + 3;
	find_door();
	if (!strcmp(argv[1], "threadless"))
		threadless();
	start();
	for (size_t i = 0; i < LEN(scenarios); i++)
		if (!strcmp(argv[1], scenarios[i].name)) {
			scenarios[i].run();
			printf("ok\n");
			fflush(stdout);
			_Exit(0);
		}
	return 2;
}
