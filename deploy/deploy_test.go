package deploy

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	admission "k8s.io/api/admissionregistration/v1"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	rbac "k8s.io/api/rbac/v1"
	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"

	dra "github.com/kerf-gpu/kerf/dra-driver"
)

var (
	manifests = []string{"manifests/kerf.yaml", "manifests/kerf-simulated.yaml"}
	// Groups that Kubernetes itself does not serve, in the examples that say so.
	foreign = regexp.MustCompile(`(?m)^apiVersion: kueue\.x-k8s\.io/`)
)

// read decodes every object of a file as strictly as `kubectl apply --validate=strict`: a field that is misspelt is an error.
func read(t *testing.T, file string) (objects []runtime.Object) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	decoder := serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict).UniversalDeserializer()
	for documents := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text))); ; {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return objects
		}
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if foreign.Match(document) || !bytes.Contains(document, []byte("kind:")) {
			continue
		}
		object, _, err := decoder.Decode(document, nil, nil)
		if err != nil {
			t.Errorf("%s: %v in\n%s", file, err, document)
			continue
		}
		objects = append(objects, object)
	}
}

func examples(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("examples/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no examples (%v)", err)
	}
	return files
}

// only picks the objects of one kind.
func only[T runtime.Object](objects []runtime.Object) (found []T) {
	for _, object := range objects {
		if o, ok := object.(T); ok {
			found = append(found, o)
		}
	}
	return found
}

// devices is what a claim of either kind asks for.
func devices(object runtime.Object) (string, *resourceapi.DeviceClaim) {
	switch o := object.(type) {
	case *resourceapi.ResourceClaim:
		return o.Name, &o.Spec.Devices
	case *resourceapi.ResourceClaimTemplate:
		return o.Name, &o.Spec.Spec.Devices
	}
	return "", nil
}

func TestExamples(t *testing.T) {
	classes := map[string]bool{"nic": true} // of a later version; its example says so
	for _, class := range only[*resourceapi.DeviceClass](read(t, manifests[0])) {
		classes[class.Name] = true
	}
	for _, file := range examples(t) {
		t.Run(filepath.Base(file), func(t *testing.T) {
			objects := read(t, file)
			claims := map[string]bool{}
			for _, object := range objects {
				name, claim := devices(object)
				if claim == nil {
					continue
				}
				claims[name] = true
				for _, class := range classesOf(claim) {
					if !classes[class] {
						t.Errorf("%s asks for class %q, which the chart does not have", name, class)
					}
				}
				for _, config := range claim.Config {
					if _, err := dra.DecodeConfig(config.Opaque.Parameters.Raw); err != nil || config.Opaque.Driver != dra.DriverName {
						t.Errorf("%s: configuration for %s: %v", name, config.Opaque.Driver, err)
					}
				}
			}
			for _, pod := range only[*core.Pod](objects) {
				for _, use := range pod.Spec.ResourceClaims {
					if name := deref(use.ResourceClaimName) + deref(use.ResourceClaimTemplateName); !claims[name] {
						t.Errorf("pod %s uses claim %q, which the file does not have", pod.Name, name)
					}
				}
			}
		})
	}
}

func classesOf(claim *resourceapi.DeviceClaim) (names []string) {
	for _, request := range claim.Requests {
		if request.Exactly != nil {
			names = append(names, request.Exactly.DeviceClassName)
		}
		for _, sub := range request.FirstAvailable {
			names = append(names, sub.DeviceClassName)
		}
	}
	return names
}

// A reader decides by the first lines whether an example is for them; e2e by the last of them where it runs.
func TestExamplesSayWhatTheyAre(t *testing.T) {
	for _, file := range examples(t) {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		head, _, _ := strings.Cut(string(text), "\napiVersion:")
		for _, want := range []string{"# ", "\n# Needs: ", "\n# Look:  ", "\n# Simulated: "} {
			if !strings.Contains(head, want) {
				t.Errorf("%s: its head has no %q", file, strings.TrimSpace(want))
			}
		}
		profiles := regexp.MustCompile(`\n# Simulated: (.*)`).FindStringSubmatch(head)
		if profiles == nil || strings.HasPrefix(profiles[1], "no, ") {
			continue
		}
		names, _, _ := strings.Cut(profiles[1], " with ")
		for name := range strings.SplitSeq(names, ", ") {
			if _, err := os.Stat("../internal/sim/profiles/" + name + ".yaml"); errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: no simulated profile %q", file, name)
			}
		}
	}
}

func TestPoliciesAreBound(t *testing.T) {
	for _, file := range manifests {
		objects := read(t, file)
		bound := map[string]bool{}
		for _, b := range only[*admission.ValidatingAdmissionPolicyBinding](objects) {
			bound[b.Spec.PolicyName] = slices.Contains(b.Spec.ValidationActions, admission.Deny)
		}
		policies := only[*admission.ValidatingAdmissionPolicy](objects)
		if len(policies) < 3 {
			t.Errorf("%s: %d policies", file, len(policies))
		}
		for _, p := range policies {
			if !bound[p.Name] {
				t.Errorf("%s: policy %s is not bound, so it does nothing", file, p.Name)
			}
		}
	}
}

// TestRightsAreNamed: no rule may say "all", and kerfd may read nothing of anybody's secrets.
func TestRightsAreNamed(t *testing.T) {
	for _, file := range manifests {
		for _, role := range only[*rbac.ClusterRole](read(t, file)) {
			for _, rule := range role.Rules {
				if slices.Contains(slices.Concat(rule.Verbs, rule.Resources, rule.APIGroups), "*") || slices.Contains(rule.Resources, "secrets") {
					t.Errorf("%s: cluster role %s: %v: name what is needed; secrets only by a role of the namespace", file, role.Name, rule)
				}
			}
		}
	}
}

func TestPrivileges(t *testing.T) {
	for _, tt := range []struct {
		file       string
		privileged bool
	}{{manifests[0], true}, {manifests[1], false}} {
		objects := read(t, tt.file)
		for _, set := range only[*apps.DaemonSet](objects) {
			security := set.Spec.Template.Spec.Containers[0].SecurityContext
			if got := security.Privileged != nil && *security.Privileged; got != tt.privileged {
				t.Errorf("%s: privileged is %v, want %v", tt.file, got, tt.privileged)
			}
			if !tt.privileged && !slices.Contains(security.Capabilities.Drop, "ALL") {
				t.Errorf("%s: capabilities %v", tt.file, security.Capabilities)
			}
			if !*security.ReadOnlyRootFilesystem {
				t.Errorf("%s: its root file system can be written", tt.file)
			}
			checkMounts(t, set.Spec.Template.Spec)
		}
		for _, deployment := range only[*apps.Deployment](objects) {
			security := deployment.Spec.Template.Spec.Containers[0].SecurityContext
			if *security.AllowPrivilegeEscalation || !slices.Contains(security.Capabilities.Drop, "ALL") || !*security.ReadOnlyRootFilesystem {
				t.Errorf("%s: %s has more rights than it needs: %+v", tt.file, deployment.Name, security)
			}
		}
	}
}

// checkMounts: what kerfd writes into CDI specs are paths of the node, so it must see each directory where the node has it.
func checkMounts(t *testing.T, pod core.PodSpec) {
	t.Helper()
	host := map[string]string{}
	for _, volume := range pod.Volumes {
		if volume.HostPath != nil {
			host[volume.Name] = volume.HostPath.Path
		}
	}
	for _, mount := range pod.Containers[0].VolumeMounts {
		path, isHost := host[mount.Name]
		switch {
		case isHost && mount.Name != "driver-root" && mount.MountPath != path:
			t.Errorf("volume %s is %s on the node and %s in kerfd", mount.Name, path, mount.MountPath)
		case mount.Name == "driver-root" && !mount.ReadOnly:
			t.Error("the driver's root can be written")
		}
		delete(host, mount.Name)
	}
	if len(host) > 0 {
		t.Errorf("volumes without a use: %v", host)
	}
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
