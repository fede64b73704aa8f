package hook

import (
	"bytes"
	"errors"
	"fmt"
	"path"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kerf-gpu/kerf/hook/ldcache"
)

// libraries that a share stands in for, by the beginning of their files' names.
var libraries = []string{"libcuda.so", "libnvidia-ml.so"}

// loaders of glibc and musl by architecture. A program names the first in its file.
var loaders = map[string]struct {
	glibc []string
	musl  string
}{
	"amd64": {[]string{"/lib64/ld-linux-x86-64.so.2"}, "/lib/ld-musl-x86_64.so.1"},
	"arm64": {[]string{"/lib/ld-linux-aarch64.so.1", "/lib64/ld-linux-aarch64.so.1"}, "/lib/ld-musl-aarch64.so.1"},
}

// usualDirs are where images have a driver library of their own: of CUDA's forward compatibility, of conda, or of a program
// that names the directory itself.
var usualDirs = []string{
	"/usr/local/cuda*/compat", "/usr/local/cuda*/compat/lib.real", "/usr/local/nvidia/lib", "/usr/local/nvidia/lib64", "/usr/local/lib", "/usr/lib/wsl/lib",
	"/opt/conda/lib", "/opt/conda/cuda-compat", "/opt/conda/envs/*/lib", "/opt/conda/envs/*/cuda-compat",
}

// levelDirs are below each directory that a loader searches, and are searched before it: glibc from 2.33 on, and the ones before.
var levelDirs = []string{"glibc-hwcaps/*", "haswell", "haswell/*", "x86_64", "tls", "tls/*", "atomics"}

// Image is what the plan needs to know of a container's files.
type Image struct {
	Default   []string       // the loader's own directories that are there, in its order
	Cache     *ldcache.Cache // nil: none, or none that the loader could read
	Taken     []string       // files that a loader could find as one of the libraries, or that a program could name
	Libraries []string       // names in LibDir
	ConfDir   bool           // /etc/ld.so.conf.d
}

// readImage looks at a container's files. Its error says why no driver can work there.
func readImage(r *root, env []string) (*Image, error) {
	loader, err := readLoader(r)
	if err != nil {
		return nil, err
	}
	image := &Image{Libraries: r.list(LibDir), Default: defaultDirs(loader)}
	slices.Sort(image.Libraries)
	image.Default = slices.DeleteFunc(image.Default, func(dir string) bool { return !r.isDir(dir) })
	image.ConfDir = r.isDir("/etc/ld.so.conf.d")
	image.Cache = readCache(r)
	dirs := searched(r, env, image.Default)
	for _, pattern := range slices.Concat(usualDirs, envDirs(env, "CONDA_PREFIX", "/lib", "/cuda-compat")) {
		dirs = append(dirs, r.glob(pattern)...)
	}
	read := make(map[file]bool) // most images have /lib as a link to /usr/lib
	for _, dir := range dirs {
		if id, _, err := r.stat(dir); err == nil && !read[id] {
			read[id] = true
			image.Taken = append(image.Taken, r.taken(dir)...)
		}
	}
	if image.Cache != nil {
		for _, e := range image.Cache.Entries {
			if isLibrary(e.Name) && r.isFile(e.Path) {
				image.Taken = append(image.Taken, e.Path)
			}
		}
	}
	image.Taken = slices.DeleteFunc(image.Taken, func(p string) bool { return within(p, Root) })
	slices.Sort(image.Taken)
	image.Taken = slices.Compact(image.Taken)
	return image, nil
}

// readCache is the loader's cache; nil where there is none, or none that the loader could read.
func readCache(r *root) *ldcache.Cache {
	text, err := r.read(ldcache.Path)
	if err != nil {
		return nil
	}
	cache, err := ldcache.Parse(text)
	if err != nil {
		return nil
	}
	return cache
}

// readLoader is the content of glibc's loader.
func readLoader(r *root) ([]byte, error) {
	known, ok := loaders[runtime.GOARCH]
	if !ok {
		return nil, fmt.Errorf("no NVIDIA driver is known for the architecture %s", runtime.GOARCH)
	}
	_, _, muslErr := r.stat(known.musl)
	for _, name := range known.glibc {
		text, err := r.read(name)
		switch {
		case err != nil && !errors.Is(err, unix.ENOENT):
			return nil, fmt.Errorf("read the image's loader %s: %w", name, err)
		case err == nil && bytes.Contains(text, []byte("GLIBC_2.")):
			return text, nil
		case err == nil && muslErr == nil:
			return nil, fmt.Errorf("the image has musl, and %s is a compatibility layer; NVIDIA's driver needs glibc: build the image from Debian, Ubuntu, Fedora or another with glibc", name)
		case err == nil:
			return nil, fmt.Errorf("the image's loader %s is not glibc's; NVIDIA's driver needs glibc", name)
		}
	}
	if muslErr == nil {
		return nil, fmt.Errorf("the image has musl, not glibc: it has %s and no %s. NVIDIA's driver needs glibc: build the image from Debian, Ubuntu, Fedora or another with glibc", known.musl, known.glibc[0])
	}
	return nil, fmt.Errorf("the image has no loader %s for %s, so no program in it can load the driver; build it from an image with glibc (a static program needs no claim for a GPU)", known.glibc[0], runtime.GOARCH)
}

// builtIn are directories as glibc is built with them: with the loader's own separators, which tell them from other text.
var builtIn = []string{"/lib/x86_64-linux-gnu/\x00", "/lib/aarch64-linux-gnu/\x00", "/lib64/\x00", "/usr/lib64/\x00", "/lib/\x00"}

// defaultDirs reads the directories from the loader's file: they are one text after another, each ended by a zero byte.
func defaultDirs(loader []byte) (dirs []string) {
	for _, first := range builtIn {
		at := bytes.Index(loader, []byte(first))
		if at < 0 {
			continue
		}
		for rest := loader[at:]; ; {
			dir, after, found := bytes.Cut(rest, []byte{0})
			if !found || len(dir) < 2 || dir[0] != '/' || dir[len(dir)-1] != '/' {
				return dirs
			}
			dirs, rest = append(dirs, path.Clean(string(dir))), after
		}
	}
	return []string{"/lib64", "/usr/lib64", "/lib", "/usr/lib"}
}

// searched are the directories that a loader searches beside its cache. Its own come first: Plan knows them by these names.
func searched(r *root, env, defaults []string) (dirs []string) {
	for _, dir := range slices.Concat(defaults, libraryPath(env)) {
		for _, level := range levelDirs {
			dirs = append(dirs, r.glob(path.Join(dir, level))...)
		}
		dirs = append(dirs, dir)
	}
	return dirs
}

// libraryPath is LD_LIBRARY_PATH's absolute directories. Relative ones and $ORIGIN depend on the program.
func libraryPath(env []string) []string {
	var dirs []string
	for _, variable := range env {
		if value, ok := strings.CutPrefix(variable, "LD_LIBRARY_PATH="); ok { // the last one counts
			dirs = strings.FieldsFunc(value, func(c rune) bool { return c == ':' || c == ';' })
		}
	}
	return slices.DeleteFunc(dirs, func(dir string) bool { return !path.IsAbs(dir) })
}

func envDirs(env []string, name string, below ...string) (dirs []string) {
	for _, variable := range env {
		if value, ok := strings.CutPrefix(variable, name+"="); ok && path.IsAbs(value) {
			for _, b := range below {
				dirs = append(dirs, path.Join(value, b))
			}
		}
	}
	return dirs
}

func isLibrary(name string) bool {
	return slices.ContainsFunc(libraries, func(l string) bool { return name == l || strings.HasPrefix(name, l+".") })
}

// taken are the files of a directory that have the name of one of the libraries, whatever its version: an ldconfig in the container
// makes the link that a loader follows.
func (r *root) taken(dir string) (found []string) {
	for _, name := range r.list(dir) {
		if isLibrary(name) && r.isFile(path.Join(dir, name)) {
			found = append(found, path.Join(dir, name))
		}
	}
	return found
}

func (r *root) isFile(name string) bool {
	_, mode, err := r.stat(name)
	return err == nil && mode.IsRegular()
}

func (r *root) isDir(name string) bool {
	_, mode, err := r.stat(name)
	return err == nil && mode.IsDir()
}
