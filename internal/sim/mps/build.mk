# nvidia-cuda-mps-control of a simulated node: build/lib/kerf/sim/nvidia-cuda-mps-control.
.PHONY: simmps
simmps: $(B)/lib/kerf/sim/nvidia-cuda-mps-control

$(B)/lib/kerf/sim/nvidia-cuda-mps-control: $(wildcard internal/sim/mps/*.c internal/sim/mps/*.h)
	@mkdir -p $(@D)
	@$(CC) $(CFLAGS_C) -o $@ $(filter %.c,$^)

# A node that has a driver may have this too.
simdriver: simmps
