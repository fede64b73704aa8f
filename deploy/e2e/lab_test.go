package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"
)

// clusterDir is the cluster's own; KERF_E2E_DIR names another.
const clusterDir = "/run/kerf-e2e"

// lab is the cluster under test.
type lab struct {
	repo, dir, out string
	config         *rest.Config
	client         kubernetes.Interface
	objects        dynamic.Interface
	mapper         *restmapper.DeferredDiscoveryRESTMapper
	node           node
	ready          time.Duration // how long the last installation took

	mu   sync.Mutex
	rows []row
}

// row is a line of the table at the end.
type row struct {
	stage, scenario, result, figure string
	took                            time.Duration
}

// newLab builds what is tested, starts a cluster, with these flags, and puts the images there. Everything goes when the test ends, however it ends.
func newLab(t *testing.T, with ...string) *lab {
	t.Helper()
	switch {
	case os.Getenv("KERF_E2E") == "":
		t.Skip("KERF_E2E is not set: this starts a Kubernetes on this machine; run make e2e")
	case os.Geteuid() != 0:
		t.Skip("not root: a cluster needs namespaces, control groups and a bridge")
	}
	repo, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{repo: repo, dir: clusterDir, out: filepath.Join(repo, "build/e2e")}
	if dir := os.Getenv("KERF_E2E_DIR"); dir != "" {
		l.dir = dir
	}
	l.node = node{l.dir}
	if err := os.RemoveAll(l.out); err != nil {
		t.Fatal(err)
	}
	if os.Getenv("KERF_E2E_BUILT") == "" { // set: what is in build is to be tested as it is
		l.make(t, "image", "build/bin/cluster")
	}
	l.up(t, with...)
	l.connect(t)
	return l
}

// make runs targets of the project's Makefile, as one who was not started by make.
func (l *lab) make(t *testing.T, targets ...string) {
	t.Helper()
	cmd := exec.Command("make", append([]string{"--silent", "-C", l.repo}, targets...)...)
	for _, pair := range os.Environ() {
		if !strings.HasPrefix(pair, "MAKE") && !strings.HasPrefix(pair, "MFLAGS=") {
			cmd.Env = append(cmd.Env, pair)
		}
	}
	began := time.Now()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("make %s: %v: %s", strings.Join(targets, " "), err, out)
	}
	t.Logf("make %s took %.1f s", strings.Join(targets, " "), time.Since(began).Seconds())
}

func (l *lab) up(t *testing.T, with ...string) {
	t.Helper()
	if out, err := l.cluster(t.Context(), "down"); err != nil { // of a run that was killed
		t.Fatalf("remove an old cluster: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if os.Getenv("KERF_E2E_KEEP") != "" {
			t.Logf("the cluster stays: KERF_E2E_KEEP is set; end it with %s", l.command("down"))
			return
		}
		if out, err := l.cluster(context.Background(), "down"); err != nil { // the test's context is over
			t.Errorf("cluster down: %v: %s", err, out)
		}
	})
	began := time.Now()
	if out, err := l.cluster(t.Context(), "up", with...); err != nil {
		t.Fatalf("cluster up: %v: %s", err, out)
	}
	t.Logf("the cluster was ready after %.1f s", time.Since(began).Seconds())
	images := []string{filepath.Join(l.repo, "build/image/kerf.tar"), filepath.Join(l.repo, "build/image/kerf-tenants.tar")}
	if out, err := l.cluster(t.Context(), "load", images...); err != nil {
		t.Fatalf("load the images: %v: %s", err, out)
	}
}

func (l *lab) command(verb string, args ...string) *exec.Cmd {
	return exec.Command(filepath.Join(l.repo, "build/bin/cluster"), append([]string{verb, "--dir", l.dir}, args...)...)
}

// cluster runs a verb of the cluster program, for three minutes at most.
func (l *lab) cluster(ctx context.Context, verb string, args ...string) (string, error) {
	return finish(ctx, l.command(verb, args...), 3*time.Minute)
}

// kubectl runs kubectl as the administrator, with standard input where there is some.
func (l *lab) kubectl(ctx context.Context, input []byte, args ...string) (string, error) {
	cmd := l.command("kubectl", append([]string{"--"}, args...)...)
	cmd.Stdin = bytes.NewReader(input)
	return finish(ctx, cmd, time.Minute)
}

// finish runs a command to its end, and kills it when that takes too long.
func finish(ctx context.Context, cmd *exec.Cmd, limit time.Duration) (string, error) {
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = 5 * time.Second // a child may hold the pipe
	if err := cmd.Start(); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not ended after %s", limit))
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	defer stop()
	err := cmd.Wait()
	if ctx.Err() != nil {
		err = errors.Join(context.Cause(ctx), err)
	}
	return strings.TrimSpace(out.String()), err
}

func (l *lab) connect(t *testing.T) {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", filepath.Join(l.dir, "kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	config.QPS, config.Burst = 200, 400
	l.config = config
	if l.client, err = kubernetes.NewForConfig(config); err != nil {
		t.Fatal(err)
	}
	if l.objects, err = dynamic.NewForConfig(config); err != nil {
		t.Fatal(err)
	}
	l.mapper = restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(l.client.Discovery()))
}

// add puts a line into the table.
func (l *lab) add(r row) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rows = append(l.rows, r)
}

// table prints what was measured.
func (l *lab) table(t *testing.T) {
	var out strings.Builder
	w := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "stage\tscenario\tresult\ttook\tmeasured (simulated GPUs)")
	for _, r := range l.rows {
		fmt.Fprintf(w, "%s\t%s\t%s\t%.1f s\t%s\n", r.stage, r.scenario, r.result, r.took.Seconds(), r.figure)
	}
	w.Flush()
	t.Log("\n" + out.String())
	l.keep("table.txt", out.String())
}

// dump keeps what a person needs to understand a failure: it is gone with the cluster.
func (l *lab) dump(name string) {
	ctx := context.Background() // also when the test's own is over
	for file, args := range map[string][]string{
		"pods.txt":       {"describe", "pods", "-A"},
		"claims.txt":     {"get", "resourceclaims,resourceslices,deviceclasses", "-A", "-o", "yaml"},
		"events.txt":     {"get", "events", "-A", "--sort-by=.metadata.creationTimestamp"},
		"kerfd.txt":      {"logs", "-n", installNamespace, "-l", kerfdLabel, "--all-containers", "--tail=-1", "--timestamps"},
		"controller.txt": {"logs", "-n", installNamespace, "-l", "app.kubernetes.io/component=controller", "--tail=-1", "--timestamps", "--prefix"},
		"before.txt":     {"logs", "-n", installNamespace, "-l", kerfdLabel, "--all-containers", "--tail=-1", "--timestamps", "--previous"},
	} {
		out, err := l.kubectl(ctx, nil, args...)
		if err != nil {
			out += "\n" + err.Error()
		}
		l.keep(filepath.Join(name, file), out)
	}
	for _, daemon := range []string{"kubelet", "containerd", "kube-scheduler"} {
		if text, err := os.ReadFile(filepath.Join(l.dir, "log", daemon+".log")); err == nil {
			l.keep(filepath.Join(name, daemon+".log"), string(text[max(0, len(text)-1<<20):]))
		}
	}
}

// keep writes a file into the directory of results. That it cannot is no reason to fail a test.
func (l *lab) keep(name, text string) {
	path := filepath.Join(l.out, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err == nil {
		_ = os.WriteFile(path, []byte(text), 0o644)
	}
}
