package evict

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	resourceapi "k8s.io/api/resource/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	dra "github.com/kerf-gpu/kerf/dra-driver"
)

// asked is when devices ask to be drained: before the clock of synctest begins.
var asked = time.Date(1999, 12, 31, 0, 0, 0, 0, time.UTC)

// sliceOf is a node's slice as kerfd writes it; the device 0 asks to be drained where there is a cause.
func sliceOf(node, cause string) *resourceapi.ResourceSlice {
	s := &resourceapi.ResourceSlice{ObjectMeta: metav1.ObjectMeta{Name: node}, Spec: resourceapi.ResourceSliceSpec{Driver: dra.DriverName, NodeName: &node,
		Pool: resourceapi.ResourcePool{Name: node, Generation: 1, ResourceSliceCount: 1}, Devices: []resourceapi.Device{{Name: "gpu-0"}, {Name: "gpu-1"}}}}
	if cause != "" {
		at := metav1.NewTime(asked)
		s.Spec.Devices[0].Taints = []resourceapi.DeviceTaint{
			{Key: "kerf.dev/drain", Value: "reboot", Effect: resourceapi.DeviceTaintEffectNone, TimeAdded: &at},
			{Key: "kerf.dev/xid", Value: cause, Effect: resourceapi.DeviceTaintEffectNoSchedule, TimeAdded: &at}}
	}
	return s
}

// podOf is a Job's pod on a node, with its claim of a device.
func podOf(name, job, node, device string) (*corev1.Pod, *resourceapi.ResourceClaim) {
	controls := true
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "team", Name: name, UID: types.UID("uid-" + name), Labels: map[string]string{"app": job},
		OwnerReferences: []metav1.OwnerReference{{APIVersion: "batch/v1", Kind: "Job", Name: job, Controller: &controls}}}, Spec: corev1.PodSpec{NodeName: node}}
	c := &resourceapi.ResourceClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "team", Name: name}}
	c.Status.ReservedFor = []resourceapi.ResourceClaimConsumerReference{{Resource: "pods", Name: name, UID: p.UID}}
	c.Status.Allocation = &resourceapi.AllocationResult{Devices: resourceapi.DeviceAllocationResult{
		Results: []resourceapi.DeviceRequestAllocationResult{{Request: "r", Driver: dra.DriverName, Pool: node, Device: device}}}}
	return p, c
}

func TestLook(t *testing.T) {
	a, claimA := podOf("a", "train", "n1", "gpu-0")
	b, claimB := podOf("b", "train", "n2", "gpu-1")
	old := sliceOf("n1", "79")
	old.Spec.Pool.Generation = 0 // of before; its other device's taint no longer counts
	old.Spec.Devices[1].Taints = old.Spec.Devices[0].Taints
	foreign := sliceOf("n3", "79")
	foreign.Spec.Driver = "gpu.example.com"
	budget := &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Namespace: "team", Name: "train"},
		Spec: policyv1.PodDisruptionBudgetSpec{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "train"}}}, Status: policyv1.PodDisruptionBudgetStatus{DisruptionsAllowed: 1}}
	admin := true
	claimB.Status.Allocation.Devices.Results = append(claimB.Status.Allocation.Devices.Results,
		resourceapi.DeviceRequestAllocationResult{Driver: dra.DriverName, Pool: "n1", Device: "gpu-0", AdminAccess: &admin})
	got := look([]*resourceapi.ResourceSlice{sliceOf("n1", "79"), old, sliceOf("n2", ""), foreign}, []*resourceapi.ResourceClaim{claimA, claimB},
		[]*corev1.Pod{trim(t, a), trim(t, b)}, []*policyv1.PodDisruptionBudget{budget})
	want := Cluster{Nodes: 2, Allowed: map[string]int{"team/train": 1},
		Devices: []Device{{DeviceID: DeviceID{dra.DriverName, "n1", "gpu-0"}, Node: "n1", Causes: []string{"kerf.dev/xid=79"}, Level: "reboot", Since: asked}},
		Pods: []Pod{
			{Namespace: "team", Name: "a", UID: "uid-a", Node: "n1", Gang: "job team/train", Devices: []DeviceID{{dra.DriverName, "n1", "gpu-0"}}, PDBs: []string{"team/train"}},
			{Namespace: "team", Name: "b", UID: "uid-b", Node: "n2", Gang: "job team/train", Devices: []DeviceID{{dra.DriverName, "n2", "gpu-1"}}, PDBs: []string{"team/train"}},
		}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func trim(t *testing.T, p *corev1.Pod) *corev1.Pod {
	t.Helper()
	object, err := trimmed(p)
	if err != nil {
		t.Fatal(err)
	}
	return object.(*corev1.Pod)
}

func TestGangAndFixed(t *testing.T) {
	controls, group := true, "ring"
	owned := func(kind, api string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Namespace: "team", OwnerReferences: []metav1.OwnerReference{{APIVersion: api, Kind: kind, Name: "x", Controller: &controls}}}
	}
	with := func(m metav1.ObjectMeta, labels, annotations map[string]string) metav1.ObjectMeta {
		m.Labels, m.Annotations = labels, annotations
		return m
	}
	job := owned("Job", "batch/v1")
	for _, tt := range []struct {
		name        string
		pod         corev1.Pod
		gang, fixed string
	}{
		{"a Job's", corev1.Pod{ObjectMeta: job}, "job team/x", ""},
		{"another kind of Job", corev1.Pod{ObjectMeta: owned("Job", "batch.volcano.sh/v1alpha1")}, "", ""},
		{"a Deployment's", corev1.Pod{ObjectMeta: owned("ReplicaSet", "apps/v1")}, "", ""},
		{"a JobSet's", corev1.Pod{ObjectMeta: with(job, map[string]string{"jobset.sigs.k8s.io/jobset-name": "set"}, nil)}, "jobset team/set", ""},
		{"a LeaderWorkerSet's", corev1.Pod{ObjectMeta: with(owned("StatefulSet", "apps/v1"),
			map[string]string{"leaderworkerset.sigs.k8s.io/name": "lws", "leaderworkerset.sigs.k8s.io/group-index": "3"}, nil)}, "leaderworkerset team/lws/3", ""},
		{"Kubernetes' pod group", corev1.Pod{ObjectMeta: job, Spec: corev1.PodSpec{SchedulingGroup: &corev1.PodSchedulingGroup{PodGroupName: &group}}}, "podgroup team/ring", ""},
		{"its owner's word", corev1.Pod{ObjectMeta: with(job, nil, map[string]string{annotationGang: "mine"})}, "gang team/mine", ""},
		{"alone, by its owner's word", corev1.Pod{ObjectMeta: with(job, nil, map[string]string{annotationGang: ""})}, "", ""},
		{"never", corev1.Pod{ObjectMeta: with(job, nil, map[string]string{annotationEvict: "never"})}, "job team/x", annotationEvict},
		{"nobody's", corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "team"}}, "", "no controller"},
		{"nobody's, and allowed", corev1.Pod{ObjectMeta: with(metav1.ObjectMeta{Namespace: "team"}, nil, map[string]string{annotationEvict: "allowed"})}, "", ""},
		{"a DaemonSet's", corev1.Pod{ObjectMeta: owned("DaemonSet", "apps/v1")}, "", "DaemonSet"},
		{"kubelet's own", corev1.Pod{ObjectMeta: with(job, nil, map[string]string{corev1.MirrorPodAnnotationKey: "x"})}, "job team/x", "kubelet"},
	} {
		if gang, why := gangOf(&tt.pod), fixed(&tt.pod); gang != tt.gang || !strings.Contains(why, tt.fixed) || (why == "") != (tt.fixed == "") {
			t.Errorf("%s: gang %q, fixed %q; want %q, %q", tt.name, gang, why, tt.gang, tt.fixed)
		}
	}
}

// apiServer evicts as the real one does: within the namespace's budget, by UID, and not in a dry run.
type apiServer struct {
	*fake.Clientset
	mu      sync.Mutex
	allowed int // evictions, before it refuses
	evicted []string
	dry     []string
}

func newServer(objects ...runtime.Object) *apiServer {
	s := &apiServer{Clientset: fake.NewClientset(objects...), allowed: 1000}
	s.PrependReactor("create", "pods/eviction", func(a clienttesting.Action) (bool, runtime.Object, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		e := a.(clienttesting.CreateAction).GetObject().(*policyv1.Eviction)
		if s.allowed == 0 {
			return true, nil, apierrors.NewTooManyRequests("Cannot evict pod as it would violate the pod's disruption budget.", 0)
		}
		if len(e.DeleteOptions.DryRun) > 0 {
			s.dry = append(s.dry, e.Name)
			return true, nil, nil
		}
		s.allowed--
		s.evicted = append(s.evicted, e.Name)
		return true, nil, s.Tracker().Delete(corev1.SchemeGroupVersion.WithResource("pods"), e.Namespace, e.Name)
	})
	events := 0 // the fake calls one reactor at a time
	s.PrependReactor("create", "events", func(a clienttesting.Action) (bool, runtime.Object, error) {
		a.(clienttesting.CreateAction).GetObject().(*corev1.Event).Name = fmt.Sprintf("e%d", events) // generateName
		events++
		return false, nil, nil
	})
	return s
}

// cluster has one sick node with n Jobs of a pod each, and a healthy one.
func clusterOf(n int) (objects []runtime.Object) {
	objects = append(objects, sliceOf("n1", "79"), sliceOf("n2", ""))
	for i := range n {
		p, c := podOf(fmt.Sprintf("p%d", i), fmt.Sprintf("job%d", i), "n1", "gpu-0")
		objects = append(objects, p, c)
	}
	return objects
}

// lead runs a controller as the leader until everything is at rest and the time is over, and returns its metrics.
func lead(t *testing.T, s *apiServer, p Policy, limit time.Duration) func(string) float64 {
	t.Helper()
	registry := prometheus.NewRegistry()
	c, err := New(Config{Client: s, Namespace: "kerf-system", Identity: "me", Policy: p, Log: slog.New(slog.DiscardHandler), Now: time.Now}, registry)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	c.lead(ctx)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := strings.TrimPrefix(f.GetName(), "kerf_evictions_")
			for _, l := range m.GetLabel() {
				name += " " + l.GetValue()
			}
			values[name] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return func(name string) float64 {
		if _, ok := values[name]; !ok {
			t.Errorf("no metric %q", name)
		}
		return values[name]
	}
}

// events are the reasons of all Events, with how many there are.
func (s *apiServer) events(t *testing.T) map[string]int {
	t.Helper()
	list, err := s.CoreV1().Events("").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	count := map[string]int{}
	for _, e := range list.Items {
		count[e.Reason]++
	}
	return count
}

func (s *apiServer) book(t *testing.T) (data map[string]string, h History) {
	t.Helper()
	object, err := s.CoreV1().ConfigMaps("kerf-system").Get(t.Context(), BookName, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(object.Data[keyHistory]), &h); err != nil {
		t.Fatal(err)
	}
	return object.Data, h
}

// TestBudgetSurvivesLeaders: five leaders one after the other, each for a few seconds, move no more than one would.
func TestBudgetSurvivesLeaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(clusterOf(20)...)
		p := policy(func(p *Policy) { p.Pods, p.Per = 3, time.Minute })
		for range 5 {
			lead(t, s, p, 5*time.Second)
		}
		if len(s.evicted) != 3 {
			t.Errorf("evicted within 25 s: %v, want 3", s.evicted)
		}
		lead(t, s, p, time.Minute)
		if len(s.evicted) != 6 {
			t.Errorf("evicted within 85 s: %v, want 6", s.evicted)
		}
		data, _ := s.book(t)
		if !strings.Contains(data[keyStatus], "3 of 3 pods within 1m0s") || s.events(t)["MovedOffDevice"] != 6 {
			t.Errorf("status %s, events %v", data[keyStatus], s.events(t))
		}
	})
}

func TestDryRunAndObserve(t *testing.T) {
	for _, tt := range []struct {
		mode Mode
		dry  int
		want map[string]int
	}{
		{ModeObserve, 0, map[string]int{}},
		{ModeDryRun, 2, map[string]int{"WouldBeMoved": 2}},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := newServer(clusterOf(2)...)
			m := lead(t, s, policy(func(p *Policy) { p.Mode = tt.mode }), time.Hour)
			if len(s.evicted) != 0 || len(s.dry) != tt.dry || !maps.Equal(s.events(t), tt.want) {
				t.Errorf("%s: evicted %v, asked %v, events %v", tt.mode, s.evicted, s.dry, s.events(t))
			}
			if got := m("pods_total would"); int(got) != tt.dry {
				t.Errorf("%s: %v would be moved", tt.mode, got)
			}
		})
	}
}

// TestRefused: a PodDisruptionBudget's refusal is said, costs no budget, and is asked again; after the deadline, and only by policy, the device
// gets NoExecute, until it no longer asks.
func TestRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(clusterOf(1)...)
		s.allowed = 0
		m := lead(t, s, policy(nil), 65*time.Second)
		if got := m("pods_total refused"); got != 3 || s.events(t)["NotMovedYet"] != 3 {
			t.Errorf("%v refusals, events %v; want one every 30 s", got, s.events(t))
		}
		if _, h := s.book(t); len(h.spent(policy(nil), time.Now()).Nodes) > 1 {
			t.Errorf("a refusal has cost a budget: %+v", h)
		}
		rules := func() int {
			list, err := s.ResourceV1().DeviceTaintRules().List(t.Context(), metav1.ListOptions{})
			if err != nil {
				t.Fatal(err)
			}
			return len(list.Items)
		}
		if rules() != 0 {
			t.Error("NoExecute without a policy for it")
		}
		force := policy(func(p *Policy) { p.ForceAfter = time.Minute })
		lead(t, s, force, 65*time.Second)
		if rules() != 1 || s.events(t)["ForcedOffDevice"] != 1 {
			t.Errorf("%d rules, events %v", rules(), s.events(t))
		}
		if _, err := s.ResourceV1().ResourceSlices().Update(t.Context(), sliceOf("n1", ""), metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		lead(t, s, force, 5*time.Second)
		if rules() != 0 {
			t.Error("the rule is still there, and the device no longer asks")
		}
	})
}

// TestBreakerInCluster: a cause on many nodes stops all, says so, proposes what to undo, and goes on after a person's word only.
func TestBreakerInCluster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		objects := clusterOf(1)
		for i := range 6 {
			objects = append(objects, sliceOf(fmt.Sprintf("m%d", i), "79"))
		}
		s := newServer(objects...)
		m := lead(t, s, policy(nil), time.Hour)
		data, h := s.book(t)
		if h.Breaker == nil || len(s.evicted) != 0 || s.events(t)["BreakerOpen"] != 1 || m("breaker_open") != 1 || m("breaker_trips_total") != 1 {
			t.Fatalf("breaker %+v, evicted %v, events %v", h.Breaker, s.evicted, s.events(t))
		}
		if !strings.Contains(data[keyStatus], "BREAKER OPEN") || !strings.Contains(data[keyUndo], "kerf release") {
			t.Errorf("status %s, undo %s", data[keyStatus], data[keyUndo])
		}
		object, err := s.CoreV1().ConfigMaps("kerf-system").Get(t.Context(), BookName, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		object.Annotations = map[string]string{ResetAnnotation: "sue: a driver rollout"}
		if _, err := s.CoreV1().ConfigMaps("kerf-system").Update(t.Context(), object, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		lead(t, s, policy(nil), time.Minute)
		if _, h := s.book(t); h.Breaker != nil || h.Resets != 1 || !slices.Equal(s.evicted, []string{"p0"}) || s.events(t)["BreakerReset"] != 1 {
			t.Errorf("after the reset: %+v, evicted %v, events %v", h.Breaker, s.evicted, s.events(t))
		}
	})
}

// TestRival: of two who think that they lead, the second to write does nothing.
func TestRival(t *testing.T) {
	s := newServer()
	one, two := book{client: s, namespace: "kerf-system"}, book{client: s, namespace: "kerf-system"}
	version := 0
	s.PrependReactor("update", "configmaps", func(a clienttesting.Action) (bool, runtime.Object, error) { // as the real one keeps versions
		object := a.(clienttesting.UpdateAction).GetObject().(*corev1.ConfigMap)
		if object.ResourceVersion != "" && object.ResourceVersion != fmt.Sprint(version) || object.ResourceVersion == "" && version > 0 {
			return true, nil, apierrors.NewConflict(corev1.Resource("configmaps"), object.Name, nil)
		}
		version++
		object.ResourceVersion = fmt.Sprint(version)
		return false, nil, nil
	})
	for _, b := range []*book{&one, &two} {
		if _, err := b.read(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := one.write(t.Context(), History{Resets: 1}, "", ""); err != nil {
		t.Fatal(err)
	}
	if err := two.write(t.Context(), History{Resets: 2}, "", ""); err != errRival { //nolint:errorlint // it is not wrapped
		t.Errorf("error %v", err)
	}
	if h, err := two.read(t.Context()); err != nil || h.Resets != 1 {
		t.Errorf("%+v, %v: want the rival's history", h, err)
	}
}

// TestBadHistory: what cannot be read is not taken for nothing.
func TestBadHistory(t *testing.T) {
	s := newServer(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "kerf-system", Name: BookName}, Data: map[string]string{keyHistory: "{"}})
	b := book{client: s, namespace: "kerf-system"}
	if _, err := b.read(t.Context()); err == nil || !strings.Contains(err.Error(), "repair it") {
		t.Errorf("error %v", err)
	}
}

// TestRuleName: no two devices have one rule; who is forced off one would otherwise be taken for forced off both.
func TestRuleName(t *testing.T) {
	names := make(map[string]DeviceID)
	for _, d := range []DeviceID{{"gpu.kerf.dev", "n", "gpu-a-b"}, {"gpu.kerf.dev", "n-gpu", "a-b"}, {"gpu.kerf.dev", "n.gpu", "a-b"}, {"gpu.kerf.dev", "n", "b"}} {
		name := ruleName(d)
		if other, taken := names[name]; taken {
			t.Errorf("%s is the name of the rules of %v and %v", name, other, d)
		}
		names[name] = d
	}
}
