package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"time"
)

// The modules are apart, and are files rather than nested modules so that the program carries them: Kubernetes and
// containerd ask for different versions of what they share.
var (
	//go:embed modules/kubernetes.mod
	kubernetesMod []byte
	//go:embed modules/kubernetes.sum
	kubernetesSum []byte
	//go:embed modules/containerd.mod
	containerdMod []byte
	//go:embed modules/containerd.sum
	containerdSum []byte
	//go:embed modules/kwok.mod
	kwokMod []byte
	//go:embed modules/kwok.sum
	kwokSum []byte
)

// module is a go.mod, and the binaries that are built in it.
type module struct {
	name     string
	main     string // the module whose version names the cache directory
	mod, sum []byte
	binaries []binary
}

type binary struct{ name, pkg string }

func modules() []module {
	const containerd = "github.com/containerd/containerd/v2"
	return []module{
		{"kubernetes", "k8s.io/kubernetes", kubernetesMod, kubernetesSum, []binary{
			{"kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"},
			{"kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager"},
			{"kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"},
			{"kubelet", "k8s.io/kubernetes/cmd/kubelet"},
			{"kubectl", "k8s.io/kubernetes/cmd/kubectl"},
		}},
		{"containerd", containerd, containerdMod, containerdSum, []binary{
			{"containerd", containerd + "/cmd/containerd"},
			{"containerd-shim-runc-v2", containerd + "/cmd/containerd-shim-runc-v2"},
			{"ctr", containerd + "/cmd/ctr"},
			{"etcd", "go.etcd.io/etcd/server/v3"},
		}},
		{"kwok", "sigs.k8s.io/kwok", kwokMod, kwokSum, []binary{
			{"kwok", "sigs.k8s.io/kwok/cmd/kwok"},
		}},
	}
}

// version of the main module, as its go.mod requires it.
func (m module) version() (string, error) {
	found := regexp.MustCompile(`(?m)^\s*(?:require )?` + regexp.QuoteMeta(m.main) + ` (v\S+)`).FindSubmatch(m.mod)
	if found == nil {
		return "", fmt.Errorf("modules/%s.mod: it does not require %s; add it with go get -modfile", m.name, m.main)
	}
	return string(found[1]), nil
}

// ldflags give the binaries the version that they report: kubelet and the API server compare theirs.
func (m module) ldflags(version string) string {
	const strip = "-s -w"
	switch m.name {
	case "kubernetes":
		const pkg = "k8s.io/component-base/version"
		part := strings.SplitN(strings.TrimPrefix(version, "v"), ".", 3)
		return fmt.Sprintf("%s -X %s.gitVersion=%s -X %s.gitMajor=%s -X %s.gitMinor=%s", strip, pkg, version, pkg, part[0], pkg, part[1])
	case "kwok":
		return fmt.Sprintf("%s -X %s/pkg/consts.Version=%s", strip, m.main, version)
	}
	return fmt.Sprintf("%s -X %s/version.Version=%s", strip, m.main, version)
}

// key names the module's cache directory: its version, and a digest of all that the binaries are made of.
func (m module) key(version, toolchain string) string {
	digest := sha256.New()
	for _, part := range [][]byte{m.mod, m.sum, []byte(m.ldflags(version)), []byte(toolchain)} {
		fmt.Fprintf(digest, "%d\n%s", len(part), part)
	}
	return fmt.Sprintf("%s-%s-%s", m.name, version, hex.EncodeToString(digest.Sum(nil))[:12])
}

// build makes the binaries that the cache lacks and returns their directory. A binary there is a whole one.
func (m module) build(ctx context.Context, say func(string, ...any)) (string, error) {
	version, err := m.version()
	if err != nil {
		return "", err
	}
	toolchain, err := exec.CommandContext(ctx, "go", "env", "GOVERSION").Output()
	if err != nil {
		return "", fmt.Errorf("find Go: %w; install Go and put it in PATH", err)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache directory: %w", err)
	}
	dir := filepath.Join(cache, "kerf/cluster", m.key(version, strings.TrimSpace(string(toolchain))+" "+runtime.GOARCH))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make the cache directory: %w", err)
	}
	for _, b := range m.binaries {
		path := filepath.Join(dir, b.name)
		if _, err := os.Stat(path); err == nil {
			continue
		} else if !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("look for %s: %w", b.name, err)
		}
		say("building %s", b.name)
		start := time.Now()
		if err := m.compile(ctx, b, version, path); err != nil {
			return "", fmt.Errorf("build %s: %w", b.name, err)
		}
		say("built %s in %.0f s", b.name, time.Since(start).Seconds())
	}
	return dir, nil
}

// compile builds one binary in a directory of its own, beside the cache's, and renames it into place.
func (m module) compile(ctx context.Context, b binary, version, path string) error {
	work, err := os.MkdirTemp(filepath.Dir(path), ".build-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(work) }()
	if err := errors.Join(os.WriteFile(filepath.Join(work, "go.mod"), m.mod, 0o600), os.WriteFile(filepath.Join(work, "go.sum"), m.sum, 0o600)); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", m.ldflags(version), "-o", b.name, b.pkg)
	cmd.Dir, cmd.Env = work, append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build in a copy of modules/%s.mod: %w: %s", m.name, err, lastLine(out))
	}
	return os.Rename(filepath.Join(work, b.name), path)
}

func lastLine(out []byte) string {
	out = bytes.TrimSpace(out)
	return string(out[bytes.LastIndexByte(out, '\n')+1:])
}

// buildAll builds the modules, and returns the directories by module name. kwok is for simulated nodes only.
func buildAll(ctx context.Context, kwok bool) (map[string]string, error) {
	dirs := map[string]string{}
	for _, m := range modules() {
		if m.name == "kwok" && !kwok {
			continue
		}
		dir, err := m.build(ctx, say)
		if err != nil {
			return nil, err
		}
		dirs[m.name] = dir
	}
	return dirs, nil
}

func buildVerb(ctx context.Context, args []string) error {
	f := newFlags("build")
	kwok := f.Bool("kwok", false, "kwok too, for simulated nodes")
	if _, err := f.parse(args, 0, 0); err != nil {
		return err
	}
	dirs, err := buildAll(ctx, *kwok)
	if err != nil {
		return err
	}
	for _, m := range modules() {
		if dir, built := dirs[m.name]; built {
			fmt.Println(dir)
		}
	}
	return nil
}

// say tells a person how far things are. What programs read goes to standard output.
func say(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
