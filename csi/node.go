package csi

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kerf-gpu/kerf/csi/mount"
)

// NodeGetCapabilities implements Node.
func (d *Driver) NodeGetCapabilities(context.Context, *spec.NodeGetCapabilitiesRequest) (*spec.NodeGetCapabilitiesResponse, error) {
	types := []spec.NodeServiceCapability_RPC_Type{
		spec.NodeServiceCapability_RPC_GET_VOLUME_STATS,
		spec.NodeServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
		spec.NodeServiceCapability_RPC_VOLUME_MOUNT_GROUP,
		spec.NodeServiceCapability_RPC_GET_VOLUME_HEALTH,
		spec.NodeServiceCapability_RPC_GET_STORAGE_HEALTH,
	}
	if d.expands() {
		types = append(types, spec.NodeServiceCapability_RPC_EXPAND_VOLUME)
	}
	response := &spec.NodeGetCapabilitiesResponse{}
	for _, t := range types {
		response.Capabilities = append(response.Capabilities, &spec.NodeServiceCapability{
			Type: &spec.NodeServiceCapability_Rpc{Rpc: &spec.NodeServiceCapability_RPC{Type: t}}})
	}
	return response, nil
}

// NodeGetInfo implements Node.
func (d *Driver) NodeGetInfo(context.Context, *spec.NodeGetInfoRequest) (*spec.NodeGetInfoResponse, error) {
	return &spec.NodeGetInfoResponse{NodeId: d.config.NodeName,
		AccessibleTopology: &spec.Topology{Segments: map[string]string{TopologyKey: d.config.NodeName}}}, nil
}

// publishing is a request to publish, checked.
type publishing struct {
	target  Target
	options mount.Options
	group   int // -1: none
}

// parsePublish checks what does not need the volume.
func parsePublish(r *spec.NodePublishVolumeRequest, kubelet mount.Root) (p publishing, err error) {
	switch {
	case r.GetVolumeId() == "":
		return p, invalid("volume_id: empty")
	case r.GetTargetPath() == "":
		return p, invalid("target_path: empty")
	case r.GetVolumeCapability() == nil:
		return p, invalid("volume_capability: none")
	case !kubelet.Inside(r.GetTargetPath()):
		return p, invalid("target_path %s: not below kubelet's directory; is kubernetes.kubeletDir of kerfd the one that kubelet has?", r.GetTargetPath())
	}
	s, err := parseCapability(r.GetVolumeCapability())
	if err != nil {
		return p, err
	}
	flags := r.GetVolumeCapability().GetMount().GetMountFlags()
	mode := r.GetVolumeCapability().GetAccessMode().GetMode()
	p.group = -1
	p.target = Target{Path: r.GetTargetPath(), Block: s.Block, Mode: mode.String(), Group: r.GetVolumeCapability().GetMount().GetVolumeMountGroup(),
		ReadOnly: r.GetReadonly() || slices.Contains(flags, "ro") || mode == spec.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY,
		Flags:    strings.Join(flags, ",")}
	p.options = mount.Options{Device: s.Block, ReadOnly: p.target.ReadOnly, NoExec: slices.Contains(flags, "noexec"), NoAtime: slices.Contains(flags, "noatime")}
	if p.target.Group != "" {
		group, err := strconv.ParseUint(p.target.Group, 10, 31)
		if err != nil {
			return p, invalid("volume_mount_group %q: not the number of a group", p.target.Group)
		}
		p.group = int(group)
	}
	return p, nil
}

// NodePublishVolume implements Node.
func (d *Driver) NodePublishVolume(ctx context.Context, r *spec.NodePublishVolumeRequest) (*spec.NodePublishVolumeResponse, error) {
	p, err := parsePublish(r, d.kubelet)
	if err != nil {
		return nil, err
	}
	ctx = context.WithoutCancel(ctx)
	if r.GetVolumeContext()[paramEphemeral] == "true" {
		err = d.publishEphemeral(ctx, r, p)
	} else {
		err = d.publishKnown(ctx, r.GetVolumeId(), p)
	}
	if err != nil {
		return nil, err
	}
	return &spec.NodePublishVolumeResponse{}, nil
}

func (d *Driver) publishKnown(ctx context.Context, id string, p publishing) error {
	release, ok := d.busy.hold(id, p.target.Path)
	if !ok {
		return aborted("volume " + id)
	}
	defer release()
	v, err := d.known(id)
	if err != nil {
		return err
	}
	return d.publish(ctx, v, p)
}

// publishEphemeral makes the pod's own volume, if that is not done, and publishes it.
func (d *Driver) publishEphemeral(ctx context.Context, r *spec.NodePublishVolumeRequest, p publishing) error {
	a, err := parseParameters(r.GetVolumeContext(), true)
	if err != nil {
		return err
	}
	guaranteed, size := a.spec.Guaranteed, a.asked
	if a.spec, err = parseCapabilities([]*spec.VolumeCapability{r.GetVolumeCapability()}); err != nil {
		return err
	}
	if a.asked, _, err = parseSize(&spec.CapacityRange{RequiredBytes: int64(size)}); err != nil {
		return err
	}
	a.spec.Guaranteed, a.spec.Size = guaranteed, a.asked
	v := Volume{Kind: KindEphemeral, Name: r.GetVolumeId(), Spec: a.spec, Parameters: lasting(r.GetVolumeContext())}
	if v, err = d.create(ctx, v, a); err != nil {
		return err
	}
	release, ok := d.busy.hold(v.ID, p.target.Path)
	if !ok {
		return aborted("volume " + v.Name)
	}
	defer release()
	err = d.publish(ctx, v, p)
	if err != nil && len(d.targets.of(v.ID)) == 0 { // kubelet does not always unpublish what it could not publish
		err = errors.Join(err, d.destroy(ctx, v))
	}
	return err
}

// publish binds a volume to a target. Both locks are held.
func (d *Driver) publish(ctx context.Context, v Volume, p publishing) error {
	p.target.Volume = v.ID
	if p.target.Block != v.Spec.Block {
		return invalid("volume %s is for the other access type (block or mount)", v.ID)
	}
	mounted, err := mount.Is(p.target.Path)
	if err != nil {
		return status.Errorf(codes.Internal, "target %s: %v", p.target.Path, err)
	}
	before, known := d.targets.get(p.target.Path)
	switch {
	case known && before != p.target && mounted:
		return status.Errorf(codes.AlreadyExists, "target %s: volume %s is published there, in another way than asked; unpublish it first", p.target.Path, before.Volume)
	case known && mounted:
		return nil
	case mounted:
		return status.Errorf(codes.AlreadyExists, "target %s: something else is mounted there; unmount it", p.target.Path)
	}
	single := spec.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER.String()
	for _, other := range d.targets.of(v.ID) {
		if other.Path != p.target.Path && (other.Mode == single || p.target.Mode == single) {
			return status.Errorf(codes.FailedPrecondition, "volume %s is for one pod (%s), and is published at %s; end that pod", v.ID, single, other.Path)
		}
	}
	if err := d.kubelet.Reach(p.target.Path); err != nil {
		return status.Errorf(codes.Internal, "publish volume %s: %v", v.ID, err)
	}
	if err := d.targets.put(p.target); err != nil {
		return status.Errorf(codes.Internal, "target %s: %v", p.target.Path, err)
	}
	d.at("publish.intent")
	if err := d.bind(ctx, v, p); err != nil {
		undo := d.unbind(ctx, v, p.target.Path)
		if undo != nil {
			return status.Errorf(status.Code(err), "%s; and then: %v", status.Convert(err).Message(), undo)
		}
		return err
	}
	d.at("publish.done")
	return nil
}

// bind opens the volume and binds it.
func (d *Driver) bind(ctx context.Context, v Volume, p publishing) error {
	place, err := d.poolOf(v)
	if err != nil {
		return err
	}
	source, err := place.Backend.Open(ctx, v.ID)
	if err != nil {
		return failed(place, "open volume "+v.ID, err)
	}
	d.at("publish.opened")
	if p.group >= 0 && !p.target.ReadOnly && !p.target.Block {
		if err := mount.Group(source, p.group); err != nil {
			return status.Errorf(codes.Internal, "volume %s: %v", v.ID, err)
		}
	}
	err = d.kubelet.Bind(source, p.target.Path, p.options)
	d.at("publish.bound")
	switch {
	case errors.Is(err, mount.ErrOccupied):
		return status.Errorf(codes.FailedPrecondition, "%v; remove it", err)
	case err != nil:
		return status.Errorf(codes.Internal, "publish volume %s: %v", v.ID, err)
	}
	return nil
}

// NodeUnpublishVolume implements Node.
func (d *Driver) NodeUnpublishVolume(ctx context.Context, r *spec.NodeUnpublishVolumeRequest) (*spec.NodeUnpublishVolumeResponse, error) {
	switch {
	case r.GetVolumeId() == "":
		return nil, invalid("volume_id: empty")
	case r.GetTargetPath() == "":
		return nil, invalid("target_path: empty")
	case !d.kubelet.Inside(r.GetTargetPath()):
		return nil, invalid("target_path %s: not below kubelet's directory", r.GetTargetPath())
	}
	if err := d.unpublish(context.WithoutCancel(ctx), r.GetVolumeId(), r.GetTargetPath()); err != nil {
		return nil, err
	}
	return &spec.NodeUnpublishVolumeResponse{}, nil
}

func (d *Driver) unpublish(ctx context.Context, handle, path string) error {
	v, known := d.byHandle(handle)
	keys := []string{path}
	if known {
		keys = append(keys, v.ID)
	}
	release, ok := d.busy.hold(keys...)
	if !ok {
		return aborted("volume " + handle)
	}
	defer release()
	if target, ok := d.targets.get(path); ok && target.Volume != v.ID {
		return status.Errorf(codes.NotFound, "target %s: volume %s is published there, and not %s", path, target.Volume, handle)
	}
	if !known { // the volume is gone, and kubelet wants its pod to end
		if err := d.kubelet.Unbind(path); err != nil {
			return unbindFailed(path, err)
		}
		return nil
	}
	if err := d.unbind(ctx, v, path); err != nil {
		return err
	}
	if v.Kind == KindEphemeral && len(d.targets.of(v.ID)) == 0 {
		return d.destroy(ctx, v)
	}
	return nil
}

func unbindFailed(path string, err error) error {
	if errors.Is(err, mount.ErrOccupied) {
		return status.Errorf(codes.FailedPrecondition, "%v: nothing of ours is mounted there; remove it", err)
	}
	return status.Errorf(codes.Internal, "unpublish %s: %v", path, err)
}

// unbind undoes what publish did at a target, wherever it was cut short. Both locks are held.
func (d *Driver) unbind(ctx context.Context, v Volume, path string) error {
	_, recorded := d.targets.get(path)
	err := d.kubelet.Unbind(path)
	d.at("unpublish.unbound")
	if errors.Is(err, mount.ErrOccupied) && recorded { // not by us: the mount is gone, and what lies there is not ours
		err = nil
	}
	if err != nil {
		return unbindFailed(path, err)
	}
	last := true
	for _, other := range d.targets.of(v.ID) {
		last = last && other.Path == path
	}
	if last {
		place, err := d.poolOf(v)
		if err != nil {
			return err
		}
		if err := place.Backend.Close(ctx, v.ID); err != nil {
			return failed(place, "close volume "+v.ID, err)
		}
		d.at("unpublish.closed")
	}
	if err := d.targets.remove(path); err != nil {
		return status.Errorf(codes.Internal, "%v", err)
	}
	d.at("unpublish.done")
	return nil
}
