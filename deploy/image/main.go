// Command image makes a container image without a container engine: one layer, an archive that is both an OCI layout and what
// docker save writes, so that `ctr images import`, podman, docker and skopeo take it. The same files give the same bytes.
//
//	image --output kerf.tar --tag kerf.dev/kerf:local --entrypoint /usr/bin/kerfd /usr/bin/kerfd=build/bin/kerfd …
//
// A program that is linked dynamically brings its loader and libraries along: they are found by what its ELF headers name, and
// lie in the image where they lie here, so its loader finds them by its own defaults.
package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

// list is a flag that can be given several times.
type list []string

func (l *list) String() string     { return strings.Join(*l, ",") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

// spec is what was asked for.
type spec struct {
	output          string
	tags            list
	labels          list // KEY=VALUE
	libraries       list // by SONAME, beside those that the programs name
	private         list // prefixes of SONAMEs that only a container of another image has
	files           list // PATH=FILE OR DIRECTORY
	entrypoint, env string
}

func run(args []string) error {
	var s spec
	f := flag.NewFlagSet("image", flag.ContinueOnError)
	f.StringVar(&s.output, "output", "", "archive to write")
	f.Var(&s.tags, "tag", "name of the image; several can be given")
	f.Var(&s.labels, "label", "KEY=VALUE; several can be given")
	f.Var(&s.libraries, "library", "a library that is opened at run time, by its SONAME; several can be given")
	f.Var(&s.private, "private", "libraries that begin so are not looked for; several can be given")
	f.StringVar(&s.entrypoint, "entrypoint", "", "program and arguments, separated by commas")
	f.StringVar(&s.env, "path", "/usr/bin", "PATH in the image")
	if err := f.Parse(args); err != nil {
		return err
	}
	s.files = f.Args()
	if s.output == "" || len(s.tags) == 0 {
		return errors.New("--output and --tag are needed; see --help")
	}
	layer, err := s.layer()
	if err != nil {
		return err
	}
	archive, err := s.archive(layer)
	if err != nil {
		return err
	}
	// Whole or absent: an archive that is cut off would be imported.
	temporary := s.output + ".new"
	if err := os.WriteFile(temporary, archive, 0o644); err != nil {
		return fmt.Errorf("write the image: %w", err)
	}
	if err := os.Rename(temporary, s.output); err != nil {
		return fmt.Errorf("write the image: %w", err)
	}
	fmt.Printf("%s: %s, %d MiB\n", s.output, s.tags.String(), len(archive)>>20)
	return nil
}

// base is what every program expects of a system. Nobody is the user of what needs no rights.
func base() tree {
	return tree{
		"etc/passwd":        {data: []byte("root:x:0:0:root:/:/sbin/nologin\nnobody:x:65532:65532:nobody:/:/sbin/nologin\n"), mode: 0o644},
		"etc/group":         {data: []byte("root:x:0:\nnobody:x:65532:\n"), mode: 0o644},
		"etc/nsswitch.conf": {data: []byte("hosts: files dns\n"), mode: 0o644},
		"tmp":               {mode: 0o1777, dir: true},
	}
}

// layer is the one layer, as tar.
func (s spec) layer() ([]byte, error) {
	t := base()
	for _, file := range s.files {
		to, from, found := strings.Cut(file, "=")
		if !found || !path.IsAbs(to) || from == "" {
			return nil, fmt.Errorf("%q is not PATH=FILE; write as in /usr/bin/kerf=build/bin/kerf", file)
		}
		if err := t.add(strings.TrimPrefix(path.Clean(to), "/"), from); err != nil {
			return nil, err
		}
	}
	if err := t.addLibraries(s.libraries, s.private); err != nil {
		return nil, err
	}
	return t.tar()
}

// entry is one path of the image.
type entry struct {
	data []byte
	mode int64
	dir  bool
}

// tree is the image's files, by path without the first slash. Parents need no entry.
type tree map[string]entry

// add puts a file, or all of a directory, at a path. Links are followed: an image has no use for the names beside a file.
func (t tree) add(name, source string) error {
	info, err := os.Stat(source)
	if err != nil {
		return fmt.Errorf("%s is to be /%s and cannot be read (%w); run make build", source, name, err)
	}
	if !info.IsDir() {
		data, err := os.ReadFile(source)
		// Modes are the image's own: a umask of the machine must not change its bytes.
		t[name] = entry{data: data, mode: 0o644 | int64(info.Mode().Perm()&0o100)/0o100*0o111}
		return err
	}
	children, err := os.ReadDir(source)
	if err != nil {
		return err
	}
	for _, child := range children {
		if err := t.add(path.Join(name, child.Name()), filepath.Join(source, child.Name())); err != nil {
			return err
		}
	}
	return nil
}

// archiveTime is that of every file: the image is the same whenever it is made.
var archiveTime = time.Unix(0, 0)

// tar writes the entries and their parents in order, owned by root, without times.
func (t tree) tar() ([]byte, error) {
	for name := range t {
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			if _, there := t[dir]; !there {
				t[dir] = entry{dir: true, mode: 0o755}
			}
		}
	}
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, name := range sorted(t) {
		e := t[name]
		header := tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: e.mode, Size: int64(len(e.data)), ModTime: archiveTime, Format: tar.FormatPAX}
		if e.dir {
			header.Typeflag, header.Name = tar.TypeDir, name+"/"
		}
		if err := w.WriteHeader(&header); err != nil {
			return nil, fmt.Errorf("layer: %s: %w", name, err)
		}
		if _, err := w.Write(e.data); err != nil {
			return nil, fmt.Errorf("layer: %s: %w", name, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("layer: %w", err)
	}
	return out.Bytes(), nil
}

func sorted[V any](m map[string]V) []string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
