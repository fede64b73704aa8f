package shimtest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// NVIDIA's user-space driver, as Debian packs it. Fetched into the user's cache, unpacked there, never installed:
// apt runs with lists and state of its own and checks signatures with Debian's keyring.
var vendorDrivers = []vendorDriver{
	{"535", "535.261.03-1", 12020},
	{"550", "550.163.01-2", 12040},
}

type vendorDriver struct {
	branch, version string
	cuda            int
}

// debianSources are the suites that hold these packages, on the archive that this machine takes its own packages from.
func debianSources() (string, error) {
	out, err := exec.Command("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages").Output()
	if err != nil {
		return "", fmt.Errorf("ask apt for Debian's archive: %w", err)
	}
	archives := slices.DeleteFunc(strings.Fields(string(out)), func(uri string) bool {
		return !strings.HasSuffix(strings.TrimSuffix(uri, "/"), "/debian") // security updates and others' archives
	})
	if len(archives) == 0 {
		return "", errors.New("apt has no Debian archive among its sources")
	}
	var text strings.Builder
	for _, suite := range []string{"bookworm non-free", "trixie non-free contrib"} {
		fmt.Fprintf(&text, "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s\n", archives[0], suite)
	}
	return text.String(), nil
}

// debian is the cache directory with apt's private state, once it has been set up.
var debian = sync.OnceValues(func() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	if _, err := exec.LookPath("apt-get"); err != nil {
		return "", errors.New("no apt-get here: the vendor's packages are fetched with it")
	}
	dir := filepath.Join(cache, "kerf", "debian")
	for _, d := range []string{"state/lists/partial", "cache/archives/partial", "unpacked"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return "", err
		}
	}
	sources, err := debianSources()
	if err != nil {
		return "", err
	}
	for name, text := range map[string]string{"sources.list": sources, "status": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return "", err
		}
	}
	return dir, nil
})

func apt(dir, wd string, args ...string) error {
	opts := []string{
		"-qq", "-oDir::Etc::sourcelist=" + dir + "/sources.list", "-oDir::Etc::sourceparts=/dev/null",
		"-oDir::State=" + dir + "/state", "-oDir::State::status=" + dir + "/status", "-oDir::Cache=" + dir + "/cache",
		"-oAPT::Sandbox::User=", "-oAPT::Update::Post-Invoke-Success::=",
	}
	cmd := exec.Command("apt-get", append(opts, args...)...)
	cmd.Dir = wd
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("apt-get %v: %w: %s", args, err, out)
	}
	return nil
}

var aptUpdate = sync.OnceValue(func() error {
	dir, err := debian()
	if err != nil {
		return err
	}
	return apt(dir, dir, "update")
})

// unpacked returns the directory with those of the package's files that match; skips where it cannot be had. Only
// they are kept: nvidia-cuda-dev unpacks to 2.7 GB, of which the tests read 3 MB.
func unpacked(t *testing.T, pkg, version string, patterns ...string) string {
	t.Helper()
	dir, err := debian()
	if err != nil {
		t.Skip("vendor package: ", err)
	}
	to := filepath.Join(dir, "unpacked", pkg+"_"+version)
	if _, err := os.Stat(to); err == nil {
		return to
	}
	temp := t.TempDir()
	err = aptUpdate()
	if err == nil {
		err = apt(dir, temp, "download", pkg+"="+version)
	}
	if err != nil {
		t.Skipf("vendor package %s %s cannot be fetched: %v", pkg, version, err)
	}
	debs, _ := filepath.Glob(filepath.Join(temp, "*.deb"))
	if len(debs) != 1 {
		t.Fatalf("apt-get download %s left %v", pkg, debs)
	}
	making := to + ".new"
	os.RemoveAll(making)
	if err := os.MkdirAll(making, 0o755); err != nil {
		t.Fatal(err)
	}
	extract := `dpkg --fsys-tarfile "$1" | tar -x -C "$2" --wildcards "${@:3}"`
	if out, err := exec.Command("bash", append([]string{"-o", "pipefail", "-c", extract, "bash", debs[0], making}, patterns...)...).CombinedOutput(); err != nil {
		t.Fatalf("unpack %s: %v: %s", debs[0], err, out)
	}
	if err := os.Rename(making, to); err != nil {
		t.Fatal(err)
	}
	return to
}

// library returns the path of NVIDIA's libcuda or libnvidia-ml.
func (v vendorDriver) library(t *testing.T, name string) string {
	t.Helper()
	pkg := map[string]string{"libcuda": "libcuda1", "libnvidia-ml": "libnvidia-ml1"}[name]
	found, _ := filepath.Glob(filepath.Join(unpacked(t, pkg, v.version, "*/nvidia/current/*"), "usr/lib/*/nvidia/current", name+".so.[0-9][0-9]*"))
	if len(found) != 1 {
		t.Fatalf("package %s %s holds %v, want one %s.so", pkg, v.version, found, name)
	}
	return found[0]
}

const cudaDev = "12.4.127~12.4.1-2" // nvidia-cuda-dev of trixie: CUDA 12.4's headers and runtime

func cudaToolkit(t *testing.T) string {
	t.Helper()
	return unpacked(t, "nvidia-cuda-dev", cudaDev, "./usr/include/cuda.h", "*/libcudart_static.a")
}
