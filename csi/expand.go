package csi

import (
	"context"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kerf-gpu/kerf/csi/pool"
	"github.com/kerf-gpu/kerf/internal/node"
)

// ControllerExpandVolume implements Controller. Controller and node are one process here: the volume is grown at once.
func (d *Driver) ControllerExpandVolume(ctx context.Context, r *spec.ControllerExpandVolumeRequest) (*spec.ControllerExpandVolumeResponse, error) {
	v, err := d.expand(ctx, r.GetVolumeId(), r.GetCapacityRange())
	if err != nil {
		return nil, err
	}
	return &spec.ControllerExpandVolumeResponse{CapacityBytes: int64(v.Spec.Size)}, nil
}

// NodeExpandVolume implements Node.
func (d *Driver) NodeExpandVolume(ctx context.Context, r *spec.NodeExpandVolumeRequest) (*spec.NodeExpandVolumeResponse, error) {
	if _, err := d.publishedAt(r.GetVolumeId(), r.GetVolumePath()); err != nil {
		return nil, err
	}
	size := r.GetCapacityRange()
	if size == nil { // as large as it is
		size = &spec.CapacityRange{RequiredBytes: int64(minSize)}
	}
	v, err := d.expand(ctx, r.GetVolumeId(), size)
	if err != nil {
		return nil, err
	}
	return &spec.NodeExpandVolumeResponse{CapacityBytes: int64(v.Spec.Size)}, nil
}

// publishedAt is a volume that is published at a path.
func (d *Driver) publishedAt(id, path string) (Volume, error) {
	switch {
	case id == "":
		return Volume{}, invalid("volume_id: empty")
	case path == "":
		return Volume{}, invalid("volume_path: empty")
	}
	v, ok := d.byHandle(id)
	if target, at := d.targets.get(path); !ok || !at || target.Volume != v.ID {
		return v, status.Errorf(codes.NotFound, "volume %s is not published at %s", id, path)
	}
	return v, nil
}

// expand grows a volume to a size; one that has it already stays as it is.
func (d *Driver) expand(ctx context.Context, id string, r *spec.CapacityRange) (v Volume, err error) {
	if id == "" {
		return v, invalid("volume_id: empty")
	}
	if r == nil {
		return v, invalid("capacity_range: none")
	}
	size, limit, err := parseSize(r)
	if err != nil {
		return v, err
	}
	ctx = context.WithoutCancel(ctx)
	release, ok := d.busy.hold(id)
	if !ok {
		return v, aborted("volume " + id)
	}
	defer release()
	if v, err = d.known(id); err != nil {
		return v, err
	}
	switch {
	case limit != 0 && v.Spec.Size > limit:
		return v, status.Errorf(codes.OutOfRange, "at most %s asked, volume %s has %s; volumes do not shrink", limit, id, v.Spec.Size)
	case v.Spec.Size >= size:
		return v, nil
	}
	p, err := d.poolOf(v)
	if err != nil {
		return v, err
	}
	if _, can := p.Backend.(pool.Expander); !can {
		return v, status.Errorf(codes.FailedPrecondition, "volumes of pool %s (%s) do not grow", p.Name, p.Kind)
	}
	c, err := p.capacity(ctx)
	if err != nil {
		return v, err
	}
	before := v
	v.Growing = size
	if err := d.books.grow(v, func(promised node.Bytes) error { return fits(p, c, promised, size, size-v.Spec.Size) }); err != nil {
		return before, err
	}
	d.at("expand.intent")
	if v, err = d.grow(ctx, p, v); err != nil {
		before.Growing = 0
		if undo := d.books.put(before); undo != nil {
			return before, status.Errorf(status.Code(err), "%s; and then: %v", status.Convert(err).Message(), undo)
		}
		return before, err
	}
	d.tell()
	return v, nil
}

// grow does what a record says is under way.
func (d *Driver) grow(ctx context.Context, p Pool, v Volume) (Volume, error) {
	expander, can := p.Backend.(pool.Expander)
	if !can {
		return v, status.Errorf(codes.FailedPrecondition, "volumes of pool %s (%s) do not grow", p.Name, p.Kind)
	}
	unused := len(d.targets.of(v.ID)) == 0
	if unused { // a file system grows while it is mounted
		if _, err := p.Backend.Open(ctx, v.ID); err != nil {
			return v, failed(p, "open volume "+v.ID, err)
		}
		d.at("expand.opened")
	}
	err := expander.Expand(ctx, v.ID, v.Growing)
	d.at("expand.grown")
	if unused {
		if closed := p.Backend.Close(ctx, v.ID); err == nil {
			err = closed
		}
	}
	if err != nil {
		return v, failed(p, "grow volume "+v.ID, err)
	}
	v.Spec.Size, v.Growing = v.Growing, 0
	if err := d.books.put(v); err != nil {
		return v, status.Errorf(codes.Internal, "grow volume %s: %v", v.ID, err)
	}
	d.at("expand.done")
	return v, nil
}
