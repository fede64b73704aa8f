/* hog: asks for one chunk too many by each class of allocation, and says where it was refused.
 *
 * For each class it takes chunks until one is refused, then ever smaller ones down to one granule, so that
 * the last refusal is of the smallest amount the class can give: what is left then must be less than that.
 * All that it got is verified, given back, and the free bytes compared with those before. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "options.h"
#include "tenant.h"

#define MI ((size_t)1 << 20)
enum { GRANULE = 2 << 20, CHECKED = 64 << 10 }; /* bytes of each piece that carry a pattern */

struct piece {
	CUdeviceptr p;  /* 0 where it has no address: arrays */
	size_t bytes;
	CUmemGenericAllocationHandle handle;
	CUarray array;
	CUmipmappedArray mipmap;
};

struct hog {
	struct tenant tenant;
	CUmemoryPool pool;
	struct piece *piece;
	size_t pieces, room;
};

struct class {
	const char *name;
	size_t slack; /* bytes that may be left at the refusal, and missing after: what the driver takes at once */
	CUresult (*take)(struct hog *hog, size_t bytes, struct piece *piece);
	CUresult (*give)(struct hog *hog, struct piece *piece);
	CUresult (*begin)(struct hog *hog); /* or NULL */
	CUresult (*end)(struct hog *hog);   /* or NULL */
};

struct outcome {
	size_t got, pieces, refused; /* refused: bytes of the last request */
	CUresult error;              /* of that request; CUDA_SUCCESS: never refused */
	size_t left, before, after;  /* free bytes at the refusal; before the class; after all was given back */
	size_t wrong;                /* pieces whose bytes were not as written */
	const char *complaint;       /* NULL: as it should be */
};

/* --- the classes --------------------------------------------------------------------------------------- */

static CUresult take_linear(struct hog *hog, size_t bytes, struct piece *piece)
{
	(void)hog;
	return cuMemAlloc_v2(&piece->p, bytes);
}

static CUresult give_linear(struct hog *hog, struct piece *piece)
{
	(void)hog;
	return cuMemFree_v2(piece->p);
}

static CUresult take_pitched(struct hog *hog, size_t bytes, struct piece *piece)
{
	enum { ROW = 64 << 10 }; /* a multiple of every card's pitch: no padding */
	size_t pitch;
	(void)hog;
	return cuMemAllocPitch_v2(&piece->p, &pitch, ROW, bytes / ROW, 16);
}

static CUresult take_managed(struct hog *hog, size_t bytes, struct piece *piece)
{
	(void)hog;
	return cuMemAllocManaged(&piece->p, bytes, CU_MEM_ATTACH_GLOBAL);
}

static CUresult take_async(struct hog *hog, size_t bytes, struct piece *piece)
{
	(void)hog;
	CUresult result = cuMemAllocAsync(&piece->p, bytes, NULL);
	return result == CUDA_SUCCESS ? cuStreamSynchronize(NULL) : result;
}

static CUresult give_async(struct hog *hog, struct piece *piece)
{
	(void)hog;
	return cuMemFreeAsync(piece->p, NULL);
}

static CUresult end_async(struct hog *hog)
{
	CUmemoryPool pool;
	CUresult result = cuStreamSynchronize(NULL);
	if (result == CUDA_SUCCESS)
		result = cuDeviceGetDefaultMemPool(&pool, hog->tenant.device);
	return result == CUDA_SUCCESS ? cuMemPoolTrimTo(pool, 0) : result;
}

static CUresult begin_pool(struct hog *hog)
{
	CUmemPoolProps props = {
		.allocType = CU_MEM_ALLOCATION_TYPE_PINNED,
		.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = hog->tenant.device},
	};
	return cuMemPoolCreate(&hog->pool, &props);
}

static CUresult take_pool(struct hog *hog, size_t bytes, struct piece *piece)
{
	CUresult result = cuMemAllocFromPoolAsync(&piece->p, bytes, hog->pool, NULL);
	return result == CUDA_SUCCESS ? cuStreamSynchronize(NULL) : result;
}

static CUresult end_pool(struct hog *hog)
{
	CUresult result = cuStreamSynchronize(NULL);
	CUresult destroyed = cuMemPoolDestroy(hog->pool);
	return result == CUDA_SUCCESS ? destroyed : result;
}

static CUresult map_vmm(struct hog *hog, size_t bytes, struct piece *piece)
{
	CUmemAccessDesc access = {
		.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = hog->tenant.device},
		.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
	};
	CUresult result = cuMemAddressReserve(&piece->p, bytes, 0, 0, 0);
	if (result == CUDA_SUCCESS)
		result = cuMemMap(piece->p, bytes, 0, piece->handle, 0);
	return result == CUDA_SUCCESS ? cuMemSetAccess(piece->p, bytes, &access, 1) : result;
}

static CUresult take_vmm(struct hog *hog, size_t bytes, struct piece *piece)
{
	CUmemAllocationProp prop = {
		.type = CU_MEM_ALLOCATION_TYPE_PINNED,
		.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = hog->tenant.device},
	};
	CUresult result = cuMemCreate(&piece->handle, bytes, &prop, 0);
	if (result != CUDA_SUCCESS)
		return result;
	/* A failure to map is not a refusal: it ends the program. */
	CU(&hog->tenant, map_vmm(hog, bytes, piece));
	return CUDA_SUCCESS;
}

static CUresult give_vmm(struct hog *hog, struct piece *piece)
{
	(void)hog;
	CUresult result = cuMemUnmap(piece->p, piece->bytes);
	if (result == CUDA_SUCCESS)
		result = cuMemAddressFree(piece->p, piece->bytes);
	return result == CUDA_SUCCESS ? cuMemRelease(piece->handle) : result;
}

enum { TEXEL = 16 }; /* four floats */

static CUresult take_array(struct hog *hog, size_t bytes, struct piece *piece)
{
	enum { WIDTH = 4096 };
	CUDA_ARRAY_DESCRIPTOR shape = {
		.Width = WIDTH, .Height = bytes / (WIDTH * TEXEL), .Format = CU_AD_FORMAT_FLOAT, .NumChannels = 4,
	};
	(void)hog;
	return cuArrayCreate_v2(&piece->array, &shape);
}

static CUDA_ARRAY3D_DESCRIPTOR cube_of(size_t bytes)
{
	enum { SIDE = 256 };
	return (CUDA_ARRAY3D_DESCRIPTOR){
		.Width = SIDE, .Height = SIDE, .Depth = bytes / ((size_t)SIDE * SIDE * TEXEL),
		.Format = CU_AD_FORMAT_FLOAT, .NumChannels = 4,
	};
}

static CUresult take_array3d(struct hog *hog, size_t bytes, struct piece *piece)
{
	CUDA_ARRAY3D_DESCRIPTOR shape = cube_of(bytes);
	(void)hog;
	return cuArray3DCreate_v2(&piece->array, &shape);
}

static CUresult give_array(struct hog *hog, struct piece *piece)
{
	(void)hog;
	return cuArrayDestroy(piece->array);
}

static CUresult take_mipmap(struct hog *hog, size_t bytes, struct piece *piece)
{
	CUDA_ARRAY3D_DESCRIPTOR shape = cube_of(bytes);
	(void)hog;
	CUresult result = cuMipmappedArrayCreate(&piece->mipmap, &shape, 1);
	return result == CUDA_SUCCESS ? cuMipmappedArrayGetLevel(&piece->array, piece->mipmap, 0) : result;
}

static CUresult give_mipmap(struct hog *hog, struct piece *piece)
{
	(void)hog;
	return cuMipmappedArrayDestroy(piece->mipmap);
}

static CUresult run_once(CUgraph graph)
{
	CUgraphExec exec;
	CUresult result = cuGraphInstantiateWithFlags(&exec, graph, 0);
	if (result != CUDA_SUCCESS)
		return result;
	result = cuGraphLaunch(exec, NULL);
	if (result == CUDA_SUCCESS)
		result = cuStreamSynchronize(NULL);
	/* Memory that a graph took and did not free outlives the graph. */
	CUresult destroyed = cuGraphExecDestroy(exec);
	return result == CUDA_SUCCESS ? destroyed : result;
}

static CUresult take_graph(struct hog *hog, size_t bytes, struct piece *piece)
{
	CUDA_MEM_ALLOC_NODE_PARAMS params = {
		.poolProps = {
			.allocType = CU_MEM_ALLOCATION_TYPE_PINNED,
			.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = hog->tenant.device},
		},
		.bytesize = bytes,
	};
	CUgraph graph;
	CUgraphNode node;
	CUresult result = cuGraphCreate(&graph, 0);
	if (result != CUDA_SUCCESS)
		return result;
	result = cuGraphAddMemAllocNode(&node, graph, NULL, 0, &params);
	if (result == CUDA_SUCCESS)
		result = run_once(graph);
	piece->p = params.dptr;
	CUresult destroyed = cuGraphDestroy(graph);
	return result == CUDA_SUCCESS ? destroyed : result;
}

static CUresult end_graph(struct hog *hog)
{
	CUresult result = cuStreamSynchronize(NULL);
	return result == CUDA_SUCCESS ? cuDeviceGraphMemTrim(hog->tenant.device) : result;
}

/* Pools and graphs take memory from the driver in blocks of tens of MiB and give it back so. */
#define POOLED (64 * MI)

static const struct class CLASSES[] = {
	{"linear",  GRANULE, take_linear,  give_linear, NULL, NULL},
	{"pitched", GRANULE, take_pitched, give_linear, NULL, NULL},
	{"managed", GRANULE, take_managed, give_linear, NULL, NULL},
	{"async",   POOLED,  take_async,   give_async,  NULL, end_async},
	{"pool",    POOLED,  take_pool,    give_async,  begin_pool, end_pool},
	{"vmm",     GRANULE, take_vmm,     give_vmm,    NULL, NULL},
	{"array",   GRANULE, take_array,   give_array,  NULL, NULL},
	{"array3d", GRANULE, take_array3d, give_array,  NULL, NULL},
	{"mipmap",  GRANULE, take_mipmap,  give_mipmap, NULL, NULL},
	{"graph",   POOLED,  take_graph,   give_async,  NULL, end_graph},
};
enum { CLASS_COUNT = sizeof CLASSES / sizeof CLASSES[0] };

/* --- data ---------------------------------------------------------------------------------------------- */

static void copy_array(struct hog *hog, CUarray array, uint32_t *host, int out)
{
	enum { ROW = 4096 };
	CUDA_MEMCPY3D copy = {.WidthInBytes = ROW, .Height = 1, .Depth = 1};
	copy.srcMemoryType = out ? CU_MEMORYTYPE_ARRAY : CU_MEMORYTYPE_HOST;
	copy.dstMemoryType = out ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_ARRAY;
	if (out) {
		copy.srcArray = array;
		copy.dstHost = host;
		copy.dstPitch = ROW;
	} else {
		copy.srcHost = host;
		copy.srcPitch = ROW;
		copy.dstArray = array;
	}
	CU(&hog->tenant, cuMemcpy3D_v2(&copy));
}

enum { ARRAY_WORDS = 1024 };

static uint32_t array_word(uint32_t seed, uint32_t i) { return (seed + 1) * 2654435761u ^ i; }

static void write_piece(struct hog *hog, struct piece *piece, uint32_t seed)
{
	if (piece->p) {
		tenant_fill(&hog->tenant, piece->p, CHECKED, seed);
		return;
	}
	uint32_t words[ARRAY_WORDS];
	for (uint32_t i = 0; i < ARRAY_WORDS; i++)
		words[i] = array_word(seed, i);
	copy_array(hog, piece->array, words, 0);
}

static int piece_is_wrong(struct hog *hog, struct piece *piece, uint32_t seed)
{
	if (piece->p)
		return tenant_verify(&hog->tenant, piece->p, CHECKED, seed);
	uint32_t words[ARRAY_WORDS];
	memset(words, 0xa5, sizeof words);
	copy_array(hog, piece->array, words, 1);
	hog->tenant.verified++;
	for (uint32_t i = 0; i < ARRAY_WORDS; i++)
		if (words[i] != array_word(seed, i))
			return hog->tenant.wrong++, 1;
	return 0;
}

/* --- one class ----------------------------------------------------------------------------------------- */

static struct piece *next_piece(struct hog *hog)
{
	if (hog->pieces == hog->room) {
		hog->room = hog->room ? hog->room * 2 : 256;
		hog->piece = realloc(hog->piece, hog->room * sizeof *hog->piece);
		if (!hog->piece) {
			fprintf(stderr, "hog: out of host memory for %zu pieces\n", hog->room);
			exit(1);
		}
	}
	struct piece *piece = &hog->piece[hog->pieces];
	memset(piece, 0, sizeof *piece);
	return piece;
}

/* Takes until refused at the smallest size, or until more than the card was given. */
static void take_all(struct hog *hog, const struct class *class, size_t chunk, struct outcome *outcome)
{
	for (size_t bytes = chunk; bytes >= GRANULE; bytes /= 2) {
		for (outcome->error = CUDA_SUCCESS; outcome->got <= hog->tenant.total;) {
			struct piece *piece = next_piece(hog);
			outcome->refused = bytes;
			outcome->error = class->take(hog, bytes, piece);
			if (outcome->error != CUDA_SUCCESS)
				break;
			piece->bytes = bytes;
			write_piece(hog, piece, (uint32_t)hog->pieces);
			hog->pieces++;
			outcome->got += bytes;
		}
		if (outcome->error != CUDA_ERROR_OUT_OF_MEMORY)
			return;
	}
}

static size_t slack_of(const struct hog *hog, const struct class *class)
{
	/* On a real card the driver's own memory (modules, local memory) grows beside ours. */
	return hog->tenant.simulated ? class->slack : POOLED;
}

static const char *complaint_of(const struct hog *hog, const struct class *class, const struct outcome *outcome)
{
	size_t slack = slack_of(hog, class);
	if (outcome->error == CUDA_SUCCESS)
		return "got more than the card has: no limit";
	if (outcome->error != CUDA_ERROR_OUT_OF_MEMORY)
		return "not the error of a refusal";
	if (outcome->got == 0)
		return "got nothing at all";
	if (outcome->left > slack)
		return "refused before the limit";
	if (outcome->wrong)
		return "data was not as written";
	if (outcome->after + slack < outcome->before)
		return "not all was given back";
	return NULL;
}

static struct outcome run_class(struct hog *hog, const struct class *class, size_t chunk)
{
	struct tenant *tenant = &hog->tenant;
	struct outcome outcome = {.before = tenant_free_bytes(tenant)};
	hog->pieces = 0;
	if (class->begin)
		CU(tenant, class->begin(hog));
	take_all(hog, class, chunk, &outcome);
	outcome.pieces = hog->pieces;
	outcome.left = tenant_free_bytes(tenant);
	for (size_t i = 0; i < hog->pieces; i++)
		outcome.wrong += (size_t)piece_is_wrong(hog, &hog->piece[i], (uint32_t)i);
	for (size_t i = 0; i < hog->pieces; i++)
		CU(tenant, class->give(hog, &hog->piece[i]));
	if (class->end)
		CU(tenant, class->end(hog));
	CU(tenant, cuCtxSynchronize());
	outcome.after = tenant_free_bytes(tenant);
	outcome.complaint = complaint_of(hog, class, &outcome);
	return outcome;
}

/* --- the report ---------------------------------------------------------------------------------------- */

static void print_outcome(const struct hog *hog, const struct class *class, const struct outcome *outcome)
{
	char text[256];
	snprintf(text, sizeof text, "  %-8s %11s in %5zu, refused %9s more: %s (%d), %s left; %s", class->name,
	         human_bytes(outcome->got), outcome->pieces, human_bytes(outcome->refused), cu_name(outcome->error),
	         outcome->error, human_bytes(outcome->left), outcome->complaint ? outcome->complaint : "ok");
	tenant_say(&hog->tenant, "class", text,
	           "\"class\":\"%s\",\"got\":%zu,\"pieces\":%zu,\"refused\":%zu,\"error\":%d,\"left\":%zu,"
	           "\"before\":%zu,\"after\":%zu,\"wrong\":%zu,\"ok\":%s,\"complaint\":\"%s\"",
	           class->name, outcome->got, outcome->pieces, outcome->refused, outcome->error, outcome->left,
	           outcome->before, outcome->after, outcome->wrong, outcome->complaint ? "false" : "true",
	           outcome->complaint ? outcome->complaint : "");
}

static int is_chosen(const char *chosen, const char *name)
{
	size_t length = strlen(name);
	if (!chosen)
		return 1;
	for (const char *at = chosen; (at = strstr(at, name)); at += length)
		if ((at == chosen || at[-1] == ',') && (at[length] == ',' || at[length] == 0))
			return 1;
	return 0;
}

static void check_chosen(const char *chosen)
{
	size_t wanted = 0, found = 0;
	if (!chosen)
		return;
	for (const char *at = chosen; at; at = strchr(at + 1, ','))
		wanted++;
	for (int i = 0; i < CLASS_COUNT; i++)
		found += (size_t)is_chosen(chosen, CLASSES[i].name);
	if (found == wanted)
		return;
	fprintf(stderr, "hog: --class %s: the classes are", chosen);
	for (int i = 0; i < CLASS_COUNT; i++)
		fprintf(stderr, "%s %s", i ? "," : "", CLASSES[i].name);
	fprintf(stderr, "; name some of them, with commas between\n");
	exit(2);
}

static void check_limit(const struct tenant *tenant, uint64_t limit)
{
	if (limit == 0 || limit == tenant->total)
		return;
	fprintf(stderr, "hog: --limit is %llu bytes, but cuMemGetInfo says %zu: this is not the slice that was asked for\n",
	        (unsigned long long)limit, tenant->total);
	exit(1);
}

/* What the driver takes for the context itself is known to a slice's keeper only after a while; until then it
 * would look as if a class had kept it. */
static void settle(const struct tenant *tenant, double seconds)
{
	size_t before = tenant_free_bytes(tenant);
	for (double end = now_seconds() + seconds; now_seconds() < end && tenant_free_bytes(tenant) == before;)
		sleep_seconds(0.02);
}

/* More managed memory than a card has free can hang it: only a slice is asked for one chunk too many. */
static int is_skipped(const struct class *class, uint64_t limit)
{
	return limit == 0 && strcmp(class->name, "managed") == 0;
}

int main(int argc, char **argv)
{
	struct hog hog = {0};
	uint64_t limit = 0, chunk = 64 * MI;
	double wait = 2;
	const char *chosen = NULL;
	const struct option_row rows[] = {
		{"limit", OPTION_BYTES, &limit, "what the slice has; the card must say so too. Without it, managed memory is left out"},
		{"chunk", OPTION_BYTES, &chunk, "the first size to ask for, at least 2Mi (64Mi)"},
		{"settle", OPTION_NUMBER, &wait, "seconds to wait at first for the context to be counted (2)"},
		{"class", OPTION_WORD, &chosen, "only these classes, with commas between"},
		{"json", OPTION_FLAG, &hog.tenant.json, "lines of JSON"},
	};
	options_read(argc, argv, "asks for one chunk too many by each class of allocation", rows, sizeof rows / sizeof rows[0]);
	check_chosen(chosen);
	if (chunk < GRANULE) {
		fprintf(stderr, "hog: --chunk %llu: give at least 2Mi, the smallest piece that is asked for\n", (unsigned long long)chunk);
		return 2;
	}
	tenant_open(&hog.tenant, "hog");
	check_limit(&hog.tenant, limit);
	settle(&hog.tenant, wait);

	size_t run = 0, bad = 0;
	for (int i = 0; i < CLASS_COUNT; i++) {
		if (!is_chosen(chosen, CLASSES[i].name) || is_skipped(&CLASSES[i], limit))
			continue;
		struct outcome outcome = run_class(&hog, &CLASSES[i], chunk);
		print_outcome(&hog, &CLASSES[i], &outcome);
		run++;
		bad += outcome.complaint != NULL;
	}
	char text[160];
	snprintf(text, sizeof text, "hog: %zu of %zu classes refused at the limit of %s, %llu pieces verified, %llu wrong",
	         run - bad, run, human_bytes(hog.tenant.total), (unsigned long long)hog.tenant.verified,
	         (unsigned long long)hog.tenant.wrong);
	tenant_say(&hog.tenant, "report", text, "\"limit\":%zu,\"classes\":%zu,\"bad\":%zu,\"verified\":%llu,\"wrong\":%llu",
	           hog.tenant.total, run, bad, (unsigned long long)hog.tenant.verified, (unsigned long long)hog.tenant.wrong);
	tenant_close(&hog.tenant);
	free(hog.piece);
	return bad != 0;
}
