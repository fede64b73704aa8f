package nodetest_test

import (
	"debug/elf"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/kerf-gpu/kerf/internal/nodetest"
)

// TestOldLibc: the simulated libraries load in images as old as CentOS 7, whose glibc is 2.17.
func TestOldLibc(t *testing.T) {
	dir := nodetest.SimulatorDir(t)
	for _, name := range []string{"libnvidia-ml.so.1", "libcuda.so.1"} {
		f, err := elf.Open(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		symbols, err := f.ImportedSymbols()
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range symbols {
			var major, minor int
			if n, _ := fmt.Sscanf(s.Version, "GLIBC_%d.%d", &major, &minor); n == 2 && minor > 17 {
				t.Errorf("%s needs %s of %s", name, s.Name, s.Version)
			}
		}
	}
}
