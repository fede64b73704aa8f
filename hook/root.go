package hook

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kerf-gpu/kerf/hook/ldcache"
)

// root is the root directory of a container, as a descriptor. Every path below it is resolved as if the process had changed its root:
// neither "..", nor a link to an absolute path, nor a link that is swapped meanwhile leads out.
type root struct {
	fd int
}

// openRoot opens a container's root. Path may itself lie below another process's root.
func openRoot(at int, dir string) (*root, error) {
	fd, err := unix.Openat(at, dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the container's root %s: %w", dir, err)
	}
	return &root{fd: fd}, nil
}

func (r *root) close() { _ = unix.Close(r.fd) }

// open resolves a path below the root. resolve adds to the confinement.
func (r *root) open(name string, flags int, resolve uint64) (int, error) {
	how := unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: unix.RESOLVE_IN_ROOT | resolve}
	for {
		fd, err := unix.Openat2(r.fd, name, &how)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) { // something was renamed meanwhile
			continue
		}
		if errors.Is(err, unix.ENOSYS) {
			return -1, errors.New("the kernel has no openat2, without which a hostile image could lead this program out; Linux 5.8 or later is needed")
		}
		return fd, err
	}
}

// file tells one file from another.
type file struct {
	dev, ino uint64
}

// stat follows links, within the root.
func (r *root) stat(name string) (file, os.FileMode, error) {
	fd, err := r.open(name, unix.O_PATH, 0)
	if err != nil {
		return file{}, 0, err
	}
	defer func() { _ = unix.Close(fd) }()
	return statFD(fd)
}

func statFD(fd int) (file, os.FileMode, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return file{}, 0, err
	}
	mode := os.FileMode(st.Mode & 0o777)
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		mode |= os.ModeDir
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		mode |= os.ModeIrregular
	}
	return file{dev: st.Dev, ino: st.Ino}, mode, nil
}

// What is read of an image is bounded: this program runs outside of the container's limit of memory, and many at once.
const (
	maxRead  = ldcache.MaxBytes // of a file: the loader, its cache
	maxNames = 1024             // that are kept of a directory, or of a pattern
	maxDirs  = 8192             // that are searched; some package managers name hundreds
	chunk    = 1024             // names that are read of a directory at once
)

// read is the content of a regular file. Nothing else is opened for reading: opening a device or a pipe does things.
func (r *root) read(name string) ([]byte, error) {
	fd, err := r.open(name, unix.O_PATH, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(fd) }()
	if _, mode, err := statFD(fd); err != nil || !mode.IsRegular() {
		return nil, errors.Join(err, fmt.Errorf("%s: not a file", name))
	}
	f, err := os.Open(procPath(fd))
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	content := new(bytes.Buffer)
	if info, err := f.Stat(); err == nil {
		content.Grow(int(min(info.Size(), maxRead)) + bytes.MinRead)
	}
	if _, err = content.ReadFrom(io.LimitReader(f, maxRead+1)); err == nil && content.Len() > maxRead {
		return nil, fmt.Errorf("%s: %w", name, errTooLarge)
	}
	return content.Bytes(), err
}

// errTooLarge is for what no honest image has.
var errTooLarge = fmt.Errorf("larger than the %d MiB that are read of a file in an image", maxRead>>20)

// procPath names what a descriptor is open on, whatever its path leads to by now.
func procPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// list is the names in a directory that are wanted; none where there is no such directory. A volume may have millions of others.
func (r *root) list(dir string, wanted func(name string) bool) (found []string, err error) {
	fd, err := r.open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, nil
	}
	f := os.NewFile(uintptr(fd), dir)
	defer func() { _ = f.Close() }()
	for {
		// A directory that cannot be read to its end is one whose files a loader may not find either.
		names, err := f.Readdirnames(chunk)
		for _, name := range names {
			if wanted(name) {
				found = append(found, name)
			}
		}
		if err := few(dir, len(found), maxNames); err != nil || len(names) == 0 {
			return found, err
		}
		if err != nil {
			return found, nil
		}
	}
}

// few is an error for more than an honest image has.
func few(where string, n, most int) error {
	if n <= most {
		return nil
	}
	return fmt.Errorf("%s: more than %d names there that could be a driver library's or lead to one; take them out of the image or the volume", where, most)
}

func anyName(string) bool { return true }

// glob expands stars in the elements of a pattern below a directory, whose own name is taken as it is. Directories only.
func (r *root) glob(base, pattern string) (found []string, err error) {
	head, element, rest := cutStar(pattern)
	if element == "" {
		return []string{path.Join(base, pattern)}, nil
	}
	dir := path.Join(base, head)
	before, after, _ := strings.Cut(element, "*")
	names, err := r.list(dir, func(name string) bool {
		return strings.HasPrefix(name, before) && strings.HasSuffix(name, after) && len(name) >= len(before)+len(after)
	})
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		more, err := r.glob(path.Join(dir, name), rest)
		found = append(found, more...)
		if err := cmp.Or(err, few(path.Join(base, pattern), len(found), maxNames)); err != nil {
			return nil, err
		}
	}
	return found, nil
}

// cutStar splits a pattern at its first element with a star.
func cutStar(pattern string) (head, element, rest string) {
	elements := strings.Split(pattern, "/")
	i := slices.IndexFunc(elements, func(e string) bool { return strings.Contains(e, "*") })
	if i < 0 {
		return pattern, "", ""
	}
	return path.Join(elements[:i]...), elements[i], path.Join(elements[i+1:]...)
}

// replace removes what has a name and makes it anew, on the image's own file system: not across a mount, which may be a volume
// and so the host's. There is no rename, since nobody looks yet and some file systems write to disk for it.
func (r *root) replace(name string, make func(dir int, base string) error) error {
	dir, err := r.open(path.Dir(name), unix.O_RDONLY|unix.O_DIRECTORY, unix.RESOLVE_NO_XDEV)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(dir) }()
	if err := unix.Unlinkat(dir, path.Base(name), 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return make(dir, path.Base(name))
}

// write replaces a file by one with this content.
func (r *root) write(name string, content []byte) error {
	return r.replace(name, func(dir int, base string) error {
		fd, err := unix.Openat(dir, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(fd), base)
		_, err = f.Write(content)
		return errors.Join(err, f.Chmod(0o644), f.Close()) // whatever the umask
	})
}

// link replaces a file by a symbolic link.
func (r *root) link(target, name string) error {
	return r.replace(name, func(dir int, base string) error { return unix.Symlinkat(target, dir, base) })
}

// bind mounts one file of the root over another, with the flags that its own mount has.
func (r *root) bind(source, target string) error {
	to, err := r.open(target, unix.O_PATH, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(to) }()
	if shared, err := isShared(to); err != nil || shared {
		return errors.Join(err, errors.New("it lies in a volume with mountPropagation Bidirectional, so the host would see what is mounted there; mount that volume without"))
	}
	from, err := r.open(source, unix.O_PATH, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(from) }()
	tree, err := unix.OpenTree(from, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("clone the mount: %w", err)
	}
	defer func() { _ = unix.Close(tree) }()
	return unix.MoveMount(tree, "", to, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}

// isShared: what is mounted on this mount shows elsewhere too.
func isShared(fd int) (bool, error) {
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &st); err != nil {
		return false, err
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false, err
	}
	for line := range strings.Lines(string(mounts)) {
		fields := strings.Fields(line)
		if fields[0] != strconv.FormatUint(st.Mnt_id, 10) {
			continue
		}
		for _, field := range fields[6:] {
			if field == "-" {
				break
			}
			if strings.HasPrefix(field, "shared:") {
				return true, nil
			}
		}
	}
	return false, nil
}
