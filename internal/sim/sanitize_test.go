package sim

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestNVMLUnderSanitizers builds the simulated NVML with ASan and UBSan, and calls it with good and bad arguments.
func TestNVMLUnderSanitizers(t *testing.T) {
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		t.Skip("gcc is not installed")
	}
	sources, err := filepath.Glob("nvml/*.c")
	if err != nil || len(sources) == 0 {
		t.Fatal(sources, err)
	}
	libs := fakeLibraries(t)
	flags := []string{"-g", "-O1", "-std=gnu11", "-fPIC", "-fvisibility=hidden", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-w"}
	compile := func(args ...string) {
		t.Helper()
		if out, err := exec.Command(gcc, append(append([]string{}, flags...), args...)...).CombinedOutput(); err != nil {
			t.Fatalf("compile: %v\n%s", err, out)
		}
	}
	compile(append([]string{"-shared", "-Wl,-soname,libnvidia-ml.so.1", "-o", filepath.Join(libs, "libnvidia-ml.so.1")}, sources...)...)
	exe := filepath.Join(t.TempDir(), "exercise")
	compile("-o", exe, "nvml/test/exercise.c", "-ldl", "-lpthread")

	p, err := LoadProfile("a100x8")
	if err != nil {
		t.Fatal(err)
	}
	n, err := Create(filepath.Join(t.TempDir(), "node"), p, libs)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	cmd := exec.Command(exe, filepath.Join(n.Root, libraryDir(), "libnvidia-ml.so.1"))
	cmd.Env = append(os.Environ(), "ASAN_OPTIONS=detect_leaks=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
