package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"

	"github.com/kerf-gpu/kerf/csi"
	"github.com/kerf-gpu/kerf/csi/pool"
	"github.com/kerf-gpu/kerf/internal/node"
)

// kinds makes volumes of the back ends that hold them to their size.
func (d *depot) kinds(ctx context.Context, options Options, _, rounds int) ([]taken, error) {
	options.progress("storage: volumes of loop devices and of btrfs")
	loop, err := d.loops(ctx, rounds*3)
	if err != nil {
		return nil, err
	}
	btrfs, err := d.subvolumes(ctx, rounds*3)
	return []taken{loop, btrfs}, err
}

// creator is a driver with a pool of one kind, below a directory of its own.
func creator(ctx context.Context, dir, kind string) (create func(name string, size node.Bytes) (float64, error), end func() error, err error) {
	p, err := pool.Open(ctx, pool.Config{Name: kind, Path: filepath.Join(dir, "pool"), Backend: kind})
	if err != nil {
		return nil, nil, err
	}
	driver, damaged, err := csi.New(ctx, csi.Config{NodeName: "bench", Version: "bench", KubeletDir: filepath.Join(dir, "kubelet"), StateDir: filepath.Join(dir, "state"),
		RunDir: filepath.Join(dir, "run"), Now: time.Now, Pools: []csi.Pool{{Name: kind, Kind: kind, Backend: p.Backend}}})
	if err != nil || damaged != nil {
		return nil, nil, errors.Join(err, damaged, p.Close())
	}
	create = func(name string, size node.Bytes) (float64, error) {
		id := ""
		took, err := timed(func() error {
			answer, err := driver.CreateVolume(ctx, &spec.CreateVolumeRequest{Name: name, VolumeCapabilities: []*spec.VolumeCapability{capability()}, CapacityRange: &spec.CapacityRange{RequiredBytes: int64(size)}})
			id = answer.GetVolume().GetVolumeId()
			return err
		})
		if err != nil {
			return 0, err
		}
		_, err = driver.DeleteVolume(ctx, &spec.DeleteVolumeRequest{VolumeId: id})
		return took, err
	}
	return create, func() error { return errors.Join(driver.Close(), p.Close()) }, nil
}

// loops: the pool is in a sparse file system, so that 100 GiB fit whatever the disk has.
func (d *depot) loops(ctx context.Context, rounds int) (t taken, err error) {
	t.row = storageLoopRow
	at := filepath.Join(d.dir, "loops")
	unmount, err := sparse(at, "1T", "mkfs.ext4", "-q", "-F")
	if err != nil {
		return t, err
	}
	defer func() { err = errors.Join(err, unmount()) }()
	create, end, err := creator(ctx, at, pool.KindLoop)
	if err != nil {
		return t, err
	}
	defer func() { err = errors.Join(err, end()) }()
	for i := range rounds {
		took, err := create(fmt.Sprint("v", i), 100*node.GiB)
		if err != nil {
			return t, err
		}
		t.got = append(t.got, took)
		image := filepath.Join(at, "image")
		took, err = timed(func() error {
			if err := os.WriteFile(image, nil, 0o600); err != nil {
				return err
			}
			if err := os.Truncate(image, int64(100*node.GiB)); err != nil {
				return err
			}
			return command("mkfs.xfs", "-q", "-f", "-K", image)
		})
		if err = errors.Join(err, os.Remove(image)); err != nil {
			return t, err
		}
		t.baseline = append(t.baseline, took)
	}
	return t, nil
}

func (d *depot) subvolumes(ctx context.Context, rounds int) (t taken, err error) {
	t.row = storageBtrfsRow
	at := filepath.Join(d.dir, "btrfs")
	unmount, err := sparse(at, "10G", "mkfs.btrfs", "-q")
	if err != nil {
		return t, err
	}
	defer func() { err = errors.Join(err, unmount()) }()
	create, end, err := creator(ctx, at, pool.KindBtrfs)
	if err != nil {
		return t, err
	}
	defer func() { err = errors.Join(err, end()) }()
	for i := range rounds {
		took, err := create(fmt.Sprint("v", i), node.GiB)
		if err != nil {
			return t, err
		}
		t.got = append(t.got, took)
		if took, err = timed(func() error { return command("btrfs", "subvolume", "create", filepath.Join(at, fmt.Sprint("raw", i))) }); err != nil {
			return t, err
		}
		t.baseline = append(t.baseline, took)
	}
	return t, nil
}

// sparse is a file system in a file, mounted on a directory.
func sparse(at, size string, mkfs ...string) (unmount func() error, err error) {
	image := at + ".img"
	if err := errors.Join(os.Mkdir(at, 0o755), command("truncate", "-s", size, image), command(mkfs[0], append(mkfs[1:], image)...), command("mount", "-o", "loop", image, at)); err != nil {
		return nil, err
	}
	return func() error { return errors.Join(unix.Unmount(at, 0), os.Remove(image)) }, nil
}

func command(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, out)
	}
	return nil
}
