/* share.h: finding and mapping the shares of this container. Used by the CUDA shim and the NVML shim. */
#ifndef KERF_SHARE_H
#define KERF_SHARE_H

#include "prim.h"
#include "region.h"

#ifndef KERF_ROOT
#define KERF_ROOT "/run/kerf"
#endif

#define KERF_MAX_SHARES 16
#define KERF_UUID_TEXT  41 /* "GPU-" or "MIG-" and 36 characters and NUL */

struct share {
	char id[40];
	const struct kerf_policy *policy;
	struct kerf_usage *usage;
	struct kerf_slot *slot;       /* NULL before attach */
	uint32_t generation;
	uint64_t enter, leave;        /* what the slot must say; under lock */
	bool tampered;                /* the slot differed once: nothing more is allocated here; under lock */
	struct lock lock;
};

/* Maps every share under KERF_ROOT/shares, sorted by id. Returns their number, or −1 with one line in `why`. No
 * share at all is an error: a limit that cannot be found is not "unlimited". */
int share_scan(struct share *shares, int max, bool writable, char *why, size_t why_len);
void share_unmap(struct share *shares, int n);

/* The share and the index within it that grants the GPU; false: none does. */
bool share_find(struct share *shares, int n, const uint8_t uuid[16], struct share **share, unsigned *index);
unsigned share_devices(const struct share *s); /* bounded by KERF_MAX_DEVICES */

void uuid_text(const char *kind, const uint8_t uuid[16], char text[KERF_UUID_TEXT]); /* kind: "GPU-" or "MIG-" */
bool share_is_mig(const struct share *s, unsigned index);                          /* what is granted is a MIG device */
void share_text(const struct share *s, unsigned index, char text[KERF_UUID_TEXT]); /* as CUDA_VISIBLE_DEVICES takes it */

/* One line on stderr, once for each process and text's address; never aborts. */
void kerf_say(const char *line);

/* snprintf that returns what it wrote. Texts may be cut at the buffer's end; nothing here depends on their end. */
int kerf_format(char *out, size_t len, const char *form, ...) __attribute__((format(printf, 3, 4)));

/* Bytes of a device that are taken, and its limit. */
struct room { uint64_t limit, used; };
struct room share_room(const struct share *s, unsigned index);

#endif
