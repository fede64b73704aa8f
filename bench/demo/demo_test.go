package demo_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kerf-gpu/kerf/bench/demo"
	"github.com/kerf-gpu/kerf/bench/rig"
)

func TestDemo(t *testing.T) {
	bin, err := filepath.Abs("../../build/bin")
	if err != nil {
		t.Fatal(err)
	}
	for _, needed := range []string{"kerfd", "../libexec/kerf/hog", "../lib/kerf/libcuda.so.1"} {
		if _, err := os.Stat(filepath.Join(bin, needed)); err != nil {
			t.Skipf("not built: %v; run 'make build'", err)
		}
	}
	if os.Getuid() != 0 {
		t.Skip("not root: kerf run needs a mount namespace")
	}
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()

	var out strings.Builder
	err = demo.Run(ctx, demo.Options{Bin: bin, Profile: rig.DefaultProfile, Out: &out})
	t.Log(out.String())
	if err != nil {
		t.Fatal(err)
	}
	for _, promised := range []string{"SIMULATED", "ran to its end", "killed, memory back", "refused in every class", "As promised"} {
		if !strings.Contains(out.String(), promised) {
			t.Errorf("the output does not say '%s'", promised)
		}
	}
	if left, err := os.ReadDir(temp); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v (%v)", left, err)
	}
}
