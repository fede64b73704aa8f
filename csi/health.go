package csi

import (
	"context"
	"fmt"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kerf-gpu/kerf/csi/mount"
	"github.com/kerf-gpu/kerf/internal/node"
)

// NodeGetVolumeStats implements Node.
func (d *Driver) NodeGetVolumeStats(ctx context.Context, r *spec.NodeGetVolumeStatsRequest) (*spec.NodeGetVolumeStatsResponse, error) {
	v, err := d.publishedAt(r.GetVolumeId(), r.GetVolumePath())
	if err != nil {
		return nil, err
	}
	if v.Spec.Block {
		return &spec.NodeGetVolumeStatsResponse{Usage: []*spec.VolumeUsage{{Unit: spec.VolumeUsage_BYTES, Total: int64(v.Spec.Size)}}}, nil
	}
	p, err := d.poolOf(v)
	if err != nil {
		return nil, err
	}
	u, err := p.Backend.Usage(ctx, v.ID)
	if err != nil {
		return nil, failed(p, "usage of volume "+v.ID, err)
	}
	if u.Size == 0 || u.Inodes == 0 { // what the back end does not count is the file system's
		var fs unix.Statfs_t
		if err := unix.Statfs(r.GetVolumePath(), &fs); err != nil {
			return nil, status.Errorf(codes.Internal, "volume %s: statfs %s: %v", v.ID, r.GetVolumePath(), err)
		}
		if u.Size == 0 {
			u.Size = node.Bytes(fs.Blocks) * node.Bytes(fs.Bsize)
			u.Used = node.Bytes(fs.Blocks-fs.Bfree) * node.Bytes(fs.Bsize)
		}
		if u.Inodes == 0 {
			u.Inodes, u.InodesUsed = fs.Files, fs.Files-fs.Ffree
		}
	}
	response := &spec.NodeGetVolumeStatsResponse{Usage: []*spec.VolumeUsage{
		{Unit: spec.VolumeUsage_BYTES, Total: int64(u.Size), Used: int64(u.Used), Available: int64(u.Size - min(u.Used, u.Size))}}}
	if u.Inodes > 0 {
		response.Usage = append(response.Usage, &spec.VolumeUsage{Unit: spec.VolumeUsage_INODES,
			Total: int64(u.Inodes), Used: int64(u.InodesUsed), Available: int64(u.Inodes - min(u.InodesUsed, u.Inodes))})
	}
	return response, nil
}

// sick says why a volume cannot be used; "": nothing is known against it.
func (d *Driver) sick(ctx context.Context, v Volume) string {
	p, err := d.poolOf(v)
	if err == nil {
		_, err = p.capacity(ctx)
	}
	if err != nil {
		return status.Convert(err).Message()
	}
	for _, target := range d.targets.of(v.ID) {
		mounted, err := mount.Is(target.Path)
		switch {
		case err != nil:
			return fmt.Sprintf("target %s: %v", target.Path, err)
		case !mounted:
			return fmt.Sprintf("target %s: the volume is no longer mounted there; somebody unmounted it. Start the pod again", target.Path)
		}
		var fs unix.Statfs_t
		if err := unix.Statfs(target.Path, &fs); err != nil {
			return fmt.Sprintf("target %s: %v; see the kernel's log for errors of the disk", target.Path, err)
		}
	}
	return ""
}

func (d *Driver) health(ctx context.Context, v Volume, id string) *spec.VolumeHealth {
	h := &spec.VolumeHealth{VolumeId: id}
	if why := d.sick(ctx, v); why != "" {
		h.HealthStatuses = []*spec.VolumeHealth_VolumeHealthEntry{{Status: spec.VolumeHealthErrorType_INACCESSIBLE, Message: why}}
	}
	return h
}

// NodeGetVolumeHealth implements Node.
func (d *Driver) NodeGetVolumeHealth(ctx context.Context, r *spec.NodeGetVolumeHealthRequest) (*spec.NodeGetVolumeHealthResponse, error) {
	if r.GetVolumeId() == "" {
		return nil, invalid("volume_id: empty")
	}
	v, ok := d.byHandle(r.GetVolumeId())
	if !ok || v.Kind == KindSnapshot {
		return nil, status.Errorf(codes.NotFound, "volume %s: node %s has none of this id", r.GetVolumeId(), d.config.NodeName)
	}
	return &spec.NodeGetVolumeHealthResponse{VolumeHealth: d.health(ctx, v, r.GetVolumeId())}, nil
}

// ControllerGetVolumeHealth implements Controller.
func (d *Driver) ControllerGetVolumeHealth(ctx context.Context, r *spec.ControllerGetVolumeHealthRequest) (*spec.ControllerGetVolumeHealthResponse, error) {
	v, err := d.known(r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	return &spec.ControllerGetVolumeHealthResponse{VolumeHealth: d.health(ctx, v, v.ID)}, nil
}

// ControllerListVolumeHealth implements Controller.
func (d *Driver) ControllerListVolumeHealth(ctx context.Context, r *spec.ControllerListVolumeHealthRequest) (*spec.ControllerListVolumeHealthResponse, error) {
	var sick []*spec.VolumeHealth
	for _, v := range d.ready(KindVolume) {
		if h := d.health(ctx, v, v.ID); len(h.HealthStatuses) > 0 {
			sick = append(sick, h)
		}
	}
	some, next, err := page(sick, (*spec.VolumeHealth).GetVolumeId, r.GetStartingToken(), r.GetMaxEntries())
	if err != nil {
		return nil, err
	}
	return &spec.ControllerListVolumeHealthResponse{Entries: some, NextToken: next}, nil
}

// NodeGetStorageHealth implements Node.
func (d *Driver) NodeGetStorageHealth(ctx context.Context, _ *spec.NodeGetStorageHealthRequest) (*spec.NodeGetStorageHealthResponse, error) {
	worst := make(map[spec.StorageHealthErrorType]string) // one entry of a kind
	for _, p := range d.config.Pools {
		c, err := p.capacity(ctx)
		kind, why := spec.StorageHealthErrorType_STORAGE_DEGRADED, ""
		switch {
		case err != nil:
			kind, why = spec.StorageHealthErrorType_STORAGE_UNREACHABLE, status.Convert(err).Message()
		case c.Free < c.Total/50:
			why = fmt.Sprintf("pool %s: %s of %s are free; volumes may fail to write what they were promised", p.Name, c.Free, c.Total)
		}
		if why != "" {
			if before := worst[kind]; before != "" {
				why = before + "; " + why
			}
			worst[kind] = why
		}
	}
	response := &spec.NodeGetStorageHealthResponse{}
	for _, kind := range []spec.StorageHealthErrorType{spec.StorageHealthErrorType_STORAGE_UNREACHABLE, spec.StorageHealthErrorType_STORAGE_DEGRADED} {
		if why := worst[kind]; why != "" {
			response.BackendHealth = append(response.BackendHealth, &spec.NodeGetStorageHealthResponse_StorageBackendHealth{Status: kind, Message: why})
		}
	}
	return response, nil
}
