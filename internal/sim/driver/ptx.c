/* ptx.c: as much of PTX as loading a module needs: entries with their parameters, and global variables.
 *
 * The text is read token by token; bodies are skipped. What is not understood is passed over, but a text
 * without .version and .target, or one that ends inside a body, is no PTX.
 */
#include "sim.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#define TOKEN 256

struct reader { const char *at; char token[TOKEN]; };

static const char *skip_space(const char *p)
{
	for (;;) {
		while (isspace((unsigned char)*p))
			p++;
		if (p[0] == '/' && p[1] == '/') {
			while (*p && *p != '\n')
				p++;
		} else if (p[0] == '/' && p[1] == '*') {
			const char *end = strstr(p + 2, "*/");
			p = end ? end + 2 : p + strlen(p);
		} else {
			return p;
		}
	}
}

/* A word (directives and names with their dots) or one other character; false at the end. */
static bool next(struct reader *r)
{
	size_t n = 0;
	r->at = skip_space(r->at);
	while (isalnum((unsigned char)*r->at) || (*r->at && strchr("._$%", *r->at))) {
		if (n + 1 < TOKEN)
			r->token[n++] = *r->at;
		r->at++;
	}
	if (n == 0 && *r->at)
		r->token[n++] = *r->at++;
	r->token[n] = 0;
	return n > 0;
}

static bool is(const struct reader *r, const char *word) { return strcmp(r->token, word) == 0; }

static unsigned type_size(const char *t)
{
	static const struct { const char *name; unsigned size; } types[] = {
		{ ".b8", 1 }, { ".u8", 1 }, { ".s8", 1 }, { ".b16", 2 }, { ".u16", 2 }, { ".s16", 2 }, { ".f16", 2 }, { ".b32", 4 },
		{ ".u32", 4 }, { ".s32", 4 }, { ".f32", 4 }, { ".b64", 8 }, { ".u64", 8 }, { ".s64", 8 }, { ".f64", 8 },
	};
	for (size_t i = 0; i < sizeof types / sizeof types[0]; i++)
		if (strcmp(t, types[i].name) == 0)
			return types[i].size;
	return 0;
}

struct variable { unsigned align, element; uint64_t count; char name[TOKEN]; };

/* [.align N] .type name[count], up to and without what follows. */
static bool variable(struct reader *r, struct variable *v)
{
	*v = (struct variable){ .count = 1 };
	do {
		if (is(r, ".align")) {
			if (!next(r))
				return false;
			v->align = (unsigned)strtoul(r->token, NULL, 0);
		} else if (type_size(r->token)) {
			v->element = type_size(r->token);
		} else if (r->token[0] != '.') {
			memcpy(v->name, r->token, TOKEN);
			break;
		}
	} while (next(r));
	while (next(r) && is(r, "[")) {
		if (!next(r))
			return false;
		if (is(r, "]"))
			continue;
		v->count *= strtoull(r->token, NULL, 0);
		if (!next(r) || !is(r, "]"))
			return false;
	}
	if (!v->align)
		v->align = v->element;
	return v->element && v->name[0];
}

static bool parameters(struct reader *r, CUfunction f)
{
	while (!is(r, ")")) {
		struct variable v;
		if (!next(r))
			return false;
		if (is(r, ")"))
			break;
		if (!is(r, ".param"))
			continue;
		if (!next(r) || !variable(r, &v) || f->nparams == MAX_PARAMS)
			return false;
		unsigned at = (unsigned)round_up(f->param_bytes, v.align ? v.align : 1);
		f->param_offset[f->nparams] = at;
		f->param_size[f->nparams++] = (unsigned)(v.element * v.count);
		f->param_bytes = at + (unsigned)(v.element * v.count);
	}
	return true;
}

static bool skip_body(struct reader *r)
{
	int depth = 0;
	do {
		depth += is(r, "{") - is(r, "}");
		if (depth == 0 && (is(r, "}") || is(r, ";")))
			return true;
	} while (next(r));
	return false;
}

static void find_impl(CUfunction f)
{
	const struct kernel *k = kernel_find(f->name);
	if (!k || k->nparams != f->nparams)
		return;
	for (unsigned i = 0; i < k->nparams; i++)
		if (k->size[i] != f->param_size[i])
			return;
	f->impl = k;
}

static CUresult entry(struct reader *r, CUmodule m)
{
	REQUIRE(next(r), CUDA_ERROR_INVALID_PTX);
	CUfunction f = object_new(K_FUNCTION, sizeof *f);
	REQUIRE(f, CUDA_ERROR_OUT_OF_MEMORY);
	f->module = m;
	f->next = m->functions;
	m->functions = f;
	m->count++;
	memcpy(f->name, r->token, TOKEN);
	f->attribute[CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK] = 1024;
	f->attribute[CU_FUNC_ATTRIBUTE_NUM_REGS] = 16;
	f->attribute[CU_FUNC_ATTRIBUTE_PTX_VERSION] = 50;
	f->attribute[CU_FUNC_ATTRIBUTE_BINARY_VERSION] = 50;
	REQUIRE(next(r), CUDA_ERROR_INVALID_PTX);
	if (is(r, "("))
		REQUIRE(parameters(r, f) && next(r), CUDA_ERROR_INVALID_PTX);
	REQUIRE(skip_body(r), CUDA_ERROR_INVALID_PTX);
	find_impl(f);
	return CUDA_SUCCESS;
}

static CUresult global(struct reader *r, CUmodule m)
{
	struct variable v;
	REQUIRE(next(r) && variable(r, &v), CUDA_ERROR_INVALID_PTX);
	struct global *gl = calloc(1, sizeof *gl);
	REQUIRE(gl, CUDA_ERROR_OUT_OF_MEMORY);
	gl->size = v.element * v.count;
	memcpy(gl->name, v.name, TOKEN);
	gl->next = m->globals;
	m->globals = gl;
	REQUIRE(skip_body(r), CUDA_ERROR_INVALID_PTX); /* an initializer, to its semicolon; its values are not read */
	return CUDA_SUCCESS;
}

CUresult ptx_parse(CUmodule m, const char *text)
{
	struct reader r = { .at = text };
	bool version = false, target = false;
	while (next(&r)) {
		version |= is(&r, ".version");
		target |= is(&r, ".target");
		if (is(&r, ".entry"))
			TRY(entry(&r, m));
		else if (is(&r, ".global"))
			TRY(global(&r, m));
		else if (is(&r, ".func") || is(&r, "{"))
			REQUIRE(skip_body(&r), CUDA_ERROR_INVALID_PTX);
	}
	return version && target ? CUDA_SUCCESS : CUDA_ERROR_INVALID_PTX;
}
