package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// The fleet: kwok's nodes with one simulated GPU each, nearly all of them in use.
const (
	fleetNodes = 288
	fleetPods  = 280
	fleetSick  = 200 // that get a common fault
	fleetLabel = "kwok.x-k8s.io/node"
)

// The budgets of the stage, in pods and minutes.
const (
	fleetBudget  = 3
	fleetBreaker = 20
)

var fleetStage = stage{"fleet", []string{"controller.enabled=false", "controller.evictions.mode=evict", "controller.evictions.settle=2s",
	fmt.Sprintf("controller.evictions.pods=%d", fleetBudget), "controller.evictions.per=2m", "controller.evictions.nodes=8", "controller.evictions.retryAfter=3s",
	fmt.Sprintf("controller.evictions.breaker.nodes=%d", fleetBreaker)}, 8, []scenario{{"budgets", testBudgets}}}

// TestFleet shows budgets and breaker on a cluster of its own, whose nodes are simulated by kwok.
func TestFleet(t *testing.T) {
	l := newLab(t, "--simulated-nodes", fmt.Sprint(fleetNodes))
	t.Cleanup(func() { l.table(t) })
	t.Run(fleetStage.name, func(t *testing.T) {
		l.install(t, fleetStage)
		for _, sc := range fleetStage.scenarios {
			t.Run(sc.name, func(t *testing.T) { l.play(t, fleetStage, sc) })
		}
	})
}

// fleet is the nodes with their GPUs, whose slices are written here as kerfd writes them.
type fleet struct {
	*scene
	nodes []string
	first map[string]string // the pods that are there at the beginning: node by UID
}

// publish gives every node a slice with one GPU, with these taints.
func (f *fleet) publish(nodes []string, taints ...resourceapi.DeviceTaint) {
	f.Helper()
	api := f.client.ResourceV1().ResourceSlices()
	f.each(nodes, func(node string) error {
		name := "fleet-" + node
		simulated := true
		spec := resourceapi.ResourceSliceSpec{Driver: driverName, NodeName: &node, Pool: resourceapi.ResourcePool{Name: node, Generation: 1, ResourceSliceCount: 1},
			Devices: []resourceapi.Device{{Name: "gpu-0", Taints: taints, Attributes: map[resourceapi.QualifiedName]resourceapi.DeviceAttribute{"simulated": {BoolValue: &simulated}}}}}
		old, err := api.Get(f.Context(), name, metav1.GetOptions{})
		if err != nil {
			_, err = api.Create(f.Context(), &resourceapi.ResourceSlice{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}, metav1.CreateOptions{})
			return err
		}
		old.Spec = spec
		_, err = api.Update(f.Context(), old, metav1.UpdateOptions{})
		return err
	})
}

// each does something for every node, several at once.
func (f *fleet) each(nodes []string, do func(node string) error) {
	f.Helper()
	var all sync.WaitGroup
	errs := make(chan error, len(nodes))
	for part := range slices.Chunk(nodes, (len(nodes)+15)/16) {
		all.Go(func() {
			for _, node := range part {
				if err := do(node); err != nil {
					errs <- err
				}
			}
		})
	}
	all.Wait()
	close(errs)
	for err := range errs {
		f.Fatal(err)
	}
}

func sick(code string) []resourceapi.DeviceTaint {
	return []resourceapi.DeviceTaint{{Key: "kerf.dev/drain", Value: "reboot", Effect: resourceapi.DeviceTaintEffectNone},
		{Key: "kerf.dev/xid", Value: code, Effect: resourceapi.DeviceTaintEffectNoSchedule}}
}

// start runs a pod on nearly every node.
func (f *fleet) start() {
	f.Helper()
	if err := f.template("gpu", want{class: "fleet"}); err != nil {
		f.Fatal(err)
	}
	n, second := int32(fleetPods), int64(0)
	pod := newPod("", nil, fromTemplate("gpu"))
	pod.Spec.RestartPolicy, pod.Spec.TerminationGracePeriodSeconds = corev1.RestartPolicyAlways, &second
	pod.Spec.NodeSelector = map[string]string{fleetLabel: "simulated"}
	pod.Spec.Tolerations = []corev1.Toleration{{Key: fleetLabel, Operator: corev1.TolerationOpExists}}
	labels := map[string]string{"app": "fleet"}
	_, err := f.client.AppsV1().Deployments(f.ns).Create(f.Context(), &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "fleet"},
		Spec: appsv1.DeploymentSpec{Replicas: &n, Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: pod.Spec}}}, metav1.CreateOptions{})
	if err != nil {
		f.Fatal(err)
	}
	if !poll(2*late, func() bool { f.first = f.there(); return len(f.first) == fleetPods }) {
		f.Fatalf("%d of %d pods run after %s", len(f.first), fleetPods, 2*late)
	}
}

// there are the pods that run, and where.
func (f *fleet) there() map[string]string {
	f.Helper()
	list, err := f.client.CoreV1().Pods(f.ns).List(f.Context(), metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		f.Fatal(err)
	}
	nodes := map[string]string{}
	for _, p := range list.Items {
		if p.Status.Phase == corev1.PodRunning && p.DeletionTimestamp == nil {
			nodes[string(p.UID)] = p.Spec.NodeName
		}
	}
	return nodes
}

// moved is how many of the first pods have gone.
func (f *fleet) moved() (n int) {
	f.Helper()
	there := f.there()
	for uid := range f.first {
		if _, ok := there[uid]; !ok {
			n++
		}
	}
	return n
}

// used are nodes on which a pod runs.
func (f *fleet) used(n int) (nodes []string) {
	f.Helper()
	for _, node := range f.there() {
		nodes = append(nodes, node)
	}
	slices.Sort(nodes)
	return nodes[:n]
}

// testBudgets: what a PodDisruptionBudget refuses waits; what is too many at once waits, also where the controller is killed between; and
// what comes to many nodes at once moves nobody until a person says so.
func testBudgets(s *scene) {
	f := &fleet{scene: s}
	for i := range fleetNodes {
		f.nodes = append(f.nodes, fmt.Sprintf("simulated-%04d", i))
	}
	class := &resourceapi.DeviceClass{ObjectMeta: metav1.ObjectMeta{Name: "fleet"}, Spec: resourceapi.DeviceClassSpec{Selectors: []resourceapi.DeviceSelector{
		{CEL: &resourceapi.CELDeviceSelector{Expression: `device.driver == "` + driverName + `" && !has(device.attributes["` + driverName + `"].uuid)`}}}}}
	if _, err := s.client.ResourceV1().DeviceClasses().Create(s.Context(), class, metav1.CreateOptions{}); err != nil {
		s.Fatal(err)
	}
	defer f.remove()
	f.publish(f.nodes)
	began := time.Now()
	f.start()
	s.measured("%d kwok nodes, %d pods with a simulated GPU each run after %.0f s", fleetNodes, fleetPods, time.Since(began).Seconds())
	s.evictionsSay("mode evict", "0 devices")
	f.refused()
	f.rate()
	f.breaker()
}

// refused: one sick node, and a PodDisruptionBudget that lets nobody go.
func (f *fleet) refused() {
	none := intstr.FromInt32(0)
	budgets := f.client.PolicyV1().PodDisruptionBudgets(f.ns)
	_, err := budgets.Create(f.Context(), &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Name: "none"},
		Spec: policyv1.PodDisruptionBudgetSpec{MaxUnavailable: &none, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "fleet"}}}}, metav1.CreateOptions{})
	if err != nil {
		f.Fatal(err)
	}
	f.publish(f.used(1), sick("48")...)
	f.evictionsSay("(pdb)")
	f.someEvent("refuses the eviction")
	if n := f.moved(); n != 0 {
		f.Fatalf("%d pods were moved against a PodDisruptionBudget", n)
	}
	if err := budgets.Delete(f.Context(), "none", metav1.DeleteOptions{}); err != nil {
		f.Fatal(err)
	}
	if !poll(soon, func() bool { return f.moved() == 1 }) {
		f.Fatalf("%d pods were moved after the PodDisruptionBudget had gone, want 1", f.moved())
	}
	f.measured("a PodDisruptionBudget refused, was heeded, and the pod went when it had gone")
}

// rate: ten nodes with faults of their own; the leader is killed when the budget begins to be used.
func (f *fleet) rate() {
	nodes := f.used(10)
	for i, node := range nodes {
		f.publish([]string{node}, sick(fmt.Sprint(100+i))...)
	}
	if !poll(soon, func() bool { return f.moved() >= fleetBudget-1 }) {
		f.Fatalf("%d pods were moved, want %d", f.moved(), fleetBudget)
	}
	now := int64(0)
	if err := f.client.CoreV1().Pods(installNamespace).DeleteCollection(f.Context(), metav1.DeleteOptions{GracePeriodSeconds: &now},
		metav1.ListOptions{LabelSelector: "app.kubernetes.io/component=controller"}); err != nil {
		f.Fatal(err)
	}
	if !poll(late, func() bool { return f.moved() >= fleetBudget }) { // by the next leader, if the first one had no time
		f.Fatalf("%d pods were moved after the leader was killed, want %d", f.moved(), fleetBudget)
	}
	f.evictionsSay(fmt.Sprintf("%d of %d pods within 2m0s", fleetBudget, fleetBudget), "(rate)")
	f.within()
	f.measured("ten faults: %d pods moved, the budget is %d within 2 min, over a controller that was killed", f.moved(), fleetBudget)
}

// breaker: one fault on most nodes.
func (f *fleet) breaker() {
	before := f.moved()
	began := time.Now()
	f.publish(f.nodes[:fleetSick], sick("79")...)
	f.evictionsSay("BREAKER OPEN", "kerf.dev/xid=79")
	took := time.Since(began)
	f.someEvent("came to")
	moves := f.within()
	if after := f.moved(); after-before > fleetBudget {
		f.Errorf("%d pods were moved by a fault on %d nodes; the budget is %d", after-before, fleetSick, fleetBudget)
	}
	undo, err := f.client.CoreV1().ConfigMaps(installNamespace).Get(f.Context(), "kerf-evictions", metav1.GetOptions{})
	if err != nil || !strings.Contains(undo.Data["undo"], "kerf release") {
		f.Errorf("no proposal of what to undo: %v, %q", err, undo.Data["undo"])
	}
	f.measured("Xid 79 on %d of %d nodes: breaker open %.1f s after the first taint, %d pods moved for it; %d moves in all", fleetSick, fleetNodes, took.Seconds(), f.moved()-before, moves)
}

// within holds what is on record to the budget, in every stretch of its length.
func (f *fleet) within() int {
	f.Helper()
	object, err := f.client.CoreV1().ConfigMaps(installNamespace).Get(f.Context(), "kerf-evictions", metav1.GetOptions{})
	if err != nil {
		f.Fatal(err)
	}
	var history struct{ Moves []struct{ At time.Time } }
	if err := json.Unmarshal([]byte(object.Data["history.json"]), &history); err != nil {
		f.Fatal(err)
	}
	for i, first := range history.Moves {
		n := 0
		for _, m := range history.Moves[i:] {
			if m.At.Sub(first.At) < 2*time.Minute {
				n++
			}
		}
		if n > fleetBudget {
			f.Errorf("%d pods were moved within two minutes from %s on; the budget is %d", n, first.At, fleetBudget)
		}
	}
	if moved := f.moved(); moved > len(history.Moves) {
		f.Errorf("%d pods have gone, and %d moves are on record", moved, len(history.Moves))
	}
	return len(history.Moves)
}

// someEvent waits until any object's Event has these words.
func (f *fleet) someEvent(words string) {
	f.Helper()
	if !poll(soon, func() bool {
		for _, ns := range []string{f.ns, installNamespace} {
			list, err := f.client.CoreV1().Events(ns).List(f.Context(), metav1.ListOptions{FieldSelector: "source=kerf-controller"})
			if err == nil && slices.ContainsFunc(list.Items, func(e corev1.Event) bool { return strings.Contains(e.Message, words) }) {
				return true
			}
		}
		return false
	}) {
		f.Fatalf("no Event of kerf-controller says %q", words)
	}
}

// remove takes away what is not the namespace's.
func (f *fleet) remove() {
	ctx := context.Background()
	background := metav1.DeletePropagationBackground
	if err := f.client.AppsV1().Deployments(f.ns).Delete(ctx, "fleet", metav1.DeleteOptions{PropagationPolicy: &background}); err != nil {
		f.Errorf("clean up: %v", err)
	}
	for _, node := range f.nodes {
		_ = f.client.ResourceV1().ResourceSlices().Delete(ctx, "fleet-"+node, metav1.DeleteOptions{}) // a failure shows with the cluster's end
	}
	_ = f.client.ResourceV1().DeviceClasses().Delete(ctx, "fleet", metav1.DeleteOptions{})
}
