module github.com/kerf-gpu/kerf

go 1.26.0

// Every direct dependency, with its reason.
require (
	github.com/NVIDIA/go-nvml v0.13.4-0 // GPUs, processes and faults, as NVIDIA's library tells them
	github.com/google/go-cmp v0.7.0 // tests: what differs, not that something does
	github.com/spf13/cobra v1.10.2 // commands, flags, help and completions
	go.yaml.in/yaml/v3 v3.0.6 // configuration and profiles, with unknown keys refused
	golang.org/x/sys v0.49.0 // pidfd, peer credentials, mounts: what package syscall lacks
)

require (
	github.com/inconshreveable/mousetrap v1.1.0 // indirect
	github.com/spf13/pflag v1.0.9 // indirect
)
