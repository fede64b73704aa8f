package nic

import (
	"context"
	"errors"
	"fmt"
	"os"
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
	reconnect    = 5 * time.Second
)

// Runtime is the connection to the container runtime by NRI.
type Runtime struct {
	socket string
	pods   Pods
	report func(error)
}

// NewRuntime starts nothing.
func NewRuntime(socket string, pods Pods, report func(error)) *Runtime {
	return &Runtime{socket: socket, pods: pods, report: report}
}

// Run keeps a connection until ctx ends. That there is no runtime with NRI is said once, and looked for again.
func (r *Runtime) Run(ctx context.Context) error {
	said := ""
	for {
		err := r.serve(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil && err.Error() != said {
			said = err.Error()
			r.report(fmt.Errorf("%w; NICs are attached when a container starts that names their claim, and the runtime is tried again every %s", err, reconnect))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(reconnect):
		}
	}
}

// serve is one connection.
func (r *Runtime) serve(ctx context.Context) error {
	if _, err := os.Stat(r.socket); err != nil {
		return fmt.Errorf("the container runtime has no NRI socket: %w; containerd has one from 2.0 on unless its configuration disables NRI", err)
	}
	closed := make(chan struct{})
	plugin, err := stub.New(&plugin{r}, stub.WithPluginName("kerf"), stub.WithPluginIdx("10"), stub.WithSocketPath(r.socket),
		stub.WithOnClose(func() { close(closed) }))
	if err != nil {
		return fmt.Errorf("connect to the container runtime by NRI: %w", err)
	}
	if err := plugin.Start(ctx); err != nil {
		return fmt.Errorf("connect to the container runtime by NRI: %w", err)
	}
	defer plugin.Stop()
	select {
	case <-ctx.Done():
		return nil
	case <-closed:
		return errors.New("the container runtime has closed the NRI connection")
	}
}

// plugin is what the runtime calls. Which methods there are is what it subscribes to.
type plugin struct{ *Runtime }

// Synchronize hears of all pods, when the connection is new.
func (p *plugin) Synchronize(ctx context.Context, pods []*api.PodSandbox, _ []*api.Container) ([]*api.ContainerUpdate, error) {
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
		return fmt.Errorf("kerf: %w", err)
	}
	return nil
}

// StopPodSandbox comes before the namespace goes, with some runtimes after. An error would keep the pod, and what could not be done is
// done when its claim is given back.
func (p *plugin) StopPodSandbox(ctx context.Context, pod *api.PodSandbox) error {
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
