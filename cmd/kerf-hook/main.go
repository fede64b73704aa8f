// Command kerf-hook is run by the container runtime for each container that holds a share; see package hook.
package main

import (
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/kerf-gpu/kerf/hook"
)

// The container runtime starts this program as root and in its own cgroup, so no pod's limit bounds what a hostile image makes it
// read; package hook is frugal, and this is for what nobody thought of.
const (
	collectFrom = 64 << 20  // below it, the program ends before there is anything worth collecting
	atMost      = 256 << 20 // of private writable memory; beyond it the Go runtime ends the program, and the container fails
)

func main() {
	err := bound()
	if err == nil {
		err = hook.Run(append([]string{hook.Program}, os.Args[1:]...), os.Stdin) // a runtime may give any name
	}
	if err != nil {
		// One line: the runtime quotes it, and it ends in an event of the pod.
		fmt.Fprintln(os.Stderr, "kerf: "+strings.ReplaceAll(err.Error(), "\n", "; "))
		os.Exit(1)
	}
}

func bound() error {
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(collectFrom)
	if err := syscall.Setrlimit(syscall.RLIMIT_DATA, &syscall.Rlimit{Cur: atMost, Max: atMost}); err != nil {
		return fmt.Errorf("bound the hook's memory: %w", err)
	}
	return nil
}
