package e2e

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	watchtools "k8s.io/client-go/tools/watch"
)

// evictionsSay waits until kerf-controller's status has these words, and returns all of it.
func (s *scene) evictionsSay(words ...string) (status string) {
	s.Helper()
	await(s, configMaps, installNamespace, "kerf-evictions", late, fmt.Sprintf("a status with %q", words), func(c *corev1.ConfigMap) string {
		if c == nil {
			return "there is no such ConfigMap"
		}
		if status = c.Data["status"]; !containsAll(status, words) {
			return status
		}
		return ""
	})
	return status
}

// jobsPod waits for a pod of a Job of which holds returns "".
func (s *scene) jobsPod(job, what string, holds func(*corev1.Pod) string) (pod *corev1.Pod) {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.Context(), late)
	defer cancel()
	why := "it has no pod"
	_, err := watchtools.UntilWithSync(ctx, s.listWatch(pods, s.ns, ""), &unstructured.Unstructured{}, nil, func(event watch.Event) (bool, error) {
		u, ok := event.Object.(*unstructured.Unstructured)
		if !ok || event.Type == watch.Deleted || u.GetLabels()["batch.kubernetes.io/job-name"] != job {
			return false, nil
		}
		pod = new(corev1.Pod)
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, pod); err != nil {
			return false, err
		}
		why = holds(pod)
		return why == "", nil
	})
	if err != nil {
		s.Fatalf("job %s: waited %s for %s: %s", job, late, what, why)
	}
	return pod
}

// says waits until a pod's log has a line that begins so, and returns the rest of it.
func (s *scene) says(pod, begin string) string {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.Context(), soon)
	defer cancel()
	stream, err := s.client.CoreV1().Pods(s.ns).GetLogs(pod, &corev1.PodLogOptions{Follow: true}).Stream(ctx)
	if err != nil {
		s.Fatalf("follow the log of %s: %v", pod, err)
	}
	defer stream.Close()
	var seen []string
	for lines := bufio.NewScanner(stream); lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), begin); ok {
			return strings.TrimSpace(rest)
		}
		seen = append(seen, lines.Text())
	}
	s.Fatalf("pod %s: no line %q within %s; it said: %q", pod, begin, soon, seen)
	return ""
}

// deviceOf is the card that a pod's claim was given.
func (s *scene) deviceOf(p *corev1.Pod) string {
	s.Helper()
	if len(p.Status.ResourceClaimStatuses) != 1 || p.Status.ResourceClaimStatuses[0].ResourceClaimName == nil {
		s.Fatalf("pod %s has no claim: %+v", p.Name, p.Status.ResourceClaimStatuses)
	}
	claim, err := s.client.ResourceV1().ResourceClaims(s.ns).Get(s.Context(), *p.Status.ResourceClaimStatuses[0].ResourceClaimName, metav1.GetOptions{})
	if err != nil {
		s.Fatal(err)
	}
	return claim.Status.Allocation.Devices.Results[0].Device
}

// testJobMoves: Xid 79 on a Job's card. The taint is stored, kerf-controller evicts the pod, and another goes on from its checkpoint on another card.
func testJobMoves(s *scene) {
	s.evictionsSay("mode evict")
	checkpoint := s.node.path("/var/lib/kerf-checkpoint-example")
	defer os.RemoveAll(checkpoint)
	s.apply(s.example("checkpoint-job.yaml"))
	defer s.deleteJob("checkpoint")
	run := func(p *corev1.Pod) string {
		if p.Status.Phase != corev1.PodRunning {
			return state(p)
		}
		return ""
	}
	first := s.jobsPod("checkpoint", "a pod that runs", run)
	s.says(first.Name, "step 3")
	device := s.deviceOf(first)
	all := s.cards()
	index := slices.IndexFunc(all, func(c card) bool { return c.device == device })
	number := strconv.Itoa(index) // the slice has the cards in their order
	defer func() {
		s.inject(number, "clear")
		s.kerf("release", all[index].uuid, "--why", "the test is over")
		s.awaitCard(device, "no taint", soon, func(c card) bool { return len(c.taints) == 0 })
	}()
	tainted := s.taintsOf(device)
	began := time.Now()
	s.inject(number, "xid", "79")
	injected := time.Since(began)
	stored := (<-tainted).Sub(began)
	var evicted, running time.Duration
	second := s.jobsPod("checkpoint", "another pod that runs", func(p *corev1.Pod) string {
		if p.Name == first.Name {
			if p.DeletionTimestamp != nil && evicted == 0 {
				evicted = time.Since(began)
			}
			return "the first is there: " + state(p)
		}
		return run(p)
	})
	running = time.Since(began)
	step := s.says(second.Name, "resumed after step ")
	resumed := time.Since(began)
	if n, err := strconv.Atoi(step); err != nil || n < 3 {
		s.Errorf("it resumed after step %q, want 3 at least", step)
	}
	if other := s.deviceOf(second); other == device {
		s.Errorf("it is on %s again", other)
	}
	s.event(first.Name, "evicted", "kerf.dev/xid=79")
	if evicted == 0 {
		s.Errorf("the first pod was not seen to be evicted")
	}
	s.measured("Xid 79 (simulated): injected by kubectl exec %.2f s, taint stored %.2f s, pod evicted %.2f s (settle 1 s), another runs %.1f s, resumed after step %s %.1f s",
		injected.Seconds(), stored.Seconds(), evicted.Seconds(), running.Seconds(), step, resumed.Seconds())
}

// taintsOf tells when the API server has a device's taint that asks for it to be drained.
func (s *scene) taintsOf(device string) <-chan time.Time {
	s.Helper()
	at, ready := make(chan time.Time, 1), make(chan struct{})
	go func() {
		ctx, cancel := context.WithTimeout(s.Context(), late)
		defer cancel()
		defer close(at)
		_, err := watchtools.UntilWithSync(ctx, s.listWatch(resourceSlices, "", "spec.driver="+driverName), &unstructured.Unstructured{}, nil, func(event watch.Event) (bool, error) {
			u, ok := event.Object.(*unstructured.Unstructured)
			if !ok || event.Type == watch.Deleted {
				return false, nil
			}
			select {
			case <-ready:
			default:
				close(ready)
			}
			slice := new(resourceapi.ResourceSlice)
			if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, slice); err != nil {
				return false, err
			}
			for _, d := range slice.Spec.Devices {
				if d.Name == device && slices.ContainsFunc(d.Taints, func(t resourceapi.DeviceTaint) bool { return t.Key == "kerf.dev/drain" }) {
					at <- time.Now()
					return true, nil
				}
			}
			return false, nil
		})
		if err != nil {
			s.Errorf("no taint of %s: %v", device, err)
		}
	}()
	<-ready
	return at
}

func (s *scene) deleteJob(name string) {
	s.Helper()
	background := metav1.DeletePropagationBackground
	if err := s.client.BatchV1().Jobs(s.ns).Delete(context.Background(), name, metav1.DeleteOptions{PropagationPolicy: &background}); err != nil {
		s.Errorf("delete job %s: %v", name, err)
	}
}
