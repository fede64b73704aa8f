package dra

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	resourceapi "k8s.io/api/resource/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/dynamic-resource-allocation/kubeletplugin"
	"k8s.io/dynamic-resource-allocation/resourceslice"

	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

func (k *kubelet) slices() []resourceapi.ResourceSlice {
	list, err := k.client.ResourceV1().ResourceSlices().List(context.Background(), metav1.ListOptions{})
	if err != nil {
		k.t.Fatal(err)
	}
	return list.Items
}

// What is published is what Slices says, and a change of a card arrives. The API server refuses the first writes.
func TestPublishing(t *testing.T) {
	k := newKubelet(t)
	var mu sync.Mutex
	refusals := 2
	k.client.PrependReactor("create", "resourceslices", func(clienttesting.Action) (bool, runtime.Object, error) {
		mu.Lock()
		defer mu.Unlock()
		if refusals == 0 {
			return false, nil, nil
		}
		refusals--
		return true, nil, apierrors.NewForbidden(resourceapi.Resource("resourceslices"), "", errors.New("no rule"))
	})
	k.start(k.config())
	k.eventually("the slices are published", func() bool { return len(k.slices()) == 2 })
	for _, s := range k.slices() {
		if s.Spec.Driver != DriverName || *s.Spec.NodeName != testNode || s.Spec.Pool.Name != testNode || s.OwnerReferences[0].UID != "node-uid" {
			t.Errorf("%+v", s.Spec)
		}
	}
	if reports := k.reported(); len(reports) != 2 || !strings.Contains(reports[0].Error(), "see the ClusterRole kerfd") {
		t.Errorf("reported %v", reports)
	}
	k.shares.change(0, func(c *Card) { c.Pending = share.ModeMIG })
	k.changed <- struct{}{}
	k.eventually("the taint is published", func() bool {
		for _, s := range k.slices() {
			for _, d := range s.Spec.Devices {
				if d.Name == vgpu && len(d.Taints) == 1 && d.Taints[0].Key == TaintModeChange && d.Taints[0].Value == "mig" {
					return true
				}
			}
		}
		return false
	})
}

// fakePublisher counts what it is handed, and refuses at first.
type fakePublisher struct {
	refuse    int
	published []resourceslice.DriverResources
}

func (p *fakePublisher) PublishResources(_ context.Context, r resourceslice.DriverResources) error {
	if p.refuse > 0 {
		p.refuse--
		return errors.New("not set up")
	}
	p.published = append(p.published, r)
	return nil
}

// Changes that come together are published once, and what is no change is not published at all.
func TestPublishDebounces(t *testing.T) {
	k := newKubelet(t)
	synctest.Test(t, func(t *testing.T) {
		d, err := New(k.config())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		to := &fakePublisher{refuse: 1}
		var loop sync.WaitGroup
		loop.Go(func() { d.publish(ctx, to) })
		synctest.Wait()
		expect := func(n int) {
			t.Helper()
			time.Sleep(time.Minute)
			synctest.Wait()
			if len(to.published) != n {
				t.Errorf("published %d times, want %d", len(to.published), n)
			}
		}
		expect(1) // after the refusal
		for i := range 3 {
			k.shares.change(i, func(c *Card) { c.Share.Fault = "lost" })
			d.changed.fire()
			time.Sleep(10 * time.Millisecond)
			synctest.Wait()
		}
		expect(2)
		d.changed.fire()
		expect(2)
		cancel()
		loop.Wait()
	})
}

func TestDroppedFieldsAreExplained(t *testing.T) {
	k := newKubelet(t)
	d, err := New(k.config())
	if err != nil {
		t.Fatal(err)
	}
	yes := true
	desired := &resourceapi.ResourceSlice{Spec: resourceapi.ResourceSliceSpec{Devices: []resourceapi.Device{{AllowMultipleAllocations: &yes}}}}
	actual := &resourceapi.ResourceSlice{Spec: resourceapi.ResourceSliceSpec{Devices: []resourceapi.Device{{}}}}
	dropped := &resourceslice.DroppedFieldsError{PoolName: testNode, DesiredSlice: desired, ActualSlice: actual}
	d.HandleError(t.Context(), errors.Join(dropped, kubeletplugin.ErrRecoverable), "publish")
	if reports := k.reported(); len(reports) != 1 || !strings.Contains(reports[0].Error(), "DRAConsumableCapacity; enable these feature gates") {
		t.Errorf("%v", reports)
	}
	if len(d.fatal) != 0 {
		t.Error("a recoverable error ends the driver")
	}
	for range 2 {
		d.HandleError(t.Context(), errors.New("the socket is gone"), "DRA gRPC server failed")
	}
	if err := <-d.fatal; !strings.Contains(err.Error(), "DRA gRPC server failed: the socket is gone") {
		t.Error(err)
	}
}

func TestOrphans(t *testing.T) {
	k := newKubelet(t)
	d, err := New(k.config())
	if err != nil {
		t.Fatal(err)
	}
	kept, gone, replaced, elsewhere, busy := simple("kept", "s", "1Gi"), simple("gone", "s", "1Gi"), simple("replaced", "s", "1Gi"), simple("elsewhere", "s", "1Gi"), simple("busy", "s", "1Gi")
	for _, c := range []*resourceapi.ResourceClaim{kept, gone, replaced, elsewhere, busy} {
		if _, err := d.prepare(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	k.allocate(kept)
	other := simple("other", "s", "1Gi")
	other.Name = replaced.Name
	k.allocate(other)
	elsewhere.Status.Allocation.Devices.Results[0].Pool = "node-2"
	k.allocate(elsewhere)
	k.shares.busy["busy"] = true
	owners := func() (uids []string) {
		for _, o := range k.shares.Owners() {
			uids = append(uids, o.UID)
		}
		return uids
	}
	down := true
	k.client.PrependReactor("get", "resourceclaims", func(clienttesting.Action) (bool, runtime.Object, error) {
		return down, nil, errors.New("connection refused")
	})
	missed := d.sweep(t.Context(), d.sweep(t.Context(), nil))
	if len(owners()) != 5 {
		t.Fatalf("no answer was taken for no claim: %v", owners())
	}
	down = false
	if missed = d.sweep(t.Context(), missed); len(owners()) != 5 {
		t.Errorf("dropped at first sight: %v", owners())
	}
	missed = d.sweep(t.Context(), missed)
	if got := strings.Join(owners(), " "); len(owners()) != 2 || !strings.Contains(got, "kept") || !strings.Contains(got, "busy") {
		t.Errorf("left are %s, want kept and busy", got)
	}
	delete(k.shares.busy, "busy")
	if missed = d.sweep(t.Context(), missed); strings.Join(owners(), " ") != "kept" {
		t.Errorf("left are %v, want kept", owners())
	}
	if missed = d.sweep(t.Context(), missed); len(missed) != 0 {
		t.Errorf("still counted: %v", missed)
	}
}

func TestSweepRuns(t *testing.T) {
	k := newKubelet(t)
	synctest.Test(t, func(t *testing.T) {
		d, err := New(k.config())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.prepare(t.Context(), simple("gone", "s", "1Gi")); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var loop sync.WaitGroup
		loop.Go(func() { d.sweepOrphans(ctx) })
		time.Sleep(sightings*sweepInterval - time.Second)
		synctest.Wait()
		if len(k.shares.Owners()) != 1 {
			t.Error("dropped too early")
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if len(k.shares.Owners()) != 0 {
			t.Error("not dropped")
		}
		cancel()
		loop.Wait()
	})
}

// Health is sent again before kubelet takes it for stale, and a device that has gone is unknown.
func TestHealthIsSentAgain(t *testing.T) {
	k := newKubelet(t)
	synctest.Test(t, func(t *testing.T) {
		d, err := New(k.config())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		reports := make(chan kubeletplugin.DeviceHealthReport)
		var loop sync.WaitGroup
		loop.Go(func() { _ = d.WatchHealthStatus(ctx, reports) })
		first, start := <-reports, time.Now()
		d.changed.fire() // a share more: no news of health
		synctest.Wait()
		k.shares.change(4, func(c *Card) { c.UUID = node.UUID{9} }) // another card in its place
		second := <-reports
		if waited := time.Since(start); waited != healthInterval {
			t.Errorf("sent again after %s", waited)
		}
		if len(second.Devices) != len(first.Devices)+1 {
			t.Errorf("%d devices, then %d", len(first.Devices), len(second.Devices))
		}
		last := second.Devices[len(second.Devices)-1]
		if last.DeviceName != secondary || last.Health != kubeletplugin.HealthStatusUnknown {
			t.Errorf("the one that has gone: %+v", last)
		}
		cancel()
		loop.Wait()
	})
}

// Without an API server what is held can be given back, and asking says what is missing.
func TestAPIServerAway(t *testing.T) {
	k := newKubelet(t)
	k.start(k.config())
	claim := k.allocate(simple("u1", "s", "1Gi"))
	if _, problem := k.prepared(claim); problem != "" {
		t.Fatal(problem)
	}
	k.client.PrependReactor("*", "*", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, errors.New("connection refused")
	})
	if _, problem := k.prepared(claim); !strings.Contains(problem, "default/claim-u1: connection refused") {
		t.Error(problem)
	}
	if problem := k.unprepared(claim); problem != "" || len(k.shares.Owners()) != 0 {
		t.Error(problem)
	}
}

// A workload reads the size of its slice from a file.
func TestMetadata(t *testing.T) {
	k := newKubelet(t)
	config := k.config()
	config.CDIDir = t.TempDir()
	k.start(config)
	claim := k.allocate(simple("u1", "s", "30Gi"))
	cdi, problem := k.prepared(claim)
	if problem != "" || len(cdi) != 2 || cdi[0] != cdiOf("u1", "s") {
		t.Fatal(cdi, problem)
	}
	found := ""
	_ = filepath.WalkDir(k.dir, func(path string, _ os.DirEntry, _ error) error {
		if strings.HasSuffix(path, "metadata.json") {
			text, _ := os.ReadFile(path)
			found = strings.Join(strings.Fields(string(text)), "")
		}
		return nil
	})
	if !strings.Contains(found, `"memoryMiB":{"int":30720}`) || !strings.Contains(found, `"cores":{"int":1}`) {
		t.Errorf("%s", found)
	}
	if problem := k.unprepared(claim); problem != "" {
		t.Fatal(problem)
	}
	if left, _ := os.ReadDir(config.CDIDir); len(left) != 0 {
		t.Errorf("left over: %v", left)
	}
}

// What kubelet has forgotten, or a killed kerfd left: no file stays of a claim that holds nothing.
func TestMetadataIsSwept(t *testing.T) {
	k := newKubelet(t)
	config := k.config()
	config.CDIDir = t.TempDir()
	k.start(config)
	kept, orphan, replaced := k.allocate(simple("kept", "s1", "1Gi")), k.allocate(simple("orphan", "s2", "1Gi")), k.allocate(simple("replaced", "s3", "1Gi"))
	for _, claim := range []*resourceapi.ResourceClaim{kept, orphan, replaced} {
		if _, problem := k.prepared(claim); problem != "" {
			t.Fatal(problem)
		}
	}
	data := filepath.Join(k.dir, "plugins", DriverName, "dra-device-metadata")
	files := func() string {
		specs, _ := filepath.Glob(filepath.Join(config.CDIDir, "*"))
		claims, _ := filepath.Glob(filepath.Join(data, "*"))
		var names []string
		for _, file := range slices.Concat(specs, claims) {
			names = append(names, strings.TrimPrefix(filepath.Base(file), DriverName+"_metadata_"))
		}
		slices.Sort(names)
		return strings.Join(names, " ")
	}
	before := files()
	d := k.driver
	// As the sweep does once it has dropped an orphan.
	gone := Owner(orphan)
	if err := errors.Join(k.shares.Drop(t.Context(), gone.UID), d.forgetMetadata(gone)); err != nil {
		t.Fatal(err)
	}
	// A claim that was replaced by one of its name: the directory is the later one's.
	later := Owner(replaced)
	later.UID = "later"
	if err := d.forgetMetadata(later); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"." + DriverName + "_metadata_x_gpu.json.1.tmp", DriverName + "_metadata_old_gpu.json", "kerf.dev-share_another.json"} {
		if err := os.WriteFile(filepath.Join(config.CDIDir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(data, "ns_old", "gpu"), 0o700); err != nil {
		t.Fatal(err)
	}
	middle := files()
	if err := errors.Join(d.sweepMetadata(k.shares.Owners()), d.sweepTemporary(time.Now())); err != nil {
		t.Fatal(err)
	}
	young := files()
	if err := d.sweepTemporary(time.Now().Add(temporaryFor)); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"default_claim-kept default_claim-orphan default_claim-replaced kept_r.json orphan_r.json replaced_r.json",
		".gpu.kerf.dev_metadata_x_gpu.json.1.tmp default_claim-kept default_claim-replaced kept_r.json kerf.dev-share_another.json ns_old old_gpu.json replaced_r.json",
		".gpu.kerf.dev_metadata_x_gpu.json.1.tmp default_claim-kept default_claim-replaced kept_r.json kerf.dev-share_another.json replaced_r.json",
		"default_claim-kept default_claim-replaced kept_r.json kerf.dev-share_another.json replaced_r.json",
	}
	if diff := cmp.Diff(want, []string{before, middle, young, files()}); diff != "" {
		t.Error(diff)
	}
}
