package deviceplugin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

// callTimeout bounds one call to kubelet.
const callTimeout = 5 * time.Second

// yieldWithin is how long a new plugin waits for the one before it to let go.
const yieldWithin = 3 * time.Second

// endpoint is the plugin's socket and the kubelet that knows of it.
//
// While a DaemonSet is updated there are two kerfds. The newer one takes the socket's path; the older one sees that, stops serving, and
// stands by for as long as somebody serves there. The newer one registers after that: some kubelets take the end of the
// older one's connection for its own.
type endpoint struct {
	server     *grpc.Server
	own        os.FileInfo // our socket's file
	registered os.FileInfo // the socket's file of the kubelet that we registered with
	yielded    bool        // another plugin has taken the path
}

func (e *endpoint) stop() {
	if e.server != nil {
		e.server.Stop()
	}
	*e = endpoint{}
}

// serve listens and registers, and does so again when kubelet starts anew or somebody removes the socket.
func (p *Plugin) serve(ctx context.Context) {
	watcher, err := fsnotify.NewWatcher()
	p.report("watch", err) // without inotify there is still the ticker
	var events chan fsnotify.Event
	var errs chan error
	if err == nil {
		defer func() { _ = watcher.Close() }()
		events, errs = watcher.Events, watcher.Errors
	}
	tick := time.NewTicker(p.pace.Kubelet)
	defer tick.Stop()
	var e endpoint
	defer e.stop()
	for {
		if watcher != nil {
			_ = watcher.Add(p.directory()) // again each time: the directory may be a new one. One that is not there fails below, with words
		}
		p.report("endpoint", p.converge(ctx, &e))
		select {
		case <-ctx.Done():
			return
		case <-events:
		case err := <-errs:
			p.report("watch", err)
		case <-tick.C:
		}
	}
}

// converge makes what is missing: the socket, the registration.
func (p *Plugin) converge(ctx context.Context, e *endpoint) error {
	own := filepath.Join(p.directory(), p.Endpoint())
	if e.server != nil && !sameFile(e.own, own) {
		e.stop()
		e.yielded = true
	}
	if e.yielded && served(own) {
		return nil
	}
	if e.server == nil {
		if err := p.listen(e, own); err != nil {
			return err
		}
	}
	socket := filepath.Join(p.directory(), "kubelet.sock")
	if sameFile(e.registered, socket) {
		return nil
	}
	kubelet, err := os.Stat(socket)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		e.registered = nil
		return fmt.Errorf("register %s: kubelet is not there (no %s); it is waited for. "+
			"If this node's kubelet has another directory, set kubernetes.kubeletDir", p.options.Resource, socket)
	case err != nil:
		return fmt.Errorf("register %s: %w", p.options.Resource, err)
	}
	if err := p.register(ctx, socket); err != nil {
		return fmt.Errorf("register %s: %w", p.options.Resource, err)
	}
	e.registered = kubelet
	p.mu.Lock()
	p.sightings.Doubt()
	p.mu.Unlock()
	return nil
}

// sameFile is false for a socket that was made again, even with the same inode.
func sameFile(known os.FileInfo, path string) bool {
	info, err := os.Stat(path)
	return err == nil && known != nil && os.SameFile(known, info) && known.ModTime().Equal(info.ModTime())
}

// takenOver is whether another plugin listens where a socket of ours was. One that is gone is nobody's: kubelet starts anew.
func takenOver(own os.FileInfo, path string) bool {
	_, err := os.Stat(path)
	return err == nil && !sameFile(own, path)
}

// served is whether somebody listens at a path.
func served(path string) bool {
	conn := dial(path)
	if conn == nil {
		return false
	}
	_ = conn.Close()
	return true
}

func dial(path string) net.Conn {
	conn, err := net.DialTimeout("unix", path, callTimeout)
	if err != nil {
		return nil
	}
	return conn
}

func (p *Plugin) listen(e *endpoint, path string) error {
	predecessor := dial(path)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) { // of a kerfd that was killed
		return fmt.Errorf("listen: %w", err)
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return fmt.Errorf("listen: %w; is kubelet's directory %s mounted here? (kubernetes.kubeletDir)", err, p.directory())
	}
	listener.(*net.UnixListener).SetUnlinkOnClose(false) // the path may be another plugin's by then: that of the kerfd that takes over
	info, err := os.Stat(path)
	if err != nil {
		return errors.Join(fmt.Errorf("listen: %w", err), listener.Close())
	}
	server := p.newServer(func() bool { return takenOver(info, path) })
	go func() { _ = server.Serve(listener) }() // it ends by Stop; kubelet's side says if it does not serve
	*e = endpoint{server: server, own: info}
	if predecessor != nil { // its server's end is the end of this connection
		_ = predecessor.SetReadDeadline(time.Now().Add(yieldWithin))
		_, _ = io.Copy(io.Discard, predecessor)
		_ = predecessor.Close()
	}
	return nil
}

// register tells kubelet of us; it calls back before it answers.
func (p *Plugin) register(ctx context.Context, socket string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	_, err = pluginapi.NewRegistrationClient(conn).Register(ctx, &pluginapi.RegisterRequest{
		Version: pluginapi.Version, Endpoint: p.Endpoint(), ResourceName: p.options.Resource, Options: pluginOptions,
	})
	return err
}
