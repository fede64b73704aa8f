package nic

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
)

// Pods is told of pods' networks as the container runtime makes them and takes them away. It is safe for use by several goroutines.
type Pods interface {
	// Attach moves the NICs that a pod's claims hold into its network namespace, all or none; nil where it has none. Convergent.
	Attach(ctx context.Context, podUID, netns string) error
	// Detach takes a pod's NICs back, while the namespace is there or after.
	Detach(ctx context.Context, podUID string) error
	// Running is every pod that has a sandbox, with the path of its network namespace, "" where it is not told: what others have is
	// taken back.
	Running(ctx context.Context, netns map[string]string) error
}

// DefaultSocket is where container runtimes listen for NRI plugins.
const DefaultSocket = "/var/run/nri/nri.sock"

// Times. The runtime leaves out a plugin that takes longer than 2 s, and the pod goes on without its NICs; so this one gives up before, and
// the sandbox fails, which kubelet tries again.
const (
	attachWithin = time.Second
	tidyWithin   = 1500 * time.Millisecond // for what may be cut short: it is done when a claim is given back
	startWithin  = 10 * time.Second
	reconnect    = 5 * time.Second
)

// Runtime is the connection to the container runtime by NRI.
type Runtime struct {
	socket string
	pods   Pods
	report func(error)

	startWithin, reconnect time.Duration
}

// NewRuntime starts nothing.
func NewRuntime(socket string, pods Pods, report func(error)) *Runtime {
	return &Runtime{socket: socket, pods: pods, report: report, startWithin: startWithin, reconnect: reconnect}
}

// Run keeps a connection until ctx ends. That there is no runtime with NRI is said once, and looked for again; that a connection was lost, each time.
func (r *Runtime) Run(ctx context.Context) error {
	said := ""
	for {
		served, err := r.serve(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil && (served || err.Error() != said) {
			said = err.Error()
			r.report(fmt.Errorf("%w; NICs are attached when a container starts that names their claim, and the runtime is tried again every %s", err, r.reconnect))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(r.reconnect):
		}
	}
}

// serve is one connection. It says whether there was one.
func (r *Runtime) serve(ctx context.Context) (served bool, err error) {
	if _, err := os.Stat(r.socket); err != nil {
		return false, fmt.Errorf("the container runtime has no NRI socket: %w; containerd has one from 2.0 on unless its configuration disables NRI", err)
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", r.socket)
	if err != nil {
		return false, fmt.Errorf("connect to the container runtime by NRI: %w", err)
	}
	closed := make(chan struct{})
	plugin, err := stub.New(&plugin{r}, stub.WithPluginName("kerf"), stub.WithPluginIdx("10"), stub.WithConnection(conn),
		stub.WithOnClose(func() { close(closed) }))
	if err != nil {
		return false, errors.Join(fmt.Errorf("connect to the container runtime by NRI: %w", err), conn.Close())
	}
	if err := r.start(ctx, plugin, conn); err != nil {
		return false, fmt.Errorf("connect to the container runtime by NRI: %w", err)
	}
	defer plugin.Stop()
	select {
	case <-ctx.Done():
		return true, nil
	case <-closed:
		return true, errors.New("the container runtime has closed the NRI connection")
	}
}

// start bounds the library's Start: a runtime that ends between the registration and the configuration leaves it waiting for good, under a
// lock that Stop needs too. It is left alone then, with its connection closed.
func (r *Runtime) start(ctx context.Context, plugin stub.Stub, conn net.Conn) error {
	started := make(chan error, 1)
	go func() { started <- plugin.Start(ctx) }()
	select {
	case err := <-started:
		return err
	case <-ctx.Done():
		return errors.Join(ctx.Err(), conn.Close())
	case <-time.After(r.startWithin):
		return errors.Join(fmt.Errorf("no configuration came within %s", r.startWithin), conn.Close())
	}
}

// plugin is what the runtime calls. Which methods there are is what it subscribes to.
type plugin struct{ *Runtime }

// Synchronize hears of all pods, when the connection is new.
func (p *plugin) Synchronize(ctx context.Context, pods []*api.PodSandbox, _ []*api.Container) ([]*api.ContainerUpdate, error) {
	ctx, cancel := context.WithTimeout(ctx, tidyWithin)
	defer cancel()
	running := make(map[string]string)
	for _, pod := range pods {
		running[pod.GetUid()] = netns(pod)
	}
	if err := p.pods.Running(ctx, running); err != nil {
		p.report(fmt.Errorf("bring NICs in line with the pods that run: %w", err)) // the runtime must not lose us for it
	}
	return nil, nil
}

// RunPodSandbox comes when a pod's network namespace is there, before its containers. Pods without NICs pass at once: the runtime
// asks about every pod of the node, one at a time.
func (p *plugin) RunPodSandbox(ctx context.Context, pod *api.PodSandbox) error {
	ctx, cancel := context.WithTimeout(ctx, attachWithin)
	defer cancel()
	if err := p.pods.Attach(ctx, pod.GetUid(), netns(pod)); err != nil {
		return errors.New("kerf: " + strings.ReplaceAll(err.Error(), "\n", "; ")) // it becomes an event of the pod, of one line
	}
	return nil
}

// StopPodSandbox comes before the namespace goes, with some runtimes after. An error would keep the pod, and what could not be done is
// done when its claim is given back.
func (p *plugin) StopPodSandbox(ctx context.Context, pod *api.PodSandbox) error {
	ctx, cancel := context.WithTimeout(ctx, tidyWithin)
	defer cancel()
	if err := p.pods.Detach(ctx, pod.GetUid()); err != nil {
		p.report(fmt.Errorf("take the NICs of pod %s/%s back: %w; it is tried again when its claim is given back", pod.GetNamespace(), pod.GetName(), err))
	}
	return nil
}

// RemovePodSandbox is for runtimes that do not tell of the stop.
func (p *plugin) RemovePodSandbox(ctx context.Context, pod *api.PodSandbox) error {
	return p.StopPodSandbox(ctx, pod)
}

// netns is a pod's network namespace; "" for a pod in the host's.
func netns(pod *api.PodSandbox) string {
	for _, n := range pod.GetLinux().GetNamespaces() {
		if n.GetType() == "network" {
			return n.GetPath()
		}
	}
	return ""
}
