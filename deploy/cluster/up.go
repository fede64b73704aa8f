package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// readyWithin bounds the start: it takes about 20 s on two idle cores.
const readyWithin = 3 * time.Minute

func upVerb(ctx context.Context, args []string) error {
	f := newFlags("up")
	gates := f.String("feature-gates", "", "feature gates of every Kubernetes component")
	nodes := f.Int("simulated-nodes", 0, "nodes of kwok beside the real one")
	l, err := f.parse(args, 0, 0)
	if err != nil {
		return err
	}
	if *nodes < 0 || *nodes > simulatedLimit {
		return usageError{fmt.Errorf("up: %d simulated nodes asked; ask for 0 to %d", *nodes, simulatedLimit)}
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("up: it runs as user %d and needs root for namespaces, control groups and a bridge; run it with sudo", os.Geteuid())
	}
	if err := installPackages(ctx); err != nil {
		return err
	}
	bins, err := buildAll(ctx, *nodes > 0)
	if err != nil {
		return err
	}
	release, err := lock(ctx)
	if err != nil {
		return err
	}
	defer release()
	if err := claim(l); err != nil {
		return err
	}
	slot, err := freeSlot()
	if err != nil {
		return err
	}
	began := time.Now()
	s := state{Slot: slot, Bin: bins["kubernetes"], Tools: bins["containerd"], Gates: *gates, Nodes: *nodes, Kwok: bins["kwok"]}
	if err := up(ctx, l, s); err != nil {
		// What was made goes, even where the start was interrupted.
		return errorsInLine(fmt.Errorf("start the cluster: %w", err), down(context.WithoutCancel(ctx), l))
	}
	say("Kubernetes is ready after %.1f s, in %s. Use it:", time.Since(began).Seconds(), l.dir)
	fmt.Printf("%s/kubectl --kubeconfig %s get nodes\n", s.Bin, l.kubeconfig())
	return nil
}

// errorsInLine puts what went wrong while cleaning up behind what went wrong.
func errorsInLine(err, cleanup error) error {
	if cleanup == nil {
		return err
	}
	return fmt.Errorf("%w; and to clean up: %w", err, cleanup)
}

// claim makes the cluster's directory, or takes an empty one.
func claim(l layout) error {
	if _, found, err := l.readState(); err != nil {
		return err
	} else if found {
		return fmt.Errorf("a cluster is in %s already; use it, or remove it with cluster down", l.dir)
	}
	if err := os.MkdirAll(l.dir, 0o700); err != nil {
		return fmt.Errorf("make the cluster's directory: %w", err)
	}
	_ = os.Remove(l.state() + nextSuffix) // of an up that was killed at its first step
	entries, err := os.ReadDir(l.dir)
	if err != nil {
		return fmt.Errorf("look into the cluster's directory: %w", err)
	}
	if len(entries) > 0 {
		return fmt.Errorf("directory %s holds %s and no cluster; choose an empty one, for down removes it", l.dir, entries[0].Name())
	}
	return nil
}

// up makes and starts everything, in an order that lets down find all of it after any interruption.
func up(ctx context.Context, l layout, s state) error {
	ctx, cancel := context.WithTimeoutCause(ctx, readyWithin, fmt.Errorf("not ready within %s", readyWithin))
	defer cancel()
	if err := writeJSON(l.state(), s); err != nil {
		return err
	}
	if err := makeCgroups(s.cgroup()); err != nil {
		return err
	}
	if err := makeLink(ctx, s); err != nil {
		return err
	}
	dirs := []string{l.pki(""), l.conf(""), l.work("etc"), l.work("var"), filepath.Join(l.dir, "log"), filepath.Join(l.dir, "proc")}
	for _, name := range nodeDirs() {
		dirs = append(dirs, l.root(name))
	}
	for _, dir := range dirs {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make the cluster's directories: %w", err)
		}
	}
	if err := writePKI(l, s); err != nil {
		return err
	}
	files, err := configuration(l, s)
	if err != nil {
		return err
	}
	for path, data := range files {
		if err := writeFile(path, data, 0o644); err != nil {
			return err
		}
	}
	if err := makeNamespace(ctx, l); err != nil {
		return err
	}
	return startAll(ctx, l, s)
}

func startAll(ctx context.Context, l layout, s state) error {
	server, err := newAPI(l, s)
	if err != nil {
		return err
	}
	all := daemons(l, s)
	w := waiter{l, make(chan ended, len(all))}
	healthy := func(d daemon) error {
		return w.until(ctx, d.name, func() error { return server.healthy(ctx, l, s, d) })
	}
	for _, d := range all {
		if err := start(l, d, w.ends); err != nil {
			return err
		}
		if d.name == "kube-apiserver" { // it starts for seconds: the images go in meanwhile
			if err := importOwn(ctx, l, s); err != nil {
				return err
			}
		}
		if d.gate {
			if err := healthy(d); err != nil {
				return err
			}
		}
	}
	for _, d := range all {
		if err := healthy(d); err != nil {
			return err
		}
	}
	if err := w.until(ctx, "node "+nodeName, func() error { return nodeReady(ctx, server) }); err != nil {
		return err
	}
	if err := w.until(ctx, "the default service account", func() error {
		_, err := server.do(ctx, http.MethodGet, "/api/v1/namespaces/default/serviceaccounts/default", nil)
		return err
	}); err != nil {
		return err
	}
	if s.Nodes == 0 {
		return nil
	}
	if err := makeSimulated(ctx, server, s.Nodes); err != nil {
		return err
	}
	return w.until(ctx, "the simulated nodes", func() error { return simulatedReady(ctx, server, s.Nodes) })
}

func nodeReady(ctx context.Context, server *api) error {
	var node struct {
		Status struct{ Conditions []condition }
	}
	if err := server.get(ctx, "/api/v1/nodes/"+nodeName, &node); err != nil {
		return err
	}
	if ready := find(node.Status.Conditions, "Ready"); ready.Status != "True" {
		return fmt.Errorf("condition Ready is %s: %s", ready.Status, ready.Message)
	}
	return nil
}

// waiter waits for conditions while all daemons must live.
type waiter struct {
	l    layout
	ends chan ended
}

// until tries a condition until it holds.
func (w waiter) until(ctx context.Context, what string, holds func() error) error {
	for {
		err := holds()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w; last: %w", what, context.Cause(ctx), err)
		case end := <-w.ends:
			return fmt.Errorf("wait for %s: %s ended: %w; its last words: %s", what, end.name, errOr(end.err, errors.New("exit status 0")), w.lastWords(end.name))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// lastWords is the last line of a daemon's log, which goes with the cluster.
func (w waiter) lastWords(name string) string {
	data, err := os.ReadFile(w.l.log(name))
	if err != nil || len(data) == 0 {
		return "none"
	}
	return lastLine(data)
}

func errOr(err, other error) error {
	if err == nil {
		return other
	}
	return err
}

func restartVerb(ctx context.Context, args []string) error {
	f := newFlags("restart")
	l, err := f.parse(args, 1, 1)
	if err != nil {
		return err
	}
	s, err := l.running()
	if err != nil {
		return err
	}
	for _, d := range daemons(l, s) {
		if d.name == f.Arg(0) {
			return restart(ctx, l, s, d)
		}
	}
	return usageError{fmt.Errorf("restart: no daemon is called %q; see %s", f.Arg(0), filepath.Join(l.dir, "proc"))}
}

// restart kills a daemon, starts it again, and waits until it is healthy.
func restart(ctx context.Context, l layout, s state, d daemon) error {
	ctx, cancel := context.WithTimeoutCause(ctx, readyWithin, fmt.Errorf("not healthy within %s", readyWithin))
	defer cancel()
	server, err := newAPI(l, s)
	if err != nil {
		return err
	}
	r, found, err := readRecord(l.proc(d.name))
	if err != nil {
		return err
	}
	if found {
		if err := r.kill(ctx); err != nil {
			return err
		}
	}
	w := waiter{l, make(chan ended, 1)}
	if err := start(l, d, w.ends); err != nil {
		return err
	}
	return w.until(ctx, d.name, func() error { return server.healthy(ctx, l, s, d) })
}

func kubectlVerb(_ context.Context, args []string) error {
	f := newFlags("kubectl")
	l, err := f.parse(args, 0, -1)
	if err != nil {
		return err
	}
	s, err := l.running()
	if err != nil {
		return err
	}
	argv := append([]string{filepath.Join(s.Bin, "kubectl"), "--kubeconfig", l.kubeconfig()}, f.Args()...)
	if err := syscall.Exec(argv[0], argv, os.Environ()); err != nil {
		return fmt.Errorf("run kubectl: %w", err)
	}
	return nil
}

// ctr runs containerd's client on the cluster's containerd.
func ctr(ctx context.Context, l layout, s state, args ...string) error {
	cmd := tied(exec.CommandContext(ctx, filepath.Join(s.Tools, "ctr"), append([]string{"--address", l.containerd(), "--namespace", "k8s.io"}, args...)...))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ctr %s: %w: %s", args[0], err, lastLine(out))
	}
	return nil
}
