/* oldlibc.h: included before everything. Binds what newer glibcs have given a new version to the oldest one. */
#ifndef KERF_OLDLIBC_H
#define KERF_OLDLIBC_H

/* aarch64's oldest version is 2.17: nothing older can be bound, nothing newer is needed. */
#if defined(__x86_64__)
__asm__(".symver dlopen,dlopen@GLIBC_2.2.5");
__asm__(".symver dlsym,dlsym@GLIBC_2.2.5");
#endif

#endif
