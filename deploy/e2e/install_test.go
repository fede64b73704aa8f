package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Where the manifests put Kerf.
const (
	installNamespace = "kerf-system"
	kerfdLabel       = "app.kubernetes.io/component=kerfd"
)

// readyWithin is the promise: from the manifests to a node that takes claims, the image being there. It is measured and shown; a busy
// machine may be slower without a fault of Kerf's, so the test fails only far beyond it.
const (
	readyWithin = 10 * time.Second
	readyAtLast = 45 * time.Second
)

// install applies a stage's manifests, as a user does, and waits until kerfd is ready. It returns how long that took.
func (l *lab) install(t *testing.T, st stage) time.Duration {
	t.Helper()
	s := &scene{T: t, lab: l, ns: installNamespace}
	text := l.manifest(t, st.values)
	began := time.Now()
	if out, err := l.kubectl(t.Context(), text, "apply", "-f", "-"); err != nil {
		t.Fatalf("kubectl apply: %v: %s", err, out)
	}
	s.rolledOut()
	took := time.Since(began)
	l.ready = took
	return took
}

// rolledOut waits until the DaemonSet's present generation is ready.
func (s *scene) rolledOut() {
	s.Helper()
	_, why := try(s, daemonSets, installNamespace, "kerfd", soon, func(d *appsv1.DaemonSet) string {
		if d == nil {
			return "there is no DaemonSet"
		}
		if st := d.Status; st.ObservedGeneration != d.Generation || st.UpdatedNumberScheduled != 1 || st.NumberReady != 1 || st.NumberAvailable != 1 {
			return fmt.Sprintf("generation %d, status %+v", d.Generation, st)
		}
		return ""
	})
	if why != "" {
		s.dump(strings.ReplaceAll(s.Name(), "/", "_"))
		s.Fatalf("kerfd is not ready after %s: %s; its log: %s", soon, why, s.kerfdLog())
	}
}

func (l *lab) kerfdLog() string {
	out, err := l.kubectl(context.Background(), nil, "logs", "-n", installNamespace, "-l", kerfdLabel, "--tail=20")
	if err != nil {
		return err.Error()
	}
	return out
}

// manifest is the one that is kept for simulated nodes, or what the chart renders with other values.
func (l *lab) manifest(t *testing.T, values []string) []byte {
	t.Helper()
	kept := filepath.Join(l.repo, "deploy/manifests/kerf-simulated.yaml")
	if len(values) == 0 {
		text, err := os.ReadFile(kept)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	args := []string{"tool", "-modfile=tools/helm/go.mod", "helm", "template", "kerf", "deploy/chart", "--namespace", installNamespace,
		"--values", "deploy/manifests/kerf-simulated.values.yaml"}
	for _, v := range values {
		args = append(args, "--set", v)
	}
	cmd := exec.Command("go", args...)
	cmd.Dir = l.repo
	text, err := cmd.Output()
	if err != nil {
		t.Fatalf("helm template: %v", err)
	}
	return text
}

// card is a device as it is published.
type card struct {
	device, uuid, product, kind, mode string
	memory, physical                  int64
	overcommit                        int64
	taints                            []resourceapi.DeviceTaint
}

// cards lists what the node publishes, in its order.
func (s *scene) cards() (cards []card) {
	s.Helper()
	list, err := s.client.ResourceV1().ResourceSlices().List(s.Context(), metav1.ListOptions{FieldSelector: "spec.driver=" + driverName})
	if err != nil {
		s.Fatal(err)
	}
	for _, slice := range list.Items {
		cards = append(cards, cardsOf(&slice)...)
	}
	return cards
}

func cardsOf(slice *resourceapi.ResourceSlice) (cards []card) {
	for _, d := range slice.Spec.Devices {
		text := func(name resourceapi.QualifiedName) string {
			if a, found := d.Attributes[name]; found && a.StringValue != nil {
				return *a.StringValue
			}
			return ""
		}
		c := card{device: d.Name, uuid: text("uuid"), product: text("productName"), kind: text("type"), mode: text("mode"), taints: d.Taints}
		if a, found := d.Attributes["overcommitPercent"]; found && a.IntValue != nil {
			c.overcommit = *a.IntValue
		}
		memory := d.Capacity["memory"]
		c.memory = memory.Value.Value()
		if p := memory.RequestPolicy; p != nil && p.ValidRange != nil && p.ValidRange.Max != nil {
			c.physical = p.ValidRange.Max.Value()
		}
		cards = append(cards, c)
	}
	return cards
}

// published waits until what the node publishes, in however many slices, is as holds wants it.
func (s *scene) published(what string, holds func([]card) bool) (cards []card) {
	s.Helper()
	if !poll(soon, func() bool { cards = s.cards(); return holds(cards) }) {
		s.Fatalf("%s are not published within %s: %d devices, the first %+v", what, soon, len(cards), cards[:min(1, len(cards))])
	}
	return cards
}

// awaitCard waits until the card is published as holds wants it.
func (s *scene) awaitCard(device, what string, limit time.Duration, holds func(card) bool) {
	s.Helper()
	list, err := s.client.ResourceV1().ResourceSlices().List(s.Context(), metav1.ListOptions{FieldSelector: "spec.driver=" + driverName})
	if err != nil || len(list.Items) == 0 {
		s.Fatalf("no ResourceSlices of %s (%v)", driverName, err)
	}
	for _, slice := range list.Items {
		for _, c := range cardsOf(&slice) {
			if c.device != device {
				continue
			}
			await(s, resourceSlices, "", slice.Name, limit, what, func(now *resourceapi.ResourceSlice) string {
				if now == nil {
					return "the slice is gone"
				}
				for _, c := range cardsOf(now) {
					if c.device == device && holds(c) {
						return ""
					} else if c.device == device {
						return fmt.Sprintf("it is %+v", c)
					}
				}
				return "the device is gone"
			})
			return
		}
	}
	s.Fatalf("device %s is not published", device)
}

// testInstall: the manifests alone make a node that takes claims.
func testInstall(s *scene) {
	if s.lab.ready > readyAtLast {
		s.Errorf("kerfd was ready %.1f s after kubectl apply, promised are %s", s.lab.ready.Seconds(), readyWithin)
	}
	s.measured("Ready %.1f s after kubectl apply (promised: %s)", s.lab.ready.Seconds(), readyWithin)
	for _, name := range []string{"gpu", "gpu-shared", "gpu-overcommit", "gpu-mig"} {
		if _, err := s.client.ResourceV1().DeviceClasses().Get(s.Context(), name, metav1.GetOptions{}); err != nil {
			s.Errorf("DeviceClass %s: %v", name, err)
		}
	}
	list, err := s.client.CoreV1().Pods(installNamespace).List(s.Context(), metav1.ListOptions{LabelSelector: kerfdLabel})
	if err != nil || len(list.Items) != 1 {
		s.Fatalf("%d pods of kerfd (%v), want 1", len(list.Items), err)
	}
	for _, c := range list.Items[0].Status.ContainerStatuses {
		if c.RestartCount != 0 {
			s.Errorf("kerfd was restarted %d times: %s", c.RestartCount, state(&list.Items[0]))
		}
	}
	// A pod that asks at once is served: ready means ready.
	s.slice("first", shared("1Gi", "1"), look())
	began := s.ended("first")
	s.measured("first pod Running %s", startup(began))
}

// startup is the time from the pod's creation to its first container's start, as the API server has it, in whole seconds.
func startup(p *corev1.Pod) string {
	for _, c := range p.Status.ContainerStatuses {
		if c.State.Terminated != nil {
			return fmt.Sprintf("%.0f s after its creation", c.State.Terminated.StartedAt.Sub(p.CreationTimestamp.Time).Seconds())
		}
	}
	return "never"
}

// testSlices: what kubectl get resourceslices shows.
func testSlices(s *scene) {
	cards := s.cards()
	if len(cards) != 8 {
		s.Fatalf("%d devices are published, want 8", len(cards))
	}
	seen := map[string]bool{}
	for _, c := range cards {
		if c.product != "NVIDIA H200 (simulated)" && c.product != "NVIDIA H200" || c.kind != "gpu" || c.mode != "vgpu" || len(c.taints) > 0 {
			s.Errorf("device %+v, want an H200 in mode vgpu without taints", c)
		}
		if c.memory < 130<<30 || c.memory != c.physical || c.memory%(1<<20) != 0 {
			s.Errorf("device %s has a memory of %d bytes (at most %d a claim)", c.device, c.memory, c.physical)
		}
		if len(c.uuid) < 12 || c.device != "gpu-"+c.uuid[4:12] || seen[c.device] {
			s.Errorf("device %s has the uuid %s, or stands there twice", c.device, c.uuid)
		}
		seen[c.device] = true
	}
	list, err := s.client.ResourceV1().ResourceSlices().List(s.Context(), metav1.ListOptions{FieldSelector: "spec.driver=" + driverName})
	if err != nil {
		s.Fatal(err)
	}
	size := 0
	for _, slice := range list.Items {
		if slice.Spec.Pool.Name != "kerf" || len(slice.OwnerReferences) != 1 || slice.OwnerReferences[0].Kind != "Node" {
			s.Errorf("slice %s: pool %s, owners %v; want the node's pool, owned by the node", slice.Name, slice.Spec.Pool.Name, slice.OwnerReferences)
		}
		if text, err := slice.Marshal(); err == nil {
			size += len(text)
		}
	}
	s.measured("8 GPUs of %d MiB in %d slice, %d bytes", cards[0].memory>>20, len(list.Items), size)
}
