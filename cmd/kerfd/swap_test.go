package main

import (
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

func TestCgroupLimit(t *testing.T) {
	for _, row := range []struct {
		name  string
		files map[string]string
		want  node.Bytes
	}{
		{"none", nil, math.MaxInt64},
		{"version 2, own namespace", map[string]string{"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "536870912\n"}, 512 * node.MiB},
		{"version 2, without a limit", map[string]string{"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}, math.MaxInt64},
		{"version 2, a parent's is lower", map[string]string{"proc/self/cgroup": "0::/pods/x\n", "sys/fs/cgroup/pods/x/memory.max": "max\n", "sys/fs/cgroup/pods/memory.max": "1073741824\n"}, node.GiB},
		{"version 1", map[string]string{"proc/self/cgroup": "3:cpu:/\n9:memory:/pods/x\n0::/\n", "sys/fs/cgroup/memory/pods/x/memory.limit_in_bytes": "536870912\n"}, 512 * node.MiB},
		{"version 1, unlimited", map[string]string{"proc/self/cgroup": "9:memory:/\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}, 9223372036854771712},
	} {
		root := t.TempDir()
		for file, text := range row.files {
			if err := os.MkdirAll(filepath.Dir(filepath.Join(root, file)), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(root, file), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if got := cgroupLimit(root); got != row.want {
			t.Errorf("%s: %d, want %d", row.name, got, row.want)
		}
	}
}

// Over-committed cards promise what they and the pool can hold; others are left alone.
func TestLimitOvercommit(t *testing.T) {
	gpus := []share.GPU{
		{Memory: 128 * node.GiB, Mode: share.ModeOvercommit, Overcommit: 150},
		{Memory: 128 * node.GiB, Mode: share.ModeVGPU},
		{Memory: 128 * node.GiB, Mode: share.ModeOvercommit, Overcommit: 110},
	}
	limitOvercommit(gpus, 64*node.GiB) // half of it for each
	for i, want := range []node.Percent{123, 0, 110} {
		if gpus[i].Overcommit != want {
			t.Errorf("GPU %d promises %d%%, want %d%%", i, gpus[i].Overcommit, want)
		}
	}
	limitOvercommit(gpus, 0)
	if gpus[0].Overcommit != 100 {
		t.Errorf("without a pool: %d%%", gpus[0].Overcommit)
	}
}
