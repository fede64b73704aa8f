package mps

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/kerf-gpu/kerf/vgpu/arbiter"
)

// found is a process of MPS, and the pipe directory that it was started with.
type found struct {
	arbiter.Process
	pipe   string
	parent int
}

// below are the processes of MPS whose pipe directory lies below one of ours. They are told by their environment, which is theirs from
// exec on and is not to be changed by a tenant, and by their program's name: nobody else is ended for what stands in his environment.
func below(dir string) (all []found, err error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("look for MPS processes: %w", err)
	}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		program, err := os.Readlink(filepath.Join("/proc", entry.Name(), "exe"))
		name := filepath.Base(strings.TrimSuffix(program, " (deleted)"))
		if err != nil || name != controlName && name != serverName {
			continue
		}
		environ, err := os.ReadFile(filepath.Join("/proc", entry.Name(), "environ"))
		pipe := variable(environ, "CUDA_MPS_PIPE_DIRECTORY")
		if err != nil || !strings.HasPrefix(pipe, dir+"/") {
			continue
		}
		process, err := arbiter.FindProcess(pid)
		if err != nil { // ended since
			continue
		}
		all = append(all, found{Process: process, pipe: pipe, parent: parentOf(pid)})
	}
	return all, nil
}

func variable(environ []byte, name string) string {
	for word := range bytes.SplitSeq(environ, []byte{0}) {
		if value, ok := strings.CutPrefix(string(word), name+"="); ok {
			return value
		}
	}
	return ""
}

// parentOf is 0 where it cannot be told.
func parentOf(pid int) int {
	stat, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 2 {
		return 0
	}
	parent, _ := strconv.Atoi(fields[1])
	return parent
}

// leader is the control daemon among the processes of one pipe directory: the one that none of the others has started.
func leader(all []found) (arbiter.Process, bool) {
	for _, p := range all {
		if !slices.ContainsFunc(all, func(q found) bool { return q.PID == p.parent }) {
			return p.Process, true
		}
	}
	return arbiter.Process{}, false
}

// killWithin bounds how long killed processes are waited for: one that hangs in the driver cannot be ended.
const killWithin = 3 * time.Second

// kill ends processes by force, and waits until they are gone.
func kill(all []found) error {
	for _, p := range all {
		if !p.Gone() { // its pid may be another's by now
			_ = syscall.Kill(p.PID, syscall.SIGKILL)
		}
	}
	for late := time.Now().Add(killWithin); ; <-time.After(5 * time.Millisecond) {
		i := slices.IndexFunc(all, func(p found) bool { return !p.Gone() })
		if i < 0 {
			return nil
		}
		if time.Now().After(late) {
			return fmt.Errorf("process %d of MPS does not end %s after SIGKILL; it hangs in the driver, look at dmesg", all[i].PID, killWithin)
		}
	}
}
