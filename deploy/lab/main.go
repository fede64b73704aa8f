// Command lab boots a described computer in QEMU and runs programs in it: hardware and kernel features that a
// development machine lacks (SR-IOV, PCIe switches, NUMA nodes, NVMe, device mapper, project quota, RDMA).
//
// Words: a Machine is the description (hardware.go); the root is a directory of unpacked Debian packages with QEMU,
// the kernel and tools (packages.go); the initial file system is all that the machine has (initramfs.go); a job is one
// command in it (job.go). This program is also the machine's init (guest.go): it is copied into it, so it must be
// static. Results come back on a port of their own (wire.go), never on the console, where the kernel writes.
//
// Traps: there is no KVM, so times in the machine are several times those of hardware, and only relative. There is no
// udev: device nodes are devtmpfs's, links do not get other names. Nothing outside can be reached. The root file
// system is memory. SeaBIOS numbers buses depth first, and hardware.go does the same to know addresses before the boot.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

// Exit codes besides those of commands in the machine. They are those that timeout(1) and its kin have.
const (
	exitTimeout = 124
	exitFailure = 125
	exitUsage   = 2
)

// usageError is a wrong command line.
type usageError struct{ error }

// exitError is the end of a command in the machine.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

type verb struct {
	name, args, help string
	run              func(ctx context.Context, args []string) error
}

func verbs() []verb {
	return []verb{
		{"run", "[--hardware NAME] [--file HOST:GUEST]... [--timeout D] [--console] -- COMMAND ARG...", "boot, run one command as root, and exit as it does", runVerb},
		{"shell", "[--hardware NAME] [--file HOST:GUEST]...", "boot, with a shell on this terminal (C-a x ends it)", shellVerb},
		{"test", "[--hardware NAME] [--only TEXT] [--run REGEXP]", "run all tests named TestLab… in their machines, from the repository's top", testVerb},
		{"boot-time", "[--hardware NAME]", "boot, and print how long it took until a command could run", bootTimeVerb},
		{"fetch", "", "fetch and unpack the packages into the cache, without booting anything", fetchVerb},
		{"hardware", "[--hardware NAME]", "print a machine's description: devices, addresses, classes", hardwareVerb},
	}
}

func main() {
	if isInit() {
		guestInit()
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	var exit exitError
	switch {
	case err == nil || errors.Is(err, flag.ErrHelp):
	case errors.As(err, &exit):
		os.Exit(int(exit))
	case errors.As(err, &usageError{}):
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(exitUsage)
	default:
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(exitFailure)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 || args[0] == "-h" || args[0] == "--help" || args[0] == "help" {
		usage(os.Stdout)
		return nil
	}
	if args[0] == guestVerb {
		return guestRun()
	}
	for _, v := range verbs() {
		if v.name == args[0] {
			return v.run(ctx, args[1:])
		}
	}
	return usageError{fmt.Errorf("unknown verb %q; see lab help", args[0])}
}

func usage(w io.Writer) {
	fmt.Fprintln(w, "A described computer in QEMU. Machines:", strings.Join(hardwareNames(), ", "))
	for _, v := range verbs() {
		fmt.Fprintf(w, "\n  lab %s\n      %s\n", strings.TrimSpace(v.name+" "+v.args), v.help)
	}
}
