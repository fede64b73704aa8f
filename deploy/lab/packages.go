package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// The suite has igb in QEMU (8.0 and later) and a kernel of 2024; the machine that runs this may be of any other.
const (
	release = "bookworm"
	keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
)

// wanted are the packages; what they depend on comes with them.
var wanted = []string{"qemu-system-x86", "linux-image-amd64", "busybox-static", "dash", "iproute2", "pciutils", "util-linux", "mount", "lvm2", "thin-provisioning-tools",
	"xfsprogs", "e2fsprogs"}

// unneeded are dependencies that only an installed system has a use for.
var unneeded = regexp.MustCompile(`^(systemd|libsystemd-shared|udev|dpkg|coreutils|tar|initramfs-tools|linux-base|debconf|passwd|login|adduser|klibc|libicu|perl|(lib)?python3)`)

// merged are the directories that Debian has below /usr, with a link at the top; packages rely on that.
var merged = []string{"bin", "sbin", "lib", "lib64"}

// root is a directory of unpacked packages. Nothing of it is installed on this machine.
type root struct{ dir string }

// key names the cache's directory: what was asked of which suite.
func key() string {
	sum := sha256.Sum256(fmt.Appendln(nil, release, wanted, unneeded, merged))
	return release + "-" + hex.EncodeToString(sum[:])[:12]
}

// fetch returns the root, and fills the cache before if it lacks it. A directory there is a whole one.
func fetch(ctx context.Context) (root, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return root{}, fmt.Errorf("find the cache directory: %w", err)
	}
	cache = filepath.Join(cache, "kerf/lab")
	r := root{filepath.Join(cache, key())}
	if _, err := os.Stat(r.dir); err == nil {
		return r, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return root{}, fmt.Errorf("look into the cache: %w", err)
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return root{}, fmt.Errorf("make the cache directory: %w", err)
	}
	work, err := os.MkdirTemp(cache, ".fetch-")
	if err != nil {
		return root{}, err
	}
	defer func() { _ = os.RemoveAll(work) }()
	if err := unpack(ctx, work); err != nil {
		return root{}, fmt.Errorf("fetch QEMU and a kernel from Debian: %w", err)
	}
	if err := (root{filepath.Join(work, "root")}).check(ctx); err != nil {
		return root{}, err
	}
	err = os.Rename(filepath.Join(work, "root"), r.dir)
	if errors.Is(err, fs.ErrExist) { // another lab was first
		err = nil
	}
	return r, err
}

// unpack downloads the packages and unpacks them into work/root. Apt has its own state and sources there, and an empty
// list of installed packages, so that it takes all they need and neither reads nor changes this machine's.
func unpack(ctx context.Context, work string) error {
	mirror, err := mirrorOf(ctx)
	if err != nil {
		return err
	}
	sources := ""
	for _, s := range []string{release, release + "-updates", release + "-backports"} {
		sources += fmt.Sprintf("deb [arch=amd64 signed-by=%s] %s %s main\n", keyring, mirror, s)
	}
	err = errors.Join(os.MkdirAll(filepath.Join(work, "lists/partial"), 0o755), os.MkdirAll(filepath.Join(work, "debs/partial"), 0o755),
		os.MkdirAll(filepath.Join(work, "root/usr"), 0o755), os.WriteFile(filepath.Join(work, "status"), nil, 0o600),
		os.WriteFile(filepath.Join(work, "sources.list"), []byte(sources), 0o600))
	if err != nil {
		return err
	}
	var options []string
	for _, o := range []string{"Dir::State=" + work, "Dir::State::lists=" + work + "/lists", "Dir::State::status=" + work + "/status", "Dir::Cache=" + work,
		"Dir::Cache::archives=" + work + "/debs", "Dir::Etc::sourcelist=" + work + "/sources.list", "Dir::Etc::sourceparts=-",
		"APT::Architecture=amd64", "APT::Sandbox::User=", "APT::Install-Recommends=0", "Acquire::Retries=3"} {
		options = append(options, "-o", o)
	}
	fmt.Fprintln(os.Stderr, "fetching QEMU and a kernel from Debian (180 MB, once)")
	install := append([]string{"install", "-y", "-q", "--download-only", "-t", release + "-backports"}, wanted...)
	for _, verb := range [][]string{{"update", "-q"}, install} {
		if err := command(ctx, "apt-get", slices.Concat(options, verb)...); err != nil {
			return err
		}
	}
	for _, dir := range merged {
		err := errors.Join(os.Mkdir(filepath.Join(work, "root/usr", dir), 0o755), os.Symlink("usr/"+dir, filepath.Join(work, "root", dir)))
		if err != nil {
			return err
		}
	}
	debs, err := filepath.Glob(filepath.Join(work, "debs/*.deb"))
	if err != nil {
		return err
	}
	var names []string
	for _, deb := range debs {
		name := strings.TrimSuffix(filepath.Base(deb), ".deb")
		if unneeded.MatchString(name) {
			continue
		}
		names = append(names, name)
		if err := extract(ctx, deb, filepath.Join(work, "root")); err != nil {
			return fmt.Errorf("unpack %s: %w", name, err)
		}
	}
	return os.WriteFile(filepath.Join(work, "root/packages"), []byte(strings.Join(names, "\n")+"\n"), 0o644)
}

// mirrorOf is where this machine has its Debian packages from: the suites that are wanted are there too.
func mirrorOf(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "apt-get", "indextargets", "--format", "$(SITE) $(RELEASE)", "Created-By: Packages").Output()
	if err != nil {
		return "", fmt.Errorf("ask apt for its sources: %w%s", err, errorText(err))
	}
	for line := range strings.Lines(string(out)) {
		if site, suite, ok := strings.Cut(strings.TrimSpace(line), " "); ok && !strings.HasSuffix(suite, "-security") {
			return site, nil
		}
	}
	return "", errors.New("apt has no source of Debian packages on this machine; add one to /etc/apt/sources.list")
}

// extract unpacks one package. dpkg -x would put a directory in the place of a link to one.
func extract(ctx context.Context, deb, dir string) error {
	from := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	to := exec.CommandContext(ctx, "tar", "-x", "--keep-directory-symlink", "--no-same-owner", "-C", dir)
	pipe, err := from.StdoutPipe()
	if err != nil {
		return err
	}
	var said bytes.Buffer
	to.Stdin, to.Stderr, from.Stderr = pipe, &said, &said
	if err := from.Start(); err != nil {
		return err
	}
	err = to.Run()
	if err = errors.Join(err, from.Wait()); err != nil {
		return fmt.Errorf("%w: %s", err, lastLine(said.Bytes()))
	}
	return nil
}

// check sees that what was unpacked is what the lab needs: QEMU starts, and there is a kernel.
func (r root) check(ctx context.Context) error {
	qemu := r.qemu()
	out, err := exec.CommandContext(ctx, qemu[0], append(qemu[1:], "-device", "help")...).Output()
	if err != nil {
		return fmt.Errorf("start the unpacked QEMU: %w%s", err, errorText(err))
	}
	if !bytes.Contains(out, []byte(`"igb"`)) {
		return errors.New("the unpacked QEMU has no igb device; it needs QEMU 8.0 or later")
	}
	_, err = r.kernel()
	return err
}

// qemu is the command line's begin: QEMU by the loader and the libraries of its own suite.
func (r root) qemu() []string {
	return []string{filepath.Join(r.dir, "lib64/ld-linux-x86-64.so.2"), "--library-path", filepath.Join(r.dir, "usr/lib/x86_64-linux-gnu"),
		filepath.Join(r.dir, "usr/bin/qemu-system-x86_64"), "-L", filepath.Join(r.dir, "usr/share/qemu"), "-L", filepath.Join(r.dir, "usr/share/seabios"),
		"-L", filepath.Join(r.dir, "usr/lib/ipxe/qemu")}
}

// kernel is the release of the one that was unpacked.
func (r root) kernel() (release string, err error) {
	found, err := filepath.Glob(filepath.Join(r.dir, "boot/vmlinuz-*"))
	if err != nil || len(found) != 1 {
		return "", fmt.Errorf("%d kernels in %s/boot, not one; remove that directory, it is fetched again", len(found), r.dir)
	}
	return strings.TrimPrefix(filepath.Base(found[0]), "vmlinuz-"), nil
}

// command runs a program and puts the last thing it said into the error.
func command(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, lastLine(out))
	}
	return nil
}

func lastLine(out []byte) string {
	out = bytes.TrimSpace(out)
	return string(out[bytes.LastIndexByte(out, '\n')+1:])
}

// errorText is what a program that failed wrote last.
func errorText(err error) string {
	var exit *exec.ExitError
	if errors.As(err, &exit) && len(exit.Stderr) > 0 {
		return ": " + lastLine(exit.Stderr)
	}
	return ""
}

func readLines(path string) ([]string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return strings.Fields(string(data)), nil
}
