package pool

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/kerf-gpu/kerf/internal/node"
)

// Directory is a back end whose volumes are plain directories of one file system. It holds nobody to a size.
//
// A volume is volumes/ID. One that is being deleted is gone/ID, so that no half of it is ever found again.
type Directory struct {
	path string
	root *os.Root
}

// OpenDirectory takes a directory, which is made if need be, for a pool.
func OpenDirectory(path string) (*Directory, error) {
	for _, dir := range []string{volumesDir, goneDir} {
		if err := os.MkdirAll(filepath.Join(path, dir), 0o711); err != nil {
			return nil, fmt.Errorf("open pool %s: %w", path, err)
		}
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, fmt.Errorf("open pool %s: %w", path, err)
	}
	return &Directory{path, root}, nil
}

// Create implements Backend.
func (d *Directory) Create(_ context.Context, id string, s Spec) error {
	if err := directoryOnly(KindDir, "", s); err != nil {
		return err
	}
	if err := check(id); err != nil {
		return err
	}
	name := filepath.Join(volumesDir, id)
	if err := d.root.Mkdir(name, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return errors.Join(d.root.Chmod(name, 0o777), syncIn(d.root, volumesDir)) // as an emptyDir: any user of the pod writes
}

// Delete implements Backend.
func (d *Directory) Delete(_ context.Context, id string) error {
	if err := check(id); err != nil {
		return err
	}
	gone := filepath.Join(goneDir, id)
	if err := d.root.RemoveAll(gone); err != nil { // an earlier one's
		return err
	}
	err := d.root.Rename(filepath.Join(volumesDir, id), gone)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return errors.Join(err, syncIn(d.root, volumesDir), d.root.RemoveAll(gone))
}

// Open implements Backend.
func (d *Directory) Open(_ context.Context, id string) (string, error) {
	if err := check(id); err != nil {
		return "", err
	}
	_, err := d.root.Lstat(filepath.Join(volumesDir, id))
	return filepath.Join(d.path, volumesDir, id), err
}

// Close implements Backend.
func (d *Directory) Close(context.Context, string) error { return nil }

// Usage implements Backend. There is no limit, and nothing counts: the file system's figures are those that matter.
func (d *Directory) Usage(_ context.Context, id string) (Usage, error) {
	if err := check(id); err != nil {
		return Usage{}, err
	}
	_, err := d.root.Lstat(filepath.Join(volumesDir, id))
	return Usage{}, err
}

// Expand implements Expander: a volume without a limit has room for any size.
func (d *Directory) Expand(_ context.Context, id string, _ node.Bytes) error {
	if err := check(id); err != nil {
		return err
	}
	_, err := d.root.Lstat(filepath.Join(volumesDir, id))
	return err
}

// List implements Backend.
func (d *Directory) List(context.Context) (ids []string, err error) {
	for _, dir := range []string{volumesDir, goneDir} {
		entries, err := fs.ReadDir(d.root.FS(), dir)
		if err != nil {
			return nil, err
		}
		for _, entry := range entries {
			ids = append(ids, entry.Name())
		}
	}
	return ids, nil
}

// Capacity implements Backend.
func (d *Directory) Capacity(context.Context) (Capacity, error) {
	return capacity(d.path)
}
