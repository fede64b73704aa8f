/* unit.c: the books, the accounts and the contexts alone, under sanitizers: no driver, pages in plain memory, 16
 * threads at once. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../account.c"
#include "../books.c"
#include "../context.c"
#include "../meter.c"

#define THREADS 16
#define ROUNDS  4000

__thread unsigned kerf_depth;

static struct kerf_policy policy;
static struct kerf_usage usage;
static struct share one = { .policy = &policy, .usage = &usage, .slot = &usage.slot[3], .generation = 7 };
static struct device device = { .share = &one };

struct device *kerf_device(CUdevice ordinal) { return ordinal == 0 ? &device : NULL; }
void kerf_pools_trim(struct device *d) { (void)d; }
void kerf_graphs_trim(struct device *d) { (void)d; }
void kerf_pools_refresh(void) { }
void kerf_lane_context(CUcontext ctx, struct device *d) { (void)ctx; (void)d; }
void kerf_say(const char *line) { (void)line; }
CUresult kerf_keeper_first(struct device *d) { (void)d; return CUDA_SUCCESS; }
void kerf_lane_context_gone(CUcontext ctx) { (void)ctx; }
void kerf_holder_gone(uint64_t holder) { (void)holder; }
void kerf_swap_context_ends(CUcontext ctx, uint64_t name) { (void)ctx; (void)name; }
void kerf_swap_context_ended(uint64_t name, bool gone) { (void)name; (void)gone; }
bool kerf_measure(struct device *d) { (void)d; return true; }
/* A driver whose events are moments in ns: the clock's when they are recorded, or what a test says. */
static uint64_t clock_ns, passed_until;
static CUresult event_query(CUevent e) { return (uint64_t)(uintptr_t)e <= passed_until ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY; }
static CUresult elapsed(float *ms, CUevent from, CUevent to) { *ms = (float)((double)((uintptr_t)to - (uintptr_t)from) / 1e6); return CUDA_SUCCESS; }
static CUresult push(CUcontext c) { (void)c; return CUDA_SUCCESS; }
static CUresult pop(CUcontext *c) { *c = NULL; return CUDA_SUCCESS; }
uint64_t kerf_now(void) { return clock_ns; }
bool kerf_lane_event(struct lane *l, CUevent *e, unsigned flags) { (void)l; (void)flags; *e = (CUevent)(uintptr_t)clock_ns; return true; }
bool kerf_lane_record(struct lane *l, CUevent e) { (void)l; (void)e; return true; }
struct hook kerf_hooks[HOOKS] = {
	[H_cuEventQuery] = { .real = (void *)event_query }, [H_cuEventElapsedTime] = { .real = (void *)elapsed },
	[H_cuCtxPushCurrent_v2] = { .real = (void *)push }, [H_cuCtxPopCurrent_v2] = { .real = (void *)pop },
};
void *kerf_resolve(enum hook_id id) { (void)id; return NULL; }
struct room share_room(const struct share *s, unsigned index)
{
	return (struct room){ s->policy->device[index].limit, load_relaxed(&s->usage->sum[index].charged) };
}

static int failures;

#define CHECK(what) do { if (!(what)) { printf("%s:%d: %s\n", __func__, __LINE__, #what); failures++; } } while (0)

static void reset(void)
{
	memset(&usage, 0, sizeof usage);
	memset(&policy, 0, sizeof policy);
	policy.device[0].limit = 100 * MIB;
	usage.slot[3].generation = one.generation = 7;
	one.enter = one.leave = 0;
	one.tampered = false;
	device.own = 0;
}

static void test_limit(void)
{
	reset();
	CHECK(kerf_charge(&device, 100 * MIB) == CUDA_SUCCESS);
	CHECK(kerf_charge(&device, 512) == CUDA_ERROR_OUT_OF_MEMORY);
	kerf_discharge(&device, 512);
	CHECK(kerf_charge(&device, 512) == CUDA_SUCCESS);
	CHECK(kerf_charge(&device, UINT64_MAX) == CUDA_ERROR_OUT_OF_MEMORY);
	CHECK(kerf_room(&device) == 0);
	kerf_discharge(&device, 100 * MIB);
	CHECK(usage.sum[0].charged == 0 && usage.slot[3].charged[0] == 0);
	CHECK(usage.slot[3].enter == usage.slot[3].leave && usage.slot[3].refused == 4); /* each refusal tries twice */
}

static void test_implicit(void)
{
	reset();
	policy.device[0].implicit = 40 * MIB;
	CHECK(kerf_charge(&device, 61 * MIB) == CUDA_ERROR_OUT_OF_MEMORY);
	CHECK(kerf_charge(&device, 60 * MIB) == CUDA_SUCCESS);
	policy.device[0].implicit = 400 * MIB; /* beyond the limit already: nothing wraps round */
	CHECK(kerf_charge(&device, 512) == CUDA_ERROR_OUT_OF_MEMORY);
	kerf_discharge(&device, 60 * MIB);
}

/* Whatever is written to the page, no more than the limit can be charged, and giving back goes on. */
static void test_scribble(uint64_t *word, uint64_t value)
{
	reset();
	CHECK(kerf_charge(&device, 80 * MIB) == CUDA_SUCCESS);
	*word = value;
	CHECK(kerf_charge(&device, 21 * MIB) == CUDA_ERROR_OUT_OF_MEMORY);
	CHECK(one.tampered && usage.slot[3].mismatch > 0 && (usage.slot[3].flags & KERF_SLOT_TAMPERED));
	CHECK(kerf_charge(&device, MIB) == CUDA_ERROR_OUT_OF_MEMORY);
	kerf_discharge(&device, 80 * MIB);
	CHECK(device.own == 0 && usage.slot[3].charged[0] == 0);
}

/* The slot belongs to another process by now: neither it nor the sum may be touched. */
static void test_lost_slot(void)
{
	reset();
	CHECK(kerf_charge(&device, 8 * MIB) == CUDA_SUCCESS);
	usage.slot[3].generation = 8;
	usage.slot[3].charged[0] = usage.sum[0].charged = 5;
	kerf_discharge(&device, 8 * MIB);
	CHECK(kerf_charge(&device, 512) == CUDA_ERROR_OUT_OF_MEMORY);
	CHECK(usage.slot[3].charged[0] == 5 && usage.sum[0].charged == 5 && usage.slot[3].mismatch == 0);
}

static void test_flags(uint32_t flag)
{
	reset();
	policy.flags = flag;
	CHECK(kerf_charge(&device, 512) == CUDA_ERROR_OUT_OF_MEMORY);
	CHECK(kerf_charge(&device, 0) == CUDA_ERROR_OUT_OF_MEMORY);
	CHECK(usage.slot[3].enter == usage.slot[3].leave);
	policy.flags = 0;
	CHECK(kerf_charge(&device, 0) == CUDA_SUCCESS);
}

/* --- contexts: a driver that gives the address of an ended one to the next before its call returns ------------- */

static struct { char place[2]; int made; bool active, refuses; } driver;
#define PRIMARY ((CUcontext)&driver.place[0])
#define OWN     ((CUcontext)&driver.place[1])

static void allocate(CUcontext in, uint64_t key, uint64_t bytes)
{
	CHECK(kerf_charge(&device, bytes) == CUDA_SUCCESS);
	CHECK(book_put(&(struct book){ .key = key, .kind = BOOK_LINEAR, .bytes = bytes, .context = (uintptr_t)in }));
}

static CUresult fake_create(CUcontext *ctx, unsigned flags, CUdevice dev)
{
	(void)flags, (void)dev;
	driver.made++;
	*ctx = OWN;
	return CUDA_SUCCESS;
}

static CUresult fake_destroy(CUcontext ctx)
{
	CUcontext next;

	if (driver.refuses)
		return CUDA_ERROR_INVALID_CONTEXT;
	CHECK(on_ctx_create(fake_create, &next, 0, 0) == CUDA_SUCCESS && next == ctx);
	allocate(next, 2 << 20, 3 * MIB);
	return CUDA_SUCCESS;
}

static CUresult fake_retain(CUcontext *ctx, CUdevice dev) { (void)dev; driver.active = true; *ctx = PRIMARY; return CUDA_SUCCESS; }

static CUresult fake_reset(CUdevice dev)
{
	(void)dev;
	if (driver.refuses)
		return CUDA_SUCCESS; /* one of several who retained it */
	driver.active = false;
	allocate(PRIMARY, 4 << 20, 5 * MIB);
	return CUDA_SUCCESS;
}

static CUresult fake_state(CUdevice dev, unsigned *flags, int *active_)
{
	(void)dev, (void)flags;
	*active_ = driver.active;
	return CUDA_SUCCESS;
}

static void test_contexts(void)
{
	struct book out;
	CUcontext ctx;

	reset();
	policy.device[0].context_bytes = MIB;
	CHECK(on_ctx_create(fake_create, &ctx, 0, 0) == CUDA_SUCCESS && device.own == MIB);
	allocate(ctx, 1 << 20, 10 * MIB);
	driver.refuses = true;
	CHECK(on_ctx_destroy(fake_destroy, ctx) == CUDA_ERROR_INVALID_CONTEXT && device.own == 11 * MIB);
	CHECK(book_get(BOOK_LINEAR, 1 << 20, &out) && out.context == (uintptr_t)ctx);
	driver.refuses = false;
	CHECK(on_ctx_destroy(fake_destroy, ctx) == CUDA_SUCCESS && device.own == 4 * MIB);
	CHECK(!book_get(BOOK_LINEAR, 1 << 20, &out) && book_get(BOOK_LINEAR, 2 << 20, &out));
	CHECK(book_take(BOOK_CONTEXT, (uintptr_t)ctx, &out) && book_take(BOOK_LINEAR, 2 << 20, &out));
}

static void test_primary(void)
{
	struct book out;
	CUcontext ctx;

	reset();
	store_release(&kerf_hooks[H_cuDevicePrimaryCtxGetState].real, (void *)fake_state);
	CHECK(on_primary_retain(fake_retain, &ctx, 0) == CUDA_SUCCESS);
	allocate(ctx, 1 << 20, 10 * MIB);
	driver.refuses = true;
	CHECK(on_primary_release(fake_reset, 0) == CUDA_SUCCESS && device.own == 10 * MIB);
	driver.refuses = false;
	CHECK(on_primary_reset(fake_reset, 0) == CUDA_SUCCESS && device.own == 5 * MIB);
	driver.refuses = true; /* nothing is active: what is at its old address is another's */
	CHECK(on_primary_reset(fake_reset, 0) == CUDA_SUCCESS && device.own == 5 * MIB);
	CHECK(book_take(BOOK_LINEAR, 4 << 20, &out) && !book_get(BOOK_LINEAR, 1 << 20, &out));
}

/* A revoked share makes no context, whatever one costs; what is there can be retained again, and ends. */
static void test_revoked_contexts(void)
{
	CUcontext ctx;
	int made;

	reset();
	driver.active = false;
	made = driver.made;
	policy.flags = KERF_POLICY_REVOKED;
	CHECK(on_ctx_create(fake_create, &ctx, 0, 0) == CUDA_ERROR_OUT_OF_MEMORY && driver.made == made);
	CHECK(on_primary_retain(fake_retain, &ctx, 0) == CUDA_ERROR_OUT_OF_MEMORY && !driver.active);
	driver.active = true;
	CHECK(on_primary_retain(fake_retain, &ctx, 0) == CUDA_SUCCESS);
}

static void *storm(void *arg)
{
	unsigned seed = (unsigned)(uintptr_t)arg;
	uint64_t base = (uint64_t)(uintptr_t)arg << 40;

	for (int i = 0; i < ROUNDS; i++) {
		struct book b = { .key = base + ((uint64_t)rand_r(&seed) % 500) * 512, .kind = BOOK_LINEAR, .context = 9 }, out;

		if (book_take(BOOK_LINEAR, b.key, &out)) {
			kerf_discharge(&device, out.bytes);
			continue;
		}
		b.bytes = kerf_physical((uint64_t)rand_r(&seed) % (3 * MIB) + 1);
		if (!kerf_charge(&device, b.bytes)) {
			if (!book_put(&b))
				kerf_discharge(&device, b.bytes);
		}
		if (load_relaxed(&usage.sum[0].charged) > policy.device[0].limit)
			__atomic_fetch_add(&failures, 1, __ATOMIC_RELAXED);
	}
	return NULL;
}

static uint64_t swept;
static void gone(const struct book *b) { swept += b->bytes; kerf_discharge(&device, b->bytes); }

static void test_storm(void)
{
	pthread_t t[THREADS];
	uint64_t held;

	reset();
	for (uintptr_t i = 0; i < THREADS; i++)
		pthread_create(&t[i], NULL, storm, (void *)(i + 1));
	for (int i = 0; i < THREADS; i++)
		pthread_join(t[i], NULL);
	held = device.own;
	CHECK(held > 0 && held <= 100 * MIB && usage.sum[0].charged == held && usage.slot[3].charged[0] == held);
	book_sweep(9, gone);
	CHECK(swept == held && device.own == 0 && usage.sum[0].charged == 0);
	CHECK(!one.tampered && usage.slot[3].enter == usage.slot[3].leave);
}

/* Every entry is found until it is taken, whatever was removed around it. */
static void test_books(void)
{
	struct book out;

	for (uint64_t i = 0; i < 20000; i++)
		CHECK(book_put(&(struct book){ .key = i * 4096, .kind = BOOK_MAPPING, .bytes = i }));
	for (uint64_t i = 0; i < 20000; i += 3)
		CHECK(book_take(BOOK_MAPPING, i * 4096, &out) && out.bytes == i);
	for (uint64_t i = 0; i < 20000; i++)
		CHECK(book_get(BOOK_MAPPING, i * 4096, &out) == (i % 3 != 0));
	for (uint64_t i = 0; i < 20000; i++)
		CHECK(book_take(BOOK_MAPPING, i * 4096, &out) == (i % 3 != 0));
	CHECK(!book_get(BOOK_LINEAR, 4096, &out));
}

static struct keeper keeper;

/* A burst from now on whose last marker passes after so many ns. */
static void burst(struct lane *l, uint64_t ns)
{
	kerf_meter_begin(l);
	l->burst.last = (CUevent)(uintptr_t)(clock_ns + ns);
}

/* Pauses between bursts are no work, however late they are noticed; what two lanes do at the same time counts once. */
static void test_meter(void)
{
	struct lane a = { .keeper = &keeper }, b = { .keeper = &keeper };

	clock_ns = 1000000;
	burst(&a, 5000000);
	clock_ns += 2000000;
	passed_until = clock_ns;
	kerf_meter_begin(&a); /* its marker has not passed: the burst goes on */
	clock_ns += 7000000;
	passed_until = clock_ns;
	burst(&a, 3000000);
	clock_ns += 10000000;
	kerf_meter_end(&a, clock_ns);
	CHECK(kerf_meter_read(&keeper) == 8000000);
	burst(&a, 4000000);
	clock_ns += 1000000;
	burst(&b, 4000000);
	clock_ns += 9000000;
	kerf_meter_end(&b, clock_ns);
	kerf_meter_end(&a, clock_ns);
	CHECK(kerf_meter_read(&keeper) == 5000000);
	CHECK(kerf_meter_read(&keeper) == 0);
	burst(&a, 1000000);
	a.open.n = 1; /* without a marker behind it: work until it is seen to have ended */
	clock_ns += 6000000;
	kerf_meter_end(&a, clock_ns);
	CHECK(kerf_meter_read(&keeper) == 6000000);
}

/* More pauses than there is room for count as work; nothing is lost or counted twice. */
static void test_spans(void)
{
	for (uint64_t i = 0; i < 2 * KERF_SPANS; i++)
		add_span(&keeper, i * 10, i * 10 + 5);
	CHECK(keeper.spans == KERF_SPANS && kerf_meter_read(&keeper) == KERF_SPANS * 5 + KERF_SPANS * 10);
	for (uint64_t i = KERF_SPANS; i > 0; i--)
		add_span(&keeper, i * 10, i * 10 + 5);
	add_span(&keeper, 1, 2);
	CHECK(keeper.spans == KERF_SPANS && keeper.span[0].from == 1);
	add_span(&keeper, 0, 10000);
	CHECK(keeper.spans == 1 && kerf_meter_read(&keeper) == 10000);
}

int main(void)
{
	test_meter();
	test_spans();
	test_limit();
	test_implicit();
	test_scribble(&usage.sum[0].charged, 0);
	test_scribble(&usage.slot[3].charged[0], 0);
	test_scribble(&usage.slot[3].enter, 77);
	test_scribble(&usage.slot[3].leave, 99);
	test_lost_slot();
	test_flags(KERF_POLICY_TAMPERED);
	test_flags(KERF_POLICY_REVOKED);
	test_contexts();
	test_primary();
	test_revoked_contexts();
	test_books();
	test_storm();
	if (failures)
		return 1;
	printf("ok\n");
	return 0;
}
