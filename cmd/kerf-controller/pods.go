package main

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/kerf-gpu/kerf/internal/node"
)

// podWebhook converts pods and makes the templates that they need.
type podWebhook struct {
	client kubernetes.Interface
	sizes  *sizes
	now    func() time.Time
	log    *slog.Logger
}

func (p *podWebhook) handle(r *http.Request, request *admissionv1.AdmissionRequest) (*admissionv1.AdmissionResponse, error) {
	if request.Operation != admissionv1.Create || request.Resource.Group != "" || request.Resource.Resource != "pods" || request.SubResource != "" {
		return allowed(), nil // resources and claims of a pod are fixed once it is there
	}
	var pod corev1.Pod
	if err := json.Unmarshal(request.Object.Raw, &pod); err != nil {
		return nil, fmt.Errorf("pod: %w", err)
	}
	conversion, err := Convert(&pod, Options{Sizes: func() ([]node.Bytes, error) { return p.sizes.get(r.Context()) }})
	if err != nil {
		return refused(fmt.Errorf("kerf: %w", err)), nil
	}
	dryRun := request.DryRun != nil && *request.DryRun
	if conversion.Template != nil && !dryRun {
		if err := ensureTemplate(r.Context(), p.client, request.Namespace, conversion.Template, p.now()); err != nil {
			return refused(fmt.Errorf("kerf: make the pod's ResourceClaimTemplate: %w", err)), nil
		}
		p.log.Debug("pod converted", "namespace", request.Namespace, "pod", pod.Name+pod.GenerateName, "template", conversion.Template.Name)
	}
	response := allowed(conversion.Warnings...)
	if len(conversion.Patch) == 0 {
		return response, nil
	}
	if response.Patch, err = json.Marshal(conversion.Patch); err != nil {
		return nil, fmt.Errorf("write patch: %w", err)
	}
	patchType := admissionv1.PatchTypeJSONPatch
	response.PatchType = &patchType
	return response, nil
}
