/* Stands for libdl.so.2 when the shim is linked, with the symbols' oldest versions (build.mk). */
void *dlopen(const char *file, int mode);
void *dlsym(void *handle, const char *name);
void *dlopen(const char *file, int mode) { (void)file; (void)mode; return 0; }
void *dlsym(void *handle, const char *name) { (void)handle; (void)name; return 0; }
