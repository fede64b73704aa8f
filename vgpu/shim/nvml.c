/* nvml.c: NVML as a tenant sees it: the granted GPUs alone, each with its slice of memory, and the processes of the
 * share alone. Read from the same pages as the CUDA shim's, without a session: a monitor takes no slot.
 *
 * A share of a MIG device shows its card, as NVML does in a container that has one of its instances: as large as the instance, and
 * with no MIG device but the granted one.
 *
 * What is not granted does not exist: NVML_ERROR_NOT_FOUND, as for a GPU whose device node is not in the container.
 * Without a share nothing is granted (fails closed).
 */
#define _GNU_SOURCE
#include "nvml.h"

#include <dlfcn.h>
#include <string.h>
#include <sys/mman.h>

#ifndef KERF_REAL_NVML
#define KERF_REAL_NVML "libkerfreal-nvidia-ml.so.1"
#endif

__thread unsigned kerf_depth __attribute__((tls_model("initial-exec")));

void *kerf_resolve(enum hook_id id)
{
	static void *handle;
	struct hook *h = &kerf_hooks[id];
	void *lib = load_acquire(&handle), *real;

	if (load_relaxed(&h->missing))
		return NULL;
	if (!lib) {
		lib = dlopen(KERF_REAL_NVML, RTLD_LAZY | RTLD_NOLOAD);
		if (!lib)
			kerf_say(KERF_REAL_NVML " is not loaded beside the shim: no GPU is shown; check that " KERF_ROOT "/driver holds the driver's libnvidia-ml.so.1 under this name");
		store_release(&handle, lib);
	}
	real = lib ? dlsym(lib, h->symbol) : NULL;
	if (!real)
		store_relaxed(&h->missing, true);
	store_release(&h->real, real);
	return real;
}

/* --- the shares: mapped at the first call, for good. Fork needs no care: nothing here is written. -------------- */

struct view { struct share shares[KERF_MAX_SHARES]; int n; };

static struct view *view(void)
{
	static struct view *published;
	struct view *seen = load_acquire(&published), *mine;
	char why[448];

	if (seen)
		return seen;
	mine = mmap(NULL, sizeof *mine, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (mine == MAP_FAILED)
		return NULL;
	mine->n = share_scan(mine->shares, KERF_MAX_SHARES, false, why, sizeof why);
	if (mine->n >= 0 && swap_if(&published, &seen, mine))
		return mine;
	if (mine->n < 0)
		kerf_say(why);
	else
		share_unmap(mine->shares, mine->n);
	munmap(mine, sizeof *mine);
	return seen;
}

struct grant { struct share *share; unsigned index; };

static bool text_uuid(const char *text, uint8_t uuid[16])
{
	int n = 0;

	if (strncmp(text, "GPU-", 4) && strncmp(text, "MIG-", 4))
		return false;
	memset(uuid, 0, 16);
	for (text += 4; *text && n < 32; text++) {
		int v = *text >= '0' && *text <= '9' ? *text - '0' : (*text | 32) >= 'a' && (*text | 32) <= 'f' ? (*text | 32) - 'a' + 10 : -1;

		if (*text == '-')
			continue;
		if (v < 0)
			return false;
		uuid[n / 2] = (uint8_t)(uuid[n / 2] << 4 | v);
		n++;
	}
	return n == 32;
}

/* The card that a MIG device is on. */
static bool card_of(nvmlDevice_t mig, nvmlDevice_t *card)
{
	fn_nvmlDeviceGetDeviceHandleFromMigDeviceHandle real = REAL(nvmlDeviceGetDeviceHandleFromMigDeviceHandle);

	return real && real(mig, card) == NVML_SUCCESS;
}

/* The granted MIG device on a card: the card is shown because of it, and has no more than its slice. */
static bool grant_on_card(struct view *v, const char *card, struct grant *g)
{
	char mig[KERF_UUID_TEXT], text[96];
	nvmlDevice_t device, on;

	for (int i = 0; i < v->n; i++)
		for (unsigned d = 0; d < share_devices(&v->shares[i]); d++) {
			if (!share_is_mig(&v->shares[i], d))
				continue;
			share_text(&v->shares[i], d, mig);
			if (REAL(nvmlDeviceGetHandleByUUID)(mig, &device) || !card_of(device, &on))
				continue;
			if (REAL(nvmlDeviceGetUUID)(on, text, sizeof text) == NVML_SUCCESS && !strcmp(text, card)) {
				*g = (struct grant){ &v->shares[i], d };
				return true;
			}
		}
	return false;
}

static nvmlReturn_t granted(nvmlDevice_t device, struct grant *g)
{
	struct view *v = view();
	uint8_t uuid[16];
	char text[96];
	nvmlReturn_t r;

	if (!v)
		return NVML_ERROR_NO_PERMISSION;
	r = REAL(nvmlDeviceGetUUID)(device, text, sizeof text);
	if (r)
		return r;
	if (text_uuid(text, uuid) && share_find(v->shares, v->n, uuid, &g->share, &g->index))
		return NVML_SUCCESS;
	return grant_on_card(v, text, g) ? NVML_SUCCESS : NVML_ERROR_NOT_FOUND;
}

/* --- memory ---------------------------------------------------------------------------------------------------- */

nvmlReturn_t on_memory(real_on_memory real, nvmlDevice_t device, struct memory *out)
{
	struct memory whole;
	struct grant g;
	struct room room;
	nvmlReturn_t r = real(device, &whole); /* for its errors: a lost GPU has no slice either */

	if (r || (r = granted(device, &g)))
		return r;
	if (!out)
		return NVML_ERROR_INVALID_ARGUMENT;
	room = share_room(g.share, g.index);
	*out = (struct memory){ .total = room.limit, .used = room.used, .free = room.limit - room.used };
	return r;
}

nvmlReturn_t on_memory_v2(real_on_memory_v2 real, nvmlDevice_t device, struct memory_v2 *out)
{
	struct grant g;
	struct room room;
	nvmlReturn_t r = real(device, out);

	if (r)
		return r;
	r = granted(device, &g);
	if (r) {
		out->total = out->reserved = out->free = out->used = 0;
		return r;
	}
	room = share_room(g.share, g.index);
	*out = (struct memory_v2){ .version = out->version, .total = room.limit, .used = room.used, .free = room.limit - room.used };
	return r;
}

#define MAX_MIG_DEVICES 64u /* more than any card has */

/* --- which GPUs ------------------------------------------------------------------------------------------------ */

/* The `index`th granted GPU in NVML's order, or their count. Asked anew each time: there are few, and a GPU can be
 * lost or appear between two calls. */
static nvmlReturn_t walk(unsigned *count, const unsigned *index, nvmlDevice_t *device)
{
	fn_nvmlDeviceGetCount_v2 real_count = REAL(nvmlDeviceGetCount_v2);
	fn_nvmlDeviceGetHandleByIndex_v2 real_handle = REAL(nvmlDeviceGetHandleByIndex_v2);
	unsigned all = 0, n = 0;
	nvmlReturn_t r = real_count(&all);

	if (r)
		return r;
	if (!view())
		return NVML_ERROR_NO_PERMISSION;
	for (unsigned i = 0; i < all; i++) {
		nvmlDevice_t h;
		struct grant g;

		if (real_handle(i, &h) || granted(h, &g))
			continue;
		if (index && n == *index) {
			*device = h;
			return NVML_SUCCESS;
		}
		n++;
	}
	if (count)
		*count = n;
	return index ? NVML_ERROR_INVALID_ARGUMENT : NVML_SUCCESS;
}

nvmlReturn_t on_count(real_on_count real, unsigned int *count)
{
	return count ? walk(count, NULL, NULL) : real(count);
}

nvmlReturn_t on_by_index(real_on_by_index real, unsigned int index, nvmlDevice_t *device)
{
	return device ? walk(NULL, &index, device) : real(index, device);
}

static nvmlReturn_t only_granted(nvmlReturn_t r, nvmlDevice_t *device)
{
	struct grant g;

	if (r == NVML_SUCCESS) {
		r = granted(*device, &g);
		if (r)
			*device = NULL;
	}
	return r;
}

nvmlReturn_t on_by_text(real_on_by_text real, const char *text, nvmlDevice_t *device)
{
	return only_granted(real(text, device), device);
}

nvmlReturn_t on_by_uuidv(real_on_by_uuidv real, const void *uuid, nvmlDevice_t *device)
{
	return only_granted(real(uuid, device), device);
}

/* The `index`th granted MIG device of a card, in NVML's order. */
static nvmlReturn_t walk_mig(real_on_mig_by_index real, nvmlDevice_t card, unsigned index, nvmlDevice_t *mig)
{
	nvmlReturn_t r = NVML_SUCCESS;
	unsigned n = 0;

	for (unsigned i = 0; i < MAX_MIG_DEVICES && (r == NVML_SUCCESS || r == NVML_ERROR_NOT_FOUND); i++) {
		nvmlDevice_t h;
		struct grant g;

		r = real(card, i, &h);
		if (r == NVML_SUCCESS && granted(h, &g) == NVML_SUCCESS && n++ == index) {
			*mig = h;
			return r;
		}
	}
	return r ? r : NVML_ERROR_NOT_FOUND;
}

nvmlReturn_t on_mig_by_index(real_on_mig_by_index real, nvmlDevice_t device, unsigned int index, nvmlDevice_t *mig)
{
	struct grant g;
	nvmlReturn_t r = granted(device, &g);

	if (r)
		return r;
	return mig ? walk_mig(real, device, index, mig) : real(device, index, mig);
}

static nvmlReturn_t mig_index(nvmlDevice_t device, nvmlDevice_t card, unsigned *index)
{
	fn_nvmlDeviceGetMigDeviceHandleByIndex real = REAL(nvmlDeviceGetMigDeviceHandleByIndex);
	nvmlDevice_t h;

	for (unsigned i = 0; real && walk_mig(real, card, i, &h) == NVML_SUCCESS; i++)
		if (h == device) {
			*index = i;
			return NVML_SUCCESS;
		}
	return NVML_ERROR_NOT_FOUND;
}

nvmlReturn_t on_index(real_on_index real, nvmlDevice_t device, unsigned int *index)
{
	unsigned whole;
	nvmlReturn_t r = real(device, &whole);
	nvmlDevice_t h;

	if (r || !index)
		return r ? r : real(device, index);
	if (card_of(device, &h))
		return mig_index(device, h, index);
	for (unsigned i = 0; (r = walk(NULL, &i, &h)) == NVML_SUCCESS; i++)
		if (h == device) {
			*index = i;
			return NVML_SUCCESS;
		}
	return NVML_ERROR_NOT_FOUND;
}

/* --- whose processes ------------------------------------------------------------------------------------------- */

#define MAX_PROCESSES 4096u

static bool ours(const struct share *s, unsigned pid)
{
	for (unsigned i = 0; i < KERF_MAX_SLOTS; i++)
		if ((unsigned)load_relaxed(&s->policy->host_pid[i]) == pid && pid)
			return true;
	return false;
}

/* Keeps the share's entries of `n` at `list`; returns how many. Entries differ by version: size and place of pid. */
static unsigned keep(const struct share *s, char *list, unsigned n, size_t size, size_t pid_at)
{
	unsigned kept = 0;

	for (unsigned i = 0; i < n; i++) {
		unsigned pid;

		memcpy(&pid, list + i * size + pid_at, sizeof pid);
		if (ours(s, pid))
			memmove(list + kept++ * size, list + i * size, size);
	}
	return kept;
}

/* NVML fills an array of the caller's, or says how long it must be. Asked with room for all processes of the node,
 * filtered, and then given to the caller by the same rule. */
struct listing { struct grant g; char *all; size_t size; };

static nvmlReturn_t begin(struct listing *l, nvmlDevice_t device, size_t size)
{
	nvmlReturn_t r = granted(device, &l->g);

	if (r)
		return r;
	l->size = size;
	l->all = mmap(NULL, MAX_PROCESSES * size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	return l->all == MAP_FAILED ? NVML_ERROR_MEMORY : NVML_SUCCESS;
}

/* `n` entries are in l->all, if NVML answered with `r` = NVML_SUCCESS. */
static nvmlReturn_t hand_out(struct listing *l, nvmlReturn_t r, unsigned n, size_t pid_at, void *list, unsigned *count)
{
	if (r == NVML_SUCCESS) {
		unsigned room = list ? *count : 0;

		*count = n = keep(l->g.share, l->all, n, l->size, pid_at);
		if (n > room)
			r = NVML_ERROR_INSUFFICIENT_SIZE;
		else if (n)
			memcpy(list, l->all, n * l->size);
	}
	munmap(l->all, MAX_PROCESSES * l->size);
	return r;
}

static nvmlReturn_t processes(real_on_processes_v1 real, nvmlDevice_t device, unsigned *count, void *list, size_t size)
{
	unsigned n = MAX_PROCESSES;
	struct listing l;
	nvmlReturn_t r;

	if (!count)
		return real(device, count, list);
	r = begin(&l, device, size);
	if (r)
		return r;
	r = real(device, &n, l.all);
	return hand_out(&l, r, n, 0, list, count);
}

nvmlReturn_t on_processes_v1(real_on_processes_v1 real, nvmlDevice_t device, unsigned int *count, void *list)
{
	return processes(real, device, count, list, sizeof(struct process));
}

nvmlReturn_t on_processes_v2(real_on_processes_v2 real, nvmlDevice_t device, unsigned int *count, void *list)
{
	return processes(real, device, count, list, sizeof(struct process_v2));
}

nvmlReturn_t on_details(real_on_details real, nvmlDevice_t device, struct process_details *list)
{
	struct process_details mine;
	struct listing l;
	nvmlReturn_t r;

	if (!list)
		return real(device, list);
	r = begin(&l, device, sizeof *mine.list);
	if (r)
		return r;
	mine = *list;
	mine.count = MAX_PROCESSES;
	mine.list = (struct process_detail *)(void *)l.all;
	r = real(device, &mine);
	return hand_out(&l, r, mine.count, offsetof(struct process_detail, pid), list->list, &list->count);
}

nvmlReturn_t on_utilization(real_on_utilization real, nvmlDevice_t device, void *list, unsigned int *count, unsigned long long since)
{
	unsigned n = MAX_PROCESSES;
	struct listing l;
	nvmlReturn_t r;

	if (!count)
		return real(device, list, count, since);
	r = begin(&l, device, sizeof(struct process_sample));
	if (r)
		return r;
	r = real(device, l.all, &n, since);
	return hand_out(&l, r, n, offsetof(struct process_sample, pid), list, count);
}

nvmlReturn_t on_utilizations(real_on_utilizations real, nvmlDevice_t device, struct process_utilizations *list)
{
	struct process_utilizations mine;
	struct listing l;
	nvmlReturn_t r;

	if (!list)
		return real(device, list);
	r = begin(&l, device, sizeof *mine.list);
	if (r)
		return r;
	mine = *list;
	mine.count = MAX_PROCESSES;
	mine.list = (struct process_utilization *)(void *)l.all;
	r = real(device, &mine);
	return hand_out(&l, r, mine.count, offsetof(struct process_utilization, pid), list->list, &list->count);
}
