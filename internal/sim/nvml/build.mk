# The simulated libnvidia-ml.so.1. See node.h for the parts.
SIMNVML_SRC := $(wildcard internal/sim/nvml/*.c)
SIMNVML_HDR := $(wildcard internal/sim/nvml/*.h) internal/sim/driver/state.h
SIMNVML_OBJ := $(SIMNVML_SRC:%.c=$(B)/obj/%.o)

.PHONY: simnvml
simnvml: $(B)/lib/kerf/sim/libnvidia-ml.so.1

$(SIMNVML_OBJ): $(B)/obj/%.o: %.c $(SIMNVML_HDR)
	@mkdir -p $(@D)
	$(CC) $(CFLAGS_C) -c -o $@ $<

$(B)/lib/kerf/sim/libnvidia-ml.so.1: $(SIMNVML_OBJ)
	@mkdir -p $(@D)
	$(CC) -shared -Wl,-soname,libnvidia-ml.so.1 -Wl,-z,nodelete -Wl,--no-undefined -o $@ $^ -lpthread -ldl
