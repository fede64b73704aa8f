/* look: what the loader gives a program that asks for the driver, and what that says of the GPU. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

static void *load(const char *name)
{
	void *library = dlopen(name, RTLD_NOW);
	if (!library) {
		printf("%s: %s\n", name, dlerror());
		exit(1);
	}
	return library;
}

static void where(const char *name, const char *symbol)
{
	Dl_info info;
	void *address = dlsym(load(name), symbol);
	if (!address || !dladdr(address, &info))
		exit(2);
	printf("%s %s\n", name, info.dli_fname);
}

int main(int argc, char **argv)
{
	for (int i = 1; i < argc; i++) /* other names of the library */
		where(argv[i], "cuInit");
	where("libnvidia-ml.so.1", "nvmlDeviceGetMemoryInfo"); /* one that the shim stands in for */
	where("libcuda.so.1", "cuInit");
	void *cuda = load("libcuda.so.1");
	int (*init)(unsigned) = (int (*)(unsigned))dlsym(cuda, "cuInit");
	int (*count)(int *) = (int (*)(int *))dlsym(cuda, "cuDeviceGetCount");
	int (*retain)(void **, int) = (int (*)(void **, int))dlsym(cuda, "cuDevicePrimaryCtxRetain");
	int (*current)(void *) = (int (*)(void *))dlsym(cuda, "cuCtxSetCurrent");
	int (*memory)(size_t *, size_t *) = (int (*)(size_t *, size_t *))dlsym(cuda, "cuMemGetInfo_v2");
	int gpus = 0, result = init(0);
	size_t free_bytes = 0, total = 0;
	void *context = NULL;
	if (!result)
		result = count(&gpus);
	if (!result)
		result = retain(&context, 0);
	if (!result)
		result = current(context);
	if (!result)
		result = memory(&free_bytes, &total);
	printf("cuda %d gpus %d total %zu\n", result, gpus, total);
	return result != 0;
}
