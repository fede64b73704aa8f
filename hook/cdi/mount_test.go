package cdi

import (
	"testing"

	"golang.org/x/sys/unix"
)

func mountTmpfs(t *testing.T, dir, options string) {
	t.Helper()
	flags := uintptr(0)
	if options == "ro" {
		flags, options = unix.MS_RDONLY, ""
	}
	if err := unix.Mount("kerf-test", dir, "tmpfs", flags, options); err != nil {
		t.Skip("cannot mount a file system to be refused by: ", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
}
