package shimtest

import (
	"debug/elf"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var compilers = []variant{plain, {"clang", "clang", ""}}

func openShim(t *testing.T, v variant, name string) *elf.File {
	t.Helper()
	f, err := elf.Open(filepath.Join(libraries(t, v, "shim"), name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func dynamic(t *testing.T, f *elf.File, tag elf.DynTag) []string {
	t.Helper()
	s, err := f.DynString(tag)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestLibraryHeaders: the names by which the loader finds the shims and what is behind them.
func TestLibraryHeaders(t *testing.T) {
	for _, v := range compilers {
		for name, private := range map[string]string{"libcuda.so.1": "libkerfreal-cuda.so.1", "libnvidia-ml.so.1": "libkerfreal-nvidia-ml.so.1"} {
			t.Run(v.name+"/"+name, func(t *testing.T) {
				f := openShim(t, v, name)
				if got := dynamic(t, f, elf.DT_SONAME); !slices.Equal(got, []string{name}) {
					t.Errorf("SONAME %v", got)
				}
				if got := dynamic(t, f, elf.DT_RUNPATH); !slices.Equal(got, []string{"/run/kerf/driver"}) {
					t.Errorf("RUNPATH %v", got)
				}
				// libdl.so.2 holds dlsym before glibc 2.34; the driver comes first, so that nothing hides its names.
				if got := dynamic(t, f, elf.DT_NEEDED); !slices.Equal(got, []string{private, "libdl.so.2", "libc.so.6"}) {
					t.Errorf("NEEDED %v", got)
				}
			})
		}
	}
}

// TestOldGlibc: no symbol's version is later than 2.17, so the shim loads in every image that the driver loads in.
func TestOldGlibc(t *testing.T) {
	for _, v := range compilers {
		for _, name := range []string{"libcuda.so.1", "libnvidia-ml.so.1"} {
			imports, err := openShim(t, v, name).ImportedSymbols()
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range imports {
				var major, minor int
				if n, _ := fmt.Sscanf(s.Version, "GLIBC_%d.%d", &major, &minor); n == 2 && (major > 2 || minor > 17) {
					t.Errorf("%s (%s) needs %s of %s", name, v.name, s.Name, s.Version)
				}
			}
		}
	}
}

// TestExportsAreTheList: the exports are api.def's and nvml.def's, no more and no less.
func TestExportsAreTheList(t *testing.T) {
	for _, v := range compilers {
		for name, def := range map[string]string{"libcuda.so.1": "api.def", "libnvidia-ml.so.1": "nvml.def"} {
			got := exports(t, filepath.Join(libraries(t, v, "shim"), name), "")
			var want []string
			for symbol := range intercepted(t, def) {
				want = append(want, symbol)
			}
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("%s (%s) exports %d names, %s lists %d", name, v.name, len(got), def, len(want))
			}
		}
	}
}

// TestNothingRunsAtLoad: no constructor but the compiler's own, and thread storage small enough for dlopen's reserve.
func TestNothingRunsAtLoad(t *testing.T) {
	for _, v := range compilers {
		for _, name := range []string{"libcuda.so.1", "libnvidia-ml.so.1"} {
			f := openShim(t, v, name)
			if s := f.Section(".init_array"); s != nil && s.Size > 8 {
				t.Errorf("%s (%s): .init_array has %d bytes: something runs at load", name, v.name, s.Size)
			}
			for _, p := range f.Progs {
				if p.Type == elf.PT_TLS && p.Memsz > 16 {
					t.Errorf("%s (%s): %d bytes of thread storage", name, v.name, p.Memsz)
				}
			}
			symbols, err := f.ImportedSymbols()
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range symbols {
				if slices.Contains([]string{"sigaction", "signal", "umask", "exit", "_exit", "abort", "malloc"}, strings.TrimPrefix(s.Name, "__")) {
					t.Errorf("%s (%s) calls %s", name, v.name, s.Name)
				}
			}
		}
	}
}
