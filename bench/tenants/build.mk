# The tenant programs: $(B)/libexec/kerf/*. They link against a stub that is made here of the names they use,
# so that no driver library, real or simulated, is needed to build them.
TENANTS     := train serve spin notebook hog forkbomb crasher look routes
TENANT_OUT  := $(B)/libexec/kerf
TENANT_OBJ  := $(B)/obj/tenants
TENANT_LIB  := $(TENANT_OBJ)/tenant.o $(TENANT_OBJ)/options.o
TENANT_STUB := $(TENANT_OBJ)/stub/libcuda.so.1
TENANT_ALL  := $(TENANTS) overhead
TENANT_HDR  := $(wildcard bench/tenants/*.h internal/cuda/*.h)
TENANT_CC   := $(CC) $(CFLAGS_C) -D_GNU_SOURCE -I. -DKERNELS_PTX='"internal/cuda/kernels.ptx"'
TENANT_LINK  = $(CC) -o $@ $(filter %.o,$^) -L$(dir $(TENANT_STUB)) -l:libcuda.so.1 -pthread

.PHONY: tenants
tenants: $(TENANTS:%=$(TENANT_OUT)/%) $(TENANT_OUT)/overhead-probe

$(TENANT_OBJ)/%.o: bench/tenants/%.c $(TENANT_HDR)
	@mkdir -p $(@D)
	$(TENANT_CC) -c -o $@ $<

$(TENANT_OBJ)/overhead.o: bench/probe/overhead.c $(TENANT_HDR)
	@mkdir -p $(@D)
	$(TENANT_CC) -c -o $@ $<

# .incbin hides this from the compiler's dependencies.
$(TENANT_OBJ)/tenant.o: internal/cuda/kernels.ptx

$(TENANT_STUB): $(TENANT_ALL:%=$(TENANT_OBJ)/%.o) $(TENANT_LIB)
	@mkdir -p $(@D)
	nm -u $^ | grep -oE '\bcu[A-Z][A-Za-z0-9_]*' | sort -u | sed 's/.*/void &(void); void &(void) {}/' >$(@D)/stub.c
	$(CC) -shared -fPIC -Wl,-soname,libcuda.so.1 -o $@ $(@D)/stub.c

$(TENANT_OUT)/overhead-probe: $(TENANT_OBJ)/overhead.o $(TENANT_LIB) $(TENANT_STUB)
	@mkdir -p $(@D)
	$(TENANT_LINK)

$(TENANT_OUT)/%: $(TENANT_OBJ)/%.o $(TENANT_LIB) $(TENANT_STUB)
	@mkdir -p $(@D)
	$(TENANT_LINK)
