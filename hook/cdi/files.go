package cdi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/kerf-gpu/kerf/internal/durable"
	"tags.cncf.io/container-device-interface/specs-go"
)

// suffix of the names of our files. They are as the CDI library's for specs that come and go, so other tools tell them from lasting ones.
const suffix = ".json"

func (c Class) prefix() string { return Vendor + "-" + string(c) + "_" }

// File is where a device's spec is.
func (c Class) File(dir, name string) string { return filepath.Join(dir, c.prefix()+name+suffix) }

// Write puts a spec in the directory, whole or not at all. It is convergent: a spec that is there already is left alone, so
// runtimes that watch the directory do not read everything again.
//
// It does not sync: after a crash of the machine every claim is prepared again, which writes its spec again.
func Write(dir string, spec *specs.Spec) error {
	if len(spec.Devices) != 1 {
		return fmt.Errorf("write CDI spec: %d devices in one file; one file holds one share", len(spec.Devices))
	}
	text, err := json.MarshalIndent(spec, "", "  ")
	if err != nil {
		return fmt.Errorf("write CDI spec: %w", err)
	}
	text = append(text, '\n')
	file := Class(strings.TrimPrefix(spec.Kind, Vendor+"/")).File(dir, spec.Devices[0].Name)
	if there, err := os.ReadFile(file); err == nil && bytes.Equal(there, text) {
		return nil
	}
	err = durable.Replace(file, text, 0o644)
	if errors.Is(err, fs.ErrNotExist) { // gone since kerfd started: a tmpfs that was made anew, or a hand that was too thorough
		err = errors.Join(os.MkdirAll(dir, 0o755), durable.Replace(file, text, 0o644))
	}
	if err != nil {
		return fmt.Errorf("write CDI spec: %w%s", err, advice(dir, err))
	}
	return nil
}

// advice is what to do about an error.
func advice(dir string, err error) string {
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Sprintf("; make room on the file system of %s (df %s; df -i %s), the claim is tried again", dir, dir, dir)
	case errors.Is(err, syscall.EROFS), errors.Is(err, fs.ErrPermission):
		return fmt.Sprintf("; kerfd must be able to write %s, where the container runtime looks for devices: mount it writable into kerfd's pod, or set kubernetes.cdiDir to the directory that the runtime reads", dir)
	}
	return ""
}

// Remove takes a device's spec away; it is no error that it is not there.
func (c Class) Remove(dir, name string) error {
	if err := os.Remove(c.File(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove CDI spec: %w%s", err, advice(dir, err))
	}
	return nil
}

// List is the names of the devices that have a spec of ours, by the files' names: one that is damaged is listed too, so that it can
// be removed or written again. Other people's files are passed over.
func (c Class) List(dir string) (names []string, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list CDI specs: %w%s", err, advice(dir, err))
	}
	for _, entry := range entries {
		name, ours := strings.CutPrefix(entry.Name(), c.prefix())
		name, whole := strings.CutSuffix(name, suffix)
		if ours && whole && name != "" && !entry.IsDir() {
			names = append(names, name)
		}
	}
	return names, nil
}

// Mentions says whether a spec of ours names a path that begins so.
func Mentions(dir, path string) (bool, error) {
	for _, class := range classes {
		names, err := class.List(dir)
		if err != nil {
			return false, err
		}
		for _, name := range names {
			text, err := os.ReadFile(class.File(dir, name))
			switch {
			case errors.Is(err, fs.ErrNotExist): // removed since
			case err != nil:
				return false, fmt.Errorf("read CDI spec: %w", err)
			case bytes.Contains(text, []byte(`"`+path)):
				return true, nil
			}
		}
	}
	return false, nil
}

// Sweep removes what a killed kerfd left half-written. It is called before the first Write: a file that is being written now is
// not told from one that was.
func Sweep(dir string) error {
	var files []string
	for _, class := range classes {
		half, err := filepath.Glob(durable.Temporary(class.File(dir, "*"))) // no runtime reads files of another suffix, nor does List
		if err != nil {
			return fmt.Errorf("sweep CDI specs: %w", err)
		}
		files = append(files, half...)
	}
	for _, file := range files {
		if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("sweep CDI specs: %w%s", err, advice(dir, err))
		}
	}
	return nil
}
