# The shims: build/lib/kerf/libcuda.so.1 and libnvidia-ml.so.1.
#
# They must load into the oldest image that a driver of CUDA 12 loads into (glibc 2.17), whatever glibc built them:
#   - dlopen, dlsym: from 2.34 on they are in libc with a new version; before, libdl is another library that must be
#     NEEDED. A stub of libdl.so.2 with the oldest version comes before libc at link time, so they bind to that.
#   - the real driver: NEEDED by a private name that exists only in a container, so a stub stands for it at link time.
SHIM_DIR   := vgpu/shim
SHIM_ROOT  ?= /run/kerf
SHIM_FLAGS ?=
SHIM_MAP   ?= $(SHIM_DIR)/cuda.map
SHIM_OBJ   := $(B)/obj/shim
SHIM_CUDA  := account array books context gate graph hooks.gen import info intercept keeper lane mem meter mps names.gen pool queue session share swap swap_alloc swap_area swap_host swap_info swap_lease visible vmm
SHIM_NVML  := nvml nvml_hooks.gen share
SHIM_HDRS  := $(wildcard $(SHIM_DIR)/*.h internal/cuda/*.h)
SHIM_LIBDL := $(if $(findstring aarch64,$(shell $(CC) -dumpmachine)),GLIBC_2.17,GLIBC_2.2.5)
SHIM_CC     = $(CC) $(CFLAGS_C) $(SHIM_FLAGS) -DKERF_ROOT='"$(SHIM_ROOT)"'
SHIM_LD     = $(CC) -shared $(SHIM_FLAGS) -Wl,-z,now,-z,relro,-z,defs,-z,nodelete,--no-as-needed -Wl,--build-id

.PHONY: shim
shim: $(B)/lib/kerf/libcuda.so.1 $(B)/lib/kerf/libnvidia-ml.so.1

$(SHIM_OBJ)/%.o: $(SHIM_DIR)/%.c $(SHIM_HDRS)
	@mkdir -p $(@D)
	@$(SHIM_CC) -c -o $@ $<

# A stub has the name and the symbols' versions that the linker records, and no code.
$(SHIM_OBJ)/libdl.so.2: $(SHIM_DIR)/stub/libdl.c
	@mkdir -p $(@D)
	@echo '$(SHIM_LIBDL) { global: dlopen; dlsym; };' >$(@D)/libdl.map
	@$(CC) -shared -nostdlib -fPIC -o $@ $< -Wl,-soname,libdl.so.2,--version-script=$(@D)/libdl.map

$(SHIM_OBJ)/libkerfreal-%.so.1: $(SHIM_DIR)/stub/empty.c
	@mkdir -p $(@D)
	@$(CC) -shared -nostdlib -fPIC -o $@ $< -Wl,-soname,$(@F)

$(B)/lib/kerf/libcuda.so.1: $(SHIM_CUDA:%=$(SHIM_OBJ)/%.o) $(SHIM_MAP) $(SHIM_OBJ)/libkerfreal-cuda.so.1 $(SHIM_OBJ)/libdl.so.2
	@mkdir -p $(@D)
	@$(SHIM_LD) -o $@ $(filter %.o,$^) $(filter %.so.1 %.so.2,$^) -Wl,-soname,libcuda.so.1,-rpath,$(SHIM_ROOT)/driver,--enable-new-dtags,--version-script=$(SHIM_MAP)

$(B)/lib/kerf/libnvidia-ml.so.1: $(SHIM_NVML:%=$(SHIM_OBJ)/%.o) $(SHIM_DIR)/nvml.map $(SHIM_OBJ)/libkerfreal-nvidia-ml.so.1 $(SHIM_OBJ)/libdl.so.2
	@mkdir -p $(@D)
	@$(SHIM_LD) -o $@ $(filter %.o,$^) $(filter %.so.1 %.so.2,$^) -Wl,-soname,libnvidia-ml.so.1,-rpath,$(SHIM_ROOT)/driver,--enable-new-dtags,--version-script=$(SHIM_DIR)/nvml.map
