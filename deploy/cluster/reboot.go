package main

import (
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

// rebootVerb does to the node what a machine's restart does: every process of it ends without a word and /run is empty. What is in
// /var and the control plane, which would be on other machines, stays.
func rebootVerb(ctx context.Context, args []string) error {
	l, err := newFlags("reboot").parse(args, 0, 0)
	if err != nil {
		return err
	}
	s, err := l.running()
	if err != nil {
		return err
	}
	var node []daemon
	control := map[int]bool{}
	for _, d := range daemons(l, s) {
		r, found, err := readRecord(l.proc(d.name))
		if err != nil {
			return err
		}
		switch {
		case !d.node:
			control[r.PID] = true
			continue
		case found:
			if err := r.kill(ctx); err != nil {
				return err
			}
		}
		node = append(node, d)
	}
	if err := endNode(ctx, s.cgroup(), control); err != nil {
		return err
	}
	if err := emptyRun(l); err != nil {
		return err
	}
	for _, d := range node {
		if err := restart(ctx, l, s, d); err != nil {
			return err
		}
	}
	return nil
}

// endNode kills all processes of the cluster except some, again and again until none is left: shims, containers, and what they start.
func endNode(ctx context.Context, name string, except map[int]bool) error {
	for late := time.Now().Add(downWithin); ; {
		left, err := killOthers(name, except)
		if err != nil || left == 0 {
			return err
		}
		if time.Now().After(late) {
			return fmt.Errorf("%d processes of the node live %s after SIGKILL; see %s/cgroup.procs", left, downWithin, name)
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
}

func killOthers(name string, except map[int]bool) (left int, err error) {
	err = eachCgroup(name, func(dir string) error {
		data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if errors.Is(err, syscall.ENODEV) || errors.Is(err, syscall.EOPNOTSUPP) { // it is going, or has threads only
			return nil
		}
		if err != nil {
			return err
		}
		for _, field := range strings.Fields(string(data)) {
			pid, err := strconv.Atoi(field)
			if err != nil || pid <= 1 || except[pid] || zombie(pid) {
				continue
			}
			left++
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("kill process %d: %w", pid, err)
			}
		}
		return nil
	})
	return left, err
}

// emptyRun removes all in the node's /run, but the mount point of the cluster's own directory where that is there. Mounts
// of the node show in its namespace only: the kernel takes them away with the directories that they are on.
func emptyRun(l layout) error {
	run, keep := l.root("run"), ""
	if within(l.dir, "/run") {
		keep = filepath.Join(run, strings.TrimPrefix(l.dir, "/run"))
	}
	if err := emptyExcept(run, keep); err != nil {
		return fmt.Errorf("empty the node's /run: %w", err)
	}
	for _, name := range nodeDirs() {
		if err := os.MkdirAll(l.root(name), 0o755); err != nil {
			return fmt.Errorf("make the node's directories: %w", err)
		}
	}
	return nil
}

func emptyExcept(dir, keep string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		path := filepath.Join(dir, entry.Name())
		switch {
		case path == keep:
		case keep != "" && within(keep, path):
			if err := emptyExcept(path, keep); err != nil {
				return err
			}
		default:
			if err := os.RemoveAll(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}
