package hook

import (
	"bytes"
	"cmp"
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
	image := &Image{Default: defaultDirs(loader), ConfDir: r.isDir("/etc/ld.so.conf.d")}
	image.Default = slices.DeleteFunc(image.Default, func(dir string) bool { return !r.isDir(dir) })
	if image.Libraries, err = r.list(LibDir, anyName); err != nil {
		return nil, err
	}
	slices.Sort(image.Libraries)
	if image.Cache, err = readCache(r); err != nil {
		return nil, err
	}
	dirs, err := searched(r, env, image.Default)
	if err != nil {
		return nil, err
	}
	image.Taken, err = takenIn(r, dirs, image.Cache)
	return image, err
}

// takenIn are the files in the way in directories and in the cache, outside of Kerf's own directory.
func takenIn(r *root, dirs []string, cache *ldcache.Cache) (taken []string, err error) {
	read := make(map[file]bool) // most images have /lib as a link to /usr/lib
	for _, dir := range dirs {
		id, _, err := r.stat(dir)
		if err != nil || read[id] {
			continue
		}
		read[id] = true
		found, err := r.taken(dir)
		taken = append(taken, found...)
		if err := cmp.Or(err, few("the directories that a loader searches", len(taken), maxNames)); err != nil {
			return nil, err
		}
	}
	if cache != nil {
		for _, e := range cache.Entries {
			if isLibrary(e.Name) && r.isFile(e.Path) {
				taken = append(taken, e.Path)
			}
		}
	}
	taken = slices.DeleteFunc(taken, func(p string) bool { return within(p, Root) })
	slices.Sort(taken)
	taken = slices.Compact(taken)
	return taken, few(ldcache.Path, len(taken), maxNames)
}

// readCache is the loader's cache; nil where there is none, or none that the loader could read. One that is too large here, and not
// for the loader, is an error: without it the image's other libraries would not be found.
func readCache(r *root) (*ldcache.Cache, error) {
	text, err := r.read(ldcache.Path)
	if err == nil {
		var cache *ldcache.Cache
		if cache, err = ldcache.Parse(text); err == nil {
			return cache, nil
		}
	}
	if errors.Is(err, errTooLarge) || errors.Is(err, ldcache.ErrTooLarge) {
		return nil, fmt.Errorf("read the image's %s: %w; make it anew with ldconfig where the image is built", ldcache.Path, err)
	}
	return nil, nil
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

// searched are the directories that a loader searches beside its cache, and those that programs name themselves. The loader's own come
// first: Plan knows them by these names.
func searched(r *root, env, defaults []string) (dirs []string, err error) {
	add := func(base string, patterns ...string) error {
		for _, pattern := range patterns {
			found, err := r.glob(base, pattern)
			dirs = append(dirs, found...)
			if err := cmp.Or(err, few("LD_LIBRARY_PATH and the like", len(dirs), maxDirs)); err != nil {
				return err
			}
		}
		return nil
	}
	for _, dir := range slices.Concat(defaults, libraryPath(env)) {
		if !r.isDir(dir) {
			continue
		}
		if err := add(dir, levelDirs...); err != nil {
			return nil, err
		}
		dirs = append(dirs, dir)
	}
	if err := add("/", usualDirs...); err != nil {
		return nil, err
	}
	return append(dirs, envDirs(env, "CONDA_PREFIX", "/lib", "/cuda-compat")...), nil
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
func (r *root) taken(dir string) ([]string, error) {
	names, err := r.list(dir, isLibrary)
	if err != nil {
		return nil, err
	}
	var found []string
	for _, name := range names {
		if file := path.Join(dir, name); r.isFile(file) {
			found = append(found, file)
		}
	}
	return found, nil
}

func (r *root) isFile(name string) bool {
	_, mode, err := r.stat(name)
	return err == nil && mode.IsRegular()
}

func (r *root) isDir(name string) bool {
	_, mode, err := r.stat(name)
	return err == nil && mode.IsDir()
}
