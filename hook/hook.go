package hook

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Run is the program: a hook's arguments, the container's state on stdin. Its error is what the user reads, on one line.
func Run(args []string, stdin io.Reader) error {
	if len(args) > 1 && args[1] == NICVerb {
		return runNIC(args, stdin)
	}
	verb, share, err := ParseArgs(args)
	if err != nil {
		return err
	}
	c, err := readContainer(stdin)
	if err != nil {
		return err
	}
	switch verb {
	case CreateRuntimeVerb:
		return createRuntime(c, share, time.Now())
	case CreateContainerVerb:
		return createContainer(c)
	}
	return fmt.Errorf("%s: unknown subcommand; the CDI spec is of another version of Kerf than this program", verb)
}

func runNIC(args []string, stdin io.Reader) error {
	n, err := parseNIC(args)
	if err != nil {
		return err
	}
	c, err := readContainer(stdin)
	if err != nil {
		return err
	}
	return nics(c, n)
}

// createRuntime checks the container and binds it to the share. Each share of a container is checked with all the others.
func createRuntime(c *container, share Share, now time.Time) error {
	shares, err := Shares(c.spec)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(shares, func(s Share) bool { return s.ID == share.ID }) {
		return fmt.Errorf("the container's configuration does not name share %s; does the runtime hide hooks from it?", share.ID)
	}
	if err := Verify(c.spec, shares); err != nil {
		return err
	}
	if err := look(c.state.Pid, c.rootfs, shares); err != nil {
		return err
	}
	if share.Admin {
		return nil
	}
	binding := bindingOf(c, share.ID, now)
	if err := binding.write(share.Pages); err != nil {
		return err
	}
	if share.Kerfd == "" {
		return nil
	}
	// Without a cgroup of version 2 too: whether the shim alone will do is kerfd's to say, who knows what was claimed.
	return ask(share.Kerfd, binding, askWithin)
}

// createContainer makes the shims what the image's loader finds, and proves it.
func createContainer(c *container) error {
	r, err := openRoot(unix.AT_FDCWD, c.rootfs)
	if err != nil {
		return err
	}
	defer r.close()
	var env []string
	if c.spec.Process != nil {
		env = c.spec.Process.Env
	}
	image, err := readImage(r, env)
	if err != nil {
		return err
	}
	if len(image.Libraries) == 0 {
		return fmt.Errorf("%s is empty in the container: the container runtime has not applied the CDI spec whole", LibDir)
	}
	unwritten, err := apply(r, Plan(image))
	if err != nil {
		return err
	}
	if err := prove(r, image); err != nil {
		if unwritten != nil {
			return fmt.Errorf("%w (%s)", err, strings.ReplaceAll(unwritten.Error(), "\n", "; "))
		}
		return err
	}
	return nil
}
