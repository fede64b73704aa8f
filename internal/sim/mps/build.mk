# nvidia-cuda-mps-control of a simulated node: build/lib/kerf/sim/nvidia-cuda-mps-control.
.PHONY: simmps
simmps: $(B)/lib/kerf/sim/nvidia-cuda-mps-control

$(B)/lib/kerf/sim/nvidia-cuda-mps-control: internal/sim/mps/control.c
	@mkdir -p $(@D)
	@$(CC) $(CFLAGS_C) -o $@ $<

# A node that has a driver may have this too.
simdriver: simmps
