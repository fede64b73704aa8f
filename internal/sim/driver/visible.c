/* visible.c: which devices this process has: those of the node that it can open, of them what CUDA_VISIBLE_DEVICES names, and MIG.
 *
 * As with the real driver: a process has one MIG device at most, the first that is named, and no whole GPU beside it; a GPU in MIG
 * mode stands for the first of its MIG devices, and for nothing where the process may use none.
 */
#define _GNU_SOURCE
#include "visible.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

static void uuid_text(const uint8_t u[16], char out[37])
{
	snprintf(out, 37, "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", u[0], u[1], u[2], u[3], u[4], u[5],
	         u[6], u[7], u[8], u[9], u[10], u[11], u[12], u[13], u[14], u[15]);
}

static bool begins(const uint8_t uuid[16], const char *word)
{
	char text[37];
	uuid_text(uuid, text);
	return *word && strncasecmp(text, word, strlen(word)) == 0;
}

/* What a GPU stands for. */
static bool device_of_gpu(struct sim_gpu *gpu, struct visible *out)
{
	*out = (struct visible){ gpu, 0 };
	if (!gpu->mig_mode)
		return true;
	for (unsigned i = 0; i < SIM_MAX_MIG_INSTANCES && !out->mig; i++)
		if (sim_mig_usable(g.root, gpu, &gpu->mig[i]))
			out->mig = i + 1;
	return out->mig;
}

static bool gpu_by_uuid(const char *word, struct sim_gpu *const *seen, int n, struct visible *out)
{
	struct sim_gpu *found = NULL;
	for (int i = 0; i < n; i++)
		if (begins(seen[i]->facts.uuid, word)) {
			if (found)
				return false; /* names two */
			found = seen[i];
		}
	return found && device_of_gpu(found, out);
}

static bool mig_by_uuid(const char *word, struct sim_gpu *const *seen, int n, struct visible *out)
{
	int found = 0;
	for (int i = 0; i < n; i++)
		for (unsigned m = 0; m < SIM_MAX_MIG_INSTANCES; m++)
			if (seen[i]->mig_mode && sim_mig_usable(g.root, seen[i], &seen[i]->mig[m]) && begins(seen[i]->mig[m].uuid, word)) {
				*out = (struct visible){ seen[i], m + 1 };
				found++;
			}
	return found == 1;
}

/* What one word of the list names: an index among the GPUs seen, or a prefix of one GPU's or MIG device's UUID. */
static bool named(const char *word, struct sim_gpu *const *seen, int n, struct visible *out)
{
	char *end;
	if (strncasecmp(word, "GPU-", 4) == 0)
		return gpu_by_uuid(word + 4, seen, n, out);
	if (strncasecmp(word, "MIG-", 4) == 0)
		return mig_by_uuid(word + 4, seen, n, out);
	long i = strtol(word, &end, 10);
	return end != word && *end == 0 && i >= 0 && i < n && device_of_gpu(seen[i], out);
}

static char *trimmed(char *w)
{
	while (*w == ' ')
		w++;
	for (char *e = w + strlen(w); e > w && e[-1] == ' ';)
		*--e = 0;
	return w;
}

/* As the real driver: the list ends at the first word that names nothing; a device named twice empties it. */
static int from_list(const char *list, struct sim_gpu *const *seen, int n, struct visible *out)
{
	char copy[4096], *save = NULL;
	int count = 0;
	struct visible v;
	snprintf(copy, sizeof copy, "%s", list);
	for (char *w = strtok_r(copy, ",", &save); w && count < SIM_MAX_GPUS; w = strtok_r(NULL, ",", &save)) {
		if (!named(trimmed(w), seen, n, &v))
			break;
		for (int k = 0; k < count; k++)
			if (out[k].gpu == v.gpu && out[k].mig == v.mig)
				return 0;
		out[count++] = v;
	}
	return count;
}

static int all_seen(struct sim_gpu *const *seen, int n, struct visible *out)
{
	int count = 0;
	for (int i = 0; i < n; i++)
		count += device_of_gpu(seen[i], &out[count]);
	return count;
}

int visible_devices(const char *list, struct sim_gpu *const *seen, int n, struct visible out[SIM_MAX_GPUS])
{
	int count = list ? from_list(list, seen, n, out) : all_seen(seen, n, out);
	for (int i = 0; i < count; i++)
		if (out[i].mig) {
			out[0] = out[i];
			return 1;
		}
	return count;
}
