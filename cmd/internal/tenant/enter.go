package tenant

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Enter takes the steps. The calling process must have a mount namespace of its own.
func Enter(steps []Step) error {
	// What is mounted on the host later still shows here; what is mounted here never shows there.
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make the mount namespace private: %w", err)
	}
	sources, err := openSources(steps)
	if err != nil {
		return err
	}
	for _, step := range steps {
		if err := step.take(sources); err != nil {
			return fmt.Errorf("tenant's view: %s %s: %w", step.Verb, step.Target, err)
		}
	}
	for _, fd := range sources {
		_ = unix.Close(fd)
	}
	return nil
}

// openSources opens every source before the first step covers any. A descriptor still names its file after that.
func openSources(steps []Step) (map[string]int, error) {
	sources := make(map[string]int)
	for _, step := range steps {
		if _, known := sources[step.Source]; known || step.Verb != Bind && step.Verb != BindRO {
			continue
		}
		fd, err := unix.Open(step.Source, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("tenant's view: open %s: %w; is kerfd's installation whole?", step.Source, err)
		}
		sources[step.Source] = fd
	}
	return sources, nil
}

func (s Step) take(sources map[string]int) error {
	switch s.Verb {
	case Tmpfs:
		return unix.Mount("kerf", s.Target, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755,size=16m")
	case Rebuild:
		return rebuild(s.Target, s.Without, s.With)
	case Bind, BindRO:
		if err := bind(sources[s.Source], s.Target); err != nil || s.Verb == Bind {
			return err
		}
		return remountReadOnly(s.Target)
	case Link:
		return os.Symlink(s.Source, s.Target)
	case Cache:
		return loaderCache(s.Source)
	case ReadOnly:
		return remountReadOnly(s.Target)
	}
	return errors.New("unknown verb")
}

// bind mounts what a descriptor names on target, which is made if it is not there.
func bind(fd int, target string) error {
	source := "/proc/self/fd/" + strconv.Itoa(fd)
	if _, err := os.Lstat(target); err != nil {
		if err := makeLike(source, target); err != nil {
			return err
		}
	}
	return unix.Mount(source, target, "", unix.MS_BIND|unix.MS_REC, "")
}

// makeLike makes an empty directory or file, as the source is one.
func makeLike(source, target string) error {
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	info, err := os.Stat(source)
	if err != nil {
		return err
	}
	if info.IsDir() {
		return os.Mkdir(target, 0o755)
	}
	return os.WriteFile(target, nil, 0o644)
}

// remountReadOnly keeps the flags that the mount has: in a user namespace, taking one away is refused.
func remountReadOnly(target string) error {
	var stat unix.Statfs_t
	if err := unix.Statfs(target, &stat); err != nil {
		return err
	}
	flags := uintptr(unix.MS_BIND | unix.MS_REMOUNT | unix.MS_RDONLY)
	for _, keep := range []struct{ has, want uintptr }{
		{unix.ST_NOSUID, unix.MS_NOSUID}, {unix.ST_NODEV, unix.MS_NODEV}, {unix.ST_NOEXEC, unix.MS_NOEXEC},
		{unix.ST_NOATIME, unix.MS_NOATIME}, {unix.ST_NODIRATIME, unix.MS_NODIRATIME}, {unix.ST_RELATIME, unix.MS_RELATIME},
	} {
		if uintptr(stat.Flags)&keep.has != 0 {
			flags |= keep.want
		}
	}
	return unix.Mount("", target, "", flags, "")
}

// rebuild covers a directory with a tmpfs that has the same entries, but not without, and one empty directory more. It is how
// a directory is added to /run, or a device taken from /dev, without a change to the host.
func rebuild(dir string, without []string, with string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	type kept struct {
		name, link string
		fd         int
	}
	var keep []kept
	for _, entry := range entries {
		path := filepath.Join(dir, entry.Name())
		k := kept{name: path, fd: -1}
		if slices.Contains(without, path) {
			continue
		}
		if entry.Type()&os.ModeSymlink != 0 {
			k.link, err = os.Readlink(path)
		} else {
			k.fd, err = unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
		}
		if err == nil { // what went meanwhile, or is not ours to see, is left out
			keep = append(keep, k)
		}
	}
	if err := unix.Mount("kerf", dir, "tmpfs", unix.MS_NOSUID, "mode=0755"); err != nil {
		return err
	}
	for _, k := range keep {
		if k.fd < 0 {
			if err := os.Symlink(k.link, k.name); err != nil {
				return err
			}
			continue
		}
		err := bind(k.fd, k.name)
		_ = unix.Close(k.fd)
		if err != nil {
			return err
		}
	}
	if with == "" {
		return nil
	}
	return os.MkdirAll(with, 0o755)
}

// loaderCache makes the loader find the shims by name, with no environment variable: the host's cache with one directory more.
func loaderCache(dir string) error {
	if _, err := os.Stat(LoaderCache); err != nil {
		return fmt.Errorf("the loader has no cache (%w), so the shim cannot be put before it; musl and other loaders are not supported", err)
	}
	conf, cache := filepath.Join(Root, "ld.so.conf"), filepath.Join(Root, "ld.so.cache")
	if err := os.WriteFile(conf, []byte(dir+"\ninclude /etc/ld.so.conf\n"), 0o644); err != nil {
		return err
	}
	out, err := exec.Command(ldconfig(), "-X", "-f", conf, "-C", cache).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ldconfig: %w: %s", err, strings.TrimSpace(string(out)))
	}
	fd, err := unix.Open(cache, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if err := bind(fd, LoaderCache); err != nil {
		return err
	}
	return remountReadOnly(LoaderCache)
}

// ldconfig is often not on the path of a user who is not root.
func ldconfig() string {
	if path, err := exec.LookPath("ldconfig"); err == nil {
		return path
	}
	return "/sbin/ldconfig"
}
