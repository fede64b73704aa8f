package mount

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Table is which places are mount points.
type Table map[string]Mounted

// Mounted is the uppermost mount of a place.
type Mounted struct {
	Device   string // major:minor
	ReadOnly bool   // of the mount, not of the file system
}

// ReadTable reads the mounts of this process's namespace, once.
func ReadTable() (Table, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read the mount table: %w", err)
	}
	defer func() { _ = f.Close() }()
	return parseTable(f)
}

// parseTable reads proc(5)'s mountinfo: id parent device root place options optional… - type source options.
func parseTable(r io.Reader) (Table, error) {
	table := make(Table)
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) < 6 {
			return nil, fmt.Errorf("read the mount table: line %q has %d fields, want 6 or more", lines.Text(), len(f))
		}
		options := strings.Split(f[5], ",")
		table[unescape(f[4])] = Mounted{Device: f[2], ReadOnly: options[0] == "ro"}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read the mount table: %w", err)
	}
	return table, nil
}

// unescape undoes what the kernel does with blanks and backslashes.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace

// Is says whether a path is a mount point; one that is not there is none.
func Is(path string) (bool, error) {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, unix.STATX_TYPE, &st)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return false, nil
	}
	return err == nil && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, err
}
