package csi

import (
	"context"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/kerf-gpu/kerf/csi/pool"
)

// GetPluginInfo implements Identity.
func (d *Driver) GetPluginInfo(context.Context, *spec.GetPluginInfoRequest) (*spec.GetPluginInfoResponse, error) {
	return &spec.GetPluginInfoResponse{Name: DriverName, VendorVersion: d.config.Version}, nil
}

// GetPluginCapabilities implements Identity.
func (d *Driver) GetPluginCapabilities(context.Context, *spec.GetPluginCapabilitiesRequest) (*spec.GetPluginCapabilitiesResponse, error) {
	response := &spec.GetPluginCapabilitiesResponse{}
	for _, t := range []spec.PluginCapability_Service_Type{
		spec.PluginCapability_Service_CONTROLLER_SERVICE,
		spec.PluginCapability_Service_VOLUME_ACCESSIBILITY_CONSTRAINTS,
	} {
		response.Capabilities = append(response.Capabilities, &spec.PluginCapability{
			Type: &spec.PluginCapability_Service_{Service: &spec.PluginCapability_Service{Type: t}}})
	}
	if d.expands() {
		response.Capabilities = append(response.Capabilities, &spec.PluginCapability{
			Type: &spec.PluginCapability_VolumeExpansion_{VolumeExpansion: &spec.PluginCapability_VolumeExpansion{Type: spec.PluginCapability_VolumeExpansion_ONLINE}}})
	}
	return response, nil
}

// Probe implements Identity.
func (d *Driver) Probe(ctx context.Context, _ *spec.ProbeRequest) (*spec.ProbeResponse, error) {
	for _, p := range d.config.Pools {
		if _, err := p.capacity(ctx); err == nil {
			return &spec.ProbeResponse{Ready: wrapperspb.Bool(true)}, nil
		}
	}
	return nil, status.Error(codes.FailedPrecondition, "no pool of this node answers; kerf doctor says more")
}

// expands says whether volumes of any pool grow.
func (d *Driver) expands() bool { return has[pool.Expander](d) }

// clones says whether any pool copies volumes.
func (d *Driver) clones() bool { return has[pool.Cloner](d) }

func has[T any](d *Driver) bool {
	for _, p := range d.config.Pools {
		if _, ok := p.Backend.(T); ok {
			return true
		}
	}
	return false
}
