package tenant

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// usualDirs are where drivers put their libraries without the loader's cache knowing.
var usualDirs = []string{
	"/usr/lib/x86_64-linux-gnu", "/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/lib64", "/usr/lib", "/lib",
	"/usr/lib/wsl/lib", "/usr/local/nvidia/lib64", "/usr/local/nvidia/lib", "/usr/local/cuda/compat", "/usr/local/lib",
}

// usualPatterns are where CUDA's forward compatibility packages put a driver library of their own.
var usualPatterns = []string{"/usr/local/cuda*/compat", os.Getenv("CONDA_PREFIX") + "/cuda-compat", os.Getenv("CONDA_PREFIX") + "/lib"}

// FindHost looks at this machine.
func FindHost() Host {
	listing := loaderListing()
	h := Host{
		CUDA:    find(listing, "libcuda.so.1", "libcuda.so"),
		NVML:    find(listing, "libnvidia-ml.so.1", "libnvidia-ml.so"),
		InCache: len(inCache(listing, "libcuda.so.1")) > 0,
	}
	info, err := os.Stat(Root)
	h.HasRoot = err == nil && info.IsDir()
	return h
}

// FindLibrary is the file that the loader would take for a library, symlinks followed; "" if there is none.
func FindLibrary(name string) string {
	if files := find(loaderListing(), name); len(files) > 0 {
		return files[0]
	}
	return ""
}

// loaderListing is what the loader's cache holds; nothing where there is no ldconfig: the usual directories are searched besides.
func loaderListing() string {
	listing, _ := exec.Command(ldconfig(), "-p").Output()
	return string(listing)
}

func find(listing string, names ...string) (files []string) {
	dirs := slices.Concat(filepath.SplitList(os.Getenv("LD_LIBRARY_PATH")), usualDirs)
	for _, pattern := range usualPatterns {
		found, _ := filepath.Glob(pattern) // the patterns are well formed
		dirs = append(dirs, found...)
	}
	for _, name := range names {
		candidates := inCache(listing, name)
		for _, dir := range dirs {
			candidates = append(candidates, filepath.Join(dir, name))
		}
		for _, candidate := range candidates {
			if file, err := filepath.EvalSymlinks(candidate); err == nil && !slices.Contains(files, file) {
				files = append(files, file)
			}
		}
	}
	return files
}

// inCache reads lines as "	libcuda.so.1 (libc6,x86-64) => /usr/lib/x86_64-linux-gnu/libcuda.so.1".
func inCache(listing, name string) (paths []string) {
	for line := range strings.Lines(listing) {
		file, path, found := strings.Cut(strings.TrimSpace(line), " => ")
		if found && strings.HasPrefix(file, name+" ") {
			paths = append(paths, path)
		}
	}
	return paths
}
