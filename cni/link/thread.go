package link

import (
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Apart runs a function on a thread that nobody uses after it, so that it may leave it in another namespace. Never on the process's
// first thread: that one cannot be thrown away, and its namespace is what /proc/self shows as the process's, the host's for us.
func Apart(do func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			defer runtime.UnlockOSThread()
			result <- Apart(do) // on another: this one is taken as long as that takes
			return
		}
		result <- do() // not unlocked: the thread ends with this goroutine
	}()
	return <-result
}
