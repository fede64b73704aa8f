package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// churn makes pods with slices and deletes them, several at once, until it is stopped. Every pod either ends well or is deleted.
type churn struct {
	s       *scene
	stop    context.CancelFunc
	workers sync.WaitGroup
	ended   atomic.Int64
}

const churnWorkers = 3

// churnLate is how long a pod of the churn may take: kubelet tries a prepare that a kill interrupted again only after 60 to 90 s, and
// in the long form the next kill may interrupt that one too.
const churnLate = 4 * late

func (s *scene) churn() *churn {
	s.Helper()
	if err := s.template("churn", shared("1Gi", "1")); err != nil {
		s.Fatal(err)
	}
	ctx, stop := context.WithCancel(s.Context())
	c := &churn{s: s, stop: stop}
	for worker := range churnWorkers {
		c.workers.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				c.one(ctx, fmt.Sprintf("churn-%d-%d", worker, i), i%4 == 3)
			}
		})
	}
	return c
}

// one runs a pod to its end, or deletes it on the way.
func (c *churn) one(ctx context.Context, name string, early bool) {
	s := c.s
	api := s.client.CoreV1().Pods(s.ns)
	p := newPod(name, look(), fromTemplate("churn"), restarts(corev1.RestartPolicyOnFailure))
	if _, err := api.Create(context.Background(), p, metav1.CreateOptions{}); err != nil {
		s.Errorf("create %s: %v", name, err)
		return
	}
	if !early {
		done, why := try(s, pods, s.ns, name, churnLate, func(p *corev1.Pod) string {
			if p == nil || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed || ctx.Err() != nil {
				return ""
			}
			return state(p)
		})
		switch {
		case why != "":
			s.Errorf("pod %s has not ended within %s: %s", name, churnLate, why)
		case done != nil && done.Status.Phase == corev1.PodFailed:
			s.Errorf("pod %s failed: %s: %s", name, state(done), s.log(name, ""))
		default:
			c.ended.Add(1)
		}
	}
	if err := api.Delete(context.Background(), name, metav1.DeleteOptions{}); err != nil {
		s.Errorf("delete %s: %v", name, err)
	}
}

// finish ends the churn and waits until all its pods are gone.
func (c *churn) finish() {
	c.s.Helper()
	c.stop()
	c.workers.Wait()
}

// steady starts tenants that must notice nothing: one that computes all the time, one that works in beats.
func (s *scene) steady() {
	s.Helper()
	s.slice("steady-look", shared("2Gi", "10"), always())
	s.slice("steady-train", shared("4Gi", "10"), train("--memory", "1Gi", "--step", "2000", "--seconds", "100000"))
	s.running("steady-look")
	s.running("steady-train")
	s.eventually("steady-train", "main", "holding")
}

// steadied ends them, and tells the longest time that one had to wait.
func (s *scene) steadied() string {
	s.Helper()
	quiet, busy := s.undisturbed("steady-look"), s.undisturbed("steady-train")
	return fmt.Sprintf("tenants: longest of %d beats %.0f ms, %d steps without a wrong byte", quiet.Beats, quiet.LongestMS, busy.Steps)
}

// kills is how often the crash scenarios strike.
func kills() int {
	if os.Getenv("KERF_SOAK") != "" {
		return 200
	}
	return 15
}

// crashKerfd kills kerfd, and waits until its successor serves.
func (s *scene) crashKerfd() {
	s.Helper()
	list, err := s.client.CoreV1().Pods(installNamespace).List(s.Context(), metav1.ListOptions{LabelSelector: kerfdLabel})
	if err != nil || len(list.Items) != 1 || len(list.Items[0].Status.ContainerStatuses) != 1 {
		s.Fatalf("no single pod of kerfd is there (%v)", err)
	}
	before := list.Items[0].Status.ContainerStatuses[0].RestartCount
	if err := s.node.kill(); err != nil {
		s.Fatal(err)
	}
	await(s, pods, installNamespace, list.Items[0].Name, soon, "kerfd's successor", func(p *corev1.Pod) string {
		if p != nil && len(p.Status.ContainerStatuses) == 1 {
			if c := p.Status.ContainerStatuses[0]; c.RestartCount > before && c.Started != nil && *c.Started {
				return ""
			}
		}
		return state(p)
	})
}

// testCrash kills kerfd at random points while pods come and go.
func testCrash(s *scene) {
	s.steady()
	c := s.churn()
	n := kills()
	var back time.Duration
	for i := range n {
		// From the moment it is there, so that its start is hit as well; most of the time, later.
		pid := 0
		if !poll(late, func() bool { pid = s.node.kerfd(); return pid != 0 }) {
			s.Fatalf("kerfd is not back %s after kill %d; its log: %s", late, i, s.kerfdLog())
		}
		pause(s.Context(), time.Duration(rand.Int64N(int64(2500*time.Millisecond))))
		if err := s.node.kill(); err != nil && s.node.kerfd() != 0 {
			s.Fatal(err)
		}
		began := time.Now()
		if twice := s.node.twice(); twice != "" {
			s.Fatalf("after kill %d: %s", i, twice)
		}
		if !poll(late, func() bool { now := s.node.kerfd(); return now != 0 && now != pid }) {
			s.Fatalf("kerfd is not back %s after kill %d", late, i)
		}
		back = max(back, time.Since(began))
	}
	s.rolledOut()
	c.finish()
	ended := c.ended.Load()
	if ended == 0 {
		s.Error("no pod ended well meanwhile: this showed nothing")
	}
	s.measured("%d kills -9 of kerfd, %d pods ran; %s", n, ended, s.steadied())
	s.allGone()
}

// pause is the random moment at which a crash comes; it waits for nothing.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// allGone deletes every pod and claim of the scene, and checks that the whole node is empty.
func (s *scene) allGone() {
	s.Helper()
	if err := s.client.CoreV1().Pods(s.ns).DeleteCollection(s.Context(), metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
		s.Fatal(err)
	}
	if err := s.client.ResourceV1().ResourceClaims(s.ns).DeleteCollection(s.Context(), metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
		s.Fatal(err)
	}
	s.awaitNone(pods)
	s.awaitNone(claims)
	if left := s.node.awaitNothing(late); left != "" {
		s.Errorf("left on the node when all pods were gone: %s", left)
	}
}

// testKubeletRestart kills kubelet under churn.
func testKubeletRestart(s *scene) { s.restarted("kubelet", 3) }

// testContainerdRestart kills containerd under churn.
func testContainerdRestart(s *scene) { s.restarted("containerd", 2) }

func (s *scene) restarted(daemon string, times int) {
	s.Helper()
	s.steady()
	c := s.churn()
	for range times {
		pause(s.Context(), time.Duration(rand.Int64N(int64(3*time.Second))))
		if out, err := s.cluster(s.Context(), "restart", daemon); err != nil {
			s.Fatalf("restart %s: %v: %s", daemon, err, out)
		}
		if twice := s.node.twice(); twice != "" {
			s.Fatal(twice)
		}
	}
	s.slice("after", shared("1Gi", "0"), look())
	s.ended("after")
	c.finish()
	s.measured("%s killed %d times, %d pods ran; %s", daemon, times, c.ended.Load(), s.steadied())
	s.allGone()
}

// testReboot: all processes of the node end and /run is empty; pods that restart get their shares back.
func testReboot(s *scene) {
	s.slice("stays", shared("6Gi", "10"), always(), restarts(corev1.RestartPolicyAlways))
	s.claim("pair", shared("5Gi", "10"))
	for _, name := range []string{"pair-a", "pair-b"} {
		s.create(newPod(name, always(), fromClaim("pair"), restarts(corev1.RestartPolicyAlways)))
	}
	s.slice("ends", shared("3Gi", "0"), always())
	for _, name := range []string{"stays", "pair-a", "pair-b", "ends"} {
		s.running(name)
	}
	began := time.Now()
	if out, err := s.cluster(s.Context(), "reboot"); err != nil {
		s.Fatalf("cluster reboot: %v: %s", err, out)
	}
	for name, bytes := range map[string]uint64{"stays": 6 * gi, "pair-a": 5 * gi, "pair-b": 5 * gi} {
		await(s, pods, s.ns, name, late, "a container after the reboot", func(p *corev1.Pod) string {
			if p != nil && len(p.Status.ContainerStatuses) == 1 {
				if c := p.Status.ContainerStatuses[0]; c.RestartCount > 0 && c.State.Running != nil {
					return ""
				}
			}
			return state(p)
		})
		s.eventually(name, "main", "look")
		s.sees(name, "", bytes)
	}
	await(s, pods, s.ns, "ends", late, "its failure", func(p *corev1.Pod) string { // restartPolicy Never
		if p != nil && p.Status.Phase == corev1.PodFailed {
			return ""
		}
		return state(p)
	})
	s.rolledOut()
	s.measured("three pods run again %.0f s after the reboot, with their shares", time.Since(began).Seconds())
	s.allGone()
}

// testRollingUpdate: kerfd is replaced while pods start.
func testRollingUpdate(s *scene) {
	s.steady()
	c := s.churn()
	const times = 2
	var longest time.Duration
	for i := range times {
		began := time.Now()
		patch := fmt.Sprintf(`{"spec":{"template":{"metadata":{"annotations":{"kerf.dev/e2e":"%d"}}}}}`, i)
		if _, err := s.client.AppsV1().DaemonSets(installNamespace).Patch(s.Context(), "kerfd", types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
			s.Fatal(err)
		}
		s.rolledOut()
		longest = max(longest, time.Since(began))
	}
	list, err := s.client.ResourceV1().ResourceSlices().List(s.Context(), metav1.ListOptions{FieldSelector: "spec.driver=" + driverName})
	if err != nil || len(list.Items) == 0 {
		s.Errorf("no ResourceSlices after the update (%v)", err)
	}
	c.finish()
	s.measured("%d updates, the longest %.1f s, %d pods ran; %s", times, longest.Seconds(), c.ended.Load(), s.steadied())
	s.allGone()
}

// testModeChange: a card changes its mode when its last share has gone, and takes no new ones until then.
func testModeChange(s *scene) {
	gpu, other := s.cards()[0], s.cards()[1]
	s.slice("holds", shared("1Gi", "0").on(gpu.uuid), always())
	s.running("holds")
	s.configure("cards[0].match.index=0", "cards[0].mode=overcommit", "cards[0].overcommitPercent=200")
	s.awaitCard(gpu.device, "the taint of a card that waits", soon, func(c card) bool {
		return hasTaint(c, "gpu.kerf.dev/mode-change") && c.mode == "vgpu"
	})
	s.awaitCard(other.device, "the other card as it was", soon, func(c card) bool { return len(c.taints) == 0 && c.mode == "vgpu" })
	s.slice("waits", want{class: "gpu-overcommit", memory: "100Gi"}.on(gpu.uuid), look())
	s.unschedulable("waits")
	s.undisturbed("holds")
	s.awaitCard(gpu.device, "the new mode", soon, func(c card) bool {
		return c.mode == "overcommit" && len(c.taints) == 0 && c.memory > c.physical && c.overcommit == 200
	})
	s.ended("waits")
	s.sees("waits", "", 100*gi)
	s.configure()
	s.awaitCard(gpu.device, "the old mode", soon, func(c card) bool { return c.mode == "vgpu" && len(c.taints) == 0 })
}

// configure applies the manifests with other values of the chart.
func (s *scene) configure(values ...string) {
	s.Helper()
	if out, err := s.kubectl(s.Context(), s.manifest(s.T, values), "apply", "-f", "-"); err != nil {
		s.Fatalf("kubectl apply: %v: %s", err, out)
	}
	s.rolledOut()
}
