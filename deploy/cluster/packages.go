package main

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// debian is a package that the cluster needs from Debian, and how to see that it is there.
type debian struct {
	name string
	have func() bool
}

func packages() []debian {
	inPath := func(program string) func() bool {
		return func() bool { _, err := exec.LookPath(program); return err == nil }
	}
	return []debian{
		{"runc", inPath("runc")},
		{"iproute2", inPath("ip")},
		{"containernetworking-plugins", func() bool { _, err := os.Stat(filepath.Join(cniPlugins, "host-local")); return err == nil }},
		{"busybox-static", func() bool { return static(busybox) }},
	}
}

const busybox = "/bin/busybox"

// static tells whether a program needs no loader: it is alone in its image.
func static(path string) bool {
	file, err := elf.Open(path)
	if err != nil {
		return false
	}
	defer func() { _ = file.Close() }()
	for _, p := range file.Progs {
		if p.Type == elf.PT_INTERP {
			return false
		}
	}
	return true
}

// installPackages installs what is missing; no package that is there is removed for it.
func installPackages(ctx context.Context) error {
	var missing []string
	for _, p := range packages() {
		if !p.have() {
			missing = append(missing, p.name)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	names := strings.Join(missing, " ")
	if _, err := exec.LookPath("apt-get"); err != nil || os.Geteuid() != 0 {
		return fmt.Errorf("missing: %s; install these packages of Debian, as root with apt-get install %s", names, names)
	}
	say("installing %s", names)
	var last error
	for _, args := range [][]string{{"update", "-qq"}, append([]string{"install", "-y", "-qq", "--no-install-recommends", "--no-remove"}, missing...)} {
		cmd := exec.CommandContext(ctx, "apt-get", args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if out, err := cmd.CombinedOutput(); err != nil {
			last = fmt.Errorf("apt-get %s: %w: %s", args[0], err, lastLine(out))
		}
	}
	for _, p := range packages() {
		if !p.have() {
			if last == nil {
				last = errors.New("apt-get says that it is there")
			}
			return fmt.Errorf("install %s: %w; install it yourself", p.name, last)
		}
	}
	return nil
}
