package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	metadatafake "k8s.io/client-go/metadata/fake"
	clienttesting "k8s.io/client-go/testing"
)

var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func templateOf(t *testing.T, containers ...string) *resourceapi.ResourceClaimTemplate {
	t.Helper()
	c, err := Convert(podOf(containers...), have())
	if err != nil {
		t.Fatal(err)
	}
	return c.Template
}

// stored is a template as it is in the API server, last used at a time.
func stored(template *resourceapi.ResourceClaimTemplate, used time.Time) *resourceapi.ResourceClaimTemplate {
	s := template.DeepCopy()
	s.Namespace, s.UID, s.ResourceVersion = "team", "1", "7"
	s.Annotations = withLastUse(nil, used)
	return s
}

// metadataOf is a client for the metadata of templates.
func metadataOf(t *testing.T, templates ...*resourceapi.ResourceClaimTemplate) *metadatafake.FakeMetadataClient {
	scheme := metadatafake.NewTestScheme()
	if err := metav1.AddMetaToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	var objects []runtime.Object
	for _, template := range templates {
		objects = append(objects, &metav1.PartialObjectMetadata{
			TypeMeta: metav1.TypeMeta{APIVersion: "resource.k8s.io/v1", Kind: "ResourceClaimTemplate"}, ObjectMeta: template.ObjectMeta})
	}
	return metadatafake.NewSimpleMetadataClient(scheme, objects...)
}

func verbs(client *fake.Clientset) string {
	var s []string
	for _, a := range client.Actions() {
		s = append(s, a.GetVerb())
	}
	return strings.Join(s, " ")
}

func TestEnsureTemplate(t *testing.T) {
	wanted := templateOf(t, "main: gpu=1 gpumem=8000")
	changed := func(change func(*resourceapi.ResourceClaimTemplate)) *resourceapi.ResourceClaimTemplate {
		s := stored(wanted, noon)
		change(s)
		return s
	}
	for _, tt := range []struct {
		name  string
		there *resourceapi.ResourceClaimTemplate
		verbs string
		err   string
	}{
		{"none", nil, "get create", ""},
		{"just used", stored(wanted, noon.Add(-time.Minute)), "get", ""},
		{"used a while ago", stored(wanted, noon.Add(-useEvery)), "get update", ""},
		{"never marked", changed(func(s *resourceapi.ResourceClaimTemplate) { s.Annotations = nil }), "get update", ""},
		{"quantities written otherwise", changed(func(s *resourceapi.ResourceClaimTemplate) {
			s.Spec.Spec.Devices.Requests[0].Exactly.Capacity = capacity(8000<<20, 0)
		}), "get", ""},
		{"other content", changed(func(s *resourceapi.ResourceClaimTemplate) { s.Spec.Spec.Devices.Requests[0].Exactly.Count = 8 }), "get create", "there, but not as kerf-controller makes it"},
		{"with labels for claims", changed(func(s *resourceapi.ResourceClaimTemplate) { s.Spec.Labels = map[string]string{"a": "b"} }), "get create", "there, but not as"},
		{"admin access", changed(func(s *resourceapi.ResourceClaimTemplate) {
			yes := true
			s.Spec.Spec.Devices.Requests[0].Exactly.AdminAccess = &yes
		}), "get create", "there, but not as"},
		{"somebody else's", changed(func(s *resourceapi.ResourceClaimTemplate) { s.Labels = nil }), "get", "delete it, it will be made again"},
	} {
		client := fake.NewClientset()
		if tt.there != nil {
			client = fake.NewClientset(tt.there)
		}
		err := ensureTemplate(context.Background(), client, "team", wanted, noon)
		if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.err)
		}
		if got := verbs(client); got != tt.verbs {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.verbs)
		}
	}
}

// A Kubernetes that fills in a field which this program does not know the default of.
func TestEnsureTemplateWithDefaults(t *testing.T) {
	wanted := templateOf(t, "main: gpu=1")
	fill := func(s *resourceapi.ResourceClaimTemplate) *resourceapi.ResourceClaimTemplate {
		s.Spec.Spec.Devices.Requests[0].Exactly.Tolerations = []resourceapi.DeviceToleration{{Operator: resourceapi.DeviceTolerationOpExists}}
		return s
	}
	client := fake.NewClientset(fill(stored(wanted, noon)))
	client.PrependReactor("create", "*", func(a clienttesting.Action) (bool, runtime.Object, error) {
		create := a.(clienttesting.CreateActionImpl)
		if !slices.Contains(create.CreateOptions.DryRun, metav1.DryRunAll) {
			t.Error("made, where it was to be asked only")
		}
		return true, fill(create.Object.(*resourceapi.ResourceClaimTemplate)), nil
	})
	if err := ensureTemplate(context.Background(), client, "team", wanted, noon); err != nil {
		t.Error(err)
	}
}

// Another replica, or the collection, is a moment faster.
func TestEnsureTemplateRaces(t *testing.T) {
	wanted := templateOf(t, "main: gpu=1")
	resource := resourceapi.Resource("resourceclaimtemplates")
	for _, tt := range []struct {
		name, verb string
		err        error
		there      bool
		want       string
	}{
		{"made by another", "create", apierrors.NewAlreadyExists(resource, wanted.Name), false, "get create get create"},
		{"marked by another", "update", apierrors.NewConflict(resource, wanted.Name, errors.New("changed")), true, "get update get update"},
		{"collected meanwhile", "update", apierrors.NewNotFound(resource, wanted.Name), true, "get update get update"},
	} {
		client := fake.NewClientset()
		if tt.there {
			client = fake.NewClientset(stored(wanted, noon.Add(-time.Hour)))
		}
		failed := false
		client.PrependReactor(tt.verb, "resourceclaimtemplates", func(clienttesting.Action) (bool, runtime.Object, error) {
			if failed {
				return false, nil, nil
			}
			failed = true
			return true, nil, tt.err
		})
		if err := ensureTemplate(context.Background(), client, "team", wanted, noon); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		if got := verbs(client); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
	client := fake.NewClientset()
	client.PrependReactor("create", "*", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewForbidden(resource, wanted.Name, errors.New("quota exceeded"))
	})
	if err := ensureTemplate(context.Background(), client, "team", wanted, noon); err == nil || !strings.Contains(err.Error(), "quota exceeded") || verbs(client) != "get create" {
		t.Errorf("a quota: %v after %s", err, verbs(client))
	}
}

func TestCollect(t *testing.T) {
	old, fresh := noon.Add(-2*time.Hour), noon.Add(-time.Minute)
	named := func(name, namespace string, used time.Time) *resourceapi.ResourceClaimTemplate {
		s := stored(templateOf(t, "main: gpu=1"), used)
		s.Name, s.Namespace = name, namespace
		return s
	}
	foreign := named("foreign", "a", old)
	foreign.Labels = nil
	unmarked := named("unmarked", "a", old)
	unmarked.Annotations, unmarked.CreationTimestamp = map[string]string{annotationLastUse: "yesterday"}, metav1.NewTime(fresh)
	used := "used"
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "a"}, Spec: corev1.PodSpec{ResourceClaims: []corev1.PodResourceClaim{
		{Name: "own"}, {Name: "kerf", ResourceClaimTemplateName: &used}}}}
	client := fake.NewClientset(pod)
	meta := metadataOf(t, named("fresh", "a", fresh), named("unused", "a", old), named("used", "a", old), named("used", "b", old), foreign, unmarked)
	meta.PrependReactor("delete", "resourceclaimtemplates", func(a clienttesting.Action) (bool, runtime.Object, error) {
		p := a.(clienttesting.DeleteActionImpl).DeleteOptions.Preconditions
		if p == nil || p.UID == nil || p.ResourceVersion == nil || *p.ResourceVersion != "7" {
			t.Errorf("deleted without naming what was read: %v", p)
		}
		return false, nil, nil
	})
	removed, err := collect(context.Background(), client, meta, noon)
	if err != nil || removed != 2 {
		t.Errorf("%d removed, %v", removed, err)
	}
	for _, a := range client.Actions() { // the fake of metadata does not say
		if l, ok := a.(clienttesting.ListActionImpl); ok && l.ListOptions.Limit != pageSize {
			t.Errorf("%s of %s: pages of %d", a.GetVerb(), a.GetResource().Resource, l.ListOptions.Limit)
		}
	}
	left, err := meta.Resource(templatesResource).List(context.Background(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	names := ""
	for _, l := range left.Items {
		names += l.Namespace + "/" + l.Name + " "
	}
	if names != "a/foreign a/fresh a/unmarked a/used " {
		t.Errorf("left: %s", names)
	}
}

func TestCollectFails(t *testing.T) {
	resource := resourceapi.Resource("resourceclaimtemplates")
	for _, tt := range []struct {
		verb, resource string
		err            error
		want           string
	}{
		{"delete", "resourceclaimtemplates", apierrors.NewConflict(resource, "x", errors.New("changed")), ""},
		{"delete", "resourceclaimtemplates", apierrors.NewNotFound(resource, "x"), ""},
		{"delete", "resourceclaimtemplates", errors.New("forbidden"), "remove template team/"},
		{"list", "pods", errors.New("timeout"), "list pods of team: timeout"},
		{"list", "resourceclaimtemplates", errors.New("timeout"), "list templates: timeout"},
	} {
		client, meta := fake.NewClientset(), metadataOf(t, stored(templateOf(t, "main: gpu=1"), noon.Add(-2*time.Hour)))
		fail := func(clienttesting.Action) (bool, runtime.Object, error) { return true, nil, tt.err }
		client.PrependReactor(tt.verb, tt.resource, fail)
		meta.PrependReactor(tt.verb, tt.resource, fail)
		removed, err := collect(context.Background(), client, meta, noon)
		if removed != 0 || (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s %s: %d, %v, want %q", tt.verb, tt.resource, removed, err, tt.want)
		}
	}
}

func TestSizes(t *testing.T) {
	device := func(name, memory, kind, mode string) resourceapi.Device {
		return resourceapi.Device{Name: name, Attributes: map[resourceapi.QualifiedName]resourceapi.DeviceAttribute{"type": {StringValue: &kind}, "mode": {StringValue: &mode}},
			Capacity: map[resourceapi.QualifiedName]resourceapi.DeviceCapacity{"memory": {Value: mustQuantity(memory)}}}
	}
	slice := func(name, driver string, devices ...resourceapi.Device) *resourceapi.ResourceSlice {
		return &resourceapi.ResourceSlice{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: resourceapi.ResourceSliceSpec{Driver: driver, Devices: devices}}
	}
	client := fake.NewClientset(
		slice("a", driverName, device("1", "80Gi", "gpu", "vgpu"), device("2", "80Gi", "gpu", "vgpu"), device("3", "40Gi", "gpu", "vgpu")),
		slice("b", driverName, device("1", "120Gi", "gpu", "overcommit"), device("2", "18Gi", "mig", "mig"), device("3", "24Gi", "gpu", "exclusive"), resourceapi.Device{Name: "4"}),
		slice("c", "other", device("1", "1Gi", "gpu", "vgpu")))
	now := noon
	s := &sizes{client: client, now: func() time.Time { return now }}
	for range 2 {
		if got, err := s.get(context.Background()); err != nil || fmt.Sprint(got) != "[40Gi 80Gi]" {
			t.Errorf("%v, %v", got, err)
		}
	}
	now = now.Add(sizesFor)
	_, _ = s.get(context.Background())
	if got := verbs(client); got != "list list" {
		t.Errorf("asked %q: once for each minute", got)
	}
}
