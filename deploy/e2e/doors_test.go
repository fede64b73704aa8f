package e2e

import (
	"fmt"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

var (
	nodes       = corev1.SchemeGroupVersion.WithResource("nodes")
	deployments = schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "deployments"}
)

// sliceResource is what the device plugin offers.
const sliceResource = corev1.ResourceName("kerf.dev/gpu-slice")

// sliceMemory is the chart's size of one slice.
const sliceMemory = 10 * gi

func slicesOf(n int) podOption {
	return limits(map[corev1.ResourceName]string{sliceResource: fmt.Sprint(n)})
}

// offered waits until the node offers slices, and returns how many.
func (s *scene) offered() (n int64) {
	s.Helper()
	await(s, nodes, "", "kerf", late, "allocatable slices", func(node *corev1.Node) string {
		if node == nil {
			return "there is no node"
		}
		q := node.Status.Allocatable[sliceResource]
		if n = q.Value(); n == 0 {
			return fmt.Sprintf("allocatable is %v", node.Status.Allocatable)
		}
		return ""
	})
	return n
}

// testDevicePlugin: uniform slices without ResourceClaims.
func testDevicePlugin(s *scene) {
	n := s.offered()
	if n < 8*13 || n > 8*14 {
		s.Errorf("%d slices of 10Gi are offered by 8 cards of 140 GiB", n)
	}
	for name, slices := range map[string]int{"one": 1, "four": 4} {
		s.create(newPod(name, always(), slicesOf(slices)))
		s.running(name)
		s.eventually(name, "", "look")
		s.sees(name, "", uint64(slices)*sliceMemory)
	}
	s.create(newPod("hog", hog("--limit", "20Gi"), slicesOf(2)))
	s.ended("hog")
	s.refused("hog", 20*gi)
	// Packed: the three are on one card, which has room for them.
	if one, four := s.report("one", "", "look")[0], s.report("four", "", "look")[0]; one.UUID != four.UUID {
		s.Errorf("one slice is on %s and four are on %s, want one card for both", one.UUID, four.UUID)
	}
	s.create(newPod("card", look(), slicesOf(13)))
	s.ended("card")
	if one := s.report("card", "", "look"); len(one) != 1 || one[0].Total != 13*sliceMemory {
		s.Errorf("13 slices are seen as %+v, want one GPU of 130 GiB", one)
	}
	s.runExample("device-plugin.yaml")
	s.undisturbed("one")
	s.undisturbed("four")
	s.measured("%d slices of 10 GiB; slices of one container add up on one card", n)
}

// testDevicePluginKubeletRestart: kubelet forgets its plugins when it starts, and they come back by themselves.
func testDevicePluginKubeletRestart(s *scene) {
	s.create(newPod("stays", always(), slicesOf(3)))
	s.running("stays")
	if out, err := s.cluster(s.Context(), "restart", "kubelet"); err != nil {
		s.Fatalf("restart kubelet: %v: %s", err, out)
	}
	n := s.offered()
	s.create(newPod("after", look(), slicesOf(2)))
	s.ended("after")
	s.sees("after", "", 2*sliceMemory)
	s.crashKerfd()
	s.create(newPod("again", look(), slicesOf(2)))
	s.admitted("again", look(), slicesOf(2))
	quiet := s.undisturbed("stays")
	s.measured("%d slices after kubelet's restart; a pod's longest beat meanwhile was %.0f ms", n, quiet.LongestMS)
}

// admitted waits for the end of a pod that kubelet may have turned away while the plugin was not there, which is final for a pod:
// what makes pods (a Deployment, a Job) makes another one.
func (s *scene) admitted(name string, command []string, options ...podOption) {
	s.Helper()
	for i := range 5 {
		p := await(s, pods, s.ns, name, soon, "its end", func(p *corev1.Pod) string {
			if p == nil || p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed {
				return state(p)
			}
			return ""
		})
		if p.Status.Phase == corev1.PodSucceeded {
			return
		}
		if p.Status.Reason != "UnexpectedAdmissionError" && p.Status.Reason != "OutOfkerf.dev/gpu-slice" {
			s.Fatalf("pod %s failed: %s: %s", name, p.Status.Reason, p.Status.Message)
		}
		s.offered()
		name = fmt.Sprintf("%s-%d", strings.TrimRight(name, "-0123456789"), i)
		s.create(newPod(name, command, options...))
	}
	s.Fatalf("pod %s is turned away again and again", name)
}

// testBothDoors: with claims and plugin on one node, neither gives what the other has given.
func testBothDoors(s *scene) {
	n := s.offered()
	gpu := s.cards()[0]
	s.slice("claim", want{class: "gpu"}.on(gpu.uuid), always())
	s.running("claim")
	// All slices that kubelet believes to be free: those of the card that the claim has must not start.
	refused := 0
	for i := range 8 {
		s.create(newPod(fmt.Sprintf("plugin-%d", i), []string{"/bin/sh", "-c", "sleep 1000"}, slicesOf(13)))
	}
	for i := range 8 {
		p := await(s, pods, s.ns, fmt.Sprintf("plugin-%d", i), soon, "its fate", func(p *corev1.Pod) string {
			if p != nil && (p.Status.Phase == corev1.PodRunning || p.Status.Phase == corev1.PodFailed) {
				return ""
			}
			for _, c := range p.Status.Conditions {
				if c.Type == corev1.PodScheduled && c.Reason == corev1.PodReasonUnschedulable {
					return ""
				}
			}
			return state(p)
		})
		if p.Status.Phase != corev1.PodRunning {
			refused++
		}
	}
	if refused != 1 {
		s.Errorf("%d of 8 pods with a card of slices each were refused beside a claim of one card, want 1", refused)
	}
	s.overbooked()
	// And the other way round: a claim of a card whose slices the plugin gave.
	var taken string
	for _, c := range s.cards()[1:] {
		taken = c.uuid
	}
	s.slice("late", want{class: "gpu"}.on(taken), look())
	reason := s.event("late", "GPU")
	s.overbooked()
	s.undisturbed("claim")
	s.measured("%d slices and 8 claims on one node; refused: %s", n, tail(reason, 100))
}

// overbooked sums up what is on record, and fails where a card has given more than it has.
func (s *scene) overbooked() {
	s.Helper()
	entries, err := s.node.ledger()
	if err != nil {
		s.Fatal(err)
	}
	used := map[string]int64{}
	for _, e := range entries {
		for _, d := range e.Grant.Devices {
			used[d.UUID] += memoryOf(d.Memory)
		}
	}
	for _, c := range s.cards() {
		if used[c.uuid] > c.memory+1<<20 { // published are whole MiB
			s.Errorf("on card %s %d bytes are given away, it has %d", c.uuid, used[c.uuid], c.memory)
		}
	}
}

// testHAMi: pods as they were written for HAMi.
func testHAMi(s *scene) {
	await(s, deployments, installNamespace, "kerf-controller", soon, "available", func(d *appsv1.Deployment) string {
		if d != nil && d.Status.AvailableReplicas > 0 {
			return ""
		}
		return "no replica is available"
	})
	in := &scene{T: s.T, lab: s.lab, ns: "hami"}
	in.apply(strings.Split(s.example("hami.yaml"), "\n---\n")[0])
	defer in.end()
	pod := strings.Split(s.example("hami.yaml"), "\n---\n")[1]
	var failure error
	// The API server learns of the webhook's certificate a little later than of the webhook.
	if !poll(soon, func() bool { failure = in.dryRun(pod); return failure == nil }) {
		s.Fatalf("dry run of a pod: %v", failure)
	}
	if list, err := s.client.ResourceV1().ResourceClaimTemplates("hami").List(s.Context(), metav1.ListOptions{}); err != nil || len(list.Items) > 0 {
		s.Errorf("a dry run left %d templates (%v)", len(list.Items), err)
	}
	in.apply(pod)
	in.ended("hami")
	if one := in.report("hami", "", "report")[0]; one.Limit != 8000*mi {
		s.Errorf("the pod with gpumem 8000 has a limit of %d bytes", one.Limit)
	}
	in.create(newPod("percent", look(), limits(map[corev1.ResourceName]string{"nvidia.com/gpu": "1", "nvidia.com/gpumem-percentage": "25"})))
	in.create(newPod("two", look(), limits(map[corev1.ResourceName]string{"nvidia.com/gpu": "2", "nvidia.com/gpumem": "4096"})))
	in.ended("percent")
	in.ended("two")
	card := uint64(s.cards()[0].memory)
	if one := in.report("percent", "", "look")[0]; one.Total < card/4-mi || one.Total > card/4+mi {
		s.Errorf("25 %% of %d bytes are seen as %d", card, one.Total)
	}
	seen := map[string]bool{}
	for _, one := range in.report("two", "", "look") {
		seen[one.UUID] = true
		if one.Total != 4*gi {
			s.Errorf("each of two GPUs with gpumem 4096 is seen as %+v", one)
		}
	}
	if len(seen) != 2 {
		s.Errorf("nvidia.com/gpu: 2 is seen as %d GPUs", len(seen))
	}
	// A namespace without the label is left alone.
	s.create(newPod("other", look(), limits(map[corev1.ResourceName]string{"nvidia.com/gpu": "1", "nvidia.com/gpumem": "4096"})))
	s.unschedulable("other")
}

// dryRun asks the API server what would become of a pod.
func (s *scene) dryRun(text string) error {
	out, err := s.kubectl(s.Context(), []byte(text), "create", "--dry-run=server", "-n", s.ns, "-f", "-")
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}
