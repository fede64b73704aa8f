package pool_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kerf-gpu/kerf/csi/pool"
	"github.com/kerf-gpu/kerf/csi/pool/pooltest"
	"github.com/kerf-gpu/kerf/internal/node"
)

func TestMain(m *testing.M) {
	pooltest.Main()
	os.Exit(m.Run())
}

func TestDirectory(t *testing.T) {
	pooltest.Run(t, pooltest.Place{Path: t.TempDir(), Backend: pool.KindDir})
}

// inside is a directory in a file system of its own, which lasts as long as the test.
func inside(t *testing.T, filesystem, size, options string, features ...string) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root mounts")
	}
	needs(t, "mkfs."+filesystem)
	dir := t.TempDir()
	file, target := filepath.Join(dir, "disk"), filepath.Join(dir, "mounted")
	say(t, "truncate", "-s", size, file)
	say(t, "mkfs."+filesystem, append(features, "-q", file)...)
	if err := os.Mkdir(target, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "mount", "-o", "loop"+options, file, target).CombinedOutput(); err != nil {
		t.Skipf("this kernel mounts no %s with options %q: %s", filesystem, options, out)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(target, 0); err != nil {
			t.Error(err)
		}
	})
	return filepath.Join(target, "pool")
}

func say(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
}

func TestBtrfs(t *testing.T) {
	pooltest.Run(t, pooltest.Place{Path: inside(t, "btrfs", "2G", ""), Backend: pool.KindBtrfs, Spec: pool.Spec{Size: 32 * node.MiB}, Clones: true})
}

// inner is of volumes with XFS inside, which has at least 300 MiB.
var inner = pool.Spec{Size: 320 * node.MiB, Filesystem: "xfs"}

func TestLoop(t *testing.T) {
	needs(t, "mkfs.xfs")
	place := inside(t, "ext4", "3G", "")
	pooltest.Run(t, pooltest.Place{Path: place, Backend: pool.KindLoop, Spec: inner, Blocks: true, Reserve: true})
}

func TestLoopOnReflink(t *testing.T) {
	needs(t, "mkfs.xfs")
	place := inside(t, "btrfs", "3G", "")
	pooltest.Run(t, pooltest.Place{Path: place, Backend: pool.KindLoop, Spec: inner, Clones: true, Blocks: true})
}

func needs(t *testing.T, tool string) {
	t.Helper()
	if _, err := exec.LookPath(tool); err != nil {
		t.Skipf("no %s here", tool)
	}
}

func TestRefusals(t *testing.T) {
	for _, tt := range []struct {
		config pool.Config
		want   string
	}{
		{pool.Config{Path: "relative"}, "absolute"},
		{pool.Config{Path: "/"}, "absolute"},
		{pool.Config{Path: "/a/../b"}, "absolute"},
		{pool.Config{Path: t.TempDir(), Backend: "zfs"}, "not known; use auto, xfs"},
		{pool.Config{Path: t.TempDir(), Backend: pool.KindDir}, "enforce: none"},
	} {
		if _, err := pool.Open(t.Context(), tt.config); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Open(%+v): %v; want %q", tt.config, err, tt.want)
		}
	}
}
