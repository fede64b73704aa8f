package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// tunables are the kernel settings that a kubelet sets where they differ. In the node's namespace they read so.
func tunables() map[string]string {
	return map[string]string{
		"vm/overcommit_memory": "1", "vm/panic_on_oom": "0", "kernel/panic": "10", "kernel/panic_on_oops": "1",
		"kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000",
	}
}

// nodeDirs are the directories to make under root before the node's namespace.
func nodeDirs() []string {
	return []string{"etc/cni/net.d", "var/lib/kubelet", "var/lib/containerd", "run/containerd", "run/lock", "kubelet", "containerd", "sys"}
}

// makeNamespace makes the node's mount namespace and keeps it as a mount on a file. The directory is made a mount
// of its own first, and private: the kernel lets no namespace be mounted where the mount would spread into it.
func makeNamespace(ctx context.Context, l layout) error {
	if err := syscall.Mount(l.dir, l.dir, "", syscall.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount %s on itself: %w", l.dir, err)
	}
	if err := syscall.Mount("", l.dir, "", syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make %s private: %w", l.dir, err)
	}
	if err := os.WriteFile(l.namespace(), nil, 0o600); err != nil {
		return fmt.Errorf("make the namespace's file: %w", err)
	}
	// The child has made all mounts when it closes its output, and waits until its input ends.
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "mounts", l.dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	var fault strings.Builder
	cmd.Stderr = &fault
	hold, err := cmd.StdinPipe()
	if err != nil {
		return fmt.Errorf("make the node's namespace: %w", err)
	}
	ready, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("make the node's namespace: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("make the node's namespace: %w", err)
	}
	_, err = io.ReadAll(ready)
	if err == nil && fault.Len() == 0 {
		err = syscall.Mount(fmt.Sprintf("/proc/%d/ns/mnt", cmd.Process.Pid), l.namespace(), "", syscall.MS_BIND, "")
	}
	_ = hold.Close()
	if wait := cmd.Wait(); wait != nil {
		return fmt.Errorf("make the node's namespace: %w: %s", wait, lastLine([]byte(fault.String())))
	}
	if err != nil {
		return fmt.Errorf("keep the node's namespace: %w", err)
	}
	return nil
}

// mountsVerb makes the node's mounts in the namespace that it was started in, which must not be the machine's.
func mountsVerb(_ context.Context, args []string) error {
	if len(args) != 1 {
		return usageError{errors.New("mounts is for cluster up alone; run that")}
	}
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return fmt.Errorf("find the own namespace: %w", err)
	}
	if parent, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", os.Getppid())); err != nil || parent == own {
		return usageError{errors.New("mounts is for cluster up alone, in a namespace of its own; run that")}
	}
	l := layout{args[0]}
	if err := nodeMounts(l); err != nil {
		return err
	}
	if err := os.Stdout.Close(); err != nil {
		return fmt.Errorf("tell that the mounts are made: %w", err)
	}
	_, err = io.ReadAll(os.Stdin)
	return err
}

func nodeMounts(l layout) error {
	// Mounts of the machine come in, the node's do not go out, and pods may ask for Bidirectional among themselves.
	for _, mode := range []uintptr{syscall.MS_SLAVE, syscall.MS_SHARED} {
		if err := syscall.Mount("", "/", "", syscall.MS_REC|mode, ""); err != nil {
			return fmt.Errorf("set the propagation of mounts: %w", err)
		}
	}
	for _, name := range []string{"etc", "var"} {
		options := fmt.Sprintf("lowerdir=/%s,upperdir=%s,workdir=%s", name, l.root(name), l.work(name))
		if err := mount("overlay", "/"+name, "overlay", 0, options); err != nil {
			return err
		}
	}
	binds := [][2]string{{l.root("kubelet"), "/var/lib/kubelet"}, {l.root("containerd"), "/var/lib/containerd"}}
	for path, value := range tunables() {
		file := l.root("sys/" + strings.ReplaceAll(path, "/", "."))
		if err := os.WriteFile(file, []byte(value+"\n"), 0o600); err != nil {
			return fmt.Errorf("write a kernel setting: %w", err)
		}
		binds = append(binds, [2]string{file, "/proc/sys/" + path})
	}
	// The directory stays at its own path where the node's /run hides it. /run is last: it may hold the sources.
	if within(l.dir, "/run") {
		keep := filepath.Join(l.root("run"), strings.TrimPrefix(l.dir, "/run"))
		if err := os.MkdirAll(keep, 0o755); err != nil {
			return fmt.Errorf("make %s: %w", keep, err)
		}
		binds = append(binds, [2]string{l.dir, keep})
	}
	for _, b := range append(binds, [2]string{l.root("run"), "/run"}) {
		if err := mount(b[0], b[1], "", syscall.MS_BIND|syscall.MS_REC, ""); err != nil {
			return err
		}
	}
	return nil
}

func mount(source, target, kind string, flags uintptr, options string) error {
	if err := syscall.Mount(source, target, kind, flags, options); err != nil {
		return fmt.Errorf("mount %s on %s: %w", source, target, err)
	}
	return nil
}

// mountPoints lists the mounts of this process at and under a directory, the latest first.
func mountPoints(r io.Reader, dir string) ([]string, error) {
	var points []string
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		field := strings.Fields(lines.Text())
		if len(field) < 5 {
			return nil, fmt.Errorf("read mountinfo: line %q has %d fields, not the 10 or more that the kernel writes", lines.Text(), len(field))
		}
		if point := unescape.Replace(field[4]); within(point, dir) {
			points = append(points, point)
		}
	}
	slices.Reverse(points)
	return points, lines.Err()
}

// unescape undoes the octal that the kernel writes for what would break its lines.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

// unmountAll unmounts all at and under a directory, and fails if anything is left: what is removed next must be the cluster's only.
func unmountAll(dir string) error {
	for range 3 { // a mount on another's mount point shows only when that is gone
		info, err := os.Open("/proc/self/mountinfo")
		if err != nil {
			return fmt.Errorf("list the mounts: %w", err)
		}
		points, err := mountPoints(info, dir)
		info.Close()
		if err != nil {
			return fmt.Errorf("list the mounts: %w", err)
		}
		if len(points) == 0 {
			return nil
		}
		for _, point := range points {
			if err := syscall.Unmount(point, syscall.MNT_DETACH|umountNoFollow); err != nil && !errors.Is(err, syscall.EINVAL) {
				return fmt.Errorf("unmount %s: %w", point, err)
			}
		}
	}
	return fmt.Errorf("mounts under %s come back; see what makes them in /proc/self/mountinfo", dir)
}

// umountNoFollow is UMOUNT_NOFOLLOW, which package syscall lacks.
const umountNoFollow = 8
