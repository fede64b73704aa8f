package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// Images of the cluster's own, made of Debian's busybox. Pods use them with imagePullPolicy: Never.
const (
	pauseImage   = "kerf.dev/pause:local"
	busyboxImage = "kerf.dev/busybox:local"
)

// image is what goes into one: busybox with its commands in /bin, and files.
type image struct {
	name       string
	entrypoint []string
	files      map[string]string // path in the image → file or directory here
}

// write makes an archive as docker save does: one layer, the same bytes for the same files.
func (i image) write(ctx context.Context, w io.Writer) error {
	layer, err := i.layer(ctx)
	if err != nil {
		return err
	}
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux",
		"config": map[string]any{"Entrypoint": i.entrypoint, "Env": []string{"PATH=/bin"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + digest(layer)}},
	})
	if err != nil {
		return fmt.Errorf("encode the image's configuration: %w", err)
	}
	configFile := digest(config) + ".json"
	manifest, err := json.Marshal([]map[string]any{{"Config": configFile, "RepoTags": []string{i.name}, "Layers": []string{"layer.tar"}}})
	if err != nil {
		return fmt.Errorf("encode the image's manifest: %w", err)
	}
	archive := tar.NewWriter(w)
	for _, part := range []struct {
		name string
		data []byte
	}{{"manifest.json", manifest}, {configFile, config}, {"layer.tar", layer}} {
		if err := addFile(archive, part.name, 0o644, part.data); err != nil {
			return fmt.Errorf("write the image: %w", err)
		}
	}
	return archive.Close()
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

func (i image) layer(ctx context.Context) ([]byte, error) {
	commands, err := exec.CommandContext(ctx, busybox, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("list busybox's commands: %w; install busybox-static", err)
	}
	var out bytes.Buffer
	l := layer{tar.NewWriter(&out), map[string]bool{}}
	err = l.add("bin/busybox", busybox)
	for _, command := range strings.Fields(string(commands)) {
		if err == nil && command != "busybox" {
			err = l.w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + command, Linkname: "busybox", Mode: 0o777})
		}
	}
	if err == nil {
		err = l.w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777})
	}
	for _, name := range slices.Sorted(func(yield func(string) bool) {
		for name := range i.files {
			if !yield(name) {
				return
			}
		}
	}) {
		if err == nil {
			err = l.add(strings.TrimPrefix(path.Clean("/"+name), "/"), i.files[name])
		}
	}
	if err == nil {
		err = l.w.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("make the image's layer: %w", err)
	}
	return out.Bytes(), nil
}

// layer is a tar without owners and times.
type layer struct {
	w    *tar.Writer
	dirs map[string]bool
}

// add puts a file, or all of a directory, at a path of the image.
func (l layer) add(name, source string) error {
	return filepath.WalkDir(source, func(file string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(source, file)
		if err != nil {
			return err
		}
		to := path.Join(name, filepath.ToSlash(relative))
		if err := l.parents(path.Dir(to)); err != nil {
			return err
		}
		switch entry.Type() {
		case fs.ModeDir:
			return l.parents(to)
		case fs.ModeSymlink:
			target, err := os.Readlink(file)
			if err != nil {
				return err
			}
			if file != source {
				return l.w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: to, Linkname: target, Mode: 0o777})
			}
		}
		// A link that was named itself stands for its file.
		data, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		info, err := os.Stat(file)
		if err != nil {
			return err
		}
		return addFile(l.w, to, int64(info.Mode().Perm()), data)
	})
}

func (l layer) parents(dir string) error {
	if dir == "." || l.dirs[dir] {
		return nil
	}
	if err := l.parents(path.Dir(dir)); err != nil {
		return err
	}
	l.dirs[dir] = true
	return l.w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755})
}

func addFile(w *tar.Writer, name string, mode int64, data []byte) error {
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: int64(len(data))}); err != nil {
		return err
	}
	_, err := w.Write(data)
	return err
}

// save writes the image to a file.
func (i image) save(ctx context.Context, file string) error {
	out, err := os.OpenFile(file, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("write the image: %w", err)
	}
	defer out.Close()
	if err := i.write(ctx, out); err != nil {
		return err
	}
	return out.Close()
}

// into makes the image and imports it.
func (i image) into(ctx context.Context, l layout, s state) error {
	file, err := os.CreateTemp(l.dir, "image-*.tar")
	if err != nil {
		return fmt.Errorf("import the image: %w", err)
	}
	defer func() { _ = os.Remove(file.Name()) }()
	file.Close()
	if err := i.save(ctx, file.Name()); err != nil {
		return err
	}
	return ctr(ctx, l, s, "images", "import", file.Name())
}

// importOwn imports the images that every cluster has.
func importOwn(ctx context.Context, l layout, s state) error {
	for _, i := range []image{
		{name: pauseImage, entrypoint: []string{"/bin/tail", "-f", "/dev/null"}},
		{name: busyboxImage, entrypoint: []string{"/bin/sh"}},
	} {
		if err := i.into(ctx, l, s); err != nil {
			return fmt.Errorf("import %s: %w", i.name, err)
		}
	}
	return nil
}

func loadVerb(ctx context.Context, args []string) error {
	f := newFlags("load")
	l, err := f.parse(args, 1, -1)
	if err != nil {
		return err
	}
	s, err := l.running()
	if err != nil {
		return err
	}
	for _, file := range f.Args() {
		if err := ctr(ctx, l, s, "images", "import", file); err != nil {
			return fmt.Errorf("load %s: %w", file, err)
		}
	}
	return nil
}

func imageVerb(ctx context.Context, args []string) error {
	f := newFlags("image")
	output := f.String("output", "", "write the archive to this file and import nothing")
	entrypoint := f.String("entrypoint", "/bin/sh", "program and arguments, separated by commas")
	l, err := f.parse(args, 1, -1)
	if err != nil {
		return err
	}
	i := image{name: f.Arg(0), entrypoint: strings.Split(*entrypoint, ","), files: map[string]string{}}
	for _, arg := range f.Args()[1:] {
		to, from, found := strings.Cut(arg, "=")
		if !found || to == "" || from == "" {
			return usageError{fmt.Errorf("image: %q is not PATH=FILE; write as in /bin/kerf=build/bin/kerf", arg)}
		}
		i.files[to] = from
	}
	if *output != "" {
		return i.save(ctx, *output)
	}
	s, err := l.running()
	if err != nil {
		return err
	}
	return i.into(ctx, l, s)
}
