// Package mount binds one directory or device to a place below another directory, by descriptors: nothing on the way is looked up twice.
//
// Vocabulary: a source is a directory or a block device of this node. A target is the place where a pod finds it. A root is the
// directory that every target lies below, such as kubelet's.
//
// Traps
//
//   - Pods can write below kubelet's directory. A path there is therefore walked with openat2, which follows no symbolic link and leaves the
//     root by no "..", and the mount is moved onto the descriptor that this walk gave.
//   - A device that is bound needs a mount that allows devices: nodev is for directories alone.
//   - umount(2) knows paths only. It gets one through the descriptor of the parent, and follows no link in the last element.
package mount

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrOutside says that a target is not below its root.
var ErrOutside = errors.New("not below the root")

// ErrOccupied says that something else than an empty place is where a target should be.
var ErrOccupied = errors.New("something else is there")

// Options is how a source is bound.
type Options struct {
	Device   bool // a block device, bound to a file; else a directory, bound to a directory
	ReadOnly bool
	NoExec   bool
	NoAtime  bool
}

// Root is a directory that targets lie below.
type Root struct{ path string }

// Below is the root at an absolute path.
func Below(path string) Root { return Root{filepath.Clean(path)} }

// beneath is a walk that pods cannot lead astray.
const beneath = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS

// Inside says whether a path may be a target: absolute, clean, and below the root.
func (r Root) Inside(target string) bool {
	rest, ok := strings.CutPrefix(target, r.path+"/")
	return ok && filepath.IsLocal(rest) && filepath.Clean(target) == target
}

// parent opens the directory that a target is in, and answers the target's name in it.
func (r Root) parent(target string) (*os.File, string, error) {
	if !r.Inside(target) {
		return nil, "", fmt.Errorf("%s: %w %s", target, ErrOutside, r.path)
	}
	root, err := unix.Open(r.path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, "", fmt.Errorf("open %s: %w", r.path, err)
	}
	defer func() { _ = unix.Close(root) }()
	dir, name := filepath.Split(strings.TrimPrefix(target, r.path+"/"))
	fd, err := openat2(root, filepath.Clean("./"+dir), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return nil, "", fmt.Errorf("open the directory of %s: %w", target, err)
	}
	return os.NewFile(uintptr(fd), filepath.Dir(target)), name, nil
}

// Reach says whether the directory that a target is in can be reached without a symbolic link.
func (r Root) Reach(target string) error {
	parent, _, err := r.parent(target)
	if err != nil {
		return err
	}
	return parent.Close()
}

func openat2(dir int, path string, flags uint64) (int, error) {
	for {
		fd, err := unix.Openat2(dir, path, &unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: beneath})
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) { // something was renamed on the way
			return fd, err
		}
	}
}

// Bind makes the target and binds the source to it. A target that is there must be an empty directory, or for a device an empty file:
// anything else is ErrOccupied. After an error the target is not mounted, and what Bind made of it is gone.
func (r Root) Bind(source, target string, o Options) error {
	tree, err := clone(source, o)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(tree) }()
	parent, name, err := r.parent(target)
	if err != nil {
		return err
	}
	defer func() { _ = parent.Close() }()
	at := int(parent.Fd())
	made, err := place(at, name, o.Device)
	if err != nil {
		return fmt.Errorf("target %s: %w", target, err)
	}
	if err := moveOnto(tree, at, name, o.Device); err != nil {
		if made {
			_ = remove(at, name)
		}
		return fmt.Errorf("mount %s: %w", target, err)
	}
	return nil
}

// clone is a mount of the source that is nowhere yet. It goes with its descriptor.
func clone(source string, o Options) (int, error) {
	flags := unix.O_PATH | unix.O_CLOEXEC
	if !o.Device {
		flags |= unix.O_NOFOLLOW | unix.O_DIRECTORY
	}
	from, err := unix.Open(source, flags, 0)
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", source, err)
	}
	defer func() { _ = unix.Close(from) }()
	attributes := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID}
	if o.Device {
		var st unix.Stat_t
		if err := unix.Fstat(from, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
			return -1, fmt.Errorf("%s: not a block device (%w)", source, err)
		}
	} else {
		attributes.Attr_set |= unix.MOUNT_ATTR_NODEV
	}
	for on, bit := range map[*bool]uint64{&o.ReadOnly: unix.MOUNT_ATTR_RDONLY, &o.NoExec: unix.MOUNT_ATTR_NOEXEC, &o.NoAtime: unix.MOUNT_ATTR_NOATIME} {
		if *on {
			attributes.Attr_set |= bit
		}
	}
	if o.NoAtime {
		attributes.Attr_clr |= unix.MOUNT_ATTR__ATIME
	}
	tree, err := unix.OpenTree(from, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return -1, fmt.Errorf("clone the mount of %s: %w", source, err)
	}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attributes); err != nil {
		_ = unix.Close(tree)
		return -1, fmt.Errorf("set the mount's attributes of %s: %w", source, err)
	}
	return tree, nil
}

// place makes the target, or finds it empty. It says whether it made it.
func place(parent int, name string, device bool) (made bool, err error) {
	if device {
		var fd int
		if fd, err = unix.Openat(parent, name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600); err == nil {
			_ = unix.Close(fd)
		}
	} else {
		err = unix.Mkdirat(parent, name, 0o750)
	}
	if err == nil || !errors.Is(err, unix.EEXIST) {
		return err == nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(parent, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return false, err
	}
	switch kind := st.Mode & unix.S_IFMT; {
	case device && kind == unix.S_IFREG && st.Size == 0, !device && kind == unix.S_IFDIR && isEmpty(parent, name):
		return false, nil
	default:
		return false, fmt.Errorf("%w (%s)", ErrOccupied, kindOf(kind))
	}
}

func kindOf(mode uint32) string {
	switch mode {
	case unix.S_IFDIR:
		return "a directory with something in it"
	case unix.S_IFLNK:
		return "a symbolic link"
	case unix.S_IFREG:
		return "a file"
	}
	return "a special file"
}

func isEmpty(parent int, name string) bool {
	fd, err := openat2(parent, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return false
	}
	dir := os.NewFile(uintptr(fd), name)
	defer func() { _ = dir.Close() }()
	names, _ := dir.Readdirnames(1)
	return len(names) == 0
}

func moveOnto(tree, parent int, name string, device bool) error {
	flags := uint64(unix.O_PATH | unix.O_NOFOLLOW)
	if !device {
		flags |= unix.O_DIRECTORY
	}
	onto, err := openat2(parent, name, flags)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(onto) }()
	return unix.MoveMount(tree, "", onto, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}

// Unbind unmounts the target and removes it. One that is not there, or is not mounted, is no error; a directory with something in it, or
// a file that is not empty, is not removed: ErrOccupied.
func (r Root) Unbind(target string) error {
	parent, name, err := r.parent(target)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = parent.Close() }()
	at := fmt.Sprintf("/proc/self/fd/%d/%s", parent.Fd(), name)
	for { // mounts may lie over one another
		err := unix.Unmount(at, unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break // no mount, or nothing
		}
		if err != nil {
			return fmt.Errorf("unmount %s: %w", target, err)
		}
	}
	if err := remove(int(parent.Fd()), name); err != nil {
		return fmt.Errorf("remove %s: %w", target, err)
	}
	return nil
}

// remove takes an empty target away; never one with something in it.
func remove(parent int, name string) error {
	var st unix.Stat_t
	err := unix.Fstatat(parent, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case err != nil:
		return err
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		if err = unix.Unlinkat(parent, name, unix.AT_REMOVEDIR); errors.Is(err, unix.ENOTEMPTY) {
			err = ErrOccupied
		}
	case st.Mode&unix.S_IFMT == unix.S_IFREG && st.Size == 0:
		err = unix.Unlinkat(parent, name, 0)
	default:
		return fmt.Errorf("%w (%s)", ErrOccupied, kindOf(st.Mode&unix.S_IFMT))
	}
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// Group gives a directory and all that is in it to a group, which may then write there, as what is made later is. A directory that
// is the group's already is left as it is.
func Group(dir string, gid int) error {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", dir, err)
	}
	defer func() { _ = unix.Close(fd) }()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("stat %s: %w", dir, err)
	}
	const wanted = unix.S_ISGID | 0o070
	if int(st.Gid) == gid && st.Mode&wanted == wanted {
		return nil
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	err = fs.WalkDir(root.FS(), ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || path == "." {
			return err
		}
		if err := root.Lchown(path, -1, gid); err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil || entry.Type() != 0 && !entry.IsDir() {
			return err
		}
		mode := info.Mode() | 0o060
		if entry.IsDir() {
			mode |= fs.ModeSetgid | 0o010
		}
		return root.Chmod(path, mode)
	})
	// The directory itself comes last: it says that the rest is done.
	if err = errors.Join(err, unix.Fchown(fd, -1, gid), unix.Fchmod(fd, st.Mode&0o7777|wanted)); err != nil {
		return fmt.Errorf("give %s to group %d: %w", dir, gid, err)
	}
	return nil
}
