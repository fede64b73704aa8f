package main

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// Directories and files of the machine that tests may rely on.
const (
	labDir      = "/lab"
	machineFile = labDir + "/machine.json"
	jobsFile    = labDir + "/jobs.json"
	moduleDir   = labDir + "/modules"
)

// image is the machine's first and only file system while it is put together.
type image struct {
	nodes map[string]node
}

func newImage() *image {
	m := &image{map[string]node{}}
	for _, dir := range []string{"/proc", "/sys", "/dev", "/run", "/tmp", "/root", "/mnt", "/var/lib", "/var/log", "/etc", moduleDir} {
		m.dir(dir)
	}
	m.put(node{name: "/dev/console", mode: typeChar | 0o600, major: 5, minor: 1}) // init's own output, before there is a /dev
	for _, dir := range merged {
		m.dir("/usr/" + dir)
		m.link("/"+dir, "usr/"+dir)
	}
	m.link("/var/run", "/run")
	for name, text := range map[string]string{
		"/etc/passwd": "root:x:0:0:root:/root:/bin/sh\n", "/etc/group": "root:x:0:\n", "/etc/hosts": "127.0.0.1 localhost lab\n",
		"/etc/hostname": "lab\n", "/etc/lvm/lvm.conf": lvmConf,
	} {
		m.file(name, []byte(text), 0o644)
	}
	m.link("/etc/mtab", "/proc/self/mounts")
	return m
}

// There is no udev: waiting for it would take for ever.
const lvmConf = `activation { udev_sync = 0 udev_rules = 0 monitoring = 0 }
devices { obtain_device_list_from_udev = 0 external_device_info_source = "none" }
`

func (m *image) put(n node) {
	n.name = canonical(n.name)
	if above := path.Dir(n.name); above != "/" {
		m.dir(above)
	}
	m.nodes[n.name] = n
}

// canonical is a path without the links at the top.
func canonical(name string) string {
	name = path.Clean(name)
	for _, dir := range merged {
		if strings.HasPrefix(name, "/"+dir+"/") {
			return "/usr" + name
		}
	}
	return name
}

func (m *image) dir(name string) {
	if _, there := m.nodes[name]; !there {
		m.put(node{name: name, mode: typeDir | 0o755})
	}
}

func (m *image) link(name, target string) {
	m.put(node{name: name, mode: typeLink | 0o777, data: []byte(target)})
}

func (m *image) file(name string, data []byte, perm fs.FileMode) {
	m.put(node{name: name, mode: fileMode(perm), data: data})
}

// copy takes a file or a directory of this machine.
func (m *image) copy(from, to string) error {
	info, err := os.Stat(from)
	if err != nil {
		return err
	}
	if info.IsDir() {
		entries, err := os.ReadDir(from)
		if err != nil {
			return err
		}
		m.dir(path.Clean(to))
		for _, e := range entries {
			if err := m.copy(filepath.Join(from, e.Name()), path.Join(to, e.Name())); err != nil {
				return err
			}
		}
		return nil
	}
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	m.file(to, data, info.Mode())
	return nil
}

// write writes the archive. A directory comes before what is in it, as the kernel asks.
func (m *image) write(w io.Writer) error {
	c := &cpio{w: w}
	names := make([]string, 0, len(m.nodes))
	for name := range m.nodes {
		names = append(names, name)
	}
	slices.Sort(names) // a directory's name is a prefix of its files'
	for _, name := range names {
		n := m.nodes[name]
		n.name = strings.TrimPrefix(name, "/")
		c.add(n)
	}
	return c.close()
}

// tools copies programs of Debian with the libraries that they name, and busybox for all else.
func (m *image) tools(ctx context.Context, r root, names []string) error {
	for _, name := range names {
		at, err := r.find(name, "usr/sbin", "usr/bin")
		if err != nil {
			return err
		}
		if err := m.program(r, at); err != nil {
			return fmt.Errorf("tool %s: %w", name, err)
		}
	}
	if slices.Contains(names, "mkfs.ext4") {
		if err := m.copy(filepath.Join(r.dir, "etc/mke2fs.conf"), "/etc/mke2fs.conf"); err != nil {
			return err
		}
	}
	const busybox = "/usr/bin/busybox"
	if err := m.copy(filepath.Join(r.dir, busybox), busybox); err != nil {
		return err
	}
	applets, err := exec.CommandContext(ctx, filepath.Join(r.dir, busybox), "--list").Output()
	if err != nil {
		return fmt.Errorf("list busybox's programs: %w", err)
	}
	for _, applet := range strings.Fields(string(applets)) {
		m.link(path.Join(appletDir, applet), busybox)
	}
	m.link("/usr/bin/sh", "dash") // busybox's own takes its applets before what is in PATH
	return m.program(r, "/usr/bin/dash")
}

// Applets come last in PATH: several (ip, lspci, mount) shadow tools that can do more.
const (
	appletDir = "/lab/busybox"
	guestPath = "/lab/bin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:" + appletDir
)

// find looks a file up in the first of the directories that has it, and returns its path below the root.
func (r root) find(name string, dirs ...string) (string, error) {
	for _, dir := range dirs {
		if _, err := os.Lstat(filepath.Join(r.dir, dir, name)); err == nil {
			return path.Join("/", dir, name), nil
		}
	}
	return "", fmt.Errorf("%s: the unpacked packages have none of that name; add its package to packages.go", name)
}

// program copies a program or library, where links point to, and the libraries that it needs.
func (m *image) program(r root, at string) error {
	at = canonical(at)
	if _, there := m.nodes[at]; there {
		return nil
	}
	target, err := os.Readlink(filepath.Join(r.dir, at))
	if err == nil {
		m.link(at, target)
		if !path.IsAbs(target) {
			target = path.Join(path.Dir(at), target)
		}
		return m.program(r, target)
	}
	if err := m.copy(filepath.Join(r.dir, at), at); err != nil {
		return err
	}
	file, err := elf.Open(filepath.Join(r.dir, at))
	if err != nil {
		var format *elf.FormatError
		if errors.As(err, &format) { // a script
			return nil
		}
		return err
	}
	defer func() { _ = file.Close() }()
	needs, err := file.ImportedLibraries()
	if err != nil {
		return err
	}
	if section := file.Section(".interp"); section != nil {
		interp, err := section.Data()
		if err != nil {
			return err
		}
		if err := m.program(r, string(bytes.TrimRight(interp, "\x00"))); err != nil {
			return err
		}
	}
	for _, need := range needs {
		lib, err := r.find(need, "usr/lib/x86_64-linux-gnu", "usr/lib64")
		if err != nil {
			return err
		}
		if err := m.program(r, lib); err != nil {
			return err
		}
	}
	return nil
}

// build puts a machine's file system together: this program as init, tools, modules, the description, the jobs.
func build(ctx context.Context, r root, m Machine, files []hostFile, jobs []job) (*image, error) {
	im := newImage()
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	if dynamic(self) {
		return nil, errors.New("this program needs a loader, and is the machine's init, which has none: build it with CGO_ENABLED=0")
	}
	if err := im.copy(self, "/init"); err != nil {
		return nil, err
	}
	if err := im.tools(ctx, r, m.Tools); err != nil {
		return nil, err
	}
	release, err := r.kernel()
	if err != nil {
		return nil, err
	}
	mods, err := modules(ctx, filepath.Join(r.dir, "lib/modules", release), m.Modules)
	if err != nil {
		return nil, err
	}
	for i, mod := range mods {
		im.file(fmt.Sprintf("%s/%03d-%s", moduleDir, i, mod.name), mod.data, 0o644)
	}
	for name, value := range map[string]any{machineFile: m.described(), jobsFile: jobs} {
		data, err := json.MarshalIndent(value, "", "  ")
		if err != nil {
			return nil, err
		}
		im.file(name, data, 0o644)
	}
	for _, f := range files {
		if err := im.copy(f.host, f.guest); err != nil {
			return nil, fmt.Errorf("file %s: %w", f.host, err)
		}
	}
	return im, nil
}

// hostFile is a file or directory to be copied into the machine.
type hostFile struct{ host, guest string }

// dynamic tells whether a program needs a loader.
func dynamic(program string) bool {
	file, err := elf.Open(program)
	if err != nil {
		return true
	}
	defer func() { _ = file.Close() }()
	return file.Section(".interp") != nil
}
