package deviceplugin

import (
	"context"
	"fmt"
	"runtime/debug"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

// service is what kubelet calls.
type service struct {
	pluginapi.UnimplementedDevicePluginServer
	plugin    *Plugin
	takenOver func() bool // the socket's path is another plugin's
}

var pluginOptions = &pluginapi.DevicePluginOptions{GetPreferredAllocationAvailable: true}

func (s service) GetDevicePluginOptions(context.Context, *pluginapi.Empty) (*pluginapi.DevicePluginOptions, error) {
	return pluginOptions, nil
}

// ListAndWatch sends the full list at once, and again whenever it is another one.
func (s service) ListAndWatch(_ *pluginapi.Empty, stream grpc.ServerStreamingServer[pluginapi.ListAndWatchResponse]) error {
	p := s.plugin
	again := time.NewTicker(p.pace.Devices)
	defer again.Stop()
	var sent []*pluginapi.Device
	for first := true; ; first = false {
		changed := p.changes.wait() // before looking: what changes while we look wakes us again
		devices := Devices(p.options.GPUs(), p.options.Size, p.options.Shares.Owners())
		if first || !sameDevices(devices, sent) {
			if err := stream.Send(&pluginapi.ListAndWatchResponse{Devices: devices}); err != nil {
				return err
			}
			sent = devices
		}
		select {
		case <-stream.Context().Done():
			return nil
		case <-changed:
		case <-again.C:
		}
	}
}

func (s service) GetPreferredAllocation(_ context.Context, r *pluginapi.PreferredAllocationRequest) (*pluginapi.PreferredAllocationResponse, error) {
	response := &pluginapi.PreferredAllocationResponse{}
	for _, c := range r.GetContainerRequests() {
		response.ContainerResponses = append(response.ContainerResponses, &pluginapi.ContainerPreferredAllocationResponse{
			DeviceIDs: Pack(c.GetAvailableDeviceIDs(), c.GetMustIncludeDeviceIDs(), int(c.GetAllocationSize())),
		})
	}
	return response, nil
}

// Allocate gives all containers of a request their shares, or none. kubelet fails the pod with the error's words.
func (s service) Allocate(ctx context.Context, r *pluginapi.AllocateRequest) (*pluginapi.AllocateResponse, error) {
	p := s.plugin
	p.mu.Lock()
	defer p.mu.Unlock()
	if s.takenOver() { // its shares are another kerfd's by now: what is not seen here would be held twice
		return nil, status.Error(codes.Unavailable, "another kerfd has just taken over on this node, and is about to register; delete the pod, so that it is made again")
	}
	defer p.changes.send()
	response := &pluginapi.AllocateResponse{}
	for _, c := range r.GetContainerRequests() {
		container, err := p.allocate(ctx, c.GetDevicesIds())
		if err != nil {
			return nil, status.Error(codes.FailedPrecondition, err.Error()) // kubelet asks for one container at a time: there is nothing to take back
		}
		response.ContainerResponses = append(response.ContainerResponses, container)
	}
	return response, nil
}

func (s service) PreStartContainer(context.Context, *pluginapi.PreStartContainerRequest) (*pluginapi.PreStartContainerResponse, error) {
	return &pluginapi.PreStartContainerResponse{}, nil
}

// newServer makes a server whose handlers may panic without taking kerfd along.
func (p *Plugin) newServer(takenOver func() bool) *grpc.Server {
	server := grpc.NewServer(
		grpc.UnaryInterceptor(func(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (answer any, err error) {
			defer p.recovered(info.FullMethod, &err)
			return handle(ctx, request)
		}),
		grpc.StreamInterceptor(func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) (err error) {
			defer p.recovered(info.FullMethod, &err)
			return handle(srv, stream)
		}))
	pluginapi.RegisterDevicePluginServer(server, service{plugin: p, takenOver: takenOver})
	return server
}

func (p *Plugin) recovered(method string, err *error) {
	if r := recover(); r != nil {
		p.report("panic", fmt.Errorf("%s: panic: %v\n%s", method, r, debug.Stack()))
		*err = status.Errorf(codes.Internal, "%s: a fault of kerfd's (%v); its log says more", method, r)
	}
}
