package csi

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kerf-gpu/kerf/csi/mount"
	"github.com/kerf-gpu/kerf/internal/node"
)

func creation(name string, size node.Bytes, change ...func(*spec.CreateVolumeRequest)) *spec.CreateVolumeRequest {
	r := &spec.CreateVolumeRequest{Name: name, VolumeCapabilities: []*spec.VolumeCapability{mountCapability()}, CapacityRange: &spec.CapacityRange{RequiredBytes: int64(size)}}
	for _, c := range change {
		c(r)
	}
	return r
}

func elsewhere(r *spec.CreateVolumeRequest) {
	r.AccessibilityRequirements = &spec.TopologyRequirement{Requisite: []*spec.Topology{{Segments: map[string]string{TopologyKey: "node-2"}}}}
}

// TestBadCreate: each refusal has the specification's code, says what to do, and leaves nothing.
func TestBadCreate(t *testing.T) {
	dir := t.TempDir()
	small := newFakePool(filepath.Join(dir, "small"))
	small.total = node.GiB
	d := openDriver(t, dir, Pool{Name: "small", Kind: "fake", Backend: small, Watermark: 50}, Pool{Name: "full", Kind: "fake", Backend: full{newFakePool(filepath.Join(dir, "full"))}})
	if _, err := d.CreateVolume(t.Context(), creation("there", 400*node.MiB)); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		r    *spec.CreateVolumeRequest
		code codes.Code
		want []string
	}{
		{"no name", creation("", node.GiB), codes.InvalidArgument, []string{"name"}},
		{"no capability", &spec.CreateVolumeRequest{Name: "x"}, codes.InvalidArgument, []string{"volume_capabilities"}},
		{"unknown parameter", creation("x", node.MiB, func(r *spec.CreateVolumeRequest) { r.Parameters = map[string]string{"raid": "1"} }), codes.InvalidArgument, []string{`"raid"`, "pool, guaranteed"}},
		{"unknown pool", creation("x", node.MiB, func(r *spec.CreateVolumeRequest) { r.Parameters = map[string]string{"pool": "big"} }), codes.InvalidArgument, []string{`"big"`, "small, full"}},
		{"guaranteed maybe", creation("x", node.MiB, func(r *spec.CreateVolumeRequest) { r.Parameters = map[string]string{"guaranteed": "maybe"} }), codes.InvalidArgument, []string{"maybe", "true nor false"}},
		{"many nodes", creation("x", node.MiB, func(r *spec.CreateVolumeRequest) {
			r.VolumeCapabilities[0].AccessMode.Mode = spec.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER
		}), codes.InvalidArgument, []string{"MULTI_NODE_MULTI_WRITER", "ReadWriteOnce"}},
		{"mount option", creation("x", node.MiB, func(r *spec.CreateVolumeRequest) {
			r.VolumeCapabilities[0].GetMount().MountFlags = []string{"dax"}
		}), codes.InvalidArgument, []string{`"dax"`, "noatime"}},
		{"negative", creation("x", 0, func(r *spec.CreateVolumeRequest) { r.CapacityRange.RequiredBytes = -1 }), codes.InvalidArgument, []string{"negative"}},
		{"limit below the least", creation("x", 0, func(r *spec.CreateVolumeRequest) { r.CapacityRange.LimitBytes = 1000 }), codes.OutOfRange, []string{"at least 1Mi"}},
		{"required above limit", creation("x", node.GiB, func(r *spec.CreateVolumeRequest) { r.CapacityRange.LimitBytes = int64(node.MiB) }), codes.InvalidArgument, []string{"1Gi", "1Mi"}},
		{"beyond the pool", creation("x", 2*node.GiB), codes.OutOfRange, []string{"2Gi", "whole pool has 1Gi"}},
		{"beyond what is promised", creation("x", 200*node.MiB), codes.ResourceExhausted, []string{"need 200Mi", "free 111Mi", "promised to volumes 400Mi"}},
		{"disk is full", creation("x", node.MiB, func(r *spec.CreateVolumeRequest) { r.Parameters = map[string]string{"pool": "full"} }), codes.ResourceExhausted, []string{"no space left"}},
		{"other node", creation("x", node.MiB, elsewhere), codes.ResourceExhausted, []string{"node-1", "WaitForFirstConsumer"}},
		{"name in use", creation("there", 500*node.MiB), codes.AlreadyExists, []string{"has 400Mi, asked is 500Mi"}},
		{"no such source", creation("x", node.MiB, func(r *spec.CreateVolumeRequest) {
			r.VolumeContentSource = &spec.VolumeContentSource{Type: &spec.VolumeContentSource_Snapshot{Snapshot: &spec.VolumeContentSource_SnapshotSource{SnapshotId: "s1-none"}}}
		}), codes.NotFound, []string{"s1-none"}},
		{"path for a name", creation("../../etc", node.MiB, elsewhere), codes.ResourceExhausted, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := d.CreateVolume(t.Context(), tt.r)
			wantError(t, err, tt.code, tt.want...)
			if all := d.List(); len(all) != 1 {
				t.Errorf("records: %+v", all)
			}
		})
	}
	for _, p := range d.config.Pools {
		if ids, err := p.Backend.List(t.Context()); err != nil || len(ids) > 1 {
			t.Errorf("pool %s: %v %v", p.Name, ids, err)
		}
	}
}

func wantError(t *testing.T, err error, code codes.Code, words ...string) {
	t.Helper()
	if status.Code(err) != code {
		t.Errorf("%v, want %s", err, code)
	}
	for _, word := range words {
		if !strings.Contains(status.Convert(err).Message(), word) {
			t.Errorf("%q does not say %q", status.Convert(err).Message(), word)
		}
	}
	if strings.Contains(status.Convert(err).Message(), "\n") {
		t.Errorf("more than one line: %q", err)
	}
}

// TestBadPublish: a target that is not kubelet's, or not empty, is refused, and stays as it was.
func TestBadPublish(t *testing.T) {
	needRoot(t)
	dir := crashDir(t)
	d := openDriver(t, dir, Pool{Name: "fake", Kind: "fake", Backend: newFakePool(filepath.Join(dir, "pool"))})
	answer, err := d.CreateVolume(t.Context(), creation("v", node.MiB))
	if err != nil {
		t.Fatal(err)
	}
	id, kubelet := answer.GetVolume().GetVolumeId(), d.config.KubeletDir
	outside := filepath.Join(dir, "outside")
	for _, made := range []error{
		os.WriteFile(filepath.Join(kubelet, "file"), []byte("x"), 0o600),
		os.Symlink(outside, filepath.Join(kubelet, "link")),
		os.MkdirAll(filepath.Join(kubelet, "filled", "x"), 0o700),
		os.Mkdir(outside, 0o700),
	} {
		if made != nil {
			t.Fatal(made)
		}
	}
	for _, tt := range []struct {
		name, target string
		change       func(*spec.NodePublishVolumeRequest)
		code         codes.Code
		want         []string
	}{
		{"outside", outside, nil, codes.InvalidArgument, []string{"kubeletDir"}},
		{"beside", kubelet + "-2/t", nil, codes.InvalidArgument, []string{"kubeletDir"}},
		{"dots", kubelet + "/x/../../outside/t", nil, codes.InvalidArgument, []string{"kubeletDir"}},
		{"file", kubelet + "/file", nil, codes.FailedPrecondition, []string{"a file", "remove it"}},
		{"link", kubelet + "/link", nil, codes.FailedPrecondition, []string{"a symbolic link"}},
		{"through a link", kubelet + "/link/t", nil, codes.Internal, []string{"too many levels of symbolic links"}},
		{"filled", kubelet + "/filled", nil, codes.FailedPrecondition, []string{"something in it"}},
		{"no parent", kubelet + "/none/t", nil, codes.Internal, []string{"no such file"}},
		{"unknown volume", kubelet + "/t", func(r *spec.NodePublishVolumeRequest) { r.VolumeId = "v1-none" }, codes.NotFound, []string{"v1-none"}},
		{"path for an id", kubelet + "/t", func(r *spec.NodePublishVolumeRequest) { r.VolumeId = "../../etc" }, codes.NotFound, nil},
		{"as a device", kubelet + "/t", func(r *spec.NodePublishVolumeRequest) {
			r.VolumeCapability.AccessType = &spec.VolumeCapability_Block{Block: &spec.VolumeCapability_BlockVolume{}}
		}, codes.InvalidArgument, []string{"other access type"}},
		{"group by name", kubelet + "/t", func(r *spec.NodePublishVolumeRequest) {
			r.VolumeCapability.GetMount().VolumeMountGroup = "wheel"
		}, codes.InvalidArgument, []string{"wheel"}},
		{"inline, unknown", kubelet + "/t", func(r *spec.NodePublishVolumeRequest) {
			r.VolumeId, r.VolumeContext = "csi-1", map[string]string{paramEphemeral: "true", "sise": "1Gi"}
		}, codes.InvalidArgument, []string{"sise", "pool, guaranteed, size"}},
		{"inline, to a file", kubelet + "/file", func(r *spec.NodePublishVolumeRequest) {
			r.VolumeId, r.VolumeContext = "csi-1", ephemeral
		}, codes.FailedPrecondition, []string{"a file"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := &spec.NodePublishVolumeRequest{VolumeId: id, TargetPath: tt.target, VolumeCapability: mountCapability()}
			if tt.change != nil {
				tt.change(r)
			}
			_, err := d.NodePublishVolume(t.Context(), r)
			wantError(t, err, tt.code, tt.want...)
			if all := d.List(); len(all) != 1 || len(all[0].Targets) > 0 {
				t.Errorf("records: %+v", all)
			}
		})
	}
	if text, err := os.ReadFile(filepath.Join(kubelet, "file")); err != nil || string(text) != "x" {
		t.Errorf("the file: %q %v", text, err)
	}
}

// TestUse: what is published twice, used, read only, and a group's.
func TestUse(t *testing.T) {
	needRoot(t)
	dir := crashDir(t)
	d := openDriver(t, dir, Pool{Name: "fake", Kind: "fake", Backend: newFakePool(filepath.Join(dir, "pool"))})
	answer, err := d.CreateVolume(t.Context(), creation("v", node.MiB))
	if err != nil {
		t.Fatal(err)
	}
	id := answer.GetVolume().GetVolumeId()
	request := func(name string, mode spec.VolumeCapability_AccessMode_Mode, readOnly bool) *spec.NodePublishVolumeRequest {
		c := mountCapability()
		c.AccessMode.Mode = mode
		c.GetMount().VolumeMountGroup = "4711"
		return &spec.NodePublishVolumeRequest{VolumeId: id, TargetPath: filepath.Join(d.config.KubeletDir, name), VolumeCapability: c, Readonly: readOnly}
	}
	const many, single = spec.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER, spec.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER
	for range 2 { // twice is once
		if _, err := d.NodePublishVolume(t.Context(), request("a", many, false)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := d.NodePublishVolume(t.Context(), request("ro", many, true)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(d.config.KubeletDir, "ro", "x"), nil, 0o600); err == nil {
		t.Error("a read-only target was written")
	}
	if info, err := os.Stat(filepath.Join(d.config.KubeletDir, "a")); err != nil || info.Mode()&os.ModeSetgid == 0 || info.Mode()&0o070 != 0o070 {
		t.Errorf("mode of the group's volume: %v %v", info, err)
	}
	_, err = d.NodePublishVolume(t.Context(), request("a", many, true))
	wantError(t, err, codes.AlreadyExists, "in another way")
	_, err = d.NodePublishVolume(t.Context(), request("b", single, false))
	wantError(t, err, codes.FailedPrecondition, "one pod")
	_, err = d.DeleteVolume(t.Context(), &spec.DeleteVolumeRequest{VolumeId: id})
	wantError(t, err, codes.FailedPrecondition, "is published at")
	health, err := d.NodeGetVolumeHealth(t.Context(), &spec.NodeGetVolumeHealthRequest{VolumeId: id})
	if err != nil || len(health.GetVolumeHealth().GetHealthStatuses()) > 0 {
		t.Errorf("health: %v %v", health, err)
	}
	if err := mount.Below(d.config.KubeletDir).Unbind(filepath.Join(d.config.KubeletDir, "ro")); err != nil { // behind our back
		t.Fatal(err)
	}
	health, err = d.NodeGetVolumeHealth(t.Context(), &spec.NodeGetVolumeHealthRequest{VolumeId: id})
	if s := health.GetVolumeHealth().GetHealthStatuses(); err != nil || len(s) != 1 || s[0].GetStatus() != spec.VolumeHealthErrorType_INACCESSIBLE {
		t.Errorf("health of a volume that was unmounted: %v %v", health, err)
	}
	for _, name := range []string{"a", "ro", "never"} {
		if _, err := d.NodeUnpublishVolume(t.Context(), &spec.NodeUnpublishVolumeRequest{VolumeId: id, TargetPath: filepath.Join(d.config.KubeletDir, name)}); err != nil {
			t.Error(err)
		}
	}
	if _, err := d.DeleteVolume(t.Context(), &spec.DeleteVolumeRequest{VolumeId: id}); err != nil {
		t.Error(err)
	}
	nothingLeft(t, d, d.config)
}

// TestAtOnce: many calls at a time end well, or are ABORTED where they meet; what they make is made once.
func TestAtOnce(t *testing.T) {
	needRoot(t)
	dir := crashDir(t)
	d := openDriver(t, dir, Pool{Name: "fake", Kind: "fake", Backend: newFakePool(filepath.Join(dir, "pool"))})
	const volumes, callers = 50, 2
	var all sync.WaitGroup
	for i := range volumes * callers {
		all.Go(func() { everything(t, d, "v"+string(rune('A'+i%volumes))) })
	}
	all.Wait()
	for i := range volumes {
		everythingBack(t, d, "v"+string(rune('A'+i)))
	}
	nothingLeft(t, d, d.config)
}

// untilDone repeats a call that meets another, as kubelet does.
func untilDone(t *testing.T, call func(context.Context) error) {
	for {
		err := call(t.Context())
		if status.Code(err) != codes.Aborted {
			if err != nil {
				t.Error(err)
			}
			return
		}
	}
}

func everything(t *testing.T, d *Driver, name string) {
	p := &player{d, make(map[string]string)}
	for _, s := range []step{create(name, ""), publish(name, nil), expand(name)} {
		untilDone(t, func(ctx context.Context) error { return s.do(ctx, p) })
	}
}

func everythingBack(t *testing.T, d *Driver, name string) {
	p := &player{d, make(map[string]string)}
	v, ok := d.books.named(KindVolume, name)
	if !ok {
		t.Errorf("no volume %s", name)
	}
	p.ids[name] = v.ID
	var all sync.WaitGroup
	for range 2 {
		all.Go(func() {
			untilDone(t, func(ctx context.Context) error { return unpublish(name).do(ctx, p) })
		})
	}
	all.Wait()
	untilDone(t, func(ctx context.Context) error { return remove(name).do(ctx, p) })
}
