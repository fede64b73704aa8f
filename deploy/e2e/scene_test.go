package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/apimachinery/pkg/watch"
	watchtools "k8s.io/client-go/tools/watch"
	"sigs.k8s.io/yaml"
)

// Deadlines. The machine may be busy with other things; none of these is what is measured.
const (
	soon = 60 * time.Second  // a pod starts, ends or goes
	late = 150 * time.Second // something that waits for kubelet's or a controller's own rounds
)

// The resources that are watched.
var (
	pods           = corev1.SchemeGroupVersion.WithResource("pods")
	configMaps     = corev1.SchemeGroupVersion.WithResource("configmaps")
	events         = corev1.SchemeGroupVersion.WithResource("events")
	claims         = resourceapi.SchemeGroupVersion.WithResource("resourceclaims")
	resourceSlices = resourceapi.SchemeGroupVersion.WithResource("resourceslices")
	daemonSets     = schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "daemonsets"}
)

// scene is what a scenario works with.
type scene struct {
	*testing.T
	*lab
	ns     string
	figure string // for the table

	mu  sync.Mutex
	why string // the first failure, for the table: a log's end is what is seen of it, elsewhere
}

// Errorf, Fatal and Fatalf are the test's, and remember the first failure.

func (s *scene) Errorf(format string, args ...any) {
	s.Helper()
	s.fails(fmt.Sprintf(format, args...))
	s.T.Errorf(format, args...)
}

func (s *scene) Fatalf(format string, args ...any) {
	s.Helper()
	s.fails(fmt.Sprintf(format, args...))
	s.T.Fatalf(format, args...)
}

func (s *scene) Fatal(args ...any) {
	s.Helper()
	s.fails(fmt.Sprint(args...))
	s.T.Fatal(args...)
}

func (s *scene) fails(why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.why == "" {
		s.why = strings.Join(strings.Fields(why), " ")
	}
}

// newScene makes a namespace; whatever is in it goes when the scenario ends, and must leave nothing on the node.
func newScene(t *testing.T, l *lab, name string) *scene {
	t.Helper()
	s := &scene{T: t, lab: l, ns: "e2e-" + strings.ReplaceAll(name, "_", "-")}
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: s.ns}}
	if _, err := l.client.CoreV1().Namespaces().Create(t.Context(), namespace, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	return s
}

// end removes what the scenario made, and checks that the node has nothing left of it.
func (s *scene) end() {
	s.Helper()
	ctx := context.Background()
	now := int64(0)
	all := metav1.ListOptions{}
	if s.Failed() {
		s.dump(strings.ReplaceAll(s.Name(), "/", "_"))
	}
	for _, err := range []error{
		s.client.CoreV1().Pods(s.ns).DeleteCollection(ctx, metav1.DeleteOptions{}, all),
		s.client.ResourceV1().ResourceClaimTemplates(s.ns).DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: &now}, all),
		s.client.ResourceV1().ResourceClaims(s.ns).DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: &now}, all),
	} {
		if err != nil {
			s.Errorf("clean up: %v", err)
		}
	}
	s.awaitNone(pods)
	s.awaitNone(claims)
	if left := s.node.awaitNothingOf(s.ns, late); left != "" {
		s.Errorf("left on the node after all pods and claims of %s were gone: %s", s.ns, left)
	}
}

// measured puts a figure into the table.
func (s *scene) measured(format string, args ...any) {
	if s.figure != "" {
		s.figure += "; "
	}
	s.figure += fmt.Sprintf(format, args...)
}

// --- pods ------------------------------------------------------------------------------------------------

// running waits until all containers of a pod run.
func (s *scene) running(name string) *corev1.Pod {
	s.Helper()
	return await(s, pods, s.ns, name, soon, "running", func(p *corev1.Pod) string {
		switch {
		case p == nil:
			return "there is no such pod"
		case p.Status.Phase == corev1.PodRunning:
			for _, c := range p.Status.ContainerStatuses {
				if c.State.Running == nil {
					return state(p)
				}
			}
			return ""
		}
		return state(p)
	})
}

// ended waits until a pod has ended, and wants success.
func (s *scene) ended(name string) *corev1.Pod {
	s.Helper()
	p := await(s, pods, s.ns, name, soon, "its end", func(p *corev1.Pod) string {
		if p == nil || p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed {
			return state(p)
		}
		return ""
	})
	if p.Status.Phase != corev1.PodSucceeded {
		s.Fatalf("pod %s: %s; it said: %s", name, state(p), s.log(name, ""))
	}
	return p
}

// gone waits until there is no such pod.
func (s *scene) gone(name string) {
	s.Helper()
	await(s, pods, s.ns, name, soon, "its end", func(p *corev1.Pod) string {
		if p == nil {
			return ""
		}
		return "it is still there: " + state(p)
	})
}

// unschedulable waits for the scheduler's refusal, and returns its words.
func (s *scene) unschedulable(name string) string {
	s.Helper()
	message := ""
	await(s, pods, s.ns, name, soon, "the scheduler's refusal", func(p *corev1.Pod) string {
		if p != nil {
			for _, c := range p.Status.Conditions {
				if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse && c.Reason == corev1.PodReasonUnschedulable {
					message = c.Message
					return ""
				}
			}
		}
		return state(p)
	})
	return message
}

// state tells in words how a pod is.
func state(p *corev1.Pod) string {
	if p == nil {
		return "there is no such pod"
	}
	text := "phase " + string(p.Status.Phase)
	for _, c := range p.Status.Conditions {
		if c.Status == corev1.ConditionFalse && c.Message != "" {
			text += fmt.Sprintf(", not %s: %s", c.Type, c.Message)
		}
	}
	for _, c := range append(p.Status.InitContainerStatuses, p.Status.ContainerStatuses...) {
		switch {
		case c.State.Waiting != nil:
			text += fmt.Sprintf(", %s waits: %s %s", c.Name, c.State.Waiting.Reason, c.State.Waiting.Message)
		case c.State.Terminated != nil:
			text += fmt.Sprintf(", %s ended with %d: %s %s", c.Name, c.State.Terminated.ExitCode, c.State.Terminated.Reason, c.State.Terminated.Message)
		}
	}
	return text
}

// event waits for an event on an object whose message has all of these words, and returns the message.
func (s *scene) event(object string, words ...string) string {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.Context(), soon)
	defer cancel()
	var message string
	var seen []string
	_, err := watchtools.UntilWithSync(ctx, s.listWatch(events, s.ns, "involvedObject.name="+object), &unstructured.Unstructured{}, nil,
		func(event watch.Event) (bool, error) {
			u, ok := event.Object.(*unstructured.Unstructured)
			if !ok {
				return false, nil
			}
			message, _, _ = unstructured.NestedString(u.Object, "message")
			seen = append(seen, message)
			return containsAll(message, words), nil
		})
	if err != nil {
		s.Fatalf("no event on %s with %q within %s; there were: %q", object, words, soon, seen)
	}
	return message
}

func containsAll(text string, words []string) bool {
	for _, word := range words {
		if !strings.Contains(text, word) {
			return false
		}
	}
	return true
}

func (s *scene) create(p *corev1.Pod) *corev1.Pod {
	s.Helper()
	made, err := s.client.CoreV1().Pods(s.ns).Create(s.Context(), p, metav1.CreateOptions{})
	if err != nil {
		s.Fatalf("create pod %s: %v", p.Name, err)
	}
	return made
}

func (s *scene) delete(name string) {
	s.Helper()
	if err := s.client.CoreV1().Pods(s.ns).Delete(s.Context(), name, metav1.DeleteOptions{}); err != nil {
		s.Fatalf("delete pod %s: %v", name, err)
	}
}

// stop asks a container's program to end, as its user could: its report still comes.
func (s *scene) stop(pod string) {
	s.Helper()
	if out, err := s.kubectl(s.Context(), nil, "exec", "-n", s.ns, pod, "--", "/bin/sh", "-c", "kill -TERM 1"); err != nil && !strings.Contains(out, "exit code 137") { // it goes with the container
		s.Fatalf("stop pod %s: %v: %s", pod, err, out)
	}
}

func (s *scene) log(pod, container string) string {
	raw, err := s.client.CoreV1().Pods(s.ns).GetLogs(pod, &corev1.PodLogOptions{Container: container}).DoRaw(context.Background())
	if err != nil {
		return err.Error()
	}
	return string(raw)
}

// said is one line of a tenant under --json; each fills what it knows of.
type said struct {
	Event                     string
	Simulated                 bool
	Index, Count              int
	UUID                      string
	Total                     uint64
	InfoTotal                 uint64 `json:"info_total"`
	InfoFree                  uint64 `json:"info_free"`
	NVMLTotal                 uint64 `json:"nvml_total"`
	NVMLCount                 int    `json:"nvml_count"`
	NVMLError                 string `json:"nvml_error"`
	Limit, Held               uint64
	Classes, Bad              int
	Beats, Steps              uint64
	LongestMS                 float64 `json:"longest_ms"`
	LongestAt                 float64 `json:"longest_at"`
	StepsPerSecond            float64 `json:"steps_per_second"`
	Verified, Wrong           uint64
	Class, Complaint          string
	Refused, Left, After, Got uint64
	OK                        bool
}

// report is what a container's tenant said of that kind; it must have.
func (s *scene) report(pod, container, kind string) []said {
	s.Helper()
	text := s.log(pod, container)
	var found []said
	for _, line := range strings.Split(text, "\n") {
		var one said
		if json.Unmarshal([]byte(line), &one) == nil && one.Event == kind {
			if !one.Simulated {
				s.Errorf("pod %s does not say that its GPU is simulated: %s", pod, line)
			}
			found = append(found, one)
		}
	}
	if len(found) == 0 {
		s.Fatalf("pod %s, container %q: no line of kind %q in its log: %s", pod, container, kind, text)
	}
	return found
}

// --- objects from files ----------------------------------------------------------------------------------

// apply creates what a YAML text has, in the scene's namespace where it names none, and returns the names of the pods.
func (s *scene) apply(text string) (made []string) {
	s.Helper()
	for _, u := range s.decode(text) {
		mapping, err := s.mapper.RESTMapping(u.GroupVersionKind().GroupKind(), u.GroupVersionKind().Version)
		if err != nil {
			s.Fatalf("%s %s: %v", u.GetKind(), u.GetName(), err)
		}
		ns := ""
		if mapping.Scope.Name() == meta.RESTScopeNameNamespace {
			if ns = u.GetNamespace(); ns == "" {
				ns = s.ns
			}
		}
		if _, err := s.objects.Resource(mapping.Resource).Namespace(ns).Create(s.Context(), u, metav1.CreateOptions{}); err != nil {
			s.Fatalf("create %s %s: %v", u.GetKind(), u.GetName(), err)
		}
		if u.GetKind() == "Pod" {
			made = append(made, u.GetName())
		}
	}
	return made
}

func (s *scene) decode(text string) (objects []*unstructured.Unstructured) {
	s.Helper()
	reader := utilyaml.NewYAMLReader(bufio.NewReader(strings.NewReader(text)))
	for {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return objects
		}
		if err != nil {
			s.Fatal(err)
		}
		u := &unstructured.Unstructured{}
		if err := yaml.Unmarshal(document, &u.Object); err != nil {
			s.Fatal(err)
		}
		if len(u.Object) > 0 {
			objects = append(objects, u)
		}
	}
}
