package mps

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/kerf-gpu/kerf/internal/node"
)

// The names of NVIDIA's programs.
const (
	controlName = "nvidia-cuda-mps-control"
	serverName  = "nvidia-cuda-mps-server"
)

// binDirs are where the control program is, below a driver root.
var binDirs = []string{"usr/bin", "bin", "usr/local/bin", "usr/local/nvidia/bin", "opt/bin", "home/kubernetes/bin/nvidia/bin"}

// ErrAbsent is wrapped by Find where there is no MPS.
var ErrAbsent = errors.New("MPS is not installed")

// Find is the control program below a driver root. The error is one line: what was looked for, where, and what to do.
func Find(root string) (string, error) {
	var refused error
	for _, dir := range binDirs {
		path := filepath.Join(root, dir, controlName)
		info, err := os.Stat(path)
		switch {
		case err != nil:
		case !info.Mode().IsRegular() || info.Mode()&0o111 == 0:
			refused = fmt.Errorf("%s is there and cannot be executed (mode %s): %w; make it executable, or install the driver's MPS programs anew", path, info.Mode(), ErrAbsent)
		default:
			return path, nil
		}
	}
	if refused != nil {
		return "", refused
	}
	return "", fmt.Errorf("%s is not below %s (looked in %s): %w; install the driver's MPS programs there (they come with NVIDIA's installer, and in packages as nvidia-compute-utils), or use tier time",
		controlName, filepath.Clean(root), strings.Join(binDirs, ", "), ErrAbsent)
}

// Limits hold for each client of a card's server, whatever its environment says. They are the largest that any share of the card has.
type Limits struct {
	Percent node.Percent // of the threads, 1 to 100
	Memory  node.Bytes   // of device memory; 0: no limit
}

// megabytes is how MPS is told of memory, rounded up: the shim holds the exact limit.
func (l Limits) megabytes() uint64 { return uint64((l.Memory + node.MiB - 1) / node.MiB) }

// defaults are the commands that make the limits those of servers to come, and ask for what was made of them. A daemon serves one
// GPU, which is device 0 to it: a limit of a GPU that it does not see would make it drop all limits.
func (l Limits) defaults() []string {
	commands := []string{fmt.Sprintf("set_default_active_thread_percentage %d", l.Percent)}
	if l.Memory > 0 {
		commands = append(commands, fmt.Sprintf("set_default_device_pinned_mem_limit 0 %dM", l.megabytes()))
	}
	return append(commands, "get_default_active_thread_percentage")
}

// running are the commands for a server that there is already. What is set counts for clients that come afterwards.
func (l Limits) running(server int) []string {
	commands := []string{fmt.Sprintf("set_active_thread_percentage %d %d", server, l.Percent)}
	if l.Memory > 0 {
		commands = append(commands, fmt.Sprintf("set_device_pinned_mem_limit %d 0 %dM", server, l.megabytes()))
	}
	return commands
}

// environment is what both the daemon and who commands it go by.
func environment(control, root, pipe, log string, gpu node.UUID) []string {
	env := []string{"CUDA_VISIBLE_DEVICES=" + gpu.String(), "CUDA_MPS_PIPE_DIRECTORY=" + pipe, "CUDA_MPS_LOG_DIRECTORY=" + log,
		"PATH=" + filepath.Dir(control) + ":/usr/local/bin:/usr/bin:/bin"} // it looks for the server there
	if filepath.Clean(root) == "/" {
		return env
	}
	var libraries []string
	for _, dir := range []string{"usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu", "usr/lib64", "usr/lib"} {
		if _, err := os.Stat(filepath.Join(root, dir, "libcuda.so.1")); err == nil {
			libraries = append(libraries, filepath.Join(root, dir))
		}
	}
	return append(env, "LD_LIBRARY_PATH="+strings.Join(libraries, ":"))
}

// commandWithin bounds one conversation with a daemon.
const commandWithin = 5 * time.Second

// tell sends commands to a daemon, and returns the words of its answers.
func tell(ctx context.Context, control string, env []string, commands ...string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, commandWithin)
	defer cancel()
	cmd := exec.CommandContext(ctx, control)
	cmd.Env, cmd.Stdin, cmd.WaitDelay = env, strings.NewReader(strings.Join(commands, "\n")+"\n"), time.Second
	var complaint strings.Builder
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", commands[0], err, strings.Join(strings.Fields(complaint.String()+" "+string(out)), " "))
	}
	return strings.Fields(string(out)), nil
}
