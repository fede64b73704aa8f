/* test.h: a test of the simulated driver is a function in one of these files' tables. `drivertest ROOT NAME`
 * runs one, in a process of its own, on the simulated node at ROOT; `drivertest ROOT -list` names them. */
#ifndef KERF_SIM_TEST_H
#define KERF_SIM_TEST_H

#include "../../../cuda/cuabi.h"
#include "../state.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

struct test { const char *name; void (*run)(void); };
extern const struct test memory_tests[], stream_tests[], graph_tests[], module_tests[], process_tests[], vmm_tests[], context_tests[], mig_tests[];

/* The test ends at the first check that fails. */
#define FAIL(...) do { fprintf(stderr, "%s:%d: ", __FILE__, __LINE__); fprintf(stderr, __VA_ARGS__); fputc('\n', stderr); exit(1); } while (0)
#define CHECK(cond) do { if (!(cond)) FAIL("%s", #cond); } while (0)
#define IS(call, code) do { CUresult is_ = (call); if (is_ != (code)) FAIL("%s is %d, want %d", #call, (int)is_, (int)(code)); } while (0)
#define OK(call) IS(call, CUDA_SUCCESS)
#define EQ(a, b) do { unsigned long long a_ = (unsigned long long)(a), b_ = (unsigned long long)(b); \
	if (a_ != b_) FAIL("%s is %llu, want %llu (%s)", #a, a_, b_, #b); } while (0)

#define MiB(n) ((size_t)(n) << 20)

extern const char *root, *self;
extern struct sim_ctl *ctl;
struct sim_gpu *gpu(int i);           /* the node's own books */
const struct sim_use *my_use(int i);
bool alive(int slot);                 /* somebody lives who owns it */
CUcontext start(void);                /* cuInit and a primary context on device 0, current */
char *ptx(void);                      /* internal/cuda/kernels.ptx; freed by nobody */
CUfunction kernel(const char *name);  /* of that, in the current context */
void spin_async(CUstream s, unsigned long long us);
double now_ms(void);
pid_t spawn(const char *test, const char *arg); /* another process, running another test of this program */
int finish(pid_t pid);                /* its exit status, 128 + signal if killed */
extern const char *test_arg;          /* what spawn gave */

#endif
