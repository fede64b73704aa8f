package shimtest

import (
	"os/exec"
	"path/filepath"
	"testing"
)

// TestUnit runs the shim's unit tests plain and under each sanitizer, with both compilers.
func TestUnit(t *testing.T) {
	root := repoRoot(t)
	for _, v := range []variant{
		plain,
		{"asan", "gcc", "-fsanitize=address,undefined"},
		{"tsan", "gcc", "-fsanitize=thread"},
		{"clang-asan", "clang", "-fsanitize=address,undefined"},
	} {
		t.Run(v.name, func(t *testing.T) {
			bin := filepath.Join(t.TempDir(), "unit")
			args := []string{"-O1", "-g", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-o", bin, filepath.Join(root, "vgpu/shim/test/unit.c"), "-lpthread"}
			if v.flags != "" {
				args = append([]string{v.flags, "-fno-sanitize-recover=all"}, args...)
			}
			if out, err := exec.Command(v.cc, args...).CombinedOutput(); err != nil {
				t.Fatalf("compile: %v\n%s", err, out)
			}
			if out, err := exec.Command(bin).CombinedOutput(); err != nil || string(out) != "ok\n" {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}
