package csi

import (
	"context"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/kerf-gpu/kerf/csi/pool"
	"github.com/kerf-gpu/kerf/internal/node"
)

// CreateSnapshot implements Controller.
func (d *Driver) CreateSnapshot(ctx context.Context, r *spec.CreateSnapshotRequest) (*spec.CreateSnapshotResponse, error) {
	switch {
	case r.GetName() == "":
		return nil, invalid("name: empty; it is what a repeated request is known by")
	case r.GetSourceVolumeId() == "":
		return nil, invalid("source_volume_id: empty")
	}
	for key := range lasting(r.GetParameters()) {
		return nil, invalid("parameter %q is not known; snapshots have none", key)
	}
	s, err := d.snapshot(context.WithoutCancel(ctx), r.GetName(), r.GetSourceVolumeId())
	if err != nil {
		return nil, err
	}
	return &spec.CreateSnapshotResponse{Snapshot: d.describeSnapshot(s)}, nil
}

func (d *Driver) snapshot(ctx context.Context, name, source string) (Volume, error) {
	release, ok := d.busy.take([]string{nameKey(KindSnapshot, name)}, []string{source})
	if !ok {
		return Volume{}, aborted("snapshot " + name)
	}
	defer release()
	if known, ok := d.books.named(KindSnapshot, name); ok {
		switch {
		case known.State != StateReady:
			return known, d.retry(ctx, known)
		case known.Source != source:
			return known, status.Errorf(codes.AlreadyExists, "a snapshot named %s is there, of volume %s; use another name, or delete that one", name, known.Source)
		}
		return known, nil
	}
	from, err := d.known(source)
	if err != nil {
		return from, err
	}
	p, err := d.poolOf(from)
	if err != nil {
		return from, err
	}
	if _, can := p.Backend.(pool.Cloner); !can {
		return from, status.Errorf(codes.FailedPrecondition, "volumes of pool %s (%s) cannot be copied, so there are no snapshots of them; btrfs and XFS can", p.Name, p.Kind)
	}
	s := Volume{ID: newID(KindSnapshot), Kind: KindSnapshot, Name: name, State: StateCreating, Pool: from.Pool, Spec: from.Spec, Source: source, Created: d.config.Now()}
	if err := d.books.add(s, func(node.Bytes) error { return nil }); err != nil {
		return s, status.Errorf(codes.Internal, "snapshot %s: %v", name, err)
	}
	d.at("create.intent")
	if err := d.build(ctx, p, s); err != nil {
		return s, err
	}
	s.State = StateReady
	if err := d.books.put(s); err != nil {
		return s, status.Errorf(codes.Internal, "snapshot %s: %v", name, err)
	}
	d.at("create.ready")
	return s, nil
}

// DeleteSnapshot implements Controller.
func (d *Driver) DeleteSnapshot(ctx context.Context, r *spec.DeleteSnapshotRequest) (*spec.DeleteSnapshotResponse, error) {
	if r.GetSnapshotId() == "" {
		return nil, invalid("snapshot_id: empty")
	}
	if err := d.remove(ctx, r.GetSnapshotId(), KindSnapshot); err != nil {
		return nil, err
	}
	return &spec.DeleteSnapshotResponse{}, nil
}

func (d *Driver) describeSnapshot(s Volume) *spec.Snapshot {
	return &spec.Snapshot{SnapshotId: s.ID, SourceVolumeId: s.Source, SizeBytes: int64(s.Spec.Size), ReadyToUse: true, CreationTime: timestamppb.New(s.Created)}
}

// ListSnapshots implements Controller.
func (d *Driver) ListSnapshots(_ context.Context, r *spec.ListSnapshotsRequest) (*spec.ListSnapshotsResponse, error) {
	var all []Volume
	for _, s := range d.ready(KindSnapshot) {
		if (r.GetSnapshotId() == "" || s.ID == r.GetSnapshotId()) && (r.GetSourceVolumeId() == "" || s.Source == r.GetSourceVolumeId()) {
			all = append(all, s)
		}
	}
	some, next, err := page(all, idOf, r.GetStartingToken(), r.GetMaxEntries())
	if err != nil {
		return nil, err
	}
	response := &spec.ListSnapshotsResponse{NextToken: next}
	for _, s := range some {
		response.Entries = append(response.Entries, &spec.ListSnapshotsResponse_Entry{Snapshot: d.describeSnapshot(s)})
	}
	return response, nil
}

// GetSnapshot implements Controller.
func (d *Driver) GetSnapshot(_ context.Context, r *spec.GetSnapshotRequest) (*spec.GetSnapshotResponse, error) {
	if r.GetSnapshotId() == "" {
		return nil, invalid("snapshot_id: empty")
	}
	s, ok := d.books.get(r.GetSnapshotId())
	if !ok || s.Kind != KindSnapshot || s.State != StateReady {
		return nil, status.Errorf(codes.NotFound, "snapshot %s: node %s has none of this id", r.GetSnapshotId(), d.config.NodeName)
	}
	return &spec.GetSnapshotResponse{Snapshot: d.describeSnapshot(s)}, nil
}
