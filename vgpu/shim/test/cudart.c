/* cudart.c: NVIDIA's runtime library on top of what it finds as libcuda.so.1. Prints what each call returned. */
#include <stddef.h>
#include <stdio.h>

extern int cudaGetDeviceCount(int *n);
extern int cudaDriverGetVersion(int *version);
extern int cudaMalloc(void **p, size_t n);
extern int cudaMemGetInfo(size_t *free_bytes, size_t *total);
extern int cudaGetDriverEntryPoint(const char *symbol, void **p, unsigned long long flags, int *status);
extern const char *cudaGetErrorName(int error);

int main(void)
{
	int n = -1, version = -1, status = -1;
	size_t free_bytes = 0, total = 0;
	void *p = NULL, *entry = NULL;

	printf("count %s\n", cudaGetErrorName(cudaGetDeviceCount(&n)));
	printf("version %s %d\n", cudaGetErrorName(cudaDriverGetVersion(&version)), version);
	printf("malloc %s\n", cudaGetErrorName(cudaMalloc(&p, 1 << 20)));
	printf("info %s\n", cudaGetErrorName(cudaMemGetInfo(&free_bytes, &total)));
	printf("entry %s\n", cudaGetErrorName(cudaGetDriverEntryPoint("cuMemAlloc", &entry, 0, &status)));
	return 0;
}
