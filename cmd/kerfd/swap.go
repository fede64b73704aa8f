package main

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

// swapPool is how much of this machine's memory there is for what does not fit over-committed cards.
func swapPool(c SwapConfig) (node.Bytes, error) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0, fmt.Errorf("read the size of this machine's memory: %w", err)
	}
	machine := node.Bytes(info.Totalram * uint64(info.Unit))
	if limit := cgroupLimit("/"); limit < machine {
		machine = limit - min(limit, ownMemory)
	}
	switch {
	case c.HostMemory > machine:
		return 0, fmt.Errorf("config: swap.hostMemory %s: asked for what is swapped out, kerfd may have %s for that; set less, add memory, or raise the memory limit of kerfd's pod", c.HostMemory, machine)
	case c.HostMemory > 0:
		return c.HostMemory, nil
	}
	return machine / 2 / node.MiB * node.MiB, nil
}

// ownMemory is what kerfd itself needs of a limit.
const ownMemory = 256 * node.MiB

// cgroupLimit is the lowest memory limit of this process's control groups, of either version. A container sees its own as the root of
// the hierarchy, or at its path.
func cgroupLimit(root string) node.Bytes {
	lowest := node.Bytes(math.MaxInt64)
	text, _ := os.ReadFile(filepath.Join(root, "proc/self/cgroup"))
	places := []string{""}
	for line := range strings.Lines(string(text)) {
		if parts := strings.SplitN(strings.TrimSpace(line), ":", 3); len(parts) == 3 && (parts[1] == "" || parts[1] == "memory") {
			for dir := parts[2]; dir != "/" && dir != "."; dir = filepath.Dir(dir) {
				places = append(places, dir)
			}
		}
	}
	for _, dir := range places {
		for _, file := range []string{filepath.Join(dir, "memory.max"), filepath.Join("memory", dir, "memory.limit_in_bytes")} {
			text, err := os.ReadFile(filepath.Join(root, "sys/fs/cgroup", file))
			if n, bad := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 63); err == nil && bad == nil {
				lowest = min(lowest, node.Bytes(n))
			}
		}
	}
	return lowest
}

// limitOvercommit lowers what over-committed cards promise to what they and the pool can hold, each with an equal part of it and less what
// is kept free for a context: a tenant that was promised more would wait for room for ever.
func limitOvercommit(gpus []share.GPU, pool node.Bytes) {
	cards := node.Bytes(0)
	for _, g := range gpus {
		if g.Mode == share.ModeOvercommit {
			cards++
		}
	}
	for i := range gpus {
		if g := &gpus[i]; g.Mode == share.ModeOvercommit && g.Memory >= 100 {
			g.Overcommit = max(100, min(g.Overcommit, node.Percent((g.Memory-g.Memory/64+pool/cards)/(g.Memory/100))))
		}
	}
}

// warnOvercommit says where a card promises less than configured.
func (h *hardware) warnOvercommit() {
	for _, g := range h.shareGPUs() {
		for _, card := range h.cards {
			if card.Mode == share.ModeOvercommit && g.Mode == share.ModeOvercommit && int(g.Overcommit) < card.OvercommitPercent && card.Match.matches(h.node.GPUs[g.Index]) {
				h.log.Warn("a card promises less than configured, for want of host memory for what is swapped out; set swap.hostMemory, or add memory",
					"gpu", g.Index, "askedPercent", card.OvercommitPercent, "promisedPercent", int(g.Overcommit), "hostMemory", h.pool)
				break
			}
		}
	}
}
