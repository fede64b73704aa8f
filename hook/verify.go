package hook

import (
	"cmp"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Linux's numbers of NVIDIA's character devices: a GPU is 195:N, and what is from 254 on is none (modeset, ctl).
const (
	nvidiaMajor  = 195
	firstControl = 254
	capsDir      = "/dev/nvidia-caps/" // MIG's capabilities, whose major differs from boot to boot
)

// reserved are files that decide what the loader finds.
var reserved = []string{"/etc/ld.so.cache", "/etc/ld.so.preload"}

// foreignRuntimes are annotations of runtimes whose containers are not processes of this kernel: what is checked here is not
// what the container sees.
var foreignRuntimes = []struct{ prefix, name string }{{"io.katacontainers.", "Kata Containers"}, {"dev.gvisor.", "gVisor"}}

// Verify checks a container's configuration against all the shares that it holds. It is pure.
func Verify(spec *specs.Spec, shares []Share) error {
	for _, check := range []func(*specs.Spec, []Share) error{verifyRuntime, verifyKinds, verifyMounts, verifyShadows, verifyNodes, verifyRules, verifyBinds} {
		if err := check(spec, shares); err != nil {
			return err
		}
	}
	return nil
}

func verifyRuntime(spec *specs.Spec, _ []Share) error {
	for annotation := range spec.Annotations {
		for _, r := range foreignRuntimes {
			if strings.HasPrefix(annotation, r.prefix) {
				return fmt.Errorf("the runtime class is %s (annotation %s), whose containers do not run on this kernel, so a share's limits cannot hold there; use runc or crun", r.name, annotation)
			}
		}
	}
	if spec.VM != nil {
		return fmt.Errorf("the runtime makes a virtual machine (hypervisor %q), where a share's limits cannot hold; use runc or crun", spec.VM.Hypervisor.Path)
	}
	return nil
}

// maxShares is what the shims take.
const maxShares = 16

func verifyKinds(_ *specs.Spec, shares []Share) error {
	admins := 0
	for _, s := range shares {
		if s.Admin {
			admins++
		}
	}
	switch {
	case admins > 0 && admins < len(shares):
		return errors.New("the container has a claim with admin access beside a share: monitoring sees whole GPUs, and a share must not; put them in two containers")
	case admins == 0 && len(shares) > maxShares:
		return fmt.Errorf("the container has %d shares, and %d are the most; divide them among containers, or claim larger ones", len(shares), maxShares)
	case len(shares) > 1 && slices.ContainsFunc(shares, func(s Share) bool { return s.MPS != "" }):
		return errors.New("the container has a share of tier mps beside another: a program is the client of one MPS server, and sees its GPU alone; put them in two containers, or use tier time")
	}
	return nil
}

func isAdmin(s Share) bool { return s.Admin }

// verifyMounts: each mount of each share is there, as the last on its target, from the right file, and read-only where it must be.
func verifyMounts(spec *specs.Spec, shares []Share) error {
	for _, want := range expected(shares) {
		at := lastMount(spec, want.target)
		if at < 0 {
			return fmt.Errorf("%s is not mounted; the container runtime has not applied the CDI spec whole (containerd from 1.7 on and CRI-O from 1.28 on do)", want.target)
		}
		got := spec.Mounts[at]
		if !slices.Contains(want.sources, path.Clean(got.Source)) {
			return fmt.Errorf("%s is mounted from %s, not from %s: a volume or another CDI device is mounted there; mount it elsewhere", want.target, got.Source, want.sources[0])
		}
		if !want.writable && !readOnly(got) {
			return fmt.Errorf("%s is mounted writable; the CDI spec says read-only: is another CDI spec or NRI plugin changing it?", want.target)
		}
	}
	return nil
}

// expectation is a mount that must be there. Shares of one container may have been prepared by different versions of kerfd, and
// one of their shims is in the container.
type expectation struct {
	target   string
	sources  []string
	writable bool
}

func expected(shares []Share) (all []expectation) {
	for _, s := range shares {
		for _, m := range s.Mounts() {
			at := slices.IndexFunc(all, func(e expectation) bool { return e.target == m.Target })
			if at < 0 {
				all = append(all, expectation{target: m.Target, writable: m.Writable})
				at = len(all) - 1
			}
			all[at].sources = append(all[at].sources, path.Clean(m.Source))
		}
	}
	return all
}

func lastMount(spec *specs.Spec, target string) int {
	for i, m := range slices.Backward(spec.Mounts) {
		if path.Clean(m.Destination) == target {
			return i
		}
	}
	return -1
}

// readOnly: the last word counts, as for the runtime.
func readOnly(m specs.Mount) bool {
	is := false
	for _, o := range m.Options {
		switch o {
		case "ro", "rro":
			is = true
		case "rw", "rrw":
			is = false
		}
	}
	return is
}

// verifyShadows: nothing is mounted over what a share brought, nor into it, nor over the loader's files. What is mounted above it
// earlier (an emptyDir on /run) does not hide it.
func verifyShadows(spec *specs.Spec, shares []Share) error {
	wanted := expected(shares)
	for i, m := range spec.Mounts {
		target := path.Clean(m.Destination)
		if slices.Contains(reserved, target) {
			return fmt.Errorf("%s is mounted on %s, which decides what library a program gets; mount it elsewhere", cmp.Or(m.Source, m.Type), target)
		}
		if slices.ContainsFunc(wanted, func(e expectation) bool { return e.target == target }) {
			continue
		}
		if driverLibrary(m, target) {
			continue
		}
		if within(target, Root) {
			return fmt.Errorf("%s is mounted on %s, and %s is Kerf's; mount it elsewhere", cmp.Or(m.Source, m.Type), target, Root)
		}
		for _, e := range wanted {
			if within(e.target, target) && lastMount(spec, e.target) < i {
				return fmt.Errorf("%s is mounted on %s and hides %s; mount it elsewhere", cmp.Or(m.Source, m.Type), target, e.target)
			}
		}
	}
	return nil
}

// driverLibrary: one that the CDI spec brings beside the shims. A tenant that mounts one itself harms nobody else.
func driverLibrary(m specs.Mount, target string) bool {
	return path.Dir(target) == LibDir && strings.Contains(path.Base(target), ".so") && readOnly(m)
}

// within: path is dir, or below it.
func within(p, dir string) bool {
	return p == dir || strings.HasPrefix(p, strings.TrimSuffix(dir, "/")+"/")
}

// verifyNodes: the granted GPUs' device nodes are there, and no other GPU's.
func verifyNodes(spec *specs.Spec, shares []Share) error {
	if spec.Linux == nil {
		return errors.New("the container is not a Linux container")
	}
	granted := grantedNodes(shares)
	var missing []string
	for node := range granted {
		if !slices.ContainsFunc(spec.Linux.Devices, func(d specs.LinuxDevice) bool { return d.Path == node }) {
			missing = append(missing, node)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("the device node %s is not in the container; the container runtime has not applied the CDI spec whole", slices.Min(missing))
	}
	if slices.ContainsFunc(shares, isAdmin) { // verifyKinds: nothing else is in the container
		return nil
	}
	for _, d := range spec.Linux.Devices {
		if name := foreign(d, granted); name != "" {
			return fmt.Errorf("%s (%d:%d) is in the container and belongs to no share of it; is the container privileged, or does the NVIDIA runtime inject all GPUs? take out what adds it", name, d.Major, d.Minor)
		}
	}
	return nil
}

// grantedNodes are the nodes in the container of real GPUs.
func grantedNodes(shares []Share) map[string]bool {
	granted := make(map[string]bool)
	for _, s := range shares {
		for _, node := range s.GPUs {
			if !s.Simulated {
				granted[s.NodeIn(node)] = true
			}
		}
	}
	return granted
}

// foreign names a device that is a GPU's and was not granted. The number counts, not the name: under a granted name may hide another.
func foreign(d specs.LinuxDevice, granted map[string]bool) string {
	switch {
	case strings.HasPrefix(d.Path, capsDir) && !granted[d.Path]:
		return d.Path
	case d.Type != "c" || d.Major != nvidiaMajor || d.Minor >= firstControl:
		return ""
	case granted["/dev/nvidia"+strconv.FormatInt(d.Minor, 10)]:
		return ""
	}
	return d.Path
}

// verifyRules: the device cgroup lets the container open no other GPU, even one whose node it makes itself.
func verifyRules(spec *specs.Spec, shares []Share) error {
	if spec.Linux.Resources == nil || slices.ContainsFunc(shares, isAdmin) {
		return nil
	}
	granted := grantedNodes(shares)
	all, one := false, ""
	for _, r := range spec.Linux.Resources.Devices { // as the kernel: the last rule that fits decides
		if r.Type != "" && r.Type != "a" && r.Type != "c" || r.Major != nil && *r.Major != -1 && *r.Major != nvidiaMajor {
			continue
		}
		opens := r.Allow && (r.Access == "" || strings.ContainsAny(r.Access, "rw"))
		switch anyMinor := r.Minor == nil || *r.Minor == -1; {
		case anyMinor && opens:
			all = true
		case anyMinor && !r.Allow && (r.Access == "" || strings.Contains(r.Access, "r") && strings.Contains(r.Access, "w")):
			all, one = false, ""
		case !anyMinor && opens && *r.Minor < firstControl && !granted["/dev/nvidia"+strconv.FormatInt(*r.Minor, 10)]:
			one = fmt.Sprintf("/dev/nvidia%d", *r.Minor)
		}
	}
	switch {
	case all:
		return errors.New("the container may open every device (privileged: true?), so every GPU, whatever its share; take the privilege away, or monitor with a claim that has adminAccess")
	case one != "":
		return fmt.Errorf("the container may open %s, which belongs to no share of it; take out what allows it", one)
	}
	return nil
}

// verifyBinds: no GPU's node comes in as a mounted file.
func verifyBinds(spec *specs.Spec, shares []Share) error {
	allowed := make(map[string]bool)
	var simulated []string // directories of device nodes
	for _, s := range shares {
		for _, node := range slices.Concat(s.GPUs, s.Control) {
			allowed[node] = true
			if s.Simulated {
				simulated = append(simulated, path.Dir(node))
			}
		}
	}
	for _, m := range spec.Mounts {
		source := path.Clean(m.Source)
		node := isNode(source) || slices.Contains(simulated, source) || slices.Contains(simulated, path.Dir(source))
		if node && !allowed[source] {
			return fmt.Errorf("%s is mounted on %s and belongs to no share of the container; take the volume out, or claim that GPU", source, m.Destination)
		}
	}
	return nil
}

// isNode: /dev/nvidia0, and MIG's.
func isNode(p string) bool {
	number, ok := strings.CutPrefix(p, "/dev/nvidia")
	_, err := strconv.Atoi(number)
	return ok && err == nil || within(p, path.Clean(capsDir))
}
