# The images, the chart and the manifests that it renders.
IMAGE_VERSION := $(subst +,-,$(VERSION))
IMAGE_DIR     := $(B)/image
IMAGE_LABELS   = --label org.opencontainers.image.version=$(VERSION) \
                 --label org.opencontainers.image.source=https://github.com/kerf-gpu/kerf \
                 --label org.opencontainers.image.revision=$(shell git rev-parse HEAD 2>/dev/null || echo unknown) \
                 --label "org.opencontainers.image.licenses=Apache-2.0 AND LGPL-2.1-or-later"
# A real libnvidia-ml.so.1 is opened from the host, and names libraries that nothing in the image does.
IMAGE_NVML    := $(foreach l,libc.so.6 libm.so.6 libdl.so.2 libpthread.so.0 librt.so.1,--library $(l))
HELM          := $(GO) tool -modfile=tools/helm/go.mod helm
STATIC        := kerf-hook kerf-controller
MANIFESTS     := deploy/manifests

.PHONY: image image-tenants static manifests chart-lint
static: # programs that run in a container of another system, or need nothing of one
	@mkdir -p $(B)/static
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w $(LDFLAGS)' -o $(B)/static/ $(STATIC:%=./cmd/%)

image: build static image-tenants ## The container image, without a container engine: build/image/kerf.tar
	@mkdir -p $(IMAGE_DIR)
	@$(GO) run ./deploy/image --output $(IMAGE_DIR)/kerf-$(IMAGE_VERSION).tar $(IMAGE_LABELS) \
	  --tag kerf.dev/kerf:$(IMAGE_VERSION) --tag kerf.dev/kerf:local --label org.opencontainers.image.title=kerf \
	  --entrypoint /usr/bin/kerfd --private libkerfreal- $(IMAGE_NVML) \
	  $(foreach p,kerf kerfd,/usr/bin/$(p)=$(B)/bin/$(p)) $(foreach p,$(STATIC),/usr/bin/$(p)=$(B)/static/$(p)) \
	  /usr/lib/kerf=$(B)/lib/kerf /usr/share/licenses/kerf/LICENSE=LICENSE
	@ln -sf kerf-$(IMAGE_VERSION).tar $(IMAGE_DIR)/kerf.tar

# What tests and examples run: programs that use a GPU, with a C library of their own as any image has.
image-tenants: clib
	@mkdir -p $(IMAGE_DIR)
	@$(GO) run ./deploy/image --output $(IMAGE_DIR)/kerf-tenants.tar $(IMAGE_LABELS) \
	  --tag kerf.dev/kerf-tenants:local --label org.opencontainers.image.title=kerf-tenants \
	  --path /usr/libexec/kerf:/usr/bin:/bin --private libcuda. $(IMAGE_NVML) \
	  /usr/libexec/kerf=$(B)/libexec/kerf $(foreach b,$(wildcard /bin/busybox),/bin/sh=$(b))

# Policies that are generated from the code come before the chart that holds them.
manifests: ## The manifests that the chart renders, as they are kept in deploy/manifests
	$(HELM) lint --strict deploy/chart
	$(HELM) template kerf deploy/chart --namespace kerf-system --values deploy/manifests/kerf.values.yaml >$(B)/kerf.yaml
	$(HELM) template kerf deploy/chart --namespace kerf-system --values deploy/manifests/kerf-simulated.values.yaml >$(B)/kerf-simulated.yaml
	@mv $(B)/kerf.yaml $(B)/kerf-simulated.yaml $(MANIFESTS)/
