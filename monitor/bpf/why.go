package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// needs is what a probe needs, in words.
func needs(p probe) string {
	text := "CAP_BPF, CAP_PERFMON, tracepoint " + strings.Join(p.points, " or ")
	if p.btf {
		text += ", BTF"
	}
	return text
}

// why is why a probe is off, and what to do; empty: it is on.
func why(err error) string {
	var rejected *ebpf.VerifierError
	switch {
	case err == nil:
		return ""
	case errors.Is(err, errNoTracefs):
		return fmt.Sprintf("%v; mount it (mount -t tracefs tracefs /sys/kernel/tracing), in a container from the host", err)
	case errors.Is(err, errNoTracepoint):
		return fmt.Sprintf("%v; nothing to do: another kernel may have it", err)
	case errors.As(err, &rejected): // its cause is a lack of permission too, that of the program
		return fmt.Sprintf("the kernel's verifier refuses the program (%v); please report it, the other probes are not concerned", last(err))
	case errors.Is(err, fs.ErrPermission):
		return fmt.Sprintf("no permission (%v); give kerfd CAP_BPF and CAP_PERFMON, or CAP_SYS_ADMIN before Linux 5.8", last(err))
	case errors.Is(err, errNoBTF):
		return fmt.Sprintf("this kernel has no BTF (%v); one with CONFIG_DEBUG_INFO_BTF has", last(err))
	case errors.Is(err, ebpf.ErrNotSupported), errors.Is(err, unix.ENOSYS):
		return fmt.Sprintf("this kernel lacks what the probe needs (%v); Linux 5.8 has it", last(err))
	}
	return fmt.Sprintf("%v; the other probes are not concerned", last(err))
}

// last is an error in one line.
func last(err error) string {
	text, _, _ := strings.Cut(err.Error(), "\n")
	return text
}
