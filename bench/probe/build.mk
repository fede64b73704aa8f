# swap-probe: a tenant with the shim's own swap engine in it. Its stub of libcuda has the names that it uses itself; the engine
# looks its own up.
PROBE_OBJ    := $(B)/obj/probe
PROBE_STUB   := $(PROBE_OBJ)/stub/libcuda.so.1
PROBE_ENGINE := $(foreach part,swap swap_alloc swap_area swap_host,$(SHIM_OBJ)/$(part).o)

tenants: $(TENANT_OUT)/swap-probe

$(PROBE_OBJ)/swap.o: bench/probe/swap.c $(TENANT_HDR) $(SHIM_HDRS)
	@mkdir -p $(@D)
	$(TENANT_CC) -c -o $@ $<

$(PROBE_STUB): $(PROBE_OBJ)/swap.o $(TENANT_LIB)
	@mkdir -p $(@D)
	nm -u $^ | grep -oE '\bcu[A-Z][A-Za-z0-9_]*' | sort -u | sed 's/.*/void &(void); void &(void) {}/' >$(@D)/stub.c
	$(CC) -shared -fPIC -Wl,-soname,libcuda.so.1 -o $@ $(@D)/stub.c

$(TENANT_OUT)/swap-probe: $(PROBE_OBJ)/swap.o $(PROBE_ENGINE) $(TENANT_LIB) $(PROBE_STUB)
	@mkdir -p $(@D)
	$(CC) -o $@ $(filter %.o,$^) -L$(dir $(PROBE_STUB)) -l:libcuda.so.1 -pthread -ldl
