package e2e

import (
	"cmp"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// Images that are on the node.
const (
	tenantsImage = "kerf.dev/kerf-tenants:local"
	busyboxImage = "kerf.dev/busybox:local" // one static program: no C library
)

// driverName is ours.
const driverName = "gpu.kerf.dev"

// want is one request of a claim. Amounts are left out where empty.
type want struct {
	class                  string
	memory, cores, tenants string
	selector               string // CEL
	config                 string // JSON of the opaque configuration
	driver                 string // whose it is; empty: the GPUs'
	count                  int64
	admin                  bool
}

// shared asks for a slice.
func shared(memory, cores string) want {
	return want{class: "gpu-shared", memory: memory, cores: cores}
}

// on narrows a request to one card.
func (w want) on(device string) want {
	w.selector = fmt.Sprintf(`device.attributes["%s"].?uuid.orValue("") == "%s"`, driverName, device)
	return w
}

// with gives a request a ShareConfig of these fields, as JSON.
func (w want) with(fields string) want {
	w.config = `{"apiVersion":"gpu.kerf.dev/v1alpha1","kind":"ShareConfig"` + fields + `}`
	return w
}

// claimOf makes a claim of requests r0, r1, ….
func claimOf(wants ...want) (spec resourceapi.ResourceClaimSpec) {
	for i, w := range wants {
		name := fmt.Sprintf("r%d", i)
		exact := &resourceapi.ExactDeviceRequest{DeviceClassName: w.class, Count: w.count}
		if w.selector != "" {
			exact.Selectors = []resourceapi.DeviceSelector{{CEL: &resourceapi.CELDeviceSelector{Expression: w.selector}}}
		}
		if w.admin {
			exact.AdminAccess = &w.admin
		}
		amounts := map[resourceapi.QualifiedName]apiresource.Quantity{}
		for name, text := range map[resourceapi.QualifiedName]string{"memory": w.memory, "cores": w.cores, "tenants": w.tenants} {
			if text != "" {
				amounts[name] = apiresource.MustParse(text)
			}
		}
		if len(amounts) > 0 {
			exact.Capacity = &resourceapi.CapacityRequirements{Requests: amounts}
		}
		spec.Devices.Requests = append(spec.Devices.Requests, resourceapi.DeviceRequest{Name: name, Exactly: exact})
		if w.config != "" {
			spec.Devices.Config = append(spec.Devices.Config, resourceapi.DeviceClaimConfiguration{
				Requests: []string{name},
				DeviceConfiguration: resourceapi.DeviceConfiguration{Opaque: &resourceapi.OpaqueDeviceConfiguration{
					Driver: cmp.Or(w.driver, driverName), Parameters: runtime.RawExtension{Raw: []byte(w.config)},
				}},
			})
		}
	}
	return spec
}

// template makes a ResourceClaimTemplate; its error is the API server's, or a policy's.
func (s *scene) template(name string, wants ...want) error {
	t := &resourceapi.ResourceClaimTemplate{
		ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: resourceapi.ResourceClaimTemplateSpec{Spec: claimOf(wants...)},
	}
	_, err := s.client.ResourceV1().ResourceClaimTemplates(s.ns).Create(s.Context(), t, metav1.CreateOptions{})
	return err
}

// claim makes a ResourceClaim that pods share by its name.
func (s *scene) claim(name string, wants ...want) *resourceapi.ResourceClaim {
	s.Helper()
	c := &resourceapi.ResourceClaim{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: claimOf(wants...)}
	made, err := s.client.ResourceV1().ResourceClaims(s.ns).Create(s.Context(), c, metav1.CreateOptions{})
	if err != nil {
		s.Fatalf("create claim %s: %v", name, err)
	}
	return made
}

// podOption changes a pod that is being made.
type podOption func(*corev1.Pod)

// newPod is a pod of one container, which runs once.
func newPod(name string, command []string, options ...podOption) *corev1.Pod {
	second := int64(1)
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PodSpec{
			RestartPolicy: corev1.RestartPolicyNever, TerminationGracePeriodSeconds: &second,
			Containers: []corev1.Container{container("main", command)},
		},
	}
	for _, option := range options {
		option(p)
	}
	return p
}

func container(name string, command []string) corev1.Container {
	return corev1.Container{Name: name, Image: tenantsImage, ImagePullPolicy: corev1.PullNever, Command: command}
}

// also adds a container, and before one that runs first. They come before the claims, which all containers get.
func also(name string, command ...string) podOption {
	return func(p *corev1.Pod) { p.Spec.Containers = append(p.Spec.Containers, container(name, command)) }
}

func before(name string, command ...string) podOption {
	return func(p *corev1.Pod) { p.Spec.InitContainers = append(p.Spec.InitContainers, container(name, command)) }
}

func image(name string) podOption {
	return func(p *corev1.Pod) { p.Spec.Containers[0].Image = name }
}

func restarts(policy corev1.RestartPolicy) podOption {
	return func(p *corev1.Pod) { p.Spec.RestartPolicy = policy }
}

// limits asks for plain resources.
func limits(amounts map[corev1.ResourceName]string) podOption {
	return func(p *corev1.Pod) {
		list := corev1.ResourceList{}
		for name, text := range amounts {
			list[name] = apiresource.MustParse(text)
		}
		p.Spec.Containers[0].Resources.Limits = list
	}
}

// fromTemplate gives all containers a claim of their pod's own; fromClaim one that others may have too.
func fromTemplate(name string) podOption {
	return uses(corev1.PodResourceClaim{Name: name, ResourceClaimTemplateName: &name})
}

func fromClaim(name string) podOption {
	return uses(corev1.PodResourceClaim{Name: name, ResourceClaimName: &name})
}

func uses(claim corev1.PodResourceClaim) podOption {
	return func(p *corev1.Pod) {
		p.Spec.ResourceClaims = append(p.Spec.ResourceClaims, claim)
		for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
			for i := range list {
				list[i].Resources.Claims = append(list[i].Resources.Claims, corev1.ResourceClaim{Name: claim.Name})
			}
		}
	}
}

// Programs that tenants run.
func look(args ...string) []string  { return append([]string{"look", "--json"}, args...) }
func train(args ...string) []string { return append([]string{"train", "--json"}, args...) }
func hog(args ...string) []string   { return append([]string{"hog", "--json"}, args...) }

// always is a look that works until it is stopped.
func always() []string { return look("--seconds", "100000") }

// lookAndStay holds no memory afterwards, and lives on whatever others in its share take.
func lookAndStay() []string { return []string{"/bin/sh", "-c", "look --json && sleep 100000"} }

// slice makes a pod with a slice of its own.
func (s *scene) slice(name string, w want, command []string, options ...podOption) *corev1.Pod {
	s.Helper()
	if err := s.template(name, w); err != nil {
		s.Fatalf("create template %s: %v", name, err)
	}
	return s.create(newPod(name, command, append(options, fromTemplate(name))...))
}
