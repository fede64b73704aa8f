package csi

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path"
	"path/filepath"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// Plugin serves one CSI driver on its socket and registers it with kubelet.
type Plugin struct {
	Name       string             // the driver's
	KubeletDir string             // the sockets are below it
	Services   func(*grpc.Server) // adds the driver's services
	Report     func(error)        // hears of what goes wrong in the background
	Latency    *CallTimes         // nil: not measured
	registered atomic.Bool        // as kubelet said last
}

// Socket is where the driver's services are.
func (p *Plugin) Socket() string { return filepath.Join(p.KubeletDir, "plugins", p.Name, "csi.sock") }

func (p *Plugin) registrySocket() string {
	return filepath.Join(p.KubeletDir, "plugins_registry", p.Name+"-reg.sock")
}

// Registered says whether kubelet knows the driver.
func (p *Plugin) Registered() bool { return p.registered.Load() }

// Run serves until the context ends. kubelet drops the driver when its registration socket goes.
func (p *Plugin) Run(ctx context.Context) error {
	if err := p.refuseSecond(ctx); err != nil {
		return err
	}
	calls, err := listen(p.Socket())
	if err != nil {
		return fmt.Errorf("CSI driver %s: %w", p.Name, err)
	}
	registry, err := listen(p.registrySocket())
	if err != nil {
		return errors.Join(fmt.Errorf("CSI driver %s: %w; is kubernetes.kubeletDir (%s) kubelet's directory?", p.Name, err, p.KubeletDir), calls.Close())
	}
	services := grpc.NewServer(grpc.UnaryInterceptor(p.intercept))
	p.Services(services)
	register := grpc.NewServer(grpc.UnaryInterceptor(p.intercept))
	registration.RegisterRegistrationServer(register, registrar{plugin: p})
	ends := make(chan error, 2)
	go func() { ends <- services.Serve(calls) }()
	go func() { ends <- register.Serve(registry) }()
	select {
	case <-ctx.Done():
		err = nil
	case err = <-ends:
	}
	register.Stop()
	finish(services)
	if err != nil {
		return fmt.Errorf("CSI driver %s: %w", p.Name, err)
	}
	return nil
}

// finish lets the calls under way end, for a while.
func finish(s *grpc.Server) {
	ended := make(chan struct{})
	go func() { s.GracefulStop(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(3 * time.Second):
		s.Stop()
	}
}

func listen(socket string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(socket), 0o750); err != nil {
		return nil, err
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return net.Listen("unix", socket)
}

// refuseSecond looks for a driver of this name that serves already: both would take each other's socket.
func (p *Plugin) refuseSecond(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	connection, err := grpc.NewClient("unix://"+p.registrySocket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("CSI driver %s: %w", p.Name, err)
	}
	defer func() { _ = connection.Close() }()
	info, err := registration.NewRegistrationClient(connection).GetInfo(ctx, &registration.InfoRequest{})
	if err != nil { // nobody answers: the socket is left over, or not there
		return nil //nolint:nilerr // which is what we hoped for
	}
	return fmt.Errorf("CSI driver %s: another process answers on %s (endpoint %s); end it", info.GetName(), p.registrySocket(), info.GetEndpoint())
}

// intercept measures a call, and is the last guard: gRPC's server does not recover, and a panic would end every tenant's session with kerfd.
func (p *Plugin) intercept(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (answer any, err error) {
	began := time.Now()
	method := path.Base(info.FullMethod)
	defer func() {
		if cause := recover(); cause != nil {
			p.Report(fmt.Errorf("%s panicked: %v\n%s", method, cause, debug.Stack()))
			err = status.Errorf(codes.Internal, "%s panicked (%v); this is a mistake in Kerf, please report it with the log of kerfd", method, cause)
		}
		p.Latency.observe(method, status.Code(err), time.Since(began))
	}()
	return handler(ctx, request)
}

// registrar answers kubelet's questions about a driver.
type registrar struct {
	registration.UnimplementedRegistrationServer
	plugin *Plugin
}

// GetInfo implements Registration.
func (r registrar) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{Type: registration.CSIPlugin, Name: r.plugin.Name, Endpoint: r.plugin.Socket(), SupportedVersions: []string{"1.13.0"}}, nil
}

// NotifyRegistrationStatus implements Registration.
func (r registrar) NotifyRegistrationStatus(_ context.Context, said *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	r.plugin.registered.Store(said.GetPluginRegistered())
	if !said.GetPluginRegistered() {
		r.plugin.Report(fmt.Errorf("kubelet refuses the CSI driver %s: %s; see kubelet's log", r.plugin.Name, said.GetError()))
	}
	return &registration.RegistrationStatusResponse{}, nil
}

// CallTimes is how long calls took, by method, and what came of them.
type CallTimes struct {
	seconds *prometheus.HistogramVec
	errors  *prometheus.CounterVec
}

// NewCallTimes are the metrics of one driver's calls.
func NewCallTimes(driver string) *CallTimes {
	labels := prometheus.Labels{"driver": driver}
	return &CallTimes{
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{ConstLabels: labels, Name: "kerf_csi_call_seconds", Help: "Time of calls of kubelet and of sidecars.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 5, 30, 110}}, []string{"method"}),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{ConstLabels: labels, Name: "kerf_csi_errors_total", Help: "Calls that failed, by gRPC's code."}, []string{"method", "code"}),
	}
}

// Collectors is what there is to measure.
func (c *CallTimes) Collectors() []prometheus.Collector {
	return []prometheus.Collector{c.seconds, c.errors}
}

func (c *CallTimes) observe(method string, code codes.Code, took time.Duration) {
	if c == nil {
		return
	}
	c.seconds.WithLabelValues(method).Observe(took.Seconds())
	if code != codes.OK {
		c.errors.WithLabelValues(method, code.String()).Inc()
	}
}
