/* oldlibc.h: binds what moved into libc.so.6 with glibc 2.34 (2.32) to its old versions, so that the library loads
 * into images as old as glibc 2.17. Where these live apart, libpthread.so.0 and libdl.so.2 are NEEDED (build.mk). */
#ifndef KERF_SIM_OLDLIBC_H
#define KERF_SIM_OLDLIBC_H

#ifdef __x86_64__
#define OLD(name, version) __asm__(".symver " #name "," #name "@GLIBC_" version)
OLD(dladdr, "2.2.5");
OLD(pthread_condattr_setclock, "2.3.3");
OLD(pthread_create, "2.2.5");
OLD(pthread_detach, "2.2.5");
OLD(pthread_key_create, "2.2.5");
OLD(pthread_mutex_consistent, "2.12");
OLD(pthread_mutexattr_destroy, "2.2.5");
OLD(pthread_mutexattr_init, "2.2.5");
OLD(pthread_mutexattr_setpshared, "2.2.5");
OLD(pthread_mutexattr_setrobust, "2.12");
OLD(pthread_once, "2.2.5");
OLD(pthread_setspecific, "2.2.5");
OLD(pthread_sigmask, "2.2.5");
#undef OLD
#endif

#endif
