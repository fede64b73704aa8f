package main

import (
	"bytes"
	"context"
	"debug/elf"
	"fmt"
	"io/fs"
	"os/exec"
	"path/filepath"
	"strings"
)

// module is a part of the kernel that is loaded at run time.
type module struct {
	name string // as the kernel writes it, with underscores
	data []byte
}

// modules reads the named ones and all that they depend on, each after what it needs. The packages are not configured,
// so there is no modules.dep: a module's own .modinfo says it. Names built into the kernel are left out.
func modules(ctx context.Context, dir string, names []string) ([]module, error) {
	l := loader{ctx: ctx, files: map[string]string{}, done: map[string]bool{}}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if name, _, ok := strings.Cut(filepath.Base(path), ".ko"); err == nil && ok && !d.IsDir() {
			l.files[moduleName(name)] = path
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list the kernel's modules: %w", err)
	}
	builtin, err := readLines(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return nil, err
	}
	for _, path := range builtin {
		l.done[moduleName(strings.TrimSuffix(filepath.Base(path), ".ko"))] = true
	}
	for _, name := range names {
		if err := l.load(moduleName(name), ""); err != nil {
			return nil, err
		}
	}
	return l.modules, nil
}

// moduleName: files have dashes where the kernel's names have underscores, or not.
func moduleName(name string) string { return strings.ReplaceAll(name, "-", "_") }

type loader struct {
	ctx     context.Context
	files   map[string]string
	done    map[string]bool
	modules []module
}

func (l *loader) load(name, forWhom string) error {
	if name == "" || l.done[name] {
		return nil
	}
	l.done[name] = true
	path, ok := l.files[name]
	if !ok {
		return fmt.Errorf("module %s%s: this kernel has none of that name", name, forWhom)
	}
	data, err := decompress(l.ctx, path)
	if err != nil {
		return fmt.Errorf("module %s: %w", name, err)
	}
	needs, err := depends(data)
	if err != nil {
		return fmt.Errorf("module %s: %w", name, err)
	}
	for _, need := range needs {
		if err := l.load(moduleName(need), ", for "+name); err != nil {
			return err
		}
	}
	l.modules = append(l.modules, module{name, data})
	return nil
}

func decompress(ctx context.Context, path string) ([]byte, error) {
	out, err := exec.CommandContext(ctx, "xz", "-dc", path).Output()
	if err != nil {
		return nil, fmt.Errorf("xz -dc %s: %w%s", filepath.Base(path), err, errorText(err))
	}
	return out, nil
}

// depends reads the names that a module needs from its ELF section .modinfo.
func depends(data []byte) ([]string, error) {
	file, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	section := file.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("it has no .modinfo, so it is no module of Linux")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	return modinfo(info, "depends"), nil
}

// modinfo returns the comma-separated values of a key.
func modinfo(info []byte, key string) []string {
	for _, field := range strings.Split(string(info), "\x00") {
		if value, ok := strings.CutPrefix(field, key+"="); ok && value != "" {
			return strings.Split(value, ",")
		}
	}
	return nil
}
