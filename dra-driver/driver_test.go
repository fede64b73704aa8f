package dra

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	healthv1 "k8s.io/kubelet/pkg/apis/dra-health/v1"
	healthalpha "k8s.io/kubelet/pkg/apis/dra-health/v1alpha1"
	drav1 "k8s.io/kubelet/pkg/apis/dra/v1"
	drav1beta1 "k8s.io/kubelet/pkg/apis/dra/v1beta1"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"github.com/kerf-gpu/kerf/internal/node"
)

func TestRegistration(t *testing.T) {
	k := newKubelet(t)
	k.start(k.config())
	want := []string{"v1.DRAPlugin", "v1beta1.DRAPlugin", "v1.DRAResourceHealth", "v1alpha1.DRAResourceHealth"}
	if d := cmp.Diff(want, k.info.SupportedVersions); d != "" || k.info.Name != DriverName || k.info.Type != "DRAPlugin" {
		t.Errorf("%v: %s", k.info, d)
	}
	if !k.driver.Registered() {
		t.Error("kubelet has registered it, and it does not know")
	}
	k.notify(k.dir+"/plugins_registry/gpu.kerf.dev-reg.sock", &registration.RegistrationStatus{Error: "not today"})
	if reports := k.reported(); len(reports) != 1 || !strings.Contains(reports[0].Error(), "not today") || k.driver.Registered() {
		t.Errorf("reported %v", reports)
	}
}

func TestPrepareAndUnprepare(t *testing.T) {
	k := newKubelet(t)
	k.start(k.config())
	claim := k.allocate(claimOf("u1", result(vgpu, "s1", "memory=30Gi", "cores=40"), with(result(secondary, "s2", "memory=10Gi"), func(r *resourceapi.DeviceRequestAllocationResult) { r.Request = "q/sub" })))
	first, err := k.prepare(claim)
	if err != nil || first["u1"].Error != "" {
		t.Fatal(first, err)
	}
	s1, s2 := "s1", "s2"
	want := []*drav1.Device{
		{RequestNames: []string{"r"}, PoolName: testNode, DeviceName: vgpu, CdiDeviceIds: []string{cdiOf("u1", "s1")}, ShareId: &s1},
		{RequestNames: []string{"q"}, PoolName: testNode, DeviceName: secondary, CdiDeviceIds: []string{cdiOf("u1", "s2")}, ShareId: &s2},
	}
	if got := fmt.Sprint(first["u1"].Devices); got != fmt.Sprint(want) {
		t.Errorf("got %s, want %s", got, want)
	}
	// Again, by kubelet after its restart, for a second pod, or over the older protocol: the same.
	second, err := k.prepare(claim)
	if err != nil || fmt.Sprint(second) != fmt.Sprint(first) {
		t.Errorf("the second time %v, %v", second, err)
	}
	beta, err := k.beta().NodePrepareResources(context.Background(), &drav1beta1.NodePrepareResourcesRequest{Claims: []*drav1beta1.Claim{{Namespace: claim.Namespace, Name: claim.Name, Uid: "u1"}}})
	if err != nil || len(beta.Claims["u1"].Devices) != 2 || beta.Claims["u1"].Devices[0].CdiDeviceIds[0] != cdiOf("u1", "s1") {
		t.Errorf("v1beta1: %v, %v", beta, err)
	}
	if n := len(k.shares.Owners()); n != 1 {
		t.Errorf("%d owners", n)
	}
	for range 2 { // the second time there is nothing left, which is fine
		if problem := k.unprepared(claim); problem != "" || len(k.shares.Owners()) != 0 {
			t.Errorf("%s, owners %v", problem, k.shares.Owners())
		}
	}
	if problem := k.unprepared(claimOf("never-seen")); problem != "" {
		t.Errorf("a claim that was never prepared: %s", problem)
	}
}

func TestNothingAsked(t *testing.T) {
	k := newKubelet(t)
	k.start(k.config())
	if answers, err := k.prepare(); err != nil || len(answers) != 0 {
		t.Error(answers, err)
	}
	foreign := k.allocate(claimOf("u1", with(result("nic-0", ""), func(r *resourceapi.DeviceRequestAllocationResult) { r.Driver = "nic.kerf.dev" })))
	if cdi, problem := k.prepared(foreign); problem != "" || cdi != nil || len(k.shares.Owners()) != 0 {
		t.Error(cdi, problem)
	}
}

// What a user reads in `kubectl describe pod`, and that one claim does not fail another.
func TestRefusals(t *testing.T) {
	k := newKubelet(t)
	k.start(k.config())
	good := k.allocate(simple("good", "s", "70Gi"))
	full := k.allocate(simple("full", "s", "20Gi")) // an old scheduler allocated the same memory twice
	gone := k.allocate(claimOf("gone", result("gpu-deadbeef", "s")))
	bad := k.allocate(simple("bad", "s", "1Gi"))
	bad.Status.Allocation.Devices.Config = []resourceapi.DeviceAllocationConfiguration{opaque("claim", `"burst":1`)}
	if _, err := k.client.ResourceV1().ResourceClaims("default").Update(context.Background(), bad, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	answers, err := k.prepare(good, full, gone, bad)
	if err != nil {
		t.Fatal(err)
	}
	for uid, want := range map[string]string{
		"good": "",
		"full": "claim default/claim-full: memory 20Gi and 1% of cores: asked, but the most free memory is 10Gi, on GPU 0",
		"gone": "claim default/claim-gone: request r: device gpu-deadbeef is not on this node (any more)",
		"bad":  "claim default/claim-bad: request r: config from the claim: ShareConfig: burst 1: not true or false; write true or false",
	} {
		if got := answers[uid].Error; (want == "") != (got == "") || !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", uid, got, want)
		}
	}
	if owners := k.shares.Owners(); len(owners) != 1 || owners[0].UID != "good" {
		t.Errorf("owners %v", owners)
	}
	if d := cmp.Diff(map[string]float64{"kerf_dra_prepare_seconds": 1, "kerf_dra_errors_total": 3, "kerf_dra_prepared_claims": 1}, k.measured()); d != "" {
		t.Error(d)
	}
}

// measured is every metric, a histogram by how often it was observed.
func (k *kubelet) measured() map[string]float64 {
	k.t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(k.driver.Collectors()...)
	families, err := registry.Gather()
	if err != nil {
		k.t.Fatal(err)
	}
	values := make(map[string]float64)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			values[f.GetName()] += float64(m.GetHistogram().GetSampleCount()) + m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return values
}

func TestAllOrNothing(t *testing.T) {
	k := newKubelet(t)
	k.start(k.config())
	claim := k.allocate(claimOf("u1", result(secondary, "s1", "memory=10Gi"), result(alone, ""), with(result(alone, ""), func(r *resourceapi.DeviceRequestAllocationResult) { r.Request = "q" })))
	if _, problem := k.prepared(claim); !strings.Contains(problem, "exclusive") {
		t.Error(problem)
	}
	if owners := k.shares.Owners(); len(owners) != 0 {
		t.Errorf("half of it is held: %v", owners)
	}
}

func TestReplacedClaim(t *testing.T) {
	k := newKubelet(t)
	k.start(k.config())
	old := k.allocate(simple("old", "s", "1Gi"))
	if _, problem := k.prepared(old); problem != "" {
		t.Fatal(problem)
	}
	k.remove(old)
	replacement := simple("new", "s", "1Gi")
	replacement.Name = old.Name
	k.allocate(replacement)
	if _, problem := k.prepared(old); !strings.Contains(problem, "got replaced") {
		t.Errorf("the old claim: %q", problem)
	}
	if cdi, problem := k.prepared(replacement); problem != "" || cdi[0] != cdiOf("new", "s") {
		t.Error(cdi, problem)
	}
	if problem := k.unprepared(old); problem != "" {
		t.Error(problem)
	}
	if owners := k.shares.Owners(); len(owners) != 1 || owners[0].UID != "new" {
		t.Errorf("owners %v", owners)
	}
}

func TestPanicInOneClaim(t *testing.T) {
	k := newKubelet(t)
	k.start(k.config())
	k.shares.panics = "claim-worst"
	worst, good := k.allocate(simple("worst", "s", "1Gi")), k.allocate(simple("good", "s", "1Gi"))
	answers, err := k.prepare(worst, good)
	if err != nil || !strings.Contains(answers["worst"].Error, "claim default/claim-worst: prepare panicked (a claim that nobody thought of)") || answers["good"].Error != "" {
		t.Errorf("%v, %v", answers, err)
	}
	if reports := k.reported(); len(reports) != 1 || !strings.Contains(reports[0].Error(), "fake_test.go") {
		t.Errorf("reported %v, want where it was", reports)
	}
	k.shares.panics = ""
	if _, problem := k.prepared(worst); problem != "" {
		t.Errorf("afterwards: %s", problem)
	}
}

func TestBusyShareIsTriedAgain(t *testing.T) {
	k := newKubelet(t)
	k.start(k.config())
	claim := k.allocate(simple("u1", "s", "1Gi"))
	if _, problem := k.prepared(claim); problem != "" {
		t.Fatal(problem)
	}
	k.shares.busy["u1"] = true
	if problem := k.unprepared(claim); !strings.Contains(problem, "claim default/claim-u1: 2 processes are still in it") {
		t.Error(problem)
	}
	delete(k.shares.busy, "u1")
	if problem := k.unprepared(claim); problem != "" {
		t.Error(problem)
	}
}

func TestRestart(t *testing.T) {
	k := newKubelet(t)
	k.start(k.config())
	claim := k.allocate(simple("u1", "s", "1Gi"))
	before, problem := k.prepared(claim)
	if problem != "" {
		t.Fatal(problem)
	}
	if err := k.stop(); err == nil || !strings.Contains(err.Error(), "canceled") {
		t.Errorf("stopped with %v", err)
	}
	k.start(k.config())
	after, problem := k.prepared(claim)
	if d := cmp.Diff(before, after); d != "" || problem != "" {
		t.Errorf("%s %s", problem, d)
	}
	if problem := k.unprepared(claim); problem != "" || len(k.shares.Owners()) != 0 {
		t.Error(problem)
	}
}

func TestManyAtOnce(t *testing.T) {
	k := newKubelet(t)
	k.start(k.config())
	var wait sync.WaitGroup
	for i := range 32 {
		claim := k.allocate(simple(fmt.Sprint("u", i), "s", "2Gi"))
		for range 2 { // two pods of each
			wait.Go(func() {
				if cdi, problem := k.prepared(claim); problem != "" || len(cdi) != 1 {
					t.Error(cdi, problem)
				}
			})
		}
	}
	wait.Wait()
	if n := len(k.shares.Owners()); n != 32 {
		t.Errorf("%d owners, want 32", n)
	}
}

func TestCancelled(t *testing.T) {
	k := newKubelet(t)
	driver, err := New(k.config())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	results, err := driver.PrepareResourceClaims(ctx, []*resourceapi.ResourceClaim{simple("u1", "s", "1Gi")})
	if err != nil || results["u1"].Err == nil || k.shares.holds != 0 {
		t.Errorf("%v, %v, %d holds", results, err, k.shares.holds)
	}
}

func TestSecondDriver(t *testing.T) {
	k := newKubelet(t)
	k.start(k.config())
	second, err := New(k.config())
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Run(context.Background()); err == nil || !strings.Contains(err.Error(), "another driver named gpu.kerf.dev answers on") {
		t.Errorf("a second driver: %v", err)
	}
	if askInfo(context.Background(), k.dir+"/plugins_registry/gpu.kerf.dev-reg.sock") == nil {
		t.Error("the second one took the first one's socket away")
	}
}

func TestRollingUpdate(t *testing.T) {
	k := newKubelet(t)
	config := k.config()
	config.PodUID = "11111111-2222-3333-4444-555555555555"
	for _, uid := range []string{config.PodUID, "66666666-2222-3333-4444-555555555555"} {
		config.PodUID = uid
		driver, err := New(config)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- driver.Run(ctx) }()
		t.Cleanup(func() { cancel(); <-done })
	}
	k.eventually("both pods' drivers serve", func() bool {
		sockets, err := os.ReadDir(k.dir + "/plugins_registry")
		return err == nil && len(sockets) == 2
	})
}

func TestNoKubeletHere(t *testing.T) {
	k := newKubelet(t)
	config := k.config()
	config.KubeletDir += "/nowhere"
	driver, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	if err := driver.Run(context.Background()); err == nil || !strings.Contains(err.Error(), "set kubernetes.kubeletDir") {
		t.Error(err)
	}
}

func TestHealthStream(t *testing.T) {
	k := newKubelet(t)
	k.start(k.config())
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	stream := k.health(ctx)
	first, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if n := len(first.Devices); n != 4+len(a100MIG[0].Placements)*2+3+2+1+1 {
		t.Errorf("%d devices in the first report", n)
	}
	k.shares.change(0, func(c *Card) { c.Fault.Lost = true; c.Share.Fault = "lost" })
	k.changed <- struct{}{}
	second, err := stream.Recv()
	if err != nil || healthIn(second, vgpu) != healthv1.HealthStatus_UNHEALTHY || healthIn(second, secondary) != healthv1.HealthStatus_HEALTHY {
		t.Errorf("%v, %v", second, err)
	}
	alpha, err := healthalpha.NewDRAResourceHealthClient(k.connection).NodeWatchResources(ctx, &healthalpha.NodeWatchResourcesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if report, err := alpha.Recv(); err != nil || len(report.Devices) != len(first.Devices) {
		t.Errorf("v1alpha1: %v, %v", report, err)
	}
}

func healthIn(report *healthv1.NodeWatchResourcesResponse, device string) healthv1.HealthStatus {
	for _, d := range report.GetDevices() {
		if d.Device.DeviceName == device {
			return d.Health
		}
	}
	return -1
}

func TestHealthOf(t *testing.T) {
	for _, tt := range []struct {
		name   string
		fault  node.Fault
		reason string
		want   string
	}{
		{"nothing is wrong", node.Fault{}, "", "Healthy"},
		{"lost", node.Fault{Lost: true}, "lost", "Unhealthy"},
		{"it asks for a reset", node.Fault{Recovery: node.RecoveryReset}, "", "Unhealthy"},
		{"an action of a later driver", node.Fault{Recovery: 99}, "", "Unhealthy"},
		{"a row remap failed", node.Fault{RemapFailure: true}, "", "Unhealthy"},
		{"a row remap waits, work is safe", node.Fault{RemapPending: true}, "row remap pending", "Healthy"},
		{"it could not be read", node.Fault{}, "no answer for 30 s", "Unknown"},
	} {
		c := Card{GPU: node.GPU{Fault: tt.fault}}
		c.Share.Fault = tt.reason
		if got, message := healthOf(c); string(got) != tt.want || (message == "") != (tt.name == "nothing is wrong") {
			t.Errorf("%s: %s %q", tt.name, got, message)
		}
	}
}

func TestNewChecks(t *testing.T) {
	k := newKubelet(t)
	for want, change := range map[string]func(*Config){
		"no node name":                  func(c *Config) { c.NodeName = "" },
		"Shares and Cards":              func(c *Config) { c.Shares = nil },
		`order "fullest": not known; w`: func(c *Config) { c.Options.Order = "fullest" },
	} {
		config := k.config()
		change(&config)
		if _, err := New(config); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}
