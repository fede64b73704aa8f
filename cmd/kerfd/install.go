package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/kerf-gpu/kerf/cmd/internal/version"
	"github.com/kerf-gpu/kerf/hook"
	"github.com/kerf-gpu/kerf/hook/cdi"
	"github.com/kerf-gpu/kerf/internal/durable"
)

// installation is what containers of this node need of Kerf, in a directory of the host named by version: a container's configuration
// names these files, and kerfd's own are in an image that goes with the next update.
type installation struct {
	lib  string // the shims
	hook string // the program
}

// marker is in each directory that install makes: nothing else below hostDir is ever removed.
const marker = ".kerf-version"

// install copies what is not there yet, each file whole or not at all.
func install(libDir, hostDir string) (installation, error) {
	dir := filepath.Join(hostDir, "kerf-"+fileName(version.Version))
	in := installation{lib: filepath.Join(dir, "lib"), hook: filepath.Join(dir, "bin", hook.Program)}
	program, err := hookProgram()
	if err != nil {
		return in, err
	}
	files := map[string]string{in.hook: program}
	for _, name := range []string{"libcuda.so.1", "libnvidia-ml.so.1"} {
		files[filepath.Join(in.lib, name)] = filepath.Join(libDir, name)
	}
	for to, from := range files {
		if err := copyFile(from, to); err != nil {
			return in, fmt.Errorf("install on the host: %w; kerfd needs to write to kubernetes.hostDir (%s)", err, hostDir)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, marker), nil, 0o644); err != nil {
		return in, fmt.Errorf("install on the host: %w", err)
	}
	return in, nil
}

// removeOthers removes what other versions installed, and no CDI spec names any more: kerfd has just written all of them anew, and one
// that it could not write keeps its version. Running containers keep the files that they have open or mounted.
func (in installation) removeOthers(cdiDir string) error {
	own := filepath.Dir(in.lib)
	others, err := filepath.Glob(filepath.Join(filepath.Dir(own), "*", marker))
	errs := []error{err}
	for _, file := range others {
		dir := filepath.Dir(file)
		if dir == own {
			continue
		}
		named, err := cdi.Mentions(cdiDir, dir+"/")
		if err == nil && !named {
			err = os.RemoveAll(dir)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// hookProgram is the hook in kerfd's own installation.
func hookProgram() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find %s: %w", hook.Program, err)
	}
	return filepath.Join(filepath.Dir(self), hook.Program), nil
}

// copyFile copies a file unless the same bytes are there.
func copyFile(from, to string) error {
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if there, err := os.ReadFile(to); err == nil && bytes.Equal(there, content) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	return durable.Replace(to, content, 0o755)
}

// fileName is a version as it may stand in a path.
func fileName(v string) string {
	return strings.Map(func(r rune) rune {
		if strings.ContainsRune("/ \x00", r) {
			return '-'
		}
		return r
	}, v)
}
