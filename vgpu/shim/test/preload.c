/* preload.c: a library for LD_PRELOAD that finds the driver behind itself, as tracing tools do. */
#include <dlfcn.h>

void *kerf_test_next(const char *symbol);
void *kerf_test_next(const char *symbol)
{
	return dlsym(RTLD_NEXT, symbol);
}
