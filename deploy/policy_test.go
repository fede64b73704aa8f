package deploy

import (
	"strings"
	"testing"

	celgo "github.com/google/cel-go/cel"
	registration "k8s.io/api/admissionregistration/v1"
	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/api/resource/v1alpha3"
	"k8s.io/api/resource/v1beta2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/admission/plugin/cel"
	apiservercel "k8s.io/apiserver/pkg/apis/cel"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/cel/environment"
)

// The API server's own names for what it compiles.
type variable registration.Variable

func (v variable) GetExpression() string    { return v.Expression }
func (v variable) GetName() string          { return v.Name }
func (variable) ReturnTypes() []*celgo.Type { return []*celgo.Type{celgo.AnyType, celgo.DynType} }

type validation registration.Validation

func (v validation) GetExpression() string    { return v.Expression }
func (validation) ReturnTypes() []*celgo.Type { return []*celgo.Type{celgo.BoolType} }

// policy compiles one that the manifests install, as the API server does.
func policy(t *testing.T, name string) cel.ConditionEvaluator {
	t.Helper()
	compiler, err := cel.NewCompositedCompiler(environment.MustBaseEnvSet(environment.DefaultCompatibilityVersion()))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range only[*registration.ValidatingAdmissionPolicy](read(t, manifests[0])) {
		if p.Name != name {
			continue
		}
		for _, v := range p.Spec.Variables {
			if result := compiler.CompileAndStoreVariable(variable(v), cel.OptionalVariableDeclarations{}, environment.StoredExpressions); result.Error != nil {
				t.Fatalf("variable %s: %v", v.Name, result.Error)
			}
		}
		var expressions []cel.ExpressionAccessor
		for _, v := range p.Spec.Validations {
			expressions = append(expressions, validation(v))
		}
		conditions := compiler.CompileCondition(expressions, cel.OptionalVariableDeclarations{}, environment.StoredExpressions)
		for _, err := range conditions.CompilationErrors() {
			t.Fatal(err)
		}
		return conditions
	}
	t.Fatalf("no policy %s in %s", name, manifests[0])
	return nil
}

// A claim on node a with GPUs of ours and of another driver; kerfd's token of node a changes its status.
func TestOwnStatuses(t *testing.T) {
	conditions := policy(t, "kerfd-own-statuses")
	claim := func() *resourceapi.ResourceClaim {
		result := func(driver, pool string) resourceapi.DeviceRequestAllocationResult {
			return resourceapi.DeviceRequestAllocationResult{Request: "r", Driver: driver, Pool: pool, Device: "gpu-1"}
		}
		return &resourceapi.ResourceClaim{
			ObjectMeta: metav1.ObjectMeta{Name: "c", Namespace: "n", Finalizers: []string{"resource.kubernetes.io/delete-protection"}},
			Status: resourceapi.ResourceClaimStatus{
				Allocation: &resourceapi.AllocationResult{Devices: resourceapi.DeviceAllocationResult{Results: []resourceapi.DeviceRequestAllocationResult{
					result("gpu.kerf.dev", "a"), result("nic.example.com", "a")}}},
				ReservedFor: []resourceapi.ResourceClaimConsumerReference{{Resource: "pods", Name: "p", UID: "u"}},
				Devices:     []resourceapi.AllocatedDeviceStatus{{Driver: "nic.example.com", Pool: "a", Device: "nic-1"}},
			},
		}
	}
	device := func(driver, pool string) func(*resourceapi.ResourceClaim) {
		return func(c *resourceapi.ResourceClaim) {
			c.Status.Devices = append(c.Status.Devices, resourceapi.AllocatedDeviceStatus{Driver: driver, Pool: pool, Device: "gpu-1"})
		}
	}
	for _, tt := range []struct {
		name   string
		before func(*resourceapi.ResourceClaim)
		change func(*resourceapi.ResourceClaim)
		node   string
		want   string // part of an expression that says no
	}{
		{"its devices", nil, device("gpu.kerf.dev", "a"), "a", ""},
		{"its devices, taken back", device("gpu.kerf.dev", "a"), func(c *resourceapi.ResourceClaim) { c.Status.Devices = c.Status.Devices[:1] }, "a", ""},
		{"the first status of all", func(c *resourceapi.ResourceClaim) { c.Status.Devices = nil }, device("gpu.kerf.dev", "a"), "a", ""},
		{"no node", nil, device("gpu.kerf.dev", "a"), "", `tokenNode != ""`},
		{"a claim of another node", nil, device("gpu.kerf.dev", "b"), "b", "results"},
		{"a claim that is not allocated", func(c *resourceapi.ResourceClaim) { c.Status = resourceapi.ResourceClaimStatus{} }, device("gpu.kerf.dev", "a"), "a", "results"},
		{"another pool", nil, device("gpu.kerf.dev", "b"), "a", "variables.others"},
		{"another driver's device", nil, device("nic.example.com", "a"), "a", "variables.others"},
		{"another driver's device, taken away", nil, func(c *resourceapi.ResourceClaim) { c.Status.Devices = nil }, "a", "variables.others"},
		{"the allocation", nil, func(c *resourceapi.ResourceClaim) { c.Status.Allocation.Devices.Results[1].Device = "nic-2" }, "a", "allocation =="},
		{"no allocation", nil, func(c *resourceapi.ResourceClaim) { c.Status.Allocation = nil }, "a", "allocation =="},
		{"who it is for", nil, func(c *resourceapi.ResourceClaim) { c.Status.ReservedFor[0].Name = "q" }, "a", "reservedFor =="},
		{"for nobody", nil, func(c *resourceapi.ResourceClaim) { c.Status.ReservedFor = nil }, "a", "reservedFor =="},
		{"finalizers", nil, func(c *resourceapi.ResourceClaim) { c.Finalizers = nil }, "a", "finalizers =="},
		{"labels", nil, func(c *resourceapi.ResourceClaim) { c.Labels = map[string]string{"a": "b"} }, "a", "labels =="},
	} {
		before := claim()
		if tt.before != nil {
			tt.before(before)
		}
		after := before.DeepCopy()
		tt.change(after)
		if got := noes(t, conditions, before, after, tt.node); (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
			t.Errorf("%s: refused by %q, want %q", tt.name, got, tt.want)
		}
	}
}

// noes are the expressions that refuse a change by kerfd.
func noes(t *testing.T, conditions cel.ConditionEvaluator, before, after *resourceapi.ResourceClaim, node string) string {
	t.Helper()
	gvk, resource := resourceapi.SchemeGroupVersion.WithKind("ResourceClaim"), resourceapi.SchemeGroupVersion.WithResource("resourceclaims")
	kerfd := &user.DefaultInfo{Name: "system:serviceaccount:kerf-system:kerfd"}
	if node != "" {
		kerfd.Extra = map[string][]string{"authentication.kubernetes.io/node-name": {node}}
	}
	return evaluate(t, conditions, admission.NewAttributesRecord(after, before, gvk, "n", "c", resource, "status", admission.Update, &metav1.UpdateOptions{}, false, kerfd))
}

// evaluate is the expressions that refuse a request, in both forms that API servers give to CEL.
func evaluate(t *testing.T, conditions cel.ConditionEvaluator, attributes admission.Attributes) string {
	t.Helper()
	gvk := attributes.GetKind()
	request := cel.CreateAdmissionRequest(attributes, metav1.GroupVersionResource(attributes.GetResource()), metav1.GroupVersionKind(gvk))
	var said [2]string
	for i, typed := range []bool{false, true} {
		versioned := &admission.VersionedAttributes{Attributes: attributes, VersionedKind: gvk, VersionedObject: admission.NewLazyObject(attributes.GetObject())}
		versioned.VersionedObject.UseSchemalessTypeRef = typed //nolint:staticcheck // what 1.37 does
		if before := attributes.GetOldObject(); before != nil {
			versioned.VersionedOldObject = admission.NewLazyObject(before)
			versioned.VersionedOldObject.UseSchemalessTypeRef = typed //nolint:staticcheck // as above
		}
		results, _, err := conditions.ForInput(t.Context(), versioned, request, cel.OptionalVariableBindings{}, nil, apiservercel.RuntimeCELCostBudget)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range results {
			switch {
			case r.Error != nil:
				t.Errorf("the expression cannot be evaluated: %v", r.Error)
			case r.EvalResult.Value() != true:
				said[i] += r.ExpressionAccessor.GetExpression() + "\n"
			}
		}
	}
	if said[0] != said[1] {
		t.Errorf("as an unstructured object %q, as a typed one %q", said[0], said[1])
	}
	return said[0]
}

// Of every version: a policy that names one says nothing where only others are served.
func TestTaintRules(t *testing.T) {
	const name = "kerf-device-taint-rules"
	for _, p := range only[*registration.ValidatingAdmissionPolicy](read(t, manifests[0])) {
		if rule := p.Spec.MatchConstraints.ResourceRules[0]; p.Name == name && (len(rule.APIVersions) != 1 || rule.APIVersions[0] != "*") {
			t.Errorf("versions %v", rule.APIVersions)
		}
	}
	conditions, text := policy(t, name), "x"
	for _, tt := range []struct {
		name    string
		rule    runtime.Object
		refused bool
	}{
		{"v1, everything", &resourceapi.DeviceTaintRule{Spec: resourceapi.DeviceTaintRuleSpec{DeviceSelector: &resourceapi.DeviceTaintSelector{}}}, true},
		{"v1, a driver", &resourceapi.DeviceTaintRule{Spec: resourceapi.DeviceTaintRuleSpec{DeviceSelector: &resourceapi.DeviceTaintSelector{Driver: &text}}}, false},
		{"v1, nothing", &resourceapi.DeviceTaintRule{}, false},
		{"v1beta2, everything", &v1beta2.DeviceTaintRule{Spec: v1beta2.DeviceTaintRuleSpec{DeviceSelector: &v1beta2.DeviceTaintSelector{}}}, true},
		{"v1alpha3, everything", &v1alpha3.DeviceTaintRule{Spec: v1alpha3.DeviceTaintRuleSpec{DeviceSelector: &v1alpha3.DeviceTaintSelector{}}}, true},
		{"v1alpha3, a pool", &v1alpha3.DeviceTaintRule{Spec: v1alpha3.DeviceTaintRuleSpec{DeviceSelector: &v1alpha3.DeviceTaintSelector{Pool: &text}}}, false},
		{"v1alpha3, a class", &unstructured.Unstructured{Object: map[string]any{"spec": map[string]any{
			"deviceSelector": map[string]any{"deviceClassName": text}, "taint": map[string]any{"effect": "NoExecute"}}}}, false},
	} {
		version, _, _ := strings.Cut(tt.name, ",")
		gv := schema.GroupVersion{Group: resourceapi.GroupName, Version: version}
		got := evaluate(t, conditions, admission.NewAttributesRecord(tt.rule, nil, gv.WithKind("DeviceTaintRule"), "", "r", gv.WithResource("devicetaintrules"), "",
			admission.Create, &metav1.CreateOptions{}, false, &user.DefaultInfo{Name: "admin"}))
		if (got != "") != tt.refused {
			t.Errorf("%s: refused by %q", tt.name, got)
		}
	}
}
