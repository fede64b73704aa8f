package main

import (
	"context"
	"fmt"
	"os"
)

func downVerb(ctx context.Context, args []string) error {
	l, err := newFlags("down").parse(args, 0, 0)
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("down: it runs as user %d and needs root, as up did; run it with sudo", os.Geteuid())
	}
	release, err := lock(ctx)
	if err != nil {
		return err
	}
	defer release()
	_, found, err := l.readState()
	if err != nil {
		return err
	}
	if !found {
		// An up or a down that was killed at its very first or last step leaves this much.
		_ = os.Remove(l.state() + nextSuffix)
		_ = os.Remove(l.dir) // only if it is empty
		say("no cluster in %s", l.dir)
		return nil
	}
	if err := down(ctx, l); err != nil {
		return fmt.Errorf("stop the cluster: %w", err)
	}
	say("the cluster in %s is gone", l.dir)
	return nil
}

// down removes a cluster, whole or half made, from any step on: each step does nothing where nothing is left for
// it, and the state, which they need, goes last.
func down(ctx context.Context, l layout) error {
	s, err := l.running()
	if err != nil {
		return err
	}
	for _, d := range daemons(l, s) {
		r, found, err := readRecord(l.proc(d.name))
		if err != nil {
			return err
		}
		if found {
			if err := r.kill(ctx); err != nil {
				return err
			}
		}
	}
	// The shims and the pods' processes are in the control groups. They end with SIGKILL as the machine's crash would end them.
	if err := endCgroups(ctx, s.cgroup()); err != nil {
		return err
	}
	if err := unmountAll(l.dir); err != nil {
		return err
	}
	if err := removeLink(ctx, s); err != nil {
		return err
	}
	return removeDir(l)
}

// removeDir removes the directory. The state is in it until all else is gone.
func removeDir(l layout) error {
	entries, err := os.ReadDir(l.dir)
	if err != nil {
		return fmt.Errorf("remove the cluster's directory: %w", err)
	}
	for _, entry := range entries {
		if path := l.dir + "/" + entry.Name(); path != l.state() {
			if err := os.RemoveAll(path); err != nil {
				return fmt.Errorf("remove the cluster's directory: %w", err)
			}
		}
	}
	if err := os.RemoveAll(l.dir); err != nil {
		return fmt.Errorf("remove the cluster's directory: %w", err)
	}
	return nil
}
