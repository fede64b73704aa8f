package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// hierarchy is a mounted tree of control groups: one a controller (version 1), or one for all (version 2).
type hierarchy struct {
	dir     string
	unified bool
}

func hierarchies() ([]hierarchy, error) {
	info, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list the control groups: %w", err)
	}
	defer info.Close()
	var all []hierarchy
	lines := bufio.NewScanner(info)
	for lines.Scan() {
		mount, kind, _ := strings.Cut(lines.Text(), " - ")
		kind, _, _ = strings.Cut(kind, " ")
		if field := strings.Fields(mount); len(field) > 4 && (kind == "cgroup" || kind == "cgroup2") {
			all = append(all, hierarchy{field[4], kind == "cgroup2"})
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("list the control groups: %w", err)
	}
	if len(all) == 0 {
		return nil, errors.New("list the control groups: none is mounted; mount them under /sys/fs/cgroup")
	}
	return all, nil
}

// daemonGroup is the cluster's group of the daemons and shims. Those of the pods are beside it.
const daemonGroup = "daemons"

func makeCgroups(name string) error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range all {
		if h.unified {
			// The kubelet wants them under its root. What the kernel lacks is refused one by one, and the kubelet says so.
			for _, controller := range []string{"cpu", "cpuset", "memory", "pids", "io", "hugetlb"} {
				_ = os.WriteFile(filepath.Join(h.dir, "cgroup.subtree_control"), []byte("+"+controller), 0)
			}
		}
		for _, dir := range []string{filepath.Join(h.dir, name), filepath.Join(h.dir, name, daemonGroup)} {
			if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("make a control group: %w", err)
			}
			if err := inheritCpuset(dir); err != nil {
				return fmt.Errorf("set up a control group: %w", err)
			}
		}
	}
	return nil
}

// inheritCpuset copies the parent's CPUs and memory nodes: version 1 starts a group with none, and lets no process in.
func inheritCpuset(dir string) error {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		if _, err := os.Stat(filepath.Join(filepath.Dir(dir), "cgroup.clone_children")); err != nil {
			return nil
		}
		value, err := os.ReadFile(filepath.Join(filepath.Dir(dir), file))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, file), value, 0); err != nil {
			return err
		}
	}
	return nil
}

// joinCgroups moves this process into the daemons' group.
func joinCgroups(name string) error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range all {
		procs := filepath.Join(h.dir, name, daemonGroup, "cgroup.procs")
		if err := os.WriteFile(procs, []byte(strconv.Itoa(os.Getpid())), 0); err != nil {
			return fmt.Errorf("join the cluster's control group: %w", err)
		}
	}
	return nil
}

// eachCgroup calls f for the directories of the cluster's groups, children first.
func eachCgroup(name string, f func(dir string) error) error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range all {
		var dirs []string
		err := filepath.WalkDir(filepath.Join(h.dir, name), func(path string, entry fs.DirEntry, err error) error {
			if err == nil && entry.IsDir() {
				dirs = append(dirs, path)
			}
			if errors.Is(err, fs.ErrNotExist) { // it went while we walked
				return nil
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("walk the control groups: %w", err)
		}
		for i := len(dirs) - 1; i >= 0; i-- {
			if err := f(dirs[i]); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

// downWithin bounds how long killed processes may take to go: one in the middle of a driver's call takes its time.
const downWithin = 30 * time.Second

// endCgroups kills all processes in the cluster's groups and removes the groups, again and again until they are
// gone: processes fork meanwhile, and the kernel lets go of a group a little after its last process. A group is the
// cluster's alone, so no other's process can be in it, whatever number it has.
func endCgroups(ctx context.Context, name string) error {
	late := time.Now().Add(downWithin)
	for {
		if err := eachCgroup(name, killGroup); err != nil {
			return err
		}
		err := eachCgroup(name, syscall.Rmdir)
		if !errors.Is(err, syscall.EBUSY) {
			return err
		}
		if time.Now().After(late) {
			return fmt.Errorf("control groups %s hold processes %s after SIGKILL (%w); see their cgroup.procs, and run cluster down again", name, downWithin, err)
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
}

// killGroup kills the processes of one group.
func killGroup(dir string) error {
	data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if errors.Is(err, syscall.ENODEV) || errors.Is(err, syscall.EOPNOTSUPP) { // it is going, or has threads only
		return nil
	}
	if err != nil {
		return fmt.Errorf("list a control group: %w", err)
	}
	for _, line := range strings.Fields(string(data)) {
		pid, err := strconv.Atoi(line)
		if err != nil || pid <= 1 { // 0 is a process of another pid namespace
			continue
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("kill process %d: %w", pid, err)
		}
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
