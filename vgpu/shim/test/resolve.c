/* resolve.c: what cuGetProcAddress and dlsym answer, one line a change of answer. Names on stdin.
 *
 *   resolve gpa    name flag version result status symbol library
 *   resolve gpa1   the same for version 1 of the resolver, which has no status
 *   resolve dlsym  name symbol library
 *   resolve nvml   the same of NVML
 */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

static const char *file_of(const char *path)
{
	const char *slash = strrchr(path, '/');

	return slash ? slash + 1 : path;
}

static void describe(void *p, char *out, size_t n)
{
	Dl_info i;

	if (!p)
		snprintf(out, n, "-\t-");
	else if (!dladdr(p, &i) || i.dli_saddr != p)
		snprintf(out, n, "?\t?");
	else
		snprintf(out, n, "%s\t%s", i.dli_sname, file_of(i.dli_fname));
}

typedef int (*resolver_v1)(const char *, void **, int, uint64_t);
typedef int (*resolver_v2)(const char *, void **, int, uint64_t, int *);

static void ask(void *resolver, int v1, const char *name, int flag)
{
	char last[512] = "", where[400], now[512];

	for (int version = 11000; version <= 14000; version += 10) {
		void *p = NULL;
		int status = -1;
		int r = v1 ? ((resolver_v1)resolver)(name, &p, version, (uint64_t)flag)
			   : ((resolver_v2)resolver)(name, &p, version, (uint64_t)flag, &status);

		describe(p, where, sizeof where);
		snprintf(now, sizeof now, "%d\t%d\t%s", r, status, where);
		if (strcmp(now, last))
			printf("%s\t%d\t%d\t%s\n", name, flag, version, now);
		strcpy(last, now);
	}
}

int main(int argc, char **argv)
{
	int nvml = argc == 2 && !strcmp(argv[1], "nvml");
	void *lib = dlopen(nvml ? "libnvidia-ml.so.1" : "libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
	char name[256], where[400];

	if (argc != 2 || !lib) {
		fprintf(stderr, "%s\n", lib ? "usage: resolve gpa|gpa1|dlsym|nvml" : dlerror());
		return 2;
	}
	while (scanf("%255s", name) == 1) {
		if (nvml || !strcmp(argv[1], "dlsym")) {
			describe(dlsym(lib, name), where, sizeof where);
			printf("%s\t%s\n", name, where);
			continue;
		}
		int v1 = !strcmp(argv[1], "gpa1");
		void *resolver = dlsym(lib, v1 ? "cuGetProcAddress" : "cuGetProcAddress_v2");

		for (int flag = 0; flag < 3; flag++)
			ask(resolver, v1, name, flag);
	}
	return 0;
}
