package mount

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestInside(t *testing.T) {
	r := Below("/var/lib/kubelet")
	for path, want := range map[string]bool{
		"/var/lib/kubelet/pods/u/volumes/v/mount": true,
		"/var/lib/kubelet":                        false,
		"/var/lib/kubelet/":                       false,
		"/var/lib/kubelet-2/x":                    false,
		"/var/lib/kubelet/../x":                   false,
		"/var/lib/kubelet/a/../../x":              false,
		"/var/lib/kubelet/a//b":                   false,
		"/var/lib/kubelet/a/":                     false,
		"var/lib/kubelet/a":                       false,
		"":                                        false,
	} {
		if got := r.Inside(path); got != want {
			t.Errorf("%q: %v, want %v", path, got, want)
		}
	}
}

func TestParseTable(t *testing.T) {
	const text = `22 27 0:20 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw
99 27 8:1 /a\040b /mnt/a\040b\134c ro,nosuid - ext4 /dev/sda1 rw
100 99 8:2 / /mnt/a\040b\134c rw - xfs /dev/sda2 rw
`
	got, err := parseTable(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	want := Table{"/sys": {Device: "0:20"}, `/mnt/a b\c`: {Device: "8:2"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if _, err := parseTable(strings.NewReader("1 2 3\n")); err == nil {
		t.Error("a short line was taken")
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounts need root")
	}
}

// place is a root and a source directory with one file.
func newPlace(t *testing.T) (r Root, dir, source string) {
	t.Helper()
	needRoot(t)
	dir = t.TempDir()
	source = filepath.Join(dir, "source")
	for _, sub := range []string{"root", "source"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(source, "file"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(filepath.Join(dir, "root", "t"), unix.MNT_DETACH) })
	return Below(filepath.Join(dir, "root")), dir, source
}

func TestBind(t *testing.T) {
	r, dir, source := newPlace(t)
	target := filepath.Join(dir, "root", "t")
	if err := r.Bind(source, target, Options{ReadOnly: true, NoExec: true, NoAtime: true}); err != nil {
		t.Fatal(err)
	}
	table, err := ReadTable()
	if err != nil {
		t.Fatal(err)
	}
	if m, ok := table[target]; !ok || !m.ReadOnly {
		t.Errorf("in the table: %+v, %v", m, ok)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(target, &st); err != nil {
		t.Fatal(err)
	}
	const want = unix.ST_RDONLY | unix.ST_NOSUID | unix.ST_NODEV | unix.ST_NOEXEC | unix.ST_NOATIME
	if int(st.Flags)&want != want {
		t.Errorf("flags %#x, want %#x in them", st.Flags, want)
	}
	if mounted, err := Is(target); err != nil || !mounted {
		t.Errorf("Is: %v %v", mounted, err)
	}
	if err := r.Bind(source, target, Options{}); !errors.Is(err, ErrOccupied) {
		t.Errorf("over a mount with a file in it: %v, want ErrOccupied", err)
	}
	for range 2 {
		if err := r.Unbind(target); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Lstat(target); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the target is still there: %v", err)
	}
	if text, err := os.ReadFile(filepath.Join(source, "file")); err != nil || string(text) != "x" {
		t.Errorf("the source: %q %v", text, err)
	}
}

// A pod cannot lead a mount elsewhere, nor have what is not ours removed.
func TestLedAstray(t *testing.T) {
	r, dir, source := newPlace(t)
	root, outside := filepath.Join(dir, "root"), filepath.Join(dir, "outside")
	for _, err := range []error{
		os.Mkdir(outside, 0o755),
		os.Symlink(outside, filepath.Join(root, "link")),
		os.Symlink(source, filepath.Join(dir, "sourcelink")),
		os.WriteFile(filepath.Join(root, "file"), []byte("x"), 0o600),
		os.MkdirAll(filepath.Join(root, "full", "x"), 0o700),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, target := range []string{"link", "link/t", "file", "full", "none/t"} {
		if err := r.Bind(source, filepath.Join(root, target), Options{}); err == nil {
			t.Errorf("bound to %s", target)
		}
	}
	if err := r.Bind(filepath.Join(dir, "sourcelink"), filepath.Join(root, "t"), Options{}); err == nil {
		t.Error("a source that is a link was bound")
	}
	if err := r.Bind(source, filepath.Join(root, "t"), Options{Device: true}); err == nil {
		t.Error("a directory was bound as a device")
	}
	if err := r.Bind(source, filepath.Join(outside, "t"), Options{}); !errors.Is(err, ErrOutside) {
		t.Errorf("outside: %v, want ErrOutside", err)
	}
	for _, target := range []string{"link", "file", "full"} {
		if err := r.Unbind(filepath.Join(root, target)); !errors.Is(err, ErrOccupied) {
			t.Errorf("unbind %s: %v, want ErrOccupied", target, err)
		}
	}
	left, err := os.ReadDir(root)
	if err != nil || len(left) != 3 {
		t.Errorf("in the root are %v (%v), want link, file and full", left, err)
	}
	if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
		t.Errorf("outside: %v %v", left, err)
	}
}

func TestGroup(t *testing.T) {
	_, _, source := newPlace(t)
	const group = 4711
	if err := os.Symlink("/etc/passwd", filepath.Join(source, "link")); err != nil {
		t.Fatal(err)
	}
	if err := Group(source, group); err != nil {
		t.Fatal(err)
	}
	var dir, file, passwd unix.Stat_t
	for path, st := range map[string]*unix.Stat_t{source: &dir, filepath.Join(source, "file"): &file, "/etc/passwd": &passwd} {
		if err := unix.Stat(path, st); err != nil {
			t.Fatal(err)
		}
	}
	if dir.Gid != group || dir.Mode&unix.S_ISGID == 0 || dir.Mode&0o070 != 0o070 || file.Gid != group || file.Mode&0o060 != 0o060 {
		t.Errorf("directory %o of %d, file %o of %d", dir.Mode, dir.Gid, file.Mode, file.Gid)
	}
	if passwd.Gid == group {
		t.Error("a link was followed")
	}
	if err := os.Chown(filepath.Join(source, "file"), -1, 0); err != nil {
		t.Fatal(err)
	}
	if err := Group(source, group); err != nil { // the directory says that it is done
		t.Fatal(err)
	}
	if err := unix.Stat(filepath.Join(source, "file"), &file); err != nil || file.Gid != 0 {
		t.Errorf("the volume was walked again: %d %v", file.Gid, err)
	}
}
