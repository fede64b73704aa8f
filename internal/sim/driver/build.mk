# The simulated CUDA driver: build/lib/kerf/sim/libcuda.so.1.
SIMDRIVER_DIR   := internal/sim/driver
SIMDRIVER_FLAGS ?=
SIMDRIVER_OBJ   := $(B)/obj/simdriver
SIMDRIVER_SRC   := $(wildcard $(SIMDRIVER_DIR)/*.c)
SIMDRIVER_HDRS  := $(wildcard $(SIMDRIVER_DIR)/*.h internal/cuda/*.h)

.PHONY: simdriver
simdriver: $(B)/lib/kerf/sim/libcuda.so.1

$(SIMDRIVER_OBJ)/%.o: $(SIMDRIVER_DIR)/%.c $(SIMDRIVER_HDRS)
	@mkdir -p $(@D)
	@$(CC) $(CFLAGS_C) $(SIMDRIVER_FLAGS) -c -o $@ $<

# nodelete: its threads outlive a dlclose, as the real driver's do.
$(B)/lib/kerf/sim/libcuda.so.1: $(SIMDRIVER_SRC:$(SIMDRIVER_DIR)/%.c=$(SIMDRIVER_OBJ)/%.o) $(SIMDRIVER_DIR)/exports.map
	@mkdir -p $(@D)
	@$(CC) -shared $(SIMDRIVER_FLAGS) -o $@ $(filter %.o,$^) -Wl,--no-as-needed -l:libpthread.so.0 -l:libdl.so.2 -Wl,-soname,libcuda.so.1,-z,nodelete,-z,relro,-z,defs,-Bsymbolic,--build-id,--version-script=$(SIMDRIVER_DIR)/exports.map

# The test program, which internal/sim/drivertest runs.
.PHONY: simdriver-test
simdriver-test: $(B)/drivertest
$(B)/drivertest: $(wildcard $(SIMDRIVER_DIR)/test/*.c $(SIMDRIVER_DIR)/test/*.h) $(SIMDRIVER_HDRS) $(B)/lib/kerf/sim/libcuda.so.1
	@$(CC) $(CFLAGS_C) $(SIMDRIVER_FLAGS) -o $@ $(filter %.c,$^) -L$(B)/lib/kerf/sim -l:libcuda.so.1 -pthread -lm -Wl,--enable-new-dtags,-rpath,'$$ORIGIN/lib/kerf/sim'
