package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// testTwoContainers: containers on one claim have one budget: what one holds, the other cannot have.
func testTwoContainers(s *scene) {
	if err := s.template("both", shared("20Gi", "10")); err != nil {
		s.Fatal(err)
	}
	s.create(newPod("both", train("--memory", "8Gi", "--seconds", "100000"), also("second", lookAndStay()...), fromTemplate("both")))
	s.running("both")
	s.eventually("both", "main", "holding")
	s.eventually("both", "second", "look")
	s.sees("both", "second", 20*gi)
	// A hog that comes to what is left ends at the one limit, not at one of its own.
	out, err := s.kubectl(s.Context(), nil, "exec", "-n", s.ns, "both", "-c", "second", "--", "/usr/libexec/kerf/hog", "--json", "--class", "linear")
	var got uint64
	for _, line := range strings.Split(out, "\n") {
		var one said
		if json.Unmarshal([]byte(line), &one) == nil && one.Event == "class" {
			got = one.Got
		}
	}
	if got == 0 || got > 12*gi {
		s.Errorf("beside 8 GiB of one container the other got %d bytes of the slice of 20 GiB (%v): %s", got, err, out)
	}
	s.measured("beside 8 GiB the other container got %.1f of 20 GiB", float64(got)/float64(gi))
}

// testTwoPodsOneClaim: so do pods.
func testTwoPodsOneClaim(s *scene) {
	s.claim("pair", shared("20Gi", "10"))
	s.create(newPod("a", train("--memory", "8Gi", "--seconds", "100000"), fromClaim("pair")))
	s.create(newPod("b", lookAndStay(), fromClaim("pair")))
	s.running("a")
	s.running("b")
	s.eventually("a", "main", "holding")
	s.eventually("b", "main", "look")
	s.sees("b", "", 20*gi)
	out, err := s.kubectl(s.Context(), nil, "exec", "-n", s.ns, "b", "--", "/usr/libexec/kerf/train", "--json", "--memory", "13Gi", "--seconds", "0.1")
	if err == nil {
		s.Errorf("beside 8 GiB of one pod the other got 13 GiB of the slice of 20 GiB: %s", out)
	}
	if entries, err := s.node.ledger(); err != nil || count(entries, s.ns) != 1 {
		s.Errorf("%d grants are on record for the one claim (%v)", count(entries, s.ns), err)
	}
	s.delete("a") // the claim is still b's
	s.gone("a")
	if out, err := s.kubectl(s.Context(), nil, "exec", "-n", s.ns, "b", "--", "/usr/libexec/kerf/train", "--json", "--memory", "18Gi", "--seconds", "0.1"); err != nil {
		s.Errorf("when the other pod had gone, 18 GiB of the slice of 20 GiB are refused: %v: %s", err, out)
	}
}

func count(entries []entry, ns string) (n int) {
	for _, e := range entries {
		if e.Holder.Owner.Namespace == ns {
			n++
		}
	}
	return n
}

// testSeveralRequests: a claim with two requests gives each container the one that it names.
func testSeveralRequests(s *scene) {
	if err := s.template("two", shared("4Gi", "10"), shared("6Gi", "10")); err != nil {
		s.Fatal(err)
	}
	p := newPod("two", lookAndStay(), also("second", lookAndStay()...), fromTemplate("two"))
	p.Spec.Containers[0].Resources.Claims[0].Request = "r0"
	p.Spec.Containers[1].Resources.Claims[0].Request = "r1"
	s.create(p)
	s.running("two")
	s.eventually("two", "main", "look")
	s.eventually("two", "second", "look")
	s.sees("two", "main", 4*gi)
	s.sees("two", "second", 6*gi)
	results := s.allocation("two")
	if len(results) != 2 || results[0].ShareID == nil || results[1].ShareID == nil || *results[0].ShareID == *results[1].ShareID {
		s.Errorf("allocated were %+v, want two shares", results)
	}
}

// testSeveralGPUs: a slice of each of four GPUs in one container.
func testSeveralGPUs(s *scene) {
	spec := claimOf(want{class: "gpu-shared", memory: "5Gi", count: 4})
	uuid := resourceapi.FullyQualifiedName(driverName + "/uuid")
	spec.Devices.Constraints = []resourceapi.DeviceConstraint{{DistinctAttribute: &uuid}}
	four := &resourceapi.ResourceClaim{ObjectMeta: metav1.ObjectMeta{Name: "four"}, Spec: spec}
	if _, err := s.client.ResourceV1().ResourceClaims(s.ns).Create(s.Context(), four, metav1.CreateOptions{}); err != nil {
		s.Fatal(err)
	}
	s.create(newPod("four", look(), fromClaim("four")))
	s.ended("four")
	seen := map[string]bool{}
	for _, one := range s.report("four", "", "look") {
		seen[one.UUID] = true
		if one.InfoTotal != 5*gi || one.NVMLTotal != 5*gi || one.Count != 4 || one.NVMLCount != 4 {
			s.Errorf("GPU %d: %+v, want 5 GiB and 4 GPUs", one.Index, one)
		}
	}
	if len(seen) != 4 {
		s.Errorf("the pod sees the GPUs %v, want four", seen)
	}
}

// testInitContainer: it has the share before the others do.
func testInitContainer(s *scene) {
	if err := s.template("init", shared("7Gi", "0")); err != nil {
		s.Fatal(err)
	}
	s.create(newPod("init", look(), before("first", look()...), fromTemplate("init")))
	s.ended("init")
	s.sees("init", "first", 7*gi)
	s.sees("init", "main", 7*gi)
}

// testRestartPolicy: a container that dies comes back with the same share, and what it held is free again.
func testRestartPolicy(s *scene) {
	script := `n=$(cat /state/n 2>/dev/null || echo 0); echo $((n+1)) >/state/n; [ $n -ge 2 ] || { crasher --memory 6Gi; exit 1; }; exec look --json`
	volume := func(p *corev1.Pod) {
		p.Spec.Volumes = []corev1.Volume{{Name: "state", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
		p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "state", MountPath: "/state"}}
	}
	s.slice("again", shared("8Gi", "0"), []string{"/bin/sh", "-c", script}, restarts(corev1.RestartPolicyOnFailure), volume)
	p := s.ended("again")
	if n := p.Status.ContainerStatuses[0].RestartCount; n != 2 {
		s.Errorf("restarted %d times, want 2", n)
	}
	one := s.sees("again", "", 8*gi)
	if one.InfoFree < 7*gi {
		s.Errorf("of 8 GiB %d bytes are free after two crashes with 6 GiB held", one.InfoFree)
	}
}

// testAdminAccess: monitoring sees the card as it is, and takes nothing of it.
func testAdminAccess(s *scene) {
	gpu := s.cards()[3]
	patch := []byte(`{"metadata":{"labels":{"resource.kubernetes.io/admin-access":"true"}}}`)
	if _, err := s.client.CoreV1().Namespaces().Patch(s.Context(), s.ns, types.StrategicMergePatchType, patch, metav1.PatchOptions{}); err != nil {
		s.Fatal(err)
	}
	// The scheduler (1.37) accounts capacity for administrators too, where a device is shared: the least of it is asked for.
	watcher := want{class: "gpu", memory: "2Mi", admin: true}.on(gpu.uuid)
	s.slice("admin", watcher, []string{"/bin/sh", "-c", "sleep 1000"})
	s.running("admin")
	s.slice("tenant", shared("100Gi", "100").on(gpu.uuid), always())
	s.running("tenant")
	entries, err := s.node.ledger()
	if err != nil {
		s.Fatal(err)
	}
	watching := 0
	for _, e := range entries {
		if e.Holder.Owner.Namespace == s.ns && e.Grant.Admin {
			watching++
			for _, d := range e.Grant.Devices {
				if memoryOf(d.Memory) != 0 {
					s.Errorf("the administrator's grant holds memory: %+v", e)
				}
			}
		}
	}
	if watching != 1 {
		s.Errorf("%d grants of an administrator are on record, want 1", watching)
	}
	s.undisturbed("tenant")
}

// testClaimStatus: the claim says what became of it.
func testClaimStatus(s *scene) {
	s.slice("status", shared("3Gi", "5"), always())
	s.running("status")
	p, err := s.client.CoreV1().Pods(s.ns).Get(s.Context(), "status", metav1.GetOptions{})
	if err != nil {
		s.Fatal(err)
	}
	result := s.allocation("status")[0]
	await(s, claims, s.ns, *p.Status.ResourceClaimStatuses[0].ResourceClaimName, soon, "status.devices", func(c *resourceapi.ResourceClaim) string {
		if c == nil || len(c.Status.Devices) != 1 {
			return "status.devices is empty"
		}
		d := c.Status.Devices[0]
		if d.Driver != driverName || d.Device != result.Device || d.ShareID == nil || *d.ShareID != string(*result.ShareID) {
			return fmt.Sprintf("it is %+v", d)
		}
		for _, condition := range d.Conditions {
			if condition.Type == "Ready" && condition.Status == metav1.ConditionTrue {
				return ""
			}
		}
		return fmt.Sprintf("conditions are %+v", d.Conditions)
	})
}

// testDeletedWhilePreparing: pods that go again at once, at all moments of their start.
func testDeletedWhilePreparing(s *scene) {
	if err := s.template("brief", shared("1Gi", "0")); err != nil {
		s.Fatal(err)
	}
	const n = 12
	var all sync.WaitGroup
	for i := range n {
		name := fmt.Sprintf("brief-%d", i)
		s.create(newPod(name, []string{"/bin/sh", "-c", "sleep 1000"}, fromTemplate("brief")))
		all.Go(func() {
			// By thirds: when it is scheduled, when its share is on record, when it runs.
			switch i % 3 {
			case 0:
				_, _ = try(s, pods, s.ns, name, soon, func(p *corev1.Pod) string {
					if p == nil || p.Spec.NodeName == "" {
						return "not scheduled"
					}
					return ""
				})
			case 1:
				poll(soon, func() bool { entries, _ := s.node.ledger(); return count(entries, s.ns) > i/3 })
			case 2:
				_, _ = try(s, pods, s.ns, name, soon, func(p *corev1.Pod) string {
					if p == nil || p.Status.Phase != corev1.PodRunning {
						return "not running"
					}
					return ""
				})
			}
			if err := s.client.CoreV1().Pods(s.ns).Delete(context.Background(), name, metav1.DeleteOptions{}); err != nil {
				s.Errorf("delete %s: %v", name, err)
			}
		})
	}
	all.Wait()
	s.awaitNone(pods)
	s.measured("%d pods deleted while they started", n)
}

// testForceDelete: the API server forgets the pod while its container still runs; its share ends with the container, and no sooner.
func testForceDelete(s *scene) {
	gpu := s.cards()[4]
	s.slice("forced", want{class: "gpu"}.on(gpu.uuid), always())
	s.running("forced")
	if err := s.client.CoreV1().Pods(s.ns).Delete(s.Context(), "forced", metav1.DeleteOptions{GracePeriodSeconds: new(int64)}); err != nil {
		s.Fatal(err)
	}
	s.gone("forced")
	s.slice("next", want{class: "gpu"}.on(gpu.uuid), look())
	s.ended("next")
	s.sees("next", "", uint64(gpu.memory))
}

// testPeople: what people look at knows of pods and claims. The doctor also judges the machine that the suite happens to run on; only what it says
// of the cluster is judged here, and the whole is kept.
func testPeople(s *scene) {
	s.slice("seen", shared("2Gi", "10"), always())
	s.running("seen")
	kerf := func(args ...string) (string, error) {
		return s.kubectl(s.Context(), nil, append([]string{"exec", "-n", installNamespace, "daemonset/kerfd", "--", "/usr/bin/kerf"}, args...)...)
	}
	for verb, words := range map[string][]string{"top --once": {s.ns, "seen"}, "doctor --only kubernetes": {"kubernetes.slices", "8 devices are published"}} {
		var out string
		var err error
		if !poll(soon, func() bool { out, err = kerf(strings.Fields(verb)...); return err == nil && containsAll(out, words) }) {
			s.Errorf("kerf %s: %v, want words %q: %s", verb, err, words, out)
		}
		s.keep("people/kerf "+verb+".txt", out)
	}
	whole, err := kerf("doctor")
	if !strings.Contains(whole, "kubernetes.slices") {
		s.Errorf("kerf doctor: %v: %s", err, whole)
	}
	s.keep("people/kerf doctor.txt", whole)
}
