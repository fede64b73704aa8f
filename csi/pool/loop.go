package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/kerf-gpu/kerf/csi/mount"
	"github.com/kerf-gpu/kerf/internal/node"
)

// image is the file in a volume's directory that holds its bytes.
const image = "image"

// Loop is a back end whose volumes are files behind loop devices, with a file system inside or raw.
//
// The device of a file system has autoclear: it goes with the mount, and a kill between the two leaves nothing. A raw one outlives its opener
// only without. Direct I/O is asked for, because a buffered loop device keeps every page twice.
type Loop struct {
	*place
	filesystem string // of volumes that name none
}

// LoopReflink is Loop on a file system that shares blocks between files.
type LoopReflink struct{ *Loop }

func (l *Loop) spec(s Spec) (Spec, error) {
	if s.Size < 16*node.MiB {
		return s, fmt.Errorf("size %s: a volume of back end loop has at least 16Mi (xfs 300Mi, btrfs 110Mi)", s.Size)
	}
	if s.Block && s.Filesystem != "" {
		return s, fmt.Errorf("file system %s: a block volume has none of ours; leave fsType out", s.Filesystem)
	}
	if !s.Block && s.Filesystem == "" {
		s.Filesystem = l.filesystem
	}
	var st unix.Statfs_t
	if s.Guaranteed {
		if err := unix.Statfs(l.path, &st); err != nil {
			return s, err
		}
		if st.Type == unix.BTRFS_SUPER_MAGIC {
			return s, errors.New("back end loop on btrfs cannot set space aside: btrfs writes elsewhere each time; put the pool on xfs or ext4")
		}
	}
	return s, nil
}

// Create implements Backend.
func (l *Loop) Create(ctx context.Context, id string, s Spec) error {
	s, err := l.spec(s)
	if err != nil {
		return err
	}
	return l.create(id, record{Spec: s}, func(path string) error {
		if err := os.Mkdir(path, 0o700); err != nil {
			return err
		}
		l.at("directory")
		file := filepath.Join(path, image)
		if err := allocate(file, s.Size, s.Guaranteed); err != nil {
			return err
		}
		l.at("image")
		if !s.Block {
			if err := mkfs(ctx, s.Filesystem, file); err != nil {
				return err
			}
		}
		return syncAll(file, path)
	}, os.RemoveAll)
}

// allocate makes or lengthens a file.
func allocate(file string, size node.Bytes, guaranteed bool) error {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if guaranteed {
		if err := unix.Fallocate(int(f.Fd()), 0, 0, int64(size)); err != nil {
			return fmt.Errorf("set %s aside: %w", size, err)
		}
	}
	if err := f.Truncate(int64(size)); err != nil {
		return err
	}
	return f.Sync()
}

// Delete implements Backend.
func (l *Loop) Delete(ctx context.Context, id string) error {
	if err := l.Close(ctx, id); err != nil {
		return err
	}
	return l.delete(id, os.RemoveAll)
}

// Open implements Backend.
func (l *Loop) Open(_ context.Context, id string) (string, error) {
	r, err := l.whole(id)
	if err != nil {
		return "", err
	}
	file := filepath.Join(l.file(volumesDir, id), image)
	if r.Spec.Block {
		return attachOnce(file, r.Snapshot)
	}
	target := l.file(mountsDir, id)
	if err := os.MkdirAll(target, 0o711); err != nil {
		return "", err
	}
	mounted, err := mount.Is(target)
	if err != nil {
		return "", err
	}
	if !mounted {
		l.at("mounting")
		dev, err := attach(file, unix.LO_FLAGS_AUTOCLEAR|unix.LO_FLAGS_DIRECT_IO)
		if err != nil {
			return "", err
		}
		defer func() { _ = dev.Close() }() // autoclear: the mount holds it from now on
		l.at("attached")
		if err := mountVolume(dev.Name(), target, r); err != nil {
			return "", err
		}
		l.at("mounted")
	}
	if r.Grow {
		return target, l.grown(id, r, target)
	}
	return target, nil
}

func (l *Loop) grown(id string, r record, target string) error {
	if err := growFilesystem(target, r.Spec.Filesystem); err != nil {
		return fmt.Errorf("grow the %s of volume %s: %w", r.Spec.Filesystem, id, err)
	}
	r.Grow = false
	return l.put(id, r)
}

// Close implements Backend.
func (l *Loop) Close(_ context.Context, id string) error {
	if err := check(id); err != nil {
		return err
	}
	if err := unmount(l.file(mountsDir, id)); err != nil {
		return err
	}
	for _, dir := range []string{volumesDir, newDir, goneDir} {
		if err := detach(filepath.Join(l.file(dir, id), image)); err != nil {
			return err
		}
	}
	return nil
}

// Usage implements Backend.
func (l *Loop) Usage(_ context.Context, id string) (Usage, error) {
	r, err := l.whole(id)
	if err != nil {
		return Usage{}, err
	}
	if !r.Spec.Block {
		return filesystemUsage(l.file(mountsDir, id), id)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(l.file(volumesDir, id), image), &st); err != nil {
		return Usage{}, err
	}
	return Usage{Size: r.Spec.Size, Used: node.Bytes(st.Blocks) * 512}, nil
}

// Expand implements Expander.
func (l *Loop) Expand(_ context.Context, id string, size node.Bytes) error {
	r, err := l.whole(id)
	if err != nil {
		return err
	}
	if size <= r.Spec.Size && !r.Grow {
		return nil
	}
	file := filepath.Join(l.file(volumesDir, id), image)
	r.Spec.Size = max(size, r.Spec.Size)
	if err := allocate(file, r.Spec.Size, r.Spec.Guaranteed); err != nil {
		return err
	}
	l.at("longer")
	r.Grow = !r.Spec.Block
	if err := l.put(id, r); err != nil {
		return err
	}
	l.at("expanding")
	name, err := attached(file)
	if err != nil || name == "" {
		return err
	}
	err = within(name, os.O_RDWR, func(f *os.File) error { return unix.IoctlSetInt(int(f.Fd()), unix.LOOP_SET_CAPACITY, 0) })
	if err != nil || r.Spec.Block {
		return err
	}
	return l.grown(id, r, l.file(mountsDir, id))
}

// Clone implements Cloner.
func (l LoopReflink) Clone(_ context.Context, from, id string, s Spec) error {
	s, err := l.spec(s)
	if err != nil {
		return err
	}
	origin, err := l.whole(from)
	switch {
	case err != nil:
		return err
	case s.Block != origin.Spec.Block || s.Filesystem != origin.Spec.Filesystem:
		return fmt.Errorf("clone of volume %s: it has %q (block %v), %q (block %v) asked; ask for the same", from, origin.Spec.Filesystem, origin.Spec.Block, s.Filesystem, s.Block)
	case s.Size < origin.Spec.Size:
		return fmt.Errorf("clone of volume %s: %s asked, it has %s; ask for as much or more", from, s.Size, origin.Spec.Size)
	}
	return l.reflink(from, id, record{Spec: s, Grow: !s.Block && (s.Size > origin.Spec.Size || origin.Grow)})
}

// Snapshot implements Cloner.
func (l LoopReflink) Snapshot(_ context.Context, from, id string) error {
	origin, err := l.whole(from)
	if err != nil {
		return err
	}
	return l.reflink(from, id, record{Spec: origin.Spec, Snapshot: true, Grow: origin.Grow})
}

// reflink copies an image as of one moment: FICLONE holds off writers. What the file system inside has not written yet is written before;
// its journal does the rest. It is not frozen: a kill would leave it so.
func (l LoopReflink) reflink(from, id string, r record) error {
	if r.Spec.Filesystem == "btrfs" {
		return errors.New("a loop volume with btrfs inside cannot be cloned: the kernel mounts one of two with the same id; use xfs or ext4, or a pool of back end btrfs")
	}
	source := filepath.Join(l.file(volumesDir, from), image)
	return l.create(id, r, func(path string) error {
		if mounted, err := mount.Is(l.file(mountsDir, from)); err != nil {
			return err
		} else if mounted {
			if err := syncfs(l.file(mountsDir, from)); err != nil {
				return err
			}
		}
		if name, err := attached(source); err != nil {
			return err
		} else if name != "" {
			if err := within(name, os.O_RDWR, func(f *os.File) error { return f.Sync() }); err != nil {
				return err
			}
		}
		if err := os.Mkdir(path, 0o700); err != nil {
			return err
		}
		file := filepath.Join(path, image)
		if err := reflinkFile(source, file); err != nil {
			return err
		}
		l.at("image")
		return errors.Join(allocate(file, r.Spec.Size, r.Spec.Guaranteed), syncAll(path))
	}, os.RemoveAll)
}

func reflinkFile(from, to string) error {
	return within(from, os.O_RDONLY, func(source *os.File) error {
		f, err := os.OpenFile(to, os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return err
		}
		return errors.Join(unix.IoctlFileClone(int(f.Fd()), int(source.Fd())), f.Close())
	})
}

// List implements Backend.
func (l *Loop) List(context.Context) ([]string, error) { return l.list() }

// Capacity implements Backend.
func (l *Loop) Capacity(context.Context) (Capacity, error) { return capacity(l.path) }

// attach puts a file behind a free loop device. With autoclear the device goes with its last user, who is the caller.
func attach(file string, flags uint32) (*os.File, error) {
	backing, err := os.OpenFile(file, os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = backing.Close() }()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%w (the kernel needs CONFIG_BLK_DEV_LOOP)", err)
	}
	defer func() { _ = control.Close() }()
	for range 64 { // others take the one that was free
		number, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("ask for a free loop device: %w", err)
		}
		dev, err := os.OpenFile("/dev/loop"+strconv.Itoa(number), os.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		config := unix.LoopConfig{Fd: uint32(backing.Fd()), Size: 4096, Info: unix.LoopInfo64{Flags: flags}}
		if err = unix.IoctlLoopConfigure(int(dev.Fd()), &config); errors.Is(err, unix.EINVAL) {
			config.Size = 0 // the file's own disk has other sectors
			err = unix.IoctlLoopConfigure(int(dev.Fd()), &config)
		}
		if err == nil {
			return dev, nil
		}
		_ = dev.Close()
		if !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("configure %s: %w", dev.Name(), err)
		}
	}
	return nil, errors.New("no loop device stays free; other programs take them")
}

// attachOnce answers the device of a file, which gets one if it has none. It stays until detach.
func attachOnce(file string, readOnly bool) (string, error) {
	name, err := attached(file)
	if err != nil || name != "" {
		return name, err
	}
	flags := uint32(unix.LO_FLAGS_DIRECT_IO)
	if readOnly {
		flags |= unix.LO_FLAGS_READ_ONLY
	}
	dev, err := attach(file, flags)
	if err != nil {
		return "", err
	}
	return dev.Name(), dev.Close()
}

// attached is the loop device of a file, or "". Names in /sys are of another mount namespace; inodes are not.
func attached(file string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(file, &st); errors.Is(err, unix.ENOENT) {
		return "", nil
	} else if err != nil {
		return "", err
	}
	found, err := filepath.Glob("/sys/block/loop*/loop")
	if err != nil {
		return "", err
	}
	for _, path := range found {
		name := "/dev/" + filepath.Base(filepath.Dir(path))
		dev, err := os.Open(name)
		if err != nil {
			continue // it went
		}
		info, err := unix.IoctlLoopGetStatus64(int(dev.Fd()))
		_ = dev.Close()
		if err == nil && info.Inode == st.Ino && info.Device == st.Dev {
			return name, nil
		}
	}
	return "", nil
}

func detach(file string) error {
	name, err := attached(file)
	if err != nil || name == "" {
		return err
	}
	return within(name, os.O_RDONLY, func(f *os.File) error {
		err := unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0)
		if errors.Is(err, unix.ENXIO) {
			return nil
		}
		return err
	})
}
