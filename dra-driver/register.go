package dra

import (
	"context"
	"fmt"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/dynamic-resource-allocation/kubeletplugin"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// watchRegistration hears what kubelet says of the registration.
func (d *Driver) watchRegistration(ctx context.Context, request any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if said, ok := request.(*registration.RegistrationStatus); ok {
		d.registered.Store(said.PluginRegistered)
		if !said.PluginRegistered {
			d.config.report(d.failed("register", fmt.Errorf("kubelet refuses the DRA driver %s: %s; is kubelet older than 1.34, or has another driver this name? "+
				"See kubelet's log", d.name, said.Error)))
		}
	}
	return handler(ctx, request)
}

// recoverCall is the last guard: gRPC's server does not recover, and a panic would end every tenant's session with kerfd.
func (d *Driver) recoverCall(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (answer any, err error) {
	defer func() {
		if cause := recover(); cause != nil {
			d.config.report(d.failed("panic", fmt.Errorf("%s panicked: %v\n%s", info.FullMethod, cause, debug.Stack())))
			err = status.Errorf(codes.Internal, "%s panicked (%v); this is a mistake in Kerf, please report it with the log of kerfd", info.FullMethod, cause)
		}
	}()
	return handler(ctx, request)
}

// refuseSecond looks for a driver that has our name already. The library would take its socket away without a word, and both would
// delete each other's slices from then on. During a rolling update a second pod of ours is no stranger: it has our directory.
func (d *Driver) refuseSecond(ctx context.Context) error {
	sockets, err := filepath.Glob(filepath.Join(d.config.registryDir(), "*-reg.sock"))
	if err != nil {
		return fmt.Errorf("DRA driver: look for other drivers: %w", err)
	}
	ours := d.name + "-reg.sock"
	if d.config.PodUID != "" {
		ours = kubeletplugin.RollingUpdateRegistrarSocketFile(d.config.registryDir(), d.name, types.UID(d.config.PodUID))
	}
	for _, socket := range sockets {
		if !strings.HasPrefix(filepath.Base(socket), d.name) && filepath.Base(socket) != ours {
			continue
		}
		info := askInfo(ctx, socket)
		if info == nil || info.Name != d.name {
			continue
		}
		if sibling := d.config.PodUID != "" && filepath.Dir(info.Endpoint) == d.dataDir() && filepath.Base(socket) != ours; !sibling {
			return fmt.Errorf("DRA driver: another driver named %s answers on %s (endpoint %s); two cannot share a node: end one of them "+
				"(kubectl get pods -A -o wide shows which pods are on node %s)", d.name, socket, info.Endpoint, d.config.NodeName)
		}
	}
	return nil
}

// askInfo asks a plugin who it is; nil: nobody answers, the socket is left over.
func askInfo(ctx context.Context, socket string) *registration.PluginInfo {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	connection, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil
	}
	defer func() { _ = connection.Close() }()
	info, err := registration.NewRegistrationClient(connection).GetInfo(ctx, &registration.InfoRequest{})
	if err != nil {
		return nil
	}
	return info
}
