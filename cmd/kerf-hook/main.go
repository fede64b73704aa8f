// Command kerf-hook is run by the container runtime for each container that holds a share; see package hook.
package main

import (
	"fmt"
	"os"
	"runtime/debug"
	"strings"

	"github.com/kerf-gpu/kerf/hook"
)

func main() {
	debug.SetGCPercent(-1)                                 // it ends before there is anything worth collecting
	args := append([]string{hook.Program}, os.Args[1:]...) // a runtime may give any name
	if err := hook.Run(args, os.Stdin); err != nil {
		// One line: the runtime quotes it, and it ends in an event of the pod.
		fmt.Fprintln(os.Stderr, "kerf: "+strings.ReplaceAll(err.Error(), "\n", "; "))
		os.Exit(1)
	}
}
