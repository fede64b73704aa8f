package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// example is the YAML of a file of deploy/examples, with tenants that do not take a person's time.
func (s *scene) example(name string) string {
	s.Helper()
	text, err := os.ReadFile(filepath.Join(s.repo, "deploy/examples", name))
	if err != nil {
		s.Fatal(err)
	}
	for _, seconds := range []string{"20", "30"} {
		text = []byte(strings.ReplaceAll(string(text), `--seconds, "`+seconds+`"]`, `--seconds, "2", --json]`))
	}
	return strings.ReplaceAll(string(text), `--limit, 80Gi]`, `--limit, 80Gi, --json]`)
}

// examples are the files of deploy/examples, each with where it is run, or why it is not.
var examples = map[string]string{
	"share.yaml":              "here",
	"split.yaml":              "here",
	"whole-gpu.yaml":          "here",
	"exclusive.yaml":          "here",
	"extended-resource.yaml":  "here",
	"one-claim-two-pods.yaml": "here",
	"cap.yaml":                "here",
	"mps.yaml":                "here",
	"burst.yaml":              "stage overcommit",
	"overcommit.yaml":         "stage overcommit",
	"mig.yaml":                "stage mig: the profile that it names is an H200's",
	"prioritized-list.yaml":   "stage mixed",
	"device-plugin.yaml":      "stage device-plugin",
	"hami.yaml":               "scenario hami",
	"scratch.yaml":            "stage storage",
	"gpu-and-nic.yaml":        "not run here: NICs are off in this stage; stage nics runs such a claim",
	"checkpoint-job.yaml":     "stage faults",
	"kueue-quota.yaml":        "not run: Kueue's image is in a registry",
}

// limitOf is what a pod of an example must see, in bytes; of the others only the success counts.
var limitOf = map[string]uint64{
	"share-a": 30 * gi, "share-b": 80 * gi, "split-half": 40 * gi, "split-third": 24 * gi, "split-fifth": 12 * gi, "split-rest": 2 * gi,
	"exclusive": 30 * gi, "pair-a": 20 * gi, "pair-b": 20 * gi, "slices": 20 * gi, "over-a": 100 * gi, "over-b": 100 * gi, "burst": 40 * gi, "capped": 10 * gi, "hami": 8000 * mi, "mps-a": 10 * gi, "mps-b": 20 * gi,
}

// testExamples runs the files that are for this stage, and sees that none is forgotten.
func testExamples(s *scene) {
	files, err := filepath.Glob(filepath.Join(s.repo, "deploy/examples/*.yaml"))
	if err != nil {
		s.Fatal(err)
	}
	ran := 0
	for _, file := range files {
		name := filepath.Base(file)
		switch where, known := examples[name]; {
		case !known:
			s.Errorf("deploy/examples/%s: no scenario runs it; add it to examples in %s", name, "modes_test.go")
		case where == "here":
			s.runExample(name)
			ran++
		}
	}
	if len(files) != len(examples) {
		s.Errorf("%d files in deploy/examples, and %d in the list", len(files), len(examples))
	}
	s.measured("%d of %d files run here", ran, len(files))
}

// runExample runs a file to the end of its pods, and removes what it made.
func (s *scene) runExample(name string) (names []string) {
	s.Helper()
	names = s.apply(s.example(name))
	for _, pod := range names {
		s.ended(pod)
		one := s.report(pod, "", "report")[0]
		if bytes, known := limitOf[pod]; known && one.Limit != bytes || one.Wrong != 0 || one.Bad != 0 {
			s.Errorf("%s: pod %s: %+v, want a limit of %d and no wrong data", name, pod, one, limitOf[pod])
		}
	}
	for _, pod := range names {
		s.delete(pod)
	}
	for _, pod := range names {
		s.gone(pod)
	}
	return names
}

// testOvercommit: cards whose shares together exceed them.
func testOvercommit(s *scene) {
	s.published("8 cards that are over-committed by half", func(cards []card) bool {
		return len(cards) == 8 && !slices.ContainsFunc(cards, func(c card) bool {
			return c.mode != "overcommit" || c.overcommit != 150 || c.memory <= c.physical || c.memory > c.physical*3/2
		})
	})
	s.runExample("overcommit.yaml")
	s.runExample("burst.yaml")
	gpu := s.cards()[0]
	over := want{class: "gpu-overcommit", memory: "100Gi", cores: "10"}.on(gpu.uuid)
	s.slice("a", over, always())
	s.slice("b", over, always())
	s.running("a")
	s.running("b")
	s.eventually("a", "", "look")
	s.eventually("b", "", "look")
	s.sees("a", "", 100*gi)
	s.sees("b", "", 100*gi)
	s.slice("c", over, look())
	s.unschedulable("c") // 300Gi are more than half as much again
	s.slice("guaranteed", shared("1Gi", "0"), look())
	s.unschedulable("guaranteed") // no card of this node guarantees
	// A limit above the guarantee is for these cards.
	s.slice("limit", want{class: "gpu-overcommit", memory: "10Gi"}.with(`,"memoryLimit":"40Gi"`), look())
	s.ended("limit")
	s.sees("limit", "", 40*gi)
	s.undisturbed("a")
	s.undisturbed("b")
	s.measured("2 × 100 GiB on a card of %d MiB", gpu.physical>>20)
}

// testSwap: two pods whose memory together is more than the card has, all of it written and verified. Both run, one is killed, and the
// other goes on.
func testSwap(s *scene) {
	gpu := s.cards()[0]
	half := want{class: "gpu-overcommit", memory: "1400Mi", cores: "40"}.on(gpu.uuid)
	command := train("--memory", "1100Mi", "--touch", "64Mi", "--step", "1000", "--seconds", "0")
	for _, pod := range []string{"a", "b"} {
		s.slice(pod, half, command)
	}
	for _, pod := range []string{"a", "b"} {
		s.running(pod)
		s.eventually(pod, "main", "holding")
	}
	left := s.undisturbed("b") // its report has verified all that it held, so it has been in again after the other was
	stays := s.undisturbed("a")
	s.measured("2 × 1.1 GiB written on a card of %d MiB: %d and %d steps, no wrong byte", gpu.physical>>20, stays.Steps, left.Steps)
}

// testMIG: hardware partitions, and which exclude each other. Two cards of the profile are in MIG mode; one of these is cut up
// already, by somebody else.
func testMIG(s *scene) {
	const placements = 25 // of an A100, in seven profiles
	all := s.published("six cards and the placements of a seventh", func(cards []card) bool {
		whole, parts := 0, map[string]int{}
		for _, c := range cards {
			if parent, _, ok := strings.Cut(c.device, "-mig-"); ok && c.kind == "mig" && c.mode == "mig" {
				parts[parent]++
			} else if c.kind == "gpu" && c.mode == "vgpu" {
				whole++
			}
		}
		return whole == 6 && len(parts) == 1 && len(cards) == 6+placements
	})
	profile := func(name string) want {
		return want{class: "gpu-mig", selector: fmt.Sprintf(`device.attributes["%s"].?profile.orValue("") == "%s"`, driverName, name)}
	}
	s.slice("seventh", profile("1g.10gb"), always())
	s.running("seventh")
	s.eventually("seventh", "", "look")
	one := s.report("seventh", "", "look")[0]
	if one.Count != 1 || one.Total > 10*gi || one.Total < 8*gi || one.NVMLCount != 1 {
		s.Errorf("the pod sees %+v, want one instance of 10 GB", one)
	}
	s.slice("whole", profile("7g.80gb"), look()) // the card that has a seventh cannot be had whole
	s.unschedulable("whole")
	s.slice("second", profile("2g.20gb"), hog("--class", "linear"))
	s.ended("second")
	second := s.report("second", "", "report")[0]
	if second.Bad != 0 || second.Limit > 20*gi || second.Limit < 18*gi {
		s.Errorf("the hog in two sevenths says %+v", second)
	}
	s.slice("shared", shared("10Gi", "10"), look()) // the other cards are shared as ever
	s.ended("shared")
	s.undisturbed("seventh")
	s.ended("whole") // the instance went with its share
	s.measured("%d devices in %d slices; a seventh has %.2f GiB", len(all), s.countSlices(), float64(one.Total)/float64(gi))
}

func (s *scene) countSlices() int {
	list, err := s.client.ResourceV1().ResourceSlices().List(s.Context(), metav1.ListOptions{FieldSelector: "spec.driver=" + driverName})
	if err != nil {
		s.Fatal(err)
	}
	return len(list.Items)
}

// testPrioritizedList: A100 for training, A6000 for inference.
func testPrioritizedList(s *scene) {
	// They stay: a claim goes when its pod has ended.
	names := s.apply(strings.ReplaceAll(s.example("prioritized-list.yaml"), `"2", --json]`, `"100000", --json]`))
	for _, pod := range names {
		s.running(pod)
	}
	products := map[string]string{}
	for _, c := range s.cards() {
		products[c.device] = c.product
	}
	for pod, wanted := range map[string]struct{ request, product string }{"training": {"gpu/a100", "A100"}, "inference": {"gpu/a6000", "A6000"}} {
		result := s.allocation(pod)[0]
		if result.Request != wanted.request || !strings.Contains(products[result.Device], wanted.product) {
			s.Errorf("pod %s has %s by request %s, want a %s", pod, products[result.Device], result.Request, wanted.product)
		}
	}
	// Where both A100 are full, training gets the A6000.
	for _, pod := range names {
		s.stop(pod)
		s.ended(pod)
	}
	for i := range 2 {
		s.slice(fmt.Sprintf("full-%d", i), want{class: "gpu-a100"}, always())
		s.running(fmt.Sprintf("full-%d", i))
	}
	s.create(newPod("training-2", lookAndStay(), fromTemplate("training")))
	s.running("training-2")
	var result resourceapi.DeviceRequestAllocationResult
	if results := s.allocation("training-2"); len(results) == 1 {
		result = results[0]
	}
	if result.Request != "gpu/a6000" {
		s.Errorf("with no A100 free, training-2 has request %s, want gpu/a6000", result.Request)
	}
}
