package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"

	"github.com/kerf-gpu/kerf/csi"
	"github.com/kerf-gpu/kerf/csi/pool"
	"github.com/kerf-gpu/kerf/internal/node"
)

// The rows of storage. Baselines are what the kernel takes for the same, with nothing on record.
var (
	storageCreateRow  = Row{"KF-1100", "CreateVolume, directory; baseline: mkdir and fsync of its parent", "ns", Absolute, bound(10e6), nil}
	storagePublishRow = Row{"KF-1101", "1000 volumes published, 16 at once: until the last is; baseline: mkdir and mount(2) of each", "ns", Absolute, bound(second), nil}
	storageOneRow     = Row{"KF-1102", "each of 1000 NodePublishVolumes, 16 at once; baseline: mkdir and mount(2)", "ns", Absolute, bound(2e6), bound(20e6)}
	storageStartRow   = Row{"KF-1103", "the driver's start with 1000 volumes published, until it serves; baseline: reading their records", "ns", Absolute, bound(second), nil}
	storageLoopRow    = Row{"KF-1105", "CreateVolume, loop, 100 GiB; baseline: a sparse file and mkfs by hand", "ns", Absolute, bound(150e6), nil}
	storageBtrfsRow   = Row{"KF-1106", "CreateVolume, btrfs with a limit; baseline: btrfs subvolume create", "ns", Absolute, bound(10e6), nil}
	storageWriteRow   = Row{"KF-1104", "64 MiB written to a published directory volume and synced; baseline: to a directory beside it", "ns", Absolute, nil, nil}
)

func storageRows() []Row {
	return []Row{storageCreateRow, storagePublishRow, storageOneRow, storageStartRow, storageWriteRow, storageLoopRow, storageBtrfsRow}
}

// storageAtOnce is how many calls are under way together, as after a start of a node.
const storageAtOnce = 16

// depot is a driver with a pool of directories, and a place beside it for the baselines.
type depot struct {
	dir    string
	driver *csi.Driver
	backed pool.Backend
	ids    []string
}

func (d *depot) kubelet(name string) string { return filepath.Join(d.dir, "kubelet", name) }

func (d *depot) open(ctx context.Context) (err error) {
	var damaged error
	d.driver, damaged, err = csi.New(ctx, csi.Config{NodeName: "bench", Version: "bench", KubeletDir: d.kubelet(""), StateDir: filepath.Join(d.dir, "state"),
		RunDir: filepath.Join(d.dir, "run"), Now: time.Now, Pools: []csi.Pool{{Name: "bench", Kind: "dir", Backend: d.backed}}})
	return errors.Join(err, damaged)
}

// runStorage has the driver of scratch volumes do its work on the file system of the temporary directory (TMPDIR).
func runStorage(ctx context.Context, options Options) (m measured, err error) {
	if os.Geteuid() != 0 {
		return m, errors.New("mounts need root; run it by sudo")
	}
	dir, err := os.MkdirTemp("", "kerf-bench-storage-")
	if err != nil {
		return m, err
	}
	d := &depot{dir: dir}
	defer func() { err = errors.Join(err, d.end()) }()
	for _, sub := range []string{"kubelet", "raw", "rawmounts"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			return m, err
		}
	}
	if d.backed, err = pool.OpenDirectory(filepath.Join(dir, "pool")); err != nil {
		return m, err
	}
	if err := d.open(ctx); err != nil {
		return m, err
	}
	volumes, rounds := 1000, 7
	if options.Quick {
		volumes, rounds = 100, 2
	}
	var all []taken
	for _, part := range []func(context.Context, Options, int, int) ([]taken, error){d.creates, d.publishes, d.starts, d.writes, d.kinds} {
		some, err := part(ctx, options, volumes, rounds)
		if err != nil {
			return m, err
		}
		all = append(all, some...)
	}
	results, err := resultsOf(all)
	return measured{results: results, card: "none (no GPU in use)", driver: "none"}, err
}

func timed(do func() error) (float64, error) {
	began := time.Now()
	err := do()
	return float64(time.Since(began)), err
}

// creates makes the volumes, each after a directory that is made by hand.
func (d *depot) creates(ctx context.Context, options Options, volumes, _ int) ([]taken, error) {
	options.progress("storage: %d volumes made", volumes)
	var got, raw []float64
	for i := range volumes {
		took, err := timed(func() error { return makeDir(filepath.Join(d.dir, "raw", fmt.Sprint(i))) })
		if err != nil {
			return nil, err
		}
		raw = append(raw, took)
		took, err = timed(func() error {
			answer, err := d.driver.CreateVolume(ctx, &spec.CreateVolumeRequest{Name: fmt.Sprint("v", i), VolumeCapabilities: []*spec.VolumeCapability{capability()},
				CapacityRange: &spec.CapacityRange{RequiredBytes: int64(node.MiB)}})
			d.ids = append(d.ids, answer.GetVolume().GetVolumeId())
			return err
		})
		if err != nil {
			return nil, err
		}
		got = append(got, took)
	}
	return []taken{{storageCreateRow, got, raw}}, nil
}

func makeDir(path string) error {
	if err := os.Mkdir(path, 0o755); err != nil {
		return err
	}
	parent, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(parent.Sync(), parent.Close())
}

func capability() *spec.VolumeCapability {
	return &spec.VolumeCapability{AccessMode: &spec.VolumeCapability_AccessMode{Mode: spec.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER},
		AccessType: &spec.VolumeCapability_Mount{Mount: &spec.VolumeCapability_MountVolume{}}}
}

// storm does something for each number, several at once.
func storm(n int, do func(int) error) (wall float64, each []float64, err error) {
	each = make([]float64, n)
	errs := make([]error, n)
	next := make(chan int)
	var workers sync.WaitGroup
	began := time.Now()
	for range storageAtOnce {
		workers.Go(func() {
			for i := range next {
				each[i], errs[i] = timed(func() error { return do(i) })
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	workers.Wait()
	return float64(time.Since(began)), each, errors.Join(errs...)
}

func (d *depot) publish(ctx context.Context, i int) error {
	_, err := d.driver.NodePublishVolume(ctx, &spec.NodePublishVolumeRequest{VolumeId: d.ids[i], TargetPath: d.kubelet(fmt.Sprint(i)), VolumeCapability: capability()})
	return err
}

func (d *depot) unpublish(ctx context.Context, i int) error {
	_, err := d.driver.NodeUnpublishVolume(ctx, &spec.NodeUnpublishVolumeRequest{VolumeId: d.ids[i], TargetPath: d.kubelet(fmt.Sprint(i))})
	return err
}

func (d *depot) bindRaw(i int) error {
	target := filepath.Join(d.dir, "rawmounts", fmt.Sprint(i))
	if err := os.Mkdir(target, 0o750); err != nil {
		return err
	}
	return unix.Mount(filepath.Join(d.dir, "raw", fmt.Sprint(i)), target, "", unix.MS_BIND, "")
}

func (d *depot) unbindRaw(i int) error {
	target := filepath.Join(d.dir, "rawmounts", fmt.Sprint(i))
	return errors.Join(unix.Unmount(target, 0), os.Remove(target))
}

func (d *depot) publishes(ctx context.Context, options Options, volumes, rounds int) ([]taken, error) {
	var walls, each, rawWalls, rawEach []float64
	for round := range rounds {
		options.progress("storage: publishing, round %d of %d", round+1, rounds)
		for _, side := range []struct {
			do, undo   func(int) error
			walls, all *[]float64
		}{
			{d.bindRaw, d.unbindRaw, &rawWalls, &rawEach},
			{func(i int) error { return d.publish(ctx, i) }, func(i int) error { return d.unpublish(ctx, i) }, &walls, &each},
		} {
			wall, times, err := storm(volumes, side.do)
			if err != nil {
				return nil, err
			}
			*side.walls, *side.all = append(*side.walls, wall), append(*side.all, times...)
			if _, _, err := storm(volumes, side.undo); err != nil {
				return nil, err
			}
		}
	}
	return []taken{{storagePublishRow, walls, rawWalls}, {storageOneRow, each, rawEach}}, nil
}

// starts measures starts with everything published.
func (d *depot) starts(ctx context.Context, options Options, volumes, rounds int) ([]taken, error) {
	options.progress("storage: %d starts with %d volumes", rounds, volumes)
	if _, _, err := storm(volumes, func(i int) error { return d.publish(ctx, i) }); err != nil {
		return nil, err
	}
	var got, raw []float64
	for range rounds {
		if err := d.driver.Close(); err != nil {
			return nil, err
		}
		took, err := timed(func() error {
			return readAll(filepath.Join(d.dir, "state/volumes"), filepath.Join(d.dir, "run/targets"))
		})
		if err != nil {
			return nil, err
		}
		raw = append(raw, took)
		if took, err = timed(func() error { return d.open(ctx) }); err != nil {
			return nil, err
		}
		got = append(got, took)
	}
	_, _, err := storm(volumes-1, func(i int) error { return d.unpublish(ctx, i+1) }) // the first is written to
	return []taken{{storageStartRow, got, raw}}, err
}

func readAll(dirs ...string) error {
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, entry := range entries {
			if _, err := os.ReadFile(filepath.Join(dir, entry.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

func (d *depot) writes(_ context.Context, options Options, _, rounds int) ([]taken, error) {
	options.progress("storage: %d rounds of writing", rounds)
	var got, raw []float64
	for range rounds {
		for dir, times := range map[string]*[]float64{filepath.Join(d.dir, "raw", "0"): &raw, d.kubelet("0"): &got} {
			took, err := timed(func() error { return writeSome(filepath.Join(dir, "file")) })
			if err != nil {
				return nil, err
			}
			*times = append(*times, took)
		}
	}
	return []taken{{storageWriteRow, got, raw}}, nil
}

func writeSome(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	block := make([]byte, node.MiB)
	for range 64 {
		if _, err := f.Write(block); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	return errors.Join(f.Sync(), f.Close(), os.Remove(path))
}

// end removes everything, mounts first; none that another made is below the directory.
func (d *depot) end() error {
	var errs []error
	if d.driver != nil {
		errs = append(errs, d.driver.Close())
	}
	for _, dir := range []string{"kubelet", "rawmounts"} {
		entries, _ := os.ReadDir(filepath.Join(d.dir, dir))
		for _, entry := range entries {
			_ = unix.Unmount(filepath.Join(d.dir, dir, entry.Name()), unix.MNT_DETACH)
		}
	}
	return errors.Join(append(errs, os.RemoveAll(d.dir))...)
}
