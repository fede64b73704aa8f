package main

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// libraryDirs is where a loader looks without a cache, Debian's directories first. The machine builds for itself.
func libraryDirs(machine elf.Machine) []string {
	triplet := map[elf.Machine]string{elf.EM_X86_64: "x86_64-linux-gnu", elf.EM_AARCH64: "aarch64-linux-gnu"}[machine]
	return []string{"/lib/" + triplet, "/usr/lib/" + triplet, "/lib64", "/usr/lib64", "/lib", "/usr/lib"}
}

// needs is what a file asks of its system: its loader, and libraries by SONAME.
type needs struct {
	machine elf.Machine
	loader  string
	names   []string
}

// readNeeds reads an ELF file. A file of any other kind needs nothing.
func readNeeds(data []byte) (needs, error) {
	if !bytes.HasPrefix(data, []byte(elf.ELFMAG)) {
		return needs{}, nil
	}
	file, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return needs{}, err
	}
	n := needs{machine: file.Machine}
	for _, p := range file.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		path, err := io.ReadAll(p.Open())
		if err != nil {
			return needs{}, err
		}
		n.loader = strings.TrimRight(string(path), "\x00")
	}
	n.names, err = file.ImportedLibraries()
	return n, err
}

// addLibraries adds, for all that is in the image, the loaders and libraries that it names, and what those name in turn.
func (t tree) addLibraries(extra, private []string) error {
	var machine elf.Machine
	have := map[string]bool{} // SONAMEs
	var pending []string
	look := func(name string) error {
		n, err := readNeeds(t[name].data)
		if err != nil {
			return fmt.Errorf("/%s: read its ELF headers: %w", name, err)
		}
		if n.machine != elf.EM_NONE {
			machine = n.machine
		}
		if n.loader != "" {
			have[filepath.Base(n.loader)] = true
			if err := t.addSystem(n.loader); err != nil {
				return fmt.Errorf("/%s: its loader: %w", name, err)
			}
		}
		pending = append(pending, n.names...)
		return nil
	}
	for _, name := range sorted(t) {
		if err := look(name); err != nil {
			return err
		}
	}
	pending = append(pending, extra...)
	for len(pending) > 0 {
		name := pending[0]
		pending = pending[1:]
		hidden := slices.ContainsFunc(private, func(prefix string) bool { return strings.HasPrefix(name, prefix) })
		if have[name] || hidden {
			continue
		}
		have[name] = true
		file, err := findLibrary(libraryDirs(machine), name)
		if err != nil {
			return err
		}
		if err := t.addSystem(file); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if err := look(strings.TrimPrefix(file, "/")); err != nil {
			return err
		}
	}
	return nil
}

// addSystem adds a file of this machine where it is here, as one file whatever links lead to it.
func (t tree) addSystem(file string) error {
	return t.add(strings.TrimPrefix(file, "/"), file)
}

func findLibrary(dirs []string, name string) (string, error) {
	for _, dir := range dirs {
		file := filepath.Join(dir, name)
		if _, err := os.Stat(file); err == nil {
			return file, nil
		} else if !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	return "", fmt.Errorf("%s: needed by a program of the image, and in none of %s; install it", name, strings.Join(dirs, ", "))
}
