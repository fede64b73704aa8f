// Package call runs a CNI plugin as a container runtime does, by environment and standard input, in a network namespace that stands for
// a node's, with others that stand for pods. It is for tests and measurements.
package call

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/kerf-gpu/kerf/cni/link"
)

// Call is one invocation.
type Call struct {
	Command, Container, IfName, Netns, Args, Path string
	Stdin                                         []byte
	Env                                           []string // more; a name alone takes the variable away
}

// Answer is what came back.
type Answer struct {
	Code   int // exit status; -1 for a signal
	Stdout []byte
	Stderr string
	Took   time.Duration
}

// Err is the error that a plugin printed; nil where it succeeded. One that fails without saying how has code 0.
func (a Answer) Err() *types.Error {
	if a.Code == 0 {
		return nil
	}
	e := new(types.Error)
	_ = json.Unmarshal(a.Stdout, e) // what is no error object has code 0
	return e
}

func (a Answer) String() string {
	return fmt.Sprintf("exit %d, %s %s", a.Code, bytes.Join(bytes.Fields(a.Stdout), []byte(" ")), strings.TrimSpace(a.Stderr))
}

// Run runs the program in a namespace; host "" is this process's.
func Run(ctx context.Context, program, host string, c Call) (a Answer, err error) {
	cmd := exec.CommandContext(ctx, program)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	for name, value := range map[string]string{"CNI_COMMAND": c.Command, "CNI_CONTAINERID": c.Container, "CNI_IFNAME": c.IfName, "CNI_NETNS": c.Netns, "CNI_ARGS": c.Args, "CNI_PATH": c.Path} {
		if value != "" {
			cmd.Env = append(cmd.Env, name+"="+value)
		}
	}
	cmd.Env = append(cmd.Env, c.Env...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(c.Stdin), &stdout, &stderr
	begin := time.Now()
	err = Inside(host, cmd.Start) // a child is born into its thread's namespace
	if err != nil {
		return a, err
	}
	err = cmd.Wait()
	a = Answer{cmd.ProcessState.ExitCode(), stdout.Bytes(), stderr.String(), time.Since(begin)}
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		err = nil
	}
	return a, err
}

// Inside runs a function in the namespace at a path.
func Inside(path string, do func() error) error {
	if path == "" {
		return do()
	}
	return link.Apart(func() error {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = errors.Join(unix.Setns(fd, unix.CLONE_NEWNET), unix.Close(fd))
		}
		if err != nil {
			return fmt.Errorf("enter namespace %s: %w", path, err)
		}
		return do()
	})
}

// NewNetns makes a network namespace that a file in the directory leads to.
func NewNetns(dir, name string) (path string, err error) {
	path = filepath.Join(dir, name)
	if err = os.WriteFile(path, nil, 0o444); err != nil {
		return "", err
	}
	return path, link.Apart(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		return unix.Mount(fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid()), path, "", unix.MS_BIND, "")
	})
}

// EndNetns ends a namespace, unless something else keeps it.
func EndNetns(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) { // ended before
		err = nil
	}
	return errors.Join(err, os.RemoveAll(path))
}
