package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kerf-gpu/kerf/internal/node"
)

// Linux's include/uapi/linux/btrfs.h.
const (
	btrfsSubvolCreate    = 0x5000940e
	btrfsSnapDestroy     = 0x5000940f
	btrfsInoLookup       = 0xd0009412
	btrfsSnapCreate      = 0x50009417
	btrfsFsInfo          = 0x8400941f
	btrfsQuotaCtl        = 0xc0109428
	btrfsQgroupAssign    = 0x40189429
	btrfsQgroupCreate    = 0x4010942a
	btrfsQgroupLimit     = 0x8030942b
	btrfsQuotaRescanWait = 0x942e

	btrfsQuotaEnable       = 1
	btrfsQuotaEnableSimple = 4
	btrfsLimitReferenced   = 1 << 0
	btrfsSubvolRoot        = 256 // inode of a subvolume's own directory
)

type (
	btrfsName struct {
		_    int64
		name [4088]byte
	}
	btrfsNameV2 struct {
		fd   int64
		_    [6]uint64 // transid, flags, unused
		name [4040]byte
	}
	btrfsLookup struct {
		tree, object uint64
		_            [4080]byte
	}
	btrfsInfo struct {
		_    [2]uint64
		fsid [16]byte
		_    [1024 - 32]byte
	}
	btrfsQuota  struct{ command, _ uint64 }
	btrfsAssign struct{ assign, from, to uint64 }
	btrfsGroup  struct{ create, id uint64 }
	btrfsLimit  struct {
		id, flags, referenced uint64
		_                     [3]uint64
	}
)

// Btrfs is a back end whose volumes are subvolumes.
//
// Simple quotas come first (Linux 6.7): a limit is set on a qgroup 1/N above the subvolume's own 0/N, and subvolumes that a tenant makes
// inside (any user may) are put below 1/N by the kernel. Full qgroups know no such inheritance. With simple quotas a clone pays for what it
// writes, not for what it shares. Snapshots have no read-only flag: a subvolume that has it cannot be moved between directories.
type Btrfs struct {
	*place
	fsid   string
	simple bool
}

func openBtrfs(p *place) (*Btrfs, error) {
	b := &Btrfs{place: p}
	err := within(p.path, os.O_RDONLY, func(f *os.File) error {
		var info btrfsInfo
		if err := ioctl(f, btrfsFsInfo, &info); err != nil {
			return fmt.Errorf("not a btrfs file system (%w)", err)
		}
		i := info.fsid
		b.fsid = fmt.Sprintf("%x-%x-%x-%x-%x", i[:4], i[4:6], i[6:8], i[8:10], i[10:])
		err := ioctl(f, btrfsQuotaCtl, &btrfsQuota{command: btrfsQuotaEnableSimple})
		if err != nil && !errors.Is(err, unix.EEXIST) {
			if err = ioctl(f, btrfsQuotaCtl, &btrfsQuota{command: btrfsQuotaEnable}); err != nil {
				return fmt.Errorf("neither simple quotas nor qgroups can be switched on: %w", err)
			}
		}
		_ = ioctl(f, btrfsQuotaRescanWait, new(uint64))
		return nil
	})
	if err != nil {
		return nil, err
	}
	mode, err := os.ReadFile(filepath.Join("/sys/fs/btrfs", b.fsid, "qgroups/mode"))
	if err != nil {
		return nil, fmt.Errorf("ask for the mode of quotas: %w", err)
	}
	b.simple = strings.TrimSpace(string(mode)) == "squota"
	return b, nil
}

// Create implements Backend.
func (b *Btrfs) Create(_ context.Context, id string, s Spec) error {
	if err := limitedDirectory(KindBtrfs, s); err != nil {
		return err
	}
	return b.create(id, record{Spec: s}, func(path string) error {
		err := within(filepath.Dir(path), os.O_RDONLY, func(f *os.File) error {
			var arg btrfsName
			copy(arg.name[:], filepath.Base(path))
			return ioctl(f, btrfsSubvolCreate, &arg)
		})
		if err != nil {
			return fmt.Errorf("create subvolume: %w", err)
		}
		b.at("subvolume")
		return errors.Join(b.limit(path, s.Size), os.Chmod(path, 0o777), syncfs(path)) // as an emptyDir: any user of the pod writes
	}, b.remove)
}

// limit is of the qgroup that holds the subvolume, which is made if need be. It is asked of the pool's directory: a full subvolume has no
// room for the change itself.
func (b *Btrfs) limit(path string, size node.Bytes) error {
	var group uint64
	err := within(path, os.O_RDONLY, func(f *os.File) (err error) {
		group, err = b.group(f)
		return err
	})
	if err != nil {
		return err
	}
	return within(b.path, os.O_RDONLY, func(f *os.File) error {
		if b.simple {
			if err := ioctl(f, btrfsQgroupCreate, &btrfsGroup{1, group}); err != nil && !errors.Is(err, unix.EEXIST) {
				return fmt.Errorf("create qgroup: %w", err)
			}
			if err := ioctl(f, btrfsQgroupAssign, &btrfsAssign{1, group & (1<<48 - 1), group}); err != nil && !errors.Is(err, unix.EEXIST) {
				return fmt.Errorf("assign qgroup: %w", err)
			}
		}
		if err := ioctl(f, btrfsQgroupLimit, &btrfsLimit{id: group, flags: btrfsLimitReferenced, referenced: uint64(size)}); err != nil {
			return fmt.Errorf("limit qgroup: %w", err)
		}
		return nil
	})
}

func (b *Btrfs) group(f *os.File) (uint64, error) {
	look := btrfsLookup{object: btrfsSubvolRoot}
	if err := ioctl(f, btrfsInoLookup, &look); err != nil {
		return 0, fmt.Errorf("look up the subvolume: %w", err)
	}
	if b.simple {
		return 1<<48 | look.tree, nil
	}
	return look.tree, nil
}

// remove destroys a subvolume, and its qgroup where the kernel does not (before 6.11 that stays for level 0).
func (b *Btrfs) remove(path string) error {
	var group uint64
	err := within(path, os.O_RDONLY, func(f *os.File) (err error) {
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Ino != btrfsSubvolRoot {
			return fmt.Errorf("not a subvolume (%w)", err)
		}
		group, err = b.group(f)
		return err
	})
	if err != nil {
		return err
	}
	return within(filepath.Dir(path), os.O_RDONLY, func(f *os.File) error {
		if b.simple {
			_ = ioctl(f, btrfsQgroupAssign, &btrfsAssign{0, group & (1<<48 - 1), group})
			_ = ioctl(f, btrfsQgroupCreate, &btrfsGroup{0, group})
		}
		b.at("ungrouped")
		destroy := func() error {
			var arg btrfsName
			copy(arg.name[:], filepath.Base(path))
			return ioctl(f, btrfsSnapDestroy, &arg)
		}
		err := destroy()
		if errors.Is(err, unix.ENOTEMPTY) { // subvolumes of the tenant's inside
			if err := os.RemoveAll(path); err != nil {
				return err
			}
			return nil
		}
		return err
	})
}

// Delete implements Backend.
func (b *Btrfs) Delete(_ context.Context, id string) error { return b.delete(id, b.remove) }

// Open implements Backend.
func (b *Btrfs) Open(_ context.Context, id string) (string, error) {
	_, err := b.whole(id)
	return b.file(volumesDir, id), err
}

// Close implements Backend.
func (b *Btrfs) Close(_ context.Context, id string) error { return check(id) }

// Usage implements Backend. The kernel counts at commits, some seconds late.
func (b *Btrfs) Usage(_ context.Context, id string) (u Usage, err error) {
	r, err := b.whole(id)
	if err != nil {
		return u, err
	}
	err = within(b.file(volumesDir, id), os.O_RDONLY, func(f *os.File) error {
		group, err := b.group(f)
		if err != nil {
			return err
		}
		text, err := os.ReadFile(fmt.Sprintf("/sys/fs/btrfs/%s/qgroups/%d_%d/referenced", b.fsid, group>>48, group&(1<<48-1)))
		if err != nil {
			return err
		}
		used, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 63)
		u = Usage{Size: r.Spec.Size, Used: node.Bytes(used)}
		return err
	})
	return u, err
}

// Expand implements Expander.
func (b *Btrfs) Expand(_ context.Context, id string, size node.Bytes) error {
	r, err := b.whole(id)
	if err != nil {
		return err
	}
	r.Spec.Size = max(size, r.Spec.Size)
	if err := b.put(id, r); err != nil {
		return err
	}
	b.at("expanding")
	return b.limit(b.file(volumesDir, id), r.Spec.Size)
}

// Clone implements Cloner.
func (b *Btrfs) Clone(_ context.Context, from, id string, s Spec) error {
	if err := limitedDirectory(KindBtrfs, s); err != nil {
		return err
	}
	return b.snapshot(from, id, record{Spec: s})
}

// Snapshot implements Cloner.
func (b *Btrfs) Snapshot(_ context.Context, from, id string) error {
	r, err := b.whole(from)
	if err != nil {
		return err
	}
	return b.snapshot(from, id, record{Spec: r.Spec, Snapshot: true})
}

func (b *Btrfs) snapshot(from, id string, r record) error {
	origin, err := b.whole(from)
	if err != nil {
		return err
	}
	if r.Spec.Size < origin.Spec.Size {
		return fmt.Errorf("clone of volume %s: %s asked, it has %s; ask for as much or more", from, r.Spec.Size, origin.Spec.Size)
	}
	return b.create(id, r, func(path string) error {
		err := within(b.file(volumesDir, from), os.O_RDONLY, func(source *os.File) error {
			return within(filepath.Dir(path), os.O_RDONLY, func(f *os.File) error {
				arg := btrfsNameV2{fd: int64(source.Fd())}
				copy(arg.name[:], filepath.Base(path))
				return ioctl(f, btrfsSnapCreate, &arg)
			})
		})
		if err != nil {
			return fmt.Errorf("snapshot subvolume: %w", err)
		}
		b.at("subvolume")
		return errors.Join(b.limit(path, r.Spec.Size), syncfs(path))
	}, b.remove)
}

// List implements Backend.
func (b *Btrfs) List(context.Context) ([]string, error) { return b.list() }

// Capacity implements Backend.
func (b *Btrfs) Capacity(context.Context) (Capacity, error) { return capacity(b.path) }

func syncfs(path string) error {
	return within(path, os.O_RDONLY, func(f *os.File) error { return unix.Syncfs(int(f.Fd())) })
}

// limitedDirectory refuses what volumes that are directories with a limit, on a file system that the back end is named by, cannot be.
func limitedDirectory(backend string, s Spec) error {
	if err := directoryOnly(backend, backend, s); err != nil {
		return err
	}
	if s.Size <= 0 {
		return errors.New("a volume needs a size")
	}
	return nil
}

// directoryOnly refuses what volumes that are directories cannot be. They have the pool's file system, and may name it where it is known.
func directoryOnly(backend, filesystem string, s Spec) error {
	switch {
	case s.Block:
		return fmt.Errorf("a volume of back end %s cannot be a block volume; pools of back end loop have them", backend)
	case s.Guaranteed:
		return fmt.Errorf("back end %s cannot set space aside; pools of back end loop can", backend)
	case s.Filesystem != "" && s.Filesystem != filesystem:
		return fmt.Errorf("file system %s: a volume of back end %s has that of its pool; leave fsType out", s.Filesystem, backend)
	}
	return nil
}
