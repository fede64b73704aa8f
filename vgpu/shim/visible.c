/* visible.c: which GPUs the driver shows this process: of those granted, the ones that the tenant asks for. A MIG device is one of
 * them by its own UUID; of several the driver shows the first. */
#define _GNU_SOURCE
#include "session.h"

#include <stdlib.h>
#include <string.h>

static bool number(const char *s, unsigned long *out)
{
	unsigned long v = 0;

	if (!*s)
		return false;
	for (; *s; s++) {
		if (*s < '0' || *s > '9' || v > 1000)
			return false;
		v = v * 10 + (unsigned long)(*s - '0');
	}
	*out = v;
	return true;
}

struct granted { int n; char uuid[KERF_MAX_ORDINALS][KERF_UUID_TEXT]; };

static void list_granted(struct granted *g, const struct share *shares, int nshares)
{
	g->n = 0;
	for (int i = 0; i < nshares; i++)
		for (unsigned d = 0; d < share_devices(&shares[i]) && g->n < KERF_MAX_ORDINALS; d++)
			share_text(&shares[i], d, g->uuid[g->n++]);
}

/* One word of the tenant's CUDA_VISIBLE_DEVICES, read within the slice: an index into what was granted, or the
 * beginning of a UUID that only one of them has. −1: the list ends here, as it does for the driver. */
static int visible_word(const struct granted *g, const char *word)
{
	unsigned long v;
	int found = -1;

	if (number(word, &v))
		return v < (unsigned long)g->n ? (int)v : -1;
	if (strncmp(word, "GPU-", 4) && strncmp(word, "MIG-", 4))
		return -1;
	for (int i = 0; i < g->n; i++)
		if (!strncasecmp(g->uuid[i], word, strlen(word))) {
			if (found >= 0)
				return -1;
			found = i;
		}
	return found;
}

static void compose(const struct granted *g, const char *own, char *list, size_t len)
{
	char copy[1024], *save = NULL;
	size_t at = 0;

	if (!own) {
		for (int i = 0; i < g->n; i++)
			at += (size_t)kerf_format(list + at, len - at, "%s%s", i ? "," : "", g->uuid[i]);
		return;
	}
	kerf_format(copy, sizeof copy, "%s", own);
	for (char *w = strtok_r(copy, ",", &save); w; w = strtok_r(NULL, ",", &save)) {
		int i;

		while (*w == ' ')
			w++;
		i = visible_word(g, w);
		if (i < 0 || at + KERF_UUID_TEXT + 1 >= len)
			break;
		at += (size_t)kerf_format(list + at, len - at, "%s%s", at ? "," : "", g->uuid[i]);
	}
	if (at == 0)
		kerf_format(list, len, "-1");
}

/* The driver itself numbers and hides devices: it reads the variable once, in cuInit. It is put back after, so
 * that children inherit what the tenant wrote. */
CUresult kerf_init_visible(real_on_init real, unsigned flags, const struct share *shares, int nshares)
{
	char list[KERF_MAX_ORDINALS * KERF_UUID_TEXT + 1], *before;
	const char *own = getenv("CUDA_VISIBLE_DEVICES");
	struct granted g;
	CUresult r;

	before = own ? strdup(own) : NULL;
	if (own && !before)
		return CUDA_ERROR_OUT_OF_MEMORY;
	list_granted(&g, shares, nshares);
	compose(&g, own, list, sizeof list);
	setenv("CUDA_VISIBLE_DEVICES", list, 1);
	r = real(flags);
	if (before)
		setenv("CUDA_VISIBLE_DEVICES", before, 1);
	else
		unsetenv("CUDA_VISIBLE_DEVICES");
	free(before);
	return r;
}
