package e2e

import (
	"context"
	"fmt"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

// badConfigs are configurations with a mistake, and words of the error that names the fix.
var badConfigs = []struct {
	name, config string
	policy       []string // words of the admission policy
	driver       []string // of the driver, where no policy is there
}{
	{"field", `{"apiVersion":"gpu.kerf.dev/v1alpha1","kind":"ShareConfig","memoryLimits":"20Gi"}`,
		[]string{"unknown field", "memoryLimit"}, []string{"memoryLimits", "no such field", "memoryLimit, burst"}},
	{"version", `{"apiVersion":"gpu.kerf.dev/v2","kind":"ShareConfig"}`,
		[]string{"apiVersion", "gpu.kerf.dev/v1alpha1"}, []string{"gpu.kerf.dev/v2", "not known", "gpu.kerf.dev/v1alpha1"}},
	{"empty", `{}`,
		[]string{"apiVersion", "gpu.kerf.dev/v1alpha1"}, []string{"apiVersion", "missing", "gpu.kerf.dev/v1alpha1"}},
	{"class", `{"apiVersion":"gpu.kerf.dev/v1alpha1","kind":"ShareConfig","class":"gold"}`,
		[]string{"class", "guaranteed"}, []string{"gold", "guaranteed"}},
	{"resident", `{"apiVersion":"gpu.kerf.dev/v1alpha1","kind":"ShareConfig","memoryLimit":"1Gi","minResident":"2Gi"}`,
		[]string{"minResident", "memoryLimit"}, []string{"minResident", "memoryLimit"}},
}

// What refuses a configuration before kerfd does.
var (
	policies = schema.GroupVersionResource{Group: "admissionregistration.k8s.io", Version: "v1", Resource: "validatingadmissionpolicybindings"}
	webhooks = schema.GroupVersionResource{Group: "admissionregistration.k8s.io", Version: "v1", Resource: "validatingwebhookconfigurations"}
)

// without takes an object away, and returns what puts it back.
func (s *scene) without(gvr schema.GroupVersionResource, name string) func() {
	s.Helper()
	object, err := s.objects.Resource(gvr).Get(s.Context(), name, metav1.GetOptions{})
	if err != nil {
		s.Fatal(err)
	}
	if err := s.objects.Resource(gvr).Delete(s.Context(), name, metav1.DeleteOptions{}); err != nil {
		s.Fatal(err)
	}
	return func() {
		for _, field := range []string{"resourceVersion", "uid", "creationTimestamp"} {
			unstructured.RemoveNestedField(object.Object, "metadata", field)
		}
		if _, err := s.objects.Resource(gvr).Create(context.Background(), object, metav1.CreateOptions{}); err != nil {
			s.Errorf("put %s back: %v", name, err)
		}
	}
}

// testBadConfig: what is wrong is refused when it is written, by a policy or by the webhook and, where neither is there, by the driver
// when the pod starts.
func testBadConfig(s *scene) {
	for _, bad := range badConfigs {
		w := shared("1Gi", "0")
		w.config = bad.config
		if err := s.template("policy-"+bad.name, w); err == nil || !containsAll(err.Error(), bad.policy) {
			s.Errorf("%s: the policy says %v, want words %q", bad.config, err, bad.policy)
		}
	}
	defer s.without(policies, "kerf-share-configs")()
	for _, bad := range badConfigs {
		w := shared("1Gi", "0")
		w.config = bad.config
		// The API server learns of the policy's end a little later.
		var err error
		if !poll(soon, func() bool {
			err = s.template("webhook-"+bad.name, w)
			return err != nil && containsAll(err.Error(), bad.driver)
		}) {
			s.Errorf("%s: the webhook says %v, want words %q", bad.config, err, bad.driver)
		}
	}
	defer s.without(webhooks, "kerf-controller.kerf.dev")()
	for _, bad := range badConfigs {
		w := shared("1Gi", "0")
		w.config = bad.config
		var err error
		if !poll(soon, func() bool { err = s.template("driver-"+bad.name, w); return err == nil }) {
			s.Fatalf("%s: it is refused without the policy and the webhook: %v", bad.config, err)
		}
		s.create(newPod("driver-"+bad.name, look(), fromTemplate("driver-"+bad.name)))
	}
	for _, bad := range badConfigs {
		s.event("driver-"+bad.name, append([]string{"request r0", "config from the claim"}, bad.driver...)...)
	}
	s.measured("%d kinds refused by the policy, without it by the webhook, without both by the driver", len(badConfigs))
}

// testBadAmounts: what is rounded, and what no card has.
func testBadAmounts(s *scene) {
	gpu := s.cards()[5]
	for name, amounts := range map[string]struct {
		memory string
		want   int64
	}{
		"below-minimum": {"1Mi", 2 << 20},
		"off-step":      {"1572864001", 1501 << 20},
	} {
		s.slice(name, shared(amounts.memory, "0").on(gpu.uuid), []string{"/bin/sh", "-c", "sleep 1000"})
		s.running(name)
		if memory := s.allocation(name)[0].ConsumedCapacity["memory"]; memory.Value() != amounts.want {
			s.Errorf("%s: %s asked, %s consumed, want %d", name, amounts.memory, memory.String(), amounts.want)
		}
	}
	for name, w := range map[string]want{
		"above-card":    shared("200Gi", "0"),
		"cores-101":     shared("1Gi", "101"),
		"tenants-33":    {class: "gpu-shared", tenants: "33"},
		"no-overcommit": {class: "gpu-overcommit", memory: "1Gi"},
		"no-mig":        {class: "gpu-mig"},
	} {
		s.slice(name, w, look())
		if reason := s.unschedulable(name); !strings.Contains(reason, "cannot allocate all claims") {
			s.Errorf("%s: the scheduler says %q", name, reason)
		}
	}
}

// testBadDevice: a claim that was allocated from slices which are no longer so. The scheduler is played by the test.
func testBadDevice(s *scene) {
	gpu := s.cards()[0]
	for _, bad := range []struct {
		name   string
		device func(*resourceapi.DeviceRequestAllocationResult)
		words  []string
	}{
		{"went-away", func(r *resourceapi.DeviceRequestAllocationResult) { r.Device = "gpu-00000000" }, []string{"gpu-00000000", "not on this node", "delete the pod"}},
		{"other-pool", func(r *resourceapi.DeviceRequestAllocationResult) { r.Pool = "elsewhere" }, []string{"elsewhere", "delete the pod"}},
	} {
		c := s.claim(bad.name, shared("1Gi", "0"))
		result := resourceapi.DeviceRequestAllocationResult{Request: "r0", Driver: driverName, Pool: "kerf", Device: gpu.device}
		bad.device(&result)
		c.Status.Allocation = &resourceapi.AllocationResult{Devices: resourceapi.DeviceAllocationResult{Results: []resourceapi.DeviceRequestAllocationResult{result}}}
		p := newPod(bad.name, look(), fromClaim(bad.name))
		p.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: "kerf.dev/e2e"}}
		made := s.create(p)
		c.Status.ReservedFor = []resourceapi.ResourceClaimConsumerReference{{Resource: "pods", Name: made.Name, UID: made.UID}}
		if _, err := s.client.ResourceV1().ResourceClaims(s.ns).UpdateStatus(s.Context(), c, metav1.UpdateOptions{}); err != nil {
			s.Fatal(err)
		}
		open := []byte(`{"spec":{"schedulingGates":null}}`)
		if _, err := s.client.CoreV1().Pods(s.ns).Patch(s.Context(), bad.name, types.MergePatchType, open, metav1.PatchOptions{}); err != nil {
			s.Fatal(err)
		}
		s.event(bad.name, bad.words...)
	}
}

// testBadImage: an image without glibc is refused in words.
func testBadImage(s *scene) {
	s.slice("static", shared("1Gi", "0"), []string{"/bin/sh", "-c", "sleep 1000"}, image(busyboxImage))
	s.measured("%s", tail(s.event("static", "glibc"), 120))
}

func tail(text string, most int) string { return text[max(0, len(text)-most):] }

// testBadCDIDirectory: a directory that cannot be written fails the pod in words and, once it can be, the pod starts.
func testBadCDIDirectory(s *scene) {
	if err := immutable(s.node.path("/run/cdi"), true); err != nil {
		s.Skipf("make the CDI directory immutable: %v", err)
	}
	defer func() { _ = immutable(s.node.path("/run/cdi"), false) }()
	s.slice("cdi", shared("1Gi", "0"), look())
	message := s.event("cdi", "prepare", "/cdi", "operation not permitted")
	if err := immutable(s.node.path("/run/cdi"), false); err != nil {
		s.Fatal(err)
	}
	s.ended("cdi")
	s.measured("%s", tail(message, 100))
}

// testBadHook: without its hook no container with a share starts, and kerfd puts it back.
func testBadHook(s *scene) {
	if err := s.node.inside("/bin/sh", "-c", "rm /var/lib/kerf/host/*/bin/kerf-hook"); err != nil {
		s.Fatalf("no hook is installed: %v", err)
	}
	s.slice("hook", shared("1Gi", "0"), look(), restarts(corev1.RestartPolicyOnFailure))
	s.event("hook", "kerf-hook", "no such file")
	s.crashKerfd() // what starts next installs it
	s.ended("hook")
}

// testBadFullDisk: a full disk under the ledger.
func testBadFullDisk(s *scene) {
	const state = "/var/lib/kerf"
	s.stopKerfd()
	if err := s.node.mountSmall(state, "32m"); err != nil {
		s.startKerfd()
		s.Fatal(err)
	}
	s.startKerfd()
	defer func() {
		s.stopKerfd()
		if err := s.node.unmount(state); err != nil {
			s.Errorf("unmount the small disk: %v", err)
		}
		s.startKerfd()
	}()
	if err := s.node.fill(state); err != nil {
		s.Fatal(err)
	}
	s.slice("full", shared("1Gi", "0"), look())
	message := s.event("full", "no space left")
	if err := s.node.empty(state); err != nil {
		s.Fatal(err)
	}
	s.ended("full")
	s.delete("full")
	s.gone("full")
	s.measured("%s", tail(message, 100))
}

// stopKerfd takes the DaemonSet off the node, and startKerfd puts it back.
func (s *scene) stopKerfd()  { s.Helper(); s.nodeSelector(`{"kerf.dev/e2e":"nowhere"}`, 0) }
func (s *scene) startKerfd() { s.Helper(); s.nodeSelector(`{"kerf.dev/e2e":null}`, 1) }

func (s *scene) nodeSelector(selector string, want int32) {
	s.Helper()
	patch := []byte(`{"spec":{"template":{"spec":{"nodeSelector":` + selector + `}}}}`)
	if _, err := s.client.AppsV1().DaemonSets(installNamespace).Patch(context.Background(), "kerfd", types.StrategicMergePatchType, patch, metav1.PatchOptions{}); err != nil {
		s.Fatalf("move kerfd: %v", err)
	}
	if want > 0 {
		s.rolledOut()
		return
	}
	await(s, daemonSets, installNamespace, "kerfd", soon, "no kerfd", func(d *appsv1.DaemonSet) string {
		if d == nil || d.Status.ObservedGeneration == d.Generation && d.Status.CurrentNumberScheduled+d.Status.NumberMisscheduled == 0 {
			return ""
		}
		return fmt.Sprintf("status %+v", d.Status)
	})
	if !poll(soon, func() bool { return s.node.kerfd() == 0 }) {
		s.Fatalf("kerfd still runs %s after its DaemonSet left the node", soon)
	}
}

// testBadSecondDriver: another kerfd on the node, as a rolling update starts it and then gives up: one of the two serves at any time, and
// the first one again when the second has gone.
func testBadSecondDriver(s *scene) {
	s.slice("tenant", shared("1Gi", "0"), always())
	s.running("tenant")
	first, err := s.client.AppsV1().DaemonSets(installNamespace).Get(s.Context(), "kerfd", metav1.GetOptions{})
	if err != nil {
		s.Fatal(err)
	}
	second := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "second-kerfd"}, Spec: *first.Spec.Template.Spec.DeepCopy()}
	if _, err := s.client.CoreV1().Pods(installNamespace).Create(s.Context(), second, metav1.CreateOptions{}); err != nil {
		s.Fatal(err)
	}
	remove := func() {
		_ = s.client.CoreV1().Pods(installNamespace).Delete(context.Background(), second.Name, metav1.DeleteOptions{})
	}
	defer remove()
	await(s, pods, installNamespace, second.Name, soon, "the second kerfd's start", func(p *corev1.Pod) string {
		if p != nil && len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].Ready {
			return ""
		}
		return state(p)
	})
	s.slice("beside", shared("1Gi", "0"), look())
	s.ended("beside")
	remove()
	await(s, pods, installNamespace, second.Name, soon, "its end", func(p *corev1.Pod) string {
		if p == nil {
			return ""
		}
		return state(p)
	})
	began := time.Now()
	s.slice("afterwards", shared("1Gi", "0"), look())
	s.ended("afterwards")
	quiet := s.undisturbed("tenant")
	s.measured("a pod ran %.0f s after the second kerfd had gone; a tenant's longest beat was %.0f ms", time.Since(began).Seconds(), quiet.LongestMS)
}

// testBadTaintRule: a rule that would taint every device of every driver is refused.
func testBadTaintRule(s *scene) {
	rule := &resourceapi.DeviceTaintRule{ObjectMeta: metav1.ObjectMeta{Name: "all"}, Spec: resourceapi.DeviceTaintRuleSpec{
		DeviceSelector: &resourceapi.DeviceTaintSelector{}, Taint: resourceapi.DeviceTaint{Key: "e2e", Effect: resourceapi.DeviceTaintEffectNoExecute},
	}}
	_, err := s.client.ResourceV1().DeviceTaintRules().Create(s.Context(), rule, metav1.CreateOptions{})
	if err == nil {
		_ = s.client.ResourceV1().DeviceTaintRules().Delete(s.Context(), rule.Name, metav1.DeleteOptions{})
		s.Fatal("the policy let it pass")
	}
	if !strings.Contains(err.Error(), "empty deviceSelector") {
		s.Errorf("the policy says %q", err)
	}
}

// testLostGPU: a card that falls off the bus is tainted, and comes back when the fault is cleared.
func testLostGPU(s *scene) {
	gpu := s.cards()[7]
	s.inject("7", "lost")
	began := time.Now()
	cleared := false
	defer func() {
		if !cleared {
			s.inject("7", "clear")
		}
	}()
	s.awaitCard(gpu.device, "a taint of the lost card", soon, func(c card) bool { return hasTaint(c, "gpu.kerf.dev/fault") })
	s.measured("tainted %.1f s after it was lost", time.Since(began).Seconds())
	s.slice("lost", shared("1Gi", "0").on(gpu.uuid), look())
	s.unschedulable("lost")
	s.slice("other", shared("1Gi", "0"), look())
	s.ended("other")
	s.inject("7", "clear")
	cleared = true
	s.awaitCard(gpu.device, "no taint", soon, func(c card) bool { return len(c.taints) == 0 })
	s.ended("lost")
}

func hasTaint(c card, key string) bool {
	for _, t := range c.taints {
		if t.Key == key && t.Effect == resourceapi.DeviceTaintEffectNoSchedule {
			return true
		}
	}
	return false
}

// inject puts a fault into a simulated card.
func (s *scene) inject(gpu string, fault ...string) {
	s.Helper()
	s.kerf(append([]string{"sim", "inject", "--gpu", gpu}, fault...)...)
}

// kerf runs a command of kerf's on the node.
func (s *scene) kerf(args ...string) {
	s.Helper()
	out, err := s.kubectl(context.Background(), nil, append([]string{"exec", "-n", installNamespace, "daemonset/kerfd", "--", "/usr/bin/kerf"}, args...)...)
	if err != nil {
		s.Fatalf("kerf %s: %v: %s", strings.Join(args, " "), err, out)
	}
}
