package hook

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// look checks the container's real mounts, which a link in the image could have led elsewhere than the configuration says: through
// the view of its first process, before its root is changed.
func look(pid int, rootfs string, shares []Share) error {
	proc, err := unix.Open("/proc/"+strconv.Itoa(pid)+"/root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("look into the container's process %d: %w", pid, err)
	}
	defer func() { _ = unix.Close(proc) }()
	r, err := openRoot(proc, "."+filepath.Clean("/"+rootfs))
	if err != nil {
		return err
	}
	defer r.close()
	for _, want := range expected(shares) {
		if err := r.same(want); err != nil {
			return err
		}
	}
	return r.onlyShares(shares)
}

// same: what the container has on the target is one of the host's files, under a mount that lets the container write only where
// it may.
func (r *root) same(want expectation) error {
	fd, err := r.open(want.target, unix.O_PATH, 0)
	if err != nil {
		return fmt.Errorf("%s is in the container's configuration and not in its mounts (%w); a sandbox or virtual machine runtime cannot hold a share's limits, use runc or crun", want.target, err)
	}
	defer func() { _ = unix.Close(fd) }()
	got, _, err := statFD(fd)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(want.sources, func(source string) bool { return got == hostFile(source) }) {
		return fmt.Errorf("%s in the container is not %s: a volume, or a link in the image, hides it; mount the volume elsewhere, or take /run/kerf out of the image", want.target, want.sources[0])
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return err
	}
	if !want.writable && fs.Flags&unix.ST_RDONLY == 0 {
		return fmt.Errorf("%s is mounted writable in the container, and must not be; is another CDI spec or NRI plugin changing it?", want.target)
	}
	return nil
}

// hostFile is a file of the host; one that nothing equals where it is not there.
func hostFile(name string) file {
	var st unix.Stat_t
	if err := unix.Stat(name, &st); err != nil {
		return file{}
	}
	return file{dev: st.Dev, ino: st.Ino}
}

// onlyShares: the container sees no other container's share. The shims take every share that they find.
func (r *root) onlyShares(shares []Share) error {
	others, err := r.list(Root+"/shares", func(name string) bool {
		return !slices.ContainsFunc(shares, func(s Share) bool { return s.ID == name })
	})
	if err != nil || len(others) > 0 {
		return errors.New("another container's share is in sight below " + Root + "/shares: a volume on /run or above is the host's, or a container with another claim uses it too (mount it elsewhere), or the image has that directory (take it out)")
	}
	return nil
}
