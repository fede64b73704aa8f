package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/kerf-gpu/kerf/cmd/internal/control"
	"github.com/kerf-gpu/kerf/cmd/internal/tenant"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

func runCommand(o *options) *cobra.Command {
	var request share.Request
	var gpus string
	var burst bool
	cmd := &cobra.Command{
		Use:   "run --memory SIZE [flags] -- COMMAND [ARG…]",
		Short: "Run a program in a slice of a GPU",
		Long: "Run a program in a slice of a GPU. It sees the granted GPUs only, with the slice's memory; one byte more is\n" +
			"CUDA_ERROR_OUT_OF_MEMORY, in this program and nowhere else. Neither the program nor its environment is changed.\n\n" +
			"Exit: the program's own code, 128+N if signal N ended it, 125 no slice, 126 not executable, 127 not found.",
		Example: "  kerf run --memory 16Gi --cores 30 -- python train.py\n  kerf run --memory 2Gi --gpu 3 -- nvidia-smi",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return exitError{exitUsage, errors.New("no command to run; write it after --, as in: kerf run --memory 16Gi -- python train.py")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if !cmd.Flags().Changed("memory") {
				return exitError{exitUsage, errors.New("no --memory: a slice needs a size; write it as in: kerf run --memory 16Gi -- " + strings.Join(args, " "))}
			}
			// A value that is there and empty is a variable that was not set: it must not widen the request.
			switch {
			case cmd.Flags().Changed("gpu") && gpus == "":
				return exitError{exitUsage, errors.New("--gpu: the value is empty; name a GPU by index or UUID, or leave the flag out for any")}
			case cmd.Flags().Changed("gpus") && request.GPUs < 1:
				return exitError{exitUsage, fmt.Errorf("--gpus %d: outside 1 to %d; leave the flag out for one", request.GPUs, share.MaxGPUs)}
			case gpus != "":
				request.GPU = strings.Split(gpus, ",")
			}
			request.Capped = !burst
			// Bad values are refused before anything is asked of kerfd.
			if _, err := request.Normalize(); err != nil {
				return exitError{exitUsage, err}
			}
			return run(cmd.Context(), o.client(), control.GrantRequest{Request: request, Command: strings.Join(args, " ")}, args)
		},
	}
	cmd.Flags().SetInterspersed(false) // flags after the command are the command's
	cmd.Flags().Var(&request.Memory, "memory", "GPU memory, guaranteed and limit, on each GPU: 16Gi, 512Mi")
	cmd.Flags().Var(&request.Cores, "cores", "percent of each GPU's time, 0 to 100; 0 is what others of the class leave, 2 at least for all such together")
	cmd.Flags().IntVar(&request.GPUs, "gpus", 0, "how many GPUs (default 1)")
	cmd.Flags().StringVar(&gpus, "gpu", "", "which GPUs, by index or UUID, separated by commas (default any)")
	cmd.Flags().StringVar((*string)(&request.Class), "class", string(share.Guaranteed), "guaranteed, burstable or besteffort")
	cmd.Flags().BoolVar(&burst, "burst", true, "may use GPU time that others leave; =false: --cores is a limit")
	cmd.Flags().StringVar((*string)(&request.Tier), "tier", string(share.TierTime), "time: one at a time has the GPU; mps: kernels of all run at once, for programs that trust each other")
	completeWith(cmd, "class", share.Classes)
	completeWith(cmd, "tier", share.Tiers)
	return cmd
}

// completeWith offers the words that a flag takes to the shell.
func completeWith[T ~string](cmd *cobra.Command, flag string, words []T) {
	_ = cmd.RegisterFlagCompletionFunc(flag, func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		names := make([]string, len(words))
		for i, word := range words {
			names[i] = string(word)
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	})
}

// run asks for a slice, runs the program in it and gives the slice back. If kerf itself is killed, kerfd sees that and does the last.
func run(ctx context.Context, client *control.Client, request control.GrantRequest, args []string) error {
	program, err := exec.LookPath(args[0])
	if err != nil {
		return notRunnable(args[0], err)
	}
	granted, err := client.Grant(ctx, request)
	if err != nil {
		return exitError{exitRun, err}
	}
	defer func() {
		bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_ = client.Release(bounded, granted.ID) // kerfd may be restarting; it sees us end either way
	}()
	steps := tenant.Plan(granted, tenant.FindHost())
	return supervise(steps, append([]string{program}, args...))
}

func notRunnable(name string, err error) error {
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		return exitError{exitNotFound, fmt.Errorf("command %q: not found; check the name and PATH", name)}
	}
	return exitError{exitNotExecutable, fmt.Errorf("command %q: cannot be executed (%w); check its mode", name, err)}
}

// supervise starts the program in a mount namespace of its own, passes signals on, and ends as it ends.
func supervise(steps []tenant.Step, command []string) error {
	// The child's parent-death signal follows the thread that made it, so this one must live as long as the child.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2)
	defer signal.Stop(signals)

	child, err := start(steps, command)
	if err != nil {
		return exitError{exitRun, err}
	}
	terminal := isTerminal(os.Stdin)
	go func() {
		for s := range signals {
			if terminal && (s == syscall.SIGINT || s == syscall.SIGQUIT) {
				continue // the terminal sends these to the child too
			}
			_ = child.Process.Signal(s)
		}
	}()
	err = child.Wait()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &exit):
		return exitError{exitRun, fmt.Errorf("wait for %s: %w", command[0], err)}
	}
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return exitError{code: 128 + int(status.Signal())}
	}
	return exitError{code: exit.ExitCode()}
}

// start starts the second stage: as root in a new mount namespace, else in a new user namespace too.
func start(steps []tenant.Step, command []string) (*exec.Cmd, error) {
	var err error
	for _, attributes := range []*syscall.SysProcAttr{asRoot(), rootless()} {
		if attributes.Cloneflags&unix.CLONE_NEWUSER == 0 && os.Geteuid() != 0 {
			continue
		}
		var child *exec.Cmd
		if child, err = startStage(steps, command, attributes); err == nil {
			return child, nil
		}
		if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EINVAL) {
			break
		}
	}
	return nil, fmt.Errorf("make namespaces for the program: %w; run as root, or allow user namespaces "+
		"(sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns)", err)
}

func asRoot() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS, Pdeathsig: syscall.SIGTERM}
}

// rootless keeps the user's own id: the program sees itself as whom it is. CAP_SYS_ADMIN is ambient for the second
// stage's mounts, which drops it before it becomes the program.
func rootless() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWUSER, Pdeathsig: syscall.SIGTERM, AmbientCaps: []uintptr{unix.CAP_SYS_ADMIN},
		UidMappings: []syscall.SysProcIDMap{{ContainerID: os.Geteuid(), HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: os.Getegid(), HostID: os.Getegid(), Size: 1}},
	}
}

// startStage runs `kerf enter`, which reads the steps from descriptor 3.
func startStage(steps []tenant.Step, command []string, attributes *syscall.SysProcAttr) (*exec.Cmd, error) {
	text, err := json.Marshal(steps)
	if err != nil {
		return nil, err
	}
	read, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer func() { _ = read.Close() }()
	child := exec.Command("/proc/self/exe", append([]string{"enter", "--"}, command...)...)
	child.Stdin, child.Stdout, child.Stderr = os.Stdin, os.Stdout, os.Stderr
	child.ExtraFiles = []*os.File{read}
	child.SysProcAttr = attributes
	if err := child.Start(); err != nil {
		_ = write.Close()
		return nil, err
	}
	_, err = write.Write(text)
	return child, errors.Join(err, write.Close())
}

// enterCommand is the second stage of kerf run. It is not for people.
func enterCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:    "enter -- PROGRAM ARG0 [ARG…]",
		Hidden: true,
		Args:   cobra.MinimumNArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			var steps []tenant.Step
			pipe := os.NewFile(3, "steps")
			if pipe == nil {
				return exitError{exitUsage, errors.New("enter is a part of kerf run")}
			}
			if err := json.NewDecoder(pipe).Decode(&steps); err != nil {
				return exitError{exitUsage, fmt.Errorf("enter is a part of kerf run: %w", err)}
			}
			_ = pipe.Close()
			runtime.LockOSThread() // capabilities are the thread's, and exec keeps this one
			if err := tenant.Enter(steps); err != nil {
				return exitError{exitRun, err}
			}
			if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
				return exitError{exitRun, fmt.Errorf("drop capabilities: %w", err)}
			}
			return notRunnable(args[0], syscall.Exec(args[0], args[1:], os.Environ()))
		},
	}
	cmd.Flags().SetInterspersed(false)
	return cmd
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
