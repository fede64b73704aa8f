package rig

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"time"
)

// ticksPerSecond of the times in /proc/PID/stat: USER_HZ, the same on every architecture that Linux has GPUs on.
const ticksPerSecond = 100

// CPU is how much CPU time kerfd takes in so long, in percent of one CPU.
func (r *Rig) CPU(ctx context.Context, during time.Duration) (float64, error) {
	before, err := cpuTicks(r.Pid())
	if err != nil {
		return 0, err
	}
	began := time.Now()
	select {
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-time.After(during):
	}
	after, err := cpuTicks(r.Pid())
	if err != nil {
		return 0, err
	}
	return 100 * float64(after-before) / ticksPerSecond / time.Since(began).Seconds(), nil
}

func cpuTicks(pid int) (uint64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("read CPU time: %w", err)
	}
	return parseTicks(text)
}

// parseTicks adds user and system time of a line of /proc/PID/stat. The name, second, may have spaces and parentheses.
func parseTicks(stat []byte) (uint64, error) {
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	const user, system = 11, 12 // after the name
	if len(fields) <= system {
		return 0, fmt.Errorf("/proc/PID/stat: '%s' has no CPU times", bytes.TrimSpace(stat))
	}
	var sum uint64
	for _, field := range fields[user : system+1] {
		ticks, err := strconv.ParseUint(string(field), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/PID/stat: %w", err)
		}
		sum += ticks
	}
	return sum, nil
}
