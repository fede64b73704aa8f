package bench_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/kerf-gpu/kerf/bench"
)

// The scenario runs, every row is measured, and an ADD is one move.
func TestCNIQuick(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root: network namespaces cannot be made")
	}
	dir := t.TempDir()
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "kerf-cni"), "github.com/kerf-gpu/kerf/cmd/kerf-cni")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build kerf-cni: %v: %s", err, out)
	}
	report, err := bench.Run(t.Context(), []string{"cni"}, bench.Options{Bin: dir, Quick: true})
	if err != nil {
		t.Fatal(err)
	}
	scenario, err := bench.Find("cni")
	if err != nil || len(report.Results) != len(scenario.Rows) {
		t.Fatalf("%d results of %d rows, %v", len(report.Results), len(scenario.Rows), err)
	}
	for _, one := range report.Results {
		if one.N == 0 || one.ID == "KF-1003" && one.Value != 1 {
			t.Errorf("%s %s: %v, n %d", one.ID, one.Name, one.Value, one.N)
		}
	}
}
