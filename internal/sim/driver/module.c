/* module.c: modules, libraries, functions and kernels. Only PTX text can be loaded: machine code has no
 * meaning here. Entries whose name and parameters are one of kernels.c can be launched. */
#include "sim.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- loading ----------------------------------------------------------------------------------------- */

static CUresult image_kind(const void *image)
{
	const unsigned char *p = image;
	if (memcmp(p, "\177ELF", 4) == 0 || memcmp(p, "\x50\xed\x55\xba", 4) == 0 || memcmp(p, "\xb1\x43\x62\x46", 4) == 0)
		return CUDA_ERROR_NO_BINARY_FOR_GPU; /* cubin, fat binary: for a real GPU */
	for (int i = 0; i < 16 && p[i]; i++)
		if ((p[i] < 32 && p[i] != '\n' && p[i] != '\r' && p[i] != '\t') || p[i] > 126)
			return CUDA_ERROR_INVALID_IMAGE;
	return *p ? CUDA_SUCCESS : CUDA_ERROR_INVALID_IMAGE;
}

/* Under g.lock. */
static CUresult place_global(struct global *gl, CUcontext c)
{
	CUresult r = CUDA_SUCCESS;
	if (gl->at)
		return r;
	if (gl->size < SMALL_LIMIT)
		r = small_alloc(c, gl->size ? gl->size : 1, &gl->at);
	else {
		struct range *m = range_new(c->dev, c, R_MODULE, gl->size, &r);
		gl->at = m ? m->base : 0;
	}
	if (gl->at && !g.zero_cost)
		memset(addr_bytes(gl->at), 0, gl->size);
	return gl->at ? CUDA_SUCCESS : r;
}

static void unload(CUmodule m)
{
	struct span s;
	for (CUfunction f = m->functions, next; f; f = next) {
		next = f->next;
		object_free(f);
	}
	for (struct global *gl = m->globals, *next; gl; gl = next) {
		next = gl->next;
		if (gl->at && addr_find(gl->at, &s)) {
			if (s.range->kind == R_BLOCK)
				small_free(s.range, gl->at);
			else
				range_free(s.range);
		}
		free(gl);
	}
	object_free(m);
}

/* ctx NULL: for a library, whose globals come later. Under g.lock. */
static CUresult load(CUcontext c, const void *image, CUmodule *out)
{
	TRY(image_kind(image));
	CUmodule m = object_new(K_MODULE, sizeof *m);
	REQUIRE(m, CUDA_ERROR_OUT_OF_MEMORY);
	m->ctx = c;
	CUresult r = ptx_parse(m, image);
	for (struct global *gl = m->globals; gl && c && r == CUDA_SUCCESS; gl = gl->next)
		r = place_global(gl, c);
	if (r != CUDA_SUCCESS)
		unload(m);
	else
		*out = m;
	return r;
}

static CUresult read_file(const char *name, char **out)
{
	FILE *f = fopen(name, "re");
	REQUIRE(f, CUDA_ERROR_FILE_NOT_FOUND);
	size_t room = 1 << 16, n = 0, got;
	char *text = malloc(room);
	while (text && (got = fread(text + n, 1, room - n - 1, f)) > 0) {
		n += got;
		if (room - n < 2) {
			char *more = realloc(text, room *= 2);
			if (!more)
				free(text);
			text = more;
		}
	}
	fclose(f);
	REQUIRE(text, CUDA_ERROR_OUT_OF_MEMORY);
	text[n] = 0;
	*out = text;
	return CUDA_SUCCESS;
}

CUresult cuModuleLoadDataEx(CUmodule *module, const void *image, unsigned int numOptions, CUjit_option *options, void **optionValues)
{
	CUcontext c;
	TRY(current(&c));
	REQUIRE(module && image && (!numOptions || (options && optionValues)), CUDA_ERROR_INVALID_VALUE);
	pthread_mutex_lock(&g.lock);
	CUresult r = load(c, image, module);
	pthread_mutex_unlock(&g.lock);
	return r;
}

CUresult cuModuleLoadData(CUmodule *module, const void *image) { return cuModuleLoadDataEx(module, image, 0, NULL, NULL); }
CUresult cuModuleLoadFatBinary(CUmodule *module, const void *fatCubin) { return cuModuleLoadDataEx(module, fatCubin, 0, NULL, NULL); }

CUresult cuModuleLoad(CUmodule *module, const char *fname)
{
	char *text;
	TRY(ready());
	REQUIRE(module && fname, CUDA_ERROR_INVALID_VALUE);
	TRY(read_file(fname, &text));
	CUresult r = cuModuleLoadData(module, text);
	free(text);
	return r;
}

CUresult cuModuleUnload(CUmodule hmod)
{
	CUcontext c;
	TRY(current(&c));
	REQUIRE(is_kind(hmod, K_MODULE) && !hmod->library, CUDA_ERROR_INVALID_HANDLE);
	pthread_mutex_lock(&g.lock);
	if (hmod->ctx && !hmod->ctx->dead)
		wait_idle_context(hmod->ctx);
	unload(hmod);
	pthread_mutex_unlock(&g.lock);
	return CUDA_SUCCESS;
}

CUresult cuModuleGetLoadingMode(CUmoduleLoadingMode *mode)
{
	TRY(ready());
	REQUIRE(mode, CUDA_ERROR_INVALID_VALUE);
	*mode = CU_MODULE_LAZY_LOADING;
	return CUDA_SUCCESS;
}

/* --- what is in a module ----------------------------------------------------------------------------- */

static CUresult find_function(CUmodule m, const char *name, CUfunction *out)
{
	for (CUfunction f = m->functions; f; f = f->next)
		if (strcmp(f->name, name) == 0) {
			*out = f;
			return CUDA_SUCCESS;
		}
	return CUDA_ERROR_NOT_FOUND;
}

static CUresult list_functions(CUmodule m, CUfunction *out, unsigned n)
{
	unsigned i = 0;
	for (CUfunction f = m->functions; f && i < n; f = f->next)
		out[i++] = f;
	return CUDA_SUCCESS;
}

static CUresult find_global(CUmodule m, CUcontext c, const char *name, CUdeviceptr *at, size_t *bytes)
{
	for (struct global *gl = m->globals; gl; gl = gl->next) {
		if (strcmp(gl->name, name) != 0)
			continue;
		pthread_mutex_lock(&g.lock);
		CUresult r = place_global(gl, c);
		pthread_mutex_unlock(&g.lock);
		TRY(r);
		if (at)
			*at = gl->at;
		if (bytes)
			*bytes = gl->size;
		return CUDA_SUCCESS;
	}
	return CUDA_ERROR_NOT_FOUND;
}

CUresult cuModuleGetFunction(CUfunction *hfunc, CUmodule hmod, const char *name)
{
	CUcontext c;
	TRY(current(&c));
	REQUIRE(hfunc && name, CUDA_ERROR_INVALID_VALUE);
	REQUIRE(is_kind(hmod, K_MODULE), CUDA_ERROR_INVALID_HANDLE);
	return find_function(hmod, name, hfunc);
}

CUresult cuModuleGetFunctionCount(unsigned int *count, CUmodule mod)
{
	TRY(ready());
	REQUIRE(count, CUDA_ERROR_INVALID_VALUE);
	REQUIRE(is_kind(mod, K_MODULE), CUDA_ERROR_INVALID_HANDLE);
	*count = mod->count;
	return CUDA_SUCCESS;
}

CUresult cuModuleEnumerateFunctions(CUfunction *functions, unsigned int numFunctions, CUmodule mod)
{
	TRY(ready());
	REQUIRE(functions && numFunctions, CUDA_ERROR_INVALID_VALUE);
	REQUIRE(is_kind(mod, K_MODULE), CUDA_ERROR_INVALID_HANDLE);
	return list_functions(mod, functions, numFunctions);
}

CUresult cuModuleGetGlobal_v2(CUdeviceptr *dptr, size_t *bytes, CUmodule hmod, const char *name)
{
	CUcontext c;
	TRY(current(&c));
	REQUIRE(name && (dptr || bytes), CUDA_ERROR_INVALID_VALUE);
	REQUIRE(is_kind(hmod, K_MODULE), CUDA_ERROR_INVALID_HANDLE);
	return find_global(hmod, c, name, dptr, bytes);
}

/* --- libraries --------------------------------------------------------------------------------------- */

CUresult cuLibraryLoadData(CUlibrary *library, const void *code, CUjit_option *jitOptions, void **jitOptionsValues, unsigned int numJitOptions,
                           CUlibraryOption *libraryOptions, void **libraryOptionValues, unsigned int numLibraryOptions)
{
	TRY(ready());
	REQUIRE(library && code && (!numJitOptions || (jitOptions && jitOptionsValues)) && (!numLibraryOptions || libraryOptions),
	        CUDA_ERROR_INVALID_VALUE);
	(void)libraryOptionValues;
	pthread_mutex_lock(&g.lock);
	CUlibrary l = object_new(K_LIBRARY, sizeof *l);
	CUresult r = l ? load(NULL, code, &l->module) : CUDA_ERROR_OUT_OF_MEMORY;
	if (r == CUDA_SUCCESS) {
		l->module->library = l;
		*library = l;
	} else if (l) {
		object_free(l);
	}
	pthread_mutex_unlock(&g.lock);
	return r;
}

CUresult cuLibraryLoadFromFile(CUlibrary *library, const char *fileName, CUjit_option *jitOptions, void **jitOptionsValues,
                               unsigned int numJitOptions, CUlibraryOption *libraryOptions, void **libraryOptionValues,
                               unsigned int numLibraryOptions)
{
	char *text;
	TRY(ready());
	REQUIRE(library && fileName, CUDA_ERROR_INVALID_VALUE);
	TRY(read_file(fileName, &text));
	CUresult r = cuLibraryLoadData(library, text, jitOptions, jitOptionsValues, numJitOptions, libraryOptions, libraryOptionValues, numLibraryOptions);
	free(text);
	return r;
}

static CUresult valid_library(CUlibrary l)
{
	TRY(ready());
	return is_kind(l, K_LIBRARY) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUresult cuLibraryUnload(CUlibrary library)
{
	TRY(valid_library(library));
	pthread_mutex_lock(&g.lock);
	for (CUcontext c = g.contexts; c; c = c->next)
		wait_idle_context(c);
	unload(library->module);
	object_free(library);
	pthread_mutex_unlock(&g.lock);
	return CUDA_SUCCESS;
}

CUresult cuLibraryGetKernel(CUkernel *pKernel, CUlibrary library, const char *name)
{
	REQUIRE(pKernel && name, CUDA_ERROR_INVALID_VALUE);
	TRY(valid_library(library));
	return find_function(library->module, name, (CUfunction *)pKernel);
}

CUresult cuLibraryGetKernelCount(unsigned int *count, CUlibrary lib)
{
	REQUIRE(count, CUDA_ERROR_INVALID_VALUE);
	TRY(valid_library(lib));
	*count = lib->module->count;
	return CUDA_SUCCESS;
}

CUresult cuLibraryEnumerateKernels(CUkernel *kernels, unsigned int numKernels, CUlibrary lib)
{
	REQUIRE(kernels && numKernels, CUDA_ERROR_INVALID_VALUE);
	TRY(valid_library(lib));
	return list_functions(lib->module, (CUfunction *)kernels, numKernels);
}

CUresult cuLibraryGetModule(CUmodule *pMod, CUlibrary library)
{
	CUcontext c;
	REQUIRE(pMod, CUDA_ERROR_INVALID_VALUE);
	TRY(current(&c));
	TRY(valid_library(library));
	*pMod = library->module;
	return CUDA_SUCCESS;
}

CUresult cuLibraryGetGlobal(CUdeviceptr *dptr, size_t *bytes, CUlibrary library, const char *name)
{
	CUcontext c;
	REQUIRE(name && (dptr || bytes), CUDA_ERROR_INVALID_VALUE);
	TRY(current(&c));
	TRY(valid_library(library));
	return find_global(library->module, c, name, dptr, bytes);
}

CUresult cuLibraryGetManaged(CUdeviceptr *dptr, size_t *bytes, CUlibrary library, const char *name)
{
	REQUIRE(name && (dptr || bytes), CUDA_ERROR_INVALID_VALUE);
	TRY(valid_library(library));
	return CUDA_ERROR_NOT_FOUND; /* __managed__ variables are not simulated */
}

/* --- functions and kernels --------------------------------------------------------------------------- */

static CUresult valid(CUfunction f)
{
	TRY(ready());
	return is_kind(f, K_FUNCTION) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUresult cuFuncGetAttribute(int *pi, CUfunction_attribute attrib, CUfunction hfunc)
{
	REQUIRE(pi && (unsigned)attrib < 16, CUDA_ERROR_INVALID_VALUE);
	TRY(valid(hfunc));
	*pi = hfunc->attribute[attrib];
	return CUDA_SUCCESS;
}

CUresult cuFuncSetAttribute(CUfunction hfunc, CUfunction_attribute attrib, int value)
{
	TRY(valid(hfunc));
	REQUIRE((unsigned)attrib < 16 && attrib >= CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, CUDA_ERROR_INVALID_VALUE);
	hfunc->attribute[attrib] = value;
	return CUDA_SUCCESS;
}

CUresult cuFuncSetCacheConfig(CUfunction hfunc, CUfunc_cache config)
{
	TRY(valid(hfunc));
	return (unsigned)config <= CU_FUNC_CACHE_PREFER_EQUAL ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuFuncSetSharedMemConfig(CUfunction hfunc, CUsharedconfig config)
{
	TRY(valid(hfunc));
	return (unsigned)config <= CU_SHARED_MEM_CONFIG_EIGHT_BYTE_BANK_SIZE ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuFuncGetModule(CUmodule *hmod, CUfunction hfunc)
{
	REQUIRE(hmod, CUDA_ERROR_INVALID_VALUE);
	TRY(valid(hfunc));
	*hmod = hfunc->module;
	return CUDA_SUCCESS;
}

CUresult cuFuncGetName(const char **name, CUfunction hfunc)
{
	REQUIRE(name, CUDA_ERROR_INVALID_VALUE);
	TRY(valid(hfunc));
	*name = hfunc->name;
	return CUDA_SUCCESS;
}

CUresult cuFuncGetParamInfo(CUfunction func, size_t paramIndex, size_t *paramOffset, size_t *paramSize)
{
	REQUIRE(paramOffset, CUDA_ERROR_INVALID_VALUE);
	TRY(valid(func));
	REQUIRE(paramIndex < func->nparams, CUDA_ERROR_INVALID_VALUE);
	*paramOffset = func->param_offset[paramIndex];
	if (paramSize)
		*paramSize = func->param_size[paramIndex];
	return CUDA_SUCCESS;
}

CUresult cuFuncGetParamCount(CUfunction func, size_t *paramCount)
{
	REQUIRE(paramCount, CUDA_ERROR_INVALID_VALUE);
	TRY(valid(func));
	*paramCount = func->nparams;
	return CUDA_SUCCESS;
}

CUresult cuFuncIsLoaded(CUfunctionLoadingState *state, CUfunction function)
{
	REQUIRE(state, CUDA_ERROR_INVALID_VALUE);
	TRY(valid(function));
	*state = CU_FUNCTION_LOADING_STATE_LOADED;
	return CUDA_SUCCESS;
}

CUresult cuFuncLoad(CUfunction function) { return valid(function); }

/* A kernel is its function here: what one call does for the one, it does for the other. */
CUresult cuKernelGetFunction(CUfunction *pFunc, CUkernel kernel)
{
	CUcontext c;
	REQUIRE(pFunc, CUDA_ERROR_INVALID_VALUE);
	TRY(current(&c));
	TRY(valid((CUfunction)kernel));
	*pFunc = (CUfunction)kernel;
	return CUDA_SUCCESS;
}

CUresult cuKernelGetLibrary(CUlibrary *pLib, CUkernel kernel)
{
	REQUIRE(pLib, CUDA_ERROR_INVALID_VALUE);
	TRY(valid((CUfunction)kernel));
	*pLib = ((CUfunction)kernel)->module->library;
	return *pLib ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUresult cuKernelGetName(const char **name, CUkernel hfunc) { return cuFuncGetName(name, (CUfunction)hfunc); }
CUresult cuKernelGetParamCount(CUkernel kernel, size_t *paramCount) { return cuFuncGetParamCount((CUfunction)kernel, paramCount); }

CUresult cuKernelGetParamInfo(CUkernel kernel, size_t paramIndex, size_t *paramOffset, size_t *paramSize)
{
	return cuFuncGetParamInfo((CUfunction)kernel, paramIndex, paramOffset, paramSize);
}

CUresult cuKernelGetAttribute(int *pi, CUfunction_attribute attrib, CUkernel kernel, CUdevice dev)
{
	struct simdev *d;
	TRY(device_of(dev, &d));
	return cuFuncGetAttribute(pi, attrib, (CUfunction)kernel);
}

CUresult cuKernelSetAttribute(CUfunction_attribute attrib, int val, CUkernel kernel, CUdevice dev)
{
	struct simdev *d;
	TRY(device_of(dev, &d));
	return cuFuncSetAttribute((CUfunction)kernel, attrib, val);
}

CUresult cuKernelSetCacheConfig(CUkernel kernel, CUfunc_cache config, CUdevice dev)
{
	struct simdev *d;
	TRY(device_of(dev, &d));
	return cuFuncSetCacheConfig((CUfunction)kernel, config);
}
