package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"

	admissionv1 "k8s.io/api/admission/v1"
	resourceapi "k8s.io/api/resource/v1"

	"github.com/kerf-gpu/kerf/dra-driver"
)

// configs is all of a claim, a template or a class that this webhook looks at. The three have the list in different places.
type configs struct {
	Spec struct {
		Config  []config `json:"config"` // DeviceClass
		Devices struct {
			Config []config `json:"config"` // ResourceClaim
		} `json:"devices"`
		Spec struct {
			Devices struct {
				Config []config `json:"config"` // ResourceClaimTemplate
			} `json:"devices"`
		} `json:"spec"`
	} `json:"spec"`
}

type config struct {
	Opaque *struct {
		Driver     string          `json:"driver"`
		Parameters json.RawMessage `json:"parameters"`
	} `json:"opaque"`
}

// configOf has the list of each resource, and its path for messages.
var configOf = map[string]struct {
	path string
	list func(configs) []config
}{
	"deviceclasses":          {"spec.config", func(c configs) []config { return c.Spec.Config }},
	"resourceclaims":         {"spec.devices.config", func(c configs) []config { return c.Spec.Devices.Config }},
	"resourceclaimtemplates": {"spec.spec.devices.config", func(c configs) []config { return c.Spec.Spec.Devices.Config }},
}

// validateConfigs reads every ShareConfig as the driver will. On an update, what was there before is let through: an object that is
// bad already must still be labelled, finalized and removed.
func validateConfigs(_ *http.Request, request *admissionv1.AdmissionRequest) (*admissionv1.AdmissionResponse, error) {
	where, ok := configOf[request.Resource.Resource]
	if !ok || request.Resource.Group != resourceapi.GroupName || request.SubResource != "" || len(request.Object.Raw) == 0 {
		return allowed(), nil
	}
	var now, before configs
	if err := json.Unmarshal(request.Object.Raw, &now); err != nil {
		return nil, fmt.Errorf("%s: %w", request.Resource.Resource, err)
	}
	if len(request.OldObject.Raw) > 0 {
		if err := json.Unmarshal(request.OldObject.Raw, &before); err != nil {
			return nil, fmt.Errorf("old %s: %w", request.Resource.Resource, err)
		}
	}
	for i, c := range where.list(now) {
		if c.Opaque == nil || c.Opaque.Driver != driverName || contains(where.list(before), c) {
			continue
		}
		if _, err := dra.DecodeConfig(c.Opaque.Parameters); err != nil {
			return refused(fmt.Errorf("%s[%d].opaque.parameters: %w", where.path, i, err)), nil
		}
	}
	return allowed(), nil
}

func contains(list []config, c config) bool {
	for _, old := range list {
		if old.Opaque != nil && old.Opaque.Driver == c.Opaque.Driver && bytes.Equal(old.Opaque.Parameters, c.Opaque.Parameters) {
			return true
		}
	}
	return false
}
