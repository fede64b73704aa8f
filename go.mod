module github.com/kerf-gpu/kerf

go 1.26.0

// Every direct dependency, with its reason.
require (
	github.com/Mellanox/rdmamap v1.1.0 // which RDMA device and device files belong to a PCI function
	github.com/NVIDIA/go-nvml v0.13.4-0 // GPUs, processes and faults, as NVIDIA's library tells them
	github.com/NVIDIA/nvidia-container-toolkit v1.20.1 // nvcdi: which files and devices of a host make up its NVIDIA driver
	github.com/cilium/ebpf v0.22.0 // programs in the kernel: objects, maps, the ring buffer; and bpf2go, which makes the objects
	github.com/container-storage-interface/spec v1.13.0 // the CSI protocol
	github.com/containerd/nri v0.12.3 // when the container runtime makes a pod's network, and takes it away
	github.com/containerd/ttrpc v1.2.7 // tests: a container runtime that registers NRI plugins and goes no further
	github.com/containernetworking/cni v1.3.1 // CNI's types, its results' versions, and calls of IPAM plugins
	github.com/fsnotify/fsnotify v1.9.0 // kubelet's sockets: that one was made again, or removed
	github.com/google/cel-go v0.29.2 // tests: our DeviceClasses' and policies' expressions, compiled
	github.com/google/go-cmp v0.7.0 // tests: what differs, not that something does
	github.com/klauspost/compress v1.20.4 // layers packed with zstd
	github.com/kubernetes-csi/csi-test/v5 v5.6.0 // tests: whether a driver keeps to CSI
	github.com/minio/minio-go/v7 v7.4.1 // datasets in S3: signatures, addressing styles, listings
	github.com/opencontainers/image-spec v1.1.1 // manifests' and descriptors' fields
	github.com/opencontainers/runtime-spec v1.3.0 // what a container runtime tells its hooks
	github.com/prometheus/client_golang v1.24.1 // metrics
	github.com/spf13/cobra v1.10.2 // commands, flags, help and completions
	github.com/vishvananda/netlink v1.3.1 // links, addresses, routes, VFs and RDMA devices, by netlink
	github.com/vishvananda/netns v0.0.5 // the descriptors that netlink's sockets are opened in
	go.yaml.in/yaml/v3 v3.0.6 // configuration and profiles, with unknown keys refused
	golang.org/x/sync v0.24.0 // a bound on the reviews that are judged at once
	golang.org/x/sys v0.49.0 // pidfd, peer credentials, mounts: what package syscall lacks
	google.golang.org/grpc v1.85.0 // kubelet's plugin protocols
	google.golang.org/protobuf v1.36.12 // values that CSI leaves out or gives
	k8s.io/api v0.37.2 // Kubernetes objects
	k8s.io/apimachinery v0.37.2 // quantities, and objects' metadata
	k8s.io/apiserver v0.37.2 // tests: the CEL of our admission policies, evaluated as the API server does
	k8s.io/client-go v0.37.2 // the API server: claims, slices, templates
	k8s.io/cri-api v0.37.2 // bench: when the container runtime made what of a pod
	k8s.io/dynamic-resource-allocation v0.37.2 // the kubelet side of a DRA driver; its allocator is the oracle in tests
	k8s.io/klog/v2 v2.140.0 // what client-go logs, in our log
	k8s.io/kubelet v0.37.2 // kubelet's device plugin and pod resources protocols
	oras.land/oras-go/v2 v2.6.4 // datasets in OCI registries: references, token authentication, manifests
	sigs.k8s.io/sig-storage-lib-external-provisioner/v13 v13.1.0 // which claims are to have a volume, and whose volume is to go
	sigs.k8s.io/yaml v1.6.0 // Kubernetes objects as YAML
	tags.cncf.io/container-device-interface v1.1.1 // CDI specs: validation, names, injection
	tags.cncf.io/container-device-interface/specs-go v1.1.1 // CDI specs as values
)

require (
	cel.dev/expr v0.25.3 // indirect
	github.com/Masterminds/semver/v3 v3.5.0 // indirect
	github.com/NVIDIA/go-nvlib v0.12.0 // indirect
	github.com/antlr4-go/antlr/v4 v4.13.1 // indirect
	github.com/beorn7/perks v1.0.1 // indirect
	github.com/blang/semver/v4 v4.0.0 // indirect
	github.com/cespare/xxhash/v2 v2.3.0 // indirect
	github.com/containerd/log v0.1.0 // indirect
	github.com/davecgh/go-spew v1.1.2-0.20180830191138-d8f796af33cc // indirect
	github.com/dustin/go-humanize v1.0.1 // indirect
	github.com/emicklei/go-restful/v3 v3.13.0 // indirect
	github.com/fxamacker/cbor/v2 v2.9.3 // indirect
	github.com/go-logr/logr v1.4.4 // indirect
	github.com/go-openapi/jsonpointer v1.0.0 // indirect
	github.com/go-openapi/jsonreference v1.0.1 // indirect
	github.com/go-openapi/swag v0.29.1 // indirect
	github.com/go-openapi/swag/cmdutils v0.29.1 // indirect
	github.com/go-openapi/swag/conv v0.29.1 // indirect
	github.com/go-openapi/swag/fileutils v0.29.1 // indirect
	github.com/go-openapi/swag/jsonutils v0.29.1 // indirect
	github.com/go-openapi/swag/loading v0.29.1 // indirect
	github.com/go-openapi/swag/mangling v0.29.1 // indirect
	github.com/go-openapi/swag/netutils v0.29.1 // indirect
	github.com/go-openapi/swag/pools v0.29.1 // indirect
	github.com/go-openapi/swag/stringutils v0.29.1 // indirect
	github.com/go-openapi/swag/typeutils v0.29.1 // indirect
	github.com/go-openapi/swag/yamlutils v0.29.1 // indirect
	github.com/go-task/slim-sprig/v3 v3.0.0 // indirect
	github.com/google/gnostic-models v0.7.1 // indirect
	github.com/google/pprof v0.0.0-20260402051712-545e8a4df936 // indirect
	github.com/google/uuid v1.6.0 // indirect
	github.com/inconshreveable/mousetrap v1.1.0 // indirect
	github.com/json-iterator/go v1.1.12 // indirect
	github.com/klauspost/cpuid/v2 v2.4.0 // indirect
	github.com/klauspost/crc32 v1.3.0 // indirect
	github.com/knqyf263/go-plugin v0.9.0 // indirect
	github.com/kubernetes-csi/csi-lib-utils v0.25.0 // indirect
	github.com/miekg/dns v1.1.73 // indirect
	github.com/minio/crc64nvme v1.1.1 // indirect
	github.com/minio/md5-simd v1.1.2 // indirect
	github.com/moby/sys/devices v0.1.0 // indirect
	github.com/modern-go/concurrent v0.0.0-20180306012644-bacd9c7ef1dd // indirect
	github.com/modern-go/reflect2 v1.0.3-0.20250322232337-35a7c28c31ee // indirect
	github.com/munnerz/goautoneg v0.0.0-20191010083416-a7dc8b61c822 // indirect
	github.com/onsi/ginkgo/v2 v2.32.1 // indirect
	github.com/onsi/gomega v1.42.1 // indirect
	github.com/opencontainers/cgroups v0.0.9 // indirect
	github.com/opencontainers/go-digest v1.0.0 // indirect
	github.com/philhofer/fwd v1.2.0 // indirect
	github.com/pmezard/go-difflib v1.0.1-0.20181226105442-5d4384ee4fb2 // indirect
	github.com/prometheus/client_model v0.6.3 // indirect
	github.com/prometheus/common v0.71.0 // indirect
	github.com/prometheus/procfs v0.22.0 // indirect
	github.com/rs/xid v1.6.0 // indirect
	github.com/sirupsen/logrus v1.10.2 // indirect
	github.com/spf13/pflag v1.0.10 // indirect
	github.com/tetratelabs/wazero v1.11.0 // indirect
	github.com/tinylib/msgp v1.6.4 // indirect
	github.com/x448/float16 v0.8.4 // indirect
	github.com/zeebo/xxh3 v1.1.0 // indirect
	go.etcd.io/etcd/client/pkg/v3 v3.7.0 // indirect
	go.opentelemetry.io/otel v1.46.0 // indirect
	go.opentelemetry.io/otel/trace v1.46.0 // indirect
	go.uber.org/mock v0.6.0 // indirect
	go.uber.org/multierr v1.11.0 // indirect
	go.uber.org/zap v1.27.1 // indirect
	go.yaml.in/yaml/v2 v2.4.4 // indirect
	golang.org/x/crypto v0.57.0 // indirect
	golang.org/x/exp v0.0.0-20260410095643-746e56fc9e2f // indirect
	golang.org/x/mod v0.41.0 // indirect
	golang.org/x/net v0.60.0 // indirect
	golang.org/x/oauth2 v0.36.0 // indirect
	golang.org/x/term v0.46.0 // indirect
	golang.org/x/text v0.42.0 // indirect
	golang.org/x/time v0.15.0 // indirect
	golang.org/x/tools v0.50.0 // indirect
	google.golang.org/genproto/googleapis/api v0.0.0-20260817212433-ac3dfec99bb1 // indirect
	google.golang.org/genproto/googleapis/rpc v0.0.0-20260825221802-da73d73af1c5 // indirect
	gopkg.in/evanphx/json-patch.v4 v4.13.0 // indirect
	gopkg.in/inf.v0 v0.9.1 // indirect
	gopkg.in/ini.v1 v1.67.3 // indirect
	gopkg.in/yaml.v2 v2.4.0 // indirect
	k8s.io/component-base v0.37.2 // indirect
	k8s.io/component-helpers v0.37.2 // indirect
	k8s.io/kube-openapi v0.0.0-20260821135717-be32def86098 // indirect
	k8s.io/utils v0.0.0-20260707023825-cf1189d6abe3 // indirect
	sigs.k8s.io/json v0.0.0-20250730193827-2d320260d730 // indirect
	sigs.k8s.io/randfill v1.0.0 // indirect
	sigs.k8s.io/structured-merge-diff/v6 v6.4.2 // indirect
)
