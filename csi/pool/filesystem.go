package pool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"

	"github.com/kerf-gpu/kerf/csi/mount"
	"github.com/kerf-gpu/kerf/internal/node"
)

// makers are the programs that make a file system. Blocks are as large as a loop device's sectors. None of them may discard: that would give back what was set aside.
var makers = map[string][]string{
	"ext4":  {"mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "0", "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0"},
	"xfs":   {"mkfs.xfs", "-q", "-f", "-K", "-s", "size=4096"},
	"btrfs": {"mkfs.btrfs", "-q", "-f", "-K"},
}

// mkfs makes a file system on a device, or in a file.
func mkfs(ctx context.Context, filesystem, device string) error {
	maker, ok := makers[filesystem]
	if !ok {
		return fmt.Errorf("file system %q: not known; use xfs, ext4 or btrfs", filesystem)
	}
	return run(ctx, maker[0], append(maker[1:len(maker):len(maker)], device)...)
}

// run runs a program without a shell and puts what it said into the error.
func run(ctx context.Context, name string, args ...string) error {
	_, err := output(ctx, name, args...)
	return err
}

func output(ctx context.Context, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var said, wrong bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &wrong
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s: %w: %s", name, err, bytes.TrimSpace(wrong.Bytes()))
	}
	return said.Bytes(), nil
}

// mountVolume mounts a volume's device. Root's directory of a new file system is for any user of the pod, as an emptyDir's.
func mountVolume(device, target string, r record) error {
	flags, data := uintptr(unix.MS_NOSUID|unix.MS_NODEV), ""
	if r.Spec.Filesystem == "xfs" {
		data = "nouuid" // a clone has its origin's
	}
	if r.Snapshot && !r.Grow {
		flags |= unix.MS_RDONLY
	}
	if err := unix.Mount(device, target, r.Spec.Filesystem, flags, data); err != nil {
		return fmt.Errorf("mount %s as %s: %w", device, r.Spec.Filesystem, err)
	}
	if flags&unix.MS_RDONLY != 0 {
		return nil
	}
	if err := os.Chmod(target, 0o777); err != nil {
		return errors.Join(err, unmount(target))
	}
	return nil
}

// unmount takes all mounts of a place away, and the place.
func unmount(target string) error {
	for {
		mounted, err := mount.Is(target)
		if err != nil {
			return err
		}
		if !mounted {
			break
		}
		if err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w", target, err)
		}
	}
	if err := unix.Rmdir(target); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Linux's ext4.h, xfs_fs.h and btrfs.h.
const (
	ext4Resize  = 0x40086610
	xfsGeometry = 0x80705864
	xfsGrow     = 0x4010586e
	btrfsResize = 0x50009403
)

type (
	geometry struct {
		blockSize, _, _, _, _, _, _, maxInodes uint32 // the last in percent
		_                                      [10]uint64
	}
	xfsGrowth struct {
		blocks    uint64
		maxInodes uint32
		_         uint32
	}
)

// growFilesystem makes a mounted file system as large as its device.
func growFilesystem(target, filesystem string) error {
	return within(target, os.O_RDONLY, func(f *os.File) error {
		size, err := deviceSize(f)
		if err != nil {
			return err
		}
		switch filesystem {
		case "ext4":
			var st unix.Statfs_t
			if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
				return err
			}
			blocks := size / uint64(st.Bsize)
			err := ioctl(f, ext4Resize, &blocks)
			if errors.Is(err, unix.EPERM) {
				return fmt.Errorf("ext4 grows while it is mounted for a process with CAP_SYS_RESOURCE alone; give kerfd that, or use xfs: %w", err)
			}
			return err
		case "xfs":
			var g geometry
			if err := ioctl(f, xfsGeometry, &g); err != nil {
				return err
			}
			return ioctl(f, xfsGrow, &xfsGrowth{blocks: size / uint64(g.blockSize), maxInodes: g.maxInodes})
		case "btrfs":
			var arg btrfsName
			copy(arg.name[:], "1:max")
			return ioctl(f, btrfsResize, &arg)
		}
		return fmt.Errorf("file system %q cannot grow", filesystem)
	})
}

// deviceSize is of the device that a file's file system is on.
func deviceSize(f *os.File) (size uint64, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0, err
	}
	text, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%d:%d/size", unix.Major(st.Dev), unix.Minor(st.Dev)))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil // btrfs has a device number of its own, and asks nobody
	}
	if err != nil {
		return 0, err
	}
	_, err = fmt.Sscan(string(text), &size)
	return size * 512, err
}

// filesystemUsage is of a mounted volume.
func filesystemUsage(target, id string) (Usage, error) {
	mounted, err := mount.Is(target)
	if err != nil {
		return Usage{}, err
	}
	if !mounted {
		return Usage{}, fmt.Errorf("volume %s is not open: %w", id, fs.ErrNotExist)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(target, &st); err != nil {
		return Usage{}, err
	}
	block := node.Bytes(st.Bsize)
	return Usage{Size: node.Bytes(st.Blocks) * block, Used: node.Bytes(st.Blocks-st.Bfree) * block, Inodes: st.Files, InodesUsed: st.Files - st.Ffree}, nil
}

func syncAll(paths ...string) error {
	for _, path := range paths {
		if err := within(path, os.O_RDONLY, func(f *os.File) error { return f.Sync() }); err != nil {
			return err
		}
	}
	return nil
}
