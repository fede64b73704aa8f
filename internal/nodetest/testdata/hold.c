/* hold.c: holds memory on every GPU until it is killed. Usage: hold LIBCUDA BYTES */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define CALL(name, type, ...)                                              \
	do {                                                               \
		int (*f) type = (int (*) type)dlsym(lib, #name);           \
		int r = f ? f(__VA_ARGS__) : -1;                           \
		if (r != 0) {                                              \
			fprintf(stderr, "hold: %s: error %d\n", #name, r); \
			return 1;                                          \
		}                                                          \
	} while (0)

int main(int argc, char **argv)
{
	void *lib = argc == 3 ? dlopen(argv[1], RTLD_NOW) : NULL;
	if (!lib) {
		fprintf(stderr, "hold: %s\n", dlerror());
		return 1;
	}
	int count = 0;
	CALL(cuInit, (unsigned), 0);
	CALL(cuDeviceGetCount, (int *), &count);
	for (int device = 0; device < count; device++) {
		void *context;
		unsigned long long pointer;
		CALL(cuCtxCreate_v2, (void **, unsigned, int), &context, 0, device);
		CALL(cuMemAlloc_v2, (unsigned long long *, size_t), &pointer, strtoull(argv[2], NULL, 0));
	}
	puts("ready");
	fflush(stdout);
	for (;;)
		pause();
}
