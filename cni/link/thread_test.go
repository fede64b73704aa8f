package link_test

import (
	"errors"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kerf-gpu/kerf/cni/link"
)

// Nothing runs apart on the process's first thread, whoever asks.
func TestApart(t *testing.T) {
	for range 200 {
		ran := 0
		err := link.Apart(func() error {
			ran = unix.Gettid()
			return unix.EIO
		})
		if ran == 0 || ran == os.Getpid() || !errors.Is(err, unix.EIO) {
			t.Fatalf("on thread %d of process %d: %v", ran, os.Getpid(), err)
		}
		runtime.Gosched()
	}
}
