/* nothreads.c: a library for LD_PRELOAD with which no thread can be made until it is allowed, as at a limit of processes. */
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>

static int allowed;

void kerf_test_allow_threads(void);
void kerf_test_allow_threads(void) { allowed = 1; }

int pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*run)(void *), void *arg)
{
	int (*next)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);

	if (!allowed)
		return EAGAIN;
	*(void **)&next = dlsym(RTLD_NEXT, "pthread_create");
	return next(thread, attr, run, arg);
}
