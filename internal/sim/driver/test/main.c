/* main.c: runs one test, and what tests share. */
#define _GNU_SOURCE
#include "test.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>

extern char **environ;
const char *root, *self, *test_arg;
struct sim_ctl *ctl;
static const char *ptx_path;
static struct sim_gpu *gpus[SIM_MAX_GPUS];

static const struct test *const tables[] = { context_tests, memory_tests, vmm_tests, stream_tests, graph_tests, module_tests, process_tests, mig_tests };

static int ctl_fd;

static void *map_device(const char *name, size_t size, int *fd_out)
{
	char path[4096];
	snprintf(path, sizeof path, "%s/dev/%s", root, name);
	int fd = open(path, O_RDWR | O_CLOEXEC); /* stays open: closing it would drop this process's slot */
	if (fd_out)
		*fd_out = fd;
	void *p = fd < 0 ? MAP_FAILED : mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	return p == MAP_FAILED ? NULL : p;
}

struct sim_gpu *gpu(int i)
{
	char name[32];
	snprintf(name, sizeof name, "nvidia%d", i);
	if (!gpus[i])
		gpus[i] = map_device(name, sizeof *gpus[i], NULL);
	CHECK(gpus[i]);
	return gpus[i];
}

bool alive(int slot)
{
	struct flock fl = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = SIM_SLOT_LOCK_BASE + slot, .l_len = 1 };
	CHECK(fcntl(ctl_fd, F_OFD_GETLK, &fl) == 0);
	return fl.l_type != F_UNLCK;
}

const struct sim_use *my_use(int i)
{
	for (int s = 0; s < SIM_MAX_PROCS; s++)
		if (ctl->proc[s].pid == getpid() && alive(s))
			return &gpu(i)->use[s];
	FAIL("this process has no slot");
}

CUcontext start(void)
{
	CUcontext c;
	OK(cuInit(0));
	OK(cuDevicePrimaryCtxRetain(&c, 0));
	OK(cuCtxSetCurrent(c));
	return c;
}

char *ptx(void)
{
	static char *text;
	FILE *f = text ? NULL : fopen(ptx_path, "r");
	if (f) {
		text = calloc(1, 1 << 20);
		CHECK(text && fread(text, 1, (1 << 20) - 1, f) > 0);
		fclose(f);
	}
	CHECK(text);
	return text;
}

CUfunction kernel(const char *name)
{
	static CUmodule m;
	static CUcontext of;
	CUcontext c;
	CUfunction f;
	OK(cuCtxGetCurrent(&c));
	if (of != c)
		OK(cuModuleLoadData(&m, ptx()));
	of = c;
	OK(cuModuleGetFunction(&f, m, name));
	return f;
}

void spin_async(CUstream s, unsigned long long us)
{
	OK(cuLaunchKernel(kernel("kerf_spin"), 1, 1, 1, 1, 1, 1, 0, s, (void *[]){ &us }, NULL));
}

double now_ms(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

pid_t spawn(const char *test, const char *arg)
{
	pid_t pid;
	char *argv[] = { (char *)self, (char *)root, (char *)ptx_path, (char *)test, (char *)arg, NULL };
	CHECK(posix_spawn(&pid, self, NULL, NULL, argv, environ) == 0);
	return pid;
}

int finish(pid_t pid)
{
	int status;
	CHECK(waitpid(pid, &status, 0) == pid);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int main(int argc, char **argv)
{
	if (argc == 2 && strcmp(argv[1], "-list") == 0) {
		for (size_t i = 0; i < sizeof tables / sizeof tables[0]; i++)
			for (const struct test *t = tables[i]; t->name; t++)
				if (t->name[0] != '-') /* those are parts of others */
					puts(t->name);
		return 0;
	}
	if (argc < 4) {
		fprintf(stderr, "usage: drivertest -list | drivertest ROOT PTX TEST [ARGUMENT]\n");
		return 2;
	}
	self = argv[0];
	root = argv[1];
	ptx_path = argv[2];
	test_arg = argc > 4 ? argv[4] : "";
	if (argc > 4)
		prctl(PR_SET_PDEATHSIG, SIGKILL); /* a part ends with its test */
	ctl = map_device("nvidiactl", sizeof *ctl, &ctl_fd);
	CHECK(ctl);
	for (size_t i = 0; i < sizeof tables / sizeof tables[0]; i++)
		for (const struct test *t = tables[i]; t->name; t++)
			if (strcmp(t->name, argv[3]) == 0) {
				t->run();
				return 0;
			}
	fprintf(stderr, "no test %s\n", argv[3]);
	return 2;
}
