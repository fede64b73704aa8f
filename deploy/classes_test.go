package deploy

import (
	"slices"
	"strings"
	"testing"

	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/dynamic-resource-allocation/cel"

	dra "github.com/kerf-gpu/kerf/dra-driver"
)

// card is a device as dra-driver publishes it, as far as classes look.
func card(kind, mode, product string) cel.Device {
	text := func(s string) resourceapi.DeviceAttribute { return resourceapi.DeviceAttribute{StringValue: &s} }
	return cel.Device{Driver: dra.DriverName, Attributes: map[resourceapi.QualifiedName]resourceapi.DeviceAttribute{
		"type": text(kind), "mode": text(mode), "productName": text(product),
	}}
}

// TestClasses asks each class about each kind of device. A device without attributes, of this or of another driver, must get an
// answer: an error ends the whole scheduling attempt.
func TestClasses(t *testing.T) {
	devices := map[string]cel.Device{
		"A100":            card("gpu", "vgpu", "NVIDIA A100-SXM4-80GB"),
		"exclusive A6000": card("gpu", "exclusive", "NVIDIA RTX A6000 (simulated)"),
		"over H200":       card("gpu", "overcommit", "NVIDIA H200"),
		"MIG H200":        card("mig", "mig", "NVIDIA H200"),
		"bare":            {Driver: dra.DriverName},
		"foreign":         {Driver: "gpu.example.com", Attributes: card("gpu", "vgpu", "NVIDIA A100").Attributes},
	}
	want := map[string][]string{
		"gpu":            {"A100", "exclusive A6000"},
		"gpu-shared":     {"A100"},
		"gpu-overcommit": {"over H200"},
		"gpu-mig":        {"MIG H200"},
		"gpu-a100":       {"A100"},
		"gpu-a6000":      {"exclusive A6000"},
		"gpu-h100":       nil,
		"gpu-h200":       nil,
		"gpu-l40s":       nil,
	}
	classes := only[*resourceapi.DeviceClass](read(t, manifests[0]))
	if len(classes) != len(want) {
		t.Errorf("%d classes, want %d", len(classes), len(want))
	}
	for _, class := range classes {
		expression := strings.TrimSpace(class.Spec.Selectors[0].CEL.Expression)
		if !strings.HasPrefix(expression, `device.driver == "`+dra.DriverName+`" && `) {
			t.Errorf("class %s: the driver does not come first in %s", class.Name, expression)
		}
		compiled := cel.GetCompiler(cel.Features{}).CompileCELExpression(expression, cel.Options{})
		if compiled.Error != nil {
			t.Errorf("class %s: %v", class.Name, compiled.Error)
			continue
		}
		for name, device := range devices {
			got, _, err := compiled.DeviceMatches(t.Context(), device)
			if err != nil || got != slices.Contains(want[class.Name], name) {
				t.Errorf("class %s and device %s: %v, %v", class.Name, name, got, err)
			}
		}
	}
}
