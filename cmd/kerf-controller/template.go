package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	typed "k8s.io/client-go/kubernetes/typed/resource/v1"
	"k8s.io/client-go/util/retry"
)

// Marks of templates that were made here.
const (
	labelGenerated    = "kerf.dev/generated"
	labelGeneratedAs  = "hami"
	annotationLastUse = "kerf.dev/last-use"
)

// useEvery is how old a last use may be before it is written again: a write for every pod would be as many as there are pods.
const useEvery = 15 * time.Minute

// newTemplate makes the template of a claim. Its name is its content's hash: pods that ask for the same share one, and a pod's name,
// which there may not be yet, is not needed.
func newTemplate(spec resourceapi.ResourceClaimSpec) (*resourceapi.ResourceClaimTemplate, error) {
	content, err := json.Marshal(spec)
	if err != nil {
		return nil, fmt.Errorf("write claim: %w", err)
	}
	hash := sha256.Sum256(content)
	return &resourceapi.ResourceClaimTemplate{
		ObjectMeta: metav1.ObjectMeta{
			Name:   "kerf-" + hex.EncodeToString(hash[:10]),
			Labels: map[string]string{labelGenerated: labelGeneratedAs},
		},
		Spec: resourceapi.ResourceClaimTemplateSpec{Spec: spec},
	}, nil
}

// ensureTemplate makes a template where there is none, and notes that it is used now. One with the same name and other content is
// somebody's mistake or mischief: it is refused, and never written over.
func ensureTemplate(ctx context.Context, client kubernetes.Interface, namespace string, template *resourceapi.ResourceClaimTemplate, now time.Time) error {
	templates := client.ResourceV1().ResourceClaimTemplates(namespace)
	return retry.OnError(retry.DefaultRetry, again, func() error {
		found, err := templates.Get(ctx, template.Name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			fresh := template.DeepCopy()
			fresh.Annotations = map[string]string{annotationLastUse: now.UTC().Format(time.RFC3339)}
			_, err = templates.Create(ctx, fresh, metav1.CreateOptions{})
			return err
		}
		if err != nil {
			return err
		}
		ours, err := made(ctx, templates, found, template)
		switch {
		case err != nil:
			return err
		case !ours:
			return fmt.Errorf("ResourceClaimTemplate %s/%s: there, but not as kerf-controller makes it; delete it, it will be made again", namespace, template.Name)
		case found.DeletionTimestamp != nil:
			return apierrors.NewConflict(resourceapi.Resource("resourceclaimtemplates"), template.Name, fmt.Errorf("it is being deleted"))
		case now.Sub(lastUse(found.ObjectMeta)) < useEvery:
			return nil
		}
		found.Annotations = withLastUse(found.Annotations, now)
		_, err = templates.Update(ctx, found, metav1.UpdateOptions{}) // carries the resourceVersion: what was deleted meanwhile is not used
		return err
	})
}

// made is whether a template is as it is made here. A Kubernetes later than this program may fill fields in; it is asked what it
// makes of ours.
func made(ctx context.Context, templates typed.ResourceClaimTemplateInterface, found, template *resourceapi.ResourceClaimTemplate) (bool, error) {
	if found.Labels[labelGenerated] != labelGeneratedAs {
		return false, nil
	}
	if equality.Semantic.DeepEqual(found.Spec, template.Spec) {
		return true, nil
	}
	fresh := template.DeepCopy()
	fresh.Name, fresh.GenerateName = "", template.Name+"-"
	fresh, err := templates.Create(ctx, fresh, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	if err != nil {
		return false, fmt.Errorf("ask what the API server makes of template %s: %w", template.Name, err)
	}
	return equality.Semantic.DeepEqual(found.Spec, fresh.Spec), nil
}

// again is for what another replica, or the collection, did at the same moment.
func again(err error) bool {
	return apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) || apierrors.IsNotFound(err)
}

func withLastUse(annotations map[string]string, now time.Time) map[string]string {
	if annotations == nil {
		annotations = map[string]string{}
	}
	annotations[annotationLastUse] = now.UTC().Format(time.RFC3339)
	return annotations
}

// lastUse is when a pod with the template was last admitted; its making, where the annotation is not there or not a time.
func lastUse(t metav1.ObjectMeta) time.Time {
	if used, err := time.Parse(time.RFC3339, t.Annotations[annotationLastUse]); err == nil {
		return used
	}
	return t.CreationTimestamp.Time
}
