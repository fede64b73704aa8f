package nic

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/net/multiplex"
	"github.com/containerd/ttrpc"
	"github.com/google/go-cmp/cmp"
)

// heard is the pods' side, which writes down what it is told.
type heard struct {
	mu    sync.Mutex
	calls []string
	fail  error // of Attach

	news chan string
}

func (h *heard) note(ctx context.Context, format string, args ...any) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	call := fmt.Sprintf(format, args...)
	if _, bounded := ctx.Deadline(); !bounded {
		call += ", without an end"
	}
	h.calls = append(h.calls, call)
	h.news <- call
	return h.fail
}

func (h *heard) Attach(ctx context.Context, pod, netns string) error {
	return h.note(ctx, "attach %s %s", pod, netns)
}
func (h *heard) Detach(ctx context.Context, pod string) error { return h.note(ctx, "detach %s", pod) }
func (h *heard) Running(ctx context.Context, netns map[string]string) error {
	return h.note(ctx, "running %v", netns)
}

// containerRuntime is NRI's own side of a runtime, as containerd has it, with some pods.
func containerRuntime(t *testing.T, socket string, pods ...*api.PodSandbox) *adaptation.Adaptation {
	t.Helper()
	sync := func(ctx context.Context, hear adaptation.SyncCB) error { _, err := hear(ctx, pods, nil); return err }
	update := func(context.Context, []*adaptation.ContainerUpdate) ([]*adaptation.ContainerUpdate, error) {
		return nil, nil
	}
	r, err := adaptation.New("runtime", "1", sync, update, adaptation.WithSocketPath(socket), adaptation.WithPluginPath(t.TempDir()),
		adaptation.WithPluginConfigPath(t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Start(); err != nil {
		t.Fatal(err)
	}
	return r
}

// settled waits until the runtime counts its plugins among those it asks: it does so after it has told them of its pods.
func settled(r *adaptation.Adaptation) { r.BlockPluginSync().Unblock() }

func sandbox(uid, netns string) *api.PodSandbox {
	pod := &api.PodSandbox{Id: uid, Uid: uid, Name: uid, Namespace: "ns", Linux: &api.LinuxPodSandbox{}}
	if netns != "" {
		pod.Linux.Namespaces = []*api.LinuxNamespace{{Type: "pid"}, {Type: "network", Path: netns}}
	}
	return pod
}

// run starts a Runtime that gives up quickly, and ends it with the test.
func run(t *testing.T, socket string, h *heard) (reports chan string) {
	t.Helper()
	reports = make(chan string, 100)
	r := NewRuntime(socket, h, func(err error) { reports <- err.Error() })
	r.startWithin, r.reconnect = 300*time.Millisecond, 20*time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Run ended with %v", err)
		}
	})
	return reports
}

func next(t *testing.T, from chan string, words ...string) {
	t.Helper()
	select {
	case got := <-from:
		for _, w := range words {
			if !strings.Contains(got, w) {
				t.Errorf("got %q, want %q in it", got, w)
			}
		}
	case <-time.After(time.Minute):
		t.Fatalf("nothing came, want %q", words)
	}
}

// TestRuntime is a pod's life as the container runtime tells it, each call with an end before the runtime's own.
func TestRuntime(t *testing.T) {
	h := &heard{news: make(chan string, 100)}
	socket := filepath.Join(t.TempDir(), "nri.sock")
	r := containerRuntime(t, socket, sandbox("old", "/ns/old"), sandbox("host", ""))
	run(t, socket, h)
	next(t, h.news, "running map[host: old:/ns/old]")
	settled(r)

	pod := sandbox("pod", "/ns/pod")
	if err := r.RunPodSandbox(t.Context(), &api.RunPodSandboxRequest{Pod: pod}); err != nil {
		t.Fatal(err)
	}
	if err := r.StopPodSandbox(t.Context(), &api.StopPodSandboxRequest{Pod: pod}); err != nil {
		t.Fatal(err)
	}
	if err := r.RemovePodSandbox(t.Context(), &api.RemovePodSandboxRequest{Pod: pod}); err != nil {
		t.Fatal(err)
	}
	h.fail = errors.Join(errors.New("claim ns/nic: NIC 3 is in use"), errors.New("NIC 2 stays"))
	err := r.RunPodSandbox(t.Context(), &api.RunPodSandboxRequest{Pod: pod})
	if err == nil || !strings.Contains(err.Error(), "kerf: claim ns/nic: NIC 3 is in use; NIC 2 stays") {
		t.Errorf("a sandbox whose NICs cannot be attached: %v", err)
	}
	if err := r.StopPodSandbox(t.Context(), &api.StopPodSandboxRequest{Pod: pod}); err != nil {
		t.Errorf("an error of ours keeps a pod: %v", err)
	}
	want := []string{"running map[host: old:/ns/old]", "attach pod /ns/pod", "detach pod", "detach pod", "attach pod /ns/pod", "detach pod"}
	if diff := cmp.Diff(want, h.calls); diff != "" {
		t.Error(diff)
	}
}

// TestRuntimeLost: each loss is told, and the next runtime is found. NRI's side in the runtime leaves connections open when it stops; they end with the
// process, for which a relay stands here.
func TestRuntimeLost(t *testing.T) {
	h := &heard{news: make(chan string, 100)}
	dir := t.TempDir()
	r := containerRuntime(t, filepath.Join(dir, "inner.sock"))
	defer r.Stop()
	reports := run(t, filepath.Join(dir, "nri.sock"), h)
	next(t, reports, "has no NRI socket")
	for range 2 {
		end := relay(t, filepath.Join(dir, "nri.sock"), filepath.Join(dir, "inner.sock"))
		next(t, h.news, "running map[]")
		settled(r)
		end()
		next(t, reports, "has closed the NRI connection", "is tried again every 20ms")
		next(t, reports, "has no NRI socket")
	}
}

// relay passes one connection on until it is ended.
func relay(t *testing.T, from, to string) (end func()) {
	t.Helper()
	listener, err := net.Listen("unix", from)
	if err != nil {
		t.Fatal(err)
	}
	var copies sync.WaitGroup
	ends := make(chan net.Conn, 2)
	copies.Go(func() {
		client, err := listener.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		runtime, err := net.Dial("unix", to)
		if err != nil {
			t.Error(err)
			return
		}
		ends <- client
		ends <- runtime
		copies.Go(func() { _, _ = io.Copy(client, runtime) })
		_, _ = io.Copy(runtime, client)
	})
	return func() {
		_ = listener.Close()
		_ = (<-ends).Close()
		_ = (<-ends).Close()
		copies.Wait()
	}
}

// halfRuntime registers plugins and never configures them: so is a runtime that ends between the two.
type halfRuntime struct{}

func (halfRuntime) RegisterPlugin(context.Context, *api.RegisterPluginRequest) (*api.Empty, error) {
	return &api.Empty{}, nil
}

func (halfRuntime) UpdateContainers(context.Context, *api.UpdateContainersRequest) (*api.UpdateContainersResponse, error) {
	return &api.UpdateContainersResponse{}, nil
}

// TestRuntimeHalf: one that does not configure us is given up, and the next one is found.
func TestRuntimeHalf(t *testing.T) {
	h := &heard{news: make(chan string, 100)}
	socket := filepath.Join(t.TempDir(), "nri.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			inner, err := multiplex.Multiplex(conn).Listen(multiplex.RuntimeServiceConn)
			if err != nil {
				continue
			}
			server, err := ttrpc.NewServer()
			if err != nil {
				continue
			}
			api.RegisterRuntimeService(server, halfRuntime{})
			go func() { _ = server.Serve(context.Background(), inner) }()
		}
	}()
	reports := run(t, socket, h)
	next(t, reports, "no configuration came within 300ms")
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	r := containerRuntime(t, socket)
	defer r.Stop()
	next(t, h.news, "running map[]")
}
