package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// Replace writes a file that is whole or absent for those who read it, with this mode whatever the umask. It does not sync: it is
// for what is made again after a crash of the machine. A writer that was killed leaves a file that Temporary finds.
func Replace(path string, content []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), temporary(path))
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err = errors.Join(err, f.Chmod(mode), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

// Temporary is the pattern of what killed writers of the file leave behind; the path may be a pattern itself.
func Temporary(path string) string { return filepath.Join(filepath.Dir(path), temporary(path)) }

func temporary(path string) string { return "." + filepath.Base(path) + ".*.tmp" }
