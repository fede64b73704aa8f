/* substitute.c: every intercepted symbol, by one route: in which library is it found? Prints those found elsewhere
 * than in the shim, and then the number found in it.
 *
 *   substitute dlopen|dlvsym|deepbind|dlmopen|global|default|next
 */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hooks.gen.h"

static void *lib;
static void *(*next)(const char *);

static void prepare(const char *route)
{
	if (!strcmp(route, "default"))
		return; /* linked: the library is in the global scope */
	if (!strcmp(route, "next")) {
		next = (void *(*)(const char *))dlsym(RTLD_DEFAULT, "kerf_test_next");
		return;
	}
	lib = !strcmp(route, "dlmopen") ? dlmopen(LM_ID_NEWLM, "libcuda.so.1", RTLD_NOW)
	    : dlopen("libcuda.so.1", RTLD_NOW | (!strcmp(route, "deepbind") ? RTLD_DEEPBIND : !strcmp(route, "global") ? RTLD_GLOBAL : RTLD_LOCAL));
	if (!lib) {
		printf("FAIL %s\n", dlerror());
		exit(1);
	}
}

static void *find(const char *route, const char *symbol)
{
	if (next)
		return next(symbol);
	if (!strcmp(route, "dlvsym"))
		return dlvsym(lib, symbol, "libcuda.so.1");
	return dlsym(!strcmp(route, "default") || !strcmp(route, "global") ? RTLD_DEFAULT : lib, symbol);
}

int main(int argc, char **argv)
{
	const char *route = argc > 1 ? argv[1] : "dlopen";
	int ours = 0;

	prepare(route);
	for (size_t i = 0; i < sizeof intercepted / sizeof intercepted[0]; i++) {
		void *p = find(route, intercepted[i]);
		Dl_info where;

		if (!p || !dladdr(p, &where) || strcmp(where.dli_fname, "/run/kerf/lib/libcuda.so.1"))
			printf("%s %s\n", intercepted[i], p ? where.dli_fname : "-");
		else
			ours++;
	}
	printf("%d\n", ours);
	return 0;
}
