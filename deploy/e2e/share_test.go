package e2e

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	mi = uint64(1) << 20
	gi = uint64(1) << 30
)

// sees checks that a container sees a slice of that size, by every call that tells one, and returns what it saw.
func (s *scene) sees(pod, container string, bytes uint64) said {
	s.Helper()
	one := s.report(pod, container, "look")[0]
	if one.Count != 1 || one.NVMLCount != 1 {
		s.Errorf("pod %s sees %d GPUs by CUDA and %d by NVML (%s), want 1", pod, one.Count, one.NVMLCount, one.NVMLError)
	}
	if one.InfoTotal != bytes || one.Total != bytes || one.NVMLTotal != bytes {
		s.Errorf("pod %s, want %d bytes: cuMemGetInfo says %d, cuDeviceTotalMem %d, NVML %d", pod, bytes, one.InfoTotal, one.Total, one.NVMLTotal)
	}
	return one
}

// refused checks that a hog was refused at its limit, by every way to allocate.
func (s *scene) refused(pod string, bytes uint64) {
	s.Helper()
	one := s.report(pod, "", "report")[0]
	if one.Limit != bytes || one.Bad != 0 || one.Classes < 10 || one.Wrong != 0 {
		s.Errorf("pod %s: the hog's report is %+v, want 10 classes refused at %d", pod, one, bytes)
	}
}

// undisturbed ends a tenant that worked all the time, and checks that it noticed nothing. It returns its report.
func (s *scene) undisturbed(pod string) said {
	s.Helper()
	s.stop(pod)
	p := s.ended(pod)
	for _, c := range p.Status.ContainerStatuses {
		if c.RestartCount != 0 {
			s.Errorf("pod %s: container %s was restarted %d times", pod, c.Name, c.RestartCount)
		}
	}
	reports := s.report(pod, "", "report")
	one := reports[len(reports)-1]
	if one.Wrong != 0 || one.Beats+one.Steps == 0 {
		s.Errorf("pod %s: its report is %+v, want work and no wrong data", pod, one)
	}
	return one
}

// allocation is what the scheduler gave a pod: the results of its claims.
func (s *scene) allocation(pod string) (results []resourceapi.DeviceRequestAllocationResult) {
	s.Helper()
	p, err := s.client.CoreV1().Pods(s.ns).Get(s.Context(), pod, metav1.GetOptions{})
	if err != nil {
		s.Fatal(err)
	}
	var names []string
	for _, status := range p.Status.ResourceClaimStatuses {
		if status.ResourceClaimName != nil {
			names = append(names, *status.ResourceClaimName)
		}
	}
	if status := p.Status.ExtendedResourceClaimStatus; status != nil {
		names = append(names, status.ResourceClaimName)
	}
	for _, name := range names {
		c, err := s.client.ResourceV1().ResourceClaims(s.ns).Get(s.Context(), name, metav1.GetOptions{})
		if err != nil {
			s.Fatal(err)
		}
		if c.Status.Allocation != nil {
			results = append(results, c.Status.Allocation.Devices.Results...)
		}
	}
	return results
}

// testShareOneGPU: 40 % and 30Gi beside 60 % and 80Gi, and no third.
func testShareOneGPU(s *scene) {
	gpu := s.cards()[0]
	s.slice("a", shared("30Gi", "40").on(gpu.uuid), always())
	s.slice("b", shared("80Gi", "60").on(gpu.uuid), []string{"/bin/sh", "-c", "hog --json --limit 80Gi && exec look --json --seconds 100000"})
	s.running("a")
	s.running("b")
	s.eventually("a", "", "look")
	s.eventually("b", "", "report")
	one := s.sees("a", "", 30*gi)
	if !strings.HasPrefix(one.UUID, "GPU-") {
		s.Errorf("the GPU of a is called %s", one.UUID)
	}
	s.refused("b", 80*gi)

	// There is no more time, and not that much memory.
	for name, w := range map[string]want{"no-memory": shared("40Gi", "0"), "no-cores": shared("1Gi", "1")} {
		s.slice(name, w.on(gpu.uuid), look())
	}
	reason := s.unschedulable("no-memory")
	if !strings.Contains(reason, "cannot allocate all claims") {
		s.Errorf("the scheduler says %q", reason)
	}
	s.unschedulable("no-cores")
	s.slice("fits", shared("20Gi", "0").on(gpu.uuid), look())
	s.ended("fits")
	s.sees("fits", "", 20*gi)

	s.undisturbed("b") // its claim goes with its end: then there is room
	s.ended("no-memory")
	s.sees("no-memory", "", 40*gi)
	quiet := s.undisturbed("a")
	s.measured("the hog was refused at 80 GiB by 10 ways; its neighbour's longest beat of %d was %.1f ms", quiet.Beats, quiet.LongestMS)
}

// testWholeGPU: a claim that says nothing of memory takes all of it.
func testWholeGPU(s *scene) {
	gpu := s.cards()[1]
	s.slice("whole", want{class: "gpu"}.on(gpu.uuid), always())
	s.running("whole")
	s.eventually("whole", "", "look")
	s.sees("whole", "", uint64(gpu.memory))
	s.slice("other", shared("64Mi", "0").on(gpu.uuid), look())
	s.unschedulable("other")
	s.undisturbed("whole")
}

// testExtendedResource: a GPU as it was always written.
func testExtendedResource(s *scene) {
	s.create(newPod("extended", lookAndStay(), limits(map[corev1.ResourceName]string{"kerf.dev/gpu": "1"})))
	s.running("extended")
	s.eventually("extended", "", "look")
	s.sees("extended", "", uint64(s.cards()[0].memory))
	results := s.allocation("extended")
	if len(results) != 1 {
		s.Fatalf("allocated were %+v, want one device", results)
	}
	if memory := results[0].ConsumedCapacity["memory"]; memory.Value() != s.cards()[0].memory {
		s.Errorf("the claim consumes %s of memory, want the card's", memory.String())
	}
}

// testExclusive: all 32 places of a card, and little of its memory.
func testExclusive(s *scene) {
	gpu := s.cards()[2]
	alone := shared("30Gi", "").on(gpu.uuid)
	alone.tenants = "32"
	s.slice("alone", alone, always())
	s.running("alone")
	s.eventually("alone", "", "look")
	s.sees("alone", "", 30*gi)
	s.slice("other", shared("1Gi", "0").on(gpu.uuid), look())
	s.unschedulable("other")
	s.undisturbed("alone")
	s.ended("other")
}

// testBurst: a limit above the guarantee is refused where memory is guaranteed to others, in words.
func testBurst(s *scene) {
	s.slice("burst", shared("10Gi", "0").with(`,"memoryLimit":"40Gi"`), look())
	s.measured("refused: …%s", tail(s.event("burst", "memoryLimit", "gpu-overcommit"), 120))
	s.slice("capped", shared("10Gi", "20").with(`,"burst":false,"class":"burstable","backend":"shim"`), look())
	s.ended("capped")
	s.sees("capped", "", 10*gi)
}
