# The QEMU machine for tests of what this kernel lacks.
LAB := $(B)/bin/lab

.PHONY: lab $(LAB)
$(LAB):
	@mkdir -p $(B)/bin
	CGO_ENABLED=0 $(GO) build -o $@ ./deploy/lab

lab: $(LAB) ## Run the tests that need SR-IOV, PCIe switches, NUMA, LVM or RDMA, in QEMU machines (180 MB of Debian packages the first time)
	$(LAB) fetch
	CGO_ENABLED=0 KERF_LAB_BOOT=1 $(GO) test -count=1 -timeout 10m ./deploy/lab
	$(LAB) test
