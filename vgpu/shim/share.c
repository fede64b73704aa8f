/* share.c: the pages of the shares that this container holds. */
#define _GNU_SOURCE
#include "share.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

void uuid_text(const char *kind, const uint8_t u[16], char text[KERF_UUID_TEXT])
{
	static const char hex[] = "0123456789abcdef";
	char *p = text;

	memcpy(p, kind, 4);
	p += 4;
	for (int i = 0; i < 16; i++) {
		if (i == 4 || i == 6 || i == 8 || i == 10)
			*p++ = '-';
		*p++ = hex[u[i] >> 4];
		*p++ = hex[u[i] & 15];
	}
	*p = 0;
}

int kerf_format(char *out, size_t len, const char *form, ...)
{
	va_list args;
	int n;

	va_start(args, form);
	n = vsnprintf(out, len, form, args);
	va_end(args);
	return n < 0 ? 0 : n < (int)len ? n : (int)len - 1;
}

void kerf_say(const char *line)
{
	static uint32_t said;
	char text[512];
	int n;

	if (__atomic_exchange_n(&said, 1, __ATOMIC_RELAXED))
		return;
	n = kerf_format(text, sizeof text, "kerf: %s\n", line);
	if (write(2, text, (size_t)n) < 0) { /* stderr may be closed: the caller's error code says the rest */ }
}

/* lseek, not fstat: fstat's symbol is of glibc 2.33. */
static void *map_page(const char *path, size_t size, bool writable, char *why, size_t len)
{
	int fd = open(path, (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC);
	void *p;
	off_t have;

	if (fd < 0) {
		kerf_format(why, len, "cannot open %s (%s): the GPU limits are not known, so no GPU is given; start this program with kerf run or in a container with a claim", path, strerror(errno));
		return NULL;
	}
	have = lseek(fd, 0, SEEK_END);
	if (have < (off_t)size) {
		kerf_format(why, len, "%s has %lld bytes, this shim expects %zu: it is from another version of kerf; restart the container", path, (long long)have, size);
		close(fd);
		return NULL;
	}
	p = mmap(NULL, size, PROT_READ | (writable ? PROT_WRITE : 0), MAP_SHARED, fd, 0);
	close(fd);
	if (p == MAP_FAILED) {
		kerf_format(why, len, "cannot map %s (%s); check the mount of " KERF_ROOT, path, strerror(errno));
		return NULL;
	}
	return p;
}

static bool check_page(const char *path, uint32_t magic, uint32_t version, uint32_t size, uint32_t want, char *why, size_t len)
{
	if (magic != KERF_REGION_MAGIC)
		kerf_format(why, len, "%s begins with 0x%08x, not with 0x%08x: it is not a page of kerf; restart the container", path, magic, KERF_REGION_MAGIC);
	else if (version != KERF_REGION_VERSION)
		kerf_format(why, len, "%s has version %u, this shim speaks %u: kerfd was upgraded under this container; restart the container", path, version, KERF_REGION_VERSION);
	else if (size != want)
		kerf_format(why, len, "%s says %u bytes, this shim expects %u: it is from another version of kerf; restart the container", path, size, want);
	else
		return true;
	return false;
}

static bool open_share(struct share *s, const char *id, bool writable, char *why, size_t len)
{
	char path[sizeof KERF_ROOT + 64];

	memset(s, 0, sizeof *s);
	kerf_format(s->id, sizeof s->id, "%s", id);
	kerf_format(path, sizeof path, KERF_ROOT "/shares/%s/policy", s->id);
	s->policy = map_page(path, sizeof *s->policy, false, why, len);
	if (!s->policy || !check_page(path, s->policy->magic, s->policy->version, s->policy->size, sizeof *s->policy, why, len))
		return false;
	kerf_format(path, sizeof path, KERF_ROOT "/shares/%s/usage", s->id);
	s->usage = map_page(path, sizeof *s->usage, writable, why, len);
	return s->usage && check_page(path, s->usage->magic, s->usage->version, s->usage->size, sizeof *s->usage, why, len);
}

static int by_name(const void *a, const void *b)
{
	return strcmp(a, b);
}

int share_scan(struct share *shares, int max, bool writable, char *why, size_t len)
{
	char names[KERF_MAX_SHARES][40];
	DIR *dir = opendir(KERF_ROOT "/shares");
	struct dirent *e;
	int n = 0;

	if (!dir) {
		kerf_format(why, len, KERF_ROOT "/shares cannot be read (%s): the GPU limits are not known, so no GPU is given; start this program with kerf run or in a container with a claim", strerror(errno));
		return -1;
	}
	while ((e = readdir(dir)) != NULL) {
		if (e->d_name[0] == '.' || strlen(e->d_name) >= sizeof names[0])
			continue;
		if (n == max || n == KERF_MAX_SHARES) {
			closedir(dir);
			kerf_format(why, len, KERF_ROOT "/shares has more than %d shares, the most that one container can hold", max);
			return -1;
		}
		strcpy(names[n++], e->d_name);
	}
	closedir(dir);
	if (n == 0) {
		kerf_format(why, len, KERF_ROOT "/shares is empty: the grant has ended or was never made, so no GPU is given; start this program with kerf run or in a container with a claim");
		return -1;
	}
	qsort(names, (size_t)n, sizeof names[0], by_name);
	for (int i = 0; i < n; i++)
		if (!open_share(&shares[i], names[i], writable, why, len)) {
			share_unmap(shares, i + 1);
			return -1;
		}
	return n;
}

void share_unmap(struct share *shares, int n)
{
	for (int i = 0; i < n; i++) {
		if (shares[i].policy)
			munmap((void *)(uintptr_t)shares[i].policy, sizeof *shares[i].policy);
		if (shares[i].usage)
			munmap(shares[i].usage, sizeof *shares[i].usage);
		shares[i].policy = NULL;
		shares[i].usage = NULL;
	}
}

unsigned share_devices(const struct share *s)
{
	uint32_t n = load_relaxed(&s->policy->device_count);

	return n < KERF_MAX_DEVICES ? n : KERF_MAX_DEVICES;
}

bool share_is_mig(const struct share *s, unsigned index)
{
	return load_relaxed(&s->policy->device[index].flags) & KERF_DEVICE_MIG;
}

void share_text(const struct share *s, unsigned index, char text[KERF_UUID_TEXT])
{
	uuid_text(share_is_mig(s, index) ? "MIG-" : "GPU-", s->policy->device[index].uuid, text);
}

bool share_find(struct share *shares, int n, const uint8_t uuid[16], struct share **share, unsigned *index)
{
	for (int i = 0; i < n; i++)
		for (unsigned d = 0; d < share_devices(&shares[i]); d++)
			if (!memcmp(shares[i].policy->device[d].uuid, uuid, 16)) {
				*share = &shares[i];
				*index = d;
				return true;
			}
	return false;
}

struct room share_room(const struct share *s, unsigned index)
{
	const struct kerf_policy_device *p = &s->policy->device[index];
	struct room r = { .limit = load_relaxed(&p->limit) };

	r.used = load_relaxed(&s->usage->sum[index].charged) + load_relaxed(&p->implicit);
	if (r.used > r.limit)
		r.used = r.limit;
	return r;
}
