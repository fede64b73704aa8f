package csi

import (
	"context"
	"errors"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/kerf-gpu/kerf/csi/pool"
	"github.com/kerf-gpu/kerf/internal/node"
)

// ControllerGetCapabilities implements Controller.
func (d *Driver) ControllerGetCapabilities(context.Context, *spec.ControllerGetCapabilitiesRequest) (*spec.ControllerGetCapabilitiesResponse, error) {
	types := []spec.ControllerServiceCapability_RPC_Type{
		spec.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME,
		spec.ControllerServiceCapability_RPC_LIST_VOLUMES,
		spec.ControllerServiceCapability_RPC_GET_CAPACITY,
		spec.ControllerServiceCapability_RPC_GET_VOLUME,
		spec.ControllerServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
		spec.ControllerServiceCapability_RPC_GET_VOLUME_HEALTH,
		spec.ControllerServiceCapability_RPC_LIST_VOLUME_HEALTH,
	}
	if d.expands() {
		types = append(types, spec.ControllerServiceCapability_RPC_EXPAND_VOLUME)
	}
	if d.clones() {
		types = append(types, spec.ControllerServiceCapability_RPC_CLONE_VOLUME, spec.ControllerServiceCapability_RPC_CREATE_DELETE_SNAPSHOT,
			spec.ControllerServiceCapability_RPC_LIST_SNAPSHOTS, spec.ControllerServiceCapability_RPC_GET_SNAPSHOT)
	}
	response := &spec.ControllerGetCapabilitiesResponse{}
	for _, t := range types {
		response.Capabilities = append(response.Capabilities, &spec.ControllerServiceCapability{
			Type: &spec.ControllerServiceCapability_Rpc{Rpc: &spec.ControllerServiceCapability_RPC{Type: t}}})
	}
	return response, nil
}

// CreateVolume implements Controller.
func (d *Driver) CreateVolume(ctx context.Context, r *spec.CreateVolumeRequest) (*spec.CreateVolumeResponse, error) {
	a, err := parseCreate(r, d.config.NodeName)
	if err != nil {
		return nil, err
	}
	source, err := sourceID(r.GetVolumeContentSource())
	if err != nil {
		return nil, err
	}
	v := Volume{Kind: KindVolume, Name: r.GetName(), Spec: a.spec, Source: source, Parameters: lasting(r.GetParameters())}
	if v, err = d.create(ctx, v, a); err != nil {
		return nil, err
	}
	answer := d.describe(v)
	answer.ContentSource = r.GetVolumeContentSource()
	return &spec.CreateVolumeResponse{Volume: answer}, nil
}

// sourceID is what a volume is to be made from; "": nothing.
func sourceID(s *spec.VolumeContentSource) (string, error) {
	id := s.GetVolume().GetVolumeId() + s.GetSnapshot().GetSnapshotId()
	if s != nil && id == "" {
		return "", invalid("volume_content_source: names neither a volume nor a snapshot")
	}
	return id, nil
}

func (d *Driver) describe(v Volume) *spec.Volume {
	return &spec.Volume{VolumeId: v.ID, CapacityBytes: int64(v.Spec.Size),
		AccessibleTopology: []*spec.Topology{{Segments: map[string]string{TopologyKey: d.config.NodeName}}}}
}

// create makes a volume, or finds the one that this name has already.
func (d *Driver) create(ctx context.Context, v Volume, a ask) (Volume, error) {
	ctx = context.WithoutCancel(ctx) // what is begun is finished, though kubelet hangs up
	var shared []string
	if v.Source != "" {
		shared = []string{v.Source}
	}
	release, ok := d.busy.take([]string{nameKey(v.Kind, v.Name)}, shared)
	if !ok {
		return v, aborted("volume " + v.Name)
	}
	defer release()
	if known, ok := d.books.named(v.Kind, v.Name); ok {
		return d.again(ctx, known, v, a)
	}
	p, err := d.pool(a.pool)
	if err != nil {
		return v, err
	}
	if v.Source != "" {
		var from Volume
		if from, p, err = d.source(v, a); err != nil {
			return v, err
		}
		v.Spec.Size = max(v.Spec.Size, from.Spec.Size)
		if a.limit != 0 && v.Spec.Size > a.limit {
			return v, status.Errorf(codes.OutOfRange, "at most %s asked, %s has %s; allow that much", a.limit, v.Source, from.Spec.Size)
		}
		if a.spec.Filesystem == "" {
			v.Spec.Filesystem = from.Spec.Filesystem
		}
	}
	v.ID, v.State, v.Pool, v.Created = newID(v.Kind), StateCreating, p.Name, d.config.Now()
	if err := d.enter(ctx, p, v); err != nil {
		return v, err
	}
	if err := d.build(ctx, p, v); err != nil {
		return v, err
	}
	v.State = StateReady
	if err := d.books.put(v); err != nil {
		return v, status.Errorf(codes.Internal, "volume %s: %v", v.Name, err)
	}
	d.at("create.ready")
	d.tell()
	return v, nil
}

// source finds what a volume is to be made from, and the pool that both are in.
func (d *Driver) source(v Volume, a ask) (from Volume, p Pool, err error) {
	from, ok := d.books.get(v.Source)
	if !ok || from.State != StateReady || from.Kind == KindEphemeral {
		return from, p, status.Errorf(codes.NotFound, "source %s: node %s has no such volume or snapshot", v.Source, d.config.NodeName)
	}
	if p, err = d.poolOf(from); err != nil {
		return from, p, err
	}
	switch _, can := p.Backend.(pool.Cloner); {
	case !can:
		return from, p, invalid("source %s: volumes of pool %s (%s) cannot be copied; btrfs and XFS can", v.Source, p.Name, p.Kind)
	case a.pool != "" && a.pool != p.Name:
		return from, p, invalid("source %s is in pool %s: a copy cannot be in pool %s", v.Source, p.Name, a.pool)
	case from.Spec.Block != v.Spec.Block:
		return from, p, invalid("source %s is for the other access type (block or mount)", v.Source)
	}
	return from, p, nil
}

// enter writes a volume's intent, if its pool has room for it.
func (d *Driver) enter(ctx context.Context, p Pool, v Volume) error {
	c, err := p.capacity(ctx)
	if err != nil {
		return err
	}
	err = d.books.add(v, func(promised node.Bytes) error { return fits(p, c, promised, v.Spec.Size, v.Spec.Size) })
	if _, ours := status.FromError(err); err != nil && !ours {
		err = status.Errorf(codes.Internal, "volume %s: %v", v.Name, err)
	}
	if err == nil {
		d.at("create.intent")
	}
	return err
}

// build makes what an intent says. After an error nothing is left of it, the intent included; where that fails, the next start sees to it.
func (d *Driver) build(ctx context.Context, p Pool, v Volume) (err error) {
	cloner, _ := p.Backend.(pool.Cloner)
	switch {
	case v.Kind == KindSnapshot:
		err = cloner.Snapshot(ctx, v.Source, v.ID)
	case v.Source != "":
		err = cloner.Clone(ctx, v.Source, v.ID, v.Spec)
	default:
		err = p.Backend.Create(ctx, v.ID, v.Spec)
	}
	d.at("create.made")
	if err == nil {
		return nil
	}
	undo := p.Backend.Delete(ctx, v.ID)
	if undo == nil {
		undo = d.books.remove(v)
	}
	return failed(p, "make volume "+v.Name, errors.Join(err, undo))
}

// again is a request whose name is known: one that was cut short, or repeated.
func (d *Driver) again(ctx context.Context, known, v Volume, a ask) (Volume, error) {
	release, ok := d.busy.hold(known.ID)
	if !ok {
		return v, aborted("volume " + v.Name)
	}
	defer release()
	if known.State != StateReady {
		return v, d.retry(ctx, known)
	}
	if v.Source != "" && a.spec.Filesystem == "" {
		a.spec.Filesystem = known.Spec.Filesystem
	}
	if what := known.differs(a, v.Source, v.Parameters); what != "" {
		return v, status.Errorf(codes.AlreadyExists, "a volume named %s is there and %s; use another name, or delete that one", v.Name, what)
	}
	return known, nil
}

// retry clears a record that is not ready, for the next call of this name to begin anew.
func (d *Driver) retry(ctx context.Context, known Volume) error {
	if err := d.destroy(ctx, known); err != nil {
		return err
	}
	return status.Errorf(codes.Aborted, "volume %s: an earlier attempt was left over and is now cleared away; call again", known.Name)
}

// DeleteVolume implements Controller.
func (d *Driver) DeleteVolume(ctx context.Context, r *spec.DeleteVolumeRequest) (*spec.DeleteVolumeResponse, error) {
	if r.GetVolumeId() == "" {
		return nil, invalid("volume_id: empty")
	}
	if err := d.remove(ctx, r.GetVolumeId(), KindVolume); err != nil {
		return nil, err
	}
	return &spec.DeleteVolumeResponse{}, nil
}

// remove deletes a volume or a snapshot that nobody uses; one that is not known is gone already.
func (d *Driver) remove(ctx context.Context, id string, kind Kind) error {
	release, ok := d.busy.hold(id)
	if !ok {
		return aborted(string(kind) + " " + id)
	}
	defer release()
	v, ok := d.books.get(id)
	if !ok || v.Kind != kind {
		return nil
	}
	if used := d.targets.of(id); len(used) > 0 {
		return status.Errorf(codes.FailedPrecondition, "volume %s is published at %s; end the pod that uses it", id, used[0].Path)
	}
	return d.destroy(ctx, v)
}

// destroy deletes what there is of a volume. Its lock is held, and nothing of it is published.
func (d *Driver) destroy(ctx context.Context, v Volume) error {
	ctx = context.WithoutCancel(ctx)
	p, err := d.poolOf(v)
	if err != nil {
		return err
	}
	v.State = StateDeleting
	if err := d.books.put(v); err != nil {
		return status.Errorf(codes.Internal, "delete volume %s: %v", v.ID, err)
	}
	d.at("delete.intent")
	if err := p.Backend.Delete(ctx, v.ID); err != nil {
		return failed(p, "delete volume "+v.ID, err)
	}
	d.at("delete.gone")
	if err := d.books.remove(v); err != nil {
		return status.Errorf(codes.Internal, "delete volume %s: %v", v.ID, err)
	}
	d.at("delete.done")
	d.tell()
	return nil
}

// ValidateVolumeCapabilities implements Controller.
func (d *Driver) ValidateVolumeCapabilities(_ context.Context, r *spec.ValidateVolumeCapabilitiesRequest) (*spec.ValidateVolumeCapabilitiesResponse, error) {
	if r.GetVolumeId() == "" || len(r.GetVolumeCapabilities()) == 0 {
		return nil, invalid("volume_id or volume_capabilities: empty")
	}
	v, err := d.known(r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	s, err := parseCapabilities(r.GetVolumeCapabilities())
	switch {
	case err != nil:
		return &spec.ValidateVolumeCapabilitiesResponse{Message: status.Convert(err).Message()}, nil
	case s.Block != v.Spec.Block:
		return &spec.ValidateVolumeCapabilitiesResponse{Message: "the volume is for the other access type (block or mount)"}, nil
	}
	return &spec.ValidateVolumeCapabilitiesResponse{Confirmed: &spec.ValidateVolumeCapabilitiesResponse_Confirmed{
		VolumeContext: r.GetVolumeContext(), VolumeCapabilities: r.GetVolumeCapabilities(), Parameters: r.GetParameters()}}, nil
}

// known is a volume that is ready.
func (d *Driver) known(id string) (Volume, error) {
	if id == "" {
		return Volume{}, invalid("volume_id: empty")
	}
	v, ok := d.books.get(id)
	if !ok || v.State != StateReady || v.Kind == KindSnapshot {
		return v, status.Errorf(codes.NotFound, "volume %s: node %s has none of this id", id, d.config.NodeName)
	}
	return v, nil
}

// GetCapacity implements Controller.
func (d *Driver) GetCapacity(ctx context.Context, r *spec.GetCapacityRequest) (*spec.GetCapacityResponse, error) {
	if len(r.GetVolumeCapabilities()) > 0 {
		if _, err := parseCapabilities(r.GetVolumeCapabilities()); err != nil {
			return nil, err
		}
	}
	a, err := parseParameters(r.GetParameters(), false)
	if err != nil {
		return nil, err
	}
	if r.GetAccessibleTopology() != nil && !isNode(r.GetAccessibleTopology(), d.config.NodeName) {
		return &spec.GetCapacityResponse{}, nil
	}
	free, largest, err := d.free(ctx, a.pool)
	if err != nil {
		return nil, err
	}
	return &spec.GetCapacityResponse{AvailableCapacity: int64(free), MaximumVolumeSize: wrapperspb.Int64(int64(largest)), MinimumVolumeSize: wrapperspb.Int64(int64(minSize))}, nil
}

// free is what volumes may still be promised, all together and one alone.
func (d *Driver) free(ctx context.Context, name string) (all, one node.Bytes, err error) {
	p, err := d.pool(name)
	if err != nil {
		return 0, 0, err
	}
	c, err := p.capacity(ctx)
	if err != nil {
		return 0, 0, err
	}
	r := roomOf(c, p.Watermark, d.books.promisedOf(p.Name))
	return min(r.promisable, c.Free), r.largest, nil
}
