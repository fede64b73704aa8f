package dra

import (
	"context"
	"strings"
	"testing"

	celgo "github.com/google/cel-go/cel"
	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/admission/plugin/cel"
	apiservercel "k8s.io/apiserver/pkg/apis/cel"
	"k8s.io/apiserver/pkg/cel/environment"
)

// The API server's own names for what it compiles; its package policy/validating would bring in its whole tracing.
func (v Variable) GetExpression() string    { return v.Expression }
func (v Variable) GetName() string          { return v.Name }
func (Variable) ReturnTypes() []*celgo.Type { return []*celgo.Type{celgo.AnyType, celgo.DynType} }

func (v Validation) GetExpression() string    { return v.Expression }
func (Validation) ReturnTypes() []*celgo.Type { return []*celgo.Type{celgo.BoolType} }

// evaluator compiles the policy as the API server does.
func evaluator(t *testing.T) cel.ConditionEvaluator {
	t.Helper()
	compiler, err := cel.NewCompositedCompiler(environment.MustBaseEnvSet(environment.DefaultCompatibilityVersion()))
	if err != nil {
		t.Fatal(err)
	}
	policy := AdmissionPolicy()
	for _, v := range policy.Variables {
		result := compiler.CompileAndStoreVariable(v, cel.OptionalVariableDeclarations{}, environment.StoredExpressions)
		if result.Error != nil {
			t.Fatalf("variable %s: %v", v.Name, result.Error)
		}
	}
	var expressions []cel.ExpressionAccessor
	for _, v := range policy.Validations {
		expressions = append(expressions, v)
	}
	conditions := compiler.CompileCondition(expressions, cel.OptionalVariableDeclarations{}, environment.StoredExpressions)
	for _, err := range conditions.CompilationErrors() {
		t.Fatal(err)
	}
	return conditions
}

// refusals is what the policy says of an object, in both forms that API servers give to CEL; empty: it is admitted.
func refusals(t *testing.T, conditions cel.ConditionEvaluator, object runtime.Object, kind string) string {
	t.Helper()
	var messages []string
	gvk := resourceapi.SchemeGroupVersion.WithKind(kind)
	object.GetObjectKind().SetGroupVersionKind(gvk)
	resource := resourceapi.SchemeGroupVersion.WithResource(strings.ToLower(kind) + "s")
	attributes := admission.NewAttributesRecord(object, nil, gvk, "default", "it", resource, "", admission.Create, &metav1.CreateOptions{}, false, nil)
	request := cel.CreateAdmissionRequest(attributes, metav1.GroupVersionResource(resource), metav1.GroupVersionKind(gvk))
	for _, typed := range []bool{false, true} {
		versioned := &admission.VersionedAttributes{Attributes: attributes, VersionedKind: gvk, VersionedObject: admission.NewLazyObject(object)}
		versioned.VersionedObject.UseSchemalessTypeRef = typed //nolint:staticcheck // what 1.37 does
		results, _, err := conditions.ForInput(context.Background(), versioned, request, cel.OptionalVariableBindings{}, nil, apiservercel.RuntimeCELCostBudget)
		if err != nil {
			t.Fatal(err)
		}
		said := ""
		for _, r := range results {
			switch {
			case r.Error != nil:
				t.Errorf("the expression cannot be evaluated: %v", r.Error)
			case r.EvalResult.Value() != true:
				said += r.ExpressionAccessor.(Validation).Message + "\n"
			}
		}
		messages = append(messages, said)
	}
	if messages[0] != messages[1] {
		t.Errorf("as an unstructured object %q, as a typed one %q", messages[0], messages[1])
	}
	return messages[0]
}

// objects are the three objects that hold configurations.
func objects(text, driver string) map[string]runtime.Object {
	config := resourceapi.DeviceConfiguration{Opaque: &resourceapi.OpaqueDeviceConfiguration{Driver: driver, Parameters: runtime.RawExtension{Raw: []byte(text)}}}
	devices := resourceapi.DeviceClaim{Config: []resourceapi.DeviceClaimConfiguration{{DeviceConfiguration: config}}}
	return map[string]runtime.Object{
		"ResourceClaim":         &resourceapi.ResourceClaim{Spec: resourceapi.ResourceClaimSpec{Devices: devices}},
		"ResourceClaimTemplate": &resourceapi.ResourceClaimTemplate{Spec: resourceapi.ResourceClaimTemplateSpec{Spec: resourceapi.ResourceClaimSpec{Devices: devices}}},
		"DeviceClass":           &resourceapi.DeviceClass{Spec: resourceapi.DeviceClassSpec{Config: []resourceapi.DeviceClassConfiguration{{DeviceConfiguration: config}}}},
	}
}

// The policy and the decoder have one verdict on every configuration, wherever it stands.
func TestPolicyAgreesWithDecoder(t *testing.T) {
	conditions := evaluator(t)
	for _, tt := range configs {
		if tt.unseen {
			continue
		}
		for kind, object := range objects(tt.text, DriverName) {
			messages := refusals(t, conditions, object, kind)
			if refused := messages != ""; refused != (tt.err != "") {
				t.Errorf("%s in a %s: refused %v (%s), the decoder says %q", tt.name, kind, refused, messages, tt.err)
			}
		}
	}
}

func TestPolicyLeavesOthersAlone(t *testing.T) {
	conditions := evaluator(t)
	for kind, object := range objects(`{"anything":[null]}`, "gpu.example.com") {
		if messages := refusals(t, conditions, object, kind); messages != "" {
			t.Errorf("%s: %v", kind, messages)
		}
	}
	for kind, object := range map[string]runtime.Object{
		"ResourceClaim": &resourceapi.ResourceClaim{}, "ResourceClaimTemplate": &resourceapi.ResourceClaimTemplate{}, "DeviceClass": &resourceapi.DeviceClass{},
	} {
		if messages := refusals(t, conditions, object, kind); messages != "" {
			t.Errorf("empty %s: %v", kind, messages)
		}
	}
}

// A claim may have 32 configurations: the most that is asked of the API server stays within its budget.
func TestPolicyIsCheap(t *testing.T) {
	conditions := evaluator(t)
	claim := &resourceapi.ResourceClaim{}
	for range 32 {
		claim.Spec.Devices.Config = append(claim.Spec.Devices.Config, objects(configs[1].text, DriverName)["ResourceClaim"].(*resourceapi.ResourceClaim).Spec.Devices.Config...)
	}
	if messages := refusals(t, conditions, claim, "ResourceClaim"); messages != "" {
		t.Error(messages)
	}
}

func TestPolicyFitsTheAPI(t *testing.T) {
	for _, v := range AdmissionPolicy().Validations {
		if !strings.HasPrefix(v.Message, "ShareConfig: ") || strings.ContainsAny(v.Message, "\n") || len(v.Message) > 250 {
			t.Errorf("message %q", v.Message)
		}
	}
}
