package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	dracel "k8s.io/dynamic-resource-allocation/cel"

	"github.com/kerf-gpu/kerf/internal/node"
)

// limits writes "gpu=1 gpumem=8000" as the limits of HAMi. The API server fills in requests, so they are there too.
func limits(text string) corev1.ResourceRequirements {
	r := corev1.ResourceRequirements{Limits: corev1.ResourceList{}, Requests: corev1.ResourceList{}}
	for _, pair := range strings.Fields(text) {
		name, value, _ := strings.Cut(pair, "=")
		if !strings.Contains(name, "/") && name != "cpu" {
			name = "nvidia.com/" + name
		}
		r.Limits[corev1.ResourceName(name)] = resource.MustParse(value)
		r.Requests[corev1.ResourceName(name)] = resource.MustParse(value)
	}
	return r
}

// podOf has one container for each text: "main: gpu=1", "init setup: gpu=1", "sidecar log: gpu=1".
func podOf(containers ...string) *corev1.Pod {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{GenerateName: "train-"}}
	always := corev1.ContainerRestartPolicyAlways
	for _, text := range containers {
		name, resources, _ := strings.Cut(text, ":")
		c := corev1.Container{Name: name, Resources: limits(resources)}
		if early, ok := strings.CutPrefix(name, "init "); ok {
			c.Name = early
			pod.Spec.InitContainers = append(pod.Spec.InitContainers, c)
		} else if sidecar, ok := strings.CutPrefix(name, "sidecar "); ok {
			c.Name, c.RestartPolicy = sidecar, &always
			pod.Spec.InitContainers = append(pod.Spec.InitContainers, c)
		} else {
			pod.Spec.Containers = append(pod.Spec.Containers, c)
		}
	}
	return pod
}

func have(sizes ...node.Bytes) Options {
	return Options{Sizes: func() ([]node.Bytes, error) { return sizes, nil }}
}

// describe is a template in few words: "gpu-0 1×gpu-shared memory=8000Mi cores=30".
func describe(t *resourceapi.ResourceClaimTemplate) (lines []string) {
	if t == nil {
		return nil
	}
	amounts := func(c *resourceapi.CapacityRequirements) (s string) {
		for _, name := range []resourceapi.QualifiedName{"memory", "cores"} {
			if c == nil {
				continue
			}
			if q, ok := c.Requests[name]; ok {
				s += fmt.Sprintf(" %s=%s", name, q.String())
			}
		}
		return s
	}
	for _, r := range t.Spec.Spec.Devices.Requests {
		if e := r.Exactly; e != nil {
			lines = append(lines, fmt.Sprintf("%s %d×%s%s", r.Name, e.Count, e.DeviceClassName, amounts(e.Capacity)))
		}
		for _, s := range r.FirstAvailable {
			lines = append(lines, fmt.Sprintf("%s/%s %d×%s%s", r.Name, s.Name, s.Count, s.DeviceClassName, amounts(s.Capacity)))
		}
	}
	for _, c := range t.Spec.Spec.Devices.Constraints {
		if c.DistinctAttribute != nil {
			lines = append(lines, fmt.Sprintf("distinct %s of %s", *c.DistinctAttribute, strings.Join(c.Requests, " ")))
		}
		if c.MatchAttribute != nil {
			lines = append(lines, fmt.Sprintf("same %s of %s", *c.MatchAttribute, strings.Join(c.Requests, " ")))
		}
	}
	return lines
}

// patched is the pod as the API server has it after the patch.
func patched(t *testing.T, pod *corev1.Pod, patch []Operation) *corev1.Pod {
	t.Helper()
	if len(patch) == 0 {
		return pod
	}
	named := pod.DeepCopy()
	named.Name, named.Namespace = "x", "team"
	data, err := json.Marshal(patch)
	if err != nil {
		t.Fatal(err)
	}
	after, err := fake.NewClientset(named).CoreV1().Pods("team").Patch(context.Background(), "x", types.JSONPatchType, data, metav1.PatchOptions{})
	if err != nil {
		t.Fatalf("%v\n%s", err, data)
	}
	return after
}

// uses is which container has which request: "main=gpu-0".
func uses(pod *corev1.Pod, claim string) (s []string) {
	containersOf(pod, func(_ string, _ bool, c corev1.Container) {
		for _, used := range c.Resources.Claims {
			if used.Name == claim {
				s = append(s, c.Name+"="+used.Request)
			}
		}
	})
	return s
}

func TestConvert(t *testing.T) {
	for _, tt := range []struct {
		name string
		pod  *corev1.Pod
		want string // the template, lines joined by "; "
		uses string
	}{
		{"nothing of ours", podOf("main: cpu=1 example.com/nic=1"), "", ""},
		{"no containers", podOf(), "", ""},
		{"a whole GPU", podOf("main: gpu=1"), "gpu-0 1×gpu", "main=gpu-0"},
		{"memory", podOf("main: gpu=1 gpumem=8000"), "gpu-0 1×gpu-shared memory=8000Mi", "main=gpu-0"},
		{"memory and time", podOf("main: gpu=1 gpumem=8000 gpucores=30"), "gpu-0 1×gpu-shared memory=8000Mi cores=30", "main=gpu-0"},
		{"time of a whole GPU", podOf("main: gpu=1 gpucores=30"), "gpu-0 1×gpu cores=30", "main=gpu-0"},
		{"memory alone is one GPU", podOf("main: gpumem=1024"), "gpu-0 1×gpu-shared memory=1Gi", "main=gpu-0"},
		{"memory 0 is all of it", podOf("main: gpu=1 gpumem=0"), "gpu-0 1×gpu", "main=gpu-0"},
		{"cores 0 is best effort", podOf("main: gpu=1 gpumem=1000 gpucores=0"), "gpu-0 1×gpu-shared memory=1000Mi", "main=gpu-0"},
		{"written with a unit", podOf("main: gpu=1 gpumem=8k"), "gpu-0 1×gpu-shared memory=8000Mi", "main=gpu-0"},
		{"two GPUs", podOf("main: gpu=2 gpumem=8000"), "gpu-0 2×gpu-shared memory=8000Mi; distinct gpu.kerf.dev/uuid of gpu-0", "main=gpu-0"},
		{"no GPU", podOf("main: gpu=0 gpumem=8000"), "", ""},
		{"two containers", podOf("a: gpu=1 gpumem=1000", "b: gpu=1 gpumem=1000"), "gpu-0 1×gpu-shared memory=1000Mi; gpu-1 1×gpu-shared memory=1000Mi", "a=gpu-0 b=gpu-1"},
		{"one of two", podOf("a: cpu=1", "b: gpu=1"), "gpu-0 1×gpu", "b=gpu-0"},
		{"an init container with the same", podOf("init a: gpu=1 gpumem=1000", "b: gpu=1 gpumem=1000"), "gpu-0 1×gpu-shared memory=1000Mi", "a=gpu-0 b=gpu-0"},
		{"an init container with another", podOf("init a: gpu=1 gpumem=1000", "b: gpu=1 gpumem=2000"), "gpu-0 1×gpu-shared memory=2000Mi; gpu-1 1×gpu-shared memory=1000Mi", "a=gpu-1 b=gpu-0"},
		{"two init containers", podOf("init a: gpu=1", "init b: gpu=1", "main: cpu=1"), "gpu-0 1×gpu", "a=gpu-0 b=gpu-0"},
		{"a sidecar runs beside", podOf("sidecar a: gpu=1", "b: gpu=1"), "gpu-0 1×gpu; gpu-1 1×gpu", "a=gpu-0 b=gpu-1"},
		{"percent of two sizes", podOf("main: gpu=1 gpumem-percentage=50 gpucores=10"),
			"gpu-0/of-40gi 1×gpu-shared memory=20Gi cores=10; gpu-0/of-143771mi 1×gpu-shared memory=71885Mi cores=10", "main=gpu-0"},
		{"percent of two GPUs", podOf("main: gpu=2 gpumem-percentage=10"),
			"gpu-0/of-40gi 2×gpu-shared memory=4Gi; gpu-0/of-143771mi 2×gpu-shared memory=14377Mi; distinct gpu.kerf.dev/uuid of gpu-0", "main=gpu-0"},
		{"100 percent", podOf("main: gpu=1 gpumem-percentage=100"), "gpu-0 1×gpu", "main=gpu-0"},
		{"memory goes before percent", podOf("main: gpu=1 gpumem=1000 gpumem-percentage=50"), "gpu-0 1×gpu-shared memory=1000Mi", "main=gpu-0"},
		{"priority", podOf("main: gpu=1 priority=1"), "gpu-0 1×gpu", "main=gpu-0"},
		{"priority alone", podOf("main: priority=1"), "", ""},
		{"other resources of nvidia.com", podOf("main: gpu=1 nvidia.com/mig-1g.5gb=1 cpu=2"), "gpu-0 1×gpu", "main=gpu-0"},
		{"the most", podOf("a: gpu=16", "b: gpu=16"), "gpu-0 16×gpu; gpu-1 16×gpu; distinct gpu.kerf.dev/uuid of gpu-0; distinct gpu.kerf.dev/uuid of gpu-1", "a=gpu-0 b=gpu-1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := tt.pod.DeepCopy()
			c, err := Convert(tt.pod, have(143771*node.MiB, 40*node.GiB))
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(describe(c.Template), "; "); got != tt.want {
				t.Errorf("template\n got %s\nwant %s", got, tt.want)
			}
			after := patched(t, tt.pod, c.Patch)
			if got := strings.Join(uses(after, "kerf"), " "); got != tt.uses {
				t.Errorf("containers use %q, want %q", got, tt.uses)
			}
			left := func(path string, _ bool, c corev1.Container) {
				for _, name := range hamiResources {
					_, limit := c.Resources.Limits[name]
					_, request := c.Resources.Requests[name]
					if limit || request {
						t.Errorf("%s: %s is still there", path, name)
					}
				}
			}
			containersOf(after, left)
			if again, err := Convert(after, have()); err != nil || again.Template != nil || len(again.Patch) > 0 {
				t.Errorf("converted a second time: %v, %v", again, err)
			}
			if diff := cmp.Diff(before, tt.pod); diff != "" {
				t.Errorf("the pod that was given has changed: %s", diff)
			}
		})
	}
}

func TestConvertRefuses(t *testing.T) {
	with := func(change func(*corev1.Pod)) *corev1.Pod {
		pod := podOf("main: gpu=1 gpumem=1000")
		change(pod)
		return pod
	}
	annotated := func(name, value string) *corev1.Pod {
		return with(func(p *corev1.Pod) { p.Annotations = map[string]string{name: value} })
	}
	for _, tt := range []struct {
		name    string
		pod     *corev1.Pod
		options Options
		want    string
	}{
		{"bytes for MiB", podOf("main: gpumem=16Gi"), have(), `container "main": nvidia.com/gpumem 16Gi: that is 17179869184, and the most is 4194304; it counts MiB, of each GPU; write 16384 for 16Gi`},
		{"a fraction", podOf("main: gpu=500m"), have(), "nvidia.com/gpu 500m: not a whole number"},
		{"negative", podOf("main: gpu=-1"), have(), "nvidia.com/gpu -1: not a whole number of 0 or more"},
		{"negative memory", podOf("main: gpumem=-5"), have(), "nvidia.com/gpumem -5"},
		{"huge", podOf("main: gpu=9223372036854775808"), have(), "nvidia.com/gpu"},
		{"huge exponent", podOf("main: gpumem=1e18"), have(), "the most is 4194304"},
		{"17 GPUs", podOf("main: gpu=17"), have(), "one container can have 16 GPUs; ask for fewer"},
		{"33 GPUs in a pod", podOf("a: gpu=16", "b: gpu=16", "c: gpu=1"), have(), "nvidia.com/gpu: 33 in all containers of the pod, and one claim holds 32"},
		{"101 cores", podOf("main: gpu=1 gpucores=101"), have(), "nvidia.com/gpucores 101: that is 101, and the most is 100; it is a percentage of each GPU's time"},
		{"101 percent", podOf("main: gpu=1 gpumem-percentage=101"), have(), "nvidia.com/gpumem-percentage 101"},
		{"two mistakes are said at once", podOf("a: gpu=17", "b: gpucores=101"), have(), "and the most is 16"},
		{"only in requests", with(func(p *corev1.Pod) { delete(p.Spec.Containers[0].Resources.Limits, resourceMemory) }), have(), "nvidia.com/gpumem 1k: only in requests; write it in limits"},
		{"other requests", with(func(p *corev1.Pod) {
			p.Spec.Containers[0].Resources.Requests[resourceMemory] = resource.MustParse("5")
		}), have(), "nvidia.com/gpumem 1k: 5 in requests; write it in limits only"},
		{"around the scheduler", with(func(p *corev1.Pod) { p.Spec.NodeName = "n1" }), have(), `spec.nodeName "n1"`},
		{"percent without cards", podOf("main: gpumem-percentage=50"), have(), "nvidia.com/gpumem-percentage 50: no node has published a GPU yet, so it is a percentage of nothing; write nvidia.com/gpumem, in MiB, instead"},
		{"percent of many sizes", podOf("main: gpumem-percentage=50"), have(1, 2, 3, 4, 5, 6, 7, 8, 9), "have 9 sizes, and a claim can name 8; write nvidia.com/gpumem"},
		{"percent while the API server is away", podOf("main: gpumem-percentage=50"), Options{Sizes: func() ([]node.Bytes, error) { return nil, errors.New("timeout") }}, "cannot be read (timeout); write nvidia.com/gpumem"},
		{"an injected expression", annotated(annotationTypes, `A100") || true || ("`), have(), "annotation nvidia.com/use-gputype:"},
		{"a quote", annotated(annotationTypes, `A"`), have(), "not part of a product's name"},
		{"a backslash", annotated(annotationTypes, `A\u0022`), have(), "not part of a product's name"},
		{"a line break", annotated(annotationNotTypes, "A100\n"), have(), ""}, // trimmed
		{"a line break inside", annotated(annotationNotTypes, "A1\n00"), have(), "annotation nvidia.com/nouse-gputype"},
		{"an empty name", annotated(annotationTypes, "A100,,H100"), have(), "not part of a product's name"},
		{"an empty list", annotated(annotationTypes, ""), have(), "not part of a product's name"},
		{"a long name", annotated(annotationTypes, strings.Repeat("A", 65)), have(), "not part of a product's name"},
		{"many names", annotated(annotationTypes, strings.Repeat("A,", 16)+"A"), have(), "17 names: at most 16"},
		{"letters beyond ASCII", annotated(annotationTypes, "Ａ100"), have(), "not part of a product's name"},
		{"no UUID", annotated(annotationUUIDs, "GPU-1"), have(), `annotation nvidia.com/use-gpuuuid: "GPU-1": not a GPU's UUID`},
		{"a UUID without GPU-", annotated(annotationUUIDs, "01234567-89ab-cdef-0123-456789abcdef"), have(), "not a GPU's UUID"},
		{"a MIG device's UUID", annotated(annotationNotUUIDs, "MIG-01234567-89ab-cdef-0123-456789abcdef"), have(), "annotation nvidia.com/nouse-gpuuuid"},
		{"an index", annotated(annotationUUIDs, "0"), have(), "not a GPU's UUID"},
		{"no truth", annotated(annotationNUMA, "yes"), have(), `annotation nvidia.com/numa-bind: "yes": not true or false`},
		{"MIG", annotated(annotationMode, "mig"), have(), "write a claim of the class gpu-mig"},
		{"MPS", annotated(annotationMode, "mps"), have(), "tier: mps"},
	} {
		c, err := Convert(tt.pod, tt.options)
		switch {
		case tt.want == "" && err != nil:
			t.Errorf("%s: %v", tt.name, err)
		case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%s: %v\nwant %s", tt.name, err, tt.want)
		case err != nil && (c.Template != nil || len(c.Patch) > 0):
			t.Errorf("%s: refused, and converted", tt.name)
		}
	}
}

func TestConvertKeeps(t *testing.T) {
	own := "own"
	pod := podOf("main: gpu=1 gpumem=1000 cpu=4")
	pod.Spec.ResourceClaims = []corev1.PodResourceClaim{{Name: "kerf", ResourceClaimName: &own}, {Name: "kerf-2", ResourceClaimName: &own}}
	pod.Spec.Containers[0].Resources.Claims = []corev1.ResourceClaim{{Name: "kerf", Request: "nic"}}
	pod.Spec.SchedulerName = "hami-scheduler"
	c, err := Convert(pod, have())
	if err != nil {
		t.Fatal(err)
	}
	after := patched(t, pod, c.Patch)
	want := []corev1.PodResourceClaim{{Name: "kerf", ResourceClaimName: &own}, {Name: "kerf-2", ResourceClaimName: &own}, {Name: "kerf-3", ResourceClaimTemplateName: &c.Template.Name}}
	if diff := cmp.Diff(want, after.Spec.ResourceClaims); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]corev1.ResourceClaim{{Name: "kerf", Request: "nic"}, {Name: "kerf-3", Request: "gpu-0"}}, after.Spec.Containers[0].Resources.Claims); diff != "" {
		t.Error(diff)
	}
	if cpu := after.Spec.Containers[0].Resources.Limits["cpu"]; cpu.String() != "4" {
		t.Errorf("cpu %s", cpu.String())
	}
	if after.Spec.SchedulerName != "default-scheduler" {
		t.Errorf("scheduler %s", after.Spec.SchedulerName)
	}
}

func TestWarnings(t *testing.T) {
	pod := podOf("main: gpu=1 gpumem=1000 gpumem-percentage=50 priority=1")
	pod.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "CUDA_DISABLE_CONTROL", Value: "true"}, {Name: "CUDA_DEVICE_MEMORY_LIMIT_0"}, {Name: "CUDA_VISIBLE_DEVICES"}}
	pod.Spec.SchedulerName = "hami-scheduler"
	pod.Annotations = map[string]string{"hami.io/gpu-scheduler-policy": "spread", "hami.io/vgpu-devices-to-allocate": "GPU-0:all"}
	c, err := Convert(pod, have())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"nvidia.com/priority is not taken over", "nvidia.com/gpumem-percentage has no effect beside", "CUDA_DISABLE_CONTROL is HAMi's",
		"CUDA_DEVICE_MEMORY_LIMIT_0 is HAMi's", "schedulerName hami-scheduler is replaced", "hami.io/gpu-scheduler-policy has no effect"} {
		if !slices.ContainsFunc(c.Warnings, func(w string) bool { return strings.Contains(w, want) }) {
			t.Errorf("nothing warns of %q", want)
		}
	}
	if len(c.Warnings) != 6 {
		t.Errorf("%d warnings: %q", len(c.Warnings), c.Warnings)
	}
}

// Equal requests have one template, whatever the pods are called; others have another.
func TestTemplateName(t *testing.T) {
	name := func(change func(*corev1.Pod), containers ...string) string {
		pod := podOf(containers...)
		if change != nil {
			change(pod)
		}
		c, err := Convert(pod, have(80*node.GiB))
		if err != nil {
			t.Fatal(err)
		}
		return c.Template.Name
	}
	first := name(nil, "main: gpu=1 gpumem=8000")
	if len(first) != len("kerf-")+20 || !strings.HasPrefix(first, "kerf-") {
		t.Errorf("name %q", first)
	}
	if same := name(func(p *corev1.Pod) { p.GenerateName, p.Name = "", "other" }, "worker: gpumem=8000 cpu=1"); same != first {
		t.Errorf("the same request: %s and %s", first, same)
	}
	seen := map[string]string{first: "first"}
	for what, other := range map[string]string{
		"memory": name(nil, "main: gpu=1 gpumem=8001"), "count": name(nil, "main: gpu=2 gpumem=8000"), "cores": name(nil, "main: gpu=1 gpumem=8000 gpucores=1"),
		"percent": name(nil, "main: gpu=1 gpumem-percentage=10"), "containers": name(nil, "a: gpu=1 gpumem=8000", "b: gpu=1 gpumem=8000"),
		"types": name(func(p *corev1.Pod) { p.Annotations = map[string]string{annotationTypes: "A100"} }, "main: gpu=1 gpumem=8000"),
	} {
		if twin, ok := seen[other]; ok {
			t.Errorf("%s: the name of %s", what, twin)
		}
		seen[other] = what
	}
}

const uuidA, uuidB = "GPU-01234567-89ab-cdef-0123-456789abcdef", "GPU-ffffffff-89ab-cdef-0123-456789abcdef"

// The selectors are evaluated as the scheduler does, on cards of ours and on another driver's device, which has none of the attributes.
func TestSelectors(t *testing.T) {
	for _, tt := range []struct {
		annotation, value string
		want              string // of A100, H200, lost (no attributes), other driver
	}{
		{annotationTypes, "A100", "A"},
		{annotationTypes, "a100,h200", "AH"},
		{annotationTypes, "NVIDIA", "AH"},
		{annotationTypes, "NVIDIA-NVIDIA A100-SXM4-40GB", "A"},
		{annotationTypes, "V100", ""},
		{annotationTypes, ".*", "error"},
		{annotationNotTypes, "A100", "HL"},
		{annotationNotTypes, "A100, H200", "L"},
		{annotationUUIDs, uuidA, "A"},
		{annotationUUIDs, strings.ToUpper(uuidA), "A"},
		{annotationUUIDs, uuidA + "," + uuidB, "AH"},
		{annotationNotUUIDs, uuidA, "HL"},
	} {
		chosen, err := readChoice(map[string]string{tt.annotation: tt.value})
		if err != nil {
			if tt.want != "error" {
				t.Errorf("%s %s: %v", tt.annotation, tt.value, err)
			}
			continue
		}
		if got := matching(t, chosen.selectors); got != tt.want {
			t.Errorf("%s %s: %s, want %s\n%s", tt.annotation, tt.value, got, tt.want, chosen.selectors)
		}
	}
	c, err := Convert(podOf("main: gpumem-percentage=50"), have(40*node.GiB, 143771*node.MiB))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range c.Template.Spec.Spec.Devices.Requests[0].FirstAvailable {
		got = append(got, matching(t, []string{s.Selectors[0].CEL.Expression}))
	}
	if diff := cmp.Diff([]string{"A", "HL"}, got); diff != "" {
		t.Errorf("sizes: %s", diff)
	}
}

// matching evaluates selectors on four devices.
func matching(t testing.TB, expressions []string) (names string) {
	t.Helper()
	text := func(s string) resourceapi.DeviceAttribute { return resourceapi.DeviceAttribute{StringValue: &s} }
	memory := func(s string) map[resourceapi.QualifiedName]resourceapi.DeviceCapacity {
		return map[resourceapi.QualifiedName]resourceapi.DeviceCapacity{"memory": {Value: resource.MustParse(s)}}
	}
	devices := []struct {
		name   string
		device dracel.Device
	}{
		{"A", dracel.Device{Driver: driverName, Capacity: memory("40Gi"), Attributes: map[resourceapi.QualifiedName]resourceapi.DeviceAttribute{"productName": text("NVIDIA A100-SXM4-40GB"), "uuid": text(uuidA)}}},
		{"H", dracel.Device{Driver: driverName, Capacity: memory("143771Mi"), Attributes: map[resourceapi.QualifiedName]resourceapi.DeviceAttribute{"productName": text("NVIDIA H200"), "uuid": text(uuidB)}}},
		{"L", dracel.Device{Driver: driverName, Capacity: memory("143771Mi")}},
		{"O", dracel.Device{Driver: "nic.example.com"}},
	}
	for _, d := range devices {
		all := true
		for _, expression := range expressions {
			compiled := dracel.GetCompiler(dracel.Features{EnableConsumableCapacity: true}).CompileCELExpression(expression, dracel.Options{})
			if compiled.Error != nil {
				t.Fatalf("%s: %v", expression, compiled.Error)
			}
			if compiled.MaxCost > resourceapi.CELSelectorExpressionMaxCost || len(expression) > resourceapi.CELSelectorExpressionMaxLength {
				t.Fatalf("%s: cost %d, %d bytes: the API server refuses it", expression, compiled.MaxCost, len(expression))
			}
			match, _, err := compiled.DeviceMatches(context.Background(), d.device)
			if err != nil {
				t.Fatalf("%s: %s on %s: the whole scheduling attempt would end", expression, err, d.name)
			}
			all = all && match
		}
		if all {
			names += d.name
		}
	}
	return names
}

func TestSameNUMA(t *testing.T) {
	pod := podOf("main: gpu=2")
	pod.Annotations = map[string]string{annotationNUMA: "true"}
	c, err := Convert(pod, have())
	if err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Join(describe(c.Template), "; "), "gpu-0 2×gpu; distinct gpu.kerf.dev/uuid of gpu-0; same resource.kubernetes.io/numaNode of gpu-0"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func FuzzConvert(f *testing.F) {
	f.Add("1", "8000", "", "30", "", "A100", uuidA, "true", false)
	f.Add("16", "", "50", "0", "1", "A100,H100", "", "", true)
	f.Add("-1", "1e300", "101", "16Gi", "x", "\"||true", "GPU-", "yes", false)
	f.Fuzz(func(t *testing.T, gpu, memory, percent, cores, priority, types, uuids, numa string, early bool) {
		c := corev1.Container{Name: "main", Resources: corev1.ResourceRequirements{Limits: corev1.ResourceList{}}}
		for name, value := range map[corev1.ResourceName]string{resourceGPU: gpu, resourceMemory: memory, resourcePercent: percent, resourceCores: cores, resourcePrio: priority} {
			if q, err := resource.ParseQuantity(value); err == nil {
				c.Resources.Limits[name] = q
			}
		}
		pod := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{c}}}
		if early {
			pod.Spec.InitContainers = []corev1.Container{c}
		}
		pod.Annotations = map[string]string{annotationTypes: types, annotationUUIDs: uuids, annotationNUMA: numa}
		conversion, err := Convert(pod, have(40*node.GiB, 80*node.GiB))
		if err != nil {
			if conversion.Template != nil || conversion.Patch != nil {
				t.Fatal("refused, and converted")
			}
			return
		}
		if conversion.Template == nil {
			return
		}
		results := int64(0)
		for _, r := range conversion.Template.Spec.Spec.Devices.Requests {
			if r.Exactly != nil {
				results += r.Exactly.Count
			}
		}
		if results > maxResults {
			t.Fatalf("%d results", results)
		}
		patched(&testing.T{}, pod, conversion.Patch)
	})
}

func FuzzChoice(f *testing.F) {
	f.Add("A100, h200", uuidA)
	f.Add(`") || true || ("`, "GPU-")
	f.Add("A(100)+/x", uuidB+","+uuidA)
	f.Fuzz(func(t *testing.T, types, uuids string) {
		chosen, err := readChoice(map[string]string{annotationTypes: types, annotationNotUUIDs: uuids})
		if err != nil {
			return
		}
		if names := matching(t, chosen.selectors); strings.Contains(names, "O") {
			t.Fatalf("another driver's device was selected by %s", chosen.selectors)
		}
	})
}
