/* init.c: prints what cuInit returns, by the route of the argument: linked is not among them, since a program that
 * does not start proves less. */
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

int main(int argc, char **argv)
{
	const char *route = argc > 1 ? argv[1] : "dlopen";
	void *lib = !strcmp(route, "dlmopen") ? dlmopen(LM_ID_NEWLM, "libcuda.so.1", RTLD_NOW)
		  : dlopen("libcuda.so.1", RTLD_NOW | (!strcmp(route, "deepbind") ? RTLD_DEEPBIND : RTLD_LOCAL));
	int (*init)(unsigned) = lib ? (int (*)(unsigned))dlsym(lib, "cuInit") : NULL;

	if (!init) {
		fprintf(stderr, "%s\n", dlerror());
		return 2;
	}
	printf("%d\n", init(0));
	return 0;
}
