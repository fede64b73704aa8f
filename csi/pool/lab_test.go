package pool_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kerf-gpu/kerf/csi/pool"
	"github.com/kerf-gpu/kerf/csi/pool/pooltest"
	"github.com/kerf-gpu/kerf/internal/node"
)

// onDisk is a directory in a file system on the lab machine's first NVMe disk, which lasts as long as the test.
func onDisk(t *testing.T, options string, mkfs ...string) string {
	t.Helper()
	if os.Getenv("KERF_LAB") != "1" {
		t.Skip("not in a machine of the lab; make lab runs it there")
	}
	const disk = "/dev/nvme0n1"
	target := t.TempDir()
	say(t, mkfs[0], append(mkfs[1:], disk)...)
	filesystem := strings.TrimPrefix(mkfs[0], "mkfs.")
	if err := unix.Mount(disk, target, filesystem, 0, options); err != nil {
		t.Fatalf("mount %s with %q: %v", filesystem, options, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(target, 0); err != nil {
			t.Error(err)
		}
	})
	return filepath.Join(target, "pool")
}

func TestLabXFSQuota(t *testing.T) {
	place := onDisk(t, "prjquota", "mkfs.xfs", "-q", "-f")
	pooltest.Run(t, pooltest.Place{Path: place, Backend: pool.KindXFS, Spec: pool.Spec{Size: 32 * node.MiB}})
}

func TestLabExt4Quota(t *testing.T) {
	place := onDisk(t, "prjquota", "mkfs.ext4", "-q", "-F", "-O", "quota,project")
	pooltest.Run(t, pooltest.Place{Path: place, Backend: pool.KindExt4, Spec: pool.Spec{Size: 32 * node.MiB}})
}

func TestLabLoopOnXFS(t *testing.T) {
	place := onDisk(t, "", "mkfs.xfs", "-q", "-f")
	pooltest.Run(t, pooltest.Place{Path: place, Backend: pool.KindLoop, Spec: pool.Spec{Size: 64 * node.MiB, Filesystem: "ext4"},
		Clones: true, Blocks: true, Reserve: true})
}

// TestLabAuto: a mount without its option gets the next back end, and the report says which option was missing.
func TestLabAuto(t *testing.T) {
	place := onDisk(t, "", "mkfs.xfs", "-q", "-f")
	opened, err := pool.Open(t.Context(), pool.Config{Name: "test", Path: place})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = opened.Close() }()
	if got := opened.Report.String(); opened.Report.Kind != pool.KindLoop || !strings.Contains(got, "prjquota") || !strings.Contains(got, "no ext4 here") {
		t.Error(got)
	}
}
