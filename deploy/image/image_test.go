package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestImageIsReproducible(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "tool")
	write(t, program, "#!/bin/sh\n", 0o700)
	write(t, filepath.Join(dir, "files", "b"), "b", 0o600)
	write(t, filepath.Join(dir, "files", "a", "deep"), "a", 0o644)
	var archives [2][]byte
	for i := range archives {
		output := filepath.Join(dir, "image.tar")
		err := run([]string{
			"--output", output, "--tag", "kerf.dev/test:local", "--tag", "kerf.dev/test:v1", "--label", "version=v1", "--entrypoint", "/usr/bin/tool,--flag",
			"/usr/bin/tool=" + program, "/usr/lib/files=" + filepath.Join(dir, "files"),
		})
		if err != nil {
			t.Fatal(err)
		}
		if archives[i], err = os.ReadFile(output); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(program, archiveTime, archiveTime); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(archives[0], archives[1]) {
		t.Error("the same files gave two archives")
	}
	files := untar(t, archives[0])
	var docker []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	decode(t, files["manifest.json"], &docker)
	if got := strings.Join(docker[0].RepoTags, " "); got != "kerf.dev/test:local kerf.dev/test:v1" {
		t.Errorf("tags %q", got)
	}
	var index struct{ Manifests []descriptor }
	decode(t, files["index.json"], &index)
	if len(index.Manifests) != 2 || index.Manifests[1].Annotations["io.containerd.image.name"] != "kerf.dev/test:v1" {
		t.Errorf("index %+v: want a manifest for each tag", index)
	}
	var manifest struct{ Layers []descriptor }
	decode(t, files[index.Manifests[0].path()], &manifest)
	if manifest.Layers[0].path() != docker[0].Layers[0] {
		t.Error("the two descriptions name two layers")
	}
	layer := untar(t, files[docker[0].Layers[0]])
	for name, want := range map[string]string{"usr/bin/tool": "#!/bin/sh\n", "usr/lib/files/a/deep": "a", "usr/lib/files/b": "b"} {
		if string(layer[name]) != want {
			t.Errorf("%s holds %q, want %q", name, layer[name], want)
		}
	}
}

// This test's own binary may be static; the shell of the machine is not.
func TestLibrariesFollowPrograms(t *testing.T) {
	layer := tree{}
	if err := layer.add("bin/sh", "/bin/sh"); err != nil {
		t.Fatal(err)
	}
	if n, err := readNeeds(layer["bin/sh"].data); err != nil || n.loader == "" {
		t.Skipf("/bin/sh is static here (%v)", err)
	}
	if err := layer.addLibraries([]string{"libm.so.6"}, nil); err != nil {
		t.Fatal(err)
	}
	var names []string
	for name := range layer {
		names = append(names, filepath.Base(name))
	}
	for _, want := range []string{"libc.so.6", "libm.so.6"} {
		if !strings.Contains(strings.Join(names, " "), want) {
			t.Errorf("%s is missing among %s", want, names)
		}
	}
}

func TestRefusals(t *testing.T) {
	output := filepath.Join(t.TempDir(), "image.tar")
	for _, tt := range []struct {
		name string
		args []string
		want string
	}{
		{"no tag", []string{"--output", output}, "--tag"},
		{"no path", []string{"--output", output, "--tag", "a:b", "tool"}, "not PATH=FILE"},
		{"relative", []string{"--output", output, "--tag", "a:b", "usr/bin/tool=/bin/sh"}, "not PATH=FILE"},
		{"not built", []string{"--output", output, "--tag", "a:b", "/usr/bin/kerf-hook=/nonexistent/kerf-hook"}, "run make build"},
		{"unknown library", []string{"--output", output, "--tag", "a:b", "--library", "libnone.so.9"}, "libnone.so.9"},
		{"label", []string{"--output", output, "--tag", "a:b", "--label", "version"}, "not KEY=VALUE"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := run(tt.args); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q in it", err, tt.want)
			}
			if _, err := os.Stat(output); err == nil {
				t.Error("an archive was written")
			}
		})
	}
}

func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

func untar(t *testing.T, data []byte) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	for r := tar.NewReader(bytes.NewReader(data)); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if !header.ModTime.Equal(archiveTime) || header.Uid != 0 {
			t.Errorf("%s has time %s and owner %d", header.Name, header.ModTime, header.Uid)
		}
		if files[header.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}

func decode(t *testing.T, data []byte, into any) {
	t.Helper()
	if err := json.Unmarshal(data, into); err != nil {
		t.Fatalf("%v in %q", err, data)
	}
}
