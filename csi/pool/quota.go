package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/kerf-gpu/kerf/internal/node"
)

// Linux's include/uapi/linux/{fs,quota}.h.
const (
	fsGetXattr      = 0x801c581f
	fsSetXattr      = 0x401c5820
	projectInherit  = 0x200
	projectQuota    = 2
	quotaGet        = 0x800007<<8 | projectQuota
	quotaSet        = 0x800008<<8 | projectQuota
	quotaBlockLimit = 1
	quotaUnit       = 1024 // of block limits
)

type (
	fsxattr struct {
		flags, _, _, project, _ uint32
		_                       [8]byte
	}
	dqblk struct {
		hard, soft, space            uint64 // limits in KiB, space in bytes
		inodesHard, inodesSoft, inos uint64
		blockTime, inodeTime         uint64
		valid                        uint32
		_                            uint32
	}
)

// firstProject leaves the low numbers to /etc/projects.
const firstProject = 1 << 20

// counter is the record whose Project is the last that was given out. No volume's id is in capitals.
const counter = "COUNTER"

// Quota is a back end whose volumes are directories with a project quota, on XFS or ext4.
//
// Both have their gaps: an owner of a file may give it another project (FS_IOC_FSSETXATTR) unless it is in a user namespace, and on ext4 a
// process with CAP_SYS_RESOURCE is held to no limit.
type Quota struct {
	*place
	filesystem string
	counting   sync.Mutex // of the counter's record
}

func quotactl(f *os.File, command int, project uint32, q *dqblk) error {
	_, _, errno := unix.Syscall6(unix.SYS_QUOTACTL_FD, f.Fd(), uintptr(command), uintptr(project), uintptr(unsafe.Pointer(q)), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// next gives out a project id that no volume ever had.
func (q *Quota) next() (uint32, error) {
	q.counting.Lock()
	defer q.counting.Unlock()
	r, ok := q.record(counter)
	if !ok {
		r.Project = firstProject
	}
	r.Project++
	return r.Project, q.put(counter, r)
}

func (q *Quota) limit(project uint32, size node.Bytes) error {
	return within(q.path, os.O_RDONLY, func(f *os.File) error {
		limit := (uint64(size) + quotaUnit - 1) / quotaUnit
		if err := quotactl(f, quotaSet, project, &dqblk{hard: limit, soft: limit, valid: quotaBlockLimit}); err != nil {
			return fmt.Errorf("set project quota: %w", err)
		}
		return nil
	})
}

// Create implements Backend.
func (q *Quota) Create(_ context.Context, id string, s Spec) error {
	if err := limitedDirectory(q.filesystem, s); err != nil {
		return err
	}
	if err := check(id); err != nil {
		return err
	}
	r, _ := q.record(id)
	if r.Project == 0 {
		var err error
		if r.Project, err = q.next(); err != nil {
			return err
		}
	}
	r.Spec = s
	return q.create(id, r, func(path string) error {
		if err := q.limit(r.Project, s.Size); err != nil {
			return err
		}
		q.at("limited")
		if err := os.Mkdir(path, 0o777); err != nil {
			return err
		}
		return within(path, os.O_RDONLY, func(f *os.File) error {
			var x fsxattr
			if err := ioctl(f, fsGetXattr, &x); err != nil {
				return err
			}
			x.flags, x.project = x.flags|projectInherit, r.Project
			if err := ioctl(f, fsSetXattr, &x); err != nil {
				return fmt.Errorf("set project id: %w", err)
			}
			return errors.Join(f.Chmod(0o777), f.Sync()) // as an emptyDir: any user of the pod writes
		})
	}, os.RemoveAll)
}

// Delete implements Backend. The quota goes before the record that names it, and after what it counts.
func (q *Quota) Delete(_ context.Context, id string) error {
	r, ok := q.record(id)
	return q.delete(id, func(path string) error {
		if err := os.RemoveAll(path); err != nil || !ok || r.Project == 0 {
			return err
		}
		return q.limit(r.Project, 0)
	})
}

// Open implements Backend.
func (q *Quota) Open(_ context.Context, id string) (string, error) {
	_, err := q.whole(id)
	return q.file(volumesDir, id), err
}

// Close implements Backend.
func (q *Quota) Close(_ context.Context, id string) error { return check(id) }

// Usage implements Backend.
func (q *Quota) Usage(_ context.Context, id string) (u Usage, err error) {
	r, err := q.whole(id)
	if err != nil {
		return u, err
	}
	err = within(q.path, os.O_RDONLY, func(f *os.File) error {
		var d dqblk
		err := quotactl(f, quotaGet, r.Project, &d)
		u = Usage{Size: r.Spec.Size, Used: node.Bytes(d.space), InodesUsed: d.inos}
		return err
	})
	return u, err
}

// Expand implements Expander.
func (q *Quota) Expand(_ context.Context, id string, size node.Bytes) error {
	r, err := q.whole(id)
	if err != nil {
		return err
	}
	r.Spec.Size = max(size, r.Spec.Size)
	if err := q.put(id, r); err != nil {
		return err
	}
	q.at("expanding")
	return q.limit(r.Project, r.Spec.Size)
}

// List implements Backend.
func (q *Quota) List(context.Context) ([]string, error) { return q.list() }

// Capacity implements Backend.
func (q *Quota) Capacity(context.Context) (Capacity, error) { return capacity(q.path) }

// AsTenant runs something on a thread that limits apply to: ext4 holds a process with CAP_SYS_RESOURCE to none.
func AsTenant(do func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var before [2]unix.CapUserData
	if err := unix.Capget(&header, &before[0]); err != nil {
		return err
	}
	without := before
	without[0].Effective &^= 1 << unix.CAP_SYS_RESOURCE
	if err := unix.Capset(&header, &without[0]); err != nil {
		return err
	}
	return errors.Join(do(), unix.Capset(&header, &before[0]))
}
