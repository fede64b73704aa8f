package csi

import (
	"context"
	"regexp"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// tokenPattern is what a page ends with: the last id that was in it, which may be gone meanwhile.
var tokenPattern = regexp.MustCompile(`^[sv]1-[a-z2-7]{20,40}$`)

// page cuts a list that is sorted by id. An empty next is the end.
func page[T any](all []T, id func(T) string, token string, limit int32) (some []T, next string, err error) {
	if token != "" && !tokenPattern.MatchString(token) {
		return nil, "", status.Errorf(codes.Aborted, "starting_token %q: not one that this driver gave; begin with none", token)
	}
	if limit < 0 {
		return nil, "", invalid("max_entries %d: negative", limit)
	}
	for i, entry := range all {
		if id(entry) <= token {
			continue
		}
		some = append(some, entry)
		if limit > 0 && len(some) == int(limit) {
			if i < len(all)-1 {
				next = id(entry)
			}
			break
		}
	}
	return some, next, nil
}

// ready are the volumes or snapshots that callers know of.
func (d *Driver) ready(kind Kind) (found []Volume) {
	for _, v := range d.books.all() {
		if v.Kind == kind && v.State == StateReady {
			found = append(found, v)
		}
	}
	return found
}

func idOf(v Volume) string { return v.ID }

// ListVolumes implements Controller.
func (d *Driver) ListVolumes(_ context.Context, r *spec.ListVolumesRequest) (*spec.ListVolumesResponse, error) {
	some, next, err := page(d.ready(KindVolume), idOf, r.GetStartingToken(), r.GetMaxEntries())
	if err != nil {
		return nil, err
	}
	response := &spec.ListVolumesResponse{NextToken: next}
	for _, v := range some {
		response.Entries = append(response.Entries, &spec.ListVolumesResponse_Entry{Volume: d.describe(v), Status: &spec.ListVolumesResponse_VolumeStatus{PublishedNodeIds: d.published(v)}})
	}
	return response, nil
}

func (d *Driver) published(v Volume) []string {
	if len(d.targets.of(v.ID)) == 0 {
		return nil
	}
	return []string{d.config.NodeName}
}

// ControllerGetVolume implements Controller.
func (d *Driver) ControllerGetVolume(_ context.Context, r *spec.ControllerGetVolumeRequest) (*spec.ControllerGetVolumeResponse, error) {
	v, err := d.known(r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	return &spec.ControllerGetVolumeResponse{Volume: d.describe(v), Status: &spec.ControllerGetVolumeResponse_VolumeStatus{PublishedNodeIds: d.published(v)}}, nil
}

// Listed is a volume for people.
type Listed struct {
	Volume
	Targets []Target `json:"targets,omitempty"`
}

// List is everything that there is a record of, by id.
func (d *Driver) List() []Listed {
	all := []Listed{}
	for _, v := range d.books.all() {
		all = append(all, Listed{v, d.targets.of(v.ID)})
	}
	return all
}

// byHandle is the volume that kubelet names: an ephemeral one has a handle of kubelet's own.
func (d *Driver) byHandle(handle string) (Volume, bool) {
	if v, ok := d.books.get(handle); ok {
		return v, true
	}
	return d.books.named(KindEphemeral, handle)
}
