package tenant

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kerf-gpu/kerf/cmd/internal/control"
)

var update = flag.Bool("update", false, "write the golden files")

func TestPlan(t *testing.T) {
	simulated := control.Granted{
		ID: "0123456789abcdef", ShareDir: "/run/kerf/shares/0123456789abcdef", LibDir: "/usr/lib/kerf", Simulated: true,
		Driver: control.Driver{
			CUDA: "/run/kerf/sim/usr/lib/libcuda.so.1", NVML: "/run/kerf/sim/usr/lib/libnvidia-ml.so.1",
			Granted: []string{"/run/kerf/sim/dev/nvidia1", "/run/kerf/sim/dev/nvidia-caps/nvidia-cap12"}, Others: []string{"/run/kerf/sim/dev/nvidia0"}, Control: []string{"/run/kerf/sim/dev/nvidiactl"},
		},
	}
	real := control.Granted{
		ID: "0123456789abcdef", ShareDir: "/run/kerf/shares/0123456789abcdef", LibDir: "/usr/lib/kerf",
		Driver: control.Driver{
			CUDA: "/usr/lib/libcuda.so.1", NVML: "/usr/lib/libnvidia-ml.so.1",
			Granted: []string{"/dev/nvidia1"}, Others: []string{"/dev/nvidia0"}, Control: []string{"/dev/nvidiactl"},
		},
	}
	mps := real
	mps.MPS.Pipe, mps.MPS.Memory = "/run/kerf/mps/0011223344556677/pipe", "/run/kerf/mps/0011223344556677/shm"
	for name, steps := range map[string][]Step{
		"mps":       Plan(mps, Host{HasRoot: true, InCache: true}),
		"simulated": Plan(simulated, Host{HasRoot: true}),
		"private":   Plan(simulated, Host{}),
		"real":      Plan(real, Host{HasRoot: true, InCache: true, CUDA: []string{"/usr/lib/libcuda.so.580.95.05"}, NVML: []string{"/usr/lib/libnvidia-ml.so.580.95.05"}}),
	} {
		t.Run(name, func(t *testing.T) {
			got, err := json.MarshalIndent(steps, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata", name+".json")
			if *update {
				if err := os.WriteFile(golden, append(got, '\n'), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got)+"\n"); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// The real driver must be bound under its private name before its file is covered by the shim.
func TestDriverIsTakenBeforeItIsCovered(t *testing.T) {
	g := control.Granted{Driver: control.Driver{CUDA: "/lib/libcuda.so.1"}}
	taken, covered := -1, -1
	for i, step := range Plan(g, Host{InCache: true, CUDA: []string{"/lib/libcuda.so.1"}}) {
		if step.Source == "/lib/libcuda.so.1" {
			taken = i
		}
		if step.Target == "/lib/libcuda.so.1" {
			covered = i
		}
	}
	if taken < 0 || covered < taken {
		t.Errorf("taken at step %d, covered at step %d", taken, covered)
	}
}

func TestInCache(t *testing.T) {
	const listing = "2 libs found in cache `/etc/ld.so.cache'\n\tlibcuda.so.1 (libc6,x86-64) => /usr/lib/libcuda.so.1\n\tlibcudart.so.1 (libc6) => /x\n"
	if diff := cmp.Diff([]string{"/usr/lib/libcuda.so.1"}, inCache(listing, "libcuda.so.1")); diff != "" {
		t.Error(diff)
	}
}
