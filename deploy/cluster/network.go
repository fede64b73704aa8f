package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// freeSlot is one whose bridge is not on this machine.
func freeSlot() (int, error) {
	for slot := range slots {
		if !hasLink(state{Slot: slot}.link()) {
			return slot, nil
		}
	}
	return 0, fmt.Errorf("find a free slot: %d clusters have their bridges here; end some with cluster down", slots)
}

func hasLink(name string) bool {
	_, err := net.InterfaceByName(name)
	return err == nil
}

// makeLink makes the bridge of the pods. The node's address and the API server's are on it. Its MAC is set: else it would be the lowest of its
// ports', another one whenever a pod comes or goes, and the other pods would lose the API server until their ARP entry is found wrong.
func makeLink(ctx context.Context, s state) error {
	for _, args := range [][]string{
		{"link", "add", s.link(), "address", fmt.Sprintf("02:6b:65:72:66:%02x", s.Slot), "type", "bridge"},
		{"addr", "add", s.nodeIP() + "/24", "dev", s.link()},
		{"addr", "add", s.apiIP() + "/32", "dev", s.link()},
		{"link", "set", s.link(), "up"},
	} {
		if err := ip(ctx, args...); err != nil {
			return err
		}
	}
	return nil
}

func removeLink(ctx context.Context, s state) error {
	if !hasLink(s.link()) {
		return nil
	}
	return ip(ctx, "link", "delete", s.link())
}

func ip(ctx context.Context, args ...string) error {
	if out, err := tied(exec.CommandContext(ctx, "ip", args...)).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, lastLine(out))
	}
	return nil
}

// lock keeps other up and down of this machine waiting until its release, or this process's end. It is a socket
// of the kernel's name space, which leaves no file.
func lock(ctx context.Context) (release func(), err error) {
	said := false
	for {
		held, err := net.Listen("unix", "@kerf-cluster")
		if err == nil {
			return func() { _ = held.Close() }, nil
		}
		if !errors.Is(err, syscall.EADDRINUSE) {
			return nil, fmt.Errorf("lock: %w", err)
		}
		if !said {
			say("waiting for another cluster up or down on this machine")
			said = true
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return nil, fmt.Errorf("wait for another cluster up or down: %w", err)
		}
	}
}
