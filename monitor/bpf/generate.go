package bpf

// The objects are made with Debian's clang 14; another version makes other bytes, and CI compares them.
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -tags linux -target bpfel -cflags "-O2 -mcpu=v3 -Wall -Wextra -Werror" -type event probes kernel/probes.c
